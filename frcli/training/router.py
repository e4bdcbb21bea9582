"""The FusionRoute router: its language model (a LoRA delta), its routing head and its gate, trained with experts
frozen.

Two objectives for answers that are right (``sft`` and ``fused``), and one for pairs of a right and a wrong one beside
them (CDPO); :mod:`frcli.training.objectives` has the equations. Sums over tokens are divided by the number of answer
tokens of the step, those over pairs by the number of pairs; prompts count in none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError
from frcli.examples import Encoded
from frcli.training import objectives
from frcli.training.base import Hardware
from frcli.training.batches import Batch, calibration_tokens, make_batch, pair_units, plan_epoch
from frcli.training.depth import chosen_layers
from frcli.training.head import fit_head
from frcli.training.known import KnownRows, distinct, known_rows, teacher_rows
from frcli.training.loop import Progress, Schedule, fingerprint, fit
from frcli.training.model import FUSED, SCALE, SFT, Recipe, RouterModel

_FITTED = 1 << 28  # numbers of hidden states from which the routing head is fitted


class Known:
    """What the experts say of the examples' answer tokens, and of the answers of pairs only the right tokens'."""

    def __init__(
        self,
        rows: Mapping[str, KnownRows],
        spans: Sequence[slice],
        teacher: KnownRows | None = None,
        device: str = "cpu",
        pair_rows: Mapping[str, KnownRows] | None = None,
        pair_spans: Sequence[slice] = (),
    ) -> None:
        """``spans`` are where the tokens of each example are in the rows, as :func:`known.distinct` says."""
        self._rows, self._teacher, self._device = list(rows.values()), teacher, device
        self._pairs = list((pair_rows or {}).values())
        self._spans, self._pair_spans = spans, pair_spans

    def kept(self, indices: Sequence[int]) -> objectives.Kept:
        """Those of the answer tokens of the examples at ``indices``, one behind the other."""
        spans = [self._spans[index] for index in indices]

        def stacked(name: str) -> NDArray[Any]:
            return np.stack(
                [np.concatenate([getattr(rows, name)[span] for span in spans]) for rows in self._rows], axis=1
            )

        best = stacked("best")
        return objectives.Kept(
            self._here(stacked("ids").astype(np.int64)),
            self._here(stacked("logp").astype(np.float32)),
            self._here(np.array(self._rows[0].weight)),
            self._here(stacked("gold")),
            self._here(np.any(best != best[:, :1], axis=1)),
        )

    def gold(self, numbers: Sequence[int]) -> Any:
        """Every expert's log-prob of the tokens of the pairs' answers at ``numbers``, float32 [tokens, experts]."""
        spans = [self._pair_spans[number] for number in numbers]
        found = [np.concatenate([rows.gold[span] for span in spans]) for rows in self._pairs]
        return self._here(np.stack(found, axis=1))

    def _here(self, array: NDArray[Any]) -> Any:
        import torch

        return torch.from_numpy(array).to(self._device)

    def distilled(self, logits: Any, indices: Sequence[int]) -> Any:
        """The divergence from the teacher at the answer tokens of the examples, whose ``logits`` these are; None
        without a teacher.
        """
        if (teacher := self._teacher) is None:
            return None
        ids, logp = (
            np.concatenate([getattr(teacher, name)[self._spans[index]] for index in indices])
            for name in ("ids", "logp")
        )
        weight = self._here(np.array(teacher.weight))
        return objectives.distill_loss(
            logits, self._here(ids.astype(np.int64)), self._here(logp.astype(np.float32)), weight
        )


@dataclass(frozen=True, slots=True)
class Before:
    """What the router said of the pairs before this phase: ``reference`` float32 [pairs], the difference of the summed
    log-probs of the right and the wrong answer, and ``offset`` [pairs], beta times that of the experts it routes to.
    """

    reference: NDArray[np.float32]
    offset: NDArray[np.float32]


def train_router(
    base: Path,
    experts: Mapping[str, Path | None],
    examples: Sequence[Encoded],
    out: Path,
    *,
    recipe: Recipe,
    schedule: Schedule,
    hardware: Hardware,
    report: Callable[[Progress], None],
    report_around: Callable[[str, int, int], None],
    pairs: Sequence[tuple[Encoded, Encoded]] = (),
    start: Path | None = None,
    teacher: Path | None = None,
    model: Path | None = None,
    rows: Path | None = None,
) -> Path:
    """Train a router for ``experts``, in this order: name -> GGUF of an adapter of ``base`` or of a whole model, or
    None for the base itself. It is made of ``model``, a GGUF or a folder, or else of the base.

    ``pairs`` are a right and a wrong answer to one prompt each: with them CDPO is added, relative to the router that
    ``start`` names, from which training goes on. ``teacher`` is an ONNX router to distill from. Returns the path of
    ``out``/router.safetensors, which ``convert router`` merges with what the router was made of, or with ``out``/model
    if all weights were trained. A checkpoint is kept in ``out`` until the end, so that a run that was cut off goes on.
    The experts' rows stay in the folder ``rows``, ``out``/rows if not given: another training for the same experts and
    examples reads them there.

    Raises ``ModelError`` for a router or an expert of another architecture or tokenizer than can be used, before
    anything is asked.
    """
    from converters.checkpoint import fingerprint as file_fingerprint
    from converters.checkpoint import open_checkpoint
    from converters.trained import FILE_NAME, read_trained, save_trained

    source = model or base
    config = open_checkpoint(source).config  # which could not become an ONNX router otherwise
    if model is not None and config.vocab < open_checkpoint(base).config.vocab:
        raise ModelError(
            f"{model} has {config.vocab} tokens, fewer than {base}", "use a router of the experts' tokenizer"
        )
    base_sha256 = file_fingerprint(source)
    answers = [answer for pair in pairs for answer in pair]
    everything = [*examples, *answers]
    threads, folder = hardware.threads, rows or out / "rows"
    gpu_layers = 0 if hardware.device == "cpu" else -1
    different, spans = distinct(examples)
    asked = known_rows(base, experts, different, folder, threads, report_around, gpu_layers)
    taught = teacher_rows(teacher, base, different, folder, threads, report_around) if teacher else None
    both, pair_spans = distinct(answers)
    preferred = (
        known_rows(base, experts, both, folder, threads, report_around, gpu_layers, gold_only=True) if pairs else {}
    )
    known = Known(asked, spans, taught, hardware.device, preferred, pair_spans)

    def choose(language: Any) -> list[int]:
        before = None if start is None else read_trained(start).layers
        if before is not None and len(before) == recipe.layers:
            return list(before)
        report = partial(report_around, "choosing layers")
        return chosen_layers(language, source, examples, recipe.layers, folder, schedule.seed, report)

    router = RouterModel(source, len(experts), recipe, hardware, schedule.seed, choose)
    if start is not None:
        router.load(start, list(experts), base_sha256)
    first = len(examples)  # the first row of a pair
    before = _before(router, known, answers, report_around) if pairs else None

    def loss_of(batch: Batch) -> dict[str, Any]:
        return losses(router, known, batch, first, before)

    weights = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    files = [base, *weights, *filter(None, experts.values()), *filter(None, [start, teacher])]
    names = [(name, adapter is not None) for name, adapter in experts.items()]
    run = fingerprint(files, everything, names, first, start is not None, teacher is not None, recipe, schedule)
    units = pair_units(first, len(everything))
    checkpoint = out / "checkpoint.pt"
    fit(router.parameters(), loss_of, everything, schedule, checkpoint, run, report, units)
    routing, prompt = _fitted(router, known, examples, report_around)
    file = out / FILE_NAME
    gate = None
    if router.gate is not None:
        gate = np.append(_numpy(router.gate.weight)[0], _numpy(router.gate.bias))[None]
    if recipe.full:
        router.save_language(out / "model")
        base_sha256 = file_fingerprint(out / "model")
    save_trained(
        file,
        delta=router.delta(),
        routing=routing,
        experts=list(experts),
        scale=SCALE,
        base_sha256=base_sha256,
        calibration=calibration_tokens(examples, schedule.seed),
        prompt=prompt,
        gate=gate,
        layers=router.layers if router.shallow and not recipe.full else None,
        gamma=recipe.decoding_gamma,
    )
    checkpoint.unlink(missing_ok=True)
    return file


def losses(router: RouterModel, known: Known, batch: Batch, first: int, before: Before | None) -> dict[str, Any]:
    """The step's ``loss`` and what it is made of; rows from ``first`` on are pairs."""
    import torch

    recipe = router.recipe
    states, target = router.states(batch), router.here(batch.target)
    logits = router.logits(states)
    of_pair = np.array([index >= first for index in batch.indices])[batch.example]
    right = router.here(~of_pair)
    found: dict[str, Any] = {}
    loss: Any = 0.0
    if (n := int(right.sum())) > 0:
        single = [index for index in batch.indices if index < first]
        kept = known.kept(single)
        alone = n == len(right)  # without pairs, of which a copy of all logits would be no better
        mine, own = (logits, states) if alone else (logits[right], states[right])
        weights, gamma = router.head(own), router.gamma(own)
        lm = torch.nn.functional.cross_entropy(mine, target[right], reduction="sum") / n
        with torch.set_grad_enabled(recipe.objective == FUSED):  # only reported otherwise
            nll = objectives.fused_nll(mine, target[right], kept, gamma)
        loss = lm if recipe.objective == SFT else (weights.softmax(-1) * nll).sum() / n + recipe.lm_share * lm
        if recipe.routing_share:
            loss = loss + recipe.routing_share * objectives.routing_loss(weights, kept) / n
        distilled = known.distilled(mine, single)
        if distilled is not None:
            loss = loss + recipe.distill * distilled / n
        chosen = weights.detach().argmax(-1, keepdim=True)
        found = {"lm": lm, "fused": nll.detach().gather(1, chosen).mean()}
        if distilled is not None:
            found["distilled"] = distilled / n
        found["accepted"] = objectives.agreement(mine.detach(), kept, chosen, gamma)
    if before is not None and of_pair.any():
        logp = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
        sums = torch.zeros(len(batch.indices), device=logp.device).index_add(0, router.here(batch.example), logp)
        rows = [row for row, index in enumerate(batch.indices) if index >= first]
        numbers = [(batch.indices[row] - first) // 2 for row in rows[::2]]
        cdpo = objectives.cdpo_loss(
            sums[rows[::2]],
            sums[rows[1::2]],
            router.here(before.reference[numbers]),
            router.here(before.offset[numbers]),
            recipe.beta,
        ) / len(numbers)
        found["cdpo"] = cdpo
        loss = loss + cdpo
    return {"loss": loss, **found}


def _before(
    router: RouterModel,
    known: Known,
    answers: Sequence[Encoded],
    report: Callable[[str, int, int], None],
) -> Before:
    """Read both answers of all pairs once with the router as it is."""
    import torch

    router_sums, expert_sums = np.zeros(len(answers), np.float32), np.zeros(len(answers), np.float32)
    done = 0
    with torch.inference_mode():
        for numbers in plan_epoch(answers, 2048, random.Random(0)):
            batch = make_batch(answers, numbers)
            states = router.states(batch)
            logp = router.logits(states).log_softmax(-1)
            gold = _numpy(logp.gather(1, router.here(batch.target)[:, None])[:, 0])
            routed = _numpy(known.gold(numbers).gather(1, router.head(states).argmax(-1, keepdim=True))[:, 0])
            for row, number in enumerate(numbers):
                mine = batch.example == row
                router_sums[number], expert_sums[number] = gold[mine].sum(), routed[mine].sum()
            done += len(numbers)
            report("reading pairs", done, len(answers))
    return Before(
        router_sums[::2] - router_sums[1::2], np.float32(router.recipe.beta) * (expert_sums[::2] - expert_sums[1::2])
    )


def _fitted(
    router: RouterModel, known: Known, examples: Sequence[Encoded], report: Callable[[str, int, int], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The routing head, fitted to its end on the trained language model unless the recipe leaves it as it was trained,
    and the head for whole prompts, fitted in the same way.

    The cost of an expert is its NLL of the gold token, fused with the router's logits where that is the objective.
    """
    import torch

    width = router.head.weight.shape[1]
    total = sum(len(example.answer) for example in examples)
    share = min(1.0, _FITTED / (total * width))  # of the tokens, so that memory does not grow with the data
    drawn = np.random.default_rng(0)
    states: list[Any] = [None] * len(examples)
    costs: list[Any] = [None] * len(examples)
    starts, means = np.zeros((len(examples), width), np.float32), np.zeros((len(examples), len(router.head.weight)))
    done = 0
    with torch.inference_mode():
        for indices in plan_epoch(examples, 2048, random.Random(0)):
            batch = make_batch(examples, indices)
            kept, hidden = known.kept(batch.indices), router.states(batch)
            nll = -kept.gold
            if router.recipe.objective == FUSED:
                target = router.here(batch.target)
                nll = objectives.fused_nll(router.logits(hidden), target, kept, router.gamma(hidden))
            every, cost, disagree = _numpy(hidden), _numpy(nll), _numpy(kept.disagree)
            for row, index in enumerate(batch.indices):
                mine = np.flatnonzero(batch.example == row)
                starts[index], means[index] = every[mine[0]], cost[mine].mean(axis=0)
                mine = mine[disagree[mine] & (drawn.random(len(mine)) < share)]
                states[index], costs[index] = every[mine], cost[mine]
            done += len(indices)
            report("fitting the heads", done, len(examples))
    routing = _numpy(router.head.weight).copy()
    if router.recipe.fit_head:
        counts = [(len(each), len(example.answer)) for each, example in zip(states, examples, strict=True)]
        importance = np.concatenate([np.full(n, 1 / of, np.float32) for n, of in counts])
        routing = fit_head(routing, np.concatenate(states), np.concatenate(costs), importance)
    ones = np.ones(len(examples), np.float32)
    return routing, fit_head(np.zeros_like(routing), starts, means.astype(np.float32), ones)


def _numpy(tensor: Any) -> NDArray[Any]:
    found: NDArray[Any] = tensor.detach().cpu().numpy()
    return found
