"""Results that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from frcli.errors import OutputError
from frcli.files import locked, scratch

_END = re.compile(r"\.([0-9a-f]{16}\.)?data")  # of a companion's name; some have no hash in it


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

    The block writes ``folder / path.name`` and, if the format needs it, companions named by :func:`companion`. Each is
    flushed to the disk and renamed into ``path.parent``, ``path.name`` last, so that whoever sees that name sees a
    complete result; companions of what it replaces go after that. When the block fails nothing remains; what a killed
    process left is removed by the next one that writes ``path``. Raises ``OutputError`` for an existing result without
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
            _remove_companions(path, {file.name for file in written}, folder)
    except OSError as error:
        raise cannot_write(path, error) from error


def companion(path: Path, digest: str) -> str:
    """Return the name of a file beside ``path`` that holds a part of it, of which ``digest`` is the hex sha256.

    What ``path`` says of its companion is thus true or names no file, whichever of the two was renamed last.
    """
    return f"{path.name}.{digest[:16]}.data"


def _remove_companions(path: Path, kept: Container[str], own: Path) -> None:
    """Remove the companions of former results, unless another process may be about to name its own in ``path``."""
    with contextlib.suppress(OSError):  # the result is there, whatever else is; a folder in use raises, too
        for folder in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if folder == own or not folder.is_dir():
                continue
            lock = locked(folder)
            if lock is None:  # there are no locks here, so nobody knows
                return
            os.close(lock)
        for file in path.parent.iterdir():
            own_end = file.name.startswith(path.name) and _END.fullmatch(file.name.removeprefix(path.name))
            if own_end and file.name not in kept:
                file.unlink()


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
