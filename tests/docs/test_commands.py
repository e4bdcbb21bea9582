"""Every command of the documentation is run, or is in the table of those that cannot be, and read by its program then.

A new page needs nothing here: ``shell_blocks`` says what its commands are, ``conftest`` which files it finds.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pages
import pytest
import shell_blocks
import typer
from conftest import ROOT, Place

from frcli.cli import app

ALL = os.environ.get("FRCLI_TEST_ALL") == "1"


@dataclass(frozen=True, slots=True)
class Unrun:
    """Commands that are not run: why, and the package with which ``FRCLI_TEST_ALL=1`` does run them (``frcli`` for what
    only takes its time).
    """

    pattern: str
    reason: str
    package: str = ""


UNRUN = (
    Unrun(r"^make ", "compiles llama.cpp, or runs this test"),
    Unrun(r"^pip install", "asks a package index"),
    Unrun(r"frcli train (expert|router|pairs)", "needs torch", "torch"),
    Unrun(r"^sh examples/recipes/", "needs torch", "torch"),
    Unrun(r"frcli eval compare", "needs lm-eval", "lm_eval"),
    Unrun(r"^lm_eval run", "fetches data sets"),
    Unrun(r"frcli generate .*--ray local", "needs Ray", "ray"),
    Unrun(r"frcli generate .*--ray \d", "needs a Ray cluster"),
    Unrun(r"^frcli bench --data", "takes half a minute", "frcli"),
    Unrun(r"^python benchmarks/dlf\.py text", "takes half a minute", "frcli"),
    Unrun(r"^python benchmarks/(user_sizes|dlf)\.py (speed )?FOLDER", "writes models of 5.6 GB"),
    Unrun(
        r"^python benchmarks/(kill_batch|fuzz|soak|agreement)\.py",
        "takes up to half an hour; tests/benchmarks tries it",
    ),
    Unrun(r"^python benchmarks/genai_parity\.py", "needs onnxruntime-genai"),
    Unrun(r"^python examples/recipes/rows\.py", "needs the datasets package and the hub"),
)
# What is cut so that a command takes a second: what is written, and what is run.
CUTS = (
    (r"@\d+:\d+", "@0:2"),
    (r"frcli bench(?! plot)", "frcli bench -n 4 -r 1"),
    (r"frcli eval nll", "frcli eval nll --threads 1"),  # as FRCLI_THREADS says to the others
    (r"--limit \d+", "--limit 1"),
    (r" --llama-bench \S+", ""),  # a program of llama.cpp that no package has
)
# What pages find in the environment beside what conftest.py gives to all.
ENVIRON = {
    "docs/training.md": {  # what the recipes ask for
        "BASE": "path/to/model",
        "EXPERTS": "math=path/to/model code=path/to/model",
        "DATA": "rows.jsonl",
        "PREFERENCES": "preferences.jsonl",
        "DEVICE": "cpu",
    },
}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def unrun(command: str) -> Unrun | None:
    found = next((each for each in UNRUN if re.search(each.pattern, command, re.DOTALL)), None)
    return None if found and found.package and ALL and find_spec(found.package) else found


def all_commands() -> list[str]:
    return [each.text for page in PAGES for each in shell_blocks.find_commands(page.read_text(encoding="utf-8"))]


def cut(command: str) -> str:
    for pattern, less in CUTS:
        command = re.sub(pattern, less, command)
    return command


PAGES = shell_blocks.find_pages(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_commands_of_the_page_run(page: Path, place: Place, tmp_path: Path) -> None:
    commands = shell_blocks.find_commands(page.read_text(encoding="utf-8"))
    if not commands:
        return
    folder = tmp_path / "page"
    pages.lay_out(folder, place.template, ROOT)
    called = [(place.parse if unrun(each.text) else place.run, cut(each.text)) for each in commands]
    ran = pages.run_commands(called, folder, {**place.environ, **ENVIRON.get(page_id(page), {})})
    wrong = [
        f"{page_id(page)}:{each.line}: exit code {done.code}, not {each.exit}\n$ {text}\n{done.shown}"
        for each, (_, text), done in zip(commands, called, ran, strict=False)
        if done.code != (0 if unrun(each.text) else each.exit)
    ]
    assert not wrong, "\n\n".join(wrong)
    assert len(ran) == len(commands)


@pytest.mark.parametrize("pattern", [*(each.pattern for each in UNRUN), *(pattern for pattern, _ in CUTS)])
def test_the_tables_hold_nothing_that_no_page_has(pattern: str) -> None:
    assert any(re.search(pattern, text, re.DOTALL) for text in all_commands())


def test_the_environment_is_of_pages_that_there_are() -> None:
    assert set(ENVIRON) <= set(map(page_id, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_sentences_say_of_commands_exists(page: Path) -> None:
    wrong = [
        f"{page_id(page)}:{line}: `{text}`: there is no {name}"
        for line, text in shell_blocks.find_inline(page.read_text(encoding="utf-8"))
        for name in unknown(text)
    ]
    assert not wrong, "\n".join(wrong)


def unknown(text: str) -> list[str]:
    """The commands and options of ``frcli convert expert|adapter --vocab FILE`` that do not exist."""
    program = typer.main.get_command(app.app)
    context = program.make_context("frcli", [], resilient_parsing=True)
    known: list[Any] = [program]
    wrong = []
    for word in re.findall(r"[^\s\[\]]+", text)[1:]:
        if word.startswith("-"):
            options = [option for each in known for option in each.get_params(context)]
            names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
            wrong += [word] if word.split("=")[0] not in names else []
        elif hasattr(known[0], "list_commands") and re.fullmatch(r"[a-z|]+", word):
            found = {name: known[0].get_command(context, name) for name in word.split("|")}
            wrong += [name for name, each in found.items() if each is None]
            known = [app.load(name) if known[0] is program else each for name, each in found.items() if each] or known
    return wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("frcli models list|show|pull", []),
        ("frcli models list|lost", ["lost"]),
        ("frcli chat [BUNDLE] -p TEXT --no-history", []),
        ("frcli --policy sum", ["--policy", "sum"]),
        ("frcli bench run --quick", []),
        ("frcli convert expert USER/REPO --help", []),
        ("frcli convert expert --quants=Q4_0", ["--quants=Q4_0"]),
    ],
)
def test_what_does_not_exist_is_found(text: str, wrong: list[str]) -> None:
    assert unknown(text) == wrong
