"""All commands by name, and how a line is taken for one."""

from __future__ import annotations

from frcli.chat.commands import figures, files, routing, settings, turns
from frcli.chat.commands.command import Action, Command, Reply, columns, near
from frcli.chat.session import Session
from frcli.errors import UsageError

KEYS = (
    ('"""', "begin a message of several lines; the same again ends it"),
    ("Alt-Enter", "begin a new line in the message; pasted lines stay together too"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Up, Ctrl-R", "earlier messages, and search in them"),
    ("Tab", "complete a command, a setting, an expert or a file"),
    ("Ctrl-C", "stop the answer; what is there of it stays in the conversation"),
    ("Ctrl-D", "leave"),
)


def is_command(line: str) -> bool:
    """Whether a line is a command; a message that begins with a slash can be written with a space before it."""
    return line.startswith("/") and "\n" not in line


def run_command(line: str, session: Session) -> Reply:
    """Do what the line says; raises an ``FrcliError`` for what does not exist or cannot be; nothing is changed then."""
    word, _, rest = line[1:].strip().partition(" ")
    return _named(word).run(session, rest.strip())


def _named(word: str) -> Command:
    name = _ALIASES.get(word, word)
    if name not in COMMANDS:
        raise UsageError(f"there is no command /{word}", near(f"/{name}", _SPELLED, "/help lists the commands"))
    return COMMANDS[name]


def _help(session: Session, rest: str) -> Reply:
    if rest:
        command = _named(rest.removeprefix("/"))
        return Reply(f"{command.usage}\n{command.about}\n{command.more}".rstrip())
    usages = [(command.usage, command.about) for command in COMMANDS.values()]
    return Reply(columns([*usages, *KEYS]))


def _exit(session: Session, rest: str) -> Reply:
    return Reply(action=Action.LEAVE)


COMMANDS: dict[str, Command] = {
    "help": Command(
        "/help [COMMAND]", "all commands, or more about one", _help, words=lambda session: COMMANDS, more="/help set"
    ),
    **turns.COMMANDS,
    **settings.COMMANDS,
    **files.COMMANDS,
    **routing.COMMANDS,
    **figures.COMMANDS,
    "exit": Command("/exit", "leave; so does Ctrl-D", _exit),
}
_ALIASES = {"?": "help", "h": "help", "quit": "exit", "bye": "exit", "q": "exit"}
_SPELLED = [f"/{name}" for name in COMMANDS]
