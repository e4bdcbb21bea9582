"""A keyboard for the chat that draws its lines from a seed, and knows what each must make of the conversation.

A part of ``soak.py``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from frcli.chat.session import Session
from frcli.chat.store import read_conversation
from frcli.cli.chatview import ChatView
from frcli.decode.answer import Answer
from frcli.errors import FrcliError
from frcli.tokens import Span

_WORDS = (
    "hello",
    "the",
    "world",
    "and",
    "a",
    "list",
    "of",
    "1",
    "2",
    "**three**",
    "`code`",
    "# four",
    "end",
    "é",
    "🙂",
)
_SETTINGS = (
    "temperature 0",
    "temperature 0.9",
    "temperature default",
    "top_k 5",
    "top_k default",
    "repeat_penalty 1.2",
    "repeat_penalty default",
    "max_tokens 3",
    "max_tokens default",
    "seed 7",
    "seed default",
    "policy sum",
    "policy expert:math",
    "policy default",
    "gamma 1",
    "gamma default",
    'stop ["a", "end"]',
    "stop default",
    "show_experts on",
    "show_experts off",
    "markdown off",
    "markdown on",
)
_SHOWS = ("stats", "context", "experts", "show settings", "show conversation", "show file", "help", "help regen", "set")
# How often a line of each kind comes.
_KINDS = {
    "message": 60,
    "regen": 8,
    "edit": 5,
    "undo": 7,
    "push": 3,
    "pop": 3,
    "clear": 4,
    "set": 4,
    "system": 1,
    "ban": 2,
    "force": 2,
    "allow": 3,
    "save": 1,
    "load": 1,
    "trace": 1,
    "show": 3,
    "interrupt": 2,
    "nonsense": 1,
}


class Wrong(Exception):
    """The chat is not as it must be."""


class Watched(ChatView):
    """The chat's own view, which remembers what it was shown and presses Ctrl-C where it is told to."""

    def __init__(self, session: Session) -> None:
        super().__init__(tuple(session.experts), lambda: session.settings, session.engine.context)
        self.answer: Answer | None = None
        self.answers = 0
        self.error: FrcliError | None = None
        self.stop_after = -1

    def begin(self) -> None:
        """See :class:`ChatView`."""
        self.answers += 1
        super().begin()
        self._press()

    def span(self, span: Span) -> None:
        """See :class:`ChatView`."""
        super().span(span)
        self._press()

    def end(self, answer: Answer | None) -> None:
        """See :class:`ChatView`."""
        self.answer = answer
        super().end(answer)

    def complain(self, error: FrcliError) -> None:
        """See :class:`ChatView`."""
        self.error = error
        super().complain(error)

    def _press(self) -> None:
        if self.stop_after == 0:
            os.kill(os.getpid(), signal.SIGINT)
        self.stop_after -= 1


class Script:
    """A keyboard: draws the lines, and says of each what it must do to the conversation.

    ``turns``: question and whether it has an answer; ``marks``: the turns at each /push; ``files``: how many turns each
    conversation was written with, and the last one, of those that were named and the one that runs; ``made``: how many
    there are in all. What grows with the turns is not kept: it would be taken for the chat's.
    """

    def __init__(self, session: Session, view: Watched, folder: Path, turns: int, seed: int) -> None:
        self._session, self._view, self._folder, self._most = session, view, folder, turns
        self._random = random.Random(seed)
        self._turns: list[tuple[str, bool]] = []
        self._marks: list[list[tuple[str, bool]]] = []
        self._files: dict[str, tuple[int, str]] = {}
        self._made = 0
        self._check: Callable[[], None] = lambda: None
        self._line = ""
        self.counts: Counter[str] = Counter()
        self.memory: list[tuple[int, int, int]] = []  # turns, bytes that no file backs, open files

    def __call__(self) -> str:
        """The next line; ``EOFError`` after the last."""
        self._compare()
        done = self._view.answers
        if done >= len(self.memory) * self._most / 100:
            self.memory.append((done, _anonymous(), len(os.listdir("/proc/self/fd"))))
            print(f"{done} turns, {self.memory[-1][1] >> 20} MiB", file=sys.__stderr__, flush=True)
        if done >= self._most:
            raise EOFError
        self._view.answer = self._view.error = None
        self._view.stop_after = self._random.randrange(12) if self._random.random() < 0.05 else -1
        kind = self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
        if self._turns and not self._turns[-1][1] and self._random.random() < 0.6:  # what one does with a full context
            kind = self._random.choice(("clear", "undo", "pop", "edit"))
        self.counts[kind] += 1
        self._line = getattr(self, f"_{kind}")()
        return self._line

    def edit(self, text: str) -> str:
        """The question as an editor gives it back: another, or in one case of five the same."""
        return text if self._random.random() < 0.2 else self._text()

    def _text(self) -> str:
        return " ".join(self._random.choices(_WORDS, k=self._random.randrange(1, 9)))

    # Each of these returns a line and leaves in _check what must be so behind it.

    def _message(self) -> str:
        text = self._text()
        self._check = lambda: self._asked(text)
        return text if not text.startswith("/") else f" {text}"

    def _asked(self, text: str) -> None:
        if self._turns and not self._turns[-1][1]:
            self._turns.pop()
        self._answered(text)

    def _answered(self, text: str) -> None:
        answer = self._view.answer
        if answer is None and self._view.error is None:
            raise Wrong("there is neither an answer nor an error")
        if answer is not None and self._view.error is not None:
            raise Wrong(f"an answer came with an error: {self._view.error}")
        stopped = answer is not None and answer.finish_reason == "cancelled"
        has_one = answer is not None and (not stopped or bool(answer.text))
        self.counts["stopped" if stopped else "failed" if answer is None else "answered"] += 1
        self._turns.append((text, has_one))
        if answer is not None:
            self._written()

    def _regen(self) -> str:
        def check() -> None:
            if self._refused_without(self._turns):
                return
            self._answered(self._turns.pop()[0])

        self._check = check
        return "/regen"

    def _edit(self) -> str:
        before = self._view.answers

        def check() -> None:
            if self._view.answers == before:  # the text came back as it was
                return
            if self._turns:
                self._turns.pop()
            self._asked(self._session.conversation.turns[-1].question)

        self._check = check
        return "/edit"

    def _undo(self) -> str:
        def check() -> None:
            if not self._refused_without(self._turns):
                self._turns.pop()
                self._written()

        self._check = check
        return "/undo"

    def _push(self) -> str:
        self._check = lambda: self._marks.append(list(self._turns))
        return "/push"

    def _pop(self) -> str:
        def check() -> None:
            if not self._refused_without(self._marks):
                self._turns = self._marks.pop()
                self._written()

        self._check = check
        return "/pop"

    def _clear(self) -> str:
        def check() -> None:
            self._turns.clear()
            self._marks.clear()
            self._leave()

        self._check = check
        return "/clear"

    def _save(self) -> str:
        name = f"kept-{self._random.randrange(40)}"
        before = self._name

        def check() -> None:
            if self._view.error is not None:
                if self._turns and (name not in self._files or name == before):
                    raise Wrong(f"could not be saved: {self._view.error}")
                return
            if before is not None:
                self._made -= self._files.pop(before, None) is not None
            self._written()

        self._check = check
        return f"/save {name}"

    def _load(self) -> str:
        names = [name for name in self._files if name.startswith("kept-")]
        if not names:
            return self._show()
        name = self._random.choice(names)
        path = self._folder / "sessions" / f"{name}.json"

        def check() -> None:
            self._accepted()
            turns = [(turn.question, turn.answer is not None) for turn in read_conversation(path).turns]
            if (len(turns), turns[-1][0] if turns else "") != self._files[name]:
                raise Wrong(f"{name} has {len(turns)} turns and not {self._files[name]}")
            self._turns, self._marks = turns, []
            self._leave()

        self._check = check
        return f"/load {name}"

    def _set(self) -> str:
        setting = self._random.choice(_SETTINGS)
        # A policy that does not route is refused while experts are banned.
        self._check = (lambda: None) if setting.startswith("policy") else self._accepted
        return f"/set {setting}"

    def _system(self) -> str:
        def check() -> None:
            self._accepted()
            self._written()

        self._check = check
        return f"/system {self._random.choice((self._text(), 'none'))}"

    def _ban(self) -> str:
        self._check = lambda: None  # the last one that is left may not be banned
        return f"/ban {self._random.choice(tuple(self._session.experts))}"

    def _force(self) -> str:
        self._check = lambda: None  # not every policy can do with one
        return f"/force {self._random.choice(tuple(self._session.experts))}"

    def _allow(self) -> str:
        self._check = self._accepted
        return self._random.choice(("/ban none", "/force none"))

    def _trace(self) -> str:
        self._check = self._accepted
        traced = self._session.trace is not None
        return "/trace off" if traced else f"/trace {self._folder / 'trace.jsonl'}"

    def _show(self) -> str:
        self._check = self._accepted
        return f"/{self._random.choice(_SHOWS)}"

    def _interrupt(self) -> str:
        self._check = self._accepted
        raise KeyboardInterrupt

    def _nonsense(self) -> str:
        def check() -> None:
            if self._view.error is None:
                raise Wrong("a command that does not exist was done")

        self._check = check
        return self._random.choice(
            ("/nothing", "/set nothing 1", "/load nothing", "/set temperature warm", "/ban nobody")
        )

    @property
    def _name(self) -> str | None:
        return self._session.store.name if self._session.store else None

    def _accepted(self) -> None:
        if self._view.error is not None:
            raise Wrong(f"was refused: {self._view.error}")

    def _refused_without(self, what: list[object] | list[tuple[str, bool]] | list[list[tuple[str, bool]]]) -> bool:
        """Whether there was nothing to go back to, which must have been said."""
        if not what and self._view.error is None:
            raise Wrong("was done although there is nothing to go back to")
        return not what

    def _written(self) -> None:
        """The conversation was put on disk as it is now, if there is anything of it."""
        if (name := self._name) is not None:
            self._made += name not in self._files
            self._files[name] = (len(self._turns), self._turns[-1][0] if self._turns else "")

    def _leave(self) -> None:
        """Another conversation runs from here on: only those with names are come back to."""
        self._files = {name: last for name, last in self._files.items() if name.startswith("kept-")}

    def _compare(self) -> None:
        self._check()
        turns = [(turn.question, turn.answer is not None) for turn in self._session.conversation.turns]
        if turns != self._turns:
            raise Wrong(f"the turns are {turns} and not {self._turns}")
        if len(self._session.conversation.branches) != len(self._marks):
            raise Wrong(f"{len(self._session.conversation.branches)} points are marked and not {len(self._marks)}")

    def compare_files(self) -> int:
        """How many conversations are kept; raises :class:`Wrong` if they are not those that were written."""
        there = {path.stem for path in (self._folder / "sessions").iterdir()}
        if len(there) != self._made or not there >= set(self._files):
            raise Wrong(f"{len(there)} conversations are kept and not {self._made}, or one with a name is missing")
        return len(there)

    @property
    def line(self) -> str:
        """What was typed last."""
        return self._line


def _anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not say RssAnon")
