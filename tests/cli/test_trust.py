"""What a bundle may not do: reach for the network unasked, or have code of its own run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle, list_bundles

# Imported by every Python that starts: says what reaches for another machine, and lets none of it through.
WATCH = """
import os, sys
def watch(event, arguments):
    named = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    if event == "socket.connect":
        named = not isinstance(arguments[1], (str, bytes))  # a path is a socket of this machine
    if named:
        with open(os.environ["REACHED"], "a") as file:
            file.write(f"{event} {arguments[1:]}\\n")
        raise OSError(101, "Network is unreachable")
sys.addaudithook(watch)
"""


def run(arguments: list[object], environ: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder."""
    command = [str(Path(sys.executable).with_name("frcli")), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=dict(environ), input="")


@pytest.fixture
def watched(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment in which reaching for the network leaves a line in ``$REACHED``."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(tmp_path / "watch"), environ["PYTHONPATH"]])
    return {**environ, "PYTHONPATH": paths, "REACHED": str(tmp_path / "reached")}


def test_nothing_is_fetched_unasked(trio: Bundle, watched: dict[str, str], tmp_path: Path) -> None:
    """Every command but ``models pull``, on a bundle that is here and on bundles whose files are on the hub."""
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "hello"}\n')
    known = tmp_path / "known.jsonl"
    known.write_text('{"prompt": "hello", "answer": "world"}\n')
    away = [folder for folder in list_bundles() if folder.name.startswith("qwen")]
    assert len(away) == 2
    here, gone = [], []
    here += [["chat", trio.folder, "-p", "hello", "-n", 3], ["generate", rows, "-o", "a.jsonl", "-b", trio.folder]]
    here += [["models", "list"], ["doctor", trio.folder], ["bench", "--help"]]
    here += [["convert", "verify", trio.base().path, trio.base().path]]
    for folder in away:
        here.append(["models", "show", folder])
        gone += [["chat", folder, "-p", "hello"], ["generate", rows, "-o", "b.jsonl", "-b", folder]]
        gone += [["bench", folder, "--quick"], ["eval", "nll", "--data", f"x={known}", folder]]
    for command in (*here, *gone):
        ran = run(command, watched, tmp_path)
        assert ran.returncode == (1 if command in gone else 0), (command, ran.stderr)
        if command in gone:
            assert "models pull" in ran.stderr, (command, ran.stderr)
    assert not (tmp_path / "reached").exists(), (tmp_path / "reached").read_text()
    # The watch itself works: what is asked to fetch does reach for the network.
    asked = run(["models", "pull", away[0]], watched, tmp_path)
    assert asked.returncode == 1 and "getaddrinfo" in (tmp_path / "reached").read_text(), asked.stderr


@pytest.mark.eval
def test_an_evaluation_fetches_nothing_unasked(trio: Bundle, watched: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"Body": "Tom has 1 pen", "Question": "How many?", "Equation": "1.0", "Answer": 1.0}\n')
    command = ["eval", "compare", trio.folder, "-t", f"frcli_svamp={rows}", "--policy", "sum", "--ctx", 512]
    ran = run(command, watched, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "reached").exists(), (tmp_path / "reached").read_text()


class Evil:
    """A pickle of it writes a file where it is read."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self._mark}",)


@pytest.fixture
def bundle(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A working bundle with code of every kind beside its files; what runs of it leaves a mark."""
    monkeypatch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])
    made = write_bundle(tmp_path / "evil")
    marks = tmp_path / "marks"
    marks.mkdir()
    names = ("sitecustomize", "usercustomize", "conftest", "frcli", "numpy", "llama_cpp", "onnxruntime", "gguf")
    names += ("torch", "tokenizers", "modeling", "tokenization", "setup", "typing_extensions", "rich", "typer")
    for name in names:
        (made.folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\n")
    for name in ("pytorch_model.bin", "adapter_model.bin", "router.pt", "tokenizer.pkl", "data.npy"):
        (made.folder / name).write_bytes(pickle.dumps(Evil(marks / name)))
    config = {"auto_map": {"AutoModelForCausalLM": "modeling.Model", "AutoTokenizer": "tokenization.Tokenizer"}}
    for name in ("config.json", "tokenizer_config.json"):
        (made.folder / name).write_text(json.dumps({"trust_remote_code": True, "model_type": "llama", **config}))
    (made.folder / "frcli-1.dist-info").mkdir()
    (made.folder / "frcli-1.dist-info" / "entry_points.txt").write_text(
        "[frcli.policies]\nfusionroute = modeling:make\n"
    )
    (made.folder / "frcli-1.dist-info" / "METADATA").write_text("Name: frcli-evil\nVersion: 1\n")
    return made


def test_no_code_of_a_bundle_is_run(bundle: Bundle, environ: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "hello"}\n')
    for command, code in (
        (["chat", ".", "-p", "hello", "-n", 3], 0),
        (["chat", ".", "-p", "hello", "-n", 3, "--policy", "sum"], 0),
        (["generate", rows, "-o", tmp_path / "a.jsonl", "-b", "."], 0),
        (["models", "show", "."], 0),
        (["models", "list"], 0),
        (["doctor", "."], None),
        (["bench", ".", "--quick", "--no-idle", "--sequences", "", "-n", 2], 0),
        (["convert", "verify", "base.gguf", "base.gguf"], 0),
        (["convert", "expert", ".", "-o", tmp_path / "x.gguf"], 1),
        (["convert", "adapter", ".", "--base", "base.gguf", "-o", tmp_path / "y.gguf"], 1),
        (["convert", "router", "--trained", "router.pt", "--base", "base.gguf", "-o", tmp_path / "z.onnx"], None),
        (["models", "pull", "."], 0),
    ):
        ran = run(command, environ, bundle.folder)
        assert code is None or ran.returncode == code, (command, ran.stderr)
        assert "Traceback" not in ran.stderr, (command, ran.stderr)
    assert not list((tmp_path / "marks").iterdir())


def test_pickles_in_the_place_of_weights_are_refused(bundle: Bundle, environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(bundle.folder, folder)
    shutil.copy(folder / "router.pt", folder / "router.safetensors")
    shutil.copy(folder / "router.pt", folder / "math.gguf")
    pulled = run(["models", "pull", "."], {**environ, "FRCLI_CACHE": str(tmp_path / "cache")}, folder)
    asked = run(["chat", ".", "-p", "hello", "--policy", "expert:math"], environ, folder)
    assert (pulled.returncode, asked.returncode) == (1, 1), (pulled.stderr, asked.stderr)
    assert "router.safetensors" in pulled.stderr and "math.gguf" in asked.stderr
    shutil.rmtree(folder)
    tiny.write_safetensors(folder)
    (folder / "model.safetensors").unlink()
    shutil.copy(bundle.folder / "pytorch_model.bin", folder)
    assert run(["convert", "expert", ".", "-o", tmp_path / "x.gguf"], environ, folder).returncode == 1
    assert not list((tmp_path / "marks").iterdir())
