"""The real program: called in this process, as a process of its own, or on a terminal; and a tiny bundle for it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle
from frcli.cli import app as program

FRCLI = [sys.executable, "-m", "frcli"]


@dataclass(frozen=True)
class Ran:
    """What a run left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for the user's home and frcli's cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def environ(home: Path) -> dict[str, str]:
    """An environment without anything of the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FRCLI_", "XDG_"))}
    kept.pop("NO_COLOR", None)
    places = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "FRCLI_CACHE": "cache", "FRCLI_MODELS": "models"}
    return {
        **kept,
        **{name: str(home / folder) for name, folder in places.items()},
        "HOME": str(home),
        "FRCLI_THREADS": "1",
        "TERM": "xterm",
        "COLUMNS": "80",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }


@pytest.fixture(scope="session")
def trio(home: Path, environ: dict[str, str]) -> Bundle:
    """A tiny bundle with a router that is built, reachable by the name ``trio``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])
        return write_bundle(home / "models" / "trio", shape=tiny.TinyShape(context=1 << 16))


@pytest.fixture
def frcli(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the program in this process; ``stdin`` is text or bytes, ``env`` adds to the environment."""

    def run(*arguments: str | Path, stdin: str | bytes = "", env: Mapping[str, str] | None = None) -> Ran:
        given = io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin)
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(("FRCLI_", "XDG_")) or name == "NO_COLOR"]:
                patch.delenv(name)
            for name, value in {**environ, **(env or {})}.items():
                patch.setenv(name, value)
            for name, stream in (("stdin", given), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, io.TextIOWrapper(stream, encoding="utf-8", write_through=True))
            code = program.run([str(argument) for argument in arguments])
            return Ran(code, out.getvalue().decode(), err.getvalue().decode())

    return run


@pytest.fixture
def process(environ: dict[str, str]) -> Callable[..., Ran]:
    """Run the program as a process of its own."""

    def run(*arguments: str | Path, stdin: str = "", env: Mapping[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [*FRCLI, *map(str, arguments)], input=stdin, capture_output=True, text=True, env={**environ, **(env or {})}
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


class Terminal:
    """The program on a pseudo-terminal; ``seen`` is all that it showed."""

    def __init__(self, arguments: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._process_side, self._side = pty.openpty()
        self.process = subprocess.Popen(
            [*FRCLI, *arguments],
            stdin=self._side,
            stdout=self._side,
            stderr=self._side,
            env=dict(environ),
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(self._side)
        self.seen = ""
        self._looked = 0

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Read until ``text`` is shown behind what was waited for before, and return all that came up to there."""
        end = time.monotonic() + seconds
        while (found := self.seen.find(text, self._looked)) < 0:
            if time.monotonic() > end:
                pytest.fail(f"{text!r} is not in {self.seen[self._looked :]!r}")
            if not self._read(end - time.monotonic()):
                pytest.fail(f"the program ended before {text!r}: {self.seen[self._looked :]!r}")
        before = self.seen[self._looked : found]
        self._looked = found + len(text)
        return before

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._process_side], [], [], max(0, seconds))
        if not ready:
            return True
        try:
            data = os.read(self._process_side, 65536)
        except OSError:  # what Linux says when the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        if "\x1b[6n" in data.decode(errors="replace"):
            self.type("\x1b[1;1R")  # a terminal answers where its cursor is
        return bool(data)

    def type(self, keys: str) -> None:
        os.write(self._process_side, keys.encode())

    def end(self, seconds: float = 60) -> int:
        """Read to the end and return the exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(1):
            pass
        return self.process.wait(max(1, end - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._process_side)


def _own_terminal() -> None:
    """Make standard input the terminal that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Open the program on a terminal."""
    opened: list[Terminal] = []

    def open_(*arguments: str, env: Mapping[str, str] | None = None) -> Terminal:
        opened.append(Terminal(arguments, {**environ, **(env or {})}))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()
