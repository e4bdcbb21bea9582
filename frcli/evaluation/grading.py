"""Whether an answer is right: a number, an option, a text, a program that passes its tests."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from frcli.evaluation.sandbox import Limits, Run, run_program

_NUMBER = re.compile(r"(?<![\w)])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_FENCE = re.compile(r"```[a-zA-Z0-9]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_LETTER = re.compile(r"\W*([A-Za-z])(?:[).:]|\W*$)\s*")


def number_in(answer: str) -> float | None:
    """The number that an answer comes to: the first one behind its last ``####``, or else its last one."""
    _, mark, behind = answer.rpartition("####")
    found = _NUMBER.findall(behind) if mark else []
    found = found[:1] or _NUMBER.findall(answer)[-1:]
    return float(found[0].replace(",", "")) if found else None


def same_number(answer: str, right: str) -> bool:
    """Whether both come to the same number."""
    one, other = number_in(answer), number_in(right)
    return one is not None and other is not None and abs(one - other) <= 1e-6 * max(1.0, abs(other))


def same_option(answer: str, right: str) -> bool:
    """Whether an answer picks the option ``right``, spelt ``B) its text``: by its letter, which must stand alone, or by
    its text.
    """
    line = _first_line(answer)
    letter, _, text = right.partition(")")
    if match := _LETTER.match(line):
        return match[1].upper() == letter.strip().upper()
    return plain(line) == plain(text)


def same_text(answer: str, right: str) -> bool:
    """Whether the answer, or its first line, is the text, letter case and punctuation aside; a letter that an option
    may have in front (``B) ``) does not count.
    """
    line = _first_line(answer)
    return plain(right) in {plain(answer), plain(line), plain(re.sub(r"^\W*[A-Za-z][).:]\s+", "", line))}


def plain(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    kept = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(kept.split())


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def program_in(answer: str) -> str:
    """The first fenced block of an answer, or all of it."""
    match = _FENCE.search(answer)
    return match[1] if match else answer


def run_tests(answer: str, tests: Sequence[str], setup: str = "", limits: Limits | None = None) -> Run:
    """Run the program in an answer, then ``setup`` and the ``tests`` (assertions), in the sandbox."""
    return run_program("\n".join([program_in(answer), setup, *tests]), limits or Limits())
