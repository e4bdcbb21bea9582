"""Runs a batch file: one request a line in, one answer a line out, in the order of the input.

Lines are read as they are needed and answers may be finished in any order; each is in the job's journal before the
next row is begun. A row is known again by its id and by everything that its answer depends on, so a job that was
killed goes on with the rows that are missing, wherever they are in the file by then. Memory does not grow with the
file: what must be known of every row is in tables on the disk.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frcli.diskmap import DiskMap
from frcli.errors import ContextError, DataError, FrcliError, Interrupted, OutputError, RowsFailed, UsageError
from frcli.jobs.files import MAX_LINE, JobFiles, Output
from frcli.jobs.formats import BadRow, Row, read_row
from frcli.jobs.records import answered, failed
from frcli.journal import key_of

if TYPE_CHECKING:
    from frcli.decode.answer import Answer

Answerer = Callable[[Iterator["Row | None"]], Iterator[tuple[int, "tuple[Answer, ...] | FrcliError"]]]
"""Answers rows: yields each row's number, counted from 0 among those it was given, and its outcome, in any order.

It asks for the next row when it could begin with it; None says that it must finish another one before.
"""

AHEAD = 256  # rows that may be begun or finished behind one that is not finished: what is kept in memory


@dataclass(frozen=True, slots=True)
class Progress:
    """State after a row: rows answered and failed, tokens written, bytes of input read and in all (None for a pipe).

    Rows that the journal had count as answered or failed, not their tokens; ``known`` is how many they are and
    ``bytes_known`` where the input had the last of them.
    """

    done: int
    failed: int
    tokens: int
    bytes_read: int
    bytes_total: int | None
    known: int = 0
    bytes_known: int = 0


@dataclass(frozen=True, slots=True)
class JobResult:
    """How many rows were answered (``done``), how many failed, and how many of both the journal had (``known``)."""

    done: int
    failed: int
    known: int = 0

    def check(self, files: JobFiles) -> None:
        """Raise ``RowsFailed`` when a row has failed."""
        if self.failed:
            again = "; --retry-failed tries them again" if files.journal is not None else ""
            raise RowsFailed(
                f"{self.failed} of {self.done + self.failed} rows failed",
                f"{files.output_name} says for each of them why{again}",
            )


def run(
    files: JobFiles,
    answers: Answerer,
    key: Callable[[Row], str],
    *,
    model: str,
    retry_failed: bool = False,
    lenient: bool = False,
    limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> JobResult:
    """Answer every row of ``files``, those that its journal has not.

    A ``FrcliError`` that ``answers`` gives for a row is written in its place, and one that it raises ends the job.
    ``key`` names a row by everything that its answer depends on, the number of its line not among it. ``model`` is what
    OpenAI rows that name none are told. ``limit`` ends the job after so many rows, blank lines not counted. When
    ``stopping()`` turns true, the rows that are being answered are finished and no other is begun.

    The journal is gone when all rows of the input are answered. Raises ``DataError`` for input that cannot be read or
    has no rows, ``OutputError`` for output that cannot be written, and ``Interrupted`` on Ctrl-C or when it was
    stopped.
    """
    with contextlib.ExitStack() as stack:
        lines, size = stack.enter_context(files.reading())
        output = stack.enter_context(files.output())
        options = _Options(key, model, retry_failed, lenient, limit, progress, stopping)
        job = stack.enter_context(contextlib.closing(_Job(files, lines, size, output, options)))
        try:
            for number, outcome in answers(job.rows()):
                job.finished(number, outcome)
            if not job.read or job.running:
                raise KeyboardInterrupt  # stopped when no half answer was there to tell it
            if job.written:
                output.commit()
        except KeyboardInterrupt as error:
            raise Interrupted(f"stopped in {files.input_name}", files.promise()) from error
        except FrcliError as error:
            raise type(error)(error.what, "; ".join(filter(None, (error.hint, files.promise())))) from error
        if not job.written:
            raise DataError(f"{files.input_name} has no rows", "give one JSON object a line")
        if not job.failed and not job.limited:
            files.finish()
    return JobResult(job.done, job.failed, job.known)


@dataclass(frozen=True, slots=True)
class _Options:
    key: Callable[[Row], str]
    model: str
    retry_failed: bool
    lenient: bool
    limit: int | None
    progress: Callable[[Progress], None] | None
    stopping: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Finished:
    """A line that waits for its turn: itself, or its key in the journal, and the line number that is its id."""

    record: dict[str, Any] | None
    key: str = ""
    line: int | None = None


class _Job:
    """Rows on their way from the input through the answerer to the output, which gets them in order."""

    def __init__(
        self,
        files: JobFiles,
        lines: Iterator[tuple[int, bytes | None, int]],
        size: int | None,
        output: Output,
        options: _Options,
    ) -> None:
        self._input, self._size, self._output, self._options = lines, size, output, options
        self._journal = files.journal
        self._ids = DiskMap()  # the line of each id
        self._same = DiskMap()  # how many rows without an id of their own have the same key
        self._given: dict[int, tuple[int, Row, str]] = {}  # place in the output, row and key, by the answerer's number
        self._waiting: dict[int, _Finished] = {}  # lines to write by place
        self._asked = self._taken = 0  # rows given to the answerer, places given out
        self._bytes = self._bytes_known = self._tokens = 0
        self.read = self.limited = False  # whether the input has no more rows, and whether it is only left at that
        self.written = self.done = self.failed = self.known = 0

    @property
    def running(self) -> bool:
        """Whether rows were given to the answerer that it has not finished."""
        return bool(self._given)

    def close(self) -> None:
        self._ids.close()
        self._same.close()

    def rows(self) -> Iterator[Row | None]:
        """The rows that are to be answered, as they are asked for."""
        for number, line, length in self._input:
            if self._options.stopping():
                return
            self._bytes += length
            if line is not None and not line.strip():
                continue
            row = self._row(line, number)
            while self._taken - self.written >= AHEAD:
                yield None
            place, self._taken = self._taken, self._taken + 1
            if isinstance(row, BadRow):
                self._waiting[place] = _Finished(failed(row, "invalid_request", row.reason))
                self._count(None)
                self.write()
            elif not self._have(place, row, key := self._key(row)):
                self._given[self._asked] = place, row, key
                self._asked += 1
                yield row
            if self._taken == self._options.limit:
                self.limited = True
                break
        self.read = True

    def _row(self, line: bytes | None, number: int) -> Row | BadRow:
        if line is None:
            return BadRow(number, number, "bare", f"line {number}: it is longer than {MAX_LINE >> 20} MiB")
        row = read_row(line, number, lenient=self._options.lenient)
        if isinstance(row, BadRow) and not row.named:  # a line that cannot be read takes nobody's id
            return row
        name = json.dumps(row.id)
        first = self._ids.get(name)
        if first is None:
            self._ids.set(name, number)
        elif isinstance(row, Row):
            return BadRow(
                number, row.id, row.shape, f"line {number}: the id {row.id!r} is that of line {first[0]} already"
            )
        return row

    def _key(self, row: Row) -> str:
        """The row's key; rows without an id of their own that are the same are told apart by counting them."""
        key = self._options.key(row)
        if row.named:
            return key
        before = (self._same.get(key) or (0, 0))[0]
        self._same.set(key, before + 1)
        return key_of(key, before)

    def _have(self, place: int, row: Row, key: str) -> bool:
        """Whether the journal has the row; what it has is written when its turn comes."""
        entry = None if self._journal is None else self._journal.get(key)
        if entry is None or (entry["tokens"] is None and self._options.retry_failed):
            return False
        self._waiting[place] = _Finished(None, key, None if row.named else row.line)
        self.known += 1
        self._bytes_known = self._bytes
        self._count(entry["tokens"], known=True)
        self.write()
        return True

    def finished(self, number: int, outcome: tuple[Answer, ...] | FrcliError) -> None:
        """Take a row's outcome, put it on the disk, and write what can be written."""
        place, row, key = self._given[number]
        record, tokens = _record(row, outcome, self._options.model)
        if self._journal is not None:
            self._journal.put(key, {"record": record, "tokens": tokens})
            self._waiting[place] = _Finished(None, key, None if row.named else row.line)
        else:
            self._waiting[place] = _Finished(record)
        del self._given[number]
        self._count(tokens)
        self.write()

    def _count(self, tokens: int | None, *, known: bool = False) -> None:
        self.done += tokens is not None
        self.failed += tokens is None
        if not known:
            self._tokens += tokens or 0

    def write(self) -> None:
        """Write the lines whose turn it is, and tell how far the job is."""
        while (line := self._waiting.pop(self.written, None)) is not None:
            record = line.record
            if record is None:
                assert self._journal is not None
                record = dict((self._journal.get(line.key) or {})["record"])
                if line.line is not None:  # the row may have moved since
                    record["id"] = line.line
            self._output.write(record)
            self.written += 1
        if self._options.progress:
            self._options.progress(
                Progress(self.done, self.failed, self._tokens, self._bytes, self._size, self.known, self._bytes_known)
            )


def _record(row: Row, outcome: tuple[Answer, ...] | FrcliError, model: str) -> tuple[dict[str, Any], int | None]:
    """The line to write and the number of tokens in it, None for a row that failed."""
    if isinstance(outcome, (OutputError, Interrupted)):
        raise outcome
    if isinstance(outcome, FrcliError):
        if isinstance(outcome, ContextError):
            code = "context_length_exceeded"
        else:
            code = "invalid_request" if isinstance(outcome, (UsageError, DataError)) else "server_error"
        return failed(row, code, str(outcome)), None
    if any(answer.finish_reason == "cancelled" for answer in outcome):
        raise KeyboardInterrupt  # half an answer is none: the row is left to the next run
    return answered(row, outcome, model), sum(answer.completion_tokens for answer in outcome)
