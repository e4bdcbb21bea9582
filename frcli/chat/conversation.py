"""What was said so far. No input, no output, no models."""

from __future__ import annotations

from dataclasses import dataclass, field

from frcli.errors import UsageError

Message = dict[str, str]


@dataclass(slots=True)
class Turn:
    """What the user said and what came back.

    ``answer`` is None as long as there is none, also when it was stopped before its first word or failed. ``stopped``
    marks an answer that the user cut off, ``attempts`` counts how often one was asked for.
    """

    question: str
    answer: str | None = None
    stopped: bool = False
    attempts: int = 0


@dataclass(slots=True)
class Conversation:
    """Turns under a system prompt; the last turn may still be without an answer."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Begin a turn; one that got no answer is dropped, for a model expects question and answer in turn.

        Raises ``UsageError`` when there is nothing but white space in the question.
        """
        if not question.strip():
            raise UsageError("the message is empty", "write something")
        if self.turns and self.turns[-1].answer is None:
            self.turns.pop()
        self.turns.append(Turn(question, attempts=1))

    def ask_again(self) -> None:
        """Take back the answer of the last turn; raises ``UsageError`` when there is no turn."""
        if not self.turns:
            raise UsageError("there is no answer to write again", "say something first")
        last = self.turns[-1]
        last.answer, last.stopped, last.attempts = None, False, last.attempts + 1

    def answered(self, text: str, *, stopped: bool = False) -> None:
        """End the turn with its answer; an answer that was stopped before its first word is none."""
        last = self.turns[-1]
        last.stopped = stopped
        last.answer = None if stopped and not text else text

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()

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
