"""Commands that take the conversation back, on, or to another point."""

from __future__ import annotations

from pathlib import Path

from frcli.chat.commands.command import Action, Command, Reply, lines, short
from frcli.chat.session import Session
from frcli.errors import UsageError

_LARGEST = 1 << 24  # bytes of a file that is read: far beyond any context


def _regen(session: Session, rest: str) -> Reply:
    session.conversation.ask_again()
    same = session.settings.temperature == 0
    hint = "at temperature 0 the answer stays the same; /set temperature 0.8 makes it vary"
    return Reply(hint if same else "", Action.ANSWER)


def _undo(session: Session, rest: str) -> Reply:
    turn = session.conversation.undo()
    return Reply(lines(f"taken back: {short(turn.question)}", session.turned_back()))


def _edit(session: Session, rest: str) -> Reply:
    turns = session.conversation.turns
    return Reply(action=Action.EDIT, draft=turns[-1].question if turns else "")


def _push(session: Session, rest: str) -> Reply:
    marks = session.conversation.push()
    return Reply(f"marked after {_turns(session)}; /pop comes back here{f' ({marks} marks)' if marks > 1 else ''}")


def _pop(session: Session, rest: str) -> Reply:
    left = session.conversation.pop()
    more = f" ({left} more to go back to)" if left else ""
    return Reply(lines(f"back after {_turns(session)}{more}", session.turned_back()))


def _clear(session: Session, rest: str) -> Reply:
    name = session.store.name if session.store else None
    session.conversation.clear()
    session.attached.clear()
    session.totals.used = 0
    if session.store is not None:
        session.store.begin()
    return Reply(f"a new conversation begins{f'; the last one is kept, /load {name}' if name else ''}")


def _read(session: Session, rest: str) -> Reply:
    if not rest:
        raise UsageError("/read takes a file", "for example /read notes.txt")
    path = Path(rest).expanduser()
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise UsageError(f"{path} has {size:,} bytes", f"the context holds {session.engine.context} tokens")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "give a file of text") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}", "give a file of text") from None
    if not text.strip():
        raise UsageError(f"{path} is empty", "give a file of text")
    tokens = len(session.engine.encode_messages([{"role": "user", "content": text}]))
    if tokens >= session.engine.context:
        raise UsageError(
            f"{path} has {tokens} tokens and the context holds {session.engine.context}", "give a shorter file"
        )
    session.attached.append((path.name, text))
    return Reply(f"{path.name}, {tokens} tokens, goes with your next message")


def _turns(session: Session) -> str:
    count = len(session.conversation.turns)
    return f"{count} turn{'' if count == 1 else 's'}"


COMMANDS: dict[str, Command] = {
    "regen": Command(
        "/regen",
        "write the last answer again",
        _regen,
        more="With --seed N the seed is raised by one each time, so that the words differ.",
    ),
    "undo": Command("/undo", "take back the last message and its answer", _undo),
    "edit": Command(
        "/edit",
        "change the last message in $EDITOR and ask it again",
        _edit,
        more="$VISUAL comes first, then $EDITOR, then vi or nano. An empty or unchanged text asks nothing.",
    ),
    "push": Command(
        "/push",
        "mark this point of the conversation",
        _push,
        more="Say /push, try something, and /pop to go back: what was read up to here is not read again.",
    ),
    "pop": Command("/pop", "go back to the point that was marked last", _pop),
    "clear": Command("/clear", "begin a new conversation", _clear, more="The old one stays on disk: /load lists them."),
    "read": Command(
        "/read FILE",
        "put a text file before your next message",
        _read,
        more="/read notes.txt\nSum this up.",
        files=True,
    ),
}
