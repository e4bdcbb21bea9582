"""What was seen while answers were written, and the numbers that come from it: speeds, the split of a token's cost, and
how often experts changed and drafts were accepted.

A **step** of the decoder gives each sequence that it works on one token or, with drafts, several. The engine hands out
the tokens one by one; those of one step share one ``Timings`` object, by which they are put together again here.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frcli.bench.spread import significant
from frcli.decode.loop import Step
from frcli.decode.stopwatch import PARTS

MS = 1000.0


@dataclass(frozen=True, slots=True)
class Event:
    """A token: when it came (seconds on the clock of ``Recording.began``), of which prompt, and its ``Step``."""

    at: float
    prompt: int
    step: Step


@dataclass(slots=True)
class Recording:
    """One call of the engine, from ``began`` to ``ended``: an answer, or many at once.

    ``prompts`` are the prompts' lengths in tokens, by their number; each is answered once.
    """

    prompts: Mapping[int, int]
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    events: list[Event] = field(default_factory=list)

    def see(self, prompt: int, step: Step) -> None:
        """Take note of a token that has just come."""
        self.events.append(Event(time.perf_counter(), prompt, step))

    def tokens(self, prompt: int) -> list[int]:
        """The tokens of one answer."""
        return [event.step.token for event in self.events if event.prompt == prompt]


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of the decoder: how long it took from the end of the one before, and what it gave.

    ``prompts`` are the numbers of the answers that it wrote on, ``begun`` those of them that it began, prompt and all.
    """

    seconds: float
    steps: tuple[Step, ...]
    prompts: frozenset[int]
    begun: frozenset[int]

    @property
    def behind(self) -> int:
        """Tokens that experts had to catch up with before they could read what is new."""
        return sum(step.read - 1 for step in self.steps)

    @property
    def experts(self) -> float:
        """Seconds in experts."""
        return sum(step.timings.experts for step in self.steps)

    @property
    def kind(self) -> tuple[int, int, int]:
        """What its cost in experts depends on, catch-up aside: sequences, drafts, different experts."""
        names = {name for step in self.steps for name in step.experts}
        return len(self.prompts), sum(step.proposed for step in self.steps), len(names)


def turns(recording: Recording) -> Iterator[Turn]:
    """The decoder's steps, in order."""
    seen: set[int] = set()
    before = recording.began
    events = recording.events
    start = 0
    for end in range(1, len(events) + 1):
        if end < len(events) and events[end].step.timings is events[start].step.timings:
            continue
        group = events[start:end]
        prompts = frozenset(event.prompt for event in group)
        yield Turn(group[-1].at - before, tuple(event.step for event in group), prompts, prompts - seen)
        seen |= prompts
        before, start = group[-1].at, end


def generating(recordings: Iterable[Recording], sequences: int = 1) -> list[Turn]:
    """The steps that tell the speed of generation: those that write on as many answers as there is room for, and read
    no prompt.
    """
    return [
        turn
        for recording in recordings
        for turn in turns(recording)
        if not turn.begun and len(turn.prompts) == sequences
    ]


def rate(measured: Sequence[Turn]) -> float | None:
    """Tokens per second of these steps, None when there are none."""
    seconds = sum(turn.seconds for turn in measured)
    return sum(len(turn.steps) for turn in measured) / seconds if seconds > 0 else None


def prompt_rate(recordings: Iterable[Recording]) -> float | None:
    """Prompt tokens per second until the first token of the answer; for answers that were written one by one."""
    tokens, seconds = 0, 0.0
    for recording in recordings:
        for turn in turns(recording):
            tokens += sum(recording.prompts[prompt] for prompt in turn.begun)
            seconds += turn.seconds if turn.begun else 0.0
    return tokens / seconds if seconds > 0 else None


def catch_up(measured: Sequence[Turn]) -> float:
    """Seconds that experts took to read what they had missed, estimated.

    What a step with catch-up took in experts, less what a step of its kind without takes (the median). Where there is
    none of its kind, its share of the tokens read.
    """
    plain: dict[tuple[int, int, int], list[float]] = {}
    for turn in measured:
        if not turn.behind:
            plain.setdefault(turn.kind, []).append(turn.experts)
    usual = {kind: statistics.median(seconds) for kind, seconds in plain.items()}
    total = 0.0
    for turn in measured:
        if turn.behind:
            sequences, drafts, _ = turn.kind
            share = (sequences + drafts) / (sequences + drafts + turn.behind)
            total += max(0.0, turn.experts - usual.get(turn.kind, turn.experts * share))
    return total


def split(measured: Sequence[Turn]) -> dict[str, float] | None:
    """Milliseconds of a token by part, None without tokens: ``draft``, ``router``, ``experts`` (of which ``catch_up``),
    ``fuse``, ``sample``, ``rest`` (what is in no part), and their sum ``total``, the time on the wall.
    """
    tokens = sum(len(turn.steps) for turn in measured)
    if not tokens:
        return None
    seconds = {part: sum(getattr(step.timings, part) for turn in measured for step in turn.steps) for part in PARTS}
    total = sum(turn.seconds for turn in measured)
    parts = {part: MS * value / tokens for part, value in seconds.items()}
    parts["rest"] = MS * (total - sum(seconds.values())) / tokens
    parts["total"] = MS * total / tokens
    parts["catch_up"] = MS * catch_up(measured) / tokens
    return {part: significant(value) for part, value in parts.items()}


def counts(recordings: Sequence[Recording]) -> dict[str, Any]:
    """How tokens came about: ``tokens``, ``tokens_per_window`` (a sequence's part of a step), ``acceptance`` (accepted
    of proposed drafts; absent when none were), ``switches`` of expert per 100 tokens, ``catch_up_tokens`` read per
    token, and each expert's ``share`` of the tokens that it helped to write.
    """
    proposed = accepted = tokens = windows = switches = behind = 0
    by_expert: Counter[str] = Counter()
    for recording in recordings:
        last: dict[int, tuple[str, ...]] = {}
        for turn in turns(recording):
            windows += len(turn.prompts)
        for event in recording.events:
            step = event.step
            tokens += 1
            proposed += step.proposed
            accepted += step.drafted
            by_expert.update(step.experts)
            if event.prompt in last:  # an expert that reads the prompt is not behind
                behind += step.read - 1
                switches += step.experts != last[event.prompt]
            last[event.prompt] = step.experts
    found: dict[str, Any] = {"tokens": tokens}
    if tokens:
        found["tokens_per_window"] = significant(tokens / windows)
        found["switches"] = significant(100 * switches / tokens)
        found["catch_up_tokens"] = significant(behind / tokens)
        found["share"] = {name: significant(count / tokens) for name, count in sorted(by_expert.items())}
    if proposed:
        found["proposed"], found["accepted"] = proposed, accepted
        found["acceptance"] = significant(accepted / proposed)
    return found
