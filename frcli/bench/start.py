"""How long the program takes to start: ``frcli --help``, and the first token of an answer, each by a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import frcli
from frcli.errors import ModelError


def help_seconds() -> float:
    """Seconds that ``frcli --help`` takes."""
    began = time.perf_counter()
    _finish(_open(["--help"]), "--help")
    return time.perf_counter() - began


def first_token_seconds(bundle: str, threads: int) -> float:
    """Seconds from the start of ``frcli chat BUNDLE -p ...`` to the first byte of its answer, or to its end where the
    answer has none.
    """
    began = time.perf_counter()
    arguments = [
        "chat",
        bundle,
        "-p",
        "Say a few words about the sea.",
        "-n",
        "8",
        "-t",
        "0",
        "--threads",
        str(threads),
    ]
    process = _open(arguments)
    assert process.stdout is not None
    process.stdout.read(1)
    seconds = time.perf_counter() - began
    _finish(process, "chat -p")
    return seconds


def _open(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    package = str(Path(frcli.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "frcli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        bufsize=0,
    )


def _finish(process: subprocess.Popen[bytes], what: str) -> None:
    process.communicate()
    if process.returncode:
        raise ModelError(f"frcli {what} left with {process.returncode}", "run it by hand to see why")
