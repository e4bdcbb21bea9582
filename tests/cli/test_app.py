"""The program as a whole: what is loaded when, exit codes, and how errors are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from frcli import __version__
from frcli.bundle import Bundle
from frcli.cli import app as program
from frcli.errors import FrcliError, ModelError, RowsFailed, UsageError

Run = Callable[..., Any]


def imported(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom frcli.cli.app import run\n"
        f"run({list(arguments)!r})\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_lists_the_commands_and_loads_none(frcli: Run) -> None:
    ran = frcli("--help")
    assert ran.code == 0
    for name, entry in program.COMMANDS.items():
        assert f"  {name:<8}  {entry.about}" in ran.out
    loaded = imported("--help")
    commands = {f"frcli.cli.{name}" for name in ("chat", "generate", "convert", "train", "eval", "models", "doctor")}
    heavy = {"numpy", "pydantic", "rich", "llama_cpp", "onnxruntime", "onnx", "torch", "prompt_toolkit", "jinja2"}
    assert not loaded & (commands | heavy)


def test_help_of_one_command_loads_that_one() -> None:
    loaded = imported("chat", "--help")
    assert "frcli.cli.chat" in loaded
    assert not loaded & {"frcli.cli.generate", "numpy", "llama_cpp", "onnxruntime", "torch"}


@pytest.mark.parametrize("name", list(program.COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(program.app, [name, "--help"])
    assert result.exit_code == 0
    assert f"{name} [OPTIONS]" in result.output


@pytest.mark.parametrize("name", [name for name, entry in program.COMMANDS.items() if entry.group])
def test_every_command_below_takes_debug_verbose_and_quiet(name: str) -> None:
    for command in program.load(name).commands.values():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--debug", "--verbose", "-v", "--quiet", "-q"} <= flags


def test_version(process: Run) -> None:
    assert process("--version").out == f"frcli {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cha"], "Did you mean 'chat'?"),
        (["chat", "--nonsense"], "--nonsense"),
        (["chat", "--top-k", "many"], "--top-k"),
        (["generate"], "Missing argument"),
        (["models", "nonsense"], "No such command"),
    ],
)
def test_usage_errors_leave_with_2(frcli: Run, arguments: list[str], said: str) -> None:
    ran = frcli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("frcli.bundle.list_bundles", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("what", "hint"), 2), (ModelError("what", "hint"), 1), (RowsFailed("what", "hint"), 3)],
)
def test_an_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: FrcliError, code: int
) -> None:
    failing(monkeypatch, error)
    assert program.run(["models", "list"]) == code
    assert capsys.readouterr() == ("", "frcli: what; hint\n")


def test_an_error_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModelError("one\n  two"))
    program.run(["models", "list"])
    assert capsys.readouterr().err == "frcli: one two\n"


def test_a_bug_is_one_line_that_asks_for_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ZeroDivisionError("by zero"))
    assert program.run(["models", "list"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("frcli: this is a bug: ZeroDivisionError: by zero")
    assert "--debug" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "models", "list"], ["models", "list", "--debug"]])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    failing(monkeypatch, ModelError("what"))
    assert program.run(arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("frcli: what\n")


def test_ctrl_c_leaves_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert program.run(["models", "list"]) == 130
    assert capsys.readouterr().err == "frcli: stopped\n"


def test_a_reader_that_went_away_is_no_error(environ: dict[str, str], trio: Bundle) -> None:
    done = subprocess.run(
        f"{sys.executable} -m frcli models show trio --json | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        env=environ,
        capture_output=True,
    )
    assert done.returncode in (0, 1)  # 0 when all was written before the reader left
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_once(environ: dict[str, str], trio: Bundle) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "frcli", "models", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environ,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "frcli: cannot write to standard output: no space left on device\n"
