"""Commands that show and change settings, and show what the chat is made of."""

from __future__ import annotations

from collections.abc import Iterable

from frcli.chat.commands.command import Command, Reply, columns, lines, near, short
from frcli.chat.session import Session
from frcli.config import ABOUT, FIXED, KINDS, NONE, OPTIONAL, flag, parse, show
from frcli.errors import UsageError

SETTABLE = tuple(name for name in KINDS if name not in FIXED)


def _set(session: Session, rest: str) -> Reply:
    word, _, text = rest.partition(" ")
    if not word:
        shown = ((name, show(name, getattr(session.settings, name))) for name in SETTABLE)
        return Reply(columns((name, short(value)) for name, value in shown))
    name = word.replace("-", "_")
    if name in FIXED:
        raise UsageError(f"{word} is fixed while the models are open", f"start again with --{flag(name)}")
    if name not in SETTABLE:
        raise UsageError(f"there is no setting {word!r}", near(name, SETTABLE, "/set lists them"))
    text = text.strip()
    if not text:
        unset = ", none takes it back" if name in OPTIONAL else ""
        return Reply(
            f"{name}  {show(name, getattr(session.settings, name))}\n{ABOUT[name]} It is {KINDS[name].name}{unset}."
        )
    value = getattr(session.initial, name) if text == "default" else parse(name, _unquoted(text))
    session.change(name, value)
    return Reply(f"{name}  {show(name, getattr(session.settings, name))}")


def _unquoted(text: str) -> str:
    """The text between quotes, which may begin or end with a space."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _system(session: Session, rest: str) -> Reply:
    if rest:
        session.change("system", None if rest == NONE else _unquoted(rest))
        session.turned_back()
    said = session.conversation.system
    return Reply("there is no system prompt" if said is None else f"system  {show('system', said)}")


def _show(session: Session, rest: str) -> Reply:
    shown = {
        "settings": lambda: _set(session, "").text,
        "system": lambda: _system(session, "").text,
        "conversation": lambda: _conversation(session),
        "file": lambda: _file(session),
        **session.shown,
    }
    if not rest:
        return Reply(lines(session.line(), f"/show {' | '.join(shown)}"))
    if rest not in shown:
        raise UsageError(f"there is nothing called {rest!r} to show", f"it is {', '.join(shown)}")
    return Reply(shown[rest]())


def _conversation(session: Session) -> str:
    said = []
    for turn in session.conversation.turns:
        answer = "(no answer)" if turn.answer is None else turn.answer + (" (stopped)" if turn.stopped else "")
        said += [f">>> {turn.question}", answer, ""]
    return "\n".join(said).rstrip() or "nothing was said yet"


def _file(session: Session) -> str:
    if session.store is None:
        return "this conversation is not kept"
    return session.store.name or "this conversation is kept as soon as something was answered"


def _parts(session: Session) -> Iterable[str]:
    return ("settings", "system", "conversation", "file", *session.shown)


COMMANDS: dict[str, Command] = {
    "system": Command(
        "/system [TEXT]",
        "show the system prompt, or set it (none: no system prompt)",
        _system,
        more="/system Answer in one sentence.",
    ),
    "set": Command(
        "/set [NAME [VALUE]]",
        "list settings, show one, or change it (default: back to the start)",
        _set,
        more='/set temperature 0.2\n/set stop ["\\n\\n", "END"]\n/set policy expert:math\n/set temperature default',
        words=lambda session: SETTABLE,
    ),
    "show": Command(
        "/show [PART]",
        "what the chat is made of: settings, system, conversation, file, bundle, template",
        _show,
        words=_parts,
    ),
}
