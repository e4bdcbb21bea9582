"""Conversations for others to read: one HTML page, Markdown, or the JSON that a conversation is kept as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from frcli.chat.store import SavedConversation, SavedTurn


def export(saved: SavedConversation, suffix: str, experts: Sequence[str]) -> str:
    """The conversation in the format of that suffix, one of ``FORMATS``; ``experts`` are those of the open bundle."""
    return FORMATS[suffix](saved, experts)


def _html(saved: SavedConversation, experts: Sequence[str]) -> str:
    from frcli import webpage

    # A conversation may have gone on with another bundle: all experts that ever wrote have a colour.
    everyone = tuple(dict.fromkeys([*(name for turn in saved.turns for name in turn.experts), *experts]))
    turns = [
        {
            "question": turn.question,
            "answer": turn.answer,
            "stopped": turn.stopped,
            "tokens": webpage.drawn(turn.tokens, everyone, turn.experts),
            "shares": _shares(turn),
        }
        for turn in saved.turns
    ]
    return webpage.render(
        Path(__file__).parent / "page.html", saved=saved, turns=turns, experts=webpage.legend(everyone)
    )


def _markdown(saved: SavedConversation, experts: Sequence[str]) -> str:
    parts = [f"# A chat with {saved.bundle}, {saved.saved[:10]}"]
    if saved.system is not None:
        parts.append("## System\n\n" + saved.system)
    for turn in saved.turns:
        parts.append("## You\n\n" + turn.question)
        if turn.answer is not None:
            note = ", ".join(filter(None, [_shares(turn), "stopped" if turn.stopped else ""]))
            parts.append(f"## Answer\n\n{turn.answer}" + (f"\n\n*{note}*" if note else ""))
    return "\n\n".join(parts) + "\n"


def _json(saved: SavedConversation, experts: Sequence[str]) -> str:
    return saved.text()


def _shares(turn: SavedTurn) -> str:
    """Who wrote how much of an answer, for people."""
    written = Counter(name for _, names, _ in turn.tokens for name in names)
    total = sum(written.values())
    return ", ".join(f"{name} {count / total:.0%}" for name, count in written.most_common())


FORMATS: Mapping[str, Callable[[SavedConversation, Sequence[str]], str]] = {
    ".html": _html,
    ".md": _markdown,
    ".json": _json,
}
