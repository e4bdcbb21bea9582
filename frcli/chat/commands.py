"""Slash commands: pure functions from a session and the words behind the command to a reply.

/help  /experts  /stats  /set  /regen  /clear  /exit
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from frcli.chat.session import Session
from frcli.config import ABOUT, FIXED, KINDS, OPTIONAL, flag, parse, show
from frcli.errors import UsageError

SETTABLE = tuple(name for name in KINDS if name not in FIXED)


class Action(Enum):
    """What the chat does after a command."""

    GO_ON = "go on"
    ANSWER = "answer"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command says, and what the chat does next."""

    text: str = ""
    action: Action = Action.GO_ON


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: how it is called, what it does, and the function that does it."""

    usage: str
    about: str
    run: Callable[[Session, str], Reply]


def is_command(line: str) -> bool:
    """Whether a line is a command; a message that begins with a slash can be written with a space before it."""
    return line.startswith("/") and "\n" not in line


def run_command(line: str, session: Session) -> Reply:
    """Do what the line says; raises ``UsageError`` for what does not exist or cannot be, and changes nothing then."""
    word, _, rest = line[1:].strip().partition(" ")
    name = _ALIASES.get(word, word)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise UsageError(f"there is no command /{word}", hint)
    return COMMANDS[name].run(session, rest.strip())


def _help(session: Session, rest: str) -> Reply:
    usages = [(command.usage, command.about) for command in COMMANDS.values()]
    keys = [
        ('"""', "begin a message of several lines; the same again ends it"),
        ("Ctrl-C", "stop the answer; what is there of it stays in the conversation"),
        ("Ctrl-D", "leave"),
    ]
    width = max(len(left) for left, _ in usages + keys)
    return Reply("\n".join(f"{left:<{width}}  {right}" for left, right in usages + keys))


def _exit(session: Session, rest: str) -> Reply:
    return Reply(action=Action.LEAVE)


def _clear(session: Session, rest: str) -> Reply:
    session.conversation.clear()
    return Reply("a new conversation begins")


def _regen(session: Session, rest: str) -> Reply:
    session.conversation.ask_again()
    same = session.settings.temperature == 0
    hint = "at temperature 0 the answer stays the same; /set temperature 0.8 makes it vary"
    return Reply(hint if same else "", Action.ANSWER)


def _experts(session: Session, rest: str) -> Reply:
    written = session.totals.experts
    total = sum(written.values())
    width = max(len(name) for name in session.experts)
    lines = [f"policy {session.settings.policy}, share of the tokens so far:"]
    for name, about in session.experts.items():
        share = f"{written[name] / total:4.0%}" if total else "   -"
        lines.append(f"{share}  {name:<{width}}  {about}".rstrip())
    return Reply("\n".join(lines))


def _stats(session: Session, rest: str) -> Reply:
    totals, turns = session.totals, session.conversation.turns
    if not totals.answers:
        return Reply("nothing was written yet")
    used = totals.used if turns else 0
    context = session.engine.context
    written = sum(totals.experts.values())
    lines = [
        f"answers   {totals.answers}",
        f"tokens    {totals.tokens}",
        f"speed     {totals.tokens_per_second:.1f} tokens/s",
        f"context   {used} of {context} tokens ({used / context:.0%})",
    ]
    lines += [f"{name:<9} {count} tokens ({count / written:.0%})" for name, count in totals.experts.items()]
    return Reply("\n".join(lines))


def _set(session: Session, rest: str) -> Reply:
    word, _, text = rest.partition(" ")
    if not word:
        width = max(len(name) for name in SETTABLE)
        lines = [f"{name:<{width}}  {show(name, getattr(session.settings, name))}" for name in SETTABLE]
        return Reply("\n".join(lines))
    name = word.replace("-", "_")
    if name in FIXED:
        raise UsageError(f"{word} is fixed while the models are open", f"start again with --{flag(name)}")
    if name not in SETTABLE:
        near = difflib.get_close_matches(name, SETTABLE, 1)
        raise UsageError(f"there is no setting {word!r}", f"did you mean {near[0]}?" if near else "/set lists them")
    text = text.strip()
    if not text:
        unset = ", none takes it back" if name in OPTIONAL else ""
        return Reply(
            f"{name}  {show(name, getattr(session.settings, name))}\n{ABOUT[name]} It is {KINDS[name].name}{unset}."
        )
    value = getattr(session.initial, name) if text == "default" else parse(name, _unquoted(text))
    session.change(name, value)
    return Reply(f"{name}  {show(name, value)}")


def _unquoted(text: str) -> str:
    """The text between quotes, which may begin or end with a space."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", _help),
    "experts": Command("/experts", "who the experts are, and how much each has written", _experts),
    "set": Command("/set [NAME [VALUE]]", "list settings, show one, or change it (default: back to the start)", _set),
    "stats": Command("/stats", "tokens, speed and how full the context is", _stats),
    "regen": Command("/regen", "write the last answer again", _regen),
    "clear": Command("/clear", "forget the conversation", _clear),
    "exit": Command("/exit", "leave", _exit),
}
_ALIASES = {"?": "help", "h": "help", "quit": "exit", "bye": "exit", "q": "exit"}
