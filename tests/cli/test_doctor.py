"""``frcli doctor``: a sound bundle, and each thing that can be wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle
from frcli.cli import doctor
from frcli.sources import devices

Run = Callable[..., Any]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, str]]:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    write_bundle(tmp_path / "pair", ("general", "math"))
    return tmp_path / "pair", {"FRCLI_CACHE": str(tmp_path / "cache")}


def examined(frcli: Run, folder: Path, env: dict[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    ran = frcli("doctor", folder, "--json", env=env)
    told = ran.json
    checks = {check["about"]: check for check in told["checks"]}
    assert told["ok"] == (ran.code == 0)
    return ran.code, checks


def test_a_sound_bundle(frcli: Run, trio: Bundle) -> None:
    ran = frcli("doctor", "trio")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert any(line.startswith("ok       router: ") and "made for these experts" in line for line in lines)
    for about in ("version", "llama-cpp-python", "onnxruntime", "numpy", "processor", "memory", "bundle"):
        assert any(f"  {about}: " in line for line in lines)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def missing(folder: Path) -> None:
    (folder / "math.gguf").unlink()


def checksum(folder: Path) -> None:
    replace(folder / "bundle.toml", 'adapter = "math.gguf"', f'adapter = "math.gguf"\nsha256 = "{"0" * 64}"')


def other_vocabulary(folder: Path) -> None:
    replace(folder / "bundle.toml", "format = 1", f'format = 1\nvocabulary = "{"0" * 64}"')


def not_built(folder: Path) -> None:
    (folder / "router.safetensors").unlink()
    tiny.write_trained(folder / "router.safetensors", seed=9)


def damaged_router(folder: Path) -> None:
    (built,) = folder.parent.glob("cache/routers/*.onnx")
    built.write_bytes(built.read_bytes()[:1000])


def unknown_key(folder: Path) -> None:
    replace(folder / "bundle.toml", "format = 1", "format = 1\nnonsense = 1")


@pytest.mark.parametrize(
    ("harm", "about", "said"),
    [
        (missing, "expert math", "is missing"),
        (checksum, "expert math", "not 000000000000... as the manifest says"),
        (other_vocabulary, "vocabulary", "not 000000000000... as the manifest says"),
        (not_built, "router", "is not built"),
        (damaged_router, "router", "is not a router that can be run"),
        (unknown_key, "bundle", "nonsense is not a known key"),
    ],
)
def test_what_is_wrong_is_found_and_told(
    frcli: Run, pair: tuple[Path, dict[str, str]], harm: Callable[[Path], None], about: str, said: str
) -> None:
    folder, env = pair
    assert examined(frcli, folder, env)[0] == 0
    harm(folder)
    code, checks = examined(frcli, folder, env)
    assert code == 1
    assert checks[about]["state"] == "problem"
    assert said in checks[about]["found"]
    assert checks[about]["advice"]


def test_a_router_for_other_experts(frcli: Run, pair: tuple[Path, dict[str, str]]) -> None:
    folder, env = pair
    (built,) = folder.parent.glob("cache/routers/*.onnx")
    manifest = folder / "bundle.toml"
    manifest.write_text(
        manifest.read_text()
        .replace("[experts.math]", "[experts.maths]")
        .replace('trained = "router.safetensors"', 'file = "router.onnx"')
    )
    (folder / "router.onnx").write_bytes(built.read_bytes())
    for data in built.parent.glob(built.name + "*"):
        if data != built:
            (folder / data.name).write_bytes(data.read_bytes())
    code, checks = examined(frcli, folder, env)
    assert code == 1
    assert "chooses among general, math, the manifest names general, maths" in checks["router"]["found"]


def test_a_wrong_configuration_is_a_problem(frcli: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("nonsense = 1")
    ran = frcli("doctor", env={"FRCLI_CONFIG": str(file)})
    assert ran.code == 1
    assert "problem  configuration: " in ran.out


def test_a_bundle_that_is_not_there(frcli: Run) -> None:
    ran = frcli("doctor", "nosuch")
    assert ran.code == 1
    assert "problem  bundle: there is no bundle 'nosuch'" in ran.out


@pytest.mark.parametrize(
    ("installed", "state", "said"),
    [
        ({"onnxruntime": "1.22", "onnxruntime-gpu": "1.22"}, "problem", "overwrite each other"),
        ({}, "problem", "not installed"),
        ({"onnxruntime-gpu": "1.22"}, "ok", "onnxruntime-gpu 1.22"),
    ],
)
def test_one_onnx_runtime_is_enough(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], state: str, said: str
) -> None:
    monkeypatch.setattr(devices, "has_nvidia", lambda: False)
    (check,) = doctor.onnx(installed.get("onnxruntime"), installed.get("onnxruntime-gpu"))
    assert (check.state, said in check.found) == (state, True)
    assert bool(check.advice) == (state == "problem")


def test_a_gpu_that_onnx_runtime_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    if not devices.has_nvidia():  # the provider is in the package, and no driver is on this machine
        monkeypatch.setattr(devices, "has_nvidia", lambda: True)
        (check,) = doctor.onnx(None, "1.22")
        assert check.state == "warn"
        assert check.advice


def test_a_gpu_that_llama_cpp_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from frcli.sources.llama import library

    monkeypatch.setattr(devices, "has_nvidia", lambda: True)
    check = doctor.llama("0.3.36")
    assert check.state == ("ok" if library().llama_supports_gpu_offload() else "warn")
    assert doctor.llama(None).state == "problem"
