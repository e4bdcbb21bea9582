"""Memory by formula, by llama.cpp's own words, and as the system sees it."""

from __future__ import annotations

import logging

import pytest

from frcli.bench.machine import describe, resident_memory
from frcli.bench.memory import OVERHEAD, kv_bytes, measure, need, router_kv_bytes
from frcli.bench.peers import loaded_model
from frcli.bench.plan import Prompt
from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.sources.devices import available_memory, total_memory
from frcli.sources.llama_log import MIB, buffers

PROMPT = Prompt((1, 20, 30, 40, 50))


def test_what_an_engine_takes_by_part(trio: Bundle) -> None:
    begin = resident_memory()
    with Engine(trio, Options(threads=1, context=300, draft="off")) as engine:
        found = measure(engine, PROMPT, begin)
        # 300 tokens are held in 512 cells: 2 layers of 2 heads of 16 keys and 16 values, 2 bytes each.
        cells = 512 * 2 * 2 * (16 + 16) * 2
        assert kv_bytes(loaded_model(engine, "general"), 300) == cells
        assert engine.policy.name == "fusionroute"
        assert engine.router is not None
        assert found["router_kv"] == router_kv_bytes(engine.router, 300) == 2 * 2 * (2 * 300 * 16) * 4
    assert list(found["experts"]) == ["general", "math", "code"]
    for name, sizes in found["experts"].items():
        assert sizes["kv"] == cells
        assert abs(sizes["kv_held"] - cells) < 0.01 * MIB
        assert ("adapter" in sizes) == (name != "general")
        assert sizes["compute"] > 0
    adapters = sum((trio.folder / f"{name}.gguf").stat().st_size for name in ("math", "code"))
    router = trio.router_model()
    assert router is not None and found["router"] == router.stat().st_size
    assert found["target"] == found["base"] + found["router"] + adapters + 3 * (cells + OVERHEAD)
    grown = found["opening"] + found["reading_base"] + found["fusing"]
    assert found["resident"] == grown + sum(sizes["growth"] for sizes in found["experts"].values())


def test_listening_to_llama_cpp_leaves_logging_as_it_was(trio: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("frcli.llama")
    before = log.level, log.propagate, list(log.handlers)
    with Engine(trio, Options(threads=1, draft="off")) as engine, caplog.at_level(logging.WARNING):
        measure(engine, PROMPT, None)
    assert (log.level, log.propagate, list(log.handlers)) == before
    assert not caplog.records  # nobody asked for llama.cpp's messages


def test_buffers_that_llama_cpp_tells() -> None:
    lines = [
        "llama_context:        CPU  output buffer size =     0.25 MiB",
        "llama_kv_cache:        CPU KV buffer size =    22.50 MiB",
        "llama_kv_cache: size =   22.50 MiB (  1024 cells,  30 layers,  1/1 seqs), K (f16):   11.25 MiB",
        "llama_kv_cache:        CPU KV buffer size =     2.50 MiB",  # the second cache of a sliding window
        "sched_reserve:        CPU compute buffer size =    14.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =     4.00 MiB",
        "sched_reserve:        CPU compute buffer size =    15.00 MiB",  # anew, with an adapter
        "~llama_context:        CPU compute buffer size is  14.5117 MiB, matches expectation of  14.5117 MiB",
    ]
    assert buffers(lines) == {"output": MIB // 4, "KV": 25 * MIB, "kept": 45 * MIB // 2, "compute": 19 * MIB}


def test_what_another_engine_would_need() -> None:
    sizes = {
        "context": 512,
        "sequences": 1,
        "base": 100,
        "router": 50,
        "router_kv": 8,
        "experts": {"a": {"kv": 4}, "b": {"kv": 4, "adapter": 10}, "c": {"kv": 4, "weights": 1000}},
    }
    # Twice the sequences at half the context: each KV as before.
    assert need(sizes, 256, 2) == 100 + 1000 + 50 + 8 + 3 * (10 + 4 + OVERHEAD)
    assert need(sizes, 512, 4, experts=2) == 100 + 1000 + 50 + 32 + 2 * (10 + 16 + OVERHEAD)


def test_resident_memory_grows_with_what_is_written() -> None:
    before = resident_memory()
    block = bytearray(64 * MIB)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    after = resident_memory()
    assert before is not None and after is not None
    assert after - before > 48 * MIB
    assert len(block) == 64 * MIB


def test_the_machine_without_names_of_hosts_and_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    import platform
    from pathlib import Path

    found = describe()
    assert {"cpu", "cores", "memory", "system", "python", "frcli", "llama-cpp-python", "llama.cpp"} <= set(found)
    assert any(name in found for name in ("onnxruntime", "onnxruntime-gpu"))
    text = str(found)
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert platform.node() not in text.split()
    total, free = total_memory(), available_memory()
    assert total is not None and total > 1 << 28
    assert free is None or 0 < free <= total
