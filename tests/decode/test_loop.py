"""The loop on fakes: who reads what, who is idle, how an answer ends, and that the result is the plain formula's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fakes import FakeSource, Greedy, random_rows

from frcli.decode.loop import Decoder, Step
from frcli.decode.reading import Cancelled
from frcli.decode.window import Continuation
from frcli.errors import ContextError, UsageError
from frcli.fusion.mixture import UniformSum
from frcli.fusion.policy import Policy
from frcli.fusion.route import FusionRoute, OneExpert

WIDTH, NAMES = 50, ("a", "b", "c")


class House:
    """Three experts, a router, and a decoder over them."""

    def __init__(
        self, policy: Policy, *, sequences: int = 1, context: int = 1000, chunk: int = 128, ends: tuple[int, ...] = ()
    ) -> None:
        self.experts = {
            name: FakeSource(WIDTH, random_rows(WIDTH, i), context=context, sequences=sequences)
            for i, name in enumerate(NAMES)
        }
        self.router = FakeSource(
            WIDTH + 7,
            random_rows(WIDTH + 7, 10),
            context=context,
            sequences=sequences,
            weights=random_rows(len(NAMES), 20),
        )
        self.asked: list[str] = []
        self.decoder = Decoder(
            policy,
            expert=self._expert,
            router=self.router,
            is_end=lambda token: token in ends,
            width=WIDTH,
            context=context,
            chunk=chunk,
        )

    def _expert(self, name: str) -> FakeSource:
        self.asked.append(name)
        return self.experts[name]

    def steps(self, prompt: list[int], n: int) -> list[Step]:
        return list(self.decoder.generate(prompt, Greedy(), max_tokens=n))


def plain(policy: Policy, prompt: list[int], n: int) -> tuple[list[int], list[str]]:
    """The same answer from every model's full row at every step."""
    rows = {name: random_rows(WIDTH, i) for i, name in enumerate(NAMES)}
    router, weights = random_rows(WIDTH + 7, 10), random_rows(len(NAMES), 20)
    tokens, experts = list(prompt), []
    for _ in range(n):
        w = weights(tokens)
        if isinstance(policy, FusionRoute):
            name = NAMES[int(np.argmax(w))]
            fused = rows[name](tokens) + policy.gamma * router(tokens)[:WIDTH]
            experts.append(name)
        elif isinstance(policy, OneExpert):
            fused = rows[policy.expert](tokens)
            experts.append(policy.expert)
        else:
            fused = sum(rows[name](tokens) for name in NAMES)
            experts.append("all")
        tokens.append(int(np.argmax(fused)))
    return tokens[len(prompt) :], experts


@pytest.mark.parametrize(
    "policy", [FusionRoute(NAMES, 1.0), FusionRoute(NAMES, 0.3), OneExpert("b"), UniformSum(NAMES)]
)
def test_tokens_are_those_of_the_plain_formula(policy: Policy) -> None:
    steps = House(policy).steps([5, 6, 7], 40)
    tokens, experts = plain(policy, [5, 6, 7], 40)
    assert [step.token for step in steps] == tokens
    assert ["all" if len(s.experts) > 1 else s.experts[0] for s in steps] == experts


def test_only_the_chosen_expert_runs_and_catches_up_in_one_batch() -> None:
    house = House(FusionRoute(NAMES, 1.0))
    steps = house.steps([1, 2, 3, 4], 30)
    for name, source in house.experts.items():
        mine = [i for i, step in enumerate(steps) if step.experts == (name,)]
        assert len(source.calls) == len(mine)
        # After its step i an expert has read the prompt and i tokens; the next call brings all that came since.
        read = [0, *(4 + i for i in mine)]
        assert [len(call[0][1]) for call in source.calls] == [b - a for a, b in zip(read, read[1:], strict=False)]
        assert [step.read for step in steps if step.experts == (name,)] == [len(call[0][1]) for call in source.calls]
        assert all(call[0][2] == 1 for call in source.calls)


def test_an_expert_that_is_never_chosen_is_never_opened() -> None:
    house = House(OneExpert("b"))
    house.steps([1], 5)
    assert house.asked == ["b"]
    assert house.router.calls == []


def test_a_new_prompt_keeps_what_it_shares_with_the_old_text() -> None:
    house = House(OneExpert("a"))
    first = house.steps([1, 2, 3], 4)
    prompt = [1, 2, 3, *(step.token for step in first), 9, 9]
    again = house.steps(prompt, 3)
    assert house.experts["a"].calls[4][0][1] == (first[-1].token, 9, 9)
    assert [s.token for s in again] == plain(OneExpert("a"), prompt, 3)[0]
    # The same prompt again (regenerate): one token is read again to get its row.
    repeated = house.steps(prompt, 3)
    assert [s.token for s in repeated] == [s.token for s in again]
    assert house.experts["a"].calls[7][0][1] == (9,)
    # A prompt that turns off earlier.
    other = house.steps([1, 2, 8], 3)
    assert [s.token for s in other] == plain(OneExpert("a"), [1, 2, 8], 3)[0]


def test_many_sequences_share_one_call_of_each_source() -> None:
    house = House(FusionRoute(NAMES, 1.0), sequences=3)
    prompts = [[1, 2], [3], [4, 5, 6]]
    lines = [house.decoder.begin(seq, prompt, Greedy()) for seq, prompt in enumerate(prompts)]
    steps = [house.decoder.step(lines) for _ in range(12)]
    for seq, prompt in enumerate(prompts):
        assert [step[seq][0].token for step in steps] == plain(FusionRoute(NAMES, 1.0), prompt, 12)[0]
    assert len(house.router.calls) == 12
    assert all(len(one) == 1 for batch in steps for one in batch)
    chosen = [{one[0].experts[0] for one in batch} for batch in steps]
    for name, source in house.experts.items():
        assert len(source.calls) == sum(name in names for names in chosen)


def test_max_tokens_context_and_end_token_each_end_the_answer() -> None:
    policy = OneExpert("a")
    tokens, _ = plain(policy, [1, 2, 3], 10)
    steps = House(policy).steps([1, 2, 3], 6)
    assert [s.finish for s in steps] == [None] * 5 + ["length"]
    steps = House(policy, context=8).steps([1, 2, 3], 100)
    assert [s.finish for s in steps] == [None] * 4 + ["context"]
    steps = House(policy, ends=(tokens[2],)).steps([1, 2, 3], 100)
    assert [s.finish for s in steps] == [None, None, "eos"]
    assert steps[-1].token == tokens[2]


def test_an_end_token_at_the_limit_counts_as_the_end() -> None:
    tokens, _ = plain(OneExpert("a"), [1], 3)
    house = House(OneExpert("a"), ends=(tokens[2],), context=4)
    assert house.steps([1], 3)[-1].finish == "eos"


def test_a_prompt_that_is_empty_or_fills_the_context_is_refused() -> None:
    house = House(OneExpert("a"), context=4)
    with pytest.raises(UsageError, match="empty"):
        house.steps([], 1)
    with pytest.raises(ContextError, match="4 tokens and the context 4"):
        house.steps([1, 2, 3, 4], 1)
    assert len(house.steps([1, 2, 3], 5)) == 1


def test_long_prompts_are_read_in_chunks_with_a_look_at_the_flag_between() -> None:
    looks = iter([False, False, True])
    house = House(OneExpert("a"), chunk=10)
    prompt = list(range(1, 36))
    with pytest.raises(Cancelled):
        list(house.decoder.generate(prompt, Greedy(), cancelled=lambda: next(looks)))
    assert [len(call[0][1]) for call in house.experts["a"].calls] == [10, 10]
    # What was read stays read, and the answer that follows is right.
    steps = house.steps(prompt, 2)
    assert [len(call[0][1]) for call in house.experts["a"].calls] == [10, 10, 10, 5, 1]
    assert [s.token for s in steps] == plain(OneExpert("a"), prompt, 2)[0]


def test_cancelling_between_tokens_keeps_the_sources_in_step() -> None:
    house = House(FusionRoute(NAMES, 1.0))
    count = 0

    def cancelled() -> bool:
        nonlocal count
        count += 1
        return count > 15

    written = []
    with pytest.raises(Cancelled):
        for step in house.decoder.generate([1, 2], Greedy(), cancelled=cancelled):
            written.append(step.token)
    assert written == plain(FusionRoute(NAMES, 1.0), [1, 2], len(written))[0]
    assert [s.token for s in house.steps([1, 2], 9)] == plain(FusionRoute(NAMES, 1.0), [1, 2], 9)[0]


def test_steps_carry_weights_and_times() -> None:
    step = House(FusionRoute(NAMES, 1.0)).steps([1], 1)[0]
    assert step.weights == tuple(random_rows(3, 20)([1]).tolist())
    assert step.timings.total > 0
    assert House(OneExpert("a")).steps([1], 1)[0].weights is None


def test_every_sampled_token_is_accepted_once() -> None:
    house = House(OneExpert("c"))
    sampler = Greedy()
    line: Callable[[], Continuation] = lambda: house.decoder.begin(0, [1], sampler)  # noqa: E731
    continuation = line()
    for _ in range(5):
        house.decoder.step([continuation])
    assert continuation.tokens == [1, *sampler.accepted]
