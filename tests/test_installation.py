"""A bundle is there whole, the old one or the new one, whenever its making is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import installs
import pytest

from frcli.bundle import read_bundle
from frcli.errors import OutputError
from frcli.files import locked
from frcli.installation import install, room_in


def test_a_run_that_is_killed_at_any_step_leaves_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "FRCLI_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, installs.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["left"] == []  # when the command was given again
    assert set(found["none"]) == {"none", "new"} and set(found["old"]) == {"old", "new"}, found
    assert found["none"]["none"] > 10 and found["old"]["old"] > 10 and found["old"]["new"] > 5


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    for which in ("old", "new"):
        (tmp_path / which).mkdir()
        for name in installs.NAMES:
            (tmp_path / which / name).write_text(which)
    installs.make(tmp_path, tmp_path / "b", "old")
    return tmp_path


def test_two_runs_do_not_replace_one_bundle_at_once(made: Path) -> None:
    lock = locked(made / "b")
    assert lock is not None
    with pytest.raises(OutputError, match="another run is writing .*; run the command again when that is done"):
        installs.make(made, made / "b", "new")
    assert installs.state(made / "b") == "old"
    os.close(lock)
    for which in ("new", "old", "new"):
        installs.make(made, made / "b", which)
        assert installs.state(made / "b") == which
        assert len(list((made / "b").iterdir())) == 2
    assert read_bundle(str(made / "b")).base().path.parent.name == "files-2"


def test_a_bundle_that_cannot_be_written_leaves_the_old_one(made: Path) -> None:
    before = sorted(path.name for path in (made / "b").iterdir())
    files = {"base.gguf": made / "new" / "base.gguf", "math.gguf": made / "nowhere.gguf"}
    with pytest.raises(OutputError, match="cannot write .*: No such file or directory; choose another place"):
        install(made / "b", room_in(made / "b", force=True), files, "format = 1", link=False)
    assert sorted(path.name for path in (made / "b").iterdir()) == before
    assert installs.state(made / "b") == "old"
