"""What the files of a router say of it beside their numbers, read from texts that anybody may have written."""

from __future__ import annotations

from pathlib import Path

from frcli.errors import ModelError

MOST_GAMMA = 16
_AGAIN = "train or convert it again, or fetch it again if it was downloaded"


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
