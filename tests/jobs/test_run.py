from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frcli.decode.answer import Answer
from frcli.errors import (
    ContextError,
    DataError,
    FrcliError,
    Interrupted,
    ModelError,
    OutputError,
    RowsFailed,
    UsageError,
)
from frcli.jobs.files import MAX_LINE, JobFiles
from frcli.jobs.formats import Row
from frcli.jobs.run import AHEAD, Answerer, JobResult, Progress, run
from frcli.journal import key_of

Outcome = tuple[Answer, ...] | FrcliError

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")


def echo(row: Row) -> Answer:
    text = row.prompt if row.prompt is not None else (row.messages or ())[-1]["content"]
    return Answer(text.upper(), "eos", len(text), 2, {"general": 2})


def never(row: Row) -> Answer:
    raise AssertionError(f"row {row.line} was begun")


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: Any) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_bytes(
            b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        )
        return path

    return write


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def serially(answer: Callable[[Row], Answer]) -> Answerer:
    """Answers one row after the other."""

    def answers(rows: Iterator[Row | None]) -> Iterator[tuple[int, Outcome]]:
        for number, row in enumerate(rows):
            assert row is not None  # it never waits for another
            try:
                outcome: Outcome = (answer(row),) * row.n
            except FrcliError as error:
                outcome = error
            yield number, outcome

    return answers


def key(row: Row) -> str:
    """Everything that an answer of these answerers depends on."""
    return key_of(row.id if row.named else None, row.prompt, row.messages, row.n)


def run_job(source: Path | None, out: Path | None, answers: Answerer, **options: Any) -> JobResult:
    opening = {name: options.pop(name) for name in ("force", "restart") if name in options}
    with JobFiles(source, out, **opening) as files:
        return run(files, answers, key, model="quartet", **options)


def job(source: Path | None, out: Path | None, answer: Callable[[Row], Answer] = echo, **options: Any) -> JobResult:
    return run_job(source, out, serially(answer), **options)


# Rows


def test_each_row_gives_a_line_in_order(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows(
        {"prompt": "a"},
        {"messages": [{"role": "user", "content": "b"}], "custom_id": "second"},
        {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "\u00e9"}]},
        },
    )
    out = tmp_path / "out.jsonl"
    assert job(source, out) == JobResult(3, 0)
    first, second, third = read(out)
    assert first == {
        "id": 1,
        "text": "A",
        "finish_reason": "eos",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "experts": {"general": 2}},
    }
    assert (second["id"], second["text"]) == ("second", "B")
    assert third["custom_id"] == "c"
    assert third["response"]["body"]["choices"][0]["message"]["content"] == "\u00c9"
    assert third["response"]["body"]["model"] == "quartet"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_bad_lines_fail_alone(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows(
        b'{"prompt": "cut',
        {"prompt": "good"},
        b"",
        b"  \t",
        {"prompt": ""},
        b'{"prompt": "\xff\xfe"}',
        {"prompt": "x", "unknown": 1},
        {"prompt": "good too"},
    )
    out = tmp_path / "out.jsonl"
    result = job(source, out)
    assert result == JobResult(2, 4)
    lines = read(out)
    assert [line["id"] for line in lines] == [1, 2, 5, 6, 7, 8]  # blank lines are counted, not answered
    assert [line.get("text") for line in lines] == [None, "GOOD", None, None, None, "GOOD TOO"]
    assert lines[3]["error"] == {"message": "line 6: byte 13 is not UTF-8"}
    with pytest.raises(RowsFailed, match=r"4 of 6 rows failed; .*out\.jsonl") as caught:
        result.check(JobFiles(source, out))
    assert caught.value.exit_code == 3
    JobResult(2, 0).check(JobFiles(source, out))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("temperature is -1", "raise it"), "invalid_request"),
        (DataError("the messages do not fit the template"), "invalid_request"),
        (ContextError("the prompt has 900 tokens"), "context_length_exceeded"),
        (ModelError("the model gave the logit nan"), "server_error"),
    ],
)
def test_an_error_of_a_row_fails_the_row(
    rows: Callable[..., Path], tmp_path: Path, error: Exception, code: str
) -> None:
    def answer(row: Row) -> Answer:
        if row.line < 3:
            raise error
        return echo(row)

    body = {"messages": [{"role": "user", "content": "x"}]}
    source = rows(
        {"prompt": "x"},
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"prompt": "y"},
    )
    out = tmp_path / "out.jsonl"
    assert job(source, out, answer) == JobResult(1, 2)
    lines = read(out)
    assert lines[0]["error"] == {"message": str(error)}
    assert lines[1]["response"] is None
    assert lines[1]["error"] == {"code": code, "message": str(error)}
    assert lines[2]["text"] == "Y"


def test_an_id_that_was_there_fails_the_second_row(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a", "id": "q"}, {"prompt": "b", "id": 4}, {"prompt": "c", "id": "q"}, {"prompt": "d"})
    out = tmp_path / "out.jsonl"
    assert job(source, out) == JobResult(2, 2)
    lines = read(out)
    assert lines[2]["error"]["message"] == "line 3: the id 'q' is that of line 1 already"
    assert lines[3]["error"]["message"] == "line 4: the id 4 is that of line 2 already"


def test_a_line_that_cannot_be_read_takes_nobodys_id(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows(
        {"prompt": "a", "id": 1}, b'{"prompt": "torn', {"prompt": "b", "id": 2}, {"id": 3}, {"id": 3, "prompt": "c"}
    )
    out = tmp_path / "out.jsonl"
    assert job(source, out) == JobResult(2, 3)
    lines = read(out)
    assert lines[2] | {"text": "B"} == lines[2]
    assert "line 2: no JSON" in lines[1]["error"]["message"]
    assert lines[4]["error"]["message"] == "line 5: the id 3 is that of line 4 already"


def test_a_line_that_is_too_long_fails_and_the_next_is_read(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a"}, b'{"prompt": "' + b"x" * MAX_LINE + b'"}', {"prompt": "b"})
    out = tmp_path / "out.jsonl"
    assert job(source, out) == JobResult(2, 1)
    assert read(out)[1]["error"] == {"message": "line 2: it is longer than 16 MiB"}
    assert read(out)[2]["id"] == 3


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n\r\n{"prompt": "c"}')
    out = tmp_path / "out.jsonl"
    assert job(source, out) == JobResult(3, 0)
    assert [line["id"] for line in read(out)] == [1, 2, 4]


def test_a_lone_surrogate_in_an_error_is_written_as_its_escape(rows: Callable[..., Path], tmp_path: Path) -> None:
    def answer(row: Row) -> Answer:
        raise DataError("the file is called \ud800")  # as Python reads a file name that is not UTF-8

    out = tmp_path / "out.jsonl"
    assert job(rows({"prompt": "x"}), out, answer) == JobResult(0, 1)
    assert b"\\ud800" in out.read_bytes()
    assert read(out)[0]["error"]["message"] == "the file is called \ud800"


def test_progress_is_told_after_every_row(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a"}, b"bad", {"prompt": "b"})
    size = source.stat().st_size
    told: list[Progress] = []
    job(source, tmp_path / "out.jsonl", progress=told.append)
    assert [(each.done, each.failed, each.tokens) for each in told] == [(1, 0, 2), (1, 1, 2), (2, 1, 4)]
    assert [each.bytes_read for each in told] == [16, 20, 36]
    assert {each.bytes_total for each in told} == {size} == {36}


def test_a_limit_ends_the_job_after_so_many_rows(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a"}, b"", b" ", {"prompt": "b"}, {"prompt": "c"})
    out = tmp_path / "out.jsonl"
    assert job(source, out, limit=2) == JobResult(2, 0)
    assert [line["id"] for line in read(out)] == [1, 4]
    assert job(source, out, limit=9) == JobResult(3, 0, known=2)  # the first ones were a beginning
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_every_answer_is_on_disk_before_the_next_row_is_begun(rows: Callable[..., Path], tmp_path: Path) -> None:
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    seen: list[int] = []

    def answer(row: Row) -> Answer:
        assert not out.exists()
        seen.append(len(read(journal)))
        return echo(row)

    job(rows(*({"prompt": str(n)} for n in range(4))), out, answer)
    assert seen == [0, 1, 2, 3]


MEMORY = """
import resource, sys
from pathlib import Path
from frcli.decode.answer import Answer
from frcli.jobs.files import JobFiles
from frcli.jobs.run import run
from frcli.journal import key_of

def answers(rows):
    for number, row in enumerate(rows):
        yield number, (Answer(row.prompt, "eos", 1, 1, {}),)

def key(row):
    return key_of(row.id, row.prompt)

with JobFiles(Path(sys.argv[1]), Path(sys.argv[2])) as files:
    try:
        run(files, answers, key, model="m", limit=int(sys.argv[3]) or None)
    finally:
        try:  # what getrusage says begins at what the process had that started this one
            lines = Path("/proc/self/status").read_text().splitlines()
            print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
        except OSError:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Many lines by a stand-in for the engine, at the protocol that the engine answers rows by."""
    lines = 100_000 if os.environ.get("FRCLI_TEST_ALL") == "1" else 20_000
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path  # nothing to wait for there
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, out = Path(place) / "in.jsonl", Path(place) / "out.jsonl"
        with source.open("w") as file:
            for number in range(lines):
                prompt = f"{number} and more of the same" if number % 100 else ""  # one in a hundred is refused
                file.write(json.dumps({"custom_id": f"request-{number}", "prompt": prompt}) + "\n")

        def peak(limit: int) -> int:
            ended = subprocess.run(
                [sys.executable, "-c", MEMORY, str(source), str(out), str(limit)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            return int(ended.stdout) << 10 if sys.platform == "linux" else int(ended.stdout)

        few = peak(1000)
        all_of_them = peak(0)  # it knows the first thousand
        assert out.read_bytes().count(b"\n") == lines
        again = peak(0)  # and this one knows them all, because a hundredth has failed
        assert max(all_of_them, again) < few + 10 * 2**20


# Files that cannot be meant


def test_an_output_that_exists_is_kept(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a"})
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    with pytest.raises(OutputError, match=r"out\.jsonl exists; .*--force"):
        job(source, out, never)
    assert out.read_text() == "precious\n"
    job(source, out, force=True)
    assert read(out)[0]["text"] == "A"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_part_that_no_job_has_left_is_kept(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a"})
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    part.write_text("precious\n")
    with pytest.raises(OutputError, match=r"out\.jsonl\.part exists; .*--force"):
        job(source, out, never)
    assert part.read_text() == "precious\n"
    assert not out.exists()
    job(source, out, force=True)
    assert len(read(out)) == 1
    assert not part.exists()


def test_input_and_output_must_be_two_files(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows({"prompt": "a"})
    before = source.read_bytes()
    hard, soft = tmp_path / "hard.jsonl", tmp_path / "soft.jsonl"
    os.link(source, hard)
    soft.symlink_to(source)
    for out in (source, hard, soft, tmp_path / ".." / tmp_path.name / "in.jsonl"):
        with pytest.raises(UsageError, match="is the input and would be written to"):
            job(source, out, never, force=True)
    for name in ("out.jsonl.part", "out.jsonl.journal"):
        os.link(source, tmp_path / name)
        with pytest.raises(UsageError, match="is the input and would be written to"):
            job(tmp_path / name, tmp_path / "out.jsonl", never, force=True)
    assert source.read_bytes() == before


def test_a_link_is_followed(rows: Callable[..., Path], tmp_path: Path) -> None:
    target, link = tmp_path / "deep" / "real.jsonl", tmp_path / "link.jsonl"
    target.parent.mkdir()
    link.symlink_to(target)
    job(rows({"prompt": "a"}), link)
    assert link.is_symlink()
    assert len(read(target)) == 1


def test_input_that_cannot_be_read(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match=r"nowhere\.jsonl does not exist"):
        job(tmp_path / "nowhere.jsonl", out, never)
    with pytest.raises(DataError, match=r"cannot read .*: is a directory"):
        job(tmp_path, out, never)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"in\.jsonl does not exist"):
        job(tmp_path / "file" / "in.jsonl", out, never)
    assert not list(tmp_path.glob("out.jsonl*"))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_input_without_rows_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    out.write_text("precious\n")
    with pytest.raises(DataError, match=r"in\.jsonl has no rows"):
        job(source, out, never, force=True)
    assert out.read_text() == "precious\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("place", ["missing/out.jsonl", "file/out.jsonl", "/proc/out.jsonl", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_any_row(
    rows: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*: (no such file|not a dir|is a dir|permission|operation)"):
        job(rows({"prompt": "a"}), tmp_path / place, never)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder", "in.jsonl"]


def test_a_folder_without_write_permission_is_refused(rows: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    source = rows({"prompt": "a"})
    reader, writer = os.pipe()
    child = os.fork()  # permission bits do not bind root, so the job runs in a process that is root no more
    if child == 0:
        try:
            os.chdir(folder)
            with source.open() as lines:
                os.dup2(lines.fileno(), 0)
            if os.geteuid() == 0:
                os.setuid(65534)
            job(None, Path("out.jsonl"), never)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__} {error}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == (
            "OutputError cannot write out.jsonl: permission denied; choose a place that can be written to"
        )
    os.waitpid(child, 0)
    assert not list(folder.iterdir())


def test_circular_links_are_refused(rows: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="cannot write"):
        job(rows({"prompt": "a"}), tmp_path / "a", never)


# Jobs that end early


def test_a_pipe_that_is_named_by_its_number_is_written_to(rows: Callable[..., Path]) -> None:
    reader, writer = os.pipe()
    try:
        assert job(rows({"prompt": "a"}), Path(f"/dev/fd/{writer}")) == JobResult(1, 0)
    finally:
        os.close(writer)
    with open(reader, "rb") as lines:
        assert json.loads(lines.read())["text"] == "A"


@needs_full
def test_a_device_that_is_full_ends_the_job_and_is_left_in_place(rows: Callable[..., Path]) -> None:
    with pytest.raises(OutputError, match="cannot write /dev/full: no space left on device"):
        job(rows({"prompt": "a"}, {"prompt": "b"}), Path("/dev/full"), force=True)
    assert Path("/dev/full").is_char_device()


def test_a_disk_that_fills_up_keeps_the_whole_lines(rows: Callable[..., Path], tmp_path: Path) -> None:
    source = rows(*({"prompt": "x" * 60} for _ in range(40)))
    script = """
import resource, signal, sys
from pathlib import Path
from frcli.decode.answer import Answer
from frcli.errors import FrcliError
from frcli.jobs.files import JobFiles
from frcli.jobs.run import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails instead: EFBIG in the place of ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    with JobFiles(Path(sys.argv[1]), Path(sys.argv[2])) as files:
        run(
            files,
            lambda rows: ((number, (Answer(row.prompt, "eos", 1, 1, {}),)) for number, row in enumerate(rows)),
            lambda row: row.prompt,
            model="m",
        )
except FrcliError as error:
    print(type(error).__name__, error)
"""
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(source), str(out)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = read(journal)
    assert 0 < len(lines) < 40
    assert journal.stat().st_size + len(json.dumps(lines[0])) > 2000  # it was the limit that ended it
    assert ended.stdout == (
        f"OutputError cannot write {journal}: file too large; make room, then go on; {len(lines)} finished rows are "
        f"safe in {journal}, and the same command goes on from there\n"
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.journal"]


def test_an_output_error_of_an_answer_ends_the_job(rows: Callable[..., Path], tmp_path: Path) -> None:
    def answer(row: Row) -> Answer:
        if row.line == 3:
            raise OutputError("cannot write the trace", "free some space")
        return echo(row)

    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    with pytest.raises(OutputError) as caught:
        job(rows(*({"prompt": str(n)} for n in range(5))), out, answer)
    assert str(caught.value).startswith(
        f"cannot write the trace; free some space; 2 finished rows are safe in {journal}"
    )
    assert len(read(journal)) == 2
    assert not out.exists()


def interrupt(row: Row) -> Answer:
    if row.line == 2:
        raise KeyboardInterrupt
    return echo(row)


def cancel(row: Row) -> Answer:
    return Answer("half an ans", "cancelled", 1, 2, {}) if row.line == 2 else echo(row)


@pytest.mark.parametrize("answer", [interrupt, cancel])
def test_ctrl_c_keeps_what_is_finished(
    rows: Callable[..., Path], tmp_path: Path, answer: Callable[[Row], Answer]
) -> None:
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    source = rows({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    with pytest.raises(Interrupted) as caught:
        job(source, out, answer)
    assert str(caught.value).startswith(f"stopped in {source}; 1 finished row is safe in {journal}, ")
    assert caught.value.exit_code == 130
    assert [line["record"]["text"] for line in read(journal)] == ["A"]
    assert not out.exists()


def test_ctrl_c_in_the_first_row_leaves_nothing_behind(rows: Callable[..., Path], tmp_path: Path) -> None:
    def answer(row: Row) -> Answer:
        raise KeyboardInterrupt

    source = rows({"prompt": "a"})
    with pytest.raises(Interrupted, match="nothing is written"):
        job(source, tmp_path / "out.jsonl", answer)
    assert [each.name for each in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_output_that_cannot_be_renamed_is_kept_beside(rows: Callable[..., Path], tmp_path: Path) -> None:
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"

    def answer(row: Row) -> Answer:
        out.mkdir(exist_ok=True)  # somebody takes the name while the job runs
        return echo(row)

    with pytest.raises(OutputError, match=r"cannot rename .*1 finished row is safe in .*\.journal"):
        job(rows({"prompt": "a"}), out, answer)
    assert len(read(journal)) == 1


# Many rows at once


def backwards(at_once: int) -> Answerer:
    """Begins so many rows and finishes the last one first."""

    def answers(rows: Iterator[Row | None]) -> Iterator[tuple[int, Outcome]]:
        begun: list[tuple[int, Row]] = []
        number = 0
        while True:
            row = next(rows, None)
            if row is not None:
                begun.append((number, row))
                number += 1
            if row is None and not begun:
                return
            if row is None or len(begun) == at_once:
                last, done = begun.pop()
                yield last, (echo(done),)

    return answers


@pytest.mark.parametrize("at_once", [1, 2, 7, 100])
def test_lines_come_in_the_order_of_the_input(rows: Callable[..., Path], tmp_path: Path, at_once: int) -> None:
    lines = [{"prompt": f"p{i}"} if i % 5 else b"{" for i in range(40)]
    out = tmp_path / "out.jsonl"
    result = run_job(rows(*lines), out, backwards(at_once))
    assert result == JobResult(32, 8)
    written = read(out)
    assert [line["id"] for line in written] == list(range(1, 41))
    assert [line.get("text") for line in written] == [f"P{i}" if i % 5 else None for i in range(40)]


def test_no_row_is_begun_too_far_ahead_of_one_that_is_not_finished(rows: Callable[..., Path], tmp_path: Path) -> None:
    begun: list[int] = []

    def answers(given: Iterator[Row | None]) -> Iterator[tuple[int, Outcome]]:
        first = next(given)
        assert first is not None
        for number in range(1, AHEAD):
            row = next(given)
            assert row is not None
            begun.append(row.line)
            yield number, (echo(row),)
        assert next(given) is None and next(given) is None
        yield 0, (echo(first),)
        yield from ((AHEAD + number, (echo(row),)) for number, row in enumerate(given) if row)

    out = tmp_path / "out.jsonl"
    assert run_job(rows(*({"prompt": str(i)} for i in range(AHEAD + 9))), out, answers).done == AHEAD + 9
    assert [line["id"] for line in read(out)] == list(range(1, AHEAD + 10))


def test_a_job_that_is_stopped_between_two_rows_is_not_finished(rows: Callable[..., Path], tmp_path: Path) -> None:
    def stopped(given: Iterator[Row | None]) -> Iterator[tuple[int, Outcome]]:
        for number in range(2):
            row = next(given)
            assert row is not None
            yield number, (echo(row),)

    out = tmp_path / "out.jsonl"
    with pytest.raises(Interrupted, match="2 finished rows are safe in"):
        run_job(rows(*({"prompt": str(i)} for i in range(9))), out, stopped)
    assert not out.exists()
    assert len(read(tmp_path / "out.jsonl.journal")) == 2


# Jobs that go on


class Counting:
    """Answers rows, and remembers their lines; fails those whose prompt is in ``bad``."""

    def __init__(self, bad: str = "", stop_after: int = 0) -> None:
        self.lines: list[int] = []
        self._bad, self._stop_after = bad, stop_after

    def __call__(self, row: Row) -> Answer:
        if self._stop_after and len(self.lines) == self._stop_after:
            raise KeyboardInterrupt
        self.lines.append(row.line)
        if row.prompt in self._bad.split():
            raise ModelError("the model gave the logit nan")
        return echo(row)


def test_a_job_goes_on_with_the_rows_that_are_missing(rows: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = [{"prompt": f"p{n}", "custom_id": f"q{n}"} for n in range(6)]
    with pytest.raises(Interrupted):
        job(rows(*lines), out, Counting(stop_after=3))
    journal = tmp_path / "out.jsonl.journal"
    journal.write_bytes(journal.read_bytes() + b'{"key": "half a li')  # what a kill may leave
    # Found again by what they are, wherever they are: a line before them, another order, and one that has changed.
    changed = [{"prompt": "new"}, lines[2], lines[0], {**lines[1], "prompt": "other"}, *lines[3:]]
    rest = Counting()
    assert job(rows(*changed), out, rest) == JobResult(7, 0, known=2)
    assert rest.lines == [1, 4, 5, 6, 7]
    written = read(out)
    assert [line["id"] for line in written] == [1, "q2", "q0", "q1", "q3", "q4", "q5"]
    assert [line["text"] for line in written] == ["NEW", "P2", "P0", "OTHER", "P3", "P4", "P5"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_rows_without_an_id_that_are_the_same_are_counted(rows: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(Interrupted):
        job(rows(*[{"prompt": "same"}] * 5), out, Counting(stop_after=3))
    rest = Counting()
    assert job(rows(b"", *[{"prompt": "same"}] * 5), out, rest).known == 3
    assert rest.lines == [5, 6]
    assert [line["id"] for line in read(out)] == [2, 3, 4, 5, 6]  # the numbers of their lines now


def test_failed_rows_are_tried_again_only_when_asked(rows: Callable[..., Path], tmp_path: Path) -> None:
    source, out = rows({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}), tmp_path / "out.jsonl"
    assert job(source, out, Counting(bad="a c")) == JobResult(1, 2)
    assert job(source, out, never) == JobResult(1, 2, known=3)
    again = Counting(bad="c")
    assert job(source, out, again, retry_failed=True) == JobResult(2, 1, known=1)
    assert again.lines == [1, 3]
    assert [line.get("text") for line in read(out)] == ["A", "B", None]
    assert job(source, out, Counting(), retry_failed=True) == JobResult(3, 0, known=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    with pytest.raises(OutputError, match="exists"):  # all is done: this would be another job
        job(source, out, never)


def test_restart_forgets_what_was_answered(rows: Callable[..., Path], tmp_path: Path) -> None:
    source, out = rows({"prompt": "a"}, {"prompt": "b"}), tmp_path / "out.jsonl"
    with pytest.raises(Interrupted):
        job(source, out, Counting(stop_after=1))
    assert job(source, out, Counting(), restart=True) == JobResult(2, 0)


def test_a_job_that_is_asked_to_stop_finishes_what_it_has_begun(rows: Callable[..., Path], tmp_path: Path) -> None:
    source, out = rows(*({"prompt": str(n)} for n in range(9))), tmp_path / "out.jsonl"
    done: list[int] = []
    with pytest.raises(Interrupted, match="3 finished rows are safe"):
        run_job(source, out, backwards(3), progress=lambda state: done.append(state.done), stopping=lambda: bool(done))
    assert job(source, out, Counting()) == JobResult(9, 0, known=3)


def test_a_row_is_not_done_when_one_of_its_answers_is_missing(rows: Callable[..., Path], tmp_path: Path) -> None:
    def forgets(given: Iterator[Row | None]) -> Iterator[tuple[int, Outcome]]:
        yield from ((number, (echo(row),)) for number, row in enumerate(given) if row and row.line == 1)

    with pytest.raises(Interrupted, match="1 finished row is safe"):
        run_job(rows({"prompt": "a"}, {"prompt": "b"}), tmp_path / "out.jsonl", forgets)


def test_two_jobs_cannot_write_one_output(rows: Callable[..., Path], tmp_path: Path) -> None:
    source, out = rows({"prompt": "a"}), tmp_path / "out.jsonl"
    with (
        JobFiles(source, out),
        pytest.raises(OutputError, match=r"another process is writing .*out\.jsonl\.journal; wait for its end"),
    ):
        job(source, out, never, force=True)
    assert job(source, out).done == 1


# Standard input and output


PIPE = """
from frcli.decode.answer import Answer
from frcli.errors import FrcliError
from frcli.jobs.files import JobFiles
from frcli.jobs.run import run
import sys
try:
    echo = lambda rows: ((number, (Answer(row.prompt, "eos", 1, 1, {}),)) for number, row in enumerate(rows))
    with JobFiles(None, None) as files:
        run(files, echo, lambda row: row.prompt, model="m")
except FrcliError as error:
    print(type(error).__name__, error, file=sys.stderr)
"""


def pipe(lines: bytes, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", PIPE], input=lines, env=environment, stderr=subprocess.PIPE, check=False, **streams
    )


def test_a_pipe_in_and_a_pipe_out() -> None:
    ended = pipe(b'{"prompt": "\xc3\xa9"}\n{"prompt": "b"}', stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert [json.loads(line)["text"] for line in ended.stdout.splitlines()] == ["\u00e9", "b"]


@needs_full
def test_standard_output_that_is_full_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = pipe(b'{"prompt": "a"}\n', stdout=full)
    assert (ended.returncode, ended.stderr) == (
        0,
        b"OutputError cannot write standard output: no space left on device\n",
    )


def test_nothing_on_standard_input_is_one_sentence() -> None:
    ended = pipe(b"", stdout=subprocess.PIPE)
    assert ended.stderr == b"DataError standard input has no rows; give one JSON object a line\n"
