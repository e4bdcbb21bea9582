"""Commands that keep conversations and take them up again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from frcli.chat.commands.command import Command, Reply, lines, short
from frcli.chat.export import FORMATS, export
from frcli.chat.session import Session
from frcli.chat.store import Store
from frcli.errors import OutputError, UsageError
from frcli.files import save


def _store(session: Session) -> Store:
    if session.store is None:
        raise UsageError("conversations are not kept in this chat", "/export FILE.json writes this one to a file")
    return session.store


def _save(session: Session, rest: str) -> Reply:
    store = _store(session)
    if not rest and store.name:
        return Reply(f"kept as {store.name} after each turn; /save NAME gives it another name")
    if not rest:
        raise UsageError("/save takes a name", "for example /save holidays")
    if not session.conversation.turns:
        raise UsageError("nothing was said yet", "say something first")
    store.rename(rest)
    return Reply(lines(session.keep(), f"kept as {store.name}; /load {store.name} comes back to it"))


def _load(session: Session, rest: str) -> Reply:
    store = _store(session)
    if not rest:
        return Reply(store.listing())
    saved = store.open(rest)
    session.resume(saved)
    return Reply(resumed(session, saved.bundle))


def resumed(session: Session, bundle: str) -> str:
    """What is said when a conversation goes on that was begun with that bundle."""
    turns = session.conversation.turns
    name = session.store.name if session.store else None
    other = f"; it was begun with {bundle}" if bundle != session.bundle else ""
    last = f", the last: {short(turns[-1].question)}" if turns else ""
    count = f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"
    return f"{name or 'the conversation'} goes on after {count}{last}{other}"


def _export(session: Session, rest: str) -> Reply:
    force = rest.startswith("--force ")
    path = Path(rest.removeprefix("--force ").strip()).expanduser()
    if not rest or path.suffix.lower() not in FORMATS:
        raise UsageError(f"/export takes a file that ends in {', '.join(FORMATS)}", "for example /export chat.html")
    if not session.conversation.turns:
        raise UsageError("nothing was said yet", "say something first")
    if path.exists() and not force:
        raise OutputError(f"{path} exists", f"choose another name, or /export --force {path} to replace it")
    save(export(session.saved(), path.suffix.lower(), tuple(session.experts)), path)
    return Reply(f"written to {path.absolute()}")


def _kept(session: Session) -> Iterable[str]:
    return [each.name for each in session.store.kept()] if session.store else []


COMMANDS: dict[str, Command] = {
    "save": Command(
        "/save NAME",
        "give the conversation a name; it is kept after each turn anyway",
        _save,
        more="/save holidays",
    ),
    "load": Command(
        "/load [NAME|FILE]",
        "list the conversations that are kept, or go on with one",
        _load,
        more="/load holidays\n/load chat.json\nfrcli chat -c goes on with the last one.",
        words=_kept,
        files=True,
    ),
    "export": Command(
        "/export [--force] FILE",
        "write the conversation as .html (who wrote each token), .md or .json",
        _export,
        more="/export chat.html is one page that needs nothing else; /load reads .json again.",
        files=True,
    ),
}
