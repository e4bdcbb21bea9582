"""Prompts with known answers, read from the JSON lines of the data sets that experts and routers are trained and
measured on.

A row's shape tells what it is:

    question, answer                     GSM8K: a worked answer; its calculator marks ``<<3*4=12>>`` are left out
    question, equation, numbers, answer  MAWPS and ASDiv: the prefix equation becomes ``56 * 9 = 504``
    Body, Question, Equation, Answer     SVAMP
    text, code, test_list                MBPP: the first test is part of the prompt, the answer is a fenced block
    context, question, options, answer   logic: the answer is the whole option, ``B) False``
    instruction, instances               self-instruct: the first instance
    prompt, answer                       anything else

so that every arithmetic answer ends in the line ``#### N``.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcli.errors import DataError
from frcli.tokens import ChatTemplate, Tokenizer


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the answer that is right for it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, an answer that is right and one that is worse."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as token ids: what the model is given, and what it should go on with, its end token last."""

    prompt: list[int]
    answer: list[int]


def read_examples(spec: str) -> list[Example]:
    """The examples of ``PATH`` or ``PATH@START:STOP`` (rows counted from 0, as in a slice), in the file's order, with
    ``*WEIGHT`` behind it each so many times (see :func:`read_rows`).

    ``SPEC+SPEC`` joins their rows one by one, as far as both go: two questions in one prompt, which needs both domains.
    Raises ``DataError`` naming file and line for a row that is not JSON or of no known shape.
    """
    first, plus, rest = spec.partition("+")
    if plus and not Path(_bounds(spec)[0]).exists():
        pairs = zip(read_examples(first), read_examples(rest), strict=False)
        return [Example(f"{a.prompt}\n\n{b.prompt}", f"{a.answer}\n\n{b.answer}") for a, b in pairs]
    return [example_of(row, where) for row, where in read_rows(spec)]


def read_pairs(spec: str) -> list[Pair]:
    """The pairs of ``PATH`` or ``PATH@START:STOP``: rows of ``prompt``, ``chosen`` and ``rejected``, all texts.

    Raises ``DataError`` naming file and line for any other row.
    """
    pairs = []
    for row, where in read_rows(spec):
        parts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{where} is no pair", "rows of pairs have the texts prompt, chosen and rejected")
        pairs.append(Pair(*map(str, parts)))
    return pairs


def read_rows(spec: str) -> list[tuple[dict[str, Any], str]]:
    """The rows as they are, and where each stands (``FILE:LINE``), of the same PATH; raises ``DataError`` for what is
    no JSON object.

    ``SPEC*WEIGHT`` has every row so many times: 2.5 is all of them twice and half of them, always the same, once more.
    """
    unweighted, weight = _weight(spec)
    path, start, stop = _bounds(unweighted)
    rows: list[tuple[dict[str, Any], str]] = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if stop is not None and number >= stop:
                    break
                if number >= start and line.strip():
                    rows.append((_row(line, f"{path}:{number + 1}"), f"{path}:{number + 1}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "give a file of JSON lines") from None
    if not rows:
        raise DataError(f"{spec} holds no rows", "look at the numbers behind the @")
    times, part = divmod(weight, 1)
    some = sorted(random.Random(0).sample(range(len(rows)), round(part * len(rows))))
    return rows * int(times) + [rows[index] for index in some]


def _weight(spec: str) -> tuple[str, float]:
    match = re.fullmatch(r"(.+)\*(\d+|\d*\.\d+)", spec)
    if not match or Path(spec).exists():
        return spec, 1.0
    return match[1], float(match[2])


def _bounds(spec: str) -> tuple[str, int, int | None]:
    match = re.fullmatch(r"(.+)@(\d*):(\d*)", spec)
    if not match:
        return spec, 0, None
    return match[1], int(match[2] or 0), int(match[3]) if match[3] else None


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object", "give one object a line")
    return row


def example_of(row: dict[str, Any], where: str) -> Example:
    """The example that a row is; raises ``DataError`` with ``where`` for one of no known shape."""
    for keys, make in _SHAPES:
        if keys <= row.keys():
            try:
                return make(row)
            except (LookupError, TypeError, ArithmeticError, ValueError, AttributeError, StopIteration) as error:
                raise DataError(f"{where} has a value that does not fit its shape: {error!r}") from None
    raise DataError(
        f"{where} has no known shape", f"the shapes are: {', '.join('+'.join(sorted(k)) for k, _ in _SHAPES)}"
    )


def _number(text: Any) -> str:
    value = float(text)
    return str(int(value)) if value == int(value) else str(round(value, 2))


def _gsm8k(row: dict[str, Any]) -> Example:
    return Example(row["question"].strip(), re.sub(r"<<[^>]*>>", "", row["answer"]).strip())


def _prefix_equation(row: dict[str, Any]) -> Example:
    numbers = [_number(n) for n in row["numbers"].split()]
    tokens = iter(row["equation"].split())

    def infix() -> str:
        token = next(tokens)
        if token in "+-*/":
            left, right = infix(), infix()
            return f"({left} {token} {right})"
        return numbers[int(token.removeprefix("number"))] if token.startswith("number") else _number(token)

    return _sum(row["question"], infix(), row["answer"])


def _svamp(row: dict[str, Any]) -> Example:
    equation = re.sub(r"\d+(\.\d+)?", lambda match: _number(match[0]), row["Equation"])
    equation = equation.replace("( ", "(").replace(" )", ")")
    body = row["Body"].strip()
    return Example(
        *_pair(
            f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {row['Question'].strip()}", equation, row["Answer"]
        )
    )


def _sum(question: str, equation: str, answer: Any) -> Example:
    return Example(*_pair(re.sub(r" ([,.?!'])", r"\1", question.strip()), equation, answer))


def _pair(question: str, equation: str, answer: Any) -> tuple[str, str]:
    if re.fullmatch(r"\([^()]*(\([^()]*\)[^()]*)*\)", equation):  # one pair around everything
        equation = equation[1:-1]
    return question, f"{equation} = {_number(answer)}\n#### {_number(answer)}"


def _mbpp(row: dict[str, Any]) -> Example:
    code = "\n".join(line.rstrip() for line in row["code"].expandtabs(4).strip().splitlines())
    return Example(f"{row['text'].strip()}\nIt must pass this test: {row['test_list'][0]}", f"```python\n{code}\n```")


def _logic(row: dict[str, Any]) -> Example:
    letter = row["answer"].strip()
    option = next(text for text in row["options"] if text.startswith(letter))
    return Example("\n".join([row["context"].strip(), row["question"].strip(), *row["options"]]), option.strip())


def _self_instruct(row: dict[str, Any]) -> Example:
    instance = row["instances"][0]
    return Example(
        "\n\n".join(filter(None, [row["instruction"].strip(), instance["input"].strip()])), instance["output"].strip()
    )


def _plain(row: dict[str, Any]) -> Example:
    if not isinstance(row["prompt"], str) or not isinstance(row["answer"], str):
        raise ValueError("prompt and answer are texts")
    return Example(row["prompt"], row["answer"])


_SHAPES: Sequence[tuple[set[str], Callable[[dict[str, Any]], Example]]] = (
    ({"question", "equation", "numbers", "answer"}, _prefix_equation),
    ({"context", "question", "options", "answer"}, _logic),
    ({"Body", "Question", "Equation", "Answer"}, _svamp),
    ({"text", "code", "test_list"}, _mbpp),
    ({"instruction", "instances"}, _self_instruct),
    ({"question", "answer"}, _gsm8k),
    ({"prompt", "answer"}, _plain),
)


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, template: ChatTemplate, limit: int
) -> list[Encoded]:
    """Each example as the token ids that a chat would see, answers cut so that both are at most ``limit`` tokens.

    The answer runs up to and including the end token that the template writes after it. Examples whose prompt alone
    reaches the limit, and those without a token to answer, are left out; ``DataError`` is raised when that leaves none.
    """
    made = [_encoded(example, tokenizer, template, limit) for example in examples]
    encoded = [each for each in made if each is not None]
    if not encoded:
        raise DataError(f"no prompt of {len(examples)} examples is shorter than {limit} tokens", "raise --max-length")
    return encoded


def _encoded(example: Example, tokenizer: Tokenizer, template: ChatTemplate, limit: int) -> Encoded | None:
    messages = [{"role": "user", "content": example.prompt}]
    head = template.render(messages)
    whole = template.render([*messages, {"role": "assistant", "content": example.answer}], False)
    if not whole.startswith(head):
        raise DataError("the chat template does not go on from its own generation prompt", "use another template")
    prompt = tokenizer.encode(head, special=True)
    answer = tokenizer.encode(whole[len(head) :].rstrip("\n"), special=True)
    return Encoded(prompt, answer[: limit - len(prompt)]) if answer and len(prompt) < limit else None


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, template: ChatTemplate, limit: int
) -> list[tuple[Encoded, Encoded]]:
    """Both answers of each pair as :func:`encode_examples` makes them, but none that is cut: pairs with an answer that
    is too long are left out, since what is compared are sums over whole answers.
    """
    both = []
    for pair in pairs:
        right, wrong = (
            _encoded(Example(pair.prompt, answer), tokenizer, template, sys.maxsize)
            for answer in (pair.chosen, pair.rejected)
        )
        if right is None or wrong is None:
            continue
        if max(len(each.prompt) + len(each.answer) for each in (right, wrong)) <= limit:
            both.append((right, wrong))
    if not both:
        raise DataError(f"none of {len(pairs)} pairs has at most {limit} tokens", "raise --max-length")
    return both
