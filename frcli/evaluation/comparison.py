"""Policies side by side on tasks: the same items for all, their scores, speeds and differences as one document.

    {"bundle", "experts", "limit", "seed", "at_once", "draft",
     "tasks":   {task: {"metric", "items": [doc ids], "rows": hash of what they are}},
     "groups":  {group: [tasks]},
     "systems": {system: {"tasks": {task: {"mean", "stderr", "scores", "tokens", "calls", "timed", "seconds"}},
                          "mean", "stderr", "tokens_per_second", "calls_per_token"}},
     "against": system, "differences": {system: {task or "mean": [difference, low, high]}}, "samples": [{"task", "doc",
     "prompt", "answer", "written": {system: {"score", "tokens": [[text, experts, weights]]}}}]}

``tokens`` and ``calls`` (of models, each counted for every answer that took part in it) are of answers that are
written; tasks that only ask for probabilities have none. ``seconds`` are those of the wall clock, prompts included and
many answers at once, for the ``timed`` tokens: answers to the first items of each task, whose prompts each system read
itself (:mod:`frcli.evaluation.rounds`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frcli.decode.answer import Answer, written_tokens
from frcli.decode.engine import Engine
from frcli.decode.loop import Step
from frcli.errors import DataError, FrcliError, UsageError
from frcli.evaluation import logiglue
from frcli.evaluation.significance import paired, standard_error
from frcli.journal import Journal, key_of

if TYPE_CHECKING:
    from frcli.evaluation.harness import FrcliLM

TASKS = Path(__file__).parent / "tasks"
MEAN = "mean"
_SAMPLES = 2  # items of each task whose answers are timed and kept token by token


@dataclass(frozen=True)
class Plan:
    """What is compared: ``policies`` as the user spells them, ``tasks`` by lm-eval's names (groups and tags, too), and
    the files or folders of rows that the user gave for some of them. ``limit`` 0 takes all rows.
    """

    policies: Sequence[str]
    tasks: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0
    seed: int = 0
    against: str = ""


def prepare_harness() -> None:
    """Keep lm-eval and what it imports from talking over our progress."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)


def known_tasks() -> list[str]:
    """Our own tasks and tags of tasks, by name."""
    from lm_eval.tasks import TaskManager

    return list(TaskManager(include_path=str(TASKS), include_defaults=False).all_tasks)


def compare(
    engine: Engine, plan: Plan, journal: Journal, report: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """The document of all policies on all tasks; ``report(system, done, items)`` after each item.

    What the ``journal`` has is not asked again. Raises ``UsageError`` for tasks that do not exist and policies that the
    bundle cannot serve.
    """
    prepare_harness()
    from frcli.evaluation.harness import FrcliLM
    from frcli.evaluation.rounds import Rounds

    chosen = _choose(plan)
    for policy in plan.policies:
        engine.use(policy)  # all are looked at before the first one takes its time
    against = plan.against or plan.policies[0]
    if against not in plan.policies:
        raise UsageError(f"{against} is not compared", f"the policies are {', '.join(plan.policies)}")
    document: dict[str, Any] = {
        "bundle": engine.bundle.name,
        "experts": list(engine.bundle.experts),
        "limit": plan.limit,
        "seed": plan.seed,
        "at_once": engine.sequences,
        "draft": engine.options.draft,
        "tasks": {name: asdict(task) for name, task in chosen.items()},
        "groups": logiglue.groups(chosen),
        "systems": {},
        "samples": [
            {"task": name, "doc": doc, "prompt": "", "answer": "", "written": {}}
            for name, task in chosen.items()
            for doc in task.items[:_SAMPLES]
        ],
    }
    items = sum(len(task.items) for task in chosen.values())
    seen: dict[str, set[tuple[str, int]]] = {policy: set() for policy in plan.policies}

    def recorder(policy: str) -> _Recorder:
        engine.use(policy)
        return _Recorder(engine, journal, chosen, seen[policy], lambda done: report(policy, done, items))

    first = plan.policies[0]
    for policy in plan.policies:
        own = recorder(policy)
        if policy == first:
            model: FrcliLM = Rounds(engine, own, {each: recorder(each) for each in plan.policies}, _SAMPLES)
            engine.use(first)
        else:
            model = FrcliLM(engine, recorder=own)
        _run(model, policy, plan, chosen, own, document)
    document["against"] = against
    document["differences"] = differences(document, against, plan.seed)
    return document


@dataclass(frozen=True)
class _Chosen:
    """A task's main metric, which of its items are asked, and a hash of these."""

    metric: str
    items: list[int]
    rows: str


def _choose(plan: Plan) -> dict[str, _Chosen]:
    """The tasks that the plan's names stand for, and their items, drawn by the plan's seed."""
    from lm_eval.api.metrics import mean

    chosen = {}
    for name, task in _load(plan)["tasks"].items():
        count = len(task.eval_docs)
        if not count:
            raise DataError(f"{name} has no rows", "look at its file")
        random = np.random.default_rng([plan.seed, count])
        most = min(plan.limit or count, count)
        items = sorted(int(i) for i in random.choice(count, most, replace=False))
        metric, aggregation = next(iter(task.aggregation().items()))
        if aggregation is not mean or not task.higher_is_better()[metric]:
            raise UsageError(
                f"the {metric} of {name} is no mean of scores that should be high",
                "it cannot stand beside others here: use lm_eval run --model frcli",
            )
        rows = json.dumps([task.eval_docs[item] for item in items], sort_keys=True, default=str)
        chosen[name] = _Chosen(str(metric), items, hashlib.sha256(rows.encode()).hexdigest()[:16])
    return chosen


def _load(plan: Plan) -> Any:
    """The plan's tasks, as lm-eval makes them, without examples in their prompts where they do not say how many."""
    from lm_eval.tasks import TaskManager

    files = {name: str(Path(place).expanduser().absolute()) for name, place in plan.files.items()}
    ours = set(known_tasks())
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=not ours.issuperset(plan.tasks), metadata={"files": files}
    )
    for name in plan.files:
        if name in manager.all_tasks and name not in ours:
            raise UsageError(f"the rows of {name} cannot be given", "only our own tasks read files")
    for name in plan.tasks:
        if name not in manager.all_tasks:
            raise UsageError(f"there is no task {name!r}", "frcli eval tasks lists ours; lm-eval's are known, too")
    try:
        loaded = manager.load(list(plan.tasks))
    except FrcliError:
        raise
    except Exception as error:  # whatever lm-eval, the hub or the network does
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"lm-eval cannot load {', '.join(plan.tasks)}: {reason}", "give files with -t NAME=FILE"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(plan.seed)
    return loaded


class _Recorder:
    """Takes results to the journal and adds up, for one system, what they took."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        chosen: Mapping[str, _Chosen],
        seen: set[tuple[str, int]],
        report: Callable[[int], None],
    ) -> None:
        self._engine, self._journal, self._chosen = engine, journal, chosen
        self._seen, self._report = seen, report
        # How many are written at once is no part of it: it may differ from day to day, as memory is free.
        self._setting = engine.setting
        self._steps: dict[tuple[str, int], list[Step]] = {}
        self._last = time.perf_counter()
        self.taken: dict[str, dict[str, float]] = {}
        self.traces: dict[tuple[str, int], list[Any]] = {}

    def known(self, instance: Any, key: Sequence[Any]) -> Any | None:
        entry = self._journal.get(key_of(self._setting, *key))
        self._last = time.perf_counter()
        if entry is None:
            return None
        self._note(instance, entry)
        return entry["result"]

    def step(self, instance: Any, step: Step) -> None:
        if instance.doc_id < _SAMPLES:  # lm-eval counts the items that are asked
            self._steps.setdefault(self._item(instance), []).append(step)

    def keep(self, instance: Any, key: Sequence[Any], result: Any, answer: Answer | None) -> None:
        entry: dict[str, Any] = {"result": result}
        now = time.perf_counter()
        if answer is not None:
            entry |= {"tokens": answer.completion_tokens, "calls": answer.calls}
            if instance.doc_id < _SAMPLES:
                entry["seconds"] = now - self._last
            if steps := self._steps.pop(self._item(instance), None):
                entry["trace"] = written_tokens(steps, self._engine.piece)
        self._last = now
        self._journal.put(key_of(self._setting, *key), entry)
        self._note(instance, entry)

    def _note(self, instance: Any, entry: Mapping[str, Any]) -> None:
        self._seen.add(self._item(instance))  # an item may ask several things
        self._report(len(self._seen))
        if "tokens" in entry:
            taken = self.taken.setdefault(instance.task_name, {"tokens": 0, "calls": 0, "timed": 0, "seconds": 0.0})
            timed = {"timed": entry["tokens"], "seconds": entry["seconds"]} if "seconds" in entry else {}
            for what, much in ({"tokens": entry["tokens"], "calls": entry["calls"]} | timed).items():
                taken[what] += much
        if "trace" in entry:
            self.traces[self._item(instance)] = entry["trace"]

    def _item(self, instance: Any) -> tuple[str, int]:
        return instance.task_name, self._chosen[instance.task_name].items[instance.doc_id]


def _run(
    model: FrcliLM,
    policy: str,
    plan: Plan,
    chosen: Mapping[str, _Chosen],
    recorder: _Recorder,
    document: dict[str, Any],
) -> None:
    """Let lm-eval ask one system everything, and add what came of it to the document."""
    from lm_eval import evaluate

    found = evaluate(
        lm=model,
        task_dict=_load(plan),
        samples={name: task.items for name, task in chosen.items()} if plan.limit else None,
        apply_chat_template=model.engine.template is not None,
        bootstrap_iters=0,
    )
    assert found is not None  # only the ranks of a distributed run get nothing
    cells = {}
    for name, task in chosen.items():
        cells[name] = _cell(name, task, found) | recorder.taken.get(name, {})
        _sample(name, policy, found["samples"][name], recorder, document)
    document["systems"][policy] = summary(cells)


def summary(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A system of the document, by what it did in each task."""
    tokens, calls, timed, seconds = (
        sum(cell.get(what, 0) for cell in cells.values()) for what in ("tokens", "calls", "timed", "seconds")
    )
    errors = [cell["stderr"] for cell in cells.values()]
    return {
        "tasks": cells,
        MEAN: float(np.mean([cell["mean"] for cell in cells.values()])),
        "stderr": math.sqrt(sum(error**2 for error in errors)) / len(errors) if None not in errors else None,
        "tokens_per_second": timed / seconds if seconds else None,
        "calls_per_token": calls / tokens if tokens else None,
    }


def _cell(name: str, task: _Chosen, found: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard error of a task's main metric, and its scores by item."""
    by_item = {
        sample["doc_id"]: sample[task.metric]
        for sample in reversed(found["samples"][name])  # of several filters the first one counts
        if isinstance(sample.get(task.metric), (int, float))
    }
    if by_item.keys() != set(task.items):  # aggregated by lm-eval in a way of its own
        value = next(value for key, value in found["results"][name].items() if key.split(",")[0] == task.metric)
        return {"mean": float(value), "stderr": None, "scores": None}
    scores = [float(by_item[doc]) for doc in task.items]
    error = standard_error(scores)
    return {"mean": float(np.mean(scores)), "stderr": None if math.isnan(error) else error, "scores": scores}


def _sample(
    name: str, policy: str, samples: Sequence[Mapping[str, Any]], recorder: _Recorder, document: dict[str, Any]
) -> None:
    metric = document["tasks"][name]["metric"]
    for sample in samples:
        if (trace := recorder.traces.get((name, sample["doc_id"]))) is None:
            continue
        for shown in document["samples"]:
            if (shown["task"], shown["doc"]) == (name, sample["doc_id"]):
                doc = sample["doc"]
                shown["prompt"] = str(doc.get("prompt") or sample["arguments"][0][0])
                shown["answer"] = str(sample["target"])
                shown["written"].setdefault(policy, {"score": sample.get(metric), "tokens": trace})


def differences(document: Mapping[str, Any], against: str, seed: int) -> dict[str, Any]:
    """What each system scores more than ``against`` on the same items, by task and in the mean: mean, low, high."""
    reference = document["systems"][against]["tasks"]
    found: dict[str, Any] = {}
    for system, result in document["systems"].items():
        pairs = {
            task: np.subtract(cell["scores"], reference[task]["scores"]).tolist()
            for task, cell in result["tasks"].items()
            if cell["scores"] and reference[task]["scores"]
        }
        if system != against and pairs:
            found[system] = {task: list(paired([scores], seed)) for task, scores in pairs.items()}
            if len(pairs) == len(result["tasks"]):
                found[system][MEAN] = list(paired(list(pairs.values()), seed))
    return found
