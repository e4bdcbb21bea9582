"""A table in a temporary file: what a job must know of each of its rows, in memory that does not grow with them."""

from __future__ import annotations

import sqlite3

from frcli.errors import OutputError


class DiskMap:
    """Text to two whole numbers. It begins empty, and is gone when it is closed.

    SQLite keeps it in a file without a name, of which it caches 2 MB. Raises ``OutputError`` when there is no room.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE entries (name TEXT PRIMARY KEY, first INTEGER, second INTEGER) WITHOUT ROWID")

    def get(self, name: str) -> tuple[int, int] | None:
        """What ``name`` stands for."""
        found: tuple[int, int] | None = self._table.execute(
            "SELECT first, second FROM entries WHERE name = ?", (name,)
        ).fetchone()
        return found

    def set(self, name: str, first: int, second: int = 0) -> None:
        """Let ``name`` stand for two numbers, whatever it stood for before."""
        try:
            self._table.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (name, first, second))
        except sqlite3.OperationalError as error:
            raise OutputError(f"cannot write to the folder of temporary files: {error}", "make room") from None

    def __len__(self) -> int:
        return int(self._table.execute("SELECT count(*) FROM entries").fetchone()[0])

    def close(self) -> None:
        """Forget everything."""
        self._table.close()
