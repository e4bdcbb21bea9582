"""Commands that count: tokens, speed, and how full the context is."""

from __future__ import annotations

from frcli.chat.commands.command import Command, Reply, columns, short
from frcli.chat.session import WAYS_OUT, Session

_SHOWN = 10  # turns of the conversation that are told one by one
_BAR = 40


def _stats(session: Session, rest: str) -> Reply:
    totals, context = session.totals, session.engine.context
    if not totals.answers:
        return Reply("nothing was written yet")
    written = sum(totals.experts.values())
    accepted = f"{totals.accepted} of {totals.proposed} accepted"
    rows = [
        ("answers", f"{totals.answers}"),
        ("tokens", f"{totals.tokens}"),
        ("speed", f"{totals.tokens_per_second:.1f} tokens/s"),
        ("drafts", f"{accepted} ({totals.acceptance:.0%})" if totals.proposed else "none"),
        ("context", f"{totals.used} of {context} tokens ({totals.used / context:.0%})"),
    ]
    rows += [(name, f"{count} tokens ({count / written:.0%})") for name, count in totals.experts.items()]
    return Reply(columns(rows))


def _context(session: Session, rest: str) -> Reply:
    conversation, context = session.conversation, session.engine.context
    ends = [session.context_used(count) for count in range(len(conversation.turns) + 1)]
    used = ends[-1]
    filled = min(_BAR, round(_BAR * used / context))
    rows = [("system", f"{ends[0]}")] if conversation.system is not None else []
    first = max(0, len(conversation.turns) - _SHOWN)
    if first:
        rows.append((f"turns 1-{first}", f"{ends[first] - ends[0]}"))
    for number in range(first, len(conversation.turns)):
        about = short(conversation.turns[number].question)
        rows.append((f"turn {number + 1}", f"{ends[number + 1] - ends[number]:<6} {about}"))
    rows.append(("left", f"{max(0, context - used)}"))
    bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] {used} of {context} tokens ({used / context:.0%})"
    return Reply(f"{bar}\n{columns(rows)}\n{WAYS_OUT}")


COMMANDS: dict[str, Command] = {
    "stats": Command("/stats", "tokens, speed, drafts, and how much each expert wrote", _stats),
    "context": Command(
        "/context",
        "how full the context is, and with what",
        _context,
        more="When it is full, an answer ends there, and the next message is refused until there is room.\n" + WAYS_OUT,
    ),
}
