"""Drafts and many sequences on the shipped bundle: where its quantized models make other tokens of it, they nearly tie.

How often and by how much is printed; ``docs/speed.md`` has the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from frcli.bench.same import explain
from frcli.bundle import DEFAULT_BUNDLE, read_bundle
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling

FULL = os.environ.get("FRCLI_TEST_ALL") == "1"
PROMPTS = [
    json.loads(line)["prompt"] for line in (Path(__file__).parent / "data" / "prompts.jsonl").read_text().splitlines()
][:: 1 if FULL else 5]
TOKENS = 64 if FULL else 16
GREEDY = Sampling(temperature=0)

# Further apart than this, two tokens (fused logits) or two experts (routing weights) do not change places.
NEAR = 0.5


def written(options: Options) -> list[list[Step]]:
    answers: list[list[Step]] = [[] for _ in PROMPTS]
    with Engine(read_bundle(DEFAULT_BUNDLE), options) as engine:
        prompts = [engine.encode_messages([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
        requests = (Request(prompt, GREEDY, TOKENS) for prompt in prompts)
        for _ in write_many(engine, requests, on_step=lambda number, step: answers[number].append(step)):
            pass
    return answers


@pytest.fixture(scope="module")
def plain() -> Sequence[Sequence[Step]]:
    """The answers without drafts, one after the other."""
    return written(Options(draft="off"))


@pytest.mark.bundle
@pytest.mark.parametrize(
    "options",
    [Options(draft="1"), Options(draft="3"), Options(draft="auto"), Options(draft="off", sequences=8)],
    ids=["draft-1", "draft-3", "draft-auto", "8-at-once"],
)
def test_other_tokens_are_near_ties(plain: Sequence[Sequence[Step]], options: Options) -> None:
    others = written(options)
    tokens, experts = [], []  # by how much the first difference was a tie, where tokens differ and where experts do
    with Engine(read_bundle(DEFAULT_BUNDLE), Options(draft="off")) as engine:
        for prompt, one, other in zip(PROMPTS, plain, others, strict=True):
            pairs = zip(one, other, strict=False)
            first = next((a for a, b in pairs if (a.token, a.experts) != (b.token, b.experts)), None)
            if first is None:
                continue
            at = one.index(first)
            if first.experts != other[at].experts:
                assert first.weights is not None
                best, second = sorted(first.weights, reverse=True)[:2]
                experts.append(best - second)
            else:
                ids = engine.encode_messages([{"role": "user", "content": prompt}])
                texts = [[step.token for step in steps[: at + 1]] for steps in (one, other)]
                # No gap: written anew, without the beginning that all prompts share, it goes the other way by itself.
                tokens.append(explain(engine, None, ids, GREEDY, *texts).get("gap", 0.0))
    what = f"draft {options.draft}, {options.sequences} at once"
    print(f"{what}: of {len(PROMPTS)} answers other tokens by {sorted(tokens)}, other experts by {sorted(experts)}")
    assert len(tokens) + len(experts) <= len(PROMPTS) / 2
    assert all(gap < NEAR for gap in (*tokens, *experts))
