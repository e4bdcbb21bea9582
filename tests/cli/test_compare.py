"""``frcli eval compare`` on a tiny bundle, through the command line and lm-evaluation-harness itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frcli.bundle import Bundle
from frcli.evaluation.grading import same_number, same_option

FRCLI = [sys.executable, "-m", "frcli"]
ROWS = {
    "svamp": [
        {"Body": f"Tom has {n} pens", "Question": "How many?", "Equation": f"{n}.0", "Answer": float(n)}
        for n in range(8)
    ],
    "folio": [
        {"context": f"the {n}", "question": "Is it?", "options": ["A) True", "B) False"], "answer": "AB"[n % 2]}
        for n in range(5)
    ],
}


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Path]:
    for name, lines in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: tmp_path / f"{name}.jsonl" for name in ROWS}


def arguments(trio: Bundle, rows: dict[str, Path], *more: object) -> list[str]:
    tasks = [f"frcli_svamp={rows['svamp']}", f"frcli_folio={rows['folio']}", f"logiglue_folio={rows['folio']}"]
    given = [part for task in tasks for part in ("-t", task)]
    return ["eval", "compare", str(trio.folder), *given, "--limit", "4", "--ctx", "512", *map(str, more)]


@pytest.mark.eval
def test_policies_side_by_side(
    trio: Bundle, rows: dict[str, Path], tmp_path: Path, process: Callable[..., Any]
) -> None:
    outs = [tmp_path / f"out.{kind}" for kind in ("json", "md", "html")]
    writing = [part for out in outs for part in ("-o", out)]
    systems = ["fusionroute,gamma=1", "expert:math", "sum:math,code"]
    policies = [part for system in systems for part in ("--policy", system)]
    ran = process(*arguments(trio, rows, *policies, *writing, "--against", "expert:math", "--seed", 3))
    assert ran.code == 0, ran.err
    assert not ran.out and not list(tmp_path.glob("*.journal"))
    document = json.loads(outs[0].read_text())
    assert list(document["systems"]) == systems
    tasks = document["tasks"]
    assert [len(task["items"]) for task in tasks.values()] == [4, 4, 4]
    assert max(tasks["frcli_svamp"]["items"]) < 8 and len(set(tasks["frcli_svamp"]["items"])) == 4
    assert document["groups"] == {"deductive": ["logiglue_folio"], "in domain": ["logiglue_folio"]}
    for result in document["systems"].values():
        for cell in result["tasks"].values():
            assert len(cell["scores"]) == 4 and cell["mean"] == sum(cell["scores"]) / 4
            assert cell["tokens"] >= 4 and cell["seconds"] > 0
        assert result["mean"] == pytest.approx(sum(cell["mean"] for cell in result["tasks"].values()) / 3)
    calls = [document["systems"][system]["calls_per_token"] for system in systems]
    assert calls == [2, 1, 2]  # router and expert, one expert, two experts
    assert set(document["differences"]) == set(systems) - {"expert:math"}
    check_samples(document)
    assert outs[1].read_text().startswith("|  | svamp | folio | logiglue_folio | mean |")
    assert outs[2].read_text().startswith("<!doctype html>")
    twice = [tmp_path / "again.md", tmp_path / "again.html"]
    ran = process("eval", "report", outs[0], "-o", twice[0], "-o", twice[1])
    assert ran.code == 0, ran.err
    assert [path.read_text() for path in twice] == [path.read_text() for path in outs[1:]]
    again = process(*arguments(trio, rows, *writing))
    assert again.code == 1 and "out.json exists" in again.err


def check_samples(document: dict[str, Any]) -> None:
    """The kept answers are graded as the scores say, and each token has its expert."""
    graders = {"frcli_svamp": same_number, "frcli_folio": same_option}
    assert len(document["samples"]) == 6
    for sample in document["samples"]:
        place = document["tasks"][sample["task"]]["items"].index(sample["doc"])
        assert sample["prompt"] and sample["answer"]
        for system, answer in sample["written"].items():
            text = "".join(token[0] for token in answer["tokens"])
            cell = document["systems"][system]["tasks"][sample["task"]]
            assert answer["score"] == cell["scores"][place]
            if grade := graders.get(sample["task"]):
                assert float(grade(text, sample["answer"])) == answer["score"]
            for _, experts, weights in answer["tokens"]:
                assert experts
                assert (weights is not None and len(weights) == 3) == system.startswith("fusionroute")


@pytest.mark.eval
def test_a_run_that_was_killed_goes_on(
    trio: Bundle, rows: dict[str, Path], tmp_path: Path, environ: dict[str, str], process: Callable[..., Any]
) -> None:
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    assert process(*arguments(trio, rows, "-o", whole, "--parallel", 2)).code == 0
    command = [*FRCLI, *arguments(trio, rows, "-o", cut, "--parallel", 2)]
    running = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / "cut.json.journal"
    end = time.monotonic() + 120
    while time.monotonic() < end and (not part.exists() or part.read_bytes().count(b"\n") < 5):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = part.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1
    assert 5 <= kept < 48
    part.write_bytes(part.read_bytes() + b'{"key": "to')  # and a torn line
    ran = process(*arguments(trio, rows, "-o", cut, "--parallel", 2))
    assert ran.code == 0 and f"has {kept} results" in ran.err
    first, second = json.loads(whole.read_text()), json.loads(cut.read_text())
    for document in (first, second):
        for result in document["systems"].values():
            result.pop("tokens_per_second")
            for cell in result["tasks"].values():
                cell.pop("seconds")
    assert first == second


@pytest.mark.eval
def test_ctrl_c_says_what_is_safe(trio: Bundle, rows: dict[str, Path], tmp_path: Path, environ: dict[str, str]) -> None:
    out = tmp_path / "out.json"
    running = subprocess.Popen(
        [*FRCLI, *arguments(trio, rows, "-o", out)],
        env=environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Tests that run behind a shell's & would hand on that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    part = Path(f"{out}.journal")
    end = time.monotonic() + 120
    while time.monotonic() < end and (not part.exists() or not part.stat().st_size):
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert b"the same command goes on" in err and b"Traceback" not in err
    assert part.exists() and not out.exists()


@pytest.mark.eval
@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("-t", "nonsense"), 2, "no task 'nonsense'"),
        (("-t", "frcli_arlsat"), 1, "frcli_arlsat needs a file of rows"),
        (("-t", "frcli_gsm8k=gone.jsonl"), 1, "cannot read"),
        (("-t", "="), 2, "is not a task"),
        (("-t", "frcli_svamp=other.jsonl"), 2, "task frcli_svamp has two files"),
        (("--policy", "dlf"), 2, "dlf needs a large model"),
        (("--policy", "sum", "--against", "packllm"), 2, "packllm is not compared"),
        (("-o", "out.txt"), 2, "out.txt is none of .md, .json, .html"),
    ],
)
def test_bad_input_is_one_sentence(
    trio: Bundle, rows: dict[str, Path], process: Callable[..., Any], more: tuple[str, ...], code: int, words: str
) -> None:
    ran = process(*arguments(trio, rows, *more))
    assert ran.code == code, ran.err
    assert words in ran.err and ran.err.count("\n") == 1


@pytest.mark.eval
def test_the_list_of_tasks(process: Callable[..., Any]) -> None:
    names = process("eval", "tasks").out.split()
    assert {"frcli_gsm8k", "frcli_mbpp", "logiglue", "logiglue_deductive", "logiglue_bigbench-logical-Args"} <= set(
        names
    )


def test_a_report_of_something_else_is_refused(tmp_path: Path, frcli: Callable[..., Any]) -> None:
    for text in ("{", "[]", '{"tasks": {}}'):
        (tmp_path / "x.json").write_text(text)
        ran = frcli("eval", "report", tmp_path / "x.json")
        assert ran.code == 1 and "is no comparison" in ran.err
    assert frcli("eval", "report", tmp_path / "gone.json").code == 1


def test_without_the_harness_the_command_says_how_to_get_it(
    trio: Bundle, rows: dict[str, Path], frcli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for command in (arguments(trio, rows), ["eval", "tasks"]):
        ran = frcli(*command)
        assert ran.code == 2 and "pip install 'frcli[eval]'" in ran.err


def test_comparisons_of_parts_are_joined(tmp_path: Path, frcli: Callable[..., Any]) -> None:
    files = [tmp_path / name for name in ("some.json", "others.json", "strange.json")]
    for path, system, items in zip(files, ("fusionroute", "sum", "sum"), ([1, 3], [1, 3], [7]), strict=True):
        cell = {"mean": 0.5, "stderr": 0.5, "scores": [float(system == "sum"), float(system != "sum")]}
        result = {"mean": 0.5, "stderr": 0.5, "tokens_per_second": None, "calls_per_token": 4.0}
        document = {"bundle": "duo", "experts": ["math"], "limit": 2, "seed": 0, "groups": {}, "samples": []}
        document |= {"tasks": {"frcli_svamp": {"metric": "right", "items": items}}, "against": system}
        document |= {"systems": {system: {"tasks": {"frcli_svamp": cell}, **result}}, "differences": {}}
        path.write_text(json.dumps(document))
    ran = frcli("eval", "report", *files[:2])
    assert ran.code == 0, ran.err
    assert "| fusionroute | **0.500** ± 0.500 |" in ran.out and "| sum | **0.500** ± 0.500 |" in ran.out
    assert "minus fusionroute" in ran.out and "+0.000 (-1.000 to +1.000)" in ran.out
    ran = frcli("eval", "report", *files)
    assert ran.code == 1 and "these comparisons differ in the items of frcli_svamp" in ran.err
