"""The recipes of examples/, run as they are on tiny random models of the families that they name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
import vocabularies

from converters.trained import read_trained
from frcli.bundle import read_bundle

pytestmark = pytest.mark.train

ROOT = Path(__file__).parents[2]
ROW = {"prompt": "Add one and two.", "answer": "three"}
PAIR = {"prompt": "Add one and two.", "chosen": "three", "rejected": "four"}


@pytest.mark.parametrize(
    ("recipe", "family", "tokenizer"), [("llama-3.1-8b", "llama3", "llama-bpe"), ("gemma-2-2b", "gemma2", "gemma")]
)
def test_a_recipe_runs_to_its_end(recipe: str, family: str, tokenizer: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "math", "code")):
        folder = families.save(families.make(family, seed, vocab_size=768), tmp_path / name)
        if not seed:
            vocabularies.write_tokenizer(folder, tokenizer)
        for file in ("tokenizer.json", "tokenizer_config.json"):  # the same for all, down to the order of its tokens
            (folder / file).write_bytes((tmp_path / "base" / file).read_bytes())
    for file, row in (("rows", ROW), ("pairs", PAIR)):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(4)))
    work = tmp_path / "work"
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "FRCLI_CACHE": str(tmp_path / "cache"),
        "BASE": str(tmp_path / "base"),
        "EXPERTS": f"math={tmp_path / 'math'} code={tmp_path / 'code'}",
        "DATA": str(tmp_path / "rows.jsonl"),
        "PREFERENCES": str(tmp_path / "pairs.jsonl"),
        "DEVICE": "cpu",
        "WORK": str(work),
    }
    command = ["sh", str(ROOT / "examples" / "recipes" / f"{recipe}.sh")]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"frcli chat {work / 'bundle'}\n"
    for phase in ("sft", "cdpo"):
        assert read_trained(work / phase / "router.safetensors").experts == ("general", "math", "code")
    bundle = read_bundle(str(work / "bundle"))
    assert bundle.manifest.experts.keys() == {"general", "math", "code"}
    again = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert (again.returncode, again.stderr) == (0, ""), again.stderr  # everything is there
