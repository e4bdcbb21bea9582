"""Traces: written whole, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recordings import plain, recording, step

from frcli.bench.measure import Measured
from frcli.bench.plan import Plan
from frcli.bench.trace import by_configuration, read_trace, write_trace
from frcli.decode.stopwatch import Timings
from frcli.errors import DataError, OutputError

PLAN = Plan(sequences=(2,))


def measured() -> Measured:
    opening, window = Timings(router=0.5), Timings(router=0.004, experts=0.002)
    drafted = recording(
        {0: 9},
        [
            (1.0, [(0, step(7, timings=opening, read=9))]),
            (
                0.020,
                [(0, step(8, timings=window, proposed=2, drafted=True)), (0, step(9, "code", timings=window, read=4))],
            ),
        ],
    )
    both = Timings()
    return Measured(
        fused={
            ("off", 0.0): [[plain([1.0, 0.1]), plain([1.0, 0.1])], [plain([1.0, 0.1])]],
            ("auto", 0.8): [[drafted]],
        },
        batch={(2, 0.0): [[recording({0: 9, 1: 9}, [(0.5, [(0, step(timings=both)), (1, step(timings=both))])])]]},
    )


def test_every_token_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    assert write_trace(path, measured(), PLAN) == 11
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 11
    off = [row for row in rows if row["configuration"] == "fused, draft off"]
    assert [(row["repetition"], row["window"], row["index"]) for row in off] == [
        *((0, 0, 0), (0, 1, 1), (0, 2, 0), (0, 3, 1)),
        *((1, 0, 0), (1, 1, 1)),
    ]
    last = [row for row in rows if row["configuration"] == "fused, draft auto"][-1]
    assert last == {
        "configuration": "fused, draft auto",
        "temperature": 0.8,
        "repetition": 0,
        "prompt": 0,
        "index": 2,
        "window": 1,
        "token": 9,
        "experts": ["code"],
        "weights": [1.0, 0.0],
        "read": 4,
        "proposed": 0,
        "drafted": False,
        "ms": {"draft": 0.0, "router": 4.0, "experts": 2.0, "fuse": 0.0, "sample": 0.0},
        "wall": pytest.approx(10.0),
        "finish": None,
    }
    assert [row["prompt"] for row in rows if row["configuration"] == "2 at once, draft auto"] == [0, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, measured(), PLAN)
    groups = by_configuration(read_trace(path))
    assert {name: len(lines) for name, lines in groups.items()} == {
        "fused, draft off": 6,
        "fused, draft auto, temperature 0.8": 3,
        "2 at once, draft auto": 2,
    }
    line = groups["fused, draft auto, temperature 0.8"][1]
    assert (line.experts, line.proposed, line.drafted, line.window) == (("math",), 2, True, 1)
    assert line.wall == pytest.approx(10.0)


def test_a_trace_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_trace(tmp_path / "folder", measured(), PLAN)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    with pytest.raises(OutputError, match="cannot write"):
        write_trace(tmp_path / "gone" / "trace.jsonl", measured(), PLAN)


@pytest.mark.parametrize("text", ["no json", "[]", "1", '{"configuration": "x"}'])
def test_lines_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, measured(), PLAN)
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(DataError, match=r"trace\.jsonl:12 is no line of a trace"):
        read_trace(path)


def test_files_that_hold_no_trace(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="holds no tokens"):
        read_trace(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("gone", "binary"):
        with pytest.raises(DataError, match="cannot read"):
            read_trace(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"temperature": 1%s}' % ("0" * 400)])
def test_lines_that_are_beyond_python(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=r"trace\.jsonl:1 is no line of a trace"):
        read_trace(tmp_path / "trace.jsonl")
