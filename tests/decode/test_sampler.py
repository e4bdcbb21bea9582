from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TinyShape, TinyVocabulary, write_gguf

from frcli.decode.sampler import MAX_SEED, Sampler, Sampling
from frcli.errors import ModelError, UsageError
from frcli.sources.source import Logits

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
GREEDY: dict[str, Any] = {"temperature": 0.0}
# Upper 0.1 % points of the chi-square distribution by degrees of freedom (any printed table).
CHI_SQUARE = {1: 10.828, 2: 13.816, 3: 16.266, 5: 20.515, 7: 24.322}


def row(*logits: float) -> Logits:
    return np.array(logits, dtype=np.float32)


def log(*probabilities: float) -> Logits:
    return row(*map(math.log, probabilities))


HALVES = log(0.5, 0.25, 0.125, 0.125)


def drawn(logits: Logits, times: int = 2000, seed: int = 7, **settings: Any) -> Counter[int]:
    with Sampler(Sampling(seed=seed, **settings), len(logits)) as sampler:
        return Counter(sampler.sample(logits) for _ in range(times))


def chi_square(counts: Counter[int], probabilities: list[float]) -> float:
    times = sum(counts.values())
    assert set(counts) <= set(range(len(probabilities)))
    return sum((counts[token] - times * p) ** 2 / (times * p) for token, p in enumerate(probabilities))


def greedy(logits: Logits, seen: list[int], **settings: Any) -> int:
    with Sampler(Sampling(temperature=0.0, **settings), len(logits)) as sampler:
        sampler.accept_prompt(seen)
        return sampler.sample(logits)


# What each filter keeps. HALVES has the probabilities 1/2, 1/4, 1/8, 1/8.


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.4}, {0}),  # 0.5 >= 0.4
        ({"top_p": 0.7}, {0, 1}),  # 0.5 + 0.25 >= 0.7
        ({"top_p": 0.99}, {0, 1, 2, 3}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.6}, {0}),  # at least 0.6 x 0.5 = 0.3
        ({"min_p": 0.4}, {0, 1}),  # at least 0.2
        ({"min_p": 0.2}, {0, 1, 2, 3}),  # at least 0.1
        # Entropy 1.213 nats; -ln p is 0.693, 1.386, 2.079, 2.079: farthest from typical are 2 and 3, nearest is 1.
        ({"typical_p": 0.2}, {1}),  # 0.25 > 0.2
        ({"typical_p": 0.6}, {0, 1}),  # 0.25 + 0.5 > 0.6
        # 0 and 1 reach the threshold, and all of these but the least likely one go.
        ({"xtc_probability": 1.0, "xtc_threshold": 0.2}, {1, 2, 3}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.4}, {0, 1, 2, 3}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.6}, {0, 1, 2, 3}),  # above a half two tokens cannot reach it
    ],
)
def test_a_filter_keeps_what_it_says(settings: dict[str, float], kept: set[int]) -> None:
    assert set(drawn(HALVES, **{"temperature": 1.0, **OFF, **settings})) == kept


def test_what_is_kept_is_drawn_in_proportion() -> None:
    assert chi_square(drawn(HALVES, 6000, temperature=1.0, **OFF), [1 / 2, 1 / 4, 1 / 8, 1 / 8]) < CHI_SQUARE[3]
    assert chi_square(drawn(HALVES, 6000, temperature=1.0, **{**OFF, "top_k": 2}), [2 / 3, 1 / 3]) < CHI_SQUARE[1]
    # The probabilities are wrong by a little here, and 6000 draws must show it.
    assert chi_square(drawn(HALVES, 6000, temperature=1.0, **OFF), [0.45, 0.30, 0.125, 0.125]) > CHI_SQUARE[3]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_softmax_of_logits_over_temperature(temperature: float, seed: int) -> None:
    logits = row(1.0, 0.5, 0.0, -0.5, -1.0, 0.25, 0.75, -0.25)
    powers = [math.exp(float(logit) / temperature) for logit in logits]
    counts = drawn(logits, 8000, seed, temperature=temperature, **OFF)
    assert chi_square(counts, [power / sum(powers) for power in powers]) < CHI_SQUARE[7]


def test_filters_cut_before_the_temperature_is_applied() -> None:
    # After a temperature of 100 all four are about equally likely, and top-p 0.7 would keep three of them.
    assert set(drawn(HALVES, temperature=100.0, **{**OFF, "top_p": 0.7})) == {0, 1}


def test_xtc_applies_with_its_probability() -> None:
    # One draw in four loses token 0: it is drawn with 3/4 x 1/2, the others share what is lost in proportion.
    settings = {**OFF, "xtc_probability": 0.25, "xtc_threshold": 0.2, "temperature": 1.0}
    lost = 0.25
    expected = [0.75 / 2, 0.75 / 4 + lost / 2, 0.75 / 8 + lost / 4, 0.75 / 8 + lost / 4]
    assert chi_square(drawn(HALVES, 6000, **settings), expected) < CHI_SQUARE[3]


def test_typical_is_not_upset_by_tokens_without_probability() -> None:
    logits = np.concatenate([HALVES, np.full(4, -np.inf, dtype=np.float32), row(-500.0)])
    assert set(drawn(logits, temperature=1.0, **{**OFF, "typical_p": 0.2})) == {1}
    banned = drawn(logits, temperature=1.0, logit_bias={1: -math.inf}, **{**OFF, "typical_p": 0.6})
    # 2/3, 1/6, 1/6 are left; entropy 0.868 nats, -ln p 0.405, 1.792, 1.792: token 0 is nearest, and 0.667 > 0.6.
    assert set(banned) == {0}


# Temperature 0


def test_greedy_takes_the_first_of_a_tie() -> None:
    tie = row(1.0, 3.0, 2.0, 3.0)
    assert greedy(tie, []) == 1
    assert greedy(tie, [], top_k=0, top_p=1.0) == 1
    assert greedy(tie, [], logit_bias={0: 0.5}) == 1
    assert greedy(tie, [0], repeat_penalty=1.5) == 1
    assert greedy(tie, [], logit_bias={1: -1.0}) == 3


def test_greedy_equals_argmax_whatever_the_filters() -> None:
    random = np.random.default_rng(0)
    with Sampler(Sampling(**GREEDY), 500) as plain, Sampler(Sampling(**GREEDY, logit_bias={0: 0.0}), 500) as chain:
        for _ in range(50):
            logits = random.normal(size=500).astype(np.float32)
            assert plain.sample(logits) == chain.sample(logits) == int(np.argmax(logits))


def test_greedy_obeys_the_filters_that_may_drop_the_most_likely_token() -> None:
    assert greedy(HALVES, [], typical_p=0.2, top_k=0) == 1
    assert greedy(HALVES, [], xtc_probability=1.0, xtc_threshold=0.2) == 1


# Penalties: on both sides of the logit that is left, worked by hand


def test_repeat_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    assert greedy(row(2.0, 0.99), [0], repeat_penalty=2.0) == 0  # 2 / 2 = 1
    assert greedy(row(2.0, 1.01), [0], repeat_penalty=2.0) == 1
    assert greedy(row(-1.0, -2.01), [0], repeat_penalty=2.0) == 0  # -1 x 2 = -2
    assert greedy(row(-1.0, -1.99), [0], repeat_penalty=2.0) == 1
    assert greedy(row(2.0, 1.99), [0, 0, 0], repeat_penalty=1.0) == 0


def test_presence_counts_once_and_frequency_every_time() -> None:
    assert greedy(row(1.0, 0.89), [0, 0, 0], presence_penalty=0.1) == 0  # 1 - 0.1
    assert greedy(row(1.0, 0.91), [0, 0, 0], presence_penalty=0.1) == 1
    assert greedy(row(1.0, 0.69), [0, 0, 0], frequency_penalty=0.1) == 0  # 1 - 3 x 0.1
    assert greedy(row(1.0, 0.71), [0, 0, 0], frequency_penalty=0.1) == 1


def test_penalties_add_up() -> None:
    settings = {"repeat_penalty": 1.25, "frequency_penalty": 0.1, "presence_penalty": 0.3}
    assert greedy(row(2.0, 1.09), [0, 0], **settings) == 0  # 2 / 1.25 - 2 x 0.1 - 0.3 = 1.1
    assert greedy(row(2.0, 1.11), [0, 0], **settings) == 1


def test_penalties_see_the_last_tokens_only() -> None:
    logits = row(1.0, 0.5, 0.0, 0.0)
    assert greedy(logits, [0, 2, 3], presence_penalty=1.0, penalty_last_n=3) == 1
    assert greedy(logits, [0, 2, 3], presence_penalty=1.0, penalty_last_n=2) == 0
    assert greedy(logits, [0, 2, 3], presence_penalty=1.0, penalty_last_n=0) == 0
    assert greedy(logits, [0, *[2, 3] * 500], presence_penalty=1.0, penalty_last_n=-1) == 1
    assert greedy(logits, [0, *[2, 3] * 500], presence_penalty=1.0) == 0


def test_accepted_tokens_are_penalized_like_those_of_the_prompt() -> None:
    with Sampler(Sampling(**GREEDY, presence_penalty=0.7), 3) as sampler:
        logits = row(1.0, 0.5, 0.0)
        tokens = []
        for _ in range(3):
            tokens.append(sampler.sample(logits))
            sampler.accept(tokens[-1])
    assert tokens == [0, 1, 0]  # 1.0; then 0.3 against 0.5; then 0.3 against -0.2 and 0.0


# Logit bias


def test_logit_bias_is_added_to_the_logit() -> None:
    assert greedy(row(1.0, 0.0), [], logit_bias={1: 1.01}) == 1
    assert greedy(row(1.0, 0.0), [], logit_bias={1: 0.99}) == 0
    assert set(drawn(HALVES, temperature=1.0, logit_bias={0: -math.inf, 3: -math.inf}, **OFF)) == {1, 2}
    biased = drawn(HALVES, 6000, temperature=1.0, logit_bias={1: math.log(2)}, **OFF)  # 4 : 4 : 1 : 1
    assert chi_square(biased, [0.4, 0.4, 0.1, 0.1]) < CHI_SQUARE[3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_of_every_token_is_refused(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, logit_bias={0: -math.inf, 1: -math.inf}, **OFF)
    with Sampler(sampling, 2) as sampler, pytest.raises(UsageError, match="bans every token"):
        sampler.sample(row(1.0, 2.0))


# Seeds and state


def stream(sampler: Sampler, times: int = 40) -> list[int]:
    return [sampler.sample(HALVES) for _ in range(times)]


def test_a_seed_gives_the_same_tokens_again() -> None:
    settings = {"temperature": 1.0, **OFF, "xtc_probability": 0.3, "xtc_threshold": 0.2}
    with Sampler(Sampling(seed=5, **settings), 4) as one, Sampler(Sampling(seed=5, **settings), 4) as same:
        tokens = stream(one)
        assert stream(same) == tokens
        assert stream(one) != tokens
        one.reset()
        assert stream(one) == tokens
    with Sampler(Sampling(seed=6, **settings), 4) as other:
        assert stream(other) != tokens


def test_a_drawn_seed_is_told_and_repeats() -> None:
    with Sampler(Sampling(temperature=1.0, **OFF), 4) as sampler:
        tokens = stream(sampler)
        seed = sampler.seed
    assert 0 <= seed <= MAX_SEED
    with Sampler(Sampling(temperature=1.0, seed=seed, **OFF), 4) as again:
        assert stream(again) == tokens
    assert len({Sampler(Sampling(), 4).seed for _ in range(8)}) > 1


def test_reset_forgets_the_tokens_seen() -> None:
    with Sampler(Sampling(**GREEDY, presence_penalty=1.0), 2) as sampler:
        sampler.accept(0)
        assert sampler.sample(row(1.0, 0.5)) == 1
        sampler.reset()
        assert sampler.sample(row(1.0, 0.5)) == 0


def test_a_clone_goes_on_alike_and_on_its_own() -> None:
    with Sampler(Sampling(temperature=1.0, seed=3, presence_penalty=0.5, **OFF), 4) as sampler:
        sampler.accept_prompt([0, 1])
        stream(sampler, 5)
        with sampler.clone() as clone:
            assert clone.seed == sampler.seed
            tokens = stream(sampler)
            assert stream(clone) == tokens
            clone.accept(3)
        assert stream(sampler)  # closing the clone leaves the original whole
    with Sampler(Sampling(**GREEDY), 4) as plain, plain.clone() as clone:
        assert clone.sample(HALVES) == plain.sample(HALVES) == 0


def test_the_row_is_left_as_it_is() -> None:
    logits = HALVES.copy()
    drawn(logits, 3, temperature=0.3, logit_bias={0: -5.0})
    assert np.array_equal(logits, HALVES)


def test_a_strided_row_is_read_right() -> None:
    table = np.zeros((4, 3), dtype=np.float32)
    table[:, 1] = HALVES
    assert chi_square(drawn(table[:, 1], 6000, temperature=1.0, **OFF), [1 / 2, 1 / 4, 1 / 8, 1 / 8]) < CHI_SQUARE[3]


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-9),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("top_p", math.nan),
        ("min_p", 2.0),
        ("typical_p", -1.0),
        ("xtc_probability", 1.5),
        ("xtc_threshold", math.nan),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", -1.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("penalty_last_n", -2),
        ("dry_multiplier", -1.0),
        ("dry_base", 0.5),
        ("dry_allowed_length", -1),
        ("dry_penalty_last_n", 10**9),
        ("seed", -1),
        ("seed", 2**32 - 1),
        ("seed", 1.0),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{name} is .*; it must be .* and "):
        Sampling(**{name: value}).validate()
    with pytest.raises(UsageError, match=name):
        Sampler(Sampling(**{name: value}), 4)


def test_bad_biases_and_breakers_are_refused() -> None:
    for bias in (math.nan, math.inf, 1e7):
        with pytest.raises(UsageError, match="logit_bias of token 2"):
            Sampling(logit_bias={2: bias}).validate()
    for token in (-1, 4):
        with pytest.raises(UsageError, match=f"token {token}.*0 to 3"):
            Sampler(Sampling(logit_bias={token: 1.0}), 4)
    for breaker in ("", "a\0b"):
        with pytest.raises(UsageError, match="breaker"):
            Sampling(dry_sequence_breakers=(breaker,)).validate()
    with pytest.raises(ModelError, match="width of 0"):
        Sampler(Sampling(), 0)


@pytest.mark.parametrize("settings", [GREEDY, {"temperature": 1.0}])
def test_rows_that_no_model_should_give_are_refused(settings: dict[str, Any]) -> None:
    nan, inf = math.nan, math.inf
    with Sampler(Sampling(**settings), 4) as sampler:
        for bad in (row(0, nan, 1, 2), row(3, 1, 2, nan), row(0, inf, 1, 2), row(*[-inf] * 4), row(*[nan] * 4)):
            with pytest.raises(ModelError, match="gave the logit"):
                sampler.sample(bad)
        for wrong in (HALVES[:3], HALVES.astype(np.float64), HALVES.reshape(1, 4), HALVES.tolist()):
            with pytest.raises(ModelError, match=r"row of logits is .*float32 \[4\]"):
                sampler.sample(wrong)  # type: ignore[arg-type]
        assert sampler.sample(row(-inf, 5.0, -inf, -inf)) == 1


def test_tokens_outside_the_row_are_refused() -> None:
    with Sampler(Sampling(presence_penalty=1.0), 4) as sampler:
        for token in (-1, 4):
            with pytest.raises(UsageError, match=f"token id {token}"):
                sampler.accept(token)
            with pytest.raises(UsageError, match=f"token id {token}"):
                sampler.accept_prompt([0, token])


def test_a_closed_sampler_says_so() -> None:
    sampler = Sampler(Sampling(), 4)
    sampler.close()
    sampler.close()
    for call in (lambda: sampler.sample(HALVES), lambda: sampler.accept(0), sampler.reset, sampler.clone):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_dry_and_grammar_need_a_vocabulary() -> None:
    with pytest.raises(UsageError, match="dry_multiplier needs"):
        Sampler(Sampling(dry_multiplier=0.8), 4)
    with pytest.raises(UsageError, match="a grammar needs"):
        Sampler(Sampling(grammar='root ::= "a"'), 4)


# With a vocabulary: id 3 + b is byte b, id 2 ends the answer, words follow the bytes


SHAPE = TinyShape()
WIDTH = SHAPE.vocab
END = 2


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from llama_cpp import llama_cpp as api

    path: Path = write_gguf(tmp_path_factory.mktemp("vocabulary") / "tiny.gguf", SHAPE)
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    yield api.llama_model_get_vocab(model)
    api.llama_model_free(model)


def ids(text: str) -> list[int]:
    return [3 + byte for byte in text.encode()]


def favouring(*tokens: int, width: int = WIDTH) -> Logits:
    """Logits that like the tokens in this order, then the end, and all others equally little."""
    logits = np.zeros(width, dtype=np.float32)
    logits[END] = 1.0
    for place, token in enumerate(tokens):
        logits[token] = 20.0 - place
    return logits


def answer(sampler: Sampler, logits: Logits, most: int = 30) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < most and (not tokens or tokens[-1] != END):
        tokens.append(sampler.sample(logits))
        sampler.accept(tokens[-1])
    return tokens


def dry(vocab: Any, seen: str, follower: str, logit: float, **settings: Any) -> bool:
    """Whether the follower, with this logit against 0 of all others, still wins after what was seen."""
    logits = np.zeros(WIDTH, dtype=np.float32)
    token = ids(follower)[0]
    logits[token] = logit
    with Sampler(Sampling(**GREEDY, dry_multiplier=2.0, dry_base=1.5, **settings), WIDTH, vocab) as sampler:
        sampler.accept_prompt(ids(seen))
        return sampler.sample(logits) == token


def test_dry_penalizes_what_would_lengthen_a_repetition(vocab: Any) -> None:
    # "ab" came before and was followed by "c": two tokens repeated, as many as are allowed: 2 x 1.5^0 = 2.
    assert dry(vocab, "abcdab", "c", 2.01)
    assert not dry(vocab, "abcdab", "c", 1.99)
    # Four repeated: 2 x 1.5^2 = 4.5.
    assert dry(vocab, "wxyzc-wxyz", "c", 4.51)
    assert not dry(vocab, "wxyzc-wxyz", "c", 4.49)
    # One repeated is allowed, and a longer allowance lets two pass.
    assert dry(vocab, "abcdxb", "c", 0.01)
    assert dry(vocab, "abcdab", "c", 0.01, dry_allowed_length=3)
    # A window that ends after the first occurrence, and no window.
    assert dry(vocab, "abcdab", "c", 0.01, dry_penalty_last_n=4)
    assert dry(vocab, "abcdab", "c", 0.01, dry_penalty_last_n=0)
    # A sequence breaker inside the repetition ends it.
    assert dry(vocab, "a:cda:", "c", 0.01)
    assert not dry(vocab, "a:cda:", "c", 1.99, dry_sequence_breakers=("!",))
    assert not dry(vocab, "a:cda:", "c", 1.99, dry_sequence_breakers=())


def test_dry_survives_clone_and_reset(vocab: Any) -> None:
    logits = favouring(*ids("c"))
    logits[ids("c")[0]] = 1.5
    with Sampler(Sampling(**GREEDY, dry_multiplier=2.0), WIDTH, vocab) as sampler:
        sampler.accept_prompt(ids("abcdab"))
        with sampler.clone() as clone:
            assert clone.sample(logits) != ids("c")[0]
        sampler.reset()
        assert sampler.sample(logits) == ids("c")[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_grammar_leaves_only_what_it_describes(vocab: Any, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=1, grammar='root ::= "yes" | "no"')
    with Sampler(sampling, WIDTH, vocab) as sampler:
        assert answer(sampler, favouring(*ids("xqn"))) == [*ids("no"), END]
        sampler.reset()
        assert answer(sampler, favouring(*ids("xqy"))) == [*ids("yes"), END]
        sampler.reset()
        assert sampler.sample(favouring(END, *ids("y"))) == ids("y")[0]  # it may not end before it has begun


def test_after_the_grammar_has_ended_only_end_tokens_are_left(vocab: Any) -> None:
    with Sampler(Sampling(**GREEDY, grammar='root ::= "a"'), WIDTH, vocab) as sampler:
        sampler.accept(ids("a")[0])
        for wish in (*ids("a\n\0"), 1):
            assert sampler.sample(favouring(wish)) in (0, END)
        sampler.accept(END)
        sampler.accept(END)  # an end token changes nothing
        assert sampler.sample(favouring(*ids("a"), END)) == END


def test_a_token_of_several_characters_must_fit_whole(vocab: Any) -> None:
    texts = TinyVocabulary().tokens()
    the, ing = texts.index("\u0120the"), texts.index("ing")
    with Sampler(Sampling(**GREEDY, grammar='root ::= " them" | "ink"'), WIDTH, vocab) as sampler:
        assert sampler.sample(favouring(the, ing)) == the
        assert sampler.sample(favouring(ing, *ids("i"))) == ids("i")[0]


def test_half_a_character_is_completed_within_the_grammar(vocab: Any) -> None:
    e_acute = ids("\u00e9")  # C3 A9
    with Sampler(Sampling(**GREEDY, grammar='root ::= "\u00e9"'), WIDTH, vocab) as sampler:
        wish = favouring(3 + 0xFF, 3 + 0xC2, 3 + 0xA8, END, e_acute[0], e_acute[1])
        assert answer(sampler, wish) == [*e_acute, END]


def test_a_token_that_the_grammar_forbids_is_never_accepted(vocab: Any) -> None:
    with Sampler(Sampling(**GREEDY, grammar='root ::= "ab"'), WIDTH, vocab) as sampler:
        for token in (END, *ids("b\xff"), 0, 1):
            with pytest.raises(UsageError, match=f"does not allow token {token}"):
                sampler.accept(token)
        assert answer(sampler, favouring(END)) == [*ids("ab"), END]
        with pytest.raises(UsageError, match="does not allow"):
            sampler.accept(ids("a")[0])


def test_the_prompt_is_not_part_of_the_grammar(vocab: Any) -> None:
    with Sampler(Sampling(**GREEDY, grammar='root ::= "ab"', presence_penalty=1.0), WIDTH, vocab) as sampler:
        sampler.accept_prompt(ids("zzz"))
        assert answer(sampler, favouring(*ids("z"))) == [*ids("ab"), END]


def test_bias_and_penalties_apply_within_the_grammar(vocab: Any) -> None:
    a, b = ids("ab")
    with Sampler(Sampling(**GREEDY, grammar="root ::= [ab]+", logit_bias={a: -math.inf}), WIDTH, vocab) as sampler:
        assert sampler.sample(favouring(*ids("xa"))) == b
    with Sampler(Sampling(**GREEDY, grammar="root ::= [ab]+", presence_penalty=1.5), WIDTH, vocab) as sampler:
        sampler.accept(a)
        assert sampler.sample(favouring(*ids("xab"))) == b  # 19 - 1.5 against 18
    banned = Sampling(**GREEDY, grammar='root ::= "a"', logit_bias={a: -math.inf})
    with Sampler(banned, WIDTH, vocab) as sampler, pytest.raises(UsageError, match="allows no token"):
        sampler.sample(favouring(*ids("x")))


def test_a_grammar_draws_in_proportion_among_what_it_allows(vocab: Any) -> None:
    a, b, x = ids("abx")
    logits = np.full(WIDTH, -np.inf, dtype=np.float32)
    logits[[a, b, x]] = np.log([0.2, 0.1, 0.7])
    with Sampler(Sampling(temperature=1.0, seed=2, grammar="root ::= [ab]", **OFF), WIDTH, vocab) as sampler:
        counts = Counter(sampler.sample(logits) - a for _ in range(6000))
    assert chi_square(counts, [2 / 3, 1 / 3]) < CHI_SQUARE[1]


def test_a_clone_has_a_grammar_of_its_own(vocab: Any) -> None:
    with Sampler(Sampling(**GREEDY, grammar='root ::= "ab" | "ac"'), WIDTH, vocab) as sampler:
        sampler.accept(ids("a")[0])
        with sampler.clone() as clone:
            assert answer(clone, favouring(*ids("c"))) == [*ids("c"), END]
        assert answer(sampler, favouring(*ids("b"))) == [*ids("b"), END]


def test_ids_beyond_the_vocabulary_never_reach_the_grammar(vocab: Any) -> None:
    wide = WIDTH + 5
    with Sampler(Sampling(**GREEDY, grammar='root ::= "a"'), wide, vocab) as sampler:
        assert sampler.sample(favouring(WIDTH + 3, width=wide)) == ids("a")[0]
        with pytest.raises(UsageError, match="does not allow"):
            sampler.accept(WIDTH + 3)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("nonsense", "expecting ::="),
        ('root ::= "a', "unexpected end of input"),
        ("root ::= missing", "Undefined rule"),
        ('start ::= "a"', "refuses it"),
        ('root ::= "\\q"', "unknown escape"),
        ("root ::= (", "expecting '\\)'"),
        ("root ::= [a-z]{5000}", "repetitions"),
        ('root ::= root "a"', "can begin with itself"),
        ("root ::= <[5]>", "names the token"),
        ("%llguidance {}", "expecting name"),
        ("   ", "refuses it"),
    ],
)
def test_a_grammar_that_cannot_be_used_says_why(
    vocab: Any, grammar: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=reason):
        Sampler(Sampling(grammar=grammar), WIDTH, vocab)
    assert "error parsing grammar" not in capfd.readouterr().err


def test_a_grammar_of_json_writes_json(vocab: Any) -> None:
    import json

    grammar = r"""
root ::= "{" pair ("," pair)* "}"
pair ::= "\"" [a-z]+ "\":" value
value ::= [1-9] [0-9]{0,3} | "\"" [ !#-Z^-~]* "\"" | "[" (value ("," value)*)? "]" | "true"
"""
    random = np.random.default_rng(11)
    texts = [bytes([token - 3]) if 3 <= token < 259 else None for token in range(WIDTH)]
    for seed in range(5):
        with Sampler(Sampling(temperature=1.0, seed=seed, grammar=grammar), WIDTH, vocab) as sampler:
            tokens: list[int] = []
            while len(tokens) < 400 and (not tokens or tokens[-1] not in (0, END)):
                logits = random.normal(size=WIDTH).astype(np.float32)
                logits[259:] = -30.0  # words would need their texts here; bytes alone can write anything
                logits[ids('}"]')] += 2.0
                logits[END] += 5.0
                tokens.append(sampler.sample(logits))
                sampler.accept(tokens[-1])
            assert tokens[-1] in (0, END)
            assert isinstance(json.loads(b"".join(texts[token] or b"" for token in tokens[:-1])), dict)
