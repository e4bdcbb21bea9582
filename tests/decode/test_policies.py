"""Every policy on tiny real models: its tokens are those of its formula on rows read anew, drafts or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling
from frcli.errors import UsageError
from frcli.fusion.likelihood import token_nll
from frcli.fusion.mixture import PackLLM
from frcli.fusion.policy import ROUTER
from frcli.fusion.route import FusionRoute
from frcli.sources.source import Feed

GREEDY = Sampling(temperature=0)
POLICIES = [
    "fusionroute",
    "fusionroute,prior=3",
    "prompt-router",
    "expert:math",
    "sum",
    "packllm,tau=0.1",
    "topk-union:math,code,k=5",
    "proxy:math,alpha=1.5",
    "dlf",
    "contrast:math,weaker=code",
    "contrast:code",
]


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trio, and a larger model."""
    folder = tmp_path_factory.mktemp("steered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        bundle = write_bundle(folder / "trio", extra='[large]\nfile = "large.gguf"\n')
        tiny.write_gguf(bundle.folder / "large.gguf", tiny.TinyShape(hidden=96, heads=6, kv_heads=3), seed=9)
    return bundle


@pytest.fixture(autouse=True)
def _cache(steered: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(steered.folder.parent / "cache"))


def answer(engine: Engine, text: str, sampling: Sampling = GREEDY, n: int = 24) -> list[Step]:
    steps: list[Step] = []
    prompt = engine.encode_messages([{"role": "user", "content": text}])
    engine.write(prompt, sampling, max_tokens=n, on_step=steps.append).run()
    return steps


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, seed=4)], ids=["greedy", "sampled"])
def test_drafts_change_no_token(steered: Bundle, text: str, sampling: Sampling) -> None:
    prompts = ["the and of the and", "hello", "1 2 3 1 2"]
    answers, accepted = [], 0
    for draft in ("off", "3"):
        with Engine(steered, Options(policy=text, draft=draft)) as engine:
            steps = [answer(engine, prompt, sampling) for prompt in prompts]
        answers.append([[step.token for step in part] for part in steps])
        accepted += sum(step.drafted for part in steps for step in part)
    assert answers[0] == answers[1]
    if engine.policy.drafter is not None:
        assert accepted


@pytest.mark.parametrize("text", POLICIES)
def test_tokens_are_those_of_the_formula(steered: Bundle, text: str) -> None:
    with Engine(steered, Options(policy=text)) as engine:
        prompt = engine.encode_messages([{"role": "user", "content": "hello the"}])
        written = [step.token for step in answer(engine, "hello the", n=12)]
        policy = engine.decoder._policies[0]
        tokens = list(prompt)
        for token in written:
            weights = None
            rows = {}
            if policy.drafter is not None:
                rows[policy.drafter], weights = read(engine, policy.drafter, tokens)
            for name in policy.choose(weights):
                rows[name], _ = read(engine, name, tokens)
            fused = policy.fuse(rows)
            assert fused.max() - fused[token] < 1e-2  # f16 caches that were filled in other shapes
            tokens.append(token)


def read(engine: Engine, name: str, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    source = engine.router if name == ROUTER else engine.expert(name)
    assert source is not None
    source.rewind(0, 0)
    (rows,) = source.extend([Feed(0, tokens, 1)])
    weights = rows.weights
    return rows.logits[-1, : engine.width].copy(), None if weights is None else weights[-1].copy()


def test_packllm_weighs_each_prompt_by_itself(steered: Bundle) -> None:
    with Engine(steered, Options(policy="packllm,tau=0.2", sequences=2)) as engine:
        prompts = [engine.encode_messages([{"role": "user", "content": text}]) for text in ("hello the", "1 2 3 and")]
        alone = []
        for prompt in prompts:
            scores = []
            for name in steered.experts:
                source = engine.expert(name)
                source.rewind(0, 0)
                (rows,) = source.extend([Feed(0, prompt[:-1], len(prompt) - 1)])
                scores.append(-float(token_nll(rows.logits[:, : engine.width], prompt[1:]).mean()) / 0.2)
            odds = np.exp(np.array(scores) - max(scores))
            alone.append(odds / odds.sum())
        requests = [Request(prompt, GREEDY, 8) for prompt in prompts]
        together = dict(write_many(engine, requests))
        assert len(together) == 2
        found = [engine.decoder._policies[seq] for seq in (0, 1)]
        for policy, expected in zip(found, alone, strict=True):
            assert isinstance(policy, PackLLM)
            np.testing.assert_allclose(policy.weights, expected, atol=2e-3)
        assert not np.allclose(alone[0], alone[1], atol=1e-3)


def test_the_base_is_not_opened_twice(steered: Bundle) -> None:
    with Engine(steered, Options(policy="proxy:math")) as engine:
        answer(engine, "hello", n=3)
        assert engine.expert("base") is engine.expert("general")
        assert sorted(engine._sources) == ["general", "large", "math"]


def test_policies_change_while_the_models_are_open(steered: Bundle) -> None:
    with Engine(steered, Options(policy="expert:general")) as engine:
        for text in POLICIES:
            engine.use(text)
            with Engine(steered, replace(engine.options, policy=text)) as other:
                assert [s.token for s in answer(engine, "hi", n=6)] == [s.token for s in answer(other, "hi", n=6)]


def test_the_prompt_routers_choice_is_that_of_its_head(steered: Bundle) -> None:
    from converters.checkpoint import open_checkpoint
    from converters.lora import merge
    from converters.reference import hidden_states
    from converters.trained import read_trained

    trained = read_trained(steered.folder / "router.safetensors")
    assert trained.prompt is not None
    source = merge(open_checkpoint(steered.base().path), trained.delta)
    with Engine(steered, Options(policy="prompt-router")) as engine:
        for text in ("hello", "1 2 3", "of and the"):
            prompt = engine.encode_messages([{"role": "user", "content": text}])
            weights = hidden_states(source, prompt)[-1] @ trained.prompt.T
            steps = answer(engine, text, n=5)
            assert {step.experts for step in steps} == {(steered.experts[int(weights.argmax())],)}
            assert engine.router is not None
            engine.router.rewind(0, 0)
            (rows,) = engine.router.extend([Feed(0, prompt, 1)])
            assert rows.prompt_weights is not None
            np.testing.assert_allclose(rows.prompt_weights[-1], weights, atol=1e-3)


def test_a_prior_adds_the_weights_for_the_whole_prompt_to_each_tokens(steered: Bundle) -> None:
    text = "of and the"
    with Engine(steered, Options(policy="fusionroute,prior=1.5", draft="3")) as engine:
        prompt, steps = engine.encode_messages([{"role": "user", "content": text}]), answer(engine, text)
        assert engine.router is not None
        engine.router.rewind(0, 0)
        (rows,) = engine.router.extend([Feed(0, prompt, 1)])
        assert rows.prompt_weights is not None
        whole, tokens = rows.prompt_weights[-1].copy(), list(prompt)
        moved = 0
        for step in steps:
            _, weights = read(engine, ROUTER, tokens)
            assert weights is not None and step.weights is not None
            np.testing.assert_allclose(step.weights, weights + 1.5 * whole, atol=2e-3)
            assert step.experts == (steered.experts[int(np.argmax(step.weights))],)
            moved += int(weights.argmax() != np.argmax(step.weights))
            tokens.append(step.token)
    assert moved  # or the test could not tell it from no prior


def test_a_router_without_a_head_for_prompts_is_refused(steered: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "write_trained", partial(tiny.write_trained, prompt_head=False))
        plain = write_bundle(folder)
    with (
        Engine(plain, Options(policy="prompt-router")) as engine,
        pytest.raises(UsageError, match="no head for whole prompts"),
    ):
        answer(engine, "hello", n=1)
    with (
        Engine(plain, Options(policy="fusionroute,prior=0.5")) as engine,
        pytest.raises(UsageError, match="no head for whole prompts"),
    ):
        answer(engine, "hello", n=1)


def test_a_bundle_without_the_large_model_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="dlf needs a large model, and this bundle has none"):
        Engine(bundle, Options(policy="dlf"))


@pytest.mark.parametrize("draft", ["off", "3"])
def test_a_gate_weighs_the_routers_logits_token_by_token(tmp_path: Path, draft: str) -> None:
    """Every row that is fused is the one of FusionRoute with the gate of that token, computed from the checkpoint."""
    from converters.checkpoint import open_checkpoint
    from converters.lora import merge
    from converters.reference import hidden_states
    from converters.trained import read_trained

    gated = write_bundle(tmp_path / "gated", gate_bias=-0.3)
    trained = read_trained(gated.folder / "router.safetensors")
    assert trained.gate is not None
    source = merge(open_checkpoint(gated.base().path), trained.delta)
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch, Engine(gated, Options(draft=draft)) as engine:
        plain = FusionRoute.gated

        def watched(policy: FusionRoute, gate: float) -> FusionRoute:
            made = plain(policy, gate)
            assert made.gamma == pytest.approx(0.5 * gate)
            seen.append(gate)
            return made

        patch.setattr(FusionRoute, "gated", watched)
        prompt = engine.encode_messages([{"role": "user", "content": "hello"}])
        written = [step.token for step in answer(engine, "hello", n=12)]
    hidden = hidden_states(source, [*prompt, *written])[len(prompt) - 1 : -1]
    expected = 1 / (1 + np.exp(-(hidden @ trained.gate[0, :-1] + trained.gate[0, -1])))
    np.testing.assert_allclose(seen, expected, atol=1e-3)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize(("bias", "gamma"), [(-40.0, "0"), (40.0, "0.5")])
def test_a_closed_gate_is_gamma_0_and_an_open_one_is_gamma(
    tmp_path: Path, steered: Bundle, bias: float, gamma: str
) -> None:
    gated = write_bundle(tmp_path / "gated", gate_bias=bias)
    with Engine(gated, Options()) as one, Engine(steered, Options(policy=f"fusionroute,gamma={gamma}")) as other:
        assert [s.token for s in answer(one, "hi", n=15)] == [s.token for s in answer(other, "hi", n=15)]
