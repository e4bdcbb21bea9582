"""Pairs of answers that a tiny bundle writes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import write_bundle

from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.evaluation.pairs import Counts, Question, make_pairs, question_of
from frcli.examples import Example, Pair
from frcli.journal import Journal

WARM = Sampling(temperature=1.0, seed=7, logit_bias={2: 8.0})  # so that answers end, and soon
ROWS = [
    {"question": "How many?", "answer": "#### 3"},
    {"text": "Double it.", "code": "def f(n): return 2 * n", "test_list": ["assert f(2) == 4"]},
    {"context": "c", "question": "q", "options": ["A) True", "B) False"], "answer": "B"},
    {"instruction": "Say hello.", "instances": [{"input": "", "output": "Hello."}]},
]


def test_rows_are_graded_by_their_kind() -> None:
    number, program, option, chat = (question_of(row, "x:1") for row in ROWS)
    assert number is not None and number.right("it is 3") and not number.right("it is 4")
    assert program is not None and program.right("```python\ndef f(n):\n    return n + n\n```")
    assert not program.right("def f(n): return n")
    assert option is not None and option.right("B") and not option.right("A) True")
    assert chat is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        return write_bundle(folder / "trio")


@pytest.fixture(autouse=True)
def _cache(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(bundle.folder.parent / "cache"))


def run(
    bundle: Bundle, questions: list[Question], journal: Journal, sequences: int = 4
) -> tuple[list[Pair], Counts, list[int]]:
    counts, done = Counts(), []
    with Engine(bundle, Options(sequences=sequences, draft="off")) as engine:
        made = make_pairs(
            engine, questions, journal, samples=3, sampling=WARM, most=0, counts=counts, report=done.append
        )
        return list(made), counts, done


def questions() -> list[Question]:
    """Answers that are right by their length: the bundle writes both kinds."""
    never, always = Question(Example("the", "gold"), lambda _: False), Question(Example("of", "x"), lambda _: True)
    even = [Question(Example(f"1 {i}", f"gold {i}"), lambda answer: len(answer) % 2 == 0) for i in range(6)]
    return [never, always, *even]


def test_right_and_wrong_are_told_apart(bundle: Bundle) -> None:
    pairs, counts, done = run(bundle, questions(), Journal(None))
    by_prompt = {pair.prompt: pair for pair in pairs}
    assert by_prompt["the"].chosen == "gold"
    assert "of" not in by_prompt
    own = 0
    for prompt, pair in by_prompt.items():
        if prompt != "the":
            assert len(pair.rejected) % 2 == 1
            assert len(pair.chosen) % 2 == 0 or pair.chosen.startswith("gold")
            own += not pair.chosen.startswith("gold")
    assert own
    assert counts.written == len(pairs) and counts.gold == len(pairs) - own and counts.easy >= 1
    assert done == list(range(1, 9))


def test_a_journal_gives_the_same_pairs_without_asking_again(bundle: Bundle, tmp_path: Path) -> None:
    whole, counts, _ = run(bundle, questions(), Journal(None))
    path = tmp_path / "part"
    with Journal(path) as journal:
        run(bundle, questions()[:5], journal)
    with Journal(path) as journal:
        assert len(journal) == 5
        again, same, _ = run(bundle, questions(), journal)
    assert again == whole
    assert same == counts
