"""Kills a batch job with SIGKILL at random points and counts what that costs: rows lost, rows doubled.

    python benchmarks/kill_batch.py --points 1000 --rows 200 --seed 1 > kill_batch.json

A tiny bundle is made, and one job is run to its end as the reference. Then jobs over the same rows are killed again and
again, each time at a random moment, until ``--points`` kills were made; the same command goes on each time, and every
job is run to its end. One kill in five may fall anywhere, opening included, the others fall while rows are answered.

With ``-o FILE`` the counts are kept each time a job has come to its end and was compared, and the same command goes on
from there: kills of a job that was not compared do not count.

Printed as JSON: ``rows_lost`` (rows that were in the journal of a killed job and not used by the next run, or that the
output does not have), ``rows_doubled`` (rows that a journal or the output has twice), ``outputs_different`` (outputs
that are not the reference byte for byte), and beside them how many kills fell before the first row, between rows, and
left a torn line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from frcli.files import save

ROOT = Path(__file__).resolve().parent.parent
_COUNTS = (
    "points",
    "jobs",
    "rows_lost",
    "rows_doubled",
    "outputs_different",
    "before_rows",
    "between_rows",
    "torn",
)
_KNOWN = re.compile(r"\((\d+) were there\)")


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=20, help="kills in all")
    parser.add_argument("--rows", type=int, default=200, help="rows of a job")
    parser.add_argument("--tokens", type=int, default=8, help="most tokens of an answer")
    parser.add_argument("--parallel", type=int, default=4, help="rows that are answered at once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("-o", "--out", type=Path, help="file of JSON from which the counts go on, job by job")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(Killing(Path(folder), arguments).run(), indent=2))


class Killing:
    """A tiny bundle, rows for it, and the jobs that are killed."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self._folder, self._points = folder, arguments.points
        self._environ = {
            **os.environ,
            "FRCLI_CACHE": str(folder / "cache"),
            "FRCLI_CONFIG": str(folder / "config.toml"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        (folder / "config.toml").touch()
        self._make_bundle()
        self._rows = folder / "in.jsonl"
        self._ids = [f"q{number}" for number in range(arguments.rows)]
        lines = [{"custom_id": name, "prompt": f"{name} and more"} for name in self._ids]
        self._rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._flags = ["-n", str(arguments.tokens), "--parallel", str(arguments.parallel), "--threads", "1"]
        # Rows are written beside other rows after a kill: with caches in 16 bits that decides near-ties.
        self._flags += ["--kv-type", "f32"]
        self._kept: Path | None = getattr(arguments, "out", None)
        self._found: Counter[str] = Counter()
        self._seconds = 0.0  # of the runs before
        if self._kept is not None and self._kept.exists():
            before = json.loads(self._kept.read_text())
            self._found.update({name: before[name] for name in _COUNTS})
            self._seconds = before["seconds"]
        self._random = random.Random(f"{arguments.seed} after {self._found['points']}")

    def _make_bundle(self) -> None:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        os.environ["FRCLI_CACHE"] = self._environ["FRCLI_CACHE"]
        from bundles import write_bundle

        write_bundle(self._folder / "trio")

    def run(self) -> Mapping[str, object]:
        """Kill, go on, count."""
        began = time.perf_counter()
        reference = self._folder / "reference.jsonl"
        self._finish(self._start(reference), reference, {})
        self._span = time.perf_counter() - began
        while self._found["points"] < self._points:
            self._found["jobs"] += 1
            out = self._folder / f"out{self._found['jobs']}.jsonl"
            known: Mapping[str, int] = {}
            while self._found["points"] < self._points and not out.exists():
                known = self._kill(out, known)
            if not out.exists() or out.with_name(f"{out.name}.journal").exists():
                self._finish(self._start(out), out, known)
            self._found["outputs_different"] += out.read_bytes() != reference.read_bytes()
            ids = Counter(json.loads(line)["id"] for line in out.read_bytes().splitlines())
            self._found["rows_lost"] += sum(not ids[name] for name in self._ids)
            self._found["rows_doubled"] += sum(count - 1 for count in ids.values())
            out.unlink()
            self._keep(began)
        return self._result(began)

    def _result(self, began: float) -> Mapping[str, object]:
        return {
            **{name: self._found[name] for name in _COUNTS},
            "rows_of_a_job": len(self._ids),
            "seconds": round(self._seconds + time.perf_counter() - began, 1),
        }

    def _keep(self, began: float) -> None:
        if self._kept is not None:
            save(json.dumps(self._result(began), indent=2) + "\n", self._kept)

    def _start(self, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "frcli", "generate", str(self._rows), "-o", str(out)]
        return subprocess.Popen(
            [*command, "-b", str(self._folder / "trio"), *self._flags],
            env=self._environ,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _kill(self, out: Path, known: Mapping[str, int]) -> Mapping[str, int]:
        """Go on with a job and kill it; returns how often its journal has each row then."""
        process = self._start(out)
        if self._random.random() > 0.2:  # wait for a row
            size = _size(out)
            while process.poll() is None and _size(out) <= size:
                time.sleep(0.001)
            time.sleep(self._random.random() * self._span / 4)
        else:
            time.sleep(self._random.random() * self._span)
        if process.poll() is not None:  # it was faster
            self._finish(process, out, known)
            return {}
        process.kill()
        process.communicate()
        self._found["points"] += 1
        rows, torn = finished(out)
        self._found["torn"] += torn
        self._found["between_rows" if len(rows) > len(known) else "before_rows"] += 1
        self._found["rows_lost"] += sum(name not in rows for name in known) if not out.exists() else 0
        self._found["rows_doubled"] += sum(count - 1 for count in rows.values())
        return rows

    def _finish(self, process: subprocess.Popen[str], out: Path, known: Mapping[str, int]) -> None:
        """Let a job come to its end, and see that it has used what it had."""
        _, said = process.communicate()
        if process.returncode or not out.exists():
            raise SystemExit(f"the job ended with {process.returncode}: {said}")
        used = _KNOWN.search(said)
        self._found["rows_lost"] += max(0, len(known) - int(used[1] if used else 0))


def finished(out: Path) -> tuple[Counter[str], bool]:
    """How often the journal of ``out`` has each row, and whether its last line is torn."""
    path = out.with_name(f"{out.name}.journal")
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return Counter(json.loads(line)["record"]["id"] for line in whole), len(whole) < len(lines)


def _size(out: Path) -> int:
    path = out.with_name(f"{out.name}.journal")
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()
