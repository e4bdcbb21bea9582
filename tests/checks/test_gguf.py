from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from frcli.checks.gguf import Items, check_gguf
from frcli.errors import ModelError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")


def test_what_a_file_says_is_what_ggufs_reader_finds(model: Path) -> None:
    head, reader = check_gguf(model), gguf.GGUFReader(model)
    assert not head.is_adapter
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = head.fields[name]
        if isinstance(value, Items):
            assert value.count == len(field.data)
        else:
            assert value == field.contents()
    assert [(t.name, tuple(map(int, t.shape)), int(t.tensor_type)) for t in reader.tensors] == [
        (name, tensor.shape, tensor.kind) for name, tensor in head.tensors.items()
    ]
    start = reader.data_offset
    assert [int(t.data_offset) - start for t in reader.tensors] == [t.offset for t in head.tensors.values()]


def test_every_cut_is_refused(model: Path, tmp_path: Path) -> None:
    data, cut = model.read_bytes(), tmp_path / "cut.gguf"
    head = int(gguf.GGUFReader(model).data_offset)
    for length in {*range(0, head, 97), *range(200), head - 1, head, len(data) - 40}:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            check_gguf(cut)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"llama.block_count": 100_000}, "block_count"),
        ({"llama.attention.head_count_kv": 3}, "cannot share"),
        ({"llama.attention.head_count": 0x10000000}, "head_count"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "epsilon"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base"),
        ({"llama.rope.dimension_count": 9999}, "rotates"),
        ({"llama.rope.scaling.type": "spiral"}, "scaling"),
        ({"llama.expert_count": 4}, "experts"),
        ({"llama.expert_used_count": 4}, "experts"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 999_999}, "adds bos"),
        ({"tokenizer.ggml.tokens": ["a"] * tiny.DEFAULT.vocab}, "same text"),
        ({"tokenizer.ggml.scores": [1.0, 2.0]}, "scores"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.merges": [1, 2]}, "merges"),
        ({"tokenizer.ggml.model": "llama"}, "no token <0x00>"),
        ({"general.alignment": 3}, "alignment"),
    ],
)
def test_what_would_end_llama_cpp_is_refused(change: dict[str, Any], match: str, model: Path, tmp_path: Path) -> None:
    """Each of these passes llama.cpp's reader of GGUF and is answered by an assertion, a division by zero or a read
    beyond an array later on.
    """
    with pytest.raises(ModelError, match=match):
        check_gguf(rewritten(model, tmp_path / "changed.gguf", change))


def rewritten(model: Path, path: Path, change: dict[str, Any]) -> Path:
    """The model with other values."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    kinds |= {str: gguf.GGUFValueType.STRING, list: gguf.GGUFValueType.ARRAY}
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    for name, value in (values | change).items():
        if name != "general.architecture":
            writer.add_key_value(name, value, kinds[type(value)])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["adapter", "x", 5])
def test_a_file_is_checked_as_what_it_is_used_as(kind: str | int, model: Path, tmp_path: Path) -> None:
    says = rewritten(model, tmp_path / "says.gguf", {"general.type": kind})
    with pytest.raises(ModelError, match=f"says.gguf says that it is {kind!r}; give a model"):
        check_gguf(says, adapter=False)
    with pytest.raises(ModelError, match="model.gguf says that it is 'model'; give a LoRA adapter"):
        check_gguf(model, adapter=True)


NUMBER = st.sampled_from([0, 1, 4, 9, 255, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
TEXT = st.binary(max_size=12)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads that are nearly right: counts, types and sizes that may be anything."""

    def text() -> bytes:
        value = draw(TEXT)
        return struct.pack("<Q", draw(st.just(len(value)) | NUMBER)) + value

    def value() -> bytes:
        kind = draw(st.integers(0, 14))
        if kind == 8:
            return struct.pack("<I", kind) + text()
        if kind == 9:
            return struct.pack("<IIQ", kind, draw(st.integers(0, 14)), draw(NUMBER)) + draw(st.binary(max_size=40))
        return struct.pack("<I", kind) + draw(st.binary(min_size=1, max_size=8))

    def tensor() -> bytes:
        shape = draw(st.lists(NUMBER, max_size=5))
        dimensions = draw(st.just(len(shape)) | st.integers(0, 1 << 31))
        return text() + struct.pack(f"<I{len(shape)}QIQ", dimensions, *shape, draw(st.integers(0, 45)), draw(NUMBER))

    fields, tensors = (draw(st.lists(st.just(0), max_size=4)) for _ in range(2))
    counts = [draw(st.just(len(each)) | NUMBER) for each in (tensors, fields)]
    head = b"GGUF" + struct.pack("<IQQ", draw(st.sampled_from([2, 3, 3, 3, 1, 99])), *counts)
    body = b"".join([text() + value() for _ in fields] + [tensor() for _ in tensors])
    return head + body + draw(st.binary(max_size=64))


@settings(max_examples=300, deadline=None)
@given(data=heads())
def test_any_head_is_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(data)
    try:
        check_gguf(path)
    except ModelError as error:
        assert "\n" not in str(error)
