"""A result is there whole or not at all, whenever its converter is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kills
import pytest

TIMES = 60 if os.environ.get("FRCLI_TEST_ALL") == "1" else 12


@pytest.mark.parametrize("kind", kills.KINDS)
def test_a_killed_converter_leaves_no_half_file(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(kills.__file__)), kind, str(tmp_path), "1", str(TIMES)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["half"] == found["visible"] == 0, found
    assert found["killed"] == found["tried"] > TIMES and found[kills.CALLS] > 1000  # nobody came to the end
    assert found[kills.DONE] == 1 + (kind == kills.SPLIT)
    assert found["old"] and found["whole"] and found["none"]
