"""Batches of encoded examples: rows of like length together, padded on the right, in an order that only the seed
decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.examples import Encoded
from frcli.training.packing import Family, alike, families, layout, seen


@dataclass(frozen=True, slots=True)
class Batch:
    """What is read in one step.

    ``indices`` are the examples' places in the list that was given, ``ids`` is int64 [rows, longest]. Where examples
    share rows, ``places`` int64 of the same shape are the positions within each, and ``seen`` bool [rows, 1, longest,
    longest] says which tokens each token sees; None where every row is one. The arrays ``row`` and ``position``
    int64 [n] name the places whose next token, ``target`` int64 [n], is part of an answer, and ``example`` int64 [n]
    which of ``indices`` it belongs to; they go through the examples in order.
    """

    indices: list[int]
    ids: NDArray[np.int64]
    places: NDArray[np.int64] | None
    seen: NDArray[np.bool_] | None
    row: NDArray[np.int64]
    position: NDArray[np.int64]
    target: NDArray[np.int64]
    example: NDArray[np.int64]


def make_batch(examples: Sequence[Encoded], indices: Sequence[int], pack: bool = False) -> Batch:
    """The batch of the examples at ``indices``; padding is token 0, which no answer position ever sees.

    With ``pack`` short examples share a row that is as long as the longest one, and those that follow each other and
    begin alike share that beginning (see :mod:`frcli.training.packing`).
    """
    chosen = [examples[i] for i in indices]
    groups = families(chosen, range(len(chosen)), share=pack)
    starts, shape = layout(groups, pack)
    ids, places, family, branch = (np.zeros(shape, np.int64) for _ in range(4))
    rows, positions, targets = [], [], []
    for number, (group, (row, start)) in enumerate(zip(groups, starts, strict=True), 1):
        shared = group.shared
        family[row, start : start + group.size] = number
        ids[row, start : start + shared] = chosen[group.members[0]].prompt[:shared]
        places[row, start : start + shared] = np.arange(shared)
        at = start + shared
        for own, member in enumerate(group.members, 1):
            example = chosen[member]
            rest = (example.prompt + example.answer)[shared:]
            end = at + len(rest)
            ids[row, at:end], branch[row, at:end] = rest, own
            places[row, at:end] = np.arange(shared, shared + len(rest))
            first = end - len(example.answer) - 1
            rows.append(np.full(len(example.answer), row))
            positions.append(np.arange(first, end - 1))
            targets.append(np.array(example.answer))
            at = end
    join: Any = np.concatenate
    return Batch(
        list(indices),
        ids,
        places if pack else None,
        seen(family, branch) if pack else None,
        join(rows).astype(np.int64),
        join(positions).astype(np.int64),
        join(targets).astype(np.int64),
        np.repeat(np.arange(len(chosen)), [len(example.answer) for example in chosen]),
    )


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
    epoch. ``units``, if given, says which examples must be in one batch, as the two answers of a pair; with ``pack``
    examples that begin alike are.
    """
    order = [[i] for i in range(len(examples))] if units is None else [list(unit) for unit in units]
    if pack:
        order = alike(examples, order)

    def longest(unit: Sequence[int]) -> int:
        return max(group.size for group in families(examples, unit, share=pack))

    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        batch: list[int] = []
        groups: list[Family] = []
        for unit in sorted(order[start : start + pool], key=longest):
            grown = families(examples, unit, share=pack, before=groups)
            if batch and math.prod(layout(grown, pack)[1]) > budget:
                batches.append(batch)
                batch, grown = [], families(examples, unit, share=pack)
            batch, groups = [*batch, *unit], grown
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
