"""Random combinations of policy, sampling and length: the same tokens with drafts and without, alone and in batch?

    python benchmarks/agreement.py --combinations 200 --seed 1 -o agreement.json
    python benchmarks/agreement.py --only 17 --seed 1

Tiny bundles of two, three and five experts with a large model are made, one of them with a gate. Each combination
draws a policy with its settings, how to sample (greedy or not, filters, penalties, biases, a grammar, stops), how long
the prompts and the answers are, and how many tokens are drafted; its eight prompts are answered without drafts one by
one, and then with drafts, eight at once, and both. All four must give the same tokens and end for the same reason.

Caches are in float32, where sums differ in their last bits only (``NEAR``); half of the greedy combinations have them
in float16, as users do, where attention differs more with the shape of a call (``NEAR_F16``). Tokens may differ where
their fused logits are nearer to each other than that (a near-tie, counted apart); what differs otherwise is a failure,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny
from bundles import write_bundle

from frcli.bench.same import explain
from frcli.bundle import Bundle
from frcli.decode.answer import Answer
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling
from frcli.files import save

NEAR, NEAR_F16 = 1e-4, 3e-2  # logits
PROMPTS = 8
_EXPERTS = ("general", "math", "code", "logic", "law")
_WORDS = ("hello", "the", "world", "and", "a", "list", "of", "1", "2", "3", "end")
_GRAMMARS = ('root ::= ([a-z]+ " ")+', 'root ::= "{" [0-9]+ ("," [0-9]+)* "}"', "root ::= [ -~]+")


@dataclass(frozen=True)
class Combination:
    """What is tried: a bundle by its number, options of the engine, and how the prompts are answered."""

    bundle: int
    policy: str
    gamma: float
    sharp: bool
    context: int
    kv_type: str
    draft: int
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...]
    prompts: tuple[str, ...]


def make_bundles(folder: Path) -> list[Bundle]:
    """The bundles that combinations draw from."""
    made = []
    for count, gate in ((2, None), (3, None), (3, -0.3), (5, None)):
        name = f"bundle{len(made)}"
        large = '[large]\nfile = "large.gguf"\n'
        made.append(write_bundle(folder / name, _EXPERTS[:count], extra=large, gate_bias=gate))
        tiny.write_gguf(made[-1].folder / "large.gguf", tiny.TinyShape(hidden=96, heads=6, kv_heads=3), seed=9)
    return made


def draw(bundles: list[Bundle], seed: int, number: int) -> Combination:
    """The combination of that number."""
    chance = random.Random(f"{seed} {number}")
    which = chance.randrange(len(bundles))
    trained = [name for name in bundles[which].experts if name != "general"]
    one, other = chance.choice(trained), chance.choice(("general", *trained))
    some = ",".join(sorted(chance.sample(bundles[which].experts, 2)))
    policy = chance.choice(
        (
            "fusionroute",
            "fusionroute",
            "prompt-router",
            f"expert:{other}",
            "sum",
            f"sum:{some}",
            f"packllm,tau={chance.choice((0.1, 1, 5))}",
            f"topk-union:{some},k={chance.choice((1, 5, 20))}",
            f"proxy:{one},alpha={chance.choice((0.5, 1, 1.5))}",
            "dlf",
            f"dlf:{one}",
            f"contrast:{one},alpha={chance.choice((0.01, 0.1, 0.5))}",
        )
    )
    greedy = chance.random() < 0.5
    sampling = Sampling(
        temperature=0 if greedy else chance.choice((0.3, 0.8, 1.2, 2.0)),
        top_k=chance.choice((0, 1, 5, 40)),
        top_p=chance.choice((0.5, 0.95, 1.0)),
        min_p=chance.choice((0.0, 0.05, 0.3)),
        typical_p=chance.choice((0.7, 1.0, 1.0)),
        repeat_penalty=chance.choice((1.0, 1.0, 1.3)),
        presence_penalty=chance.choice((0.0, 0.0, 0.5)),
        frequency_penalty=chance.choice((0.0, 0.0, 0.5)),
        penalty_last_n=chance.choice((8, 64, -1)),
        dry_multiplier=chance.choice((0.0, 0.0, 0.8)),
        xtc_probability=0.0 if greedy else chance.choice((0.0, 0.0, 0.5)),
        seed=chance.randrange(1 << 31),
        logit_bias={chance.randrange(20, 60): chance.choice((-20.0, 4.0))} if chance.random() < 0.3 else {},
        grammar=chance.choice(_GRAMMARS) if chance.random() < 0.2 else "",
    )
    words = chance.choice((1, 6, 30))
    return Combination(
        bundle=which,
        policy=policy,
        gamma=chance.choice((0.0, 0.5, 1.0)),
        sharp=chance.random() < 0.2,
        context=chance.choice((128, 256)),
        kv_type="f16" if greedy and chance.random() < 0.5 else "f32",
        draft=chance.randrange(1, 9),
        sampling=sampling,
        max_tokens=chance.choice((1, 2, 7, 24, 60)),
        stops=chance.choice(((), (), ("e",), ("the", "1"))),
        prompts=tuple(" ".join(chance.choices(_WORDS, k=words)) for _ in range(PROMPTS)),
    )


def requests(combination: Combination, engine: Engine) -> list[Request]:
    """The prompts as they are asked, each with a seed of its own."""
    sampling = combination.sampling
    return [
        Request(
            engine.encode_messages([{"role": "user", "content": text}]),
            replace(sampling, seed=(sampling.seed or 0) + number),
            combination.max_tokens,
            combination.stops,
        )
        for number, text in enumerate(combination.prompts)
    ]


def written(engine: Engine, asked: list[Request]) -> list[tuple[list[int], str, str, int]]:
    """Tokens, text, reason of the end and accepted drafts of each answer; of one that failed, the error is the text."""
    steps: list[list[Step]] = [[] for _ in asked]
    ends: dict[int, tuple[str, str, int]] = {}
    for number, answer in write_many(engine, asked, on_step=lambda number, step: steps[number].append(step)):
        if isinstance(answer, Answer):
            ends[number] = answer.text, answer.finish_reason, answer.accepted
        else:
            ends[number] = str(answer), "error", 0
    return [([step.token for step in steps[n]], *ends[n]) for n in range(len(asked))]


def compare(combination: Combination, bundle: Bundle) -> tuple[Counter[str], list[dict[str, Any]]]:
    """What was counted, and the answers that differ without being near-ties."""
    options = Options(
        policy=combination.policy,
        gamma=combination.gamma,
        sharp=combination.sharp,
        context=combination.context,
        kv_type=combination.kv_type,
        threads=1,
        draft="off",
    )
    near = NEAR if combination.kv_type == "f32" else NEAR_F16
    counts: Counter[str] = Counter(combinations=1)
    failures = []
    with Engine(bundle, options) as plain:
        asked = requests(combination, plain)
        expected = written(plain, asked)
        counts["tokens"] += sum(len(tokens) for tokens, *_ in expected)
        for draft, sequences in ((str(combination.draft), 1), ("off", PROMPTS), (str(combination.draft), PROMPTS)):
            with Engine(bundle, replace(options, draft=draft, sequences=sequences)) as engine:
                found = written(engine, asked)
            counts["accepted"] += sum(accepted for *_, accepted in found)
            for number, (one, two) in enumerate(zip(expected, found, strict=True)):
                counts["compared"] += 1
                if one[:3] == two[:3]:
                    continue
                request = asked[number]
                told: dict[str, Any] = {}
                if one[0] != two[0]:
                    told = explain(plain, None, request.prompt, request.sampling, one[0], two[0])
                if told.get("gap", math.inf) < near:
                    counts["near_ties"] += 1
                    continue
                told |= {"draft": draft, "at_once": sequences, "prompt": number, "one": one, "two": two}
                failures.append(told)
    return counts, failures


def main() -> None:
    """Try the combinations and print what came of them; exit code 1 if answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--combinations", type=int, default=20, help="how many are tried")
    parser.add_argument("--only", type=int, help="try the one of this number alone, and show it")
    parser.add_argument("--seed", type=int, default=0, help="of the combinations")
    parser.add_argument("-o", "--out", type=Path, help="write the result to this JSON file, too")
    arguments = parser.parse_args()
    began, counts, failures = time.monotonic(), Counter[str](), []
    numbers = range(arguments.combinations) if arguments.only is None else [arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FRCLI_CACHE"] = str(Path(folder) / "cache")
        bundles = make_bundles(Path(folder))
        for number in numbers:
            combination = draw(bundles, arguments.seed, number)
            counted, failed = compare(combination, bundles[combination.bundle])
            counts += counted
            failures += [{"combination": number, **failure} for failure in failed]
            if failed or arguments.only is not None:
                print(json.dumps({"number": number, **asdict(combination)}, default=str), file=sys.stderr)
                print("\n".join(map(json.dumps, failed)), file=sys.stderr)
            print(f"{number}: {len(failed)} of {counted['compared']} differ", file=sys.stderr, flush=True)
    names = ("combinations", "compared", "tokens", "accepted", "near_ties")
    result = {name: counts[name] for name in names}
    told = {**result, "failures": len(failures), "seed": arguments.seed, "seconds": round(time.monotonic() - began, 1)}
    text = json.dumps(told, indent=2) + "\n"
    if arguments.out is not None:
        save(text, arguments.out)
    print(text, end="")
    sys.exit(int(bool(failures)))


if __name__ == "__main__":
    main()
