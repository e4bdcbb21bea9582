"""``frcli models`` and ``frcli convert`` on tiny bundles: what is here, what is missing, and getting it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from bundles import write_bundle

from frcli.bundle import Bundle, read_bundle

Run = Callable[..., Any]


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, str]]:
    """A bundle whose base lies elsewhere and whose router is not built, and its environment."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FRCLI_CACHE", str(cache))
    folder = tmp_path / "models" / "pair"
    write_bundle(folder, ("general", "math"), build=False)
    elsewhere = tmp_path / "elsewhere.gguf"
    (folder / "base.gguf").rename(elsewhere)
    sha256 = hashlib.sha256(elsewhere.read_bytes()).hexdigest()
    manifest = (folder / "bundle.toml").read_text()
    source = f'file = "base.gguf"\nsource = "{elsewhere}"\nsha256 = "{sha256}"'
    (folder / "bundle.toml").write_text(manifest.replace('file = "base.gguf"', source))
    return folder, {"FRCLI_CACHE": str(cache), "FRCLI_MODELS": str(tmp_path / "models")}


def test_list(frcli: Run, trio: Bundle, home: Path) -> None:
    lines = frcli("models", "list").out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("name", "trio"))] == [
        ["name", "state"],
        ["trio", "ready"],
    ]
    told = {entry["name"]: entry for entry in frcli("models", "list", "--json").json}
    assert told["trio"] == {"name": "trio", "state": "ready", "description": "", "folder": str(trio.folder)}


def test_a_broken_manifest_does_not_hide_the_others(frcli: Run, fetched: tuple[Path, dict[str, str]]) -> None:
    folder, env = fetched
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / "bundle.toml").write_text("format = 1\nnonsense = 2\n")
    told = {entry["name"]: entry for entry in frcli("models", "list", "--json", env=env).json}
    assert told["broken"]["state"] == "broken"
    assert "nonsense" in told["broken"]["description"] or "name" in told["broken"]["description"]
    assert told["pair"]["state"] == "not pulled"
    (folder / "math.gguf").unlink()
    told = {entry["name"]: entry for entry in frcli("models", "list", "--json", env=env).json}
    assert told["pair"]["state"] == "missing base, expert math"


def test_show(frcli: Run, trio: Bundle) -> None:
    told = frcli("models", "show", "trio", "--json").json
    assert (told["name"], told["state"], told["router"]) == ("trio", "ready", "fp32")
    assert list(told["experts"]) == ["general", "math", "code"]
    assert (told["defaults"]["gamma"], told["defaults"]["context"]) == (0.5, 256)
    files = {entry["role"]: entry for entry in told["files"]}
    assert list(files) == ["base", "expert math", "expert code", "router", "router, built"]
    assert files["base"]["path"] == str(trio.base().path)
    assert files["base"]["bytes"] == trio.base().path.stat().st_size
    text = frcli("models", "show", "trio").out
    assert all(entry["path"] in text for entry in told["files"])


def test_pull_fetches_builds_and_is_then_done(frcli: Run, fetched: tuple[Path, dict[str, str]]) -> None:
    folder, env = fetched
    assert "the base file" in frcli("chat", folder, "-p", "x", env=env).err
    ran = frcli("models", "pull", "pair", env=env)
    assert ran.code == 0, ran.err
    assert "base: fetching " in ran.err
    assert "router: KL " in ran.err
    assert ran.err.splitlines()[-1] == "pair is ready: frcli chat pair"
    assert frcli("chat", "pair", "-p", "x", "-n", "3", env=env).code == 0
    built = read_bundle(str(folder)).router_model()
    assert built is not None
    before = built.stat().st_mtime_ns
    again = frcli("models", "pull", "pair", env=env)
    assert again.code == 0
    assert "fetching" not in again.err
    assert "building" not in again.err
    assert built.stat().st_mtime_ns == before
    forced = frcli("models", "pull", "pair", "--force", env=env)
    assert forced.code == 0, forced.err
    assert built.stat().st_mtime_ns > before


def test_a_router_may_be_made_of_a_model_of_its_own(frcli: Run, fetched: tuple[Path, dict[str, str]]) -> None:
    folder, env = fetched
    narrow = tiny.TinyShape(hidden=32, heads=2, layers=1, kv_heads=1)
    tiny.write_gguf(folder.parent / "narrow.gguf", narrow)
    (folder / "router.safetensors").unlink()
    tiny.write_trained(folder / "router.safetensors", narrow, ("general", "math"))
    manifest = folder / "bundle.toml"
    own = f'[router.base]\nfile = "narrow.gguf"\nsource = "{folder.parent / "narrow.gguf"}"\n'
    manifest.write_text(manifest.read_text().replace("[defaults]", f"{own}[defaults]"))
    pulled = frcli("models", "pull", "pair", env=env)
    assert pulled.code == 0 and "building it from narrow.gguf" in pulled.err
    assert pulled.err.count("narrow.gguf") >= 3  # fetched, kept, built from
    answer = frcli("generate", "-", "-b", "pair", "-n", "4", "-q", stdin='{"prompt": "the"}\n', env=env)
    assert answer.code == 0, answer.err
    manifest.write_text(manifest.read_text().replace('trained = "router.safetensors"', 'file = "router.onnx"'))
    assert "leave its base out" in frcli("models", "show", "pair", env=env).err


def test_pull_replaces_a_damaged_file(frcli: Run, fetched: tuple[Path, dict[str, str]]) -> None:
    folder, env = fetched
    assert frcli("models", "pull", "pair", env=env).code == 0
    base = read_bundle(str(folder)).base().path
    right = base.read_bytes()
    base.write_bytes(right[:-1] + b"?")
    assert "has sha256" in frcli("chat", "pair", "-p", "x", env=env).err
    ran = frcli("models", "pull", "pair", env=env)
    assert ran.code == 0, ran.err
    assert "fetching it again" in ran.err
    assert base.read_bytes() == right


def test_a_damaged_router_is_refused_and_built_again(frcli: Run, fetched: tuple[Path, dict[str, str]]) -> None:
    folder, env = fetched
    assert frcli("models", "pull", "pair", env=env).code == 0
    built = read_bundle(str(folder)).router_model()
    assert built is not None
    right = built.read_bytes()
    built.write_bytes(right[:-2000] + bytes(1000) + right[-1000:])
    assert "the built router file" in frcli("chat", "pair", "-p", "x", env=env).err
    ran = frcli("models", "pull", "pair", env=env)
    assert ran.code == 0, ran.err
    assert "building it again" in ran.err
    assert built.read_bytes() == right


def test_pull_refuses_what_is_not_what_the_manifest_says(frcli: Run, fetched: tuple[Path, dict[str, str]]) -> None:
    folder, env = fetched
    elsewhere = folder.parent.parent / "elsewhere.gguf"
    elsewhere.write_bytes(elsewhere.read_bytes() + b"!")
    ran = frcli("models", "pull", "pair", env=env)
    assert ran.code == 1
    assert "sha256" in ran.err.splitlines()[-1]
    assert not read_bundle(str(folder)).base().path.exists()


def test_what_does_not_exist(frcli: Run) -> None:
    for command in ("show", "pull"):
        ran = frcli("models", command, "nosuch")
        assert (ran.code, ran.out) == (1, "")
        assert "there is no bundle 'nosuch'" in ran.err


def test_convert_expert(frcli: Run, tmp_path: Path) -> None:
    src = tiny.write_safetensors(tmp_path / "model")
    vocabularies.write_plain_tokenizer(src)
    out = tmp_path / "expert.gguf"
    ran = frcli("convert", "expert", src, "-o", out, "--quant", "Q8_0")
    assert ran.code == 0, ran.err
    assert out.read_bytes()[:4] == b"GGUF"
    assert f"parity with {src}: KL " in ran.err
    again = frcli("convert", "expert", src, "-o", out)
    assert (again.code, f"{out} exists" in again.err) == (1, True)
    fast = frcli("convert", "expert", src, "-o", out, "--force", "--no-verify")
    assert (fast.code, "parity" in fast.err) == (0, False)
    assert frcli("convert", "expert", src, "-o", out, "--force", "--quant", "Q9").code == 2
    adapter = frcli("convert", "adapter", tiny.write_peft(tmp_path / "peft"), "--base", out, "-o", tmp_path / "a.gguf")
    assert adapter.code == 0, adapter.err


def test_convert_adapter(frcli: Run, tmp_path: Path) -> None:
    base = tiny.write_gguf(tmp_path / "base.gguf")
    peft = tiny.write_peft(tmp_path / "peft")
    out = tmp_path / "adapter.gguf"
    ran = frcli("convert", "adapter", peft, "--base", base, "-o", out, "--dtype", "f32")
    assert ran.code == 0, ran.err
    assert out.read_bytes()[:4] == b"GGUF"
    assert f"parity with {peft}: KL " in ran.err
    again = frcli("convert", "adapter", peft, "--base", base, "-o", out)
    assert (again.code, f"{out} exists" in again.err) == (1, True)
    assert frcli("convert", "adapter", peft, "--base", base, "-o", out, "--force").code == 0
    assert frcli("convert", "adapter", peft, "--base", base, "-o", out, "--force", "--dtype", "f8").code == 2


def test_convert_router(frcli: Run, tmp_path: Path) -> None:
    from frcli.sources.onnx import OnnxRouter

    base = tiny.write_gguf(tmp_path / "base.gguf")
    trained = tiny.write_trained(tmp_path / "router.safetensors")
    out = tmp_path / "router.onnx"
    ran = frcli("convert", "router", "--base", base, "--trained", trained, "-o", out, "--precision", "fp32")
    assert ran.code == 0, ran.err
    assert "routing KL" in ran.err
    router = OnnxRouter(out, context=512)  # all that the base was trained for
    assert router.experts == ("general", "math")
    router.close()
    again = frcli("convert", "router", "--base", base, "--trained", trained, "-o", out)
    assert (again.code, f"{out} exists" in again.err) == (1, True)
    ran = frcli("convert", "router", "--base", base, "--trained", trained, "-o", out, "--force", "--context", "1000")
    assert ran.code == 2
    assert "context" in ran.err


def test_convert_router_from_safetensors(frcli: Run, tmp_path: Path) -> None:
    import onnx

    expert = tiny.write_gguf(tmp_path / "expert.gguf")
    base = tiny.write_safetensors(tmp_path / "base")
    trained = tiny.write_trained(tmp_path / "router.safetensors")
    command = ["convert", "router", "--trained", trained, "--precision", "fp32"]
    refused = frcli(*command, "--base", base, "-o", tmp_path / "no.onnx")
    assert (refused.code, "--vocab" in refused.err) == (2, True)

    models = []
    whole = vocabularies.write_plain_tokenizer(tiny.write_safetensors(tmp_path / "whole"))
    named = ("--base", base, "--vocab", expert)
    for name, source in (("folder", named), ("whole", ("--base", whole)), ("file", ("--base", expert))):
        out = tmp_path / f"{name}.onnx"
        ran = frcli(*command, *source, "-o", out)
        assert ran.code == 0, ran.err
        models.append({entry.key: entry.value for entry in onnx.load(out).metadata_props})
    folder, with_tokenizer, file = models
    assert folder["frcli.vocabulary"] == with_tokenizer["frcli.vocabulary"] == file["frcli.vocabulary"] != ""
    assert folder["frcli.context"] == file["frcli.context"]
