"""Results of requests on disk, each as soon as it is there: what a comparison that was cut off goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from frcli.errors import OutputError


class Journal:
    """A file of JSON lines, each with a ``key``; a last line that was torn is cut off when it is opened.

    Without a path nothing is kept. Raises ``OutputError`` for a file that cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        self._file = None
        if path is None:
            return
        try:
            self._file = path.open("a+b")
            self._file.seek(0)
            whole = 0
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                self._lines[entry["key"]] = entry
                whole += len(line)
            self._file.truncate(whole)
            self._file.seek(whole)
        except (OSError, ValueError, TypeError, KeyError) as error:
            self.close()
            raise OutputError(f"cannot go on from {path}: {error}", "delete it, or choose another -o") from None

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was kept under ``key``."""
        return self._lines.get(key)

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep ``entry``, on the disk when this returns."""
        self._lines[key] = {"key": key, **entry}
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(self._lines[key], ensure_ascii=True).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}", "make room, then go on") from None

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def key_of(*parts: Any) -> str:
    """A name for everything that a result depends on, which must be plain JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
