"""Results on disk, each as soon as it is there: what a job or a comparison that was cut off goes on from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from frcli.diskmap import DiskMap
from frcli.errors import OutputError


class Journal:
    """A file of JSON lines, each with a ``key``; the last line of a key counts. Memory does not grow with it.

    A last line that was torn is cut off when it is opened. The operating system locks the file for this process, and
    lets it go however the process ends. Without a path it is kept in memory. Raises ``OutputError`` for a file that
    cannot be used, or that another process is using.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._end = 0
        self._places = DiskMap()  # where the line of a key begins, and its length
        self._file: Any = None
        try:
            self._file = _locked(path) if path else io.BytesIO()
            if path:
                self._scan()
        except BlockingIOError:
            self.close()
            raise OutputError(f"another process is writing {path}", "wait for its end, or choose another -o") from None
        except OSError as error:
            self.close()
            raise OutputError(
                f"cannot write {path}: {_reason(error)}", "choose a place that can be written to"
            ) from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.close()
            raise OutputError(f"cannot go on from {path}: {error}", "delete it, or choose another -o") from None

    def _scan(self) -> None:
        lines = io.BufferedReader(self._file, 1 << 16)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            if not isinstance(key := json.loads(line)["key"], str):
                raise ValueError(f"a line has the key {key!r:.40}")
            self._places.set(key, self._end, len(line))
            self._end += len(line)
        lines.detach()
        self._file.truncate(self._end)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was kept under ``key``."""
        if (place := self._places.get(key)) is None:
            return None
        start, length = place
        self._file.seek(start)
        line = b""
        while len(line) < length and (piece := self._file.read(length - len(line))):
            line += piece
        entry: dict[str, Any] = json.loads(line)
        return entry

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep ``entry``, on the disk when this returns; a line that cannot be written as a whole is not there."""
        line = json.dumps({"key": key, **entry}, ensure_ascii=True).encode() + b"\n"
        try:
            self._file.seek(self._end)
            rest = memoryview(line)
            while rest:
                if not (written := self._file.write(rest)):
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                rest = rest[written:]
            if self.path is not None:
                os.fsync(self._file.fileno())
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise OutputError(f"cannot write {self.path}: {_reason(error)}", "make room, then go on") from None
            raise
        self._places.set(key, self._end, len(line))
        self._end += len(line)

    def clear(self) -> None:
        """Forget everything that was kept."""
        self._file.truncate(0)
        self._end = 0
        self._places.close()
        self._places = DiskMap()

    def remove(self) -> None:
        """Close the journal and delete its file, which is not needed any more."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()  # before it is closed: another process could take it up in between
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)  # Windows deletes no file that is open

    def close(self) -> None:
        """Close the file; it stays."""
        self._places.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _locked(path: Path) -> io.FileIO:
    """The file, made if need be, with a lock that ends with this process; ``BlockingIOError`` if another one has it."""
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        try:
            _lock(file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # whoever had it has deleted it meanwhile


def _lock(file: io.FileIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 40)  # Windows keeps others from reading what is locked: this is behind all lines
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        file.seek(0)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def key_of(*parts: Any) -> str:
    """A name for everything that a result depends on, which must be plain JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
