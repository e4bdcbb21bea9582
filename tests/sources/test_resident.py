"""The memory plan against what the system sees a process take: three bundles, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from frcli.bundle import DEFAULT_BUNDLE

# Everything is read once to the end of its context, so that no buffer is left untouched.
MEASURE = """
import json, sys
from frcli.bench.machine import resident_memory
from frcli.bundle import read_bundle
from frcli.decode.engine import Engine, Options
from frcli.sources.devices import cuda_router
from frcli.sources.llama import library
from frcli.sources.source import Feed

name, options = sys.argv[1], json.loads(sys.argv[2])
library(), cuda_router()
before = resident_memory()
engine = Engine(read_bundle(name), Options(threads=1, draft="off", **options))
tokens = [3 + number % 200 for number in range(engine.context)]
for source in [engine.expert(each) for each in engine.bundle.experts] + [engine.router] * bool(engine.router):
    source.extend([Feed(0, tokens)])
mapped = sum(share.mapped for share in engine.plan.shares)
print(json.dumps([resident_memory() - before, engine.plan.resident, mapped]))
"""
SHAPE = tiny.TinyShape(hidden=512, layers=6, heads=8, kv_heads=8, intermediate=1408, context=8192)


def check(name: str, **options: object) -> None:
    command = [sys.executable, "-c", MEASURE, name, json.dumps(options)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert ran.returncode == 0, ran.stderr
    taken, planned, mapped = json.loads(ran.stdout)
    # Pages of weights that were laid out anew are read no more, and the system may have taken them back.
    assert (planned - mapped) * 0.9 < taken < planned * 1.1, (planned, mapped, taken)


@pytest.mark.bundle
def test_the_shipped_bundle() -> None:
    check(DEFAULT_BUNDLE, context=1024)


def test_adapters_on_one_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters.adapter import convert_adapter

    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    base = tiny.write_gguf(tmp_path / "base.gguf", SHAPE, quantization="F16")
    peft = tiny.write_peft(tmp_path / "peft", SHAPE, rank=16)
    convert_adapter(peft, base, tmp_path / "math.gguf")
    experts = '[experts.general]\n[experts.math]\nadapter = "math.gguf"\n'
    (tmp_path / "bundle.toml").write_text(f'format = 1\nname = "b"\n[base]\nfile = "base.gguf"\n{experts}')
    check(str(tmp_path), policy="sum", context=2048, kv_type="f32")


def test_models_of_their_own_that_are_laid_out_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("base", "math")):
        wide = replace(SHAPE, kv_heads=4)
        tiny.write_gguf(tmp_path / f"{name}.gguf", wide, seed, quantization="Q4_0")
    experts = '[experts.general]\n[experts.math]\nfile = "math.gguf"\n'
    (tmp_path / "bundle.toml").write_text(f'format = 1\nname = "b"\n[base]\nfile = "base.gguf"\n{experts}')
    check(str(tmp_path), policy="sum", context=2048, kv_type="q8_0")
