"""Results that outlive the run that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from frcli.errors import OutputError
from frcli.evaluation.journal import Journal, key_of


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    with Journal(path) as journal:
        journal.put("a", {"result": "é\ud800"})
        journal.put("b", {"result": [1.5, True]})
    with Journal(path) as journal:
        assert len(journal) == 2
        assert journal.get("a") == {"key": "a", "result": "é\ud800"}
        assert journal.get("b") == {"key": "b", "result": [1.5, True]}
        assert journal.get("c") is None


def test_a_torn_line_is_cut_off_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    with Journal(path) as journal:
        journal.put("a", {"result": 1})
    whole = path.read_bytes()
    for torn in (b"{", b'{"key": "b", "result": 2}'):
        path.write_bytes(whole + torn)
        with Journal(path) as journal:
            assert len(journal) == 1
            journal.put("c", {"result": 3})
        assert path.read_bytes() == whole + b'{"key": "c", "result": 3}\n'


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    for text in ("not json\n", "[1]\n", '{"result": 1}\n'):
        path.write_text(text)
        with pytest.raises(OutputError, match="cannot go on from"):
            Journal(path)
        assert path.read_text() == text
    with pytest.raises(OutputError, match="cannot go on from"):
        Journal(tmp_path / "nowhere" / "out.part")


def test_without_a_path_it_only_remembers() -> None:
    with Journal(None) as journal:
        journal.put("a", {"result": 1})
        assert journal.get("a") == {"key": "a", "result": 1}


def test_keys_differ_where_anything_does() -> None:
    assert key_of(["x", 1], [2, 3]) == key_of(["x", 1], [2, 3])
    assert len({key_of(["x", 1], [2, 3]), key_of(["x", 1, 2], [3]), key_of(["x", "1"], [2, 3])}) == 3
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
