"""Results that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frcli.errors import OutputError
from frcli.files import scratch


def refuse_existing(path: Path, force: bool) -> None:
    """Raise ``OutputError`` if ``path`` exists and may not be replaced, or can never be a file.

    Called before the long work starts, so that a refusal costs nothing.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and the result is a file", "give the name of a file")
    if path.exists() and not force:
        raise OutputError(f"{path} exists", "remove it, choose another name or pass --force")


@contextmanager
def staging(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` for the result's files, and move them into place when the block succeeds.

    The block writes ``folder / path.name`` and, if the format needs it, further files whose names it chooses. Each is
    flushed to the disk and renamed into ``path.parent``, ``path.name`` last, so that whoever sees that name sees a
    complete result. When the block fails nothing remains; what a killed process left is removed by the next one that
    writes ``path``. Raises ``OutputError`` for an existing result without
    ``force`` and for every failure of the file system (full disk, missing permission, missing folder).
    """
    refuse_existing(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent, f".{path.name}.") as folder:
            yield folder
            written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
            for file in written:
                _flush(file)
            refuse_existing(path, force)
            for file in written:
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the ``OutputError`` that says in one sentence why ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"cannot write {path}: the disk is full", "free some space or write to another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"cannot write {path}: permission denied", "choose a folder that you may write to")
    return OutputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", "choose another place")


def _flush(file: Path) -> None:
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())
