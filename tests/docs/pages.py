"""Runs the commands of a page one after another in a bash on a terminal, at which somebody answers the prompt."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frcli.chat.editor import PROMPT

QUESTION, LEAVE = b"What is 12 * 13?\r", b"\x04"
SECONDS = 240  # for a command
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(slots=True)
class Ran:
    """What a command showed, and its exit code: None if the shell did not come to its end."""

    shown: str
    code: int | None = None


def lay_out(folder: Path, template: Path, root: Path) -> None:
    """Make the folder of a page: the template's files, the scripts of the repository, and a change for ``git diff``."""
    shutil.copytree(template, folder, copy_function=os.link)
    for part in ("benchmarks", "examples"):
        shutil.copytree(root / part, folder / part)
    (folder / "docs").mkdir()


def run_commands(commands: Sequence[tuple[str, str]], folder: Path, environ: Mapping[str, str]) -> list[Ran]:
    """Run commands, each with the PATH before it, in one shell; what comes behind one that hangs is not run."""
    parts = ["set -o pipefail"]
    for number, (path, text) in enumerate(commands):
        parts.append(f"PATH='{path}'\n{{\n{text}\n}}\necho {number} $? >&9")
    script = "\n".join(parts) + "\n"
    told_to, told = os.pipe()
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-c", 'exec 9>&"$0"; eval "$1"', str(told), script],
        cwd=folder,
        env=dict(environ),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        pass_fds=[told],
        start_new_session=True,
    )
    os.close(told)
    try:
        return _watch(len(commands), ours, told_to)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        for file in (ours, theirs, told_to):
            os.close(file)


def _watch(count: int, terminal: int, told: int) -> list[Ran]:
    """Gather what is shown until all commands have ended; a question is asked at the first prompt of each."""
    ran = [Ran("")]
    asked = 0
    end = time.monotonic() + SECONDS
    while ran[-1].code is None:
        ready, _, _ = select.select([terminal, told], [], [], max(0, end - time.monotonic()))
        if not ready:
            ran[-1].shown += f"\n(no end after {SECONDS} s)"
            break
        if terminal in ready:
            ran[-1].shown += _ESCAPES.sub("", os.read(terminal, 1 << 16).decode(errors="replace"))
            if ran[-1].shown.endswith(PROMPT):
                os.write(terminal, LEAVE if asked else QUESTION)
                asked += 1
        elif not (line := os.read(told, 1 << 16).decode()):
            ran[-1].shown += "\n(the shell ended)"
            break
        else:
            for each in line.splitlines():
                ran[-1].code = int(each.split()[1])
                if len(ran) < count:
                    ran.append(Ran(""))
            asked = 0
            end = time.monotonic() + SECONDS
    return ran
