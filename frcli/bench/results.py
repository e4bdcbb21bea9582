"""From what was measured to the numbers that are shown: one document, as ``frcli bench -o json`` writes it.

    machine      where it was measured
    bundle       what was measured
    settings     how
    runs         each configuration: tokens per second for prompt (pp) and generation (tg), by repetition
    calls        milliseconds of one call with one token: the router's (t_r), each expert's (t_e)
    split        milliseconds of a token by part, for each fused configuration
    memory       bytes by part
    start        seconds that fresh processes take
    same_tokens  at how many prompts the tokens were other ones than without drafts, and how near to a tie
    skipped      what was not measured although it was asked for, and why
    ratios       what the project promises about, each a median of the repetitions' own ratios

What was not measured is not there.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frcli.bench.idle import FEW, MANY
from frcli.bench.measure import Measured
from frcli.bench.peers import BareRun
from frcli.bench.plan import Plan, Prompt, fused_name
from frcli.bench.recording import MS, Recording, catch_up, counts, generating, prompt_rate, rate, split
from frcli.bench.spread import Spread, ratio, significant, spread
from frcli.bundle import Bundle
from frcli.decode.draft import OFF

Speeds = list[float | None]


def document(
    bundle: Bundle,
    machine: dict[str, Any],
    engine: dict[str, Any],
    plan: Plan,
    prompts: Sequence[Prompt],
    measured: Measured,
    **more: dict[str, Any],
) -> dict[str, Any]:
    """The whole document. ``engine`` says how the engine was set, ``more`` are further parts by name; empty parts are
    left out.
    """
    table = bundle.manifest.router
    parts = {
        "machine": machine,
        "bundle": {
            "name": bundle.name,
            "base": Path(bundle.manifest.base.file).name,
            "experts": list(bundle.experts),
            "router": table.precision if table else None,
        },
        "settings": settings(plan, prompts) | engine,
        "runs": runs(measured, plan),
        "calls": calls(measured),
        "split": splits(measured, plan),
        **more,
        "ratios": ratios(measured, plan),
    }
    return {name: part for name, part in parts.items() if part}


def settings(plan: Plan, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How it was measured."""
    lengths = sorted(len(prompt.tokens) for prompt in prompts)
    sampling = plan.sampling(1, 0)
    return {
        "repetitions": plan.repetitions,
        "tokens": plan.tokens,
        "ignore_end": plan.ignore_end,
        "prompts": dict(Counter(prompt.file or "built in" for prompt in prompts)),
        "prompt_tokens": {"low": lengths[0], "median": statistics.median(lengths), "high": lengths[-1]},
        "temperatures": list(plan.temperatures),
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": plan.seed,
        "sequences": list(plan.sequences),
        "draft": plan.draft,
    }


def runs(measured: Measured, plan: Plan) -> list[dict[str, Any]]:
    """Each configuration with its speeds, what made its tokens, and how it was set."""
    found = []
    for (name, temperature), bare in measured.bare.items():
        pp = [_rate(runs, lambda run: run.prompt_tokens, lambda run: run.first) for runs in bare]
        found.append({"name": f"{name} alone", "expert": name, "temperature": temperature} | _speeds(pp, _tg(bare)))
    for (draft, temperature), fused in measured.fused.items():
        row = {"name": fused_name(draft), "draft": draft, "sequences": 1, "temperature": temperature}
        pp, tg = [prompt_rate(recordings) for recordings in fused], [rate(generating(r)) for r in fused]
        found.append(row | _speeds(pp, tg) | counts([r for recordings in fused for r in recordings]))
    for (sequences, temperature), batch in measured.batch.items():
        row = {"name": plan.batch_name(sequences), "draft": plan.drafts[-1]}
        row |= {"sequences": sequences, "temperature": temperature}
        tg = [rate(generating(recordings, sequences)) for recordings in batch]
        whole = spread(_whole_rate(recordings) for recordings in batch)
        row |= _speeds([], tg) | ({"whole": whole.plain()} if whole else {})
        found.append(row | counts([r for recordings in batch for r in recordings]))
    if measured.peer:
        first = measured.peer[0]
        row = {"name": "llama-bench (base)", "build": first.build, "model": first.model, "threads": first.threads}
        found.append(row | _speeds([peer.pp for peer in measured.peer], [peer.tg for peer in measured.peer]))
    return found


def _speeds(pp: Speeds, tg: Speeds) -> dict[str, Any]:
    """``pp`` and ``tg`` with their spread and the numbers that it is of (null: nothing to measure it by)."""
    row: dict[str, Any] = {}
    for key, values in (("pp", pp), ("tg", tg)):
        if known := spread(values):
            each = [None if value is None else significant(value) for value in values]
            row[key] = {**known.plain(), "each": each}
    return row


def _rate(runs: Sequence[BareRun], tokens: Any, seconds: Any) -> float | None:
    total = sum(seconds(run) for run in runs)
    return sum(tokens(run) for run in runs) / total if total > 0 else None


def _whole_rate(recordings: Sequence[Recording]) -> float | None:
    """Tokens per second of everything: prompts are read, and at the end fewer answers are written at once."""
    seconds = sum(recording.ended - recording.began for recording in recordings)
    return sum(len(recording.events) for recording in recordings) / seconds if seconds > 0 else None


def calls(measured: Measured) -> dict[str, Any]:
    """Milliseconds of a bare call with one token: for each repetition the median, and of these the spread."""
    found: dict[str, Any] = {}
    if known := spread(_call_times(measured.router)):
        found["router"] = _milliseconds(known)
    for (name, _), bare in measured.bare.items():  # the temperature does not matter to a call
        each = [_median([t for run in runs for t in run.calls]) for runs in bare]
        if (known := spread(each)) and name not in found:
            found[name] = _milliseconds(known)
    return found


def _milliseconds(seconds: Spread) -> dict[str, Any]:
    return Spread(seconds.median * MS, seconds.low * MS, seconds.high * MS, seconds.repetitions).plain()


def _call_times(runs: Sequence[BareRun]) -> Speeds:
    return [_median(run.calls) for run in runs]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def splits(measured: Measured, plan: Plan) -> list[dict[str, Any]]:
    """The cost of a token by part, of the repetition whose time per token is the median (the lower one of two)."""
    found = []
    for (draft, temperature), fused in measured.fused.items():
        row = {"name": fused_name(draft), "temperature": temperature}
        found.append((row, [split(generating(recordings)) for recordings in fused]))
    for (sequences, temperature), batch in measured.batch.items():
        row = {"name": plan.batch_name(sequences), "temperature": temperature}
        found.append((row, [split(generating(recordings, sequences)) for recordings in batch]))
    shown = []
    for row, parts in found:
        known = sorted((part for part in parts if part is not None), key=lambda part: part["total"])
        if known:
            shown.append({**row, **known[(len(known) - 1) // 2]})
    return shown


def busiest(measured: Measured, plan: Plan, experts: Sequence[str]) -> list[str]:
    """The two experts that wrote most without drafts, the first of the bundle's in a tie."""
    written = Counter(
        name
        for recordings in measured.fused[OFF, plan.temperatures[0]]
        for recording in recordings
        for event in recording.events
        for name in event.step.experts
    )
    return sorted(experts, key=lambda name: (-written[name], experts.index(name)))[:FEW]


def ratios(measured: Measured, plan: Plan) -> dict[str, Any]:
    """The ratios that the project holds itself to; for a second temperature T the name is followed by ``@T``.

    ``overhead``: what a token of the fused system without drafts would take if nothing but the calls took time,
    ``t_r + t_e`` of the expert that wrote it, over what it took. Catch-up is in the second only.
    ``overhead_without_catch_up``: the same, the estimated time of catch-up taken off.
    ``draft_vs_expert``: speed with drafts over that of the experts alone, by the share of the tokens that each wrote.
    ``draft_vs_fastest_expert``: the same over the fastest expert alone.
    ``draft_vs_fused``: speed with drafts over that without.
    ``idle_experts``: time per token of eight experts over that of two.
    ``batch16_vs_1``: tokens per second of sixteen answers at once over those of one; other numbers likewise.
    """
    found: dict[str, Spread | None] = {}
    for temperature in plan.temperatures:
        mark = "" if temperature == plan.temperatures[0] else f"@{temperature:g}"
        for name, value in _at_temperature(measured, plan, temperature).items():
            found[name + mark] = value
    if measured.idle:
        found["idle_experts"] = ratio(measured.idle[MANY], measured.idle[FEW])
    return {name: value.plain() for name, value in found.items() if value is not None}


def _at_temperature(measured: Measured, plan: Plan, temperature: float) -> dict[str, Spread | None]:
    found: dict[str, Spread | None] = {}
    plain = measured.fused.get((OFF, temperature), [])
    repetitions = range(len(plain))
    alone = {name: speeds for (name, t), bare in measured.bare.items() if t == temperature for speeds in [_tg(bare)]}
    limits = [_limit(measured, plain[r], temperature, r) for r in repetitions]
    found["overhead"] = ratio([limit[0] for limit in limits], [limit[1] for limit in limits])
    found["overhead_without_catch_up"] = ratio([limit[0] for limit in limits], [limit[2] for limit in limits])
    for draft in plan.drafts[1:]:
        drafting = [rate(generating(recordings)) for recordings in measured.fused.get((draft, temperature), [])]
        found["draft_vs_fused"] = ratio(drafting, [rate(generating(recordings)) for recordings in plain])
        weighted = [_by_share(plain[r], {name: speeds[r] for name, speeds in alone.items()}) for r in repetitions]
        found["draft_vs_expert"] = ratio(drafting, weighted)
        fastest = [max((s[r] or 0.0 for s in alone.values()), default=None) for r in repetitions]
        found["draft_vs_fastest_expert"] = ratio(drafting, fastest)
    one = measured.batch.get((1, temperature))
    for (sequences, t), batch in measured.batch.items():
        if t == temperature and sequences > 1 and one:
            many = [rate(generating(recordings, sequences)) for recordings in batch]
            found[f"batch{sequences}_vs_1"] = ratio(many, [rate(generating(recordings)) for recordings in one])
    return found


def _tg(bare: Sequence[Sequence[BareRun]]) -> Speeds:
    return [_rate(runs, lambda run: len(run.tokens) - 1, lambda run: run.generation) for runs in bare]


def _limit(
    measured: Measured, recordings: Sequence[Recording], temperature: float, repetition: int
) -> tuple[float | None, float | None, float | None]:
    """Seconds that these tokens take at the sequential limit, that they took, and that they took without catch-up."""
    steps = generating(recordings)
    router = _median(measured.router[repetition].calls) if repetition < len(measured.router) else None
    needs_router = any(step.weights is not None for turn in steps for step in turn.steps)
    if needs_router and router is None:
        return None, None, None
    single: dict[str, float] = {}
    for (name, t), bare in measured.bare.items():
        if t == temperature and (value := _median([c for run in bare[repetition] for c in run.calls])) is not None:
            single[name] = value
    limit = 0.0
    for turn in steps:
        for step in turn.steps:
            if any(name not in single for name in step.experts):
                return None, None, None
            limit += (router if needs_router and router else 0.0) + sum(single[name] for name in step.experts)
    took = sum(turn.seconds for turn in steps)
    return limit, took, took - catch_up(steps)


def _by_share(recordings: Sequence[Recording], speeds: dict[str, float | None]) -> float | None:
    """Tokens per second when each expert alone writes the share of tokens that it wrote here."""
    written = Counter(name for recording in recordings for event in recording.events for name in event.step.experts)
    seconds = 0.0
    for name, count in written.items():
        speed = speeds.get(name)
        if not speed:
            return None
        seconds += count / speed
    return sum(written.values()) / seconds if seconds > 0 else None
