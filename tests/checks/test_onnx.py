from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from converters.session import run_text
from frcli.checks.onnx import OPERATORS, check_onnx, weight_files
from frcli.checks.protobuf import fields, numbers
from frcli.errors import ModelError
from frcli.sources.onnx import OnnxRouter
from frcli.sources.onnx_header import onnx_metadata
from frcli.sources.source import Feed


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    base, trained = tiny.write_gguf(folder / "base.gguf"), tiny.write_trained(folder / "t.safetensors", gate_bias=1.0)
    return tiny.write_router(folder / "r.onnx", base, trained, precision="int4")


@pytest.fixture
def external(router: Path, tmp_path: Path) -> Path:
    onnx.save_model(
        onnx.load(router), tmp_path / "r.onnx", save_as_external_data=True, location="r.data", size_threshold=64
    )
    return tmp_path / "r.onnx"


def test_routers_pass(router: Path, external: Path) -> None:
    check_onnx(router)
    check_onnx(external)
    assert {node.op_type for node in onnx.load(router).graph.node} <= OPERATORS


def test_the_files_of_weights_are_those_that_the_graph_names(router: Path, external: Path) -> None:
    assert weight_files(router) == set()
    assert weight_files(external) == {external.parent / "r.data"}
    (external.parent / "r.data").unlink()
    with pytest.raises(ModelError, match="weights in 'r.data' are missing"):
        weight_files(external)


def _add(model: Any, operator: str, **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(operator, ["rows"], ["more"], **attributes))


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a loop": (lambda m: _add(m, "Loop"), "'Loop'"),
    "memory by a number": (lambda m: _add(m, "ConstantOfShape"), "'ConstantOfShape'"),
    "a graph in a node": (
        lambda m: _add(m, "Add", body=helper.make_graph([], "g", [], [])),
        "graph or weights of its own",
    ),
    "functions": (
        lambda m: m.functions.append(helper.make_function("x", "Add", [], [], [], [])),
        "functions of its own",
    ),
    "huge weights": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 40), "of shape"),
    "negative weights": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "of shape"),
    "weights of texts": (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "of the type 8"),
    "more layers": (lambda m: _set(m, "frcli.layers", "1000000"), "1000000 layers"),
    "wider heads": (lambda m: _set(m, "frcli.head_dim", str(1 << 40)), "dimensions"),
    "layers that are none": (lambda m: _set(m, "frcli.layers", "many"), "invalid literal"),
}


def _set(model: Any, key: str, value: str) -> None:
    next(each for each in model.metadata_props if each.key == key).value = value


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_router_needs_is_refused(name: str, router: Path, tmp_path: Path) -> None:
    change, match = CHANGES[name]
    model = onnx.load(router)
    change(model)
    (tmp_path / "r.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=match):
        check_onnx(tmp_path / "r.onnx")


@pytest.mark.parametrize(
    "key, value",
    [
        *(("location", each) for each in ("../r.data", "/etc/passwd", "a/../r.data", "", "..", "C:r.data", "no.data")),
        *(("offset", each) for each in ("-1", "99999999999")),
        *(("length", each) for each in ("99999999999", "-5", "3")),
    ],
)
def test_weights_elsewhere_are_refused(key: str, value: str, external: Path) -> None:
    (external.parent.parent / "r.data").write_bytes((external.parent / "r.data").read_bytes())
    model = onnx.load(external, load_external_data=False)
    weight = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in weight.external_data if each.key == key).value = value
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="weights in|are not in|take|invalid"):
        check_onnx(external)
    if key == "location":
        with pytest.raises(ModelError, match="weights in"):
            weight_files(external)


def test_a_link_out_of_the_folder_is_refused(external: Path) -> None:
    data = external.parent / "r.data"
    data.rename(external.parent.parent / "elsewhere.data")
    data.symlink_to(external.parent.parent / "elsewhere.data")
    with pytest.raises(ModelError, match="not a file beside it"):
        check_onnx(external)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_fields_or_no_message(data: bytes) -> None:
    try:
        found = list(fields(data))
    except ValueError:
        return
    assert sum(len(value) for _, value in found if isinstance(value, memoryview)) <= len(data)


KEYS = ("format", "experts", "vocabulary", "context", "precision", "target", "source", "layers", "kv_heads", "head_dim")
VALUES = (
    "",
    "0",
    "1",
    "2",
    "-1",
    "1.5",
    "1e9",
    "nan",
    "9" * 30,
    "9" * 5000,
    "1_6",
    "\u0662",
    " 2 ",
    "null",
    "[]",
    "{}",
)


@st.composite
def metadata(draw: st.DrawFn) -> bytes:
    """What a router may say of itself: known keys or not, once or twice, with any value or broken."""
    entries = b""
    value = st.sampled_from(VALUES).map(str.encode) | st.text(max_size=6).map(str.encode) | st.binary(max_size=6)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(KEYS).map(lambda key: f"frcli.{key}".encode()) | st.binary(max_size=4))
        parts = [(1, key), (2, draw(value))]
        parts += draw(st.lists(st.tuples(st.integers(0, 3), value), max_size=1))
        entry = b"".join(_field(number, part) for number, part in parts)
        if draw(st.integers(0, 5)) == 0:
            entry += draw(st.binary(max_size=4))
        entries += _field(14, entry)
    return entries


def _field(number: int, value: bytes) -> bytes:
    length = bytes([len(value) & 127 | 128, len(value) >> 7])
    return bytes([number << 3 | 2]) + length + value


def _open(path: Path) -> None:
    """As the engine does, and read a token."""
    router = OnnxRouter(path, context=16)
    try:
        router.extend([Feed(0, [1])])
    finally:
        router.close()


READERS: dict[str, Callable[[Path], object]] = {
    "the check": check_onnx,
    "the header": onnx_metadata,
    "the engine": _open,
    "the converters": lambda path: run_text(path, [1, 2]),
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_router_says_of_itself_is_taken_or_refused(name: str, router: Path, tmp_path: Path) -> None:
    """Behind what it says rightly, which it takes the place of."""
    whole, path = router.read_bytes(), tmp_path / "r.onnx"

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(data=metadata())
    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)  # the one before may still be mapped
        path.write_bytes(whole + data)
        try:
            READERS[name](path)
        except ModelError as error:
            assert "\n" not in str(error)

    read()


def test_numbers_of_more_than_ten_bytes_are_none() -> None:
    """A megabyte of them would take an hour to add up."""
    with pytest.raises(ValueError, match="64 bits"):
        list(fields(b"\xff" * (1 << 20)))
    assert numbers(memoryview(b"\x05\xac\x02")) == [5, 300]
