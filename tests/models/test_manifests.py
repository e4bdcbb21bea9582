"""The manifests that ship without their models: as they are, on a hub of this machine, with random models in place."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from hub import Hub

from converters.trained import save_trained
from frcli.bundle import Bundle, list_bundles, read_bundle, sha256_note
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.errors import BundleError, UsageError
from frcli.fetch import repository
from frcli.fusion.registry import make_policy

MODELS = Path(__file__).parents[2] / "models"
NAMES = sorted(path.parent.name for path in MODELS.glob("*/bundle.toml") if "hf:" in path.read_text())
# Which random checkpoint stands in for a repository, by what its name has, and the widths of the logits.
STAND_INS = {
    "Qwen2.5-Math": ("Qwen2.5-Math", 151936),
    "Qwen2.5-7B": ("Qwen2.5-7B", 152064),
    "Qwen2.5-0.5B": ("Qwen2.5-0.5B", 151936),
    "Qwen2.5": ("Qwen2.5-1.5B", 151936),
    "Llama-3.1": ("Llama-3.1", 128256),
    "gemma-2": ("Gemma-2", 256000),
}


whole = pytest.mark.skipif(
    os.environ.get("FRCLI_TEST_ALL") != "1", reason="converts ten models with whole vocabularies: make test-all runs it"
)


def bundle_of(name: str) -> Bundle:
    return read_bundle(str(MODELS / name))


def stand_in(repo: str) -> tuple[str, int]:
    return next(found for part, found in STAND_INS.items() if part in repo)


def test_they_are_found_by_name() -> None:
    assert len(NAMES) == 4
    assert set(NAMES) <= {folder.name for folder in list_bundles()}


@pytest.mark.parametrize("name", NAMES)
def test_what_they_say(name: str) -> None:
    bundle = bundle_of(name)
    manifest = bundle.manifest
    assert bundle.name == name
    assert "not run here" in manifest.description
    assert manifest.license
    for artifact in bundle.artifacts():
        repo, file, quant = repository(str(artifact.source))
        assert (file, quant, artifact.sha256) == ("", "Q4_K_M", None)
        assert artifact.path.name == f"{repo.split('/')[1]}.Q4_K_M.gguf"

    def policy(text: str) -> Any:
        return make_policy(text, bundle.experts, gamma=1, sharp=False, roles=bundle.roles, trained=bundle.trained)

    assert not policy(manifest.defaults.policy).needs_router
    with pytest.raises(UsageError, match="needs a router, and this bundle has none"):
        policy("fusionroute")


def test_one_model_in_two_bundles_is_pulled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path))
    trio, steered = bundle_of("qwen2.5-1.5b-trio"), bundle_of("qwen2.5-7b-dlf")
    assert trio.base().path == steered.base().path
    assert trio.expert("math") == steered.expert("math")


def test_listing_them_asks_nobody_and_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path))
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)

        def states() -> dict[str, str]:
            command = [sys.executable, "-m", "frcli", "models", "list", "--json"]
            listed = subprocess.run(command, capture_output=True, text=True, check=True)
            return {entry["name"]: entry["state"] for entry in json.loads(listed.stdout)}

        assert {states()[name] for name in NAMES} == {"not pulled"}
        for artifact in bundle_of(NAMES[0]).artifacts():
            artifact.path.parent.mkdir(parents=True)
            artifact.path.write_bytes(b"weights")
            sha256_note(artifact.path).write_text("0" * 64)
        told = states()
        assert told.pop(NAMES[0]) == "ready"
        assert {told[name] for name in NAMES[1:]} == {"not pulled"}
        assert not hub.requests
        assert not (tmp_path / "sha256").exists()  # where what was hashed is kept
    assert "has sha256" in str(pytest.raises(BundleError, Engine, bundle_of(NAMES[0])).value)


def with_router(text: str) -> str:
    """The manifest with the lines of its router taken in."""
    lines = text.splitlines()
    begin = lines.index("# [router]")
    end = lines.index("", begin)
    lines[begin:end] = [line.removeprefix("#").strip() for line in lines[begin:end]]
    return "\n".join(lines).replace('policy = "packllm"', 'policy = "fusionroute"') + "\n"


def test_the_lines_of_a_router_say_where_its_base_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bundle.toml").write_text(with_router((MODELS / "qwen2.5-1.5b-trio" / "bundle.toml").read_text()))
    bundle = read_bundle(str(tmp_path))
    base, router = bundle.router_base(), bundle.router()
    assert repository(str(base.source)) == ("Qwen/Qwen2.5-0.5B-Instruct", "", "BF16")
    assert router is not None and (router.path, router.source) == (tmp_path / "router.safetensors", None)
    assert [each.role for each in bundle.artifacts()][-2:] == ["router", "router's base"]


@lru_cache
def checkpoint(folder: Path, kind: str, seed: int) -> Path:
    return checkpoints.write_checkpoint(folder / f"{kind}-{seed}", kind, seed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


@whole
@pytest.mark.parametrize("name", NAMES)
def test_pulled_opened_and_asked(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "FRCLI_CACHE": str(place / "cache"),
        "HF_HUB_CACHE": str(place / "hub"),
        "FRCLI_THREADS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    for key, value in environ.items():
        monkeypatch.setenv(key, value)

    def frcli(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "frcli", *arguments]
        return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True)

    bundle = bundle_of(name)
    widths = {}
    with Hub() as hub:
        for seed, artifact in enumerate(bundle.artifacts()):
            repo = repository(str(artifact.source))[0]
            kind, widths[artifact.role] = stand_in(repo)
            if not artifact.path.exists():
                hub.add_folder(repo, checkpoint(place, kind, seed))
        pulled = frcli("models", "pull", name, HF_ENDPOINT=hub.address)
        assert pulled.returncode == 0, pulled.stderr
        assert pulled.stderr.count("parity with the checkpoint: KL") == len(hub.repositories)
        asked = len(hub.requests)
        bundle = bundle_of(name)
        assert all(artifact.noted for artifact in bundle.artifacts())
        assert not list((place / "cache" / "hub").iterdir())  # what was converted is not kept

        answer = frcli("chat", name, "-p", "What is 12 times 12?", "-n", "4", "--seed", "1", HF_ENDPOINT=hub.address)
        assert answer.returncode == 0, answer.stderr
        assert len(hub.requests) == asked

    with Engine(bundle, Options(threads=1, context=256)) as engine:
        tokens = next(count for family, count in checkpoints.TOKENS.items() if family.lower() in name)
        assert engine.width == engine.base.size == tokens
        assert engine.expert("large" if bundle.large() else bundle.trained[0]).width >= min(widths.values())
        models = {artifact.role: engine._model(artifact.path).n_vocab for artifact in bundle.artifacts()}
        assert models == widths
        prompt = engine.encode_messages([{"role": "user", "content": "12 times 12?"}])
        for policy in {bundle.manifest.defaults.policy, "sum", f"expert:{bundle.trained[-1]}"}:
            engine.use(policy)
            steps = list(engine.steps(prompt, Sampling(temperature=1.5, seed=3), max_tokens=4))
            assert steps and all(0 <= step.token < tokens for step in steps)


@whole
def test_the_trio_with_a_router_is_pulled_built_and_asked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "qwen2.5-1.5b-trio"
    folder = tmp_path / "models" / name
    folder.mkdir(parents=True)
    (folder / "bundle.toml").write_text(with_router((MODELS / name / "bundle.toml").read_text()))
    environ = {
        "FRCLI_CACHE": str(place / "cache"),
        "HF_HUB_CACHE": str(place / "hub"),
        "FRCLI_THREADS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    for key, value in (environ | {"FRCLI_MODELS": str(folder.parent)}).items():
        monkeypatch.setenv(key, value)
    random = np.random.default_rng(5)
    wide = {"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 64)}
    delta = {
        f"model.layers.{layer}.{module}": (
            random.standard_normal((4, columns)).astype(np.float32) / 8,
            random.standard_normal((rows, 4)).astype(np.float32) / 8,
        )
        for layer in range(3)
        for module, (rows, columns) in wide.items()
    }
    heads, names = random.standard_normal((3, 64)), ("general", "code", "math")

    def frcli(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "frcli", *arguments]
        return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True)

    with Hub() as hub:
        for seed, artifact in enumerate(read_bundle(name).artifacts()):
            if artifact.source is not None and not artifact.path.exists():
                repo = repository(artifact.source)[0]
                hub.add_folder(repo, checkpoint(place, stand_in(repo)[0], seed))
        # What models/README.md trains a router on is the very file that pull makes.
        small = tmp_path / "small.gguf"
        made = frcli(*f"convert expert {repo} -o {small} --quant bf16".split(), HF_ENDPOINT=hub.address)
        assert made.returncode == 0, made.stderr
        digest = hashlib.sha256(small.read_bytes()).hexdigest()
        save_trained(folder / "router.safetensors", delta, heads, names, 2.0, digest, gamma=0.5)
        pulled = frcli("models", "pull", name, HF_ENDPOINT=hub.address)
        assert pulled.returncode == 0, pulled.stderr
        assert "router: building it from Qwen2.5-0.5B-Instruct.BF16.gguf and router.safetensors" in pulled.stderr
    answer = frcli("chat", name, "-p", "What is 12 times 12?", "-n", "4", "--seed", "1")
    assert answer.returncode == 0, answer.stderr
    bundle = read_bundle(name)
    assert bundle.folder == folder
    with Engine(bundle, Options(threads=1, context=256)) as engine:
        assert engine.policy.name == "fusionroute"
        prompt = engine.encode_messages([{"role": "user", "content": "12 times 12?"}])
        steps = list(engine.steps(prompt, Sampling(temperature=1.5, seed=3), max_tokens=4))
        assert steps and all(0 <= step.token < checkpoints.TOKENS["Qwen2.5"] for step in steps)
