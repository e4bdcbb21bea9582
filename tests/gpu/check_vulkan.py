"""llama.cpp's path through a GPU, on any device that it can use; ``scripts/check_vulkan.sh`` runs it on Mesa's software
device. No part of the other tests: the build that they run on has no such device.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.sources.devices import GPU, devices
from frcli.sources.llama_log import listening
from frcli.sources.source import Feed, Logits

SHAPE = replace(tiny.TinyShape(), hidden=256, layers=3, heads=4, kv_heads=2, intermediate=512)  # heads of 64
TOKENS = list(range(3, 60))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        return write_bundle(folder / "trio", shape=SHAPE)


@pytest.fixture(autouse=True)
def cache(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(bundle.folder.parent / "cache"))


def rows(bundle: Bundle, **options: object) -> dict[str, Logits]:
    """The last row of every expert behind the same tokens."""
    with Engine(bundle, Options(threads=1, **options)) as engine:
        return {name: engine.expert(name).extend([Feed(0, TOKENS)])[0].logits[0].copy() for name in bundle.experts}


def test_the_device_is_seen() -> None:
    gpus = [device for device in devices() if device.kind == GPU]
    assert gpus and gpus[0].llama and 0 < gpus[0].free <= gpus[0].total


@pytest.mark.parametrize("layers", ["auto", -1, 99, 2])
def test_layers_go_where_the_plan_says(bundle: Bundle, layers: int | str) -> None:
    name = devices()[1].name
    with listening() as said, Engine(bundle, Options(threads=1, gpu_layers=layers)) as engine:
        place = engine.plan.placement("base")
        assert place.on_gpu == (2 if layers == 2 else 4)
        (share,) = [share for share in engine.plan.shares if share.device == name]
        assert share.weights and share.kv and share.compute
        engine.expert("math").extend([Feed(0, TOKENS)])
    assert said["KV"] >= share.kv // len(bundle.experts)


@pytest.mark.parametrize("layers", [-1, 2])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_rows_are_the_processors(bundle: Bundle, layers: int, kv_type: str) -> None:
    expected = rows(bundle, gpu_layers=0)
    for name, row in rows(bundle, gpu_layers=layers, kv_type=kv_type).items():
        assert np.isfinite(row).all()
        assert np.corrcoef(row, expected[name])[0, 1] > 0.99
        assert not np.array_equal(row, expected[name])  # another device has computed them


def test_answers_with_drafts_and_rewinding(bundle: Bundle) -> None:
    def written(**options: object) -> list[int]:
        with Engine(bundle, Options(threads=1, gpu_layers=-1, **options)) as engine:
            steps = engine.steps(TOKENS[:10], Sampling(temperature=0), max_tokens=24)
            return [step.token for step in steps]

    assert written(draft="3") == written(draft="3")
    assert len(written(draft="off")) == 24


@pytest.fixture
def frcli() -> Callable[..., str]:
    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "frcli", *map(str, arguments)], capture_output=True, text=True, check=True
        )
        return done.stdout

    return run


def test_the_command_line(bundle: Bundle, frcli: Callable[..., str]) -> None:
    assert frcli("chat", bundle.folder, "-p", "the", "-n", "6", "--gpu-layers", "99")
    told = frcli("doctor", bundle.folder)
    assert "with GPU offload" in told and "layers of base: 4 of 4 on a GPU" in told
