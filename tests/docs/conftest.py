"""The folder in which the commands of a page run: tiny real models and a few rows under the names that pages use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import vocabularies
from bundles import write_bundle
from hub import Hub

from frcli.bundle import Bundle, read_bundle

sys.path.insert(0, str(Path(__file__).parent))  # for shell_blocks and pages

ROOT = Path(__file__).parents[2]
EXPERTS = ("general", "math", "code", "logic")
SHAPE = tiny.TinyShape(hidden=256, intermediate=256, heads=8, kv_heads=4, context=1 << 16)  # wide enough for K-quants
SHIPPED = ("smollm2-quartet", "qwen2.5-1.5b-trio")  # names that reach a tiny bundle in place of the shipped one
BUNDLES = (*SHIPPED, "my-bundle")

QUESTION = {"prompt": "What is 12 * 13?", "answer": "156"}
SUM = {"question": "Ann has 2 pens and buys 3. How many?", "answer": "2 + 3 = <<2+3=5>>5 pens.\n#### 5"}
PACK = {"Body": "A pack costs 76", "Question": "How much?", "Equation": "( 76.0 - 25.0 )", "Answer": 51.0}
CODE = {
    "text": "Add one.",
    "code": "def f(a):\n    return a + 1",
    "test_list": ["assert f(1) == 2", "assert f(2) == 3"],
}
TASK = {"instruction": "Greet.", "instances": [{"input": "Ann", "output": "Hello, Ann."}]}
CHOICE = {
    "context": "All birds fly. Tim is a bird.",
    "question": "Does Tim fly?",
    "options": ["A) True", "B) False"],
    "answer": "A",
}
PAIR = {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"}
ROWS: Mapping[str, Mapping[str, object]] = {
    "preferences": {"prompt": "What is 1 + 2?", "chosen": "1 + 2 = 3", "rejected": "It is 4."},
    **dict.fromkeys(("prompts", "in", "questions"), {"prompt": QUESTION["prompt"]}),
    **dict.fromkeys(("rows", "train", "mixed", "data"), QUESTION),
    **dict.fromkeys(("gsm8k", "gsm8k_dev", "gsm8k_train", "wordproblems_train"), SUM),
    **dict.fromkeys(("svamp_dev", "svamp_train"), PACK),
    **dict.fromkeys(("mbpp", "mbpp_dev", "mbpp_train"), CODE),
    **{
        f"logic_{name}_{part}": CHOICE
        for name in ("proofwriter", "folio", "prontoqa", "logicaldeduction", "arlsat")
        for part in ("dev", "train")
    },
    "folio": CHOICE,
    "self_instruct_seed": TASK,
    "pairs": PAIR,
}
COUNT = 6  # rows of each file


@dataclass(frozen=True)
class Place:
    """What all pages share: the folder that each begins with, the environment, and how programs are found there."""

    template: Path
    environ: Mapping[str, str]
    run: str
    parse: str


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Bundles, models, rows, a hub on this machine, and the server that is ``frcli``."""
    home = tmp_path_factory.mktemp("home")
    template = home / "template"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FRCLI_", "XDG_", "HF_"))}
    kept.pop("NO_COLOR", None)
    folders = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "FRCLI_CACHE": "cache", "FRCLI_MODELS": "models"}
    folders |= {"HF_HOME": "hf", "HOME": ""}
    with Hub() as hub:
        environ = {
            **kept,
            **{name: str(home / folder) for name, folder in folders.items()},
            "FRCLI_THREADS": "1",
            "FRCLI_MAX_TOKENS": "8",
            "TERM": "dumb",  # a person who has one sees the same words
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")])),
            "HF_ENDPOINT": hub.address,
            # As pages write where the reader has their own files.
            "D": ".",
            "BASE": "BASE.gguf",
            "MATH": "math.gguf",
            "CODE": "code.gguf",
        }
        with pytest.MonkeyPatch.context() as patch:  # and no longer: tests that come after want the real cache
            patch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])
            bundle = write_bundle(home / "models" / BUNDLES[0], EXPERTS, shape=SHAPE, precision="int4", context=2048)
            for name in BUNDLES[1:]:
                copy_bundle(bundle, home / "models" / name)
            write_template(template, bundle)
        for repository in ("OWNER/NAME", "Qwen/Qwen2.5-0.5B-Instruct"):
            hub.add_folder(repository, template / "path" / "to" / "model")
        with tempfile.TemporaryDirectory() as short:  # a socket's address has some 100 characters at most
            address = Path(short) / "frcli"
            server = [sys.executable, str(Path(__file__).with_name("quick_frcli.py")), str(address), str(template)]
            process = subprocess.Popen(
                server, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            try:
                run, parse = (write_programs(Path(short) / mode, address, mode) for mode in ("run", "parse"))
                yield Place(template, environ, run, parse)
            finally:
                os.killpg(process.pid, 9)
                process.communicate()


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy the bundle and its built router to the name of ``folder``."""
    shutil.copytree(bundle.folder, folder)
    manifest = folder / "bundle.toml"
    manifest.write_text(manifest.read_text().replace(f'"{bundle.name}"', f'"{folder.name}"'))
    built, copy = bundle.router_model(), read_bundle(str(folder)).router_model()
    assert built is not None and copy is not None
    shutil.copy(built, copy)


def write_template(folder: Path, bundle: Bundle) -> None:
    """Write the files that every page finds in its folder."""
    shutil.copytree(bundle.folder, folder / "BUNDLE")
    shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)  # base.gguf, math.gguf, ...
    for name in ("bundle.toml", "router.safetensors"):
        (folder / name).unlink()
    shutil.copy(folder / "base.gguf", folder / "BASE.gguf")
    tiny.write_trained(folder / "router.safetensors", SHAPE, EXPERTS[:2])
    (folder / "router").mkdir()
    shutil.copy(folder / "router.safetensors", folder / "router" / "router.safetensors")
    for name in EXPERTS[1:]:
        (folder / f"{name}-peft").rename(folder / name)
    # The base again, as a checkpoint: what BASE.gguf was converted from.
    checkpoint = tiny.write_safetensors(folder / "path" / "to" / "model", SHAPE)
    vocabularies.write_plain_tokenizer(checkpoint)
    shutil.copytree(folder / "math", folder / "path" / "to" / "peft")
    tiny.write_importance(folder / "imatrix.gguf", folder / "base.gguf")
    tiny.write_gguf(folder / "model-f16.gguf", SHAPE, quantization="F16")
    tiny.write_gguf(folder / "model-q8.gguf", SHAPE, quantization="Q8_0")
    (folder / "book.txt").write_text("It was a bright cold day. " * 40)
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * COUNT)


def write_programs(folder: Path, address: Path, mode: str) -> str:
    """Write what runs, or only reads, a command line, and return the PATH with it."""
    here, python = Path(__file__).parent, sys.executable
    client = f'"{python}" -I -S "{here / "quick_frcli.py"}" "{address}" {mode}'
    programs = {"frcli": client, "python": f'"{python}"'}
    if mode == "parse":
        for name in ("make", "pip", "python", "lm_eval"):
            programs[name] = f'"{python}" "{here / "only_parsed.py"}" "{ROOT}" {name}'
    folder.mkdir()
    for name, called in programs.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {called} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
