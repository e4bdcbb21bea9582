"""Runs a batch file: one request a line in, one answer a line out, in the order of the input.

Lines are read as they are needed, so memory does not grow with the file. Answers may be finished in any order; each is
on disk as soon as those before it are, in ``OUT.part`` beside ``OUT``, which takes its place when all rows are done.
Whatever ends a job early leaves whole lines in ``OUT.part``, and the error says how many.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from frcli.errors import (
    ContextError,
    DataError,
    FrcliError,
    Interrupted,
    OutputError,
    RowsFailed,
    UsageError,
)
from frcli.jobs.formats import BadRow, Row, answered, failed, read_row

if TYPE_CHECKING:
    from frcli.decode.answer import Answer

Answerer = Callable[[Iterator["Row | None"]], Iterator[tuple[int, "Answer | FrcliError"]]]
"""Answers rows: yields each row's number, counted from 0 among those it was given, and its answer, in any order.

It asks for the next row when it could begin with it; None says that it must finish another one before.
"""

AHEAD = 256  # rows that may be begun or finished behind one that is not finished: what is kept in memory
MAX_LINE = 16 * 2**20  # bytes; a longer line is no request that any context holds
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Progress:
    """State after a row: rows answered and failed, tokens written, bytes of input read and in all (None for a pipe)."""

    done: int
    failed: int
    tokens: int
    bytes_read: int
    bytes_total: int | None


@dataclass(frozen=True, slots=True)
class JobResult:
    """How many rows were answered (``done``) and how many failed."""

    done: int
    failed: int

    def check(self, out: str) -> None:
        """Raise ``RowsFailed`` when a row has failed; ``out`` is what the error calls the output."""
        if self.failed:
            rows = self.done + self.failed
            raise RowsFailed(f"{self.failed} of {rows} rows failed", f"{out} says for each of them why")


def run(
    rows: Path | None,
    out: Path | None,
    answers: Answerer,
    *,
    model: str,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
    limit: int | None = None,
) -> JobResult:
    """Answer every row of the file ``rows`` (None: standard input) into ``out`` (None: standard output).

    A ``FrcliError`` that ``answers`` gives for a row is written in its place, and one that it raises ends the job.
    ``model`` is what OpenAI rows that name none are told. ``limit`` ends the job after so many rows, blank lines not
    counted.

    Raises ``UsageError`` for files that cannot be meant, ``DataError`` for input that cannot be read or has no rows,
    ``OutputError`` for output that exists (without ``force``) or cannot be written, and ``Interrupted`` on Ctrl-C.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_opened(rows))
        name = str(rows) if rows else "standard input"
        output = stack.enter_context(_output(rows, out, force))
        job = _Job(_lines(source, name), output, model, limit, progress, _size(source))
        try:
            for number, outcome in answers(job.rows()):
                job.finished(number, outcome)
            if not job.read:
                raise KeyboardInterrupt  # stopped when no row was being answered: there is no half answer to tell it
            job.write()
            if job.written:
                output.commit()
        except KeyboardInterrupt as error:
            raise Interrupted(f"stopped in {name}", output.promise()) from error
        except FrcliError as error:
            raise type(error)(error.what, "; ".join(filter(None, (error.hint, output.promise())))) from error
        if not job.written:
            raise DataError(f"{name} has no rows", "give one JSON object a line")
    return JobResult(job.done, job.failed)


class _Job:
    """Rows on their way from the input through the answerer to the output, which gets them in order."""

    def __init__(
        self,
        lines: Iterator[tuple[int, bytes | None, int]],
        output: Output,
        model: str,
        limit: int | None,
        progress: Callable[[Progress], None] | None,
        size: int | None,
    ) -> None:
        self._lines, self._output, self._model, self._limit = lines, output, model, limit
        self._progress, self._size = progress, size
        self._bytes = 0
        self._ids: dict[str | int, int] = {}
        self._given: dict[int, tuple[int, Row]] = {}  # place in the output and row, by the answerer's number
        self._asked = 0
        self._waiting: dict[int, tuple[dict[str, Any], int | None]] = {}  # lines to write by place, and their tokens
        self._taken = 0  # places given out
        self.read = False  # whether the input has no more rows
        self.written = self.done = self.failed = self._tokens = 0

    def rows(self) -> Iterator[Row | None]:
        """The rows that can be answered, as they are asked for."""
        for number, line, length in self._lines:
            self._bytes += length
            if line is not None and not line.strip():
                continue
            row = _row(line, number, self._ids)
            while self._taken - self.written >= AHEAD:
                yield None
            place, self._taken = self._taken, self._taken + 1
            if isinstance(row, BadRow):
                self._waiting[place] = failed(row, "invalid_request", row.reason), None
                self.write()
            else:
                self._given[self._asked] = place, row
                self._asked += 1
                yield row
            if self._taken == self._limit:
                break
        self.read = True

    def finished(self, number: int, outcome: Answer | FrcliError) -> None:
        """Take a row's answer, or why it has none, and write what can be written."""
        place, row = self._given.pop(number)
        self._waiting[place] = _record(row, outcome, self._model)
        self.write()

    def write(self) -> None:
        """Write the lines whose turn it is."""
        while self.written in self._waiting:
            record, tokens = self._waiting.pop(self.written)
            self._output.write(record)
            self.written += 1
            self.done += tokens is not None
            self.failed += tokens is None
            self._tokens += tokens or 0
            if self._progress:
                self._progress(Progress(self.done, self.failed, self._tokens, self._bytes, self._size))


def _row(line: bytes | None, number: int, lines_of_ids: dict[str | int, int]) -> Row | BadRow:
    if line is None:
        return BadRow(number, number, "bare", f"line {number}: it is longer than {MAX_LINE >> 20} MiB")
    row = read_row(line, number)
    first = lines_of_ids.setdefault(row.id, number)
    if first != number and isinstance(row, Row):
        return BadRow(number, row.id, row.shape, f"line {number}: the id {row.id!r} is that of line {first} already")
    return row


def _record(row: Row, outcome: Answer | FrcliError, model: str) -> tuple[dict[str, Any], int | None]:
    """The line to write and the number of tokens in it, None for a row that failed."""
    if isinstance(outcome, (OutputError, Interrupted)):
        raise outcome
    if isinstance(outcome, FrcliError):
        if isinstance(outcome, ContextError):
            code = "context_length_exceeded"
        else:
            code = "invalid_request" if isinstance(outcome, (UsageError, DataError)) else "server_error"
        return failed(row, code, str(outcome)), None
    if outcome.finish_reason == "cancelled":
        raise KeyboardInterrupt  # half an answer is none: the row is left to the next run
    return answered(row, outcome, model), outcome.completion_tokens


def _opened(rows: Path | None) -> contextlib.AbstractContextManager[BinaryIO]:
    if rows is None:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return rows.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"{rows} does not exist", "check the path") from error
    except OSError as error:
        raise DataError(f"cannot read {rows}: {_reason(error)}", "give a file of JSON lines") from error


def _size(source: BinaryIO) -> int | None:
    try:
        state = os.fstat(source.fileno())
    except (OSError, ValueError):  # standard input may be something else than a file
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


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


def refuse_output(rows: Path | None, out: Path | None, force: bool) -> None:
    """Raise what :func:`run` would raise for these files, before anything is opened; nothing is written."""
    if rows is not None and not rows.exists():
        raise UsageError(f"{rows} does not exist", "check the path")
    if out is None:
        return
    with _writing(out):
        target = out.resolve()  # a link's target is replaced, not the link
        if rows is not None and target.exists() and os.path.samefile(rows, target):
            raise UsageError(f"{out} is the input and the output", "write to another file")
        if _replaceable(target) and not force:
            raise OutputError(f"{out} exists", "choose another name, or use --force to replace it")
        part = target.with_name(target.name + ".part")
        if rows is not None and part.exists() and os.path.samefile(rows, part):
            raise UsageError(f"{rows} would be overwritten while it is read", "rename it, or write to another file")
        if part.exists() and not force:
            raise OutputError(
                f"{out}.part is there from a job that did not finish",
                "it holds the rows that were answered: move it away, or use --force to start over",
            )


def _replaceable(target: Path) -> bool:
    return target.exists() and stat.S_ISREG(target.stat().st_mode)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        raise OutputError(f"cannot write {out}: {_reason(error)}", "choose a place that can be written to") from error


def _output(rows: Path | None, out: Path | None, force: bool) -> Output:
    refuse_output(rows, out, force)
    if out is None:
        sys.stdout.flush()
        buffer = sys.stdout.buffer
        # Unbuffered where that can be had: what a buffer could not get rid of, it would try again when Python ends.
        return Output(getattr(buffer, "raw", buffer), "standard output", ours=False)
    with _writing(out):
        target = out.resolve()
        if target.exists() and not _replaceable(target):
            # A device or a pipe is written to; it must never be replaced by a file.
            return Output(target.open("wb", buffering=0), str(out))
        part = target.with_name(target.name + ".part")
        return Output(part.open("wb" if force else "xb", buffering=0), str(out), part, target)


class Output:
    """Whole lines of JSON in a file: what is not whole is taken away again.

    With ``part`` and ``target`` the lines go to ``part``, which :meth:`commit` renames to ``target``.
    """

    def __init__(
        self, file: IO[bytes], name: str, part: Path | None = None, target: Path | None = None, *, ours: bool = True
    ) -> None:
        self._file = file
        self._name = name
        self._part = part
        self._target = target
        self._ours = ours
        self._safe = 0  # bytes in whole lines
        self._rows = 0

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours:
            with contextlib.suppress(OSError):
                self._file.close()
        if self._part is not None and not self._rows:  # nothing to keep, and the next run shall not be refused for it
            with contextlib.suppress(OSError):
                self._part.unlink()

    def write(self, record: dict[str, Any]) -> None:
        """Append a line and push it to the disk."""
        text = json.dumps(record, ensure_ascii=False) + "\n"
        line = text.encode(
            "utf-8", errors="backslashreplace"
        )  # a lone surrogate becomes its escape, which is JSON again
        try:
            rest = memoryview(line)
            while rest:
                written = self._file.write(rest)
                if not written:
                    raise OSError(errno.EAGAIN, "it takes nothing now")
                rest = rest[written:]
            self._file.flush()
            if self._part is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._repair()
            raise OutputError(f"cannot write {self._part or self._name}: {_reason(error)}") from error
        except BaseException:
            self._repair()
            raise
        self._safe += len(line)
        self._rows += 1

    def commit(self) -> None:
        """Give the file its name."""
        if self._part is None or self._target is None:
            return
        try:
            self._file.close()
            os.replace(self._part, self._target)
        except OSError as error:
            raise OutputError(f"cannot rename {self._part} to {self._name}: {_reason(error)}") from error

    def promise(self) -> str:
        """Say what is safe when the job ends here."""
        if self._part is None:
            return ""
        if not self._rows:
            return "no row was finished and nothing is written"
        rows = "1 finished row is" if self._rows == 1 else f"{self._rows} finished rows are"
        return f"{rows} safe in {self._part}"

    def _repair(self) -> None:
        """Cut off a line that is not whole; a pipe or a device cannot be cut."""
        if self._part is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._safe)


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
