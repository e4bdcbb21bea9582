"""Drafts on tiny real models: the tokens of decoding without them, and the distribution that the models say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from reference import Reference

from frcli.bundle import Bundle
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling

pytestmark = pytest.mark.usefixtures("cache")

WIDE = Sampling(temperature=1.2, top_k=0, top_p=1, min_p=0, seed=3)


@pytest.mark.parametrize(
    ("sampling", "stops"),
    [
        (Sampling(temperature=0, grammar='root ::= ([a-z]+ " ")+'), ()),
        (replace(WIDE, grammar='root ::= "{" [0-9]+ ("," [0-9]+)* "}"'), ()),
        (replace(WIDE, repeat_penalty=1.4, penalty_last_n=8, dry_multiplier=1.0), ()),
        (replace(WIDE, logit_bias={41: 4.0, 50: -20.0}), ()),
        (WIDE, ("e", "tion")),
        (Sampling(temperature=0), (" a",)),
    ],
    ids=["grammar", "grammar-sampled", "penalties", "logit-bias", "stops-sampled", "stops"],
)
@pytest.mark.parametrize("draft", ["1", "4"])
def test_settings_that_look_back_see_the_same_text(
    bundle: Bundle, sampling: Sampling, stops: tuple[str, ...], draft: str
) -> None:
    answers = []
    accepted = 0
    for drafts in ("off", draft):
        with Engine(bundle, Options(draft=drafts)) as engine:
            for seed in range(6):
                steps: list[Step] = []
                prompt = engine.encode_messages([{"role": "user", "content": f"the {seed} and of the {seed} and"}])
                writing = engine.write(
                    prompt, replace(sampling, seed=seed), max_tokens=40, stops=stops, on_step=steps.append
                )
                written = writing.run()
                answers.append(([step.token for step in steps], written.text, written.finish_reason))
                accepted += sum(step.drafted for step in steps)
    assert answers[:6] == answers[6:]
    assert accepted


# Chi-square above which 26 degrees of freedom are taken for another distribution: p = 1e-4 (Wilson and Hilferty).
CRITICAL = {26: 61.9}
FLAT = 3.0  # a temperature at which no path is rare


@pytest.mark.parametrize("at_once", [1, 4])
def test_answers_with_drafts_are_drawn_from_the_fused_distribution(bundle: Bundle, at_once: int) -> None:
    """4,000 answers of three tokens, each of the three likeliest ones, against probabilities by the reference loop."""
    sampling = Sampling(temperature=FLAT, top_k=3, top_p=1, min_p=0)
    seeds = 4000
    steps: list[list[Step]] = [[] for _ in range(seeds)]
    with Engine(bundle, Options(draft="2", sequences=at_once)) as engine:
        prompt = engine.encode_messages([{"role": "user", "content": "hello the world"}])
        requests = (Request(prompt, replace(sampling, seed=seed), 3) for seed in range(seeds))
        for _ in write_many(engine, requests, on_step=lambda number, step: steps[number].append(step)):
            pass
    drafts = [step for answer in steps for step in answer if step.drafted]
    windows = [step for answer in steps for step in answer if step.proposed]
    assert len(drafts) > seeds / 4  # the test would mean nothing if none were accepted, or all
    assert sum(step.proposed for step in windows) - len(drafts) > seeds / 4

    counts = Counter(tuple(step.token for step in answer) for answer in steps)
    expected = {path: seeds * chance for path, chance in _probabilities(bundle, prompt, 3)}
    assert len(expected) == 27
    assert min(expected.values()) > 5
    assert counts.keys() <= expected.keys()
    chi_square = sum((counts[path] - mean) ** 2 / mean for path, mean in expected.items())
    print(f"chi-square {chi_square:.1f}, {len(drafts)} drafts accepted")
    assert chi_square < CRITICAL[len(expected) - 1]


def _probabilities(bundle: Bundle, prompt: list[int], length: int) -> Iterator[tuple[tuple[int, ...], float]]:
    adapters = {name: artifact.path if (artifact := bundle.expert(name)) else None for name in bundle.experts}
    router = bundle.router_model()
    assert router is not None
    plain = Reference(bundle.base().path, adapters, router, bundle.manifest.defaults.gamma, 1)

    def below(path: tuple[int, ...], chance: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(path) == length:
            yield path, chance
            return
        plain.begin()
        fused = plain.step([*prompt, *path])[2].astype(np.float64) / FLAT
        best = np.argsort(fused)[-3:]
        odds = np.exp(fused[best] - fused[best].max())
        for token, share in zip(best.tolist(), odds / odds.sum(), strict=True):
            yield from below((*path, token), chance * float(share))

    return below((), 1.0)
