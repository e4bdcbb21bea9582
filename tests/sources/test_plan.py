"""The memory plan: what models need, against llama.cpp's own words, and where it goes on devices of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from frcli.errors import FitError, ModelError, UsageError
from frcli.fusion.registry import make_policy
from frcli.sources.devices import AUTO, CPU, GPU, Device, parse_gpu_layers
from frcli.sources.ggml import repacked_types
from frcli.sources.kv_types import KV_TYPES, check_kv_type
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.llama_log import MIB, simulate
from frcli.sources.needs import Demand, ModelNeed, RouterNeed, Running, compute_bytes, kv_bytes
from frcli.sources.plan import Plan, make_plan
from frcli.sources.remedies import remedies, require_fit
from frcli.sources.shape import QUANTS, describe_shape, read_shape
from frcli.sources.source import Feed

GIB = 1 << 30
WIDE = tiny.TinyShape(hidden=256, layers=3, heads=4, kv_heads=2, intermediate=512, context=4096)
LLAMA_8B = {"layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocab": 128256, "context": 131072}


def host(free: float) -> Device:
    return Device("CPU", "a processor", CPU, int(free * GIB), 64 * GIB)


def gpu(free: float, number: int = 0, **more: bool) -> Device:
    return Device(f"CUDA{number}", "a GPU", GPU, int(free * GIB), int(free * GIB), **more)


def team(quant: str = "Q4_K_M", experts: int = 3, router: bool = True) -> Demand:
    """Experts of 8B parameters on one base, with a router of 1B."""
    shape = describe_shape("8B", quant, **LLAMA_8B)
    names = tuple(f"expert{number}" for number in range(experts))
    adapters = (0, *[80 * MIB] * (experts - 1))
    need = RouterNeed(GIB, 64 * 1024, cuda=True) if router else None
    return Demand((ModelNeed("base", shape, names, adapters),), need)


@pytest.mark.parametrize("quantization", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("shape", [tiny.TinyShape(), WIDE, replace(WIDE, tied=False)])
def test_a_header_says_what_llama_cpp_loads(tmp_path: Path, quantization: str, shape: tiny.TinyShape) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", shape, quantization=quantization)
    read = read_shape(path)
    model = LlamaModel(path)
    assert read.weights == model.weight_bytes
    assert (read.vocab, read.context, bool(read.tied)) == (model.n_vocab, model.trained_context, shape.tied)
    model.close()


@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("context", "sequences", "rows"), [(300, 1, 1), (2048, 1, 17), (4096, 3, 64), (65536, 1, 1)])
def test_the_formulas_say_what_llama_cpp_says(
    tmp_path: Path, kv_type: str, context: int, sequences: int, rows: int
) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", WIDE)
    running = Running(context, sequences, kv_type, rows)
    read, said = read_shape(path), simulate(path, running)
    assert read.weights == said["weights"]
    assert abs(sum(kv_bytes(read, running)) - said["kv"]) <= 0.01 * MIB
    assert 0.99 * said["compute"] <= compute_bytes(read, running, on_cpu=True) <= 1.12 * said["compute"] + MIB


def test_a_simulated_model_cannot_be_read(tmp_path: Path) -> None:
    model = LlamaModel(tiny.write_gguf(tmp_path / "m.gguf"), simulated=True)
    source = LlamaSource(model, context=64)
    with pytest.raises(ModelError, match="simulated"):
        source.extend([Feed(0, [1])])
    source.close()
    model.close()


def test_a_header_that_is_none(tmp_path: Path) -> None:
    adapter = tmp_path / "bare.gguf"
    import gguf

    writer = gguf.GGUFWriter(adapter, "llama")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(ModelError, match="says no shape"):
        read_shape(adapter)
    whole = tiny.write_gguf(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:200])
    with pytest.raises(ModelError, match="cannot read .* as GGUF"):
        read_shape(tmp_path / "cut.gguf")


# Bytes of published files, header and vocabulary (some 8 MB) included.
PUBLISHED = {"Q8_0": 8.54e9, "Q6_K": 6.60e9, "Q5_K_M": 5.73e9, "Q4_K_M": 4.92e9, "Q3_K_M": 4.02e9, "Q2_K": 3.18e9}


@pytest.mark.parametrize("quant", PUBLISHED)
def test_a_model_that_is_not_here_by_its_numbers(quant: str) -> None:
    assert abs(describe_shape("8B", quant, **LLAMA_8B).weights / PUBLISHED[quant] - 1) < 0.02


@pytest.mark.parametrize("tied", [True, False])
def test_in_another_quant(tied: bool) -> None:
    for quant in QUANTS:
        shape = describe_shape("8B", "F16", **LLAMA_8B, tied=tied).in_quant(quant)
        assert abs(shape.weights / describe_shape("8B", quant, **LLAMA_8B, tied=tied).weights - 1) < 0.001


def test_kv_types_that_heads_cannot_fill(tmp_path: Path) -> None:
    narrow = read_shape(tiny.write_gguf(tmp_path / "m.gguf"))  # heads of 16
    check_kv_type("f16", [narrow])
    for kv_type in ("q8_0", "q4_1"):
        with pytest.raises(UsageError, match="no multiple of 32"):
            check_kv_type(kv_type, [narrow])
    with pytest.raises(UsageError, match="one of f32, f16"):
        check_kv_type("q3_0")


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_every_kv_type_is_llama_cpps(tmp_path: Path, kv_type: str) -> None:
    model = LlamaModel(tiny.write_gguf(tmp_path / "m.gguf", WIDE))
    source = LlamaSource(model, context=64, kv_type=kv_type)
    exact = LlamaSource(model, context=64, kv_type="f32")
    tokens = list(range(3, 40))
    (rows,), (expected,) = source.extend([Feed(0, tokens)]), exact.extend([Feed(0, tokens)])
    alike = np.corrcoef(rows.logits[0], expected.logits[0])[0, 1]  # random weights make much of little
    assert alike > (0.999 if kv_type in ("f32", "f16", "bf16", "q8_0") else 0.9)
    source.close(), exact.close(), model.close()


def check_sums(plan: Plan) -> None:
    """What is on all devices together is the whole, with a second copy of a tied table at the most."""
    for need in plan.demand.models:
        shape, parts = need.shape, [share for share in plan.shares if share.role == need.role]
        assert sum(part.kv for part in parts) == len(need.contexts) * sum(kv_bytes(shape, plan.running))
        assert abs(sum(part.adapters for part in parts) - sum(need.adapters)) <= len(parts)
        assert shape.weights <= sum(part.weights for part in parts) <= shape.weights + shape.tied
        assert plan.placement(need.role).on_gpu <= len(shape.layers) + 1


@pytest.mark.parametrize("free", [0.3, 1, 2, 3, 4, 5, 6, 8, 12, 24])
@pytest.mark.parametrize("experts", [1, 3])
def test_as_many_layers_as_have_room_go_to_a_gpu(free: float, experts: int) -> None:
    devices = (host(64), gpu(free, llama=True, onnx=False))
    plan = make_plan(team(experts=experts), Running(4096), devices)
    check_sums(plan)
    assert plan.fits and not plan.router_on_gpu
    (count,) = plan.placement("base").gpus
    assert plan.needed(devices[1]) <= max(0, devices[1].free - 512 * MIB)
    if count < 33:  # one more would not fit
        more = make_plan(team(experts=experts), Running(4096), devices, count + 1)
        assert more.needed(devices[1]) > devices[1].free - 512 * MIB
    else:
        assert free >= 6


@pytest.mark.parametrize("more", range(4))
def test_a_byte_too_little_is_too_little(more: int) -> None:
    """Adapters whose bytes layers do not divide evenly, too."""
    needed = team(router=False)
    model = replace(needed.models[0], adapters=(0, 80 * MIB + more, 31))
    needed, running = replace(needed, models=(model,)), Running(4096)
    whole = make_plan(needed, running, [host(64), gpu(24)])
    taken = next(share.bytes for share in whole.shares if share.device == "CUDA0")
    counts = []
    for free in (taken, taken - 1):
        device = replace(gpu(24), free=free + 512 * MIB)
        counts.append(make_plan(needed, running, [host(64), device]).placement("base").on_gpu)
    assert counts == [33, 32]


def test_the_router_has_the_gpu_first_and_only_if_it_was_made_for_one() -> None:
    devices = (host(64), gpu(8))
    plan = make_plan(team(), Running(4096), devices)
    assert plan.router_on_gpu and plan.fits
    assert (
        plan.placement("base").on_gpu < make_plan(team(router=False), Running(4096), devices).placement("base").on_gpu
    )
    on_cpu = replace(team(), router=RouterNeed(GIB, 64 * 1024, cuda=False))
    assert not make_plan(on_cpu, Running(4096), devices).router_on_gpu
    assert not make_plan(team(), Running(4096), devices, 0).router_on_gpu
    assert not make_plan(team(), Running(4096), (host(64), gpu(8, onnx=False))).router_on_gpu
    assert not make_plan(team(), Running(4096), (host(64), gpu(1))).router_on_gpu


def test_models_with_more_experts_come_first() -> None:
    shape = describe_shape("8B", "Q4_K_M", **LLAMA_8B)
    own = ModelNeed("expert own", shape, ("own",), (0,))
    shared = ModelNeed("base", shape, ("a", "b"), (0, 0))
    plan = make_plan(Demand((own, shared)), Running(2048), (host(64), gpu(7)))
    assert [placement.role for placement in plan.placements] == ["expert own", "base"]
    assert plan.placement("base").on_gpu == 33 > plan.placement("expert own").on_gpu


def test_several_gpus() -> None:
    whole = make_plan(team(router=False), Running(2048), (host(64), gpu(4), gpu(9, 1)))
    assert whole.placement("base").gpus == (0, 33)  # on one, if one has room for all
    split = make_plan(team(router=False), Running(2048), (host(64), gpu(4), gpu(4, 1)))
    check_sums(split)
    assert split.fits and min(split.placement("base").gpus) > 0
    asked = make_plan(team(router=False), Running(2048), (host(64), gpu(4), gpu(8, 1)), 12)
    assert asked.placement("base").on_gpu == 12
    assert make_plan(team(), Running(2048), (host(64), gpu(4), gpu(8, 1)), -1).placement("base").on_gpu == 33
    unusable = make_plan(team(), Running(2048), (host(64), gpu(24, llama=False, onnx=False)))
    assert unusable.placement("base").gpus == ()


def test_memory_that_a_gpu_shares_counts_once() -> None:
    devices = (host(6), gpu(6, onnx=False, shared=True))
    plan = make_plan(team(experts=1, router=False), Running(2048), devices, -1)
    assert plan.needed(devices[0]) > plan.needed(devices[1]) > 4 * GIB
    assert make_plan(team("F16", 1, router=False), Running(2048), devices).short


def test_what_would_fit_fits() -> None:
    needed, running, devices = team(experts=4), Running(32768, sequences=2), (host(9),)
    plan = make_plan(needed, running, devices)
    assert not plan.fits
    found = {remedy.change: remedy.bytes for remedy in remedies(plan)}
    assert found and all(size <= devices[0].free for size in found.values())
    ctx = next(int(change.split()[1]) for change in found if change.startswith("--ctx"))
    assert ctx % 256 == 0 and make_plan(needed, replace(running, context=ctx), devices).fits
    assert not make_plan(needed, replace(running, context=ctx + 256), devices).fits
    with pytest.raises(FitError, match=f"needs .* GiB of memory on CPU, where 9.0 GiB are free; .*--ctx {ctx}"):
        require_fit(plan, "team")


def test_each_kind_of_remedy() -> None:
    def changes(needed: Demand, running: Running, *devices: Device, layers: int | str = AUTO) -> list[str]:
        return [remedy.change for remedy in remedies(make_plan(needed, running, devices, layers), layers)]

    assert "--kv-type q8_0" in changes(team(), Running(16384), host(12.5))
    assert "its models in Q5_K_M" in changes(team("Q8_0"), Running(2048), host(9.1))
    assert "--parallel 2" in changes(team(), Running(4096, sequences=8), host(12.5))
    assert "1 of its 3 experts" in changes(team(), Running(8192), host(9.3))
    assert "--gpu-layers auto" in changes(team(), Running(2048), host(16), gpu(4, onnx=False), layers=-1)
    (only,) = changes(team("F16"), Running(32768), host(7))
    assert only.startswith("--ctx 2048 with --kv-type q")
    assert changes(team(), Running(2048), host(1)) == []
    assert changes(team(), Running(2048), host(64)) == []
    require_fit(make_plan(team(), Running(2048), (host(64),)), "team")
    with pytest.raises(FitError, match="close other programs"):
        require_fit(make_plan(team(), Running(2048), (host(1),)), "team")


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("0", 0), ("-1", -1), ("99", 99)])
def test_gpu_layers(text: str, value: int | str) -> None:
    assert parse_gpu_layers(text) == value
    with pytest.raises(UsageError, match="it is auto, or a number"):
        parse_gpu_layers(f"{text}x")


def test_what_policies_may_use() -> None:
    def sources(text: str) -> tuple[str, ...] | None:
        return make_policy(
            text, ["general", "math", "code"], gamma=1, sharp=False, roles={"router", "large"}, trained=["math", "code"]
        ).sources

    assert sources("fusionroute") is None
    assert sources("expert:math") == ("math",)
    assert sources("sum:math,code") == ("math", "code")
    assert sources("proxy:code") == ("code", "base", "large")
    assert sources("dlf") == ("math", "code", "base", "large")
    assert sources("contrast:math") == ("math", "base")


def test_types_that_are_laid_out_anew(tmp_path: Path) -> None:
    shape = read_shape(tiny.write_gguf(tmp_path / "m.gguf", WIDE, quantization="Q4_0"))
    plan = make_plan(Demand((ModelNeed("base", shape, ("a",), (0,)),)), Running(256), (host(8),))
    (share,) = plan.shares
    if "q4_0" in repacked_types():
        matrices = sum(sum(kinds.values()) for kinds in shape.repackable[:-1])
        assert (share.mapped, share.weights) == (matrices, shape.weights + sum(shape.repackable[-1].values()))
    else:
        assert (share.mapped, share.weights) == (0, shape.weights)
