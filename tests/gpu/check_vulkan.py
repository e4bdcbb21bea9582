"""llama.cpp's path through a GPU, on any device that it can use; ``scripts/check_vulkan.sh`` runs it on Mesa's software
device. No part of the other tests: the build that they run on has no such device.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import DEFAULT_BUNDLE, Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.sources.devices import GPU, Device, devices
from frcli.sources.llama_log import MIB
from frcli.sources.source import Feed, Logits

SHAPE = replace(tiny.TinyShape(), hidden=256, layers=3, heads=4, kv_heads=2, intermediate=512)  # heads of 64
LAYERS = SHAPE.layers + 1  # the head is one
TOKENS = list(range(3, 60))
RESERVE = 512 * MIB  # what a plan leaves free on a GPU
# Of logits that reach 23 of float32 weights, by type of keys and values: about twice what Mesa's software device was
# seen to differ by (0.026, 0.064 and 0.20). It multiplies in 16 bits.
TOLERANCES = {"f32": 0.05, "f16": 0.13, "q8_0": 0.4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three experts on one base, and one with a model of its own."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        return write_bundle(folder / "quartet", own=["own"], shape=SHAPE)


@pytest.fixture
def cache(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that has the bundle's router, and no settings of the user."""
    monkeypatch.setenv("FRCLI_CACHE", str(bundle.folder.parent / "cache"))
    settings = bundle.folder.parent / "config.toml"
    settings.touch()
    monkeypatch.setenv("FRCLI_CONFIG", str(settings))


@pytest.fixture
def frcli(cache: None) -> Callable[..., str]:
    def run(*arguments: str | Path) -> str:
        done = subprocess.run([sys.executable, "-m", "frcli", *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def gpu() -> Device:
    found = [device for device in devices() if device.kind == GPU]
    assert found, "llama.cpp sees no device but the processor: run scripts/check_vulkan.sh"
    return found[0]


def on_device(caplog: pytest.LogCaptureFixture, kind: str = "model") -> list[float]:
    """MiB of each buffer of that kind that llama.cpp says it has on the device, to the second decimal."""
    said = re.compile(rf"{gpu().name} +{kind} buffer size = +([\d.]+) MiB")
    return [float(found[1]) for found in map(said.search, caplog.messages) if found]


def rows(bundle: Bundle, **options: object) -> dict[str, Logits]:
    """The last row of every expert behind the same tokens."""
    with Engine(bundle, Options(threads=1, **options)) as engine:
        return {name: engine.expert(name).extend([Feed(0, TOKENS)])[0].logits[0].copy() for name in bundle.experts}


def test_the_device_is_seen() -> None:
    assert gpu().llama and 0 < gpu().free <= gpu().total


@pytest.mark.parametrize(("layers", "count"), [("auto", LAYERS), ("2", 2), ("0", 0)])
def test_doctor_says_what_goes_where(
    bundle: Bundle, frcli: Callable[..., str], monkeypatch: pytest.MonkeyPatch, layers: str, count: int
) -> None:
    monkeypatch.setenv("FRCLI_GPU_LAYERS", layers)
    told = frcli("doctor", bundle.folder)
    assert "built with GPU offload" in told
    assert re.search(rf"{gpu().name}: {re.escape(gpu().about)}, .*iB, .*iB free", told)
    for role in ("base", "expert own"):
        assert f"layers of {role}: {count} of {LAYERS} on a GPU" in told
        assert (f"{role} on {gpu().name}:" in told) == (count > 0)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("layers", "count"), [("auto", LAYERS), (-1, LAYERS), (99, LAYERS), (2, 2), (0, 0)])
def test_layers_go_where_the_plan_says(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, layers: int | str, count: int
) -> None:
    caplog.set_level(logging.DEBUG, "frcli.llama")
    with Engine(bundle, Options(threads=1, gpu_layers=layers)) as engine:
        assert [place.on_gpu for place in engine.plan.placements] == [count, count]
        shares = [share for share in engine.plan.shares if share.device == gpu().name]
        for name in bundle.experts:
            engine.expert(name).extend([Feed(0, TOKENS)])
    for kind, planned in ("model", [share.weights for share in shares]), ("KV", [share.kv for share in shares]):
        said = on_device(caplog, kind)
        assert sum(said) == pytest.approx(sum(planned) / MIB, rel=0.02, abs=0.0051 * len(said))  # each is rounded
    assert len(on_device(caplog)) == (2 if count else 0)  # the base and the expert of its own
    assert bool(on_device(caplog, "compute")) == bool(count)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("fits", "base", "own"), [("all", 4, 4), ("most", 4, 3), ("base", 4, 0), ("less", 3, 0)])
def test_a_device_with_too_little_room(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fits: str, base: int, own: int
) -> None:
    with Engine(bundle, Options(threads=1)) as engine:
        needed = {share.role: share.bytes for share in engine.plan.shares if share.device == gpu().name}
    both = needed["base"] + needed["expert own"]
    free = RESERVE + {"all": both, "most": both - 1, "base": needed["base"], "less": needed["base"] - 1}[fits]
    small = tuple(replace(each, free=free) if each == gpu() else each for each in devices())
    expected = rows(bundle, gpu_layers=0)
    monkeypatch.setattr("frcli.decode.engine.devices", lambda: small)
    caplog.set_level(logging.DEBUG, "frcli.llama")
    with Engine(bundle, Options(threads=1)) as engine:
        assert [(place.role, place.on_gpu) for place in engine.plan.placements] == [("base", base), ("expert own", own)]
    caplog.clear()
    for name, row in rows(bundle).items():
        np.testing.assert_allclose(row, expected[name], atol=TOLERANCES["f16"], rtol=0)
    assert len(on_device(caplog)) == (2 if own else 1)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("layers", [-1, 2])
@pytest.mark.parametrize(("kv_type", "tolerance"), TOLERANCES.items())
def test_logits_are_the_processors(bundle: Bundle, layers: int, kv_type: str, tolerance: float) -> None:
    expected = rows(bundle, gpu_layers=0, kv_type=kv_type)
    for name, row in rows(bundle, gpu_layers=layers, kv_type=kv_type).items():
        np.testing.assert_allclose(row, expected[name], atol=tolerance, rtol=0)
        assert not np.array_equal(row, expected[name])  # another device has computed them


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("draft", ["off", "3"])
def test_tokens_are_the_processors(bundle: Bundle, draft: str) -> None:
    def written(layers: int) -> list[int]:
        with Engine(bundle, Options(threads=1, gpu_layers=layers, draft=draft, policy="sum")) as engine:
            return [step.token for step in engine.steps(TOKENS[:10], Sampling(temperature=0), max_tokens=24)]

    assert len(written(0)) == 24
    assert written(-1) == written(0)


def test_chat_answers(bundle: Bundle, frcli: Callable[..., str]) -> None:
    command = ("chat", bundle.folder, "-p", "the", "-n", "8", "-t", "0", "--repeat-penalty", "3")  # or it is one token
    said = [frcli(*command, "--gpu-layers", layers) for layers in ("99", "0")]
    assert len(set(said[0])) > 3 and said[0] == said[1]


def test_generate_answers_two_rows(bundle: Bundle, frcli: Callable[..., str], tmp_path: Path) -> None:
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "the"}\n{"prompt": "and so"}\n')
    texts = []
    for layers in ("auto", "0"):
        told = frcli("generate", prompts, "-b", bundle.folder, "-n", "6", "--parallel", "2", "--gpu-layers", layers)
        texts.append([json.loads(line)["text"] for line in told.splitlines()])
    assert len(texts[0]) == 2 and all(texts[0]) and texts[0] == texts[1]


@pytest.mark.bundle
def test_the_shipped_bundle_writes_the_processors_text() -> None:
    said = []
    for layers in ("auto", "0"):
        command = [sys.executable, "-m", "frcli", "chat", DEFAULT_BUNDLE, "-p", "What is 2 + 3?", "-n", "12", "-t", "0"]
        done = subprocess.run([*command, "--gpu-layers", layers], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0].strip() and said[0] == said[1]
