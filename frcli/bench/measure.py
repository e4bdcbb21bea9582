"""The measuring itself: all configurations in turns, within each repetition, so that a machine that slows down for a
while slows them all down.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from frcli.bench.engines import Engines, barred, forget, warm_up
from frcli.bench.idle import FEW, MANY, crowd
from frcli.bench.peers import BareRun, LlamaBench, llama_bench
from frcli.bench.plan import Plan, Prompt
from frcli.bench.recording import Recording
from frcli.bundle import Bundle
from frcli.decode.batch import Request, write_many
from frcli.decode.draft import OFF
from frcli.decode.engine import Engine, Options
from frcli.errors import FrcliError
from frcli.fusion.policy import BASE

Report = Callable[[str, str, int, int], None]  # phase, what is being measured, how much of it is done, of how much

Fused = tuple[str, float]  # --draft and temperature
Batch = tuple[int, float]  # sequences and temperature
Bare = tuple[str, float]  # expert and temperature


@dataclass(slots=True)
class Measured:
    """What was measured, raw; each list has an entry for each repetition.

    ``fused`` has a recording for each prompt, ``batch`` one for all, ``bare`` one run for each prompt that the expert
    was given; ``router`` is the router's bare run; ``idle`` seconds a token by number of experts; ``peer`` what
    ``llama-bench`` said.
    """

    fused: dict[Fused, list[list[Recording]]] = field(default_factory=dict)
    batch: dict[Batch, list[list[Recording]]] = field(default_factory=dict)
    bare: dict[Bare, list[list[BareRun]]] = field(default_factory=dict)
    router: list[BareRun] = field(default_factory=list)
    idle: dict[int, list[float]] = field(default_factory=dict)
    peer: list[LlamaBench] = field(default_factory=list)


Key = TypeVar("Key")
Value = TypeVar("Value")


def _at(table: dict[Key, list[list[Value]]], key: Key, repetition: int) -> list[Value]:
    rows = table.setdefault(key, [])
    while len(rows) <= repetition:
        rows.append([])
    return rows[repetition]


class Bench:
    """Follows a plan on the prompts, with engines that it is given; what it sees it adds to ``measured``."""

    def __init__(self, engines: Engines, bundle: Bundle, plan: Plan, prompts: Sequence[Prompt]) -> None:
        self._engines, self._bundle, self._plan, self._prompts = engines, bundle, plan, prompts
        self.measured = Measured()
        self._barred: Sequence[int] | None = None

    def run(self, report: Report) -> None:
        """Measure all configurations in all repetitions."""
        plan = self._plan
        repetitions = [self._jobs(repetition) for repetition in range(plan.repetitions)]
        done, total = 0, sum(map(len, repetitions))
        for jobs in repetitions:
            for label, job in jobs:
                report("measuring", label, done, total)
                job()
                done += 1

    def _jobs(self, repetition: int) -> list[tuple[str, Callable[[], None]]]:
        """What one repetition consists of, in order, each job with a name for the progress.

        The order of what is compared changes from prompt to prompt. An expert alone gets as many prompts as there are
        for each expert, but at least one, and other ones in each repetition.
        """
        plan, experts = self._plan, self._bundle.experts
        jobs: list[tuple[str, Callable[[], None]]] = []
        for temperature in plan.temperatures:
            alone: list[tuple[str, str, Callable[[], None]]] = []
            for p in range(max(len(self._prompts), len(experts))):
                turn = repetition + p
                if p < len(self._prompts):
                    for draft in plan.drafts[:: -1 if turn % 2 else 1]:
                        alone.append((draft, f"draft {draft}", partial(self._write, repetition, draft, temperature, p)))
                name, prompt = experts[turn % len(experts)], p % len(self._prompts)
                alone.append((OFF, f"{name} alone", partial(self._write_bare, repetition, name, temperature, prompt)))
            if not self._engines.roomy:  # as few changes of the engine as possible
                alone.sort(key=lambda job: plan.drafts.index(job[0]))
            jobs += [(label, job) for _, label, job in alone]
            if temperature == plan.temperatures[0]:
                jobs.append(("router alone", partial(self._read_bare, repetition)))
                if plan.llama_bench is not None:
                    jobs.append(("llama-bench", self._run_peer))
            for n in plan.sequences:
                jobs.append((f"{n} at once", partial(self._write_many, repetition, n, temperature)))
        return jobs

    def _write(self, repetition: int, draft: str, temperature: float, p: int) -> None:
        engine, prompt = self._engines.engine(draft), self._prompts[p].tokens
        sampling = self._plan.sampling(temperature, p, self._bans(engine))
        forget(engine)
        recording = Recording({p: len(prompt)})
        engine.write(prompt, sampling, max_tokens=self._plan.tokens, on_step=partial(recording.see, p)).run()
        recording.ended = time.perf_counter()
        _at(self.measured.fused, (draft, temperature), repetition).append(recording)

    def _bans(self, engine: Engine) -> Sequence[int]:
        if self._barred is None:
            self._barred = barred(self._plan, engine)
        return self._barred

    def _write_bare(self, repetition: int, name: str, temperature: float, p: int) -> None:
        bare, sampling = self._engines.expert(name), self._plan.sampling(temperature, p)
        run = bare.write(self._prompts[p].tokens, self._plan.tokens, sampling)
        _at(self.measured.bare, (name, temperature), repetition).append(run)

    def _read_bare(self, repetition: int) -> None:
        """The router alone reads what the fused system wrote, one token at a time."""
        if (router := self._engines.router()) is None:
            return
        p = repetition % len(self._prompts)
        key = OFF, self._plan.temperatures[0]
        written = next(r.tokens(p) for r in self.measured.fused[key][repetition] if p in r.prompts)
        # A short answer tells little: it is read again from its beginning, up to the length of the others.
        again = (written * self._plan.tokens)[: self._plan.tokens]
        self.measured.router.append(router.read(self._prompts[p].tokens, again))

    def _write_many(self, repetition: int, sequences: int, temperature: float) -> None:
        """Half as many prompts again as there is room for: those that end early are replaced."""
        engine = self._engines.engine(self._plan.drafts[-1], sequences)
        count = max(len(self._prompts), sequences + sequences // 2)
        prompts = {i: self._prompts[i % len(self._prompts)].tokens for i in range(count)}
        requests = [
            Request(tokens, self._plan.sampling(temperature, i, self._bans(engine)), self._plan.tokens)
            for i, tokens in prompts.items()
        ]
        forget(engine)
        recording = Recording({i: len(tokens) for i, tokens in prompts.items()})
        for _, answer in write_many(engine, requests, on_step=recording.see):
            if isinstance(answer, FrcliError):
                raise answer
        recording.ended = time.perf_counter()
        _at(self.measured.batch, (sequences, temperature), repetition).append(recording)

    def _run_peer(self) -> None:
        engine = self._engines.engine(OFF)
        assert self._plan.llama_bench is not None
        lengths = sorted(len(prompt.tokens) for prompt in self._prompts)
        result = llama_bench(
            self._plan.llama_bench,
            engine.base.path,
            prompt=lengths[len(lengths) // 2],
            tokens=self._plan.tokens,
            threads=engine.threads,
            gpu_layers=engine.plan.placement(BASE).on_gpu,
        )
        self.measured.peer.append(result)


def measure_idle(
    bundle: Bundle, options: Options, plan: Plan, prompts: Sequence[Prompt], busy: Sequence[str], report: Report
) -> dict[int, list[float]]:
    """Seconds a token, by number of experts, in each repetition: greedy, without drafts, ``plan.tokens`` tokens.

    A repetition is one prompt, which the bundle of two experts and the bundle of eight answer in turns, token by token.
    """
    plan = replace(plan, ignore_end=True)
    seconds: dict[int, list[float]] = {FEW: [], MANY: []}
    with tempfile.TemporaryDirectory(prefix="frcli-bench-") as folder:
        engines: dict[int, Engine] = {}
        try:
            for size in (FEW, MANY):
                report("idle experts", f"opening {size} experts", 0, plan.repetitions)
                made = crowd(bundle, busy, size, Path(folder))
                engines[size] = Engine(made, replace(options, draft=OFF, sequences=1))
                warm_up(engines[size], prompts[0])
            for repetition in range(plan.repetitions):
                report("idle experts", f"{FEW} and {MANY}", repetition, plan.repetitions)
                prompt = prompts[repetition % len(prompts)].tokens
                for size, took in _in_turns(engines, prompt, plan).items():
                    seconds[size].append(took)
        finally:
            for engine in engines.values():
                engine.close()
    return seconds


def _in_turns(engines: dict[int, Engine], prompt: Sequence[int], plan: Plan) -> dict[int, float]:
    spent = dict.fromkeys(engines, 0.0)
    answers = {}
    for size, engine in engines.items():
        forget(engine)
        answers[size] = engine.steps(prompt, plan.sampling(0, 0, barred(plan, engine)), max_tokens=plan.tokens)
        next(answers[size])  # reads the prompt
    written = 0
    order = list(answers)
    try:
        while True:
            took = {}
            for size in order:
                before = time.perf_counter()
                next(answers[size])
                took[size] = time.perf_counter() - before
            for size, seconds in took.items():
                spent[size] += seconds
            written += 1
            order.reverse()
    except StopIteration:
        pass
    finally:
        for answer in answers.values():
            answer.close()
    return {size: seconds / max(1, written) for size, seconds in spent.items()}
