"""The optimisation loop that experts and routers share: AdamW, warm-up and cosine, checkpoints that resume."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frcli.errors import OutputError
from frcli.examples import Encoded
from frcli.training.batches import Batch, make_batch, plan_epoch


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train; ``budget`` is in padded tokens a step, ``max_steps`` 0 means all, and ``pack``
    puts short examples into one row and those that begin alike behind one beginning.
    """

    epochs: int = 1
    budget: int = 1536
    learning_rate: float = 5e-4
    warmup: float = 0.05
    seed: int = 0
    max_steps: int = 0
    save_every: int = 50
    pack: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimisation step: its number from 1, how many there are, the losses by name, and tokens a second so far."""

    step: int
    steps: int
    losses: dict[str, float]
    tokens_per_second: float


def plan(
    examples: Sequence[Encoded], schedule: Schedule, units: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Indices of the batches of all epochs, cut at ``max_steps`` if that is set; the seed alone decides the order.

    ``units`` are examples that must stay together (see :func:`plan_epoch`).
    """
    rng = random.Random(schedule.seed)
    steps = [
        batch
        for _ in range(schedule.epochs)
        for batch in plan_epoch(examples, schedule.budget, rng, units=units, pack=schedule.pack)
    ]
    return steps[: schedule.max_steps] if schedule.max_steps else steps


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """The rate of step ``step`` (from 0): linear warm-up, then a cosine down to a tenth."""
    warm = max(1, round(schedule.warmup * steps))
    if step < warm:
        return schedule.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return schedule.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def fingerprint(files: Iterable[Path], examples: Sequence[Encoded], *settings: object) -> str:
    """A hash of all that decides what a run computes: contents of files, examples, and settings by their ``repr``."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for example in examples:
        digest.update(np.array([*example.prompt, -1, *example.answer, -2], np.int64).tobytes())
    return digest.hexdigest()


def fit(
    parameters: Iterable[Any],
    loss_of: Callable[[Batch], dict[str, Any]],
    examples: Sequence[Encoded],
    schedule: Schedule,
    checkpoint: Path,
    run: str,
    report: Callable[[Progress], None],
    units: Sequence[Sequence[int]] | None = None,
) -> None:
    """Train ``parameters`` on ``loss_of(batch)["loss"]``; the other entries of its result are only reported.

    ``checkpoint`` is written beside and renamed every ``save_every`` steps, and picked up again when it exists; its
    folder is made where it is missing. ``run`` says what is being trained (see :func:`fingerprint`): ``OutputError`` is
    raised for the checkpoint of another run.
    """
    import torch

    parameters = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    steps = plan(examples, schedule, units)
    run = hashlib.sha256(repr((run, steps)).encode()).hexdigest()  # another version may plan other steps
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["run"] != run:
            raise OutputError(
                f"{checkpoint} is from a run with other data or settings", "go on with those, or give another --out"
            )
        first = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, saved in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        torch.set_rng_state(state["rng"].cpu())
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    tokens, began = 0, time.monotonic()
    for step in range(first, len(steps)):
        batch = make_batch(examples, steps[step], schedule.pack)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), schedule)
        losses = loss_of(batch)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(examples[i].prompt) + len(examples[i].answer) for i in batch.indices)
        values = {name: float(value.detach()) for name, value in losses.items()}
        report(Progress(step + 1, len(steps), values, tokens / (time.monotonic() - began)))
        if (step + 1) % schedule.save_every == 0 and step + 1 < len(steps):
            beside = checkpoint.with_name(checkpoint.name + ".part")
            state = {
                "run": run,
                "step": step + 1,
                "optimizer": optimizer.state_dict(),
                "parameters": parameters,
                "rng": torch.get_rng_state(),
            }
            torch.save(state, beside)
            beside.replace(checkpoint)
