"""Conversations on disk: whole, private, and never over somebody else's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from frcli.chat.conversation import Conversation
from frcli.chat.store import SavedConversation, Store, read_conversation
from frcli.errors import DataError, OutputError, UsageError


def saved(*questions: str, system: str | None = None) -> SavedConversation:
    conversation = Conversation(system)
    for question in questions:
        conversation.ask(question)
        conversation.answered(
            question.upper(), tokens=[(question.upper(), ("math",), (0.5, -1.25))], experts=("math", "code")
        )
    return SavedConversation.of(conversation, "duo")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "sessions")
    assert store.name is None
    written = saved("one", "zwei \u00e4\U0001f600\n", system="Be brief.")
    assert store.write(written) is None
    (path,) = (tmp_path / "sessions").iterdir()
    assert path.stem == store.name
    assert read_conversation(path) == written
    turns = read_conversation(path).turns_again()
    assert [(turn.question, turn.answer) for turn in turns][0] == ("one", "ONE")
    assert turns[0].tokens == (("ONE", ("math",), (0.5, -1.25)),)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_conversation_stays_in_one_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(saved("one"))
    store.write(saved("one", "two"))
    assert [len(read_conversation(each.path).turns) for each in store.kept()] == [2]


def test_two_chats_at_once_have_a_file_each(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.write(saved("one"))
    second.write(saved("two"))
    assert first.name != second.name
    assert len(first.kept()) == 2


def test_two_chats_that_go_on_with_one_conversation_lose_nothing(tmp_path: Path) -> None:
    Store(tmp_path).write(saved("one"))
    first, second = Store(tmp_path), Store(tmp_path)
    name = first.kept()[0].name
    first.open(name)
    second.open(name)
    assert second.write(saved("one", "mine")) is None
    assert first.write(saved("one", "yours")) == first.name != name
    assert first.write(saved("one", "yours", "again")) is None
    said = {each.name: [turn.question for turn in read_conversation(each.path).turns] for each in first.kept()}
    assert said == {name: ["one", "mine"], first.name: ["one", "yours", "again"]}


def test_names(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    store.write(saved("one"))
    store.rename("holidays")
    assert [each.name for each in store.kept()] == ["holidays"]
    other.write(saved("two"))
    with pytest.raises(UsageError, match="there is a conversation holidays already"):
        other.rename("holidays")
    store.rename("holidays")
    store.write(saved("one", "more"))
    assert len(other.open("holidays").turns) == 2
    for name in ("", "../up", "a/b", ".hidden", "chat.json", "x" * 200):
        with pytest.raises(UsageError, match="cannot be the name"):
            store.rename(name)


def test_a_file_from_elsewhere_is_read_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    file.write_text(saved("one").text())
    before = file.read_bytes()
    store = Store(tmp_path / "sessions")
    assert len(store.open(str(file)).turns) == 1
    store.write(saved("one", "two"))
    assert file.read_bytes() == before
    assert len(store.kept()) == 1


GOOD = json.loads(saved("one").text())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged, or no conversation"),
        (b"\xff\xfe", "damaged, or no conversation"),
        (saved("one").text()[:60].encode(), "damaged, or no conversation"),
        (b"[" * 100_000, "damaged, or no conversation"),
        (b"[1, 2]", "is no conversation of frcli"),
        (b'{"format": "gpt", "turns": []}', "is no conversation of frcli"),
        (b'{"messages": []}', "is no conversation of frcli"),
        (json.dumps({**GOOD, "format": 2}).encode(), "newer frcli"),
        (json.dumps({**GOOD, "format": 0}).encode(), "damaged at format"),
        (json.dumps({**GOOD, "more": 1}).encode(), "damaged at more"),
        (json.dumps({**GOOD, "turns": [{"question": 1, "answer": ""}]}).encode(), "damaged at turns.0.question"),
        (
            json.dumps({**GOOD, "turns": [{**GOOD["turns"][0], "experts": ["math"]}]}).encode(),
            "another number of weights",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused_and_kept(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    store = Store(tmp_path)
    with pytest.raises(DataError, match=said):
        store.open("bad")
    store.write(saved("one"))
    assert store.name != "bad"
    assert file.read_bytes() == content
    assert "bad" in store.listing()


def test_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no conversation"):
        Store(tmp_path).open("nosuch")
    assert Store(tmp_path / "nowhere").listing() == "no conversation is kept yet"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write(saved("one"))

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        store.write(saved("one", "two"))
    (path,) = tmp_path.iterdir()
    assert len(read_conversation(path).turns) == 1


def test_the_listing_says_when_and_how_each_begins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(saved("What is\n2 + 2?", "and 3?"))
    (line,) = store.listing().splitlines()
    assert line.startswith(str(store.name))
    assert line.endswith("What is 2 + 2?")
