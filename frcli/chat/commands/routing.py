"""Commands about the experts: who they are, who may write, and a trace of who did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from frcli.chat.commands.command import Command, Reply, near
from frcli.chat.session import Session
from frcli.chat.store import data_folder
from frcli.config import NONE
from frcli.errors import UsageError

_OFF = "off"


def _experts(session: Session, rest: str) -> Reply:
    written = session.totals.experts
    total = sum(written.values())
    width = max(len(name) for name in session.experts)
    said = [f"policy {session.settings.policy}, share of the tokens so far:"]
    for name, about in session.experts.items():
        share = f"{written[name] / total:4.0%}" if total else "   -"
        banned = "" if name in session.allowed else "  (banned)"
        said.append(f"{share}  {name:<{width}}  {about}{banned}".rstrip())
    return Reply("\n".join(said))


def _force(session: Session, rest: str) -> Reply:
    if rest:
        session.allow(tuple(session.experts) if rest == NONE else (_expert(session, rest),))
    return Reply(_who(session))


def _ban(session: Session, rest: str) -> Reply:
    if rest == NONE:
        session.allow(tuple(session.experts))
    elif rest:
        banned = [_expert(session, name) for name in rest.replace(",", " ").split()]
        session.allow([name for name in session.allowed if name not in banned])
    return Reply(_who(session))


def _expert(session: Session, word: str) -> str:
    if word not in session.experts:
        experts = ", ".join(session.experts)
        raise UsageError(f"there is no expert {word!r}", near(word, session.experts, f"the experts are {experts}"))
    return word


def _who(session: Session) -> str:
    banned = [name for name in session.experts if name not in session.allowed]
    if not banned:
        return "all experts may write"
    if len(session.allowed) == 1:
        return f"only {session.allowed[0]} writes the next answers; /force none takes it back"
    return f"{_listed(banned)} will not write the next answers; /ban none takes it back"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _trace(session: Session, rest: str) -> Reply:
    if rest == _OFF:
        session.trace_to(None)
    elif rest:
        name = (session.store.name if session.store else None) or "chat"
        path = data_folder() / "traces" / f"{name}.jsonl" if rest == "on" else Path(rest).expanduser().absolute()
        session.trace_to(path)
    return Reply("no trace is written" if session.trace is None else f"tokens are traced to {session.trace.path}")


def _names(session: Session) -> Iterable[str]:
    return (*session.experts, NONE)


COMMANDS: dict[str, Command] = {
    "experts": Command("/experts", "who the experts are, and how much each has written", _experts),
    "force": Command(
        "/force [EXPERT]",
        "let one expert write the next answers (none: take it back)",
        _force,
        more="/force math\nThe router's logits are still added; /set policy expert:math is the expert alone.",
        words=_names,
    ),
    "ban": Command(
        "/ban [EXPERT ...]",
        "keep experts from the next answers (none: take it back)",
        _ban,
        more="/ban code\nWhere the router would choose a banned expert, the next best by its weights writes.",
        words=_names,
    ),
    "trace": Command(
        "/trace [on|off|FILE]",
        "write a line of JSON for each token: expert, margin, rank change, drafted or not",
        _trace,
        more="/trace on\n/trace routing.jsonl\n/trace off",
        words=lambda session: ("on", _OFF),
        files=True,
    ),
}
