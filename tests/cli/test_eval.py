"""``frcli eval nll`` and ``frcli train`` on tiny real models, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import read_bundle
from frcli.cli.nll import table

ROWS = [{"prompt": f"the {i}", "answer": "and of"} for i in range(4)]


def frcli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "frcli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_table_of_every_system_and_its_numbers_as_json(tmp_path: Path, data: Path) -> None:
    write_bundle(tmp_path / "trio")
    out = tmp_path / "out.json"
    rival = f"twin={read_bundle(str(tmp_path / 'trio')).router_model()}"
    options = ("--gammas", "0,0.5,0.5,1", "--max-length", "128", "-o", out, "--router", rival)
    result = frcli("eval", "nll", tmp_path / "trio", "--data", f"a={data}@0:3", "--data", f"b={data}@3:", *options)
    assert result.returncode == 0, result.stderr
    document = json.loads(out.read_text())
    columns = document["columns"]
    assert {name: file["examples"] for name, file in document["files"].items()} == {
        f"{data}@0:3": 3,
        f"{data}@3:": 1,
    }
    assert [column["examples"] for column in columns.values()] == [3, 1]
    fused = ["fused 0.0", "fused 0.5", "fused 1.0"]
    twins = ["twin", *(f"twin {name}" for name in fused)]
    systems = ["general", "math", "code", "router", *fused, *twins]
    for column in columns.values():
        assert list(column["nll"]) == systems
        assert sum(column["chosen"].values()) == column["tokens"]
        assert column["nll"]["twin fused 0.5"] == column["nll"]["fused 0.5"]
        assert list(column["accepted"]) == [*fused, *twins[1:]]
        assert all(0 <= share <= 1 for share in column["accepted"].values())
    shown = [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:-1]]
    assert shown == [*systems, "*drafts accepted*", *fused, *twins[1:]]
    for name, file in document["files"].items():
        assert file["column"] == ("a" if name.endswith("0:3") else "b")
        assert sum(tokens for tokens, _ in file["each"]) == file["tokens"]
        for place, mean in enumerate(file["nll"].values()):
            total = sum(values[place] for _, values in file["each"])
            assert total / file["tokens"] == pytest.approx(mean, abs=1e-3)
    taken = ("--router", rival.replace("twin", "math"))
    again = frcli("eval", "nll", tmp_path / "trio", "--data", f"a={data}", "--max-length", "128", *taken)
    assert again.returncode == 2 and "math would name two of the systems; give --router another name" in again.stderr
    again = frcli("eval", "nll", tmp_path / "trio", "--data", f"a={data}", "-o", out)
    assert again.returncode == 1 and "exists" in again.stderr


def test_a_bundle_without_a_router_has_no_fused_rows(tmp_path: Path, data: Path) -> None:
    tiny.write_gguf(tmp_path / "base.gguf")
    manifest = 'format = 1\nname = "one"\n[base]\nfile = "base.gguf"\n[experts.general]\n'
    (tmp_path / "bundle.toml").write_text(manifest)
    result = frcli("eval", "nll", tmp_path, "--data", f"a={data}", "--max-length", "64")
    assert result.returncode == 0, result.stderr
    assert "general" in result.stdout and "fused" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--data", "rows.jsonl"), 2, "has no name"),
        (("--data", "a=gone.jsonl"), 1, "cannot read gone.jsonl"),
        (("--data", "a=gone.jsonl", "--router", "x.onnx"), 2, "--router x.onnx has no value"),
        (("--data", "a=gone.jsonl", "--gammas", "high"), 2, "not a list of numbers"),
        (("--data", "a=gone.jsonl", "--gammas", "-1"), 2, "outside 0 to 16"),
        (("--data", "a=gone.jsonl", "--gammas", "nan"), 2, "outside 0 to 16"),
    ],
)
def test_bad_input(tmp_path: Path, data: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    write_bundle(tmp_path / "trio")
    result = frcli("eval", "nll", tmp_path / "trio", "--max-length", 128, *arguments)
    assert (result.returncode, words in result.stderr, result.stderr.count("\n")) == (code, True, 1), result.stderr


def test_the_table_marks_the_best_of_each_column() -> None:
    columns = {
        "x": {"examples": 1, "tokens": 9, "nll": {"a": 1.0, "b": 2.0}},
        "y": {"examples": 2, "tokens": 8, "nll": {"a": 3.0, "b": 0.5}},
    }
    assert table({"columns": columns}).splitlines() == [
        "| NLL per answer token | x | y | mean |",
        "|---|---|---|---|",
        "| a | **1.000** | 3.000 | 2.000 |",
        "| b | 2.000 | **0.500** | **1.250** |",
        "| *answers* | 1 rows, 9 tokens | 2 rows, 8 tokens | |",
    ]


def test_a_dry_run_of_training_needs_no_torch(tmp_path: Path, data: Path) -> None:
    base = tiny.write_gguf(tmp_path / "base.gguf")
    common = ("--base", base, "--data", data, "--data", f"{data}@0:2", "-o", tmp_path / "out", "--dry-run")
    for command in (("expert",), ("router", "--expert", "general", "--expert", "math")):
        result = frcli("train", *command, *common)
        assert result.returncode == 0, result.stderr
        plan, cost, *asking = result.stderr.splitlines()
        assert plan.startswith("6 examples, ") and " of memory (" in cost and "0 minutes" in cost
        if command[0] == "router":  # the two rows that are given twice are asked once
            assert asking[0].startswith("before that each of general, math reads 4 texts of ")
        assert len(asking) == (command[0] == "router")
    (tmp_path / "teacher.onnx").touch()
    result = frcli("train", "router", "--expert", "a", "--teacher", tmp_path / "teacher.onnx", *common)
    assert "before that each of a, the teacher reads 4 texts of " in result.stderr
    assert not (tmp_path / "out").exists()
    result = frcli("train", "router", "--expert", "a", "--expert", "a", *common)
    assert result.returncode == 2 and "names a twice" in result.stderr
    result = frcli("train", "router", "--expert", "a", "--expert", "math=there", *common)
    assert result.returncode == 2 and "there is no there" in result.stderr
    result = frcli("train", "router", "--expert", "a", "--expert", "math=", *common)
    assert result.returncode == 2 and "--expert math= has no value; write --expert math=GGUF" in result.stderr
    for more, words in (
        (("--objective", "dpo"), "it is sft or fused"),
        (("--gate",), "add --objective fused"),
        (("--pairs", data), "give it as --start"),
        (("--start", "gone"), "--start: there is no gone"),
        (("--teacher", "gone.onnx"), "--teacher: there is no gone.onnx"),
        (("--gamma", "0.5"), "--gamma weighs nothing here; it belongs to --objective fused"),
        (("--lm-share", "1"), "--lm-share weighs nothing here"),
        (("--beta", "0.2"), "--beta weighs nothing here"),
        (("--distill", "2"), "--distill weighs nothing here"),
    ):
        result = frcli("train", "router", "--expert", "a", *more, *common)
        assert result.returncode == 2 and words in result.stderr
    result = frcli("train", "router", "--expert", "router", *common)
    assert result.returncode == 2 and "'router' is not a name" in result.stderr


def test_pairs_from_the_command_line(tmp_path: Path, data: Path) -> None:
    bundle = write_bundle(tmp_path / "trio").folder
    rows, out = tmp_path / "sums.jsonl", tmp_path / "pairs.jsonl"
    plain = {"instruction": "Say hello.", "instances": [{"input": "", "output": "Hello."}]}
    sums = [{"question": f"the {n}", "answer": f"#### {n + 1000}"} for n in range(3)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*sums, plain]))
    more = ("-o", out, "--samples", 2, "--max-tokens", 8, "--ctx", 256)
    result = frcli("train", "pairs", bundle, "--data", rows, *more)
    assert result.returncode == 0, result.stderr
    assert "0 pairs" in result.stderr and "1 rows that cannot be graded" in result.stderr
    assert "3 without a whole answer" in result.stderr  # which are no pairs: half an answer is not a wrong one
    assert out.read_text() == ""
    assert not list(tmp_path.glob("pairs.jsonl.*"))
    assert frcli("train", "pairs", bundle, "--data", rows, *more).returncode == 1
    result = frcli("train", "pairs", bundle, "--data", data, *more, "--force")
    assert result.returncode == 1 and "no row can be graded" in result.stderr


def test_policies_of_one_name_are_scored_apart(tmp_path: Path, data: Path) -> None:
    write_bundle(tmp_path / "trio")
    out = tmp_path / "out.json"
    policies = [part for gamma in (0, 1) for part in ("--policy", f"fusionroute,gamma={gamma}")]
    more = ("--gammas", "0,1", "--max-length", 128, *policies, "-o", out)
    result = frcli("eval", "nll", tmp_path / "trio", "--data", f"a={data}", *more)
    assert result.returncode == 0, result.stderr
    nll = json.loads(out.read_text())["columns"]["a"]["nll"]
    for gamma in (0, 1):
        assert nll[f"fusionroute,gamma={gamma}"] == pytest.approx(nll[f"fused {gamma}.0"], abs=1e-4)


@pytest.mark.train
def test_training_from_the_command_line(tmp_path: Path, data: Path) -> None:
    base = tiny.write_gguf(tmp_path / "base.gguf")
    common = ("--base", base, "--data", data, "--rank", 2)
    result = frcli("train", "expert", *common, "-o", tmp_path / "expert")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "expert" / "adapter_model.safetensors").is_file()
    again = frcli("train", "expert", *common, "-o", tmp_path / "expert")
    assert again.returncode == 1 and "this training is finished" in again.stderr
    result = frcli("convert", "adapter", tmp_path / "expert", "--base", base, "-o", tmp_path / "taught.gguf")
    assert result.returncode == 0, result.stderr
    experts = ("--expert", "general", "--expert", f"taught={tmp_path / 'taught.gguf'}")
    result = frcli("train", "router", *common, *experts, "-o", tmp_path / "first", "--objective", "fused")
    assert result.returncode == 0, result.stderr
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": "the", "chosen": "and of", "rejected": "1 2"}) + "\n" for _ in "ab"))
    start = tmp_path / "first" / "router.safetensors"
    more = ("--pairs", pairs, "--start", start, "--objective", "fused", "--gate")
    result = frcli("train", "router", *common, *experts, "-o", tmp_path / "router", *more)
    assert result.returncode == 0, result.stderr
    assert "4 examples and 2 pairs" in result.stderr
    trained = tmp_path / "router" / "router.safetensors"
    onnx = tmp_path / "router.onnx"
    result = frcli("convert", "router", "--base", base, "--trained", trained, "-o", onnx, "--precision", "fp32")
    assert result.returncode == 0, result.stderr
    assert "KL" in result.stderr and onnx.is_file()
