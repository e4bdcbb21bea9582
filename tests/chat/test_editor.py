"""Line editing: real prompt_toolkit on a pipe instead of a keyboard."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from frcli.chat.commands import SETTABLE
from frcli.chat.editor import LineEditor, history_file, make_completer, open_history, read_message

CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"


@pytest.fixture(autouse=True)
def _data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def typed() -> Iterator[Callable[[str], LineEditor]]:
    """An editor in front of which these keys were pressed."""
    with create_pipe_input() as keys:

        def editor(text: str) -> LineEditor:
            keys.send_text(text)
            return LineEditor(input=keys, output=DummyOutput())

        yield editor


def lines(*given: str) -> Callable[[str], str]:
    left = list(given)
    return lambda prompt: left.pop(0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("hello",), "hello"),
        (('"""one', 'two"""'), "one\ntwo"),
        (('"""', "one", "  two", '"""'), "one\n  two"),
        (('"""all on one"""',), "all on one"),
        (('say """ aloud',), 'say """ aloud'),
    ],
)
def test_messages(given: tuple[str, ...], message: str) -> None:
    assert read_message(lines(*given)) == message


def test_a_line_and_ctrl_d(typed: Callable[[str], LineEditor]) -> None:
    editor = typed("hello" + ENTER + CTRL_D)
    assert editor() == "hello"
    with pytest.raises(EOFError):
        editor()


def test_ctrl_c_clears_the_line_and_at_an_empty_one_says_so(typed: Callable[[str], LineEditor]) -> None:
    editor = typed("nonsense" + CTRL_C + "sense" + ENTER + CTRL_C)
    assert editor() == "sense"
    with pytest.raises(KeyboardInterrupt):
        editor()


def test_the_history_is_kept_for_the_user_alone(typed: Callable[[str], LineEditor]) -> None:
    assert typed("remember me" + ENTER)() == "remember me"
    assert list(open_history(history_file()).load_history_strings()) == ["remember me"]
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = open_history(tmp_path / "file" / "history")
    history.append_string("one")
    assert history.get_strings() == ["one"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_end_the_chat() -> None:
    open_history(Path("/dev/full")).append_string("one")


@pytest.mark.parametrize(
    ("text", "completed"),
    [("/re", ["regen"]), ("/set tempe", ["temperature"]), ("/set d", [n for n in SETTABLE if n[0] == "d"]), ("re", [])],
)
def test_commands_and_settings_are_completed(text: str, completed: list[str]) -> None:
    found = list(make_completer().get_completions(Document(text), CompleteEvent()))
    assert [completion.text for completion in found] == completed
    assert all((text[: len(text) + c.start_position] + c.text).startswith(text) for c in found)
