"""Safetensors files whose headers may say anything."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.checkpoint import open_checkpoint
from converters.hugging import open_safetensors, read_tensor, shards, stored_types
from converters.lora import read_peft
from converters.trained import read_trained
from frcli.errors import ModelError

TYPES = (
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "I32",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "",
    "f32",
    "X",
)
NUMBER = st.sampled_from([0, 1, 2, 4, 64, 1 << 31, 1 << 32, 1 << 62, (1 << 64) - 1, 1 << 70, -1]) | st.integers(0, 80)
ANY = st.none() | st.booleans() | NUMBER | st.floats() | st.text(max_size=4) | st.just([]) | st.just({})
Q0 = "model.layers.0.self_attn.q_proj"
NAMES = (f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight", "model.embed_tokens.weight")
NAMES += ("model.norm.weight", f"delta.{Q0}.lora_A", f"delta.{Q0}.lora_B", "routing.weight", "calibration")
METADATA = {"experts": '["a", "b"]', "scale": "2.0", "base_sha256": "", "layers": "[0, 1]", "format": "pt"}


@st.composite
def headed(draw: st.DrawFn) -> bytes:
    """Files that are nearly right: types, shapes, places and lengths that may be anything."""
    header: dict[str, Any] = {}
    data = draw(st.binary(max_size=64))
    for name in draw(st.lists(st.sampled_from(NAMES) | st.text(max_size=5), max_size=4, unique=True)):
        shape = draw(st.lists(NUMBER, max_size=3))
        entry = {"dtype": draw(st.sampled_from(TYPES)), "shape": shape}
        entry["data_offsets"] = draw(st.just([0, len(data)]) | st.lists(NUMBER, max_size=3))
        if draw(st.integers(0, 9)) == 0:
            entry[draw(st.sampled_from(sorted(entry)))] = draw(ANY)
        header[name] = entry if draw(st.integers(0, 9)) else draw(ANY)
    if draw(st.booleans()):
        metadata: dict[str, Any] = dict(METADATA)
        for key in draw(st.lists(st.sampled_from(sorted(METADATA)), max_size=2)):
            metadata[key] = draw(st.text(max_size=5) | st.sampled_from(["nan", "1e999", "[]", "{}", "[-1]"]) | ANY)
        header["__metadata__"] = metadata if draw(st.integers(0, 9)) else draw(ANY)
    text = json.dumps(header).encode() + b" " * draw(st.integers(0, 9))
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=3)) + text[at:]
    length = draw(st.just(len(text)) | NUMBER.map(lambda number: number % (1 << 64)))
    return struct.pack("<Q", length) + text + data


def _tensors(file: Path) -> None:
    handle = open_safetensors(file)
    for name in handle.keys():  # noqa: SIM118 - not a dict
        read_tensor(handle, file, name)
        read_tensor(handle, file, name, slice(0, 1))


def _checkpoint(file: Path) -> None:
    checkpoint = open_checkpoint(file.parent)
    for name in checkpoint.config.shapes():
        checkpoint.tensor(name)


READERS: dict[str, Callable[[Path], object]] = {
    "every tensor": _tensors,
    "their types": lambda file: (stored_types(file.parent), shards(file.parent)),
    "a checkpoint": _checkpoint,
    "an adapter": lambda file: read_peft(file.parent),
    "a trained router": read_trained,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_safetensors(tmp_path_factory.mktemp("any"))
    tiny.write_peft(folder)
    return folder


@pytest.mark.parametrize("name", READERS)
def test_any_header_is_read_or_refused(name: str, folder: Path) -> None:
    file = folder / ("adapter_model.safetensors" if name == "an adapter" else "model.safetensors")

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(data=headed())
    def read(data: bytes) -> None:
        file.unlink(missing_ok=True)  # the one before may still be mapped
        file.write_bytes(data)
        try:
            READERS[name](file)
        except ModelError as error:
            assert "\n" not in str(error)

    read()
