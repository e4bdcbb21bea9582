"""A conversation with an engine: settings that change on the way, answers, what they cost, and where they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from frcli.chat.conversation import Conversation
from frcli.chat.store import SavedConversation, Store
from frcli.chat.trace import Trace
from frcli.config import Settings
from frcli.decode.answer import Answer, Writing, written_tokens
from frcli.decode.loop import Step
from frcli.decode.sampler import MAX_SEED, Sampling
from frcli.errors import ContextError, OutputError
from frcli.fusion.around import Observed, restrict
from frcli.fusion.policy import Policy

WAYS_OUT = "/undo takes the last turn back, /clear begins a new conversation, --ctx gives more room at the next start"


class ChatEngine(Protocol):
    """What a chat needs of :class:`~frcli.decode.engine.Engine`."""

    context: int

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""

    def use(
        self,
        policy: str | None = None,
        gamma: float | None = None,
        sharp: bool | None = None,
        around: Callable[[Policy], Policy] | None = None,
    ) -> None:
        """Go on under another policy with the same models, or raise ``UsageError`` and change nothing."""

    def write(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int = 0,
        stops: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] | None = None,
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
    proposed: int = 0
    accepted: int = 0
    experts: Counter[str] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.answers += 1
        self.tokens += answer.completion_tokens
        if answer.later_tokens:  # speed is measured from the first tokens on
            self.decoding += answer.seconds - answer.first_token
            self.decoded += answer.later_tokens
        self.used = answer.prompt_tokens + answer.completion_tokens
        self.proposed += answer.proposed
        self.accepted += answer.accepted
        self.experts.update(answer.experts)

    @property
    def acceptance(self) -> float:
        """Share of the drafts that became tokens; 0 before there was any."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Mean speed after the first tokens; 0 before there was any."""
        return self.decoded / self.decoding if self.decoding > 0 else 0.0


class Session:
    """One chat: its engine, conversation and settings.

    ``experts`` says for each expert by name what it is good at. ``settings`` are complete: policy and gamma are those
    of the bundle where the user did not choose. ``store`` is where the conversation is kept, None for nowhere.
    ``shown`` makes the texts of ``/show`` that are about the bundle.
    """

    def __init__(
        self,
        engine: ChatEngine,
        settings: Settings,
        experts: Mapping[str, str],
        *,
        bundle: str = "",
        store: Store | None = None,
        shown: Mapping[str, Callable[[], str]] | None = None,
    ) -> None:
        self.engine, self.experts, self.bundle = engine, dict(experts), bundle
        self.settings = self.initial = settings
        self.conversation = Conversation(settings.system)
        self.totals = Totals()
        self.store, self.shown = store, dict(shown or {})
        self.attached: list[tuple[str, str]] = []  # names and texts of files that go with the next message
        self.allowed = tuple(experts)
        self.trace: Trace | None = None
        self._steps: list[Step] = []

    def change(self, name: str, value: Any) -> None:
        """Set one setting by its field name; raises ``UsageError`` and changes nothing when it cannot be. None for the
        policy or gamma is the one that the chat began with.
        """
        if value is None and name in ("policy", "gamma"):
            value = getattr(self.initial, name)
        settings = self.settings.with_values({name: value})
        if name in ("policy", "gamma", "sharp"):
            self._use(settings, self.allowed, self.trace)
        self.settings = settings
        self.conversation.system = settings.system

    def allow(self, names: Sequence[str]) -> None:
        """Let only these experts write from now on; raises ``UsageError`` and changes nothing when that cannot be."""
        names = tuple(name for name in self.experts if name in names)
        self._use(self.settings, names, self.trace)
        self.allowed = names

    def trace_to(self, path: Path | None) -> None:
        """Write a trace of the answers to a file, or (None) none; raises ``OutputError`` when it cannot be written."""
        trace = None if path is None else Trace(path, tuple(self.experts), self.engine.piece)
        if trace is not None:
            trace.check()
        self._use(self.settings, self.allowed, trace)
        self.trace = trace

    def _use(self, settings: Settings, allowed: Sequence[str], trace: Trace | None) -> None:
        experts = tuple(self.experts)

        def around(policy: Policy) -> Policy:
            policy = restrict(policy, experts, allowed)
            return policy if trace is None else Observed(policy, trace.see)

        self.engine.use(settings.policy, settings.gamma, settings.sharp, around)

    def ask(self, question: str) -> None:
        """Begin a turn; files that were read for it come before the question."""
        files = [f"{name}:\n```\n{text.rstrip()}\n```" for name, text in self.attached]
        self.conversation.ask("\n\n".join([*files, question]))
        self.attached.clear()

    def write(self, cancelled: Callable[[], bool] = lambda: False) -> Writing:
        """The answer to the conversation's last question, to be iterated and then given to :meth:`record`.

        Raises ``ContextError`` when the conversation leaves no room for an answer.
        """
        prompt = self.engine.encode_messages(self.conversation.messages())
        if len(prompt) >= self.engine.context:
            alone = len(self.conversation.turns) == 1
            what = "the message" if alone else "the conversation"
            way = (
                "shorten it, or start again with a larger --ctx" if alone else f"/edit shortens the message, {WAYS_OUT}"
            )
            raise ContextError(f"{what} has {len(prompt)} tokens and the context holds {self.engine.context}", way)
        settings = self.settings
        sampling = settings.sampling()
        if settings.seed is not None and (attempt := self.conversation.attempt):
            # Asked again, the same seed would give the same words.
            sampling = replace(sampling, seed=(settings.seed + attempt) % (MAX_SEED + 1))
        self._steps.clear()
        if self.trace is not None:
            self.trace.begin()
        return self.engine.write(
            prompt,
            sampling,
            max_tokens=settings.max_tokens,
            stops=settings.stop,
            cancelled=cancelled,
            on_step=self._step,
        )

    def _step(self, step: Step) -> None:
        self._steps.append(step)
        if self.trace is not None:
            self.trace.step(step)

    def record(self, answer: Answer) -> None:
        """Put the finished answer into the conversation, the totals and the trace; :meth:`keep` puts it on disk.

        Raises ``OutputError`` when the trace cannot be written.
        """
        self.conversation.answered(
            answer.text,
            stopped=answer.finish_reason == "cancelled",
            tokens=written_tokens(self._steps, self.engine.piece, self.settings.stop),
            experts=tuple(self.experts),
        )
        self.totals.add(answer)
        if self.trace is not None:
            self.trace.end()

    def saved(self) -> SavedConversation:
        """The conversation as a file holds it."""
        return SavedConversation.of(self.conversation, self.bundle)

    def keep(self) -> str:
        """Put the conversation on disk as it is now; return what the user should know of it, mostly nothing.

        What cannot be written is told once: the chat goes on without being kept.
        """
        if self.store is None or not (self.conversation.turns or self.store.name):
            return ""
        try:
            moved = self.store.write(self.saved())
        except OutputError as error:
            self.store = None
            return f"this conversation is not kept any more: {error.what}"
        return f"another chat has gone on with this conversation; this one is kept as {moved}" if moved else ""

    def resume(self, saved: SavedConversation, *, system: str | None = None) -> None:
        """Go on with a conversation from disk, under its own system prompt or the one that is given."""
        self.conversation.clear()
        self.conversation.turns = saved.turns_again()
        self.change("system", saved.system if system is None else system)
        self.totals.used = self.context_used()

    def context_used(self, turns: int | None = None) -> int:
        """Tokens that the first so many turns take (all, if not given), and the system prompt."""
        messages = replace(self.conversation, turns=self.conversation.turns[:turns]).messages()
        return len(self.engine.encode_messages(messages)) if messages else 0

    def turned_back(self) -> str:
        """The conversation has other turns than before: count them, keep them, and return what :meth:`keep` does."""
        self.totals.used = self.context_used()
        return self.keep()

    def line(self) -> str:
        """One line about the chat as it is: how full the context is, how fast it was, and who may write."""
        totals, context = self.totals, self.engine.context
        banned = [name for name in self.experts if name not in self.allowed]
        who = f"only {self.allowed[0]}" if len(self.allowed) == 1 else f"without {', '.join(banned)}"
        parts = [
            Path(self.bundle).name,
            self.settings.policy or "",
            who if banned else "",
            f"context {totals.used} of {context} ({totals.used / context:.0%})",
            f"{totals.tokens_per_second:.1f} tokens/s" if totals.decoded else "",
            f"drafts {totals.acceptance:.0%}" if totals.proposed else "",
            f"with {', '.join(name for name, _ in self.attached)}" if self.attached else "",
            f"{len(self.conversation.branches)} marked" if self.conversation.branches else "",
            "traced" if self.trace is not None else "",
        ]
        return " · ".join(part for part in parts if part)
