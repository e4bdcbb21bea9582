"""A few changed files for every reader, in a process of its own; ``FRCLI_TEST_ALL=1`` for many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

COUNT = 200 if os.environ.get("FRCLI_TEST_ALL") == "1" else 12


def test_no_changed_file_crashes_or_hangs_a_reader() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    done = subprocess.run([sys.executable, str(script), "--count", str(COUNT)], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert {name: each for name, each in report.items() if each["crashes"] or each["hangs"]} == {}
    assert done.returncode == 0
    for name, each in report.items():
        assert each["mutations"] == each["accepted"] + each["refused"] == COUNT, name
    assert sum(each["refused"] for each in report.values()) > COUNT
    assert sum(each["accepted"] for each in report.values()) > COUNT


def test_a_crash_a_hang_an_error_of_python_and_much_memory_are_found(tmp_path: Path) -> None:
    code = """
import json, os, sys, time
sys.path.insert(0, {folder!r})
import fuzz
from pathlib import Path
fuzz._SECONDS = 0.2
path = Path({file!r})
original = bytes([4, *range(200)])
path.write_bytes(original)
def read(path):
    first = int(path.read_bytes()[0]) if path.stat().st_size else 4
    kind = first % 5
    if first == 127:
        bytearray(1 << 30)
    if kind == 0:
        os.abort()
    if kind == 1:
        raise KeyError("x")
    if kind == 2:
        raise fuzz.FrcliError("refused")
    if kind == 3:
        while True:
            pass
print(json.dumps(fuzz.fuzz(fuzz.Reader(path, "bytes", 1, read), range(40), 0)))
assert path.read_bytes() == original
""".format(folder=str(Path(__file__).parents[2] / "benchmarks"), file=str(tmp_path / "file"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    kinds = {each["what"].split(" ")[0] for each in found["crashes"]}
    assert kinds == {"SIGABRT", "KeyError", "MemoryError"} and found["hangs"] and found["refused"]
    assert found["accepted"] + found["refused"] + len(found["crashes"]) + len(found["hangs"]) == 40
