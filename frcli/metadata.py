"""What the files of a router say of it beside their numbers, read from texts that anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path

from frcli.bundle import valid_name
from frcli.errors import ModelError

MOST_GAMMA = 16
_AGAIN = "train or convert it again, or fetch it again if it was downloaded"


def expert_names(text: str | None, path: Path) -> tuple[str, ...]:
    """The experts that the router in the file ``path`` chooses among, in the order of its weights: ``text`` is a JSON
    list of names, empty for a model without a routing head, None where the file has no such entry.

    Raises ``ModelError`` unless it is such a list and names nobody twice.
    """
    try:
        names = json.loads(text or "")
        if not isinstance(names, list):
            raise ValueError("not a list")
        found = tuple(valid_name(name) if isinstance(name, str) else "" for name in names)
    except (ValueError, RecursionError):  # no JSON, no names, or lists in lists without an end
        found = ("",)
    if not all(found):
        said = "nothing" if text is None else ascii(text[:40])
        raise ModelError(f"{path} says {said} of its experts, which is no JSON list of names", _AGAIN)
    if len(set(found)) != len(found):
        raise ModelError(f"{path} names an expert twice in {', '.join(found)[:200]}", _AGAIN)
    return found


def trained_gamma(text: str | None, path: Path) -> float | None:
    """The gamma that the router in the file ``path`` was trained for, None where the file does not say.

    Raises ``ModelError`` unless the text is a number from 0 to 16.
    """
    if text is None:
        return None
    try:
        gamma = float(text)
    except ValueError:
        gamma = -1.0
    if not 0 <= gamma <= MOST_GAMMA:
        raise ModelError(
            f"{path} says that its gamma is {ascii(text[:40])}, not a number from 0 to {MOST_GAMMA}", _AGAIN
        )
    return gamma
