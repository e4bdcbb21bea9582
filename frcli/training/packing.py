"""Several examples in one row: short ones stand behind each other, and those whose prompts begin alike share their
beginning, which is read once and which all of them see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcli.examples import Encoded

_LONGEST = 512  # tokens of a family that shares: what attention costs grows with the square of a row


@dataclass(slots=True)
class Family:
    """Examples that share the first ``shared`` tokens of their prompts: their ``members`` by number, and the ``tokens``
    that they have together.
    """

    members: list[int]
    shared: int
    tokens: int

    @property
    def size(self) -> int:
        """How many tokens are read."""
        return self.tokens - (len(self.members) - 1) * self.shared


def size(example: Encoded) -> int:
    """How many tokens an example has."""
    return len(example.prompt) + len(example.answer)


def families(
    examples: Sequence[Encoded], order: Sequence[int], share: bool = True, before: Sequence[Family] = ()
) -> list[Family]:
    """The examples at ``order``, those together that follow each other and share at least half of their prompts; each
    by itself without ``share``. They come behind the families ``before``, the last of which they may join.

    The last token of a prompt is never shared, since the first token of the answer is read off it.
    """
    found = list(before)
    for index in order:
        prompt = examples[index].prompt
        alone = Family([index], len(prompt) - 1, size(examples[index]))
        if found and share:
            first = examples[found[-1].members[0]].prompt
            shared = _common(first, prompt, min(found[-1].shared, alone.shared))
            both = Family([*found[-1].members, index], shared, found[-1].tokens + alone.tokens)
            if 2 * shared >= max(len(first), len(prompt)) and both.size <= _LONGEST:
                found[-1] = both
                continue
        found.append(alone)
    return found


def alike(examples: Sequence[Encoded], units: Sequence[Sequence[int]]) -> list[list[int]]:
    """The units, of which those of one example that can share a beginning are one unit."""
    alone = sorted((unit[0] for unit in units if len(unit) == 1), key=lambda index: examples[index].prompt)
    together = [family.members for family in families(examples, alone)]
    return [*together, *(list(unit) for unit in units if len(unit) > 1)]


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many tokens two texts begin with alike, at most ``most``."""
    return next((at for at in range(most) if one[at] != other[at]), most)


def layout(groups: Sequence[Family], pack: bool) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Row and start of each family, and how many rows there are and how long they are: as long as the longest family,
    which with ``pack`` stand behind each other where there is room, the longest first.
    """
    sizes = [group.size for group in groups]
    width = max(sizes)
    if not pack:
        return [(row, 0) for row in range(len(sizes))], (len(sizes), width)
    filled: list[int] = []
    places = [(0, 0)] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((row for row, used in enumerate(filled) if used + sizes[index] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        places[index] = row, filled[row]
        filled[row] += sizes[index]
    return places, (len(filled), width)


def seen(family: NDArray[np.int64], branch: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens each token of a row sees, bool [rows, 1, longest, longest]: the earlier ones and itself, of its own
    ``family`` and there of its own ``branch`` and of the beginning, 0. Both are int64 [rows, longest].
    """
    width = family.shape[1]
    causal = np.tri(width, dtype=bool)
    related = family[:, :, None] == family[:, None, :]
    visible = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    mask: NDArray[np.bool_] = (causal & related & visible)[:, None]
    return mask
