"""What a training will take: memory and time, from the model's shape and this machine's arithmetic."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.checkpoint import open_checkpoint
from converters.decoder import DecoderConfig
from frcli.examples import Encoded
from frcli.training.batches import make_batch
from frcli.training.loop import Schedule, plan
from frcli.training.packing import families

_FLOAT = 4
_OVERHEAD = 600 << 20  # bytes of torch, transformers and Python


@dataclass(frozen=True, slots=True)
class Estimate:
    """``memory`` in bytes and ``seconds``; both are rough: a factor of 1.5 either way."""

    memory: int
    seconds: float


def estimate(
    base: Path,
    examples: Sequence[Encoded],
    schedule: Schedule,
    modules: Sequence[str] | None,
    rank: int,
    *,
    layers: int = 0,
    units: Sequence[Sequence[int]] | None = None,
    losses: int = 0,
    save_memory: bool = False,
    flops: float,
) -> Estimate:
    """The cost of training a LoRA of ``rank`` on ``modules`` of a base of which ``layers`` are kept (0: all), or (None)
    all of its weights.

    A token that is read costs 2 operations a weight forwards and 2 backwards, and 2 more where the weight has a
    gradient of its own; logits only where an answer is. Memory holds the weights in float32, four numbers for each that
    is trained, what the layers keep for the way back (with ``save_memory`` what goes into them, and the values inside
    of one), and four times the logits, once more for each of so many ``losses`` beside the likelihood. ``flops`` are
    how many operations a second there are (see :func:`machine_flops`).
    """
    config = open_checkpoint(base).config
    depth = layers or config.layers
    table = config.vocab * config.hidden
    inner = _layer_weights(config) * depth
    if modules is None:
        trained = table * (1 if config.tied else 2) + inner
    else:
        trained = sum(
            rank * (shape[0] + shape[1])
            for name, shape in config.shapes().items()
            if name.split(".")[-2] in modules and len(shape) == 2 and int(name.split(".")[2]) < depth
        )
    steps = plan(examples, schedule, units)
    longest = max(make_batch(examples, step, schedule.pack).ids.size for step in steps)
    answers = max(sum(len(examples[i].answer) for i in step) for step in steps)
    inside = 14 * config.hidden + 4 * config.intermediate
    per_token = depth * config.hidden + inside if save_memory else depth * inside
    frozen = 0 if modules is None else table * (1 if config.tied else 2) + inner
    memory = _FLOAT * (frozen + 4 * trained + longest * per_token + (4 + losses) * answers * config.vocab)
    tokens = sum(family.size for step in steps for family in families(examples, step, share=schedule.pack))
    rows = sum(len(examples[i].answer) for step in steps for i in step)
    if modules is None:
        work = 6.0 * (inner * tokens + table * rows)
    else:
        work = 4.0 * (inner + trained) * tokens + 4.0 * table * rows
    work += 2.0 * inner * tokens if save_memory else 0.0  # the layers once more
    return Estimate(memory + _OVERHEAD, work / flops)


def _layer_weights(config: DecoderConfig) -> int:
    prefix = "model.layers.0."
    return sum(math.prod(shape) for name, shape in config.shapes().items() if name.startswith(prefix))


def machine_flops() -> float:
    """Operations a second of a float32 product of matrices, the best of five."""
    size = 768
    one = np.ones((size, size), np.float32)
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best
