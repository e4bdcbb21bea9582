"""How frcli shows things. Answers and tables go to stdout, everything else to stderr.

Colours appear only on a terminal, and never when ``NO_COLOR`` is set; whatever colour says is said in another way then.
rich is imported where something is drawn with it, so that ``frcli --help`` does not wait for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from frcli.errors import FrcliError, OutputError

if TYPE_CHECKING:
    from rich.console import Console

    from frcli.training.loop import Progress as TrainingStep


@dataclass(slots=True)
class Manner:
    """What the user asked for on the command line: tracebacks, logging, silence."""

    debug: bool = False
    verbose: bool = False
    quiet: bool = False


manner = Manner()


def is_terminal(stream: IO[str]) -> bool:
    """Whether the stream is a terminal."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def can_draw(stream: IO[str]) -> bool:
    """Whether text on the stream can be bold or underlined."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def coloured(stream: IO[str]) -> bool:
    """Whether colours may be written to the stream."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, style: str, stream: IO[str]) -> str:
    """The text in a rich style as ANSI codes where the stream takes colours, else as it is."""
    if not text or not style or not coloured(stream):
        return text
    from rich.color import ColorSystem
    from rich.style import Style

    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


def write(text: str) -> None:
    """Write to stdout at once; raises ``OutputError`` when it cannot be written."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {(error.strerror or str(error)).lower()}") from None


def write_json(value: Any, *, indent: int | None = None) -> None:
    """Write a value to stdout as JSON."""
    write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def say(text: str, style: str = "dim") -> None:
    """Write a line to stderr, unless the user asked for silence."""
    if not manner.quiet:
        print(paint(text, style, sys.stderr), file=sys.stderr, flush=True)


def complain(error: FrcliError | str) -> None:
    """Write an error as one line to stderr."""
    print(f"{paint('frcli:', 'bold red', sys.stderr)} {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout; on a terminal the last column is wrapped."""
    if not is_terminal(sys.stdout):
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = (
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
        )
        write("".join(f"{line.rstrip()}\n" for line in lines))
        return
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        grid.add_column(name, no_wrap=index + 1 < len(header))
    for row in rows:
        grid.add_row(*row)
    _console(sys.stdout).print(grid)


def size(count: int) -> str:
    """A number of bytes for people: ``93.8 MiB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=stream, color_system="standard" if coloured(stream) else None, highlight=False, markup=False)


def working(text: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something takes its time."""
    if manner.quiet or manner.verbose or not is_terminal(sys.stderr):
        return nullcontext()
    return _console(sys.stderr).status(text, spinner="dots")


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Show that a bundle is opened; Ctrl-C ends the program when it is open, the second one at once.

    Raised in the midst of it, ``KeyboardInterrupt`` is lost in llama.cpp's callbacks, or becomes an ``ImportError`` of
    the library that is loaded. Raises ``Interrupted``.
    """
    from frcli.chat.interrupt import StopFlag
    from frcli.errors import Interrupted

    with working(f"opening {name}"), StopFlag() as stopped:
        try:
            yield
        except BaseException:
            if stopped():
                raise Interrupted("stopped") from None
            raise
    if stopped():
        raise Interrupted("stopped")


@contextmanager
def silent_keyboard() -> Iterator[None]:
    """Keep keys that are pressed while an answer is written off the screen; the next prompt reads them, Ctrl-D too."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    if not is_terminal(sys.stdin):
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    silent = [*before]
    silent[3] = before[3] & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(keyboard, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)


class Meter:
    """Progress on stderr: a bar on a terminal, else a line every ``every`` seconds; nothing under ``--quiet``."""

    def __init__(self, every: float = 5.0) -> None:
        self._every, self._last = every, time.monotonic()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Meter:
        if not manner.quiet and is_terminal(sys.stderr):
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=_console(sys.stderr),
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, label: str, done: int, total: int | None, note: str = "") -> None:
        """``done`` of ``total`` (None: unknown) is done of what is called ``label``; what the first call says was there
        before, and tells nothing about the time that is left.
        """
        if self._bars is not None:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total, completed=done, note=note)
            self._bars.update(self._tasks[label], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        began, first = self._began.setdefault(label, (now, done))
        if manner.quiet or now - self._last < self._every:
            return
        self._last = now
        share = f" {done / total:.0%}" if total else ""
        left = f"{(now - began) / (done - first) * (total - done) / 60:.1f} min left" if total and done > first else ""
        say(", ".join(filter(None, [label + share, note, left])))


class TrainingReport:
    """Called with each step of a training; :meth:`around` with the progress of what comes before and after."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __call__(self, step: TrainingStep) -> None:
        """Show the step's losses and the speed."""
        losses = ", ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
        self._meter(
            "training",
            step.step,
            step.steps,
            f"step {step.step} of {step.steps}, {losses}, {step.tokens_per_second:.0f} tokens/s",
        )

    def around(self, label: str, done: int, total: int) -> None:
        """Show how much of what is called ``label`` is done."""
        self._meter(label, done, total, f"{done} of {total}")


@contextmanager
def training_progress() -> Iterator[TrainingReport]:
    """Progress of a training, on stderr."""
    with Meter(every=15.0) as meter:
        yield TrainingReport(meter)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of what is counted from 0 to ``total``, on stderr: call what it gives with how much is done."""
    with Meter() as meter:
        yield lambda done: meter(label, done, total, f"{done} of {total}")


_MARKS = {"ok": "green", "warn": "yellow", "problem": "bold red"}


def check_line(state: str, text: str, advice: str = "") -> None:
    """Write the result of a check (``ok``, ``warn`` or ``problem``) to stdout, with what to do about it."""
    mark = paint(f"{state:<7}", _MARKS[state], sys.stdout)
    write(f"{mark}  {text}{f'; {advice}' if advice else ''}\n")


def pairs(values: Mapping[str, str]) -> None:
    """Write names and values to stdout, one a line."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        write(f"{paint(f'{name:<{width}}', 'bold', sys.stdout)}  {value}".rstrip() + "\n")
