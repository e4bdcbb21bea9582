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
    """What is read in one step.

    ``indices`` are the examples' places in the list that was given, ``ids`` is int64 [rows, longest], and ``places``
    int64 of the same shape the positions within each example, None where every row is one. The arrays ``row`` and
    ``position`` int64 [n] name the places whose next token, ``target`` int64 [n], is part of an answer, and ``example``
    int64 [n] which of ``indices`` it belongs to; they go through the examples in order.
    """

    indices: list[int]
    ids: NDArray[np.int64]
    places: NDArray[np.int64] | None
    row: NDArray[np.int64]
    position: NDArray[np.int64]
    target: NDArray[np.int64]
    example: NDArray[np.int64]


def size(example: Encoded) -> int:
    """How many tokens are read of an example."""
    return len(example.prompt) + len(example.answer)


def make_batch(examples: Sequence[Encoded], indices: Sequence[int], pack: bool = False) -> Batch:
    """The batch of the examples at ``indices``; padding is token 0, which no answer position ever sees.

    With ``pack`` short examples share a row that is as long as the longest one; ``places`` tells them apart.
    """
    chosen = [examples[i] for i in indices]
    width = max(map(size, chosen))
    starts = _fitted(list(map(size, chosen)), width) if pack else [(row, 0) for row in range(len(chosen))]
    shape = (max(row for row, _ in starts) + 1, width)
    ids, places = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    rows, positions, targets = [], [], []
    for (row, start), example in zip(starts, chosen, strict=True):
        tokens = example.prompt + example.answer
        ids[row, start : start + len(tokens)] = tokens
        places[row, start : start + len(tokens)] = np.arange(len(tokens))
        first = start + len(example.prompt) - 1
        rows.append(np.full(len(example.answer), row))
        positions.append(np.arange(first, first + len(example.answer)))
        targets.append(np.array(example.answer))
    join: Any = np.concatenate
    return Batch(
        list(indices),
        ids,
        places if pack else None,
        join(rows).astype(np.int64),
        join(positions).astype(np.int64),
        join(targets).astype(np.int64),
        np.repeat(np.arange(len(chosen)), [len(example.answer) for example in chosen]),
    )


def _fitted(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Row and start of each length, the longest first into the first row that has room for it."""
    filled: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, used in enumerate(filled) if used + lengths[index] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        places[index] = row, filled[row]
        filled[row] += lengths[index]
    return places


def plan_epoch(
    examples: Sequence[Encoded],
    budget: int,
    rng: random.Random,
    pool: int = 256,
    units: Sequence[Sequence[int]] | None = None,
    pack: bool = False,
) -> list[list[int]]:
    """Indices of one epoch's batches: every example once, at most ``budget`` padded tokens a batch (one row at least).

    Rows are sorted by length inside shuffled pools, so that little is padding and yet batches differ from epoch to
    epoch; with ``pack``, which needs no such order, the budget counts the examples' own tokens. ``units``, if given,
    says which examples must be in one batch, as the two answers of a pair.
    """
    order = [[i] for i in range(len(examples))] if units is None else [list(unit) for unit in units]

    def length(unit: Sequence[int]) -> int:
        return max(size(examples[i]) for i in unit)

    rng.shuffle(order)
    if pack:
        return _filled(order, [sum(size(examples[i]) for i in unit) for unit in order], budget)
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


def _filled(order: Sequence[Sequence[int]], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """The units in their order, as many in a batch as the budget has room for."""
    batches: list[list[int]] = []
    used = budget
    for unit, tokens in zip(order, sizes, strict=True):
        if used + tokens > budget:
            batches.append([])
            used = 0
        batches[-1] += unit
        used += tokens
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
