"""Batches of encoded examples: rows of like length together, padded on the right, in an order that only the seed
decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.examples import Encoded


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step.

    ``indices`` are the examples' places in the list that was given, ``ids`` is int64 [rows, longest]; the arrays
    ``row`` and ``position`` int64 [n] name the places whose next token, ``target`` int64 [n], is part of an answer.
    """

    indices: list[int]
    ids: NDArray[np.int64]
    row: NDArray[np.int64]
    position: NDArray[np.int64]
    target: NDArray[np.int64]


def make_batch(examples: Sequence[Encoded], indices: Sequence[int]) -> Batch:
    """The batch of the examples at ``indices``; padding is token 0, which no answer position ever sees."""
    chosen = [examples[i] for i in indices]
    width = max(len(e.prompt) + len(e.answer) for e in chosen)
    ids = np.zeros((len(chosen), width), np.int64)
    rows, positions, targets = [], [], []
    for r, example in enumerate(chosen):
        tokens = example.prompt + example.answer
        ids[r, : len(tokens)] = tokens
        first = len(example.prompt) - 1
        rows.append(np.full(len(example.answer), r))
        positions.append(np.arange(first, first + len(example.answer)))
        targets.append(np.array(example.answer))
    join: Any = np.concatenate
    return Batch(
        list(indices),
        ids,
        join(rows).astype(np.int64),
        join(positions).astype(np.int64),
        join(targets).astype(np.int64),
    )


def plan_epoch(
    examples: Sequence[Encoded],
    budget: int,
    rng: random.Random,
    pool: int = 256,
    units: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Indices of one epoch's batches: every example once, at most ``budget`` padded tokens a batch (one row at least).

    Rows are sorted by length inside shuffled pools, so that little is padding and yet batches differ from epoch to
    epoch. ``units``, if given, says which examples must be in one batch, as the two answers of a pair.
    """
    order = [[i] for i in range(len(examples))] if units is None else [list(unit) for unit in units]

    def length(unit: Sequence[int]) -> int:
        return max(len(examples[i].prompt) + len(examples[i].answer) for i in unit)

    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        batch: list[int] = []
        for unit in sorted(order[start : start + pool], key=length):
            if batch and (len(batch) + len(unit)) * length(unit) > budget:
                batches.append(batch)
                batch = []
            batch += unit
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def pair_units(single: int, rows: int) -> list[list[int]]:
    """The units of :func:`plan_epoch` for rows of which the first ``single`` stand alone and the others are pairs."""
    return [[i] for i in range(single)] + [[i, i + 1] for i in range(single, rows, 2)]


def calibration_tokens(
    examples: Sequence[Encoded], seed: int, sequences: int = 16, length: int = 256
) -> NDArray[np.int32] | None:
    """Sequences of training text for calibrated quantization: int32 [at most ``sequences``, ``length``].

    Examples in an order that the seed decides, one behind the other, cut into pieces; None when they do not fill one.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    tokens: list[int] = []
    for index in order:
        if len(tokens) >= sequences * length:
            break
        tokens += examples[index].prompt + examples[index].answer
    filled = min(sequences, len(tokens) // length)
    return np.array(tokens[: filled * length], np.int32).reshape(filled, length) if filled else None
