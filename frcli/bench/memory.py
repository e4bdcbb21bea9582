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
from frcli.sources.llama_log import MIB, listening
from frcli.sources.needs import kv_bytes, router_of
from frcli.sources.shape import read_shape

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
            "kv": sum(kv_bytes(read_shape(loaded_model(engine, name).path), engine.plan.running)),
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
        "router_kv": routed.token * engine.context if engine.router and (routed := router_of(bundle)) else None,
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
