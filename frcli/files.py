"""Files that are there whole or not at all, and the folders in which they are made."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent`` whose name begins with ``prefix``, gone when the block ends. First what processes that
    were killed have left under such names is removed. Raises ``OSError``.
    """
    remove_left(parent, prefix)
    folder, lock = _claimed(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_left(parent: Path, prefix: str) -> None:
    """Remove the :func:`scratch` folders of processes that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):
            if folder.is_dir() and not folder.is_symlink() and (lock := locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _claimed(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A new folder and the lock on it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Before it has its lock another process may take it for one that was left.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = locked(folder)
            if folder.is_dir():
                return folder, lock
            if lock is not None:
                os.close(lock)


def locked(folder: Path) -> int | None:
    """Lock the folder until the number that is returned is closed or this process ends; None where there are no locks.

    Raises ``BlockingIOError`` if another one has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where what was left stays until somebody removes it
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None  # some network drives
    return handle
