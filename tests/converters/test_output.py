from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny

from converters.output import cannot_write, companion, staging
from frcli.errors import OutputError


def test_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.bin"
    part = companion(out, "0123456789abcdef" * 4)
    with staging(out) as folder:
        (folder / "model.bin").write_bytes(b"a")
        (folder / part).write_bytes(b"b")
        assert not out.exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.bin", part]
    assert out.read_bytes() == b"a"


def test_companions_go_with_the_result_that_they_belong_to(tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    others = ["other.bin.data", "model.bin.txt", "model.bin.0123.data", companion(tmp_path / "my-model.bin", "c" * 64)]
    for name in (*others, "model.bin.data", companion(out, "a" * 64), companion(out, "b" * 64)):
        (tmp_path / name).write_bytes(b"data")
    with staging(out, force=True) as folder:
        (folder / companion(out, "b" * 64)).write_bytes(b"data")
        with staging(out):  # of another process, which would still need what it has put there
            pass
        assert (tmp_path / companion(out, "a" * 64)).exists()
        (folder / out.name).write_bytes(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, companion(out, "b" * 64), *others}


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    out.write_bytes(b"old")
    with pytest.raises(KeyError), staging(out, force=True) as folder:
        (folder / "model.bin").write_bytes(b"half")
        raise KeyError("broken")
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_existing_results_and_folders(tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    out.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"), staging(out):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="folder"), staging(tmp_path, force=True):
        pytest.fail("the block must not run")
    with staging(out, force=True) as folder:
        (folder / "model.bin").write_bytes(b"new")
    assert out.read_bytes() == b"new"
    with pytest.raises(OutputError, match="cannot write"), staging(out / "below.bin"):
        pytest.fail("the block must not run")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    left, other = (tmp_path / name for name in (".model.bin.abcd1234", ".other.bin.abcd1234"))
    for folder in (left, other):
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"half")
    with staging(out) as running:
        assert not left.exists()
        with staging(out):  # of another process, as far as locks go
            assert running.is_dir()
        (running / "model.bin").write_bytes(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", other.name}


def test_a_result_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    with pytest.raises(OutputError, match="exists"), staging(out) as folder:
        (folder / "model.bin").write_bytes(b"ours")
        out.write_bytes(b"theirs")
    assert out.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied"), (errno.EFBIG, "file too large")],
)
def test_sentences(number: int, words: str) -> None:
    assert words in str(cannot_write(Path("x.onnx"), OSError(number, "File too large")))


def test_converters_that_cannot_finish_writing(base: Path, peft: Path, tmp_path: Path) -> None:
    from converters.adapter import convert_adapter

    with _files_of_at_most(10_000):
        with pytest.raises(OutputError, match=r"cannot write .*router\.onnx"):
            tiny.write_router(tmp_path / "router.onnx", base)
        with pytest.raises(OutputError, match=r"cannot write .*adapter\.gguf"):
            convert_adapter(peft, base, tmp_path / "adapter.gguf")
        with pytest.raises(OutputError, match=r"cannot write .*trained\.safetensors"):
            tiny.write_trained(tmp_path / "trained.safetensors")
    assert not list(tmp_path.iterdir())


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Let the operating system refuse larger files, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
