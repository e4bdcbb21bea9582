"""Where the memory goes: weights, KV caches and compute buffers, by formula, as llama.cpp says, and as the system sees
the process grow.
"""

from __future__ import annotations

from typing import Any

from frcli.bench.machine import resident_memory
from frcli.bench.peers import BareExpert, loaded_model
from frcli.bench.plan import Prompt
from frcli.decode.engine import Engine
from frcli.decode.sampler import Sampling
from frcli.sources.llama import LlamaModel
from frcli.sources.llama_log import MIB, listening
from frcli.sources.onnx import OnnxRouter

OVERHEAD = 16 * MIB  # what an expert may take beyond its adapter and its KV cache


def measure(engine: Engine, prompt: Prompt, begin: int | None) -> dict[str, Any]:
    """Bytes by part, of an engine that has just been opened in a process that had ``begin`` bytes before.

    The experts are used one after the other, so that the growth of the process is each one's own; the base is read
    before by a context that is freed again. ``experts`` has for each: ``adapter`` (its file), ``kv`` (by formula),
    ``kv_held``, ``compute`` and ``output`` (what llama.cpp says that it allocates) and ``growth`` (of the resident
    memory). ``opening``, ``reading_base`` and ``fusing`` are the growth before and after that: the engine's opening,
    with the router's session; the base's pages; the router's work. ``target`` is base + router + experts x (adapter +
    KV + 16 MiB), ``resident`` what the process has taken in the end. The engine's policy is changed and put back.
    """
    opened = resident_memory()
    bundle, policy = engine.bundle, engine.policy.name
    base = engine.base
    with BareExpert(base, None, context=engine.context, threads=engine.threads) as bare:
        bare.write(prompt.tokens, 2, Sampling(temperature=0))
    before = read = resident_memory()
    experts: dict[str, Any] = {}
    for name in bundle.experts:
        artifact, table = bundle.expert(name), bundle.manifest.experts[name]
        with listening() as said:
            engine.use(policy=f"expert:{name}")
            engine.write(prompt.tokens, Sampling(temperature=0), max_tokens=2).run()
        after = resident_memory()
        entry = {
            "adapter": artifact.path.stat().st_size if artifact and table.adapter else None,
            "weights": artifact.path.stat().st_size if artifact and table.file else None,
            "kv": kv_bytes(loaded_model(engine, name), engine.context * engine.sequences),
            "kv_held": said.get("KV"),
            "compute": said.get("compute"),
            "output": said.get("output"),
            "growth": _growth(before, after),
        }
        experts[name] = {key: value for key, value in entry.items() if value is not None}
        before = after
    used = before
    engine.use(policy=policy)
    engine.write(prompt.tokens, Sampling(temperature=0), max_tokens=2).run()
    path = bundle.router_model() if engine.router is not None else None
    router = path.stat().st_size if path is not None else 0
    after = resident_memory()
    each = [e.get("adapter", 0) + e.get("weights", 0) + e["kv"] + OVERHEAD for e in experts.values()]
    found = {
        "context": engine.context,
        "sequences": engine.sequences,
        "base": base.weight_bytes,
        "router": router,
        "router_kv": router_kv_bytes(engine.router, engine.context) if engine.router else None,
        "experts": experts,
        "target": base.weight_bytes + router + sum(each),
        "resident": _growth(begin, after),
        "program": begin,
        "opening": _growth(begin, opened),
        "reading_base": _growth(opened, read),
        "fusing": _growth(used, after),
    }
    return {key: value for key, value in found.items() if value is not None}


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def kv_bytes(model: LlamaModel, context: int) -> int:
    """Bytes of the KV cache of a context with so many tokens in float16: ``tokens x layers x (keys + values) x 2``, the
    tokens in whole blocks of 256, keys and values of ``kv_heads x head_size`` each.

    For models with full attention in all layers, all with the same number of heads.
    """
    return -(-context // 256) * 256 * model.kv_bytes


def router_kv_bytes(router: OnnxRouter, context: int) -> int:
    """Bytes of the router's KV buffers of one sequence, float32; the system gives them as they fill."""
    total = 0
    for entry in router._session.get_inputs():
        if entry.name.startswith(("past_key.", "past_value.")):
            total += int(entry.shape[1]) * context * int(entry.shape[3]) * 4
    return total


def need(sizes: dict[str, Any], context: int, sequences: int, experts: int | None = None) -> int:
    """Bytes that an engine needs, estimated from what :func:`measure` found: ``experts`` of them (None: all), in
    contexts of ``context`` tokens for each of ``sequences``.
    """
    each = list(sizes["experts"].values())
    count = len(each) if experts is None else experts
    scale = sequences * context / (sizes["context"] * sizes["sequences"])
    per_expert = max(e.get("adapter", 0) + scale * e["kv"] + OVERHEAD for e in each)
    models = sum(e.get("weights", 0) for e in each)
    router = sizes["router"] + scale * sizes.get("router_kv", 0)
    return int(sizes["base"] + models + router + count * per_expert)
