"""Rows of every data set that we read, and how an example becomes tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frcli.errors import DataError
from frcli.examples import Example, Pair, encode_examples, encode_pairs, read_examples, read_pairs


def written(folder: Path, *rows: object) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "example"),
    [
        (
            {"question": "How many? ", "answer": "3*4 = <<3*4=12>>12 pens.\n#### 12"},
            Example("How many?", "3*4 = 12 pens.\n#### 12"),
        ),
        (
            {
                "question": "He has 2 . And 3 ?",
                "equation": "* + number0 3.0 number1",
                "numbers": "2.0 1.5",
                "answer": "7.5",
            },
            Example("He has 2. And 3?", "(2 + 3) * 1.5 = 7.5\n#### 7.5"),
        ),
        (
            {
                "Body": "A pack costs 76",
                "Question": "How much?",
                "Equation": "( ( 76.0 - 25.0 ) * 2.0 )",
                "Answer": 102.0,
            },
            Example("A pack costs 76. How much?", "(76 - 25) * 2 = 102\n#### 102"),
        ),
        (
            {"Body": "B.", "Question": "Q?", "Equation": "( 2.0 + 3.0 ) * ( 4.0 + 5.0 )", "Answer": 45},
            Example("B. Q?", "(2 + 3) * (4 + 5) = 45\n#### 45"),
        ),
        (
            {"text": "Add.", "code": "def f(a):\r\n\treturn a + 1 \r\n", "test_list": ["assert f(1) == 2", "x"]},
            Example("Add.\nIt must pass this test: assert f(1) == 2", "```python\ndef f(a):\n    return a + 1\n```"),
        ),
        (
            {"context": "C.", "question": "Q?", "options": ["A) True", "B) False"], "answer": "B"},
            Example("C.\nQ?\nA) True\nB) False", "B) False"),
        ),
        (
            {"instruction": "Do.", "instances": [{"input": "it", "output": "done"}]},
            Example("Do.\n\nit", "done"),
        ),
        ({"prompt": "p", "answer": "a"}, Example("p", "a")),
    ],
)
def test_every_shape(tmp_path: Path, row: object, example: Example) -> None:
    assert read_examples(written(tmp_path, row)) == [example]


def test_a_slice_counts_rows_as_python_does(tmp_path: Path) -> None:
    path = written(tmp_path, *({"prompt": str(i), "answer": ""} for i in range(5)))
    assert [e.prompt for e in read_examples(f"{path}@1:3")] == ["1", "2"]
    assert [e.prompt for e in read_examples(f"{path}@3:")] == ["3", "4"]
    assert [e.prompt for e in read_examples(f"{path}@:1")] == ["0"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "rows.jsonl:1 is not JSON"),
        ({"what": 1}, "rows.jsonl:1 has no known shape"),
        ("[]", "rows.jsonl:1 is not a JSON object"),
        ({"context": "", "question": "", "options": ["A) x"], "answer": "C"}, "rows.jsonl:1 has a value"),
        ({"question": 3, "answer": 4}, "rows.jsonl:1 has a value"),
        ({"prompt": 3, "answer": "4"}, "rows.jsonl:1 has a value"),
        ({"question": "", "equation": "number0", "numbers": "1", "answer": "inf"}, "rows.jsonl:1 has a value"),
        ({"question": "", "equation": "+ number0", "numbers": "1", "answer": "1"}, "rows.jsonl:1 has a value"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_examples(written(tmp_path, row))


def test_a_missing_file_an_empty_slice_and_a_bad_slice(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "p", "answer": "a"})
    for spec, words in (
        (f"{path}@5:9", "holds no rows"),
        (f"{path}@x", "cannot read"),
        (f"{path}.gone", "cannot read"),
    ):
        with pytest.raises(DataError, match=words):
            read_examples(spec)


class Characters:
    """A tokenizer and a template that can be checked by eye."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        assert special
        return [ord(c) for c in text]

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = "".join(f"{m['role'][0]}:{m['content']}|\n" for m in messages)
        return text + ("a:" if add_generation_prompt else "")


def test_the_answer_is_what_follows_the_generation_prompt_up_to_its_end_token() -> None:
    tool = Characters()
    (encoded,) = encode_examples([Example("hi", "yo")], tool, tool, 100)
    assert "".join(map(chr, encoded.prompt)) == "u:hi|\na:"
    assert "".join(map(chr, encoded.answer)) == "yo|"


def test_long_answers_are_cut_and_long_prompts_left_out() -> None:
    tool = Characters()
    encoded = encode_examples([Example("hi", "answer"), Example("x" * 50, "a")], tool, tool, 10)
    assert [("".join(map(chr, e.prompt)), "".join(map(chr, e.answer))) for e in encoded] == [("u:hi|\na:", "an")]
    with pytest.raises(DataError, match="no prompt of 1 examples is shorter than 10 tokens"):
        encode_examples([Example("x" * 50, "a")], tool, tool, 10)


def test_pairs_are_rows_of_three_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "right", "rejected": "wrong", "why": 1}]
    assert read_pairs(written(tmp_path, *rows)) == [Pair("p", "right", "wrong")]
    for bad in ({"prompt": "p", "chosen": "c"}, {"prompt": "p", "chosen": 1, "rejected": "r"}):
        with pytest.raises(DataError, match="rows.jsonl:1 is no pair"):
            read_pairs(written(tmp_path, bad))


def test_rows_of_two_files_are_joined(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two+three"
    one.mkdir(), two.mkdir()
    second = written(two, {"prompt": "c", "answer": "3"})
    assert read_examples(second) == [Example("c", "3")]  # a file that is there is meant
    third = written(one, *({"prompt": x, "answer": x} for x in "xyz"))
    assert [each.prompt for each in read_examples(f"{third}@1:+{third}")] == ["y\n\nx", "z\n\ny"]
    assert read_examples(f"{third}@0:1+{third}@2:3") == [Example("x\n\nz", "x\n\nz")]


def test_weights(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "answer": "x"}) + "\n" for i in range(10)))
    twice = [each.prompt for each in read_examples(f"{path}@0:3*2")]
    assert twice == ["0", "1", "2", "0", "1", "2"]
    some = [int(each.prompt) for each in read_examples(f"{path}*.4")]
    assert len(some) == 4 and some == sorted(set(some))
    more = [int(each.prompt) for each in read_examples(f"{path}*1.4")]
    assert more == [*range(10), *some]
    assert read_examples(f"{path}*0") == []
    named = tmp_path / "rows.jsonl*2"
    named.write_text(json.dumps({"prompt": "a file", "answer": "x"}) + "\n")
    assert [each.prompt for each in read_examples(str(named))] == ["a file"]


def test_pairs_with_an_answer_that_would_be_cut_are_left_out() -> None:
    tool = Characters()
    pairs = [Pair("a", "yes", "no"), Pair("a", "yes " * 50, "no"), Pair("a", "no", "yes " * 50)]
    ((right, wrong),) = encode_pairs(pairs, tool, tool, 60)
    assert ["".join(map(chr, each.answer)) for each in (right, wrong)] == ["yes|", "no|"]
    with pytest.raises(DataError, match="none of 2 pairs has at most 60 tokens"):
        encode_pairs(pairs[1:], tool, tool, 60)
