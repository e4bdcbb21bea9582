"""Line editing: real prompt_toolkit on a pipe instead of a keyboard."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from frcli.chat.editor import LineEditor, edit, open_history, quotes_are_open, without_quotes
from frcli.chat.session import Session
from frcli.errors import UsageError

CTRL_C, CTRL_D, ENTER, ALT_ENTER, CTRL_X_CTRL_E = "\x03", "\x04", "\r", "\x1b\r", "\x18\x05"


@pytest.fixture(autouse=True)
def _data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def typed(scripted: Callable[..., Session]) -> Iterator[Callable[..., LineEditor]]:
    """An editor in front of which these keys were pressed."""
    with create_pipe_input() as keys:

        def editor(text: str, **settings: object) -> LineEditor:
            # A pipe holds 64 KiB: the rest is pressed while the editor reads.
            threading.Thread(target=keys.send_text, args=(text,), daemon=True).start()
            return LineEditor(scripted(**settings), input=keys, output=DummyOutput())

        yield editor


@pytest.mark.parametrize(
    ("typed_text", "is_open", "message"),
    [
        ("hello", False, "hello"),
        ('"""one', True, "one"),
        ('"""one\ntwo"""', False, "one\ntwo"),
        ('"""\none\n  two\n"""', False, "one\n  two"),
        ('"""all on one"""', False, "all on one"),
        ('say """ aloud', False, 'say """ aloud'),
    ],
)
def test_messages_between_quotes(typed_text: str, is_open: bool, message: str) -> None:
    assert quotes_are_open(typed_text) is is_open
    assert without_quotes(typed_text) == message


def test_a_line_and_ctrl_d(typed: Callable[..., LineEditor]) -> None:
    editor = typed("hello" + ENTER + CTRL_D)
    assert editor() == "hello"
    with pytest.raises(EOFError):
        editor()


def test_quotes_and_alt_enter_begin_new_lines(typed: Callable[..., LineEditor]) -> None:
    editor = typed('"""one' + ENTER + 'two"""' + ENTER + "three" + ALT_ENTER + "four" + ENTER)
    assert (editor(), editor()) == ("one\ntwo", "three\nfour")


def test_a_paste_of_ten_thousand_lines_is_one_message(typed: Callable[..., LineEditor], tmp_path: Path) -> None:
    text = "\n".join(f"line {number}" for number in range(10_000))
    assert typed(f"\x1b[200~{text}\x1b[201~" + ENTER)() == text
    assert (tmp_path / "frcli" / "history").read_text() == ""  # nobody goes back to that by arrow


def test_ctrl_c_clears_the_line_and_at_an_empty_one_says_so(typed: Callable[..., LineEditor]) -> None:
    editor = typed("nonsense" + CTRL_C + "sense" + ENTER + CTRL_C)
    assert editor() == "sense"
    with pytest.raises(KeyboardInterrupt):
        editor()


def test_the_history_is_kept_for_the_user_alone(typed: Callable[..., LineEditor], tmp_path: Path) -> None:
    assert typed("remember me" + ENTER)() == "remember me"
    file = tmp_path / "frcli" / "history"
    assert list(open_history(file).load_history_strings()) == ["remember me"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_history_nothing_is_written(typed: Callable[..., LineEditor], tmp_path: Path) -> None:
    assert typed("forget me" + ENTER, history=False)() == "forget me"
    assert list(tmp_path.iterdir()) == []


def test_the_editor_of_the_users_choice(
    typed: Callable[..., LineEditor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "my editor"
    script.write_text("#!/bin/sh\nprintf ' and more\n' >> \"$1\"\n")
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"'{script}'")
    assert edit("one") == "one and more\n"
    assert typed("one" + CTRL_X_CTRL_E + "!" + ENTER)() == "one and more!"


@pytest.mark.parametrize(
    ("editor", "said"), [("false", "ended with 1"), ("/no/such editor", "cannot be run"), ('"', "cannot be run")]
)
def test_an_editor_that_fails(editor: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor)
    with pytest.raises(UsageError, match=said):
        edit("one")


def test_ctrl_c_is_the_editors_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "editor"
    script.write_text(f'#!/bin/sh\nkill -INT {os.getpid()}\nprintf safe > "$1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(script))
    assert edit("one") == "safe"


def test_a_history_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = open_history(tmp_path / "file" / "history")
    history.append_string("one")
    assert history.get_strings() == ["one"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_end_the_chat() -> None:
    open_history(Path("/dev/full")).append_string("one")
