"""A conversation with an engine: settings that change on the way, answers, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from frcli.chat.conversation import Conversation
from frcli.config import Settings
from frcli.decode.answer import Answer, Writing
from frcli.decode.sampler import MAX_SEED, Sampling
from frcli.errors import ContextError


class ChatEngine(Protocol):
    """What a chat needs of :class:`~frcli.decode.engine.Engine`."""

    context: int

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation."""

    def use(self, policy: str | None = None, gamma: float | None = None, sharp: bool | None = None) -> None:
        """Go on under another policy with the same models, or raise ``UsageError`` and change nothing."""

    def write(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int = 0,
        stops: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Writing:
        """An answer that is written while it is iterated."""


@dataclass(slots=True)
class Totals:
    """Sums over a chat. ``used`` is how many tokens of the context the last prompt and answer took."""

    answers: int = 0
    tokens: int = 0
    decoding: float = 0.0
    decoded: int = 0
    used: int = 0
    experts: Counter[str] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.answers += 1
        self.tokens += answer.completion_tokens
        if answer.completion_tokens > 1:  # speed is measured from the first token on
            self.decoding += answer.seconds - answer.first_token
            self.decoded += answer.completion_tokens - 1
        self.used = answer.prompt_tokens + answer.completion_tokens
        self.experts.update(answer.experts)

    @property
    def tokens_per_second(self) -> float:
        """Mean speed after the first tokens; 0 before there was any."""
        return self.decoded / self.decoding if self.decoding > 0 else 0.0


class Session:
    """One chat: its engine, conversation and settings.

    ``experts`` says for each expert by name what it is good at. ``settings`` are complete: policy and gamma are those
    of the bundle where the user did not choose.
    """

    def __init__(self, engine: ChatEngine, settings: Settings, experts: Mapping[str, str]) -> None:
        self.engine, self.experts = engine, dict(experts)
        self.settings = self.initial = settings
        self.conversation = Conversation(settings.system)
        self.totals = Totals()

    def change(self, name: str, value: Any) -> None:
        """Set one setting by its field name; raises ``UsageError`` and changes nothing when it cannot be."""
        settings = self.settings.with_values({name: value})
        if name in ("policy", "gamma", "sharp"):
            self.engine.use(settings.policy, settings.gamma, settings.sharp)
        self.settings = settings
        self.conversation.system = settings.system

    def write(self, cancelled: Callable[[], bool] = lambda: False) -> Writing:
        """The answer to the conversation's last question, to be iterated and then given to :meth:`record`.

        Raises ``ContextError`` when the conversation leaves no room for an answer.
        """
        prompt = self.engine.encode_messages(self.conversation.messages())
        if len(prompt) >= self.engine.context:
            alone = len(self.conversation.turns) == 1
            what = "the message" if alone else "the conversation"
            raise ContextError(
                f"{what} has {len(prompt)} tokens and the context holds {self.engine.context}",
                "shorten it, or start again with a larger --ctx" if alone else "/clear begins a new one",
            )
        settings = self.settings
        sampling = settings.sampling()
        if settings.seed is not None and (attempt := self.conversation.attempt):
            # Asked again, the same seed would give the same words.
            sampling = replace(sampling, seed=(settings.seed + attempt) % (MAX_SEED + 1))
        return self.engine.write(
            prompt, sampling, max_tokens=settings.max_tokens, stops=settings.stop, cancelled=cancelled
        )

    def record(self, answer: Answer) -> None:
        """Put the finished answer into the conversation and the totals."""
        self.conversation.answered(answer.text, stopped=answer.finish_reason == "cancelled")
        self.totals.add(answer)
