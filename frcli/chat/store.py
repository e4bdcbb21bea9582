"""Conversations on disk: one JSON file each, in the user's data folder.

A file is written whole after each turn and renamed into its place. A running chat never writes over what another one
has written: where that has happened, it goes on under a new name. A file that frcli did not write, or that is damaged,
is refused and left as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from frcli.chat.conversation import Conversation, Turn
from frcli.decode.answer import Written
from frcli.errors import DataError, OutputError, UsageError
from frcli.files import save

FORMAT = 1
_LARGEST = 1 << 28  # bytes: far beyond any conversation, far below the memory of a laptop
_LISTED = 20  # of the conversations that are told when none is named


def data_folder() -> Path:
    """The user's data folder for frcli."""
    from platformdirs import user_data_path

    return user_data_path("frcli", appauthor=False)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedTurn(_Table):
    """A turn as :class:`~frcli.chat.conversation.Turn` has it; ``tokens`` are text, experts and routing weights."""

    question: str
    answer: str | None
    stopped: bool = False
    experts: tuple[str, ...] = ()
    tokens: tuple[Written, ...] = ()

    @model_validator(mode="after")
    def _weights_are_the_experts(self) -> SavedTurn:
        if any(weights is not None and len(weights) != len(self.experts) for _, _, weights in self.tokens):
            raise ValueError("a token has another number of weights than there are experts")
        return self


class SavedConversation(_Table):
    """The whole of a conversation's file; ``bundle`` is what was opened, ``saved`` the time in ISO 8601."""

    format: int = Field(ge=1, le=FORMAT)
    bundle: str
    system: str | None
    saved: str
    turns: tuple[SavedTurn, ...]

    @classmethod
    def of(cls, conversation: Conversation, bundle: str) -> SavedConversation:
        """The conversation as it is now."""
        turns = tuple(
            SavedTurn(
                question=turn.question,
                answer=turn.answer,
                stopped=turn.stopped,
                experts=turn.experts,
                tokens=tuple(turn.tokens),
            )
            for turn in conversation.turns
        )
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return cls(format=FORMAT, bundle=bundle, system=conversation.system, saved=now, turns=turns)

    def text(self) -> str:
        """The file's text."""
        return self.model_dump_json(exclude_defaults=True) + "\n"

    def turns_again(self) -> list[Turn]:
        """The turns, to go on from."""
        return [Turn(turn.question, turn.answer, turn.stopped, 1, turn.tokens, turn.experts) for turn in self.turns]


def read_conversation(path: Path) -> SavedConversation:
    """What is in the file; raises ``DataError`` for one that is missing, damaged, or none of ours."""
    kept = "it was left as it is"
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path} is too large for a conversation", kept)
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no conversation {path}", "/load lists those that are kept") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", kept) from None
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(f"{path} is damaged, or no conversation of frcli", kept) from None
    if not isinstance(told, dict) or not isinstance(told.get("format"), int) or "turns" not in told:
        raise DataError(f"{path} is no conversation of frcli", kept)
    if told["format"] > FORMAT:
        raise DataError(f"{path} was written by a newer frcli (format {told['format']})", "update frcli to read it")
    try:
        return SavedConversation.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged at {where}: {first['msg'].lower()}", kept) from None


@dataclass(frozen=True, slots=True)
class Kept:
    """A conversation that is on disk: its name, when it was written (seconds since 1970), its file."""

    name: str
    written: float
    path: Path


class Store:
    """The conversations in a folder, and the place among them of the one that is running.

    ``name`` is the running one's, None as long as nothing was written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._stamp: tuple[int, int] | None = None

    @property
    def name(self) -> str | None:
        """What the running conversation is called."""
        return self._path.stem if self._path else None

    def kept(self) -> list[Kept]:
        """All conversations in the folder, the latest first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*.json"):
                with contextlib.suppress(OSError):  # another chat may have renamed it
                    found.append(Kept(path.stem, path.stat().st_mtime, path))
        return sorted(found, key=lambda each: (each.written, each.name), reverse=True)

    def open(self, word: str) -> SavedConversation:
        """The conversation of that name, or in the file of that path; what is written from now on goes on with it if
        it lies in the folder. Raises ``DataError`` when it cannot be read.
        """
        path = self._place(word) if _is_name(word) else Path(word).expanduser()
        saved = read_conversation(path)
        ours = path.parent.resolve() == self._folder.resolve()
        self._path, self._stamp = (path, _stamp(path)) if ours else (None, None)
        return saved

    def begin(self) -> None:
        """What is written from now on is another conversation."""
        self._path = self._stamp = None

    def rename(self, name: str) -> None:
        """Give the running conversation a name; raises ``UsageError`` for one that is taken or cannot be one."""
        if not _is_name(name):
            raise UsageError(
                f"{name!r} cannot be the name of a conversation",
                "use letters, digits, '-', '_' and '.'; /export FILE writes it elsewhere",
            )
        target = self._place(name)
        if target == self._path:
            return
        if target.exists():
            raise UsageError(f"there is a conversation {name} already", "choose another name")
        if self._path is not None:
            try:
                self._path.rename(target)
            except OSError as error:
                raise OutputError(f"cannot rename {self._path}: {error.strerror}", "choose another name") from None
            self._stamp = _stamp(target)
        self._path = target

    def write(self, saved: SavedConversation) -> str | None:
        """Put the running conversation on disk. Returns its new name when another chat has gone on with the old one.

        Raises ``OutputError`` when it cannot be written.
        """
        moved = False
        if self._path is not None and self._path.exists() and _stamp(self._path) != self._stamp:
            self._path, moved = None, True
        if self._path is None:
            self._path = self._place(f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(3)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(f"cannot make {self._folder}: {error.strerror}", "choose another place") from None
        save(saved.text(), self._path, private=True)
        self._stamp = _stamp(self._path)
        return self._path.stem if moved else None

    def listing(self) -> str:
        """The latest conversations, a line each: name, when, and how it begins."""
        lines = []
        for each in self.kept()[:_LISTED]:
            try:
                turns = read_conversation(each.path).turns
                about = " ".join(turns[0].question.split())[:60] if turns else ""
            except DataError:
                about = "(cannot be read)"
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.written))
            lines.append(f"{each.name}  {when}  {about}".rstrip())
        return "\n".join(lines) or "no conversation is kept yet"

    def _place(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _is_name(text: str) -> bool:
    plain = bool(text) and all(c.isalnum() or c in "-_." for c in text)
    return plain and not text.startswith(".") and not text.endswith(".json") and len(text) <= 100


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
