"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from frcli.errors import OutputError


def save(text: str, path: Path, *, private: bool = False) -> None:
    """Write a file of UTF-8 text beside its place and rename it when it is on disk; a ``private`` one is its owner's
    alone.

    Raises ``OutputError`` when it cannot be written; what was there before stays then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            number = os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600 if private else 0o666)
            with open(number, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(number)
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "choose another place") from None
