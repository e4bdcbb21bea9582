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

QUESTION, LEAVE = b"What is 12 * 13?\r", b"\x04"
READING = "\x1b[?2004h"  # the line editor has the terminal mark what is pasted, as long as it reads a line
SECONDS = 600  # for a command, on a machine that has other work
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(slots=True)
class Ran:
    """What a command showed, and its exit code: None if the shell did not come to its end."""

    shown: str
    code: int | None = None


def lay_out(folder: Path, template: Path, root: Path) -> None:
    """Make the folder of a page: the template's files, the scripts of the repository, and a change for ``git diff``."""
    shutil.copytree(template, folder, copy_function=os.link)  # a copy would be as good, but takes time
    for part in ("benchmarks", "examples"):
        shutil.copytree(root / part, folder / part)
    (folder / "docs").mkdir()
    subprocess.run("git init -q && git add -N book.txt", shell=True, cwd=folder, check=True)


def run_commands(commands: Sequence[tuple[str, str]], folder: Path, environ: Mapping[str, str]) -> list[Ran]:
    """Run commands, each with the PATH before it, in one shell; what comes behind one that hangs is not run."""
    parts = ["set -o pipefail"]
    parts += [f"PATH='{path}'\n{{\n{text}\n}}\necho $? >&9" for path, text in commands]
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
    """Gather what is shown until all commands have ended; who is asked for a line asks a question, and leaves then."""
    ran = [Ran("")]
    answered = 0
    end = time.monotonic() + SECONDS
    while ran[-1].code is None:
        ready, _, _ = select.select([terminal, told], [], [], max(0, end - time.monotonic()))
        if terminal in ready:
            ran[-1].shown += os.read(terminal, 1 << 16).decode(errors="replace")
            if ran[-1].shown.count(READING) > answered:
                os.write(terminal, LEAVE if answered else QUESTION)
                answered += 1
        elif told in ready and (lines := os.read(told, 1 << 16).decode()):
            for line in lines.splitlines():
                ran[-1].code = int(line)
                if len(ran) < count:
                    ran.append(Ran(""))
            answered = 0
            end = time.monotonic() + SECONDS
        else:
            ran[-1].shown += "\nthe shell ended" if ready else f"\nno end after {SECONDS} s"
            break
    for each in ran:
        each.shown = _ESCAPES.sub("", each.shown)
    return ran
