"""Preference pairs from a bundle's own answers: a right one and a wrong one to the same prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frcli.decode.answer import Answer
from frcli.decode.batch import Request, write_many
from frcli.decode.engine import Engine
from frcli.decode.sampler import Sampling
from frcli.errors import ContextError, FrcliError
from frcli.evaluation.grading import run_tests, same_number, same_option
from frcli.examples import Example, Pair, example_of
from frcli.journal import Journal, key_of


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, its right answer, and how an answer is graded."""

    example: Example
    right: Callable[[str], bool]


@dataclass(slots=True)
class Counts:
    """What came of the questions: ``written`` pairs, of which ``gold`` have the data's answer as the right one; all
    answers right (``easy``: no pair), and no answer that came to its end (``too_long``).
    """

    written: int = 0
    gold: int = 0
    easy: int = 0
    too_long: int = 0


def question_of(row: Mapping[str, Any], where: str) -> Question | None:
    """The question that a data set's row asks; None for rows whose answers only people can grade."""
    example = example_of(dict(row), where)
    if "test_list" in row:
        tests, setup = list(row["test_list"]), str(row.get("test_setup_code") or "")
        return Question(example, lambda answer: run_tests(answer, tests, setup).finished)
    if "options" in row:
        return Question(example, lambda answer: same_option(answer, example.answer))
    if "####" in example.answer:
        return Question(example, lambda answer: same_number(answer, example.answer))
    return None


def make_pairs(
    engine: Engine,
    questions: Sequence[Question],
    journal: Journal,
    *,
    samples: int,
    sampling: Sampling,
    most: int,
    counts: Counts,
    report: Callable[[int], None],
) -> Iterator[Pair]:
    """A pair for each question that the bundle answers wrongly at least once in ``samples`` answers of ``most`` tokens,
    in the questions' order, however the answers came.

    The right answer is the bundle's own where it has one, else the data's (``gold``), the wrong one the first that is.
    Answers are kept in the ``journal``; ``report(done)`` counts questions. Sample i of question q has the seed ``q *
    samples + i`` behind that of ``sampling``.
    """
    setting = [engine.setting, samples, most, repr(sampling)]
    keys = [key_of(setting, number, question.example.prompt) for number, question in enumerate(questions)]
    found = {number: entry["answers"] for number, key in enumerate(keys) if (entry := journal.get(key)) is not None}
    todo = [number for number in range(len(questions)) if number not in found]
    if found:
        report(len(found))

    def requests() -> Iterator[Request]:
        for number in todo:
            prompt = engine.encode_messages([{"role": "user", "content": questions[number].example.prompt}])
            for sample in range(samples):
                seed = (sampling.seed or 0) + number * samples + sample
                yield Request(prompt, replace(sampling, seed=seed), most)

    written: dict[int, dict[int, str | None]] = {}
    for place, outcome in write_many(engine, requests()):
        number, sample = todo[place // samples], place % samples
        answers = written.setdefault(number, {})
        answers[sample] = _text(outcome)
        if len(answers) == samples:
            found[number] = [answers[i] for i in range(samples)]
            del written[number]
            report(len(found))
            journal.put(keys[number], {"answers": found[number]})
    for number, question in enumerate(questions):
        yield from _pair(question, found[number], counts)


def _text(outcome: Answer | FrcliError) -> str | None:
    """The answer; None for a prompt that does not fit, and for an answer that was cut off."""
    if isinstance(outcome, ContextError):
        return None
    if isinstance(outcome, FrcliError):
        raise outcome
    return outcome.text if outcome.finish_reason in ("eos", "stop") else None


def _pair(question: Question, answers: Sequence[str | None], counts: Counts) -> Iterator[Pair]:
    written = list(dict.fromkeys(answer.strip() for answer in answers if answer is not None))
    if not written:
        counts.too_long += 1
        return
    graded = {answer: question.right(answer) for answer in written}
    wrong = next((answer for answer, right in graded.items() if not right), None)
    if wrong is None:
        counts.easy += 1
        return
    own = next((answer for answer, right in graded.items() if right), None)
    counts.written += 1
    counts.gold += own is None
    yield Pair(question.example.prompt, question.example.answer if own is None else own, wrong)
