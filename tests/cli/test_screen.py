"""``frcli chat`` in a real terminal, tmux: keys, pastes, resizes, and Ctrl-C at every stage."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

pytestmark = [pytest.mark.tmux, pytest.mark.usefixtures("trio")]

BANNED = ("--logit-bias", "0=-inf", "--logit-bias", "2=-inf")  # the tokens that end an answer
ENDLESS = ("--grammar", 'root ::= ("la ")*', *BANNED, "-n", "0", "--ctx", "60000", "--policy", "expert:general")


class Screen:
    """The program in a tmux of its own."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._socket, self._environ = folder / "socket", dict(environ)
        self._code = folder / "code"
        settings = folder / "tmux.conf"
        settings.write_text("set -g remain-on-exit on\nset -g history-limit 20000\n")
        # tmux 3.3 may never learn a program's exit code; a shell that outlives Ctrl-C does.
        shell = ["sh", "-c", 'trap : INT; "$@"; echo $? > "$0"', str(self._code)]
        program = [*shell, sys.executable, "-m", "frcli", *arguments]
        self._run("-f", str(settings), "new-session", "-d", "-x", "80", "-y", "24", "--", *program)

    def _run(self, *command: str, given: str | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *command],
            input=given,
            capture_output=True,
            text=True,
            env={name: value for name, value in self._environ.items() if name not in ("TMUX", "COLUMNS")},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown(self) -> str:
        """The visible lines."""
        return self._run("capture-pane", "-p")

    def everything(self) -> str:
        """The visible lines and those that were scrolled away."""
        return self._run("capture-pane", "-p", "-S", "-")

    def keys(self, *keys: str) -> None:
        """Press keys, by tmux's names (``C-c``, ``Enter``) or as text."""
        self._run("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Paste text as a terminal does."""
        self._run("load-buffer", "-", given=text)
        self._run("paste-buffer", "-p")

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Wait until the text is on the screen, and return the screen."""
        return self.wait_until(lambda shown: text in shown, seconds)

    def wait_until(self, there: Callable[[str], bool], seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while not there(shown := self.shown()):
            if time.monotonic() > end:
                pytest.fail(f"it is not on the screen:\n{shown}")
            time.sleep(0.05)
        return shown

    def prompt(self) -> str:
        """Wait until the chat waits for a message."""
        return self.wait_until(lambda shown: "Say something" in shown and "context" in shown.splitlines()[-1])

    def say(self, text: str) -> None:
        self.prompt()
        self.keys("-l", text)
        self.keys("Enter")

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return self._code.exists() and self._code.read_text().endswith("\n")

    def end(self, seconds: float = 120) -> int:
        """Wait until the program has ended and return its exit code."""
        end = time.monotonic() + seconds
        while not self.ended:
            if time.monotonic() > end:
                pytest.fail(f"it does not end:\n{self.shown()}")
            time.sleep(0.05)
        return int(self._code.read_text())

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def screen(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    """Open the program in a terminal; each has conversations of its own."""
    opened: list[Screen] = []

    def open_(*arguments: str, env: Mapping[str, str] | None = None) -> Screen:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        given = {**environ, "XDG_DATA_HOME": str(tmp_path / "data"), **(env or {})}
        opened.append(Screen(folder, arguments, given))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_the_status_line_and_ctrl_d(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", "-n", "5", "-t", "0")
    shown = chat.prompt()
    assert "trio · fusionroute · context 0 of 256 (0%)" in shown.splitlines()[-1]
    chat.say("hello")
    chat.wait_for("5 tokens")
    shown = chat.prompt()
    assert "tokens/s" in shown.splitlines()[-1]
    chat.keys("C-d")
    assert chat.end() == 0
    assert "Say something" not in chat.shown()


def test_ctrl_c_while_typing_empties_the_line(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", "-n", "3", "-t", "0")
    chat.prompt()
    chat.keys("-l", "nonsense")
    chat.wait_for(">>> nonsense")
    chat.keys("C-c")
    chat.prompt()
    chat.keys("C-c")
    chat.wait_for("Ctrl-D or /exit leaves the chat")
    chat.prompt()
    chat.keys("C-d")
    assert chat.end() == 0


def test_ctrl_c_while_the_bundle_is_opened(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", "-n", "3", "-t", "0")
    chat.wait_until(lambda shown: "opening trio" in shown or "/help for help" in shown)
    chat.keys("C-c")
    # It may have been open by then: the prompt says how to leave it.
    chat.wait_until(lambda shown: "stopped" in shown or "leaves the chat" in shown)
    if "leaves the chat" in chat.shown():
        chat.keys("C-d")
        assert chat.end() == 0
    else:
        assert chat.end() == 130
        assert "Traceback" not in chat.shown()


def test_ctrl_c_while_the_message_is_read_and_while_an_answer_is_written(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", *ENDLESS)
    chat.prompt()
    chat.paste("the words " * 5000)
    chat.wait_for("the words the words")
    chat.keys("Enter")
    chat.wait_until(lambda shown: "context 0 of" not in shown)
    chat.keys("C-c")
    chat.wait_for("0 tokens")
    chat.wait_for("stopped")
    chat.say("sing")
    chat.wait_for("la la la")
    chat.keys("C-c")
    chat.wait_for("tokens/s")
    chat.prompt()
    chat.keys("C-d")
    assert chat.end() == 0


def test_ctrl_c_twice_ends_the_program(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", *ENDLESS)
    chat.say("sing")
    chat.wait_for("la la la")
    chat.keys("C-c", "C-c")
    chat.wait_until(lambda shown: "Say something" in shown or chat.ended)
    if not chat.ended:
        chat.keys("C-d")
    assert chat.end() in (0, 130)  # the first may have been served before the second came
    assert "Traceback" not in chat.shown()


def test_ctrl_c_at_an_editor_is_the_editors(screen: Callable[..., Screen], tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("""#!/bin/sh
trap 'printf edited > "$1"; exit 0' INT
echo editing
while :; do sleep 0.1; done
""")
    editor.chmod(0o755)
    chat = screen("chat", "trio", "-n", "3", "-t", "0", env={"EDITOR": str(editor), "VISUAL": ""})
    chat.prompt()
    chat.keys("-l", "first")
    chat.keys("C-x", "C-e")
    chat.wait_for("editing")
    chat.keys("C-c")
    chat.wait_for(">>> edited")
    chat.keys("-l", " twice")
    chat.keys("Enter")
    chat.wait_for("3 tokens")
    chat.say("/edit")
    chat.wait_until(lambda shown: shown.count("editing") == 2)
    chat.keys("C-c")
    chat.wait_until(lambda shown: shown.count("max-tokens 3") == 2)
    chat.say("/show conversation")
    chat.wait_for(">>> edited\n")
    chat.prompt()
    chat.keys("C-d")
    assert chat.end() == 0


def test_a_paste_of_ten_thousand_lines_is_one_message(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", "-n", "3", "-t", "0")
    chat.prompt()
    chat.paste("\n".join(f"line {number}" for number in range(10_000)))
    chat.wait_for("line 9999")
    chat.keys("Enter")
    chat.wait_for("and the context holds 256; shorten it")
    chat.say("short")
    chat.wait_for("3 tokens")
    chat.prompt()
    chat.keys("C-d")
    assert chat.end() == 0


def test_lines_keep_within_a_terminal_that_is_resized(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", *ENDLESS)
    chat.say("sing")
    chat.wait_for("la la la")
    chat.resize(40, 24)
    chat.wait_until(lambda shown: sum(line.startswith("la la") and len(line) <= 40 for line in shown.splitlines()) > 15)
    chat.keys("C-c")
    chat.prompt()
    chat.resize(100, 12)
    chat.wait_until(lambda shown: "context" in shown.splitlines()[-1] and "Say something" in shown)
    chat.keys("C-d")
    assert chat.end() == 0
    # Words are whole: no line of the song ends or begins within one, but the last, which was cut off.
    song = [line for line in chat.everything().splitlines() if line.startswith("la")]
    assert song and all(set(line.split()) == {"la"} for line in song[:-1])


def test_tab_completes(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio")
    chat.prompt()
    chat.keys("-l", "/und")
    chat.keys("Tab")
    chat.wait_for(">>> /undo")
    chat.keys("Enter")
    chat.wait_for("there is nothing to take back")
    chat.prompt()
    chat.keys("-l", "/force ma")
    chat.keys("Tab")
    chat.wait_for(">>> /force math")
    chat.keys("Enter")
    chat.wait_for("only math writes the next answers")
    chat.prompt()
    assert "only math" in chat.shown().splitlines()[-1]
    chat.keys("C-d")
    assert chat.end() == 0


def test_a_conversation_goes_on(screen: Callable[..., Screen]) -> None:
    chat = screen("chat", "trio", "-n", "3", "-t", "0")
    chat.say("remember me")
    chat.wait_for("3 tokens")
    chat.prompt()
    chat.keys("C-d")
    assert chat.end() == 0
    again = screen("chat", "-c", "-n", "3")
    again.wait_for("goes on after 1 turn, the last: remember me")
    again.say("/show conversation")
    again.wait_for(">>> remember me\n")
    again.keys("Up", "Up")
    again.wait_for(">>> remember me")
    again.keys("C-c")
    again.prompt()
    again.keys("C-d")
    assert again.end() == 0
