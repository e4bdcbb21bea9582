"""Programs that a model wrote, run to see whether they do what was asked.

Each runs in a process of its own, with limits on processor time, wall time, memory and output, in a temporary folder,
without network: :mod:`frcli.evaluation.guard` says what keeps it there. No secret of the environment is passed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from frcli.errors import UsageError
from frcli.evaluation import guard

_SHOWN = 400  # characters of a failure that are kept


@dataclass(frozen=True, slots=True)
class Limits:
    """``seconds`` of processor time (and one more of the wall clock than twice that), bytes of ``memory``, and bytes of
    ``output`` to each file, what is printed included.
    """

    seconds: int = 5
    memory: int = 1 << 30
    output: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """Whether the program came to its end, and its last line of complaint if it did not."""

    finished: bool
    reason: str = ""


def run_program(program: str, limits: Limits = Limits()) -> Run:
    """Run Python source; it has ``finished`` when its last statement was done without an error or an exit.

    Raises ``UsageError`` on Windows, which has none of what keeps a program in.
    """
    if os.name != "posix":
        raise UsageError("programs that a model wrote are not run on this system", "use Linux or macOS")
    word = secrets.token_hex(16)
    order = json.dumps({"limits": asdict(limits), "word": word}) + "\n" + program
    with tempfile.TemporaryDirectory(prefix="frcli-", ignore_cleanup_errors=True) as folder:
        reader, writer = os.pipe()
        with open(reader, "rb") as answer, Path(folder, ".printed").open("w+b") as printed:
            try:
                process = subprocess.Popen(
                    # -I: nothing of the user's is imported; -B: the folder stays as small as the program makes it
                    [sys.executable, "-I", "-B", guard.__file__, str(writer)],
                    stdin=subprocess.PIPE,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder},
                    pass_fds=(writer,),
                    start_new_session=True,
                )
            finally:
                os.close(writer)
            try:
                process.communicate(order.encode("utf-8", "surrogatepass"), timeout=2 * limits.seconds + 1)
                in_time = True
            except subprocess.TimeoutExpired:
                in_time = False
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if not in_time:
                return Run(False, f"it took longer than {2 * limits.seconds + 1} seconds")
            if answer.read() == word.encode():
                return Run(True)
            printed.seek(0)
            lines = printed.read(limits.output).decode("utf-8", "replace").strip().splitlines()
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Run(False, f"it took more than {limits.seconds} seconds of processor time, or too much memory")
    return Run(False, (lines[-1] if lines else f"it ended early, with exit code {process.returncode}")[:_SHOWN])
