"""The script that kills jobs, on a few points."""

from __future__ import annotations

import argparse
from pathlib import Path

import kill_batch
import pytest


def test_jobs_that_are_killed_lose_and_double_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    arguments = argparse.Namespace(points=2, rows=30, tokens=4, parallel=2, seed=1)
    found = kill_batch.Killing(tmp_path, arguments).run()
    assert found["points"] == 2
    assert (found["rows_lost"], found["rows_doubled"], found["outputs_different"]) == (0, 0, 0)


def test_what_is_lost_or_doubled_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.journal").write_bytes(b'{"record": {"id": "a"}}\n{"record": {"id": "a"}}\n{"re')
    assert kill_batch.finished(out) == ({"a": 2}, True)
