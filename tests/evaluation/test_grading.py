"""Answers that are right and answers that only look so."""

from __future__ import annotations

import pytest

from frcli.evaluation.grading import number_in, program_in, run_tests, same_number, same_option, same_text


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3 * 4 = 12\n#### 12", 12),
        ("#### 1,234.50 dollars", 1234.5),
        ("first #### 3\nno, #### 4 of 5", 4),
        ("It costs $1,000.", 1000),
        ("between 2 and -7", -7),
        ("about .5", 0.5),
        ("it takes 3-4 hours", 4),
        ("x = -4", -4),
        ("#### none, so 8", 8),
        ("5 is wrong ####", 5),
        ("no number", None),
        ("", None),
        ("8.", 8),
    ],
)
def test_the_number_of_an_answer(answer: str, number: float | None) -> None:
    assert number_in(answer) == number


def test_numbers_are_compared_by_value() -> None:
    assert same_number("#### 12.0", "6 * 2 = 12\n#### 12")
    assert not same_number("#### 12.1", "#### 12")
    assert not same_number("twelve", "#### 12")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B) False", True),
        ("B", True),
        ("b.", True),
        ("(B) because ...", True),
        ("\n\nB: it does not\nA) True", True),
        ("False", True),
        ("false.", True),
        ("A) False", False),
        ("Because of that", False),
        ("", False),
        ("A) True B) False", False),
    ],
)
def test_an_option_is_its_letter_or_its_text(answer: str, right: bool) -> None:
    assert same_option(answer, "B) False") is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("not-entailment", True),
        ("Not entailment", False),
        (" NOT-ENTAILMENT.\nBecause", True),
        ("B) not-entailment", True),
        ("entailment", False),
        ("It is not-entailment", False),
        ("", False),
    ],
)
def test_texts_are_compared_without_case_and_punctuation(answer: str, right: bool) -> None:
    assert same_text(answer, "not-entailment") is right


def test_a_program_is_the_first_fenced_block_or_everything() -> None:
    assert program_in("Here:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1\n"
    assert program_in("```\nx = 1") == "x = 1"
    assert program_in("x = 1") == "x = 1"


def test_a_program_is_right_when_all_its_tests_pass() -> None:
    answer = "```python\ndef double(n):\n    return 2 * n\n```"
    assert run_tests(answer, ["assert double(2) == 4", "assert double(x) == 2"], "x = 1").finished
    failed = run_tests(answer, ["assert double(2) == 4", "assert double(2) == 5"])
    assert not failed.finished and "AssertionError" in failed.reason
