"""How fast fused decoding is at the sizes that people run: an 8B expert and a 1B router, computed from measured costs.

    python benchmarks/user_sizes.py FOLDER --out benchmarks/user_sizes.json --plot benchmarks/user_sizes.svg

Writes the two models with random weights into FOLDER (5.6 GB, used again by the next run), measures what a call of n
tokens costs behind a prefix, the router and the expert taking turns as in decoding, and puts the medians into the
formula for the tokens per second. With acceptance a (each draft is accepted with this probability as long as those
before it were) and k drafts, a window gives 1 + a + ... + a^k tokens. It costs

    (k + 1) t_r(1) + t_e(k + 1)   when the router drafts: each draft is a step of its own, and one more step gives the
                                  router's row for the position behind the last draft
    t_r(k + 1) + t_e(k + 1)       when a drafter that costs nothing drafts, and the router reads the window at once

k = 0 is decoding without drafts: both are then t_r(1) + t_e(1). No text is written and none is accepted: the speeds are
computed, and say nothing of the acceptance that a router reaches; they are those of text that one expert writes, for a
window that spans several experts runs each of them. As a check of the sum, some whole windows are timed too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import random_llama
import speed_plot

from converters.decoder import DecoderConfig
from converters.output import refuse_existing, staging
from frcli.bench.machine import processor, total_memory, versions
from frcli.errors import FrcliError, ModelError, UsageError
from frcli.sources.devices import physical_cores
from frcli.sources.source import Feed, LogitSource

ROUTER, FREE = "router", "free"  # who drafts: the router itself, or a drafter that costs nothing
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
WINDOWS = (1, 2, 4, 8)  # numbers of drafts that are drawn as lines, and whose windows are timed as a whole
EXPERTS = ("first", "second", "third", "fourth")
GIB = 1 << 30


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int, tied: bool) -> DecoderConfig:
    factors = (1.0,) * (head_dim // 2)
    return DecoderConfig(hidden, layers, heads, kv_heads, head_dim, ffn, 128256, 1e-5, 500000.0, factors, tied, 4096)


EXPERT = _llama(32, 4096, 32, 8, 128, 14336, tied=False)  # Llama-3.1-8B
ROUTER_SHAPE = _llama(16, 2048, 32, 8, 64, 8192, tied=True)  # Llama-3.2-1B


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a call by the number of its tokens, and of an expert's one-token step without a router beside it."""

    expert: Mapping[int, float]
    router: Mapping[int, float]
    alone: float

    def window(self, drafter: str, k: int) -> float:
        """Return the seconds of a window of ``k`` drafts."""
        reading = (k + 1) * self.router[1] if drafter == ROUTER else self.router[k + 1]
        return reading + self.expert[k + 1]


def tokens_per_window(acceptance: float, k: int) -> float:
    """Return 1 + a + ... + a^k, the expected tokens of a window of ``k`` drafts."""
    return sum(acceptance**i for i in range(k + 1))


def speed(costs: Costs, drafter: str, acceptance: float, k: int) -> dict[str, Any]:
    """Return tokens per second, and what they are to one expert alone and to the sequential limit."""
    tokens, seconds = tokens_per_window(acceptance, k), costs.window(drafter, k)
    return {
        "drafter": drafter,
        "acceptance": acceptance,
        "k": k,
        "tokens_per_window": tokens,
        "seconds_per_window": seconds,
        "tokens_per_second": tokens / seconds,
        "over_expert_alone": tokens / seconds * costs.alone,
        "over_sequential_limit": tokens / seconds * (costs.router[1] + costs.expert[1]),
    }


def best(costs: Costs, drafter: str, acceptance: float) -> dict[str, Any]:
    """Return the :func:`speed` of the number of drafts that is fastest at this acceptance, 0 drafts among them."""
    return max((speed(costs, drafter, acceptance, k - 1) for k in costs.expert), key=lambda s: s["tokens_per_second"])


def measure(
    expert: LogitSource,
    router: LogitSource,
    *,
    prefix: int,
    drafts: int,
    repeats: int,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the seconds of every repetition: ``expert`` and ``router`` by tokens of a call, ``alone``, ``windows``.

    Router and expert take turns, sizes come in another order in each repetition, and two repetitions before the first
    that counts make the buffers. Each call reads behind the same ``prefix`` tokens and gives a row for each token that
    it reads, as verifying does. Raises ``ModelError`` when a model gives logits that are not finite.
    """
    draw = random.Random(seed)
    text = [draw.randrange(256, expert.width - 2) for _ in range(prefix + drafts + 1)]
    for source, name in ((router, "router"), (expert, "expert")):
        read_text(source, text[:prefix], name)
        say(f"the {name} has read {prefix} tokens")

    def call(source: LogitSource, n: int) -> float:
        source.rewind(0, prefix)
        start = time.perf_counter()
        source.extend([Feed(0, text[prefix : prefix + n], rows=n)])
        return time.perf_counter() - start

    def window(k: int) -> float:
        router.rewind(0, prefix)
        expert.rewind(0, prefix)
        start = time.perf_counter()
        for token in text[prefix : prefix + k + 1]:
            router.extend([Feed(0, [token])])
        expert.extend([Feed(0, text[prefix : prefix + k + 1], rows=k + 1)])
        return time.perf_counter() - start

    sizes = list(range(1, drafts + 2))
    windows = [k for k in WINDOWS if k <= drafts]
    seconds: dict[str, Any] = {"expert": {n: [] for n in sizes}, "router": {n: [] for n in sizes}}
    seconds |= {"windows": {k: [] for k in windows}, "alone": []}
    for repeat in range(-2, repeats):
        done: dict[str, Any] = {"expert": {}, "router": {}, "windows": {}}
        for n in draw.sample(sizes, len(sizes)):
            done["router"][n] = call(router, n)
            done["expert"][n] = call(expert, n)
        for k in draw.sample(windows, len(windows)):
            done["windows"][k] = window(k)
        call(expert, 1)  # what comes after it is a step behind a step of its own, as when one expert decodes alone
        done["alone"] = call(expert, 1)
        if repeat < 0:
            continue
        for kind in ("expert", "router", "windows"):
            for size, took in done[kind].items():
                seconds[kind][size].append(took)
        seconds["alone"].append(done["alone"])
        say(f"repetition {repeat + 1} of {repeats}")
    return seconds


def read_text(source: LogitSource, tokens: Sequence[int], name: str) -> None:
    """Read ``tokens`` from the beginning; raises ``ModelError`` if the row behind them is not finite."""
    import numpy as np

    source.rewind(0, 0)
    (rows,) = source.extend([Feed(0, tokens)])
    parts = [rows.logits] if rows.weights is None else [rows.logits, rows.weights]
    if len(rows.logits) != 1 or not all(np.isfinite(part).all() and np.ptp(part) > 0 for part in parts):
        raise ModelError(f"the {name} of random weights gives no finite logits", "write it again")


def medians(seconds: Mapping[str, Any]) -> Costs:
    """Return the median costs of what :func:`measure` returned."""
    expert, router = (
        {n: statistics.median(took) for n, took in seconds[kind].items()} for kind in ("expert", "router")
    )
    return Costs(expert, router, statistics.median(seconds["alone"]))


def report(seconds: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes into the JSON file: machine, settings, costs, and the speeds computed from their medians."""
    costs = medians(seconds)
    windows = {}
    for k, took in seconds["windows"].items():
        measured, computed = summary(took), costs.window(ROUTER, k)
        windows[k] = {"measured": measured, "computed": computed, "ratio": measured["median"] / computed}
    return {
        "what": "speeds computed from measured costs; models of random weights, no text was written",
        "machine": machine(),
        "settings": dict(settings),
        "seconds": {
            **{kind: {n: summary(took) for n, took in seconds[kind].items()} for kind in ("expert", "router")},
            "expert_alone": summary(seconds["alone"]),
        },
        "windows": windows,
        "tokens_per_second": {
            "expert_alone": 1 / costs.alone,
            "sequential_limit": 1 / (costs.router[1] + costs.expert[1]),
        },
        "speeds": [
            speed(costs, drafter, acceptance, size - 1)
            for drafter in (ROUTER, FREE)
            for acceptance in ACCEPTANCES
            for size in costs.expert
        ],
        "best": [best(costs, drafter, acceptance) for drafter in (ROUTER, FREE) for acceptance in ACCEPTANCES],
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def plot(costs: Costs, result: Mapping[str, Any]) -> str:
    """Return the SVG of the speed over one expert alone, for the costs and the machine that ``result`` describes."""
    fine = [step / 100 for step in range(round(100 * ACCEPTANCES[0]), round(100 * ACCEPTANCES[-1]) + 1)]
    ends = (fine[0], fine[-1])
    limit = costs.alone / (costs.router[1] + costs.expert[1])
    panels = []
    for drafter, title in ((ROUTER, "the router drafts"), (FREE, "a drafter that costs nothing")):
        marks = [best(costs, drafter, acceptance) for acceptance in ACCEPTANCES]
        lines = [
            speed_plot.Line("one expert alone", "rule", [(a, 1.0) for a in ends]),
            speed_plot.Line("no drafts (sequential limit)", "limit", [(a, limit) for a in ends]),
        ]
        for colour, k in enumerate(k for k in WINDOWS if k + 1 in costs.expert):
            curve = [(a, speed(costs, drafter, a, k)["over_expert_alone"]) for a in fine]
            lines.append(speed_plot.Line(f"{k} draft{'s' if k > 1 else ''}", colour, curve))
        curve = [(a, best(costs, drafter, a)["over_expert_alone"]) for a in fine]
        notes = [((mark["acceptance"], mark["over_expert_alone"]), str(mark["k"])) for mark in marks]
        lines.append(speed_plot.Line("best number of drafts (written at the dots)", "main", curve, notes))
        panels.append(speed_plot.Panel(title, lines))
    expert, router, host = result["settings"]["expert"], result["settings"]["router"], result["machine"]
    models = (("Expert", expert, costs.alone), ("Router", router, costs.router[1]))
    subtitles = [
        *(
            f"{name}: {part['layers']} layers of {part['hidden']}, {part['stored']}: {1e3 * cost:.3g} ms a token."
            for name, part, cost in models
        ),
        f"Computed from measured costs on {host['physical_cores']} cores of {host['processor']}; random weights, "
        "no text was written.",
    ]
    return speed_plot.draw(
        "Speed of fused decoding over one expert alone, computed from measured costs",
        subtitles,
        panels,
        "share of drafts accepted",
        "tokens per second, one expert alone = 1",
        ACCEPTANCES,
    )


def machine() -> dict[str, Any]:
    """Return what is needed to judge the numbers: processor, memory, system and versions."""
    memory = total_memory()
    return {
        "processor": processor(),
        "physical_cores": physical_cores(),
        "memory_gib": memory and round(memory / GIB, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with command-line arguments."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except FrcliError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the models are, or are to be written")
    parser.add_argument("--out", type=Path, help="JSON file for the result (default: stdout)")
    parser.add_argument("--plot", type=Path, help="SVG file for the plot")
    parser.add_argument(
        "--check", action="store_true", help="write and load the models, read a prefix, measure nothing"
    )
    parser.add_argument("--repeats", type=int, default=15, help="repetitions that count; their median is taken")
    parser.add_argument("--prefix", type=int, default=256, help="tokens before those of a call")
    parser.add_argument("--drafts", type=int, default=8, help="largest number of drafts")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="of each runtime; they take turns")
    names = "layers, hidden, heads, kv_heads, head_dim, ffn, context"
    for model in ("expert", "router"):
        parser.add_argument(f"--{model}", default="", help=f"other sizes, such as layers=8,ffn=4096; of {names}")
    parser.add_argument("--vocab", type=int, default=EXPERT.vocab, help="tokens in the vocabulary of both")
    return parser


def _run(options: argparse.Namespace) -> None:
    expert_shape = _changed(EXPERT, options.expert, options.vocab)
    router_shape = _changed(ROUTER_SHAPE, options.router, options.vocab)
    context = min(expert_shape.context, router_shape.context)
    if options.repeats < 1 or options.drafts < 1 or options.threads < 1 or options.prefix < 1:
        raise UsageError("repeats, drafts, threads and prefix are at least 1")
    if options.prefix + options.drafts + 1 > context:
        raise UsageError(
            f"{options.prefix} tokens and {options.drafts} drafts do not fit in a context of {context}",
            "give fewer or a larger context",
        )
    for path in filter(None, (options.out, options.plot)):
        refuse_existing(path, force=True)
    _say("writing the models, unless they are there")
    gguf, onnx = random_llama.write_models(options.folder, expert_shape, router_shape, EXPERTS)
    settings = {
        "expert": _described(expert_shape, gguf, "Q4_0, output Q6_K"),
        "router": _described(router_shape, onnx, "int4, embedding and head int8") | {"experts": len(EXPERTS)},
        **{name: getattr(options, name) for name in ("prefix", "drafts", "repeats", "threads")},
    }

    from frcli.sources.llama import LlamaModel, LlamaSource
    from frcli.sources.onnx import OnnxRouter

    _say("loading the models")
    router = OnnxRouter(onnx, context=context, threads=options.threads)
    model = LlamaModel(gguf)
    expert = LlamaSource(model, context=context, threads=options.threads, max_rows=options.drafts + 1)
    try:
        if options.check:
            for source, name in ((router, "router"), (expert, "expert")):
                read_text(source, range(256, 256 + options.prefix), name)
                _say(f"the {name} gives a finite row behind {options.prefix} tokens")
            return
        seconds = measure(
            expert, router, prefix=options.prefix, drafts=options.drafts, repeats=options.repeats, say=_say
        )
    finally:
        expert.close()
        model.close()
        router.close()
    result = report(seconds, settings)
    text = json.dumps(rounded(result), indent=1) + "\n"
    if options.out:
        write(options.out, text)
    else:
        print(text, end="")
    if options.plot:
        write(options.plot, plot(medians(seconds), result))


def _changed(shape: DecoderConfig, text: str, vocab: int) -> DecoderConfig:
    """Return ``shape`` with the sizes that ``text`` names, such as ``layers=2,ffn=96``."""
    sizes = {"vocab": vocab}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "context") or not value.isdecimal():
            raise UsageError(f"{part!r} names no size of a model", "write it as layers=8")
        sizes["intermediate" if name == "ffn" else name] = int(value)
    factors = (1.0,) * (sizes.get("head_dim", shape.head_dim) // 2)
    return dataclasses.replace(shape, **sizes, rope_factors=factors)  # type: ignore[arg-type]


def _described(shape: DecoderConfig, file: Path, stored: str) -> dict[str, Any]:
    sizes = {name: value for name, value in dataclasses.asdict(shape).items() if not name.startswith(("rope", "rms"))}
    return {**sizes, "stored": stored, "file_bytes": file.stat().st_size}


def rounded(value: Any) -> Any:
    """Return ``value`` with its floats cut to six digits: what is measured is not known better."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write(path: Path, text: str) -> None:
    with staging(path, force=True) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
