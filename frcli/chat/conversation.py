"""What was said so far. No input, no output, no models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from frcli.decode.answer import Written
from frcli.errors import UsageError

Message = dict[str, str]


@dataclass(slots=True)
class Turn:
    """What the user said and what came back.

    ``answer`` is None as long as there is none, also when it was stopped before its first word or failed. ``stopped``
    marks an answer that the user cut off, ``attempts`` counts how often one was asked for. ``tokens`` are those of the
    answer, whose routing weights are those of ``experts``.
    """

    question: str
    answer: str | None = None
    stopped: bool = False
    attempts: int = 0
    tokens: Sequence[Written] = ()
    experts: tuple[str, ...] = ()


@dataclass(slots=True)
class Conversation:
    """Turns under a system prompt; the last turn may still be without an answer.

    ``branches`` are the turns as they were at each :meth:`push`.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    branches: list[list[Turn]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Begin a turn; one that got no answer is dropped, for a model expects question and answer in turn.

        Raises ``UsageError`` when there is nothing but white space in the question.
        """
        if not question.strip():
            raise UsageError("the message is empty", "write something")
        if self.turns and self.turns[-1].answer is None:
            self.turns.pop()
        whole = question.encode("utf-8", "replace").decode()  # bytes that were no text came as half characters
        self.turns.append(Turn(whole, attempts=1))

    def ask_again(self) -> None:
        """Take back the answer of the last turn; raises ``UsageError`` when there is no turn."""
        if not self.turns:
            raise UsageError("there is no answer to write again", "say something first")
        last = self.turns[-1]
        self.turns[-1] = Turn(last.question, attempts=last.attempts + 1)

    def answered(
        self, text: str, *, stopped: bool = False, tokens: Sequence[Written] = (), experts: tuple[str, ...] = ()
    ) -> None:
        """End the turn with its answer; an answer that was stopped before its first word is none."""
        last = self.turns[-1]
        last.stopped = stopped
        last.answer = None if stopped and not text else text
        last.tokens, last.experts = tokens, experts

    def undo(self) -> Turn:
        """Take back the last turn and return it; raises ``UsageError`` when there is none."""
        if not self.turns:
            raise UsageError("there is nothing to take back", "say something first")
        return self.turns.pop()

    def push(self) -> int:
        """Mark this point as one to come back to; return how many are marked."""
        self.branches.append([replace(turn) for turn in self.turns])
        return len(self.branches)

    def pop(self) -> int:
        """Go back to the point that was marked last, whatever was said or taken back since; return how many marks are
        left. Raises ``UsageError`` when there is none.
        """
        if not self.branches:
            raise UsageError("no point is marked to go back to", "/push marks one")
        self.turns = self.branches.pop()
        return len(self.branches)

    def clear(self) -> None:
        """Forget all turns and marks; the system prompt stays."""
        self.turns.clear()
        self.branches.clear()

    @property
    def attempt(self) -> int:
        """How often the answer of the last turn was asked for before; 0 the first time."""
        return self.turns[-1].attempts - 1 if self.turns else 0

    def messages(self) -> list[Message]:
        """The conversation as a chat template takes it, up to the last question or answer."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages
