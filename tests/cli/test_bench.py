"""``frcli bench`` and ``frcli bench plot`` on a tiny real bundle, through the command line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tiny

from frcli.bundle import Bundle

Run = Callable[..., Any]
SMALL = ("-r", "2", "-n", "12", "--ignore-end", "--ctx", "128")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the {i} and of", "answer": "a"}) + "\n" for i in range(3)))
    return path


def test_everything_on_a_small_bundle(frcli: Run, trio: Bundle, tmp_path: Path, prompts: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = json.dumps(
        [
            {"n_prompt": p, "n_gen": g, "avg_ts": s, "n_threads": 1, "build_number": 1, "build_commit": "a"}
            for p, g, s in ((20, 0, 900.0), (0, 12, 90.0))
        ]
    )
    peer = tmp_path / "llama-bench"
    peer.write_text(f"#!{sys.executable}\nprint({rows!r})\n")
    peer.chmod(0o755)
    data = ("--data", f"{prompts}@0:2", "--sequences", "1,3", "-t", "0", "-t", "0.8")
    ran = frcli("bench", "trio", *SMALL, *data, "--llama-bench", peer, "--trace", trace, "-o", "json")
    assert ran.code == 0, ran.err
    document = ran.json
    assert list(document) == [
        *("machine", "bundle", "settings", "runs", "calls", "split", "memory", "same_tokens", "ratios"),
    ]
    assert document["bundle"] == {
        "name": "trio",
        "base": "base.gguf",
        "experts": ["general", "math", "code"],
        "router": "fp32",
    }
    settings = document["settings"]
    assert settings["prompts"] == {"rows.jsonl@0:2": 2}
    assert (settings["threads"], settings["context"], settings["policy"], settings["gamma"]) == (
        1,
        128,
        "fusionroute",
        0.5,
    )
    names = [f"{name} alone" for name in ("general", "math", "code")]
    fused = ["fused, draft off", "fused, draft auto", "1 at once, draft auto", "3 at once, draft auto"]
    found = {(run["name"], run.get("temperature")): run for run in document["runs"]}
    assert set(found) == {(n, t) for n in (*names, *fused) for t in (0.0, 0.8)} | {("llama-bench (base)", None)}
    for run in found.values():
        assert run["tg"]["low"] <= run["tg"]["median"] <= run["tg"]["high"]
        assert run["tg"]["repetitions"] == 2
    for name in fused[:2]:
        assert found[name, 0.0]["tokens"] == 2 * 2 * 12  # repetitions x prompts x tokens
    assert found[fused[3], 0.0]["tokens"] == 2 * 4 * 12  # half as many prompts again as there is room for
    assert "acceptance" not in found[fused[0], 0.0]
    assert set(document["calls"]) == {"router", "general", "math", "code"}
    for split in document["split"]:
        parts = sum(split[part] for part in ("draft", "router", "experts", "fuse", "sample", "rest"))
        assert parts == pytest.approx(split["total"], rel=1e-3)
    ratios = {
        *("overhead", "overhead_without_catch_up", "draft_vs_expert", "draft_vs_fastest_expert", "draft_vs_fused"),
        "batch3_vs_1",
    }
    assert set(document["ratios"]) == {*ratios, *(f"{name}@0.8" for name in ratios), "idle_experts"}
    for ratio in document["ratios"].values():
        assert set(ratio) == {"median", "low", "high", "repetitions"}
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    compared = document["same_tokens"]["compared"]
    assert {(row["name"], row["temperature"]) for row in compared} == {(n, t) for n in fused[1:] for t in (0.0, 0.8)}
    assert all(row["prompts"] == 2 and row["answers"] == 4 for row in compared)
    assert str(tmp_path) not in ran.out and str(trio.folder) not in ran.out

    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(lines) == sum(run["tokens"] for run in found.values() if "tokens" in run)
    picture = tmp_path / "picture.svg"
    ran = frcli("bench", "plot", trace, "-o", picture)
    assert (ran.code, ran.out) == (0, "")
    shown = [text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {*fused, "fused, draft off, temperature 0.8", "prompt 1"} <= set(shown)
    ran = frcli("bench", "plot", trace, "-o", picture)
    assert ran.code == 1 and "exists" in ran.err
    assert frcli("bench", "plot", trace, "-o", picture, "--force").code == 0


def test_tables_are_what_a_person_gets(frcli: Run, trio: Bundle) -> None:
    ran = frcli("bench", "trio", "--quick", "-n", "8", "-r", "1", "--sequences", "", "--no-idle")
    assert ran.code == 0, ran.err
    for part in ("| tokens per second", "| milliseconds a token", "| how tokens came about", "| MiB", "| ratio"):
        assert part in ran.out
    assert "4 prompts, at most 8 tokens each" in ran.out
    assert "at once" not in ran.out and "idle_experts" not in ran.out


def test_csv_without_drafts(frcli: Run, trio: Bundle, prompts: Path) -> None:
    ran = frcli(
        "bench", "-o", "csv", "trio", *SMALL, "--draft", "off", "--sequences", "", "--no-idle", "--data", prompts
    )
    assert ran.code == 0, ran.err
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert {row["name"] for row in rows if row["part"] == "ratios"} == {"overhead", "overhead_without_catch_up"}
    assert "fused, draft auto" not in {row["name"] for row in rows}
    assert not [row for row in rows if row["part"] == "same_tokens"]


def test_fresh_processes_are_timed(frcli: Run, trio: Bundle, prompts: Path) -> None:
    options = ("--sequences", "", "--no-idle", "--draft", "off", "--data", f"{prompts}@0:1")
    ran = frcli("bench", "trio", "-r", "1", "-n", "4", "--start", *options, "-o", "jsonl")
    assert ran.code == 0, ran.err
    start = {row["name"]: row for row in map(json.loads, ran.out.splitlines()) if row["part"] == "start"}
    assert set(start) == {"frcli --help", "first token"}
    assert 0 < start["frcli --help"]["median"] < start["first token"]["median"]
    assert start["first token"]["repetitions"] == 1


def test_a_bundle_without_a_router(frcli: Run, home: Path, prompts: Path) -> None:
    folder = home / "models" / "lone"
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_gguf(folder / "base.gguf")
    (folder / "bundle.toml").write_text(
        'format = 1\nname = "lone"\n[base]\nfile = "base.gguf"\n[experts.general]\n'
        '[defaults]\npolicy = "expert:general"\ncontext = 128\n'
    )
    ran = frcli("bench", "lone", *SMALL, "--sequences", "1,2", "--data", prompts, "-o", "json")
    assert ran.code == 0, ran.err
    document = ran.json
    assert document["skipped"] == {"idle_experts": "the policy does not choose one expert"}
    assert "router" not in document["calls"] and document["memory"]["router"] == 0
    assert "gamma" not in document["settings"]
    assert {"overhead", "draft_vs_fused", "batch2_vs_1"} <= set(document["ratios"])
    assert all(split["router"] == 0 for split in document["split"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("trio", "-o", "xml"), 2, "there is no format 'xml'"),
        (("trio", "--sequences", "1,many"), 2, "not a list of numbers"),
        (("trio", "--sequences", "0"), 2, "sequences are not possible"),
        (("trio", "-t", "-1"), 2, "temperature"),
        (("trio", "-r", "0"), 2, "--repetitions"),
        (("trio", "--draft", "much"), 2, "draft"),
        (("trio", "--data", "gone.jsonl"), 1, "cannot read gone.jsonl"),
        (("trio", "--llama-bench", "gone"), 2, "no program gone"),
        (("trio", "--trace", "gone/trace"), 1, "no folder gone"),
        (("trio", "--ctx", "64"), 2, "do not fit in a context of 64"),
        (("nobody",), 1, "no bundle 'nobody'"),
        (("plot",), 2, "Missing argument"),
        (("plot", "gone", "-o", "x.svg"), 1, "cannot read gone"),
    ],
)
def test_what_cannot_be_meant(frcli: Run, trio: Bundle, arguments: tuple[str, ...], code: int, words: str) -> None:
    ran = frcli("bench", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err


def test_a_trace_is_not_written_over(frcli: Run, trio: Bundle, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("mine")
    ran = frcli("bench", "trio", "--trace", tmp_path / "trace")
    assert ran.code == 1 and "exists" in ran.err
    assert (tmp_path / "trace").read_text() == "mine"


def test_results_survive_a_failed_trace(frcli: Run, trio: Bundle, tmp_path: Path, prompts: Path) -> None:
    (tmp_path / "trace.part").mkdir()
    options = ("-r", "1", "-n", "4", "--draft", "off", "--sequences", "", "--no-idle", "--data", f"{prompts}@0:1")
    ran = frcli("bench", "trio", *options, "-o", "json", "--trace", tmp_path / "trace")
    assert ran.code == 1 and "cannot write" in ran.err
    assert ran.json["runs"]


def test_the_help_has_the_flags_and_the_command_below(frcli: Run) -> None:
    ran = frcli("bench", "--help")
    assert ran.code == 0
    for shown in ("frcli bench [OPTIONS] [BUNDLE]", "frcli bench plot [OPTIONS] TRACE", "--llama-bench", "  plot "):
        assert shown in ran.out
    assert "run" not in ran.out.split("Commands:")[1]
    assert "frcli bench plot [OPTIONS]" in frcli("bench", "plot", "--help").out
