"""Results that outlive the run that made them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frcli.errors import OutputError
from frcli.journal import Journal, key_of


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
    with pytest.raises(OutputError, match="cannot write .*no such file"):
        Journal(tmp_path / "nowhere" / "out.part")


@pytest.mark.parametrize("line", ['{"key": ["a"]}', '{"key": null}', '{"key": ' + "[" * 100_000])
def test_a_key_that_is_no_text_is_a_sentence(tmp_path: Path, line: str) -> None:
    path = tmp_path / "out.part"
    path.write_text(f"{line}\n")
    with pytest.raises(OutputError, match="cannot go on from"):
        Journal(path)
    assert path.read_text() == f"{line}\n"


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    with Journal(path) as journal:
        for result in (1, 2):
            journal.put("a", {"result": result})
            assert journal.get("a") == {"key": "a", "result": result}
    with Journal(path) as journal:
        assert len(journal) == 1
        assert journal.get("a") == {"key": "a", "result": 2}
        journal.remove()
    assert not path.exists()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    script = (
        "import sys; from pathlib import Path; from frcli.journal import Journal\n"
        "with Journal(Path(sys.argv[1])): print(1, flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None and first.stdin is not None
    assert first.stdout.readline() == b"1\n"
    with pytest.raises(OutputError, match="another process is writing"):
        Journal(path)
    first.kill()  # nothing that it could do about its lock
    first.communicate()
    Journal(path).close()


def test_a_disk_that_is_full_keeps_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    with Journal(path) as journal:
        journal.put("a", {"result": 1})
        real = journal._file

        class Filling:
            """A disk with room for 9 more bytes."""

            room = 9

            def write(self, data: memoryview) -> int:
                if not self.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                taken: int = real.write(data[: self.room])
                self.room -= taken
                return taken

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        journal._file = Filling()
        with pytest.raises(OutputError, match="no space left on device; make room"):
            journal.put("b", {"result": 2})
        assert path.read_bytes() == b'{"key": "a", "result": 1}\n'
        journal._file = real
        journal.put("b", {"result": 3})
        assert journal.get("b") == {"key": "b", "result": 3}


def test_without_a_path_it_only_remembers() -> None:
    with Journal(None) as journal:
        journal.put("a", {"result": 1})
        assert journal.get("a") == {"key": "a", "result": 1}


def test_keys_differ_where_anything_does() -> None:
    assert key_of(["x", 1], [2, 3]) == key_of(["x", 1], [2, 3])
    assert len({key_of(["x", 1], [2, 3]), key_of(["x", 1, 2], [3]), key_of(["x", "1"], [2, 3])}) == 3
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
