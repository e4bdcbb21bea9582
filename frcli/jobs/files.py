"""The files of a job: rows in, lines out in their order, and the journal from which a job that was cut off goes on.

For an output ``OUT`` that is a file, each finished row is in ``OUT.journal`` before the next one is begun. ``OUT.part``
gets the lines in the order of the input and takes the place of ``OUT`` when all rows are there. A pipe or a device
gets its lines in order too, and nothing to go on from.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

from frcli.errors import DataError, OutputError, UsageError
from frcli.journal import Journal

MAX_LINE = 16 * 2**20  # bytes; a longer line is no request that any context holds
_BOM = b"\xef\xbb\xbf"


class JobFiles:
    """The input ``rows`` (None: standard input) and the output ``out`` (None: standard output) of a job.

    Entering it opens the journal, and locks it: two jobs cannot write one output. ``force`` lets an output be replaced
    that no journal belongs to, ``restart`` forgets what the journal has. An output without a journal that holds
    anything leaves none behind.

    Raises ``UsageError`` for files that cannot be meant, ``OutputError`` for output that exists, is being written by
    another process, or cannot be written. Nothing has been written then.
    """

    def __init__(self, rows: Path | None, out: Path | None, *, force: bool = False, restart: bool = False) -> None:
        self.rows, self.out = rows, out
        self.input_name = str(rows) if rows else "standard input"
        self.output_name = str(out) if out else "standard output"
        self.journal: Journal | None = None
        self._target: Path | None = None
        self._force, self._restart = force, restart

    def __enter__(self) -> JobFiles:
        if self.rows is not None and not self.rows.exists():
            raise UsageError(f"{self.rows} does not exist", "check the path")
        if self.out is not None:
            with _writing(self.out):
                # Asked of the path itself: what a pipe's /dev/fd/N resolves to does not exist.
                if not self.out.exists() or self.out.is_file():
                    self._open(self.out, self.out.resolve())  # a link's target is replaced, not the link
                elif self.out.is_dir():
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return self

    def _open(self, out: Path, target: Path) -> None:
        part, journal = _beside(target, ".part"), _beside(target, ".journal")
        for path in (target, part, journal):
            if self.rows is not None and path.exists() and os.path.samefile(self.rows, path):
                raise UsageError(f"{self.rows} is the input and would be written to", "write to another file")
        if not self._force and not journal.exists():
            for path, name in ((target, f"{out}"), (part, f"{out}.part")):
                if path.exists():
                    raise OutputError(f"{name} exists", "choose another name, or use --force to replace it")
        self.journal, self._target = Journal(journal), target
        if self._restart:
            self.journal.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.journal is not None:
            if len(self.journal):
                self.journal.close()
            else:
                self.finish()

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Iterator[tuple[int, bytes | None, int]], int | None]]:
        """The lines of the input (:func:`_lines`), and its size in bytes where that is known."""
        if self.rows is None:
            yield _lines(sys.stdin.buffer, self.input_name), _size(sys.stdin.buffer)
            return
        try:
            source = self.rows.open("rb")
        except OSError as error:
            raise DataError(f"cannot read {self.rows}: {_reason(error)}", "give a file of JSON lines") from error
        with source:
            yield _lines(source, self.input_name), _size(source)

    def output(self) -> Output:
        """Where the lines go."""
        if self.out is None:
            sys.stdout.flush()
            buffer = sys.stdout.buffer
            # Unbuffered where that can be had: what a buffer could not get rid of, it would try again when Python ends.
            return Output(getattr(buffer, "raw", buffer), self.output_name, ours=False)
        with _writing(self.out):
            if self._target is None:  # a device or a pipe is written to; it must never be replaced by a file
                return Output(self.out.open("wb", buffering=0), self.output_name)
            part = _beside(self._target, ".part")
            return Output(part.open("wb", buffering=0), self.output_name, part, self._target)

    def finish(self) -> None:
        """Remove the journal: the output has all that it has."""
        if self.journal is not None:
            self.journal.remove()
            self.journal = None

    def promise(self) -> str:
        """Say what is safe when the job ends here."""
        if self.journal is None:
            return ""
        if not (count := len(self.journal)):
            return "no row was finished and nothing is written"
        rows = "1 finished row is" if count == 1 else f"{count} finished rows are"
        return f"{rows} safe in {self.journal.path}, and the same command goes on from there"


class Output:
    """Whole lines of JSON in a file. With ``part`` and ``target`` they go to ``part``, which :meth:`commit` renames."""

    def __init__(
        self, file: IO[bytes], name: str, part: Path | None = None, target: Path | None = None, *, ours: bool = True
    ) -> None:
        self._file, self._name = file, name
        self._part, self._target = part, target
        self._ours = ours

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            if self._ours:
                self._file.close()
            if self._part is not None:  # what it has is in the journal
                self._part.unlink()

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        text = json.dumps(record, ensure_ascii=False) + "\n"
        rest = memoryview(text.encode("utf-8", errors="backslashreplace"))  # half a surrogate pair becomes its escape
        try:
            while rest:
                written = self._file.write(rest)
                if not written:
                    raise OSError(errno.EAGAIN, "it takes nothing now")
                rest = rest[written:]
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._part or self._name}: {_reason(error)}") from error

    def commit(self) -> None:
        """Give the file its name, when all of it is on the disk."""
        if self._part is None or self._target is None:
            return
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self._target)
        except OSError as error:
            raise OutputError(f"cannot rename {self._part} to {self._name}: {_reason(error)}") from error
        self._part = None


def _lines(source: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None, int]]:
    """Number, content and length in bytes of each line; None for content of a line that is too long to read."""
    number = 0
    while True:
        try:
            line: bytes | None = source.readline(MAX_LINE + 1)
            if not line:
                return
            length = len(line)
            if length > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = source.readline(MAX_LINE)
                    length += len(line)
                line = None
        except OSError as error:
            raise DataError(f"cannot read {name}: {_reason(error)}") from error
        number += 1
        yield number, (line.removeprefix(_BOM) if line and number == 1 else line), length


def _size(source: BinaryIO) -> int | None:
    try:
        state = os.fstat(source.fileno())
    except (OSError, ValueError):  # standard input may be something else than a file
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        raise OutputError(f"cannot write {out}: {_reason(error)}", "choose a place that can be written to") from error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
