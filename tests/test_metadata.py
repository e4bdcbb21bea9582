"""What a router's file says of itself, when anybody may have written it: read, or refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from safetensors.numpy import load_file, save_file

from converters.trained import read_trained
from frcli.assembly import Wish, assemble
from frcli.bundle import valid_name
from frcli.errors import FrcliError, ModelError
from frcli.metadata import expert_names, trained_gamma
from frcli.sources.onnx import OnnxRouter

PATH = Path("router.onnx")
DEEP = "[" * 100_000
BAD = [
    "",
    "[",
    "5",
    "null",
    "[1,2]",
    "[[1],[2]]",
    '{"general": 1}',
    '["general", ""]',
    '["a", "a"]',
    '["\\ud800"]',
    DEEP,
]
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=8)


@settings(deadline=None)
@given(st.none() | st.text() | JSON.map(json.dumps) | st.integers(0, 10**6).map("[".__mul__))
def test_names_are_read_or_refused(text: str | None) -> None:
    try:
        names = expert_names(text, PATH)
    except ModelError as error:
        assert str(error).startswith("router.onnx ") and str(error).isprintable() and len(str(error)) < 600
    else:
        assert list(names) == json.loads(str(text)) == [valid_name(name) for name in names]


@settings(deadline=None)
@given(st.lists(st.text("abc-_.é9", min_size=1), unique=True))
def test_names_are_read_in_their_order(names: list[str]) -> None:
    assert expert_names(json.dumps(names), PATH) == tuple(names)


@settings(deadline=None)
@given(st.text() | st.floats().map(repr) | st.integers().map(str))
def test_gamma_is_read_or_refused(text: str) -> None:
    try:
        gamma = trained_gamma(text, PATH)
    except ModelError as error:
        assert "not a number from 0 to 16" in str(error) and str(error).isprintable()
    else:
        assert gamma == float(text) and 0 <= gamma <= 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "base.gguf")


def opened(base: Path, router: Path) -> None:
    """Make a bundle of the two, and nothing of them where that is refused."""
    wish = Wish("b", str(base), {"general": "", "math": ""}, router=str(router), link=True)
    try:
        assemble(wish, router.parent / "b")
    finally:
        assert not (router.parent / "b").exists()


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text[:20]))
def test_a_router_whose_experts_are_no_names_is_refused(text: str, base: Path, tmp_path: Path) -> None:
    whole = tiny.write_trained(tmp_path / "whole.safetensors")
    header = {"experts": text, "scale": "2.0", "base_sha256": ""}
    save_file(load_file(whole), tmp_path / "router.safetensors", metadata=header)
    model = onnx.load(tiny.write_router(tmp_path / "router.onnx", base, whole))
    helper.set_model_props(model, {each.key: each.value for each in model.metadata_props} | {"frcli.experts": text})
    onnx.save(model, tmp_path / "router.onnx")
    for name in ("router.safetensors", "router.onnx"):
        with pytest.raises(ModelError, match=f"{name} (says .* no JSON list of names|names an expert twice)"):
            opened(base, tmp_path / name)
    with pytest.raises(ModelError, match="experts|an expert"):
        read_trained(tmp_path / "router.safetensors")
    with pytest.raises(ModelError, match="experts|an expert"):
        OnnxRouter(tmp_path / "router.onnx", context=32)


@pytest.mark.parametrize("text", ["[", "5", DEEP], ids=["open", "number", "deep"])
def test_a_trained_router_whose_layers_are_no_numbers_is_refused(text: str, tmp_path: Path) -> None:
    whole = tiny.write_trained(tmp_path / "whole.safetensors")
    header = {"experts": '["general", "math"]', "scale": "2.0", "base_sha256": "", "layers": text}
    save_file(load_file(whole), tmp_path / "router.safetensors", metadata=header)
    with pytest.raises(FrcliError, match=r"router\.safetensors"):
        read_trained(tmp_path / "router.safetensors")
