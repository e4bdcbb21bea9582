"""Programs that misbehave, each in its own way."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from pathlib import Path

import pytest

from frcli.evaluation.sandbox import Limits, run_program

KERNEL = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
QUICK = Limits(seconds=1, memory=1 << 29, output=1 << 16)


def test_a_program_that_is_right_finishes() -> None:
    program = "import math, re, heapq, collections, itertools\nassert math.sqrt(4) == 2\nprint('é' * 3)"
    assert run_program(program).finished
    assert run_program("open('mine.txt', 'w').write('x')\nassert open('mine.txt').read() == 'x'").finished
    assert run_program("if __name__ == '__main__':\n    input()").finished  # nobody asked for that part
    assert run_program("import dataclasses as d\n@d.dataclass\nclass P:\n    x: 'int'\nassert P(1) == P(1)").finished
    assert run_program("import threading\nt = threading.Thread(target=int); t.start(); t.join()").finished


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:\n  pass", "SyntaxError"),
        ("exit(0)", ""),
        ("import os; os._exit(0)", "ended early"),
        ("raise SystemExit", ""),
        ("import sys; sys.stdout.close(); 1 / 0", ""),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("\ud800", "SyntaxError"),
    ],
)
def test_a_program_that_ends_otherwise_does_not(program: str, words: str) -> None:
    run = run_program(program)
    assert not run.finished
    assert words in run.reason or "Error" in run.reason


def test_time_is_limited() -> None:
    began = time.monotonic()
    assert not run_program("while True: pass", QUICK).finished
    assert "3 seconds" in run_program("import time; time.sleep(60)", QUICK).reason
    assert time.monotonic() - began < 15


@pytest.mark.skipif(sys.platform != "linux", reason="the system keeps no limit of memory")
def test_memory_is_limited() -> None:
    assert "MemoryError" in run_program("x = bytearray(1 << 30)", QUICK).reason


def test_output_is_limited() -> None:
    assert not run_program("while True: print('x' * 1000)", QUICK).finished
    assert not run_program("f = open('big', 'w')\nwhile True: f.write('x' * 100000)", QUICK).finished


def test_the_network_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        plain = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        low = f"import _socket; s = _socket.socket(); s.connect(('127.0.0.1', {port}))"
        assert not run_program(plain, QUICK).finished
        assert not run_program(low, QUICK).finished
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_other_process_is_begun_or_hurt(tmp_path: Path) -> None:
    here = os.getpid()
    for program in (
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os\nif os.fork() == 0: os._exit(0)",
        "import _posixsubprocess, os; os.execv('/bin/true', ['true'])",
        f"import os; os.kill({here}, 0)",
        "import multiprocessing as m; p = m.Process(target=int); p.start(); p.join(); assert p.exitcode == 0",
    ):
        assert not run_program(program, QUICK).finished, program


def test_files_of_others_stay_as_they_are(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for program in (
        f"open({str(victim)!r}, 'w')",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, 'mine')",
        f"import os; os.open({str(victim)!r}, os.O_RDWR | os.O_TRUNC)",
        f"import pathlib; pathlib.Path({str(victim)!r}).unlink()",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.chdir('/'); open({str(victim)!r}, 'a').write('x')",
        f"import os; open('x', 'w').close(); os.replace('x', {str(victim)!r})",
        f"import os; os.symlink('x', {str(tmp_path / 'link')!r})",
    ):
        assert not run_program(program, QUICK).finished, program
    if KERNEL:  # the audit hook does not see where a folder's descriptor leads
        by_folder = f"import os; os.open('victim', os.O_RDONLY | os.O_TRUNC, dir_fd=os.open({str(tmp_path)!r}, 0))"
        assert not run_program(by_folder, QUICK).finished
        other = "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_CORE, (0, 0))"
        assert not run_program(other, QUICK).finished
    assert victim.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [victim]


@pytest.mark.skipif(not KERNEL, reason="only the audit hook is there")
def test_the_kernel_holds_what_python_would_let_through(tmp_path: Path) -> None:
    """Guards are called without the audit hook, in a process that then does what they forbid."""
    import subprocess

    script = f"""
import ctypes, os, sys
from frcli.evaluation import guard
os.chdir({str(tmp_path)!r})
landlock = guard.refuse_writing_outside(os.getcwd())
assert guard.refuse_system_calls()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.socket(2, 1, 0) == -1 and ctypes.get_errno() == 1
assert libc.fork() == -1
assert libc.execv(b"/bin/true", None) == -1
assert libc.kill(os.getppid(), 0) == -1
open("inside", "w").close()
if landlock:
    assert libc.open(b"{tmp_path.parent}/outside", os.O_CREAT | os.O_WRONLY, 0o600) == -1
import threading
thread = threading.Thread(target=int); thread.start(); thread.join()
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "inside").exists() and not (tmp_path.parent / "outside").exists()
