"""``frcli models new`` with models on the hub: written down, then fetched, converted and compared by ``pull``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from hub import Hub, stand_in

from frcli.bundle import read_bundle

Run = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A base, an expert with another chat template, and a model with another tokenizer."""
    template = tiny.CHAT_TEMPLATE.replace("assistant", "model")
    foreign = tiny.TinyVocabulary(swapped=(40, 41))
    with Hub() as served:
        for seed, (name, vocabulary, settings) in enumerate(
            [("base", None, {}), ("code", None, {"chat_template": template}), ("foreign", foreign, {})]
        ):
            folder = tiny.write_safetensors(tmp_path / name, seed=seed)
            served.add_folder(f"someone/{name}", vocabularies.write_plain_tokenizer(folder, vocabulary, **settings))
        stand_in(served, monkeypatch, tmp_path / "hub-cache")
        yield served


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"FRCLI_MODELS": str(tmp_path / "models"), "FRCLI_CACHE": str(tmp_path / "cache")}


def test_whole_models_are_named_by_their_repositories(
    frcli: Run, hub: Hub, env: dict[str, str], tmp_path: Path
) -> None:
    ran = frcli(
        *("models", "new", "duo", "--base", "someone/base", "--expert", "general"),
        *("--expert", "code=someone/code!Q8_0", "--ctx", "128"),
        env=env,
    )
    assert ran.code == 0, ran.err
    assert "expert code: hf:someone/code!Q8_0 is not here, so it has no sha256" in ran.err
    assert ran.err.splitlines()[-1].endswith("frcli models pull duo")
    assert not hub.requests
    bundle = read_bundle(str(tmp_path / "models" / "duo"))
    said = [(each.role, each.path.name, each.source) for each in bundle.artifacts()]
    assert said == [
        ("base", "base.Q4_K_M.gguf", "hf:someone/base!Q4_K_M"),
        ("expert code", "code.Q8_0.gguf", "hf:someone/code!Q8_0"),
    ]
    pulled = frcli("models", "pull", "duo", env=env)
    assert pulled.code == 0, pulled.err
    assert pulled.err.count("parity with the checkpoint") == 2
    note = next(line for line in pulled.err.splitlines() if line.startswith("expert code: its chat template is ..."))
    assert "<|im_start|>model" in note
    assert "at 128 tokens of context; " in pulled.err
    assert frcli("chat", "duo", "-p", "the", "-n", "3", env=env).code == 0


def test_a_foreign_model_is_noticed_when_it_is_pulled(frcli: Run, hub: Hub, env: dict[str, str]) -> None:
    made = frcli("models", "new", "odd", "--base", "someone/base!F16", "--expert", "a=hf:someone/foreign!F16", env=env)
    assert made.code == 0, made.err
    pulled = frcli("models", "pull", "odd", env=env)
    assert pulled.code == 1
    assert "the base and expert a have different tokenizers: they differ in token 40" in pulled.err


def test_a_path_that_exists_is_no_repository(
    frcli: Run, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    tiny.write_gguf(tmp_path / "someone" / "base")
    assert frcli("models", "new", "own", "--base", "someone/base", env=env).code == 0
    bundle = read_bundle(str(tmp_path / "models" / "own"))
    assert (bundle.base().source, bundle.base().path.name) == (None, "base.gguf")
    for text, words in (
        ("someone/nowhere.gguf", "there is no file someone/nowhere.gguf for the base"),
        ("someone/model!Q9", "unknown type 'Q9'"),
        ("someone-else", "there is no file someone-else for the base"),
        ("hf:someone/model!", "does not have the form"),
        ("some one/model", "there is no file"),
    ):
        ran = frcli("models", "new", "no", "--base", text, "--expert", "general", env=env)
        assert ran.code and words in ran.err
