"""docs/reliability.md says what the results say, and the results are what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from programs import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    return load_script("reliability")


def test_the_page_has_the_table(script: ModuleType) -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert f"{script.BEGIN}{script.table()}{script.END}" in text, "run scripts/reliability.py --write"


def test_nothing_was_lost(script: ModuleType) -> None:
    kills, fuzz, soak, agreement = (
        json.loads((script.RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in script.ROWS
    )
    assert kills["points"] >= 1000
    assert (kills["rows_lost"], kills["rows_doubled"], kills["outputs_different"]) == (0, 0, 0)
    assert sum(each["accepted"] + each["refused"] for each in fuzz.values()) >= 10_000
    assert not any(each["crashes"] or each["hangs"] for each in fuzz.values())
    assert soak["turns"] >= 100_000 and soak["growth"] < 0.05
    assert agreement["combinations"] >= 200 and agreement["failures"] == 0
