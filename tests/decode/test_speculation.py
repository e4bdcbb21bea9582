"""Drafts change no token: random models, samplers, windows and limits against decoding without drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from fakes import FakeSource, Greedy, random_rows, related_rows

from frcli.decode.draft import MOST_DRAFTS
from frcli.decode.loop import Decoder, Step
from frcli.decode.sampler import Sampler, Sampling
from frcli.decode.window import TokenSampler
from frcli.fusion.mixture import UniformSum
from frcli.fusion.policy import Policy
from frcli.fusion.route import FusionRoute, OneExpert

WIDTH, NAMES = 24, ("a", "b", "c")


class House:
    """Three experts and a router that agree as far as ``noise`` lets them, and a decoder over them."""

    def __init__(
        self,
        policy: Policy,
        drafts: int | None,
        *,
        noise: float,
        context: int = 200,
        ends: Sequence[int] = (),
        chunk: int = 128,
    ) -> None:
        self.sources = {
            name: FakeSource(WIDTH, related_rows(WIDTH, i, noise), context=context, sequences=3)
            for i, name in enumerate(NAMES)
        }
        self.router = FakeSource(
            WIDTH + 5,
            lambda prefix: related_rows(WIDTH + 5, 10, noise)(prefix),
            context=context,
            sequences=3,
            weights=random_rows(len(NAMES), 20),
        )
        shared = related_rows(WIDTH, 10, noise)

        def own(prefix: Sequence[int]):  # type: ignore[no-untyped-def]
            import numpy as np

            return np.concatenate([shared(prefix), np.full(5, 99, np.float32)])  # the padding must never be drafted

        self.router._row = own
        self.decoder = Decoder(
            policy,
            expert=self.sources.__getitem__,
            router=self.router,
            is_end=lambda token: token in ends,
            width=WIDTH,
            context=context,
            drafts=drafts,
            chunk=chunk,
        )

    def steps(self, prompt: Sequence[int], sampler: TokenSampler, most: int) -> list[Step]:
        return list(self.decoder.generate(prompt, sampler, max_tokens=most))


SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0.8, seed=5),
    Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=6),
    Sampling(temperature=1, xtc_probability=0.5, xtc_threshold=0.05, seed=7),
    Sampling(temperature=0, repeat_penalty=1.3, presence_penalty=0.5, penalty_last_n=16),
    Sampling(temperature=0.7, frequency_penalty=0.4, typical_p=0.9, seed=8, logit_bias={3: -3.0, 4: 2.0}),
]
POLICIES = [FusionRoute(NAMES, 0.5), FusionRoute(NAMES, 0.0), OneExpert("b"), UniformSum(NAMES)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{getattr(policy, 'gamma', '')}")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_the_stream_with_drafts_is_the_one_without(policy: Policy, sampling: Sampling) -> None:
    chance = random.Random(sampling.seed or 1)
    for noise in (0.0, 0.2, 0.6):
        for drafts in (1, 2, 3, 7, None):
            most, context = chance.choice([1, 2, 20, 0]), chance.choice([40, 60])
            prompt = [chance.randrange(WIDTH) for _ in range(chance.randrange(1, 9))] * chance.choice([1, 3])
            ends, chunk = (chance.randrange(WIDTH),), chance.choice([3, 8, 128])
            answers = []
            for k in (0, drafts):
                with Sampler(sampling, WIDTH) as sampler:
                    sampler.accept_prompt(prompt)
                    house = House(policy, k, noise=noise, context=context, ends=ends, chunk=chunk)
                    answers.append(house.steps(prompt, sampler, most))
            plain, drafted = answers
            assert [step.token for step in drafted] == [step.token for step in plain]
            assert [step.experts for step in drafted] == [step.experts for step in plain]
            assert [step.weights for step in drafted] == [step.weights for step in plain]
            assert [step.finish for step in drafted] == [step.finish for step in plain]


@pytest.mark.parametrize("drafts", [1, 4, None])
def test_many_sequences_with_drafts_begin_and_end_at_any_time(drafts: int | None) -> None:
    chance = random.Random(3)
    prompts = [[chance.randrange(WIDTH) for _ in range(chance.randrange(1, 12))] for _ in range(9)]
    limits = [chance.randrange(1, 25) for _ in prompts]
    policy = FusionRoute(NAMES, 1.0)
    expected = [
        [step.token for step in House(policy, 0, noise=0.3).steps(prompt, Greedy(), limit)]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    decoder = House(policy, drafts, noise=0.3).decoder
    waiting, running, got = list(range(len(prompts))), {}, [[] for _ in prompts]
    while waiting or running:
        for seq in range(3):
            if seq not in running and waiting:
                number = waiting.pop(0)
                running[seq] = number, decoder.begin(seq, prompts[number], Greedy(), limits[number])
        order = sorted(running, key=lambda _: chance.random())
        for seq, steps in zip(order, decoder.step([running[seq][1] for seq in order]), strict=True):
            got[running[seq][0]] += [step.token for step in steps]
            if steps[-1].finish:
                del running[seq]
    assert got == expected


def test_drafts_of_models_that_agree_are_accepted_in_one_call_of_each() -> None:
    house = House(OneExpert("a"), 0, noise=0.0)
    text = [step.token for step in house.steps([1, 2, 3], Greedy(), 12)]
    house = House(FusionRoute(NAMES, 1.0), 3, noise=0.0)
    steps = house.steps([1, 2, 3], Greedy(), 12)
    assert [step.token for step in steps] == text
    assert [step.proposed for step in steps] == [3, 0, 0, 0] * 3
    assert [step.drafted for step in steps] == [True, True, True, False] * 3
    assert sum(len(source.calls) for source in house.sources.values()) <= 3 * len(NAMES)
    for source in house.sources.values():
        assert all(len(call) == 1 for call in source.calls)


def test_an_expert_runs_once_in_a_window_and_not_at_all_after_a_rejected_draft() -> None:
    house = House(FusionRoute(NAMES, 0.0), 6, noise=0.5)
    for _ in house.decoder.generate([1, 2, 3], Greedy(), max_tokens=1):
        pass
    (continuation,) = [house.decoder.begin(0, [4, 5], Greedy())]
    for _ in range(12):
        before = {name: len(source.calls) for name, source in house.sources.items()}
        (steps,) = house.decoder.step([continuation])
        ran = {name for name, source in house.sources.items() if len(source.calls) > before[name]}
        assert ran == {step.experts[0] for step in steps}
        assert all(len(source.calls) - before[name] <= 1 for name, source in house.sources.items())


def test_a_repeated_text_is_drafted_from_itself() -> None:
    """Models that count up for ever, from a text that has done so before: the lookup knows what the experts do not."""
    import numpy as np

    def row(prefix: Sequence[int]):  # type: ignore[no-untyped-def]
        return (np.arange(WIDTH) == (prefix[-1] + 1) % WIDTH).astype(np.float32) * 9

    house = House(OneExpert("a"), 5, noise=0)
    house.sources["a"]._row = row
    steps = house.steps([*range(WIDTH), *range(6)], Greedy(), 18)
    assert [step.token for step in steps] == [(6 + i) % WIDTH for i in range(18)]
    assert [step.proposed for step in steps] == [5, 0, 0, 0, 0, 0] * 3
    assert len(house.sources["a"].calls) == 3


def test_auto_drafts_nothing_when_router_and_experts_never_agree() -> None:
    house = House(FusionRoute(NAMES, 0.0), None, noise=0)
    house.router._row = lambda prefix: related_rows(WIDTH + 5, 77, 50.0)(prefix)
    steps = house.steps([1, 2, 3], Greedy(), 150)
    late = steps[100:]
    assert sum(step.proposed for step in late) <= len(late) / 10


@pytest.mark.parametrize("drafts", [0, 1, MOST_DRAFTS])
def test_sources_hold_no_more_than_the_text_without_its_last_token(drafts: int) -> None:
    house = House(FusionRoute(NAMES, 0.5), drafts, noise=0.3)
    continuation = house.decoder.begin(0, [1, 2, 3], Greedy())
    for _ in range(10):
        house.decoder.step([continuation])
        for source in (house.router, *house.sources.values()):
            assert source._read[0] == continuation.tokens[: source.length(0)]
            assert source.length(0) < len(continuation.tokens)
