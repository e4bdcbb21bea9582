"""Rows for the recipes: conversations and preferences of the hub as JSON lines that ``frcli train`` reads.

    python examples/recipes/rows.py perfectblend 20000 OUT.jsonl
    python examples/recipes/rows.py preferences 10000 OUT.jsonl

Needs the ``datasets`` package and the network. Not run here, for want of a hub; fields as on the pages of the sets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_SEED = 1
_USER, _MODEL = ("human", "user"), ("gpt", "assistant")


def turns(messages: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
    """The first question and its answer, of messages with ``from`` and ``value`` or ``role`` and ``content``."""
    told = [(each.get("from") or each.get("role"), each.get("value") or each.get("content") or "") for each in messages]
    spoken = [turn for turn in told if turn[0] != "system"]
    if len(spoken) < 2 or spoken[0][0] not in _USER or spoken[1][0] not in _MODEL or not spoken[1][1].strip():
        return None
    return spoken[0][1], spoken[1][1]


def perfectblend(rows: Any) -> Iterator[dict[str, str]]:
    """Rows of prompt and answer: one question and its answer out of each conversation."""
    for row in rows:
        if pair := turns(row["conversations"]):
            yield {"prompt": pair[0], "answer": pair[1]}


def preferences(rows: Any) -> Iterator[dict[str, str]]:
    """Rows of prompt, chosen and rejected."""
    for row in rows:
        chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
        if chosen and rejected and chosen[0] == rejected[0] and chosen[1] != rejected[1]:
            yield {"prompt": chosen[0], "chosen": chosen[1], "rejected": rejected[1]}


SETS = {
    "perfectblend": ("mlabonne/open-perfectblend", perfectblend),
    "preferences": ("argilla/OpenHermesPreferences", preferences),
}


def main() -> None:
    """The command line."""
    name, count, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    from datasets import load_dataset

    place, make = SETS[name]
    rows = load_dataset(place, split="train", streaming=True).shuffle(seed=_SEED, buffer_size=10_000)
    beside = out.with_name(f"{out.name}.part")
    with beside.open("w", encoding="utf-8") as file:
        for number, row in enumerate(make(rows)):
            if number == count:
                break
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    beside.replace(out)


if __name__ == "__main__":
    main()
