"""A whole bench, from a bundle to the document of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from frcli.bench import memory
from frcli.bench.engines import Engines
from frcli.bench.idle import FEW, MANY
from frcli.bench.machine import describe, resident_memory
from frcli.bench.measure import Bench, Measured, Report, measure_idle
from frcli.bench.plan import Plan, Prompt, context_for, encode_prompts
from frcli.bench.results import busiest, document
from frcli.bench.same import compare
from frcli.bench.spread import spread
from frcli.bench.start import first_token_seconds, help_seconds
from frcli.bundle import Bundle
from frcli.decode.draft import OFF
from frcli.decode.engine import Engine, Options
from frcli.errors import UsageError
from frcli.fusion.route import FusionRoute
from frcli.sources.devices import available_memory, cuda_router
from frcli.sources.llama import library


def run(
    bundle: Bundle, options: Options, plan: Plan, texts: Sequence[tuple[str, str]], report: Report
) -> tuple[dict[str, Any], Measured]:
    """Follow the plan on a bundle; the document of results, and what it was made from.

    ``options`` are the engine's but for drafts and sequences; their context is used for the figures of memory (None:
    the bundle's), and for the rest as well if it is given. ``texts`` are prompts with the names of their files.
    """
    plan.check()
    machine = describe()
    library(), cuda_router()  # both libraries belong to the program, not to the bundle's memory
    begin = resident_memory()
    report("opening", bundle.name, 0, 0)
    with Engine(bundle, replace(options, draft=plan.draft, sequences=1)) as engine:
        prompts = encode_prompts(texts, engine)
        context = context_for(prompts, plan.tokens, options.context, engine.base.trained_context)
        policy, threads = engine.policy, engine.threads
        report("opening", "memory", 0, 0)
        sizes = memory.measure(engine, Prompt(prompts[0].tokens[: engine.context // 2]), begin)
    options = replace(options, context=context)
    skipped: dict[str, str] = {}
    plan, roomy = _that_fits(plan, sizes, context, skipped)
    with Engines(bundle, options, min(prompts, key=lambda prompt: len(prompt.tokens)), roomy=roomy) as engines:
        bench = Bench(engines, bundle, plan, prompts)
        bench.run(report)
        report("comparing", "tokens", 0, 0)
        same = compare(engines, plan, prompts, bench.measured)
    if plan.idle:
        if (reason := _no_idle(bundle, policy, sizes, context)) is None:
            busy = busiest(bench.measured, plan, bundle.experts)
            bench.measured.idle = measure_idle(bundle, options, plan, prompts, busy, report)
        else:
            skipped["idle_experts"] = reason
    start = _start(bundle, plan, threads, report) if plan.start else {}
    used = {"policy": policy.name, "threads": threads, "context": context, "interleaved": roomy}
    used |= {"gamma": policy.gamma, "sharp": policy.sharp} if isinstance(policy, FusionRoute) else {}
    parts = {"memory": sizes, "start": start, "same_tokens": same, "skipped": skipped}
    return document(bundle, machine, used, plan, prompts, bench.measured, **parts), bench.measured


def _that_fits(plan: Plan, sizes: dict[str, Any], context: int, skipped: dict[str, str]) -> tuple[Plan, bool]:
    """The plan without what needs more memory than there is, and whether all engines can be open at once."""
    free = available_memory()
    engines = {(draft, 1) for draft in plan.drafts} | {(plan.drafts[-1], n) for n in plan.sequences}
    needs = {key: memory.need(sizes, context, key[1]) for key in engines}
    small = tuple(n for n in plan.sequences if needs[plan.drafts[-1], n] < free)
    for n in set(plan.sequences) - set(small):
        skipped[f"{n} at once"] = "there is too little memory"
    if needs[OFF, 1] > free:
        raise UsageError("there is too little memory for this bundle", "close other programs")
    wanted = {key for key in engines if key[1] == 1 or key[1] in small}
    return replace(plan, sequences=small), sum(needs[key] for key in wanted) < free / 2


def _no_idle(bundle: Bundle, policy: object, sizes: dict[str, Any], context: int) -> str | None:
    """Why idle experts cannot be measured, None when they can."""
    if not isinstance(policy, FusionRoute):
        return "the policy does not choose one expert"
    if len(bundle.experts) < FEW:
        return f"there are less than {FEW} experts"
    if memory.need(sizes, context, 1, FEW) + memory.need(sizes, context, 1, MANY) > available_memory():
        return "there is too little memory"
    return None


def _start(bundle: Bundle, plan: Plan, threads: int, report: Report) -> dict[str, Any]:
    """Seconds of fresh processes; the first of each, which may find cold files, does not count."""
    taken: dict[str, list[float]] = {"frcli --help": [], "first token": []}
    for repetition in range(plan.repetitions + 1):
        report("start", "fresh processes", repetition, plan.repetitions + 1)
        taken["frcli --help"].append(help_seconds())
        taken["first token"].append(first_token_seconds(str(bundle.folder), threads))
    return {name: found.plain() for name, seconds in taken.items() if (found := spread(seconds[1:]))}
