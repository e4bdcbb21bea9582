"""What Dynamic Logit Fusion does on real logits, and what steering costs when the small model drafts.

    python benchmarks/dlf.py text BUNDLE --data math=gsm8k_dev.jsonl@0:20 --data code=... --out benchmarks/dlf_text.json
    python benchmarks/dlf.py speed FOLDER --text benchmarks/dlf_text.json --out benchmarks/dlf_speed.json

``text`` answers prompts greedily under ``dlf``, each expert alone on its own data and all of them on all data, and
counts: tokens whose search was skipped, tokens that proxy tuning (alpha = 1) would have chosen otherwise, tokens for
which the paper's grid finds another one, and drafts that were accepted. No package index has a large model of the
bundle's vocabulary, so its router stands in for one: a model of its own that is better than the base, and no larger.

``speed`` measures what a call of n tokens costs for an 8B and a 1B Llama of random weights, both in llama.cpp, and
computes what a token costs over the large model alone. With acceptance a and k drafts a window gives 1 + a + ... + a^k
tokens and costs (k + 1) t_S(1) for the expert that drafts, t_S(k + 1) for each other small model, t_L(k + 1) for the
large one, and the fusing of each token that is decided.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import random_llama
import user_sizes

from frcli.bundle import read_bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Decoder
from frcli.decode.sampler import Sampling
from frcli.examples import encode_examples, read_examples
from frcli.fusion.alpha import grid_alpha, shift
from frcli.fusion.policy import BASE, LARGE, Policy, Prompt
from frcli.fusion.steering import DynamicLogitFusion, moved
from frcli.sources.devices import physical_cores
from frcli.sources.source import Logits

DRAFTS = (1, 2, 3, 4, 6, 8)


class Watched(Policy):
    """Dynamic Logit Fusion that counts what it does at each token that is decided."""

    name = "dlf"

    def __init__(self, inner: DynamicLogitFusion, counts: Counter[str], spent: list[float]) -> None:
        self._inner, self._counts, self._spent = inner, counts, spent

    @property
    def drafter(self) -> str:
        return self._inner.drafter

    def for_prompt(self, prompt: Prompt) -> Watched:
        return Watched(self._inner.for_prompt(prompt), self._counts, self._spent)

    def choose(self, weights: Logits | None) -> tuple[str, ...]:
        return self._inner.choose(weights)

    def fuse(self, rows: Mapping[str, Logits]) -> Logits:
        begin = time.perf_counter()
        fused = self._inner.fuse(rows)
        self._spent.append(time.perf_counter() - begin)
        acting, token = self._inner.act(rows), int(fused.argmax())
        large, base = rows[LARGE], rows[BASE]
        directions = {name: rows[name] - base for name in self._inner.experts}
        shifts = [shift(rows[name], base) for name in directions]
        target = tuple(statistics.fmean(part) for part in zip(*shifts, strict=True))
        found = {name: grid_alpha(large, direction, target) for name, direction in directions.items()}
        expert = min(found, key=lambda name: found[name][1])
        grid = moved(large, directions[expert], found[expert][0])
        proxy = moved(large, directions[acting.expert or expert], 1.0)
        self._counts["tokens"] += 1
        self._counts["skipped"] += acting.skipped
        self._counts["searched"] += not acting.skipped
        self._counts["unlike the large model"] += token != int(large.argmax())
        self._counts["unlike proxy tuning"] += token != int(proxy.argmax())
        self._counts["unlike the grid"] += token != int(grid.argmax())
        for low, high in ((0.0, 0.05), (0.05, 0.95), (0.95, 1.05), (1.05, 1.95), (1.95, 2.01)):
            if not acting.skipped and low <= acting.alpha < high:
                self._counts[f"alpha from {low} to {min(high, 2.0)}"] += 1
        return fused


def text(options: argparse.Namespace) -> dict[str, Any]:
    """Counts by expert on its own data, and of all experts on all data."""
    opened = read_bundle(options.bundle)
    data = dict(part.split("=", 1) for part in options.data)
    result: dict[str, Any] = {"what": "greedy answers; the router stands in for the large model", "data": data}
    with Engine(opened, Options(policy="fusionroute", context=1024, threads=options.threads, max_rows=64)) as engine:
        assert engine.template is not None and engine.router is not None
        prompts = {
            name: [each.prompt for each in encode_examples(read_examples(spec), engine.base, engine.template, 900)]
            for name, spec in data.items()
        }
        settings = {f"dlf:{name}": ((name,), prompts[name]) for name in data}
        settings["dlf"] = (tuple(data), [prompt for each in prompts.values() for prompt in each])
        for label, (experts, given) in settings.items():
            counts: Counter[str] = Counter()
            spent: list[float] = []
            decoder = Decoder(
                Watched(DynamicLogitFusion(experts), counts, spent),
                expert=lambda name: engine.router if name == LARGE else engine.expert(name),  # type: ignore[return-value]
                router=None,
                is_end=engine.base.is_end,
                width=engine.width,
                context=engine.context,
                drafts=options.drafts,
            )
            proposed = accepted = tested = 0
            for prompt in given:
                with engine.sampler(Sampling(temperature=0), prompt) as sampler:
                    window: tuple[int, int] | None = None
                    for step in decoder.generate(prompt, sampler, max_tokens=options.tokens):
                        if step.calls:  # the first token of a window
                            if window is not None:
                                tested += min(window[0], window[1] + 1)
                            window = step.proposed, 0
                        assert window is not None
                        window = window[0], window[1] + step.drafted
                        proposed += step.proposed
                        accepted += step.drafted
                    if window is not None:
                        tested += min(window[0], window[1] + 1)
            tokens = counts["tokens"]
            result[label] = {
                "tokens": tokens,
                "shares": {name: count / tokens for name, count in counts.items() if name != "tokens"},
                "acceptance": accepted / tested,
                "milliseconds_of_fusing": {
                    "mean": 1e3 * statistics.fmean(spent),
                    "median": 1e3 * statistics.median(spent),
                },
                "width": engine.width,
            }
            print(label, json.dumps(result[label]), file=sys.stderr, flush=True)
    return result


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Costs of calls, and of a token over the large model alone, by experts, acceptance and drafts."""
    from frcli.sources.llama import LlamaModel, LlamaSource

    shapes = {"large": user_sizes.EXPERT, "small": user_sizes.ROUTER_SHAPE}
    files = {name: options.folder / f"expert-{random_llama.stem(shape)}.gguf" for name, shape in shapes.items()}
    for name, path in files.items():
        if not path.exists():
            random_llama.write_expert(path, shapes[name], seed=1)
    models = {name: LlamaModel(path) for name, path in files.items()}
    sources = {
        name: LlamaSource(model, context=1024, threads=options.threads, max_rows=max(DRAFTS) + 1)
        for name, model in models.items()
    }
    seconds = user_sizes.measure(
        sources["large"],
        sources["small"],
        prefix=256,
        drafts=max(DRAFTS),
        repeats=options.repeats,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for source in sources.values():
        source.close()
    costs = user_sizes.medians(seconds)
    known = json.loads(Path(options.text).read_text())
    result: dict[str, Any] = {
        "what": "computed from measured costs; models of random weights, no text was written",
        "machine": user_sizes.machine(),
        "seconds": {"large": costs.expert, "small": costs.router, "large_alone": costs.alone},
        "over_large_alone": {},
    }
    for label, found in known.items():
        if not label.startswith("dlf"):
            continue
        experts = 1 if ":" in label else len(known["data"])
        # Fusing is linear in the width of the vocabulary.
        fusing = found["milliseconds_of_fusing"]["mean"] / 1e3 * shapes["large"].vocab / found["width"]
        plain = costs.expert[1] + (experts + 1) * costs.router[1] + fusing
        ratios = {0: plain / costs.alone}
        for k in DRAFTS:
            tokens = user_sizes.tokens_per_window(found["acceptance"], k)
            small = (k + 1) * costs.router[1] + experts * costs.router[k + 1]  # who drafts; the base and the others
            ratios[k] = (small + costs.expert[k + 1] + tokens * fusing) / tokens / costs.alone
        result["over_large_alone"][label] = {"experts": experts, "acceptance": found["acceptance"], "by_drafts": ratios}
    return result


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("text")
    one.add_argument("bundle", nargs="?", default="smollm2-quartet")
    one.add_argument("--data", action="append", required=True, metavar="EXPERT=PATH[@START:STOP]")
    one.add_argument("--tokens", type=int, default=96, help="of an answer at most")
    one.add_argument("--drafts", type=int, default=3)
    two = parts.add_parser("speed")
    two.add_argument("folder", type=Path, help="where the models are, or are to be written")
    two.add_argument("--text", required=True, help="what the other part has written")
    two.add_argument("--repeats", type=int, default=7)
    for part in (one, two):
        part.add_argument("--threads", type=int, default=physical_cores())
        part.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result = (text if options.part == "text" else speed)(options)
    user_sizes.write(options.out, json.dumps(user_sizes.rounded(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
