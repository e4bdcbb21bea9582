"""The script that chats on and on, for a few turns; and that it notices what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))


def test_the_conversation_is_what_the_commands_say(tmp_path: Path) -> None:
    found = soak.soak(tmp_path, 60, 3)
    lines = found["lines"]
    assert found["turns"] == 60 and isinstance(lines, dict)
    assert lines["answered"] + lines["stopped"] + lines["failed"] == 60
    assert {"undo", "regen", "clear", "push"} <= set(lines)


def test_a_turn_that_goes_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frcli.chat.conversation import Conversation

    undo = Conversation.undo

    def twice(conversation: Conversation) -> object:
        turn = undo(conversation)
        if conversation.turns:
            undo(conversation)
        return turn

    monkeypatch.setattr(Conversation, "undo", twice)
    with pytest.raises(SystemExit, match="the turns are"):
        soak.soak(tmp_path, 200, 3)


def test_memory_that_grows_is_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["soak.py"])
    for growth, files, code in ((0.049, [9, 9], 0), (0.05, [9, 9], 1), (0.0, [9, 10], 1)):
        monkeypatch.setattr(soak, "soak", lambda *_, g=growth, f=files: {"growth": g, "open_files": f})
        with pytest.raises(SystemExit) as ended:
            soak.main()
        assert ended.value.code == code
    assert '"growth": 0.049' in capsys.readouterr().out
