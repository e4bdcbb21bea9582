"""The engine against the plain reference loop: on a tiny bundle, and on the shipped one with prompts of all domains."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bundles import write_bundle
from reference import Reference

from frcli.bundle import DEFAULT_BUNDLE, Bundle, read_bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling
from frcli.sources.devices import physical_cores

PROMPTS = [
    json.loads(line)["prompt"] for line in (Path(__file__).parent / "data" / "prompts.jsonl").read_text().splitlines()
]
NEAR_TIE = 0.05  # logits: a step whose two best are closer may turn either way with the shape of the call


def reference(bundle: Bundle, gamma: float, threads: int) -> Reference:
    adapters = {name: artifact.path if (artifact := bundle.expert(name)) else None for name in bundle.experts}
    router = bundle.router_model()
    assert router is not None
    return Reference(bundle.base().path, adapters, router, gamma, threads)


def compare(bundle: Bundle, prompts: list[str], n: int, gamma: float) -> tuple[int, int]:
    """Tokens that agreed, and prompts whose comparison ended at a near-tie; anything else fails.

    A near-tie: both tokens are within ``NEAR_TIE`` of the best fused logit, or the router's two best weights are.
    """
    agreed = ties = 0
    plain = reference(bundle, gamma, physical_cores())
    for prompt in prompts:
        steps: list[Step] = []
        with Engine(
            bundle, Options(gamma=gamma, draft="off")
        ) as engine:  # a new one: the next prompt would find a prefix read
            tokens = engine.encode_messages([{"role": "user", "content": prompt}])
            engine.write(tokens, Sampling(temperature=0), max_tokens=n, on_step=steps.append).run()
        assert len(steps) == n or steps[-1].finish == "eos"
        plain.begin()
        for step in steps:
            token, expert, fused = plain.step(tokens)
            if step.token != token:
                assert step.weights is not None
                first, second = sorted(step.weights, reverse=True)[:2]
                same_expert = step.experts == (expert,)
                near = fused.max() - fused[step.token] < NEAR_TIE if same_expert else first - second < NEAR_TIE
                assert near, f"{prompt!r} at {len(tokens)}: {step}, not {token} by {expert}"
                ties += 1
                break
            agreed += 1
            tokens.append(step.token)
    print(f"{agreed} tokens agreed, {ties} of {len(prompts)} prompts ended in a near-tie")
    return agreed, ties


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    assert compare(write_bundle(tmp_path / "tiny"), ["hello the world", "1 2 and 3"], 32, gamma) == (64, 0)


@pytest.mark.bundle
def test_shipped() -> None:
    bundle = read_bundle(DEFAULT_BUNDLE)
    full = os.environ.get("FRCLI_TEST_ALL") == "1"
    prompts, n = (PROMPTS, 64) if full else (PROMPTS[::5], 12)
    agreed, ties = compare(bundle, prompts, n, bundle.manifest.defaults.gamma)
    assert ties <= len(prompts) / 4
    assert agreed >= len(prompts) * 4
