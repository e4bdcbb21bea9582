"""Completion, asked for as shells ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from frcli.bundle import Bundle
from frcli.cli import completion
from frcli.fusion.registry import OWN

Run = Callable[..., Any]


def bash(*words: str) -> dict[str, str]:
    """What bash asks with: it ends a word before and behind ``:`` and ``=``."""
    return {"_FRCLI_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}


def test_policies_are_those_of_the_registry() -> None:
    assert {*completion.ALONE, *completion.WITH_EXPERT} == set(OWN)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("chat", "tr"), {"trio"}),
        (("generate", "-b", "tr"), {"trio"}),
        (("bench", "pl"), {"plot"}),
        (("chat", "--kv-type", "q8"), {"q8_0"}),
        (("generate", "in"), set()),  # files, which the shell knows
        (("convert", "router", "--precision", "int"), {"int4", "int8"}),
    ],
)
def test_bash_gets_words(process: Run, trio: Bundle, words: tuple[str, ...], offered: set[str]) -> None:
    ran = process(env=bash("frcli", *words))
    assert (set(ran.out.split()), ran.err) == (offered, "")


@pytest.mark.parametrize("words", [("--policy", "expert", ":"), ("--policy", "=", "expert", ":")])
def test_bash_gets_experts_without_what_it_has_already(process: Run, trio: Bundle, words: tuple[str, ...]) -> None:
    assert process(env=bash("frcli", "chat", "trio", *words)).out.split() == list(trio.experts)


def test_fish_and_zsh_get_whole_words(process: Run, trio: Bundle) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "frcli chat trio --policy expert:", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    fish = process(env={**asked, "_FRCLI_COMPLETE": "complete_fish"})
    assert fish.out.split() == [f"expert:{name}" for name in trio.experts]
    zsh = process(env={**asked, "_FRCLI_COMPLETE": "complete_zsh"})
    assert all(name in zsh.out for name in trio.experts)


def test_an_error_is_silent(process: Run) -> None:
    ran = process(env=bash("frcli", "chat", "no-such-bundle", "--policy", "e"))
    assert (ran.out, ran.err) == ("", "")
