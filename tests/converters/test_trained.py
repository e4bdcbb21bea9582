from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from converters.trained import read_trained, save_trained
from frcli.errors import DataError, ModelError, OutputError

Q0 = "model.layers.0.self_attn.q_proj"


def test_round_trip(tmp_path: Path) -> None:
    a, b = tiny.lora()[Q0]
    routing = np.arange(3 * 64, dtype=np.float64).reshape(3, 64)
    save_trained(tmp_path / "router.safetensors", {Q0: (a.astype(np.float16), b)}, routing, "xyz", 1.25, "ab" * 32)
    for path in (tmp_path, tmp_path / "router.safetensors"):
        got = read_trained(path)
        assert got.experts == ("x", "y", "z")
        assert got.base_sha256 == "ab" * 32
        assert got.routing.dtype == np.float32
        np.testing.assert_array_equal(got.routing, routing)
        assert list(got.delta) == [Q0]
        assert got.delta[Q0].scale == 1.25
        assert got.delta[Q0].a.dtype == np.float16
        np.testing.assert_array_equal(got.delta[Q0].b, b)


def test_calibration(tmp_path: Path) -> None:
    ids = np.arange(15, dtype=np.int32).reshape(3, 5)
    got = read_trained(tiny.write_trained(tmp_path / "with.safetensors", calibration=ids))
    assert got.calibration is not None and got.calibration.dtype == np.int32
    np.testing.assert_array_equal(got.calibration, ids)
    assert read_trained(tiny.write_trained(tmp_path / "without.safetensors")).calibration is None


def test_layers(tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    save_trained(path, {}, np.zeros((2, 64)), "xy", 1.0, "", layers=[0, 2, 5])
    assert read_trained(path).layers == (0, 2, 5)
    assert read_trained(tiny.write_trained(tmp_path / "all.safetensors")).layers is None
    for bad in ([], [2, 1], [1, 1], [-1, 0], [0.5], [True]):
        with pytest.raises(DataError, match="rise from 0"):
            save_trained(tmp_path / "bad", {}, np.zeros((2, 64)), "xy", 1.0, "", layers=bad)  # type: ignore[arg-type]


def test_gamma(tmp_path: Path) -> None:
    path = tiny.write_trained(tmp_path / "with.safetensors", gamma=0.75)
    assert read_trained(path).gamma == 0.75
    assert read_trained(tiny.write_trained(tmp_path / "without.safetensors")).gamma is None
    for bad in (-0.5, 16.5, float("nan")):
        with pytest.raises(DataError, match=r"gamma is .*, not a number from 0 to 16"):
            tiny.write_trained(tmp_path / "bad.safetensors", gamma=bad)
    header = {"experts": '["general", "math"]', "scale": "2.0", "base_sha256": ""}
    for text in ("much", "", "-1", "17", "nan", "inf", "0x1", "9" * 5000, "\ud7ff"):
        save_file(load_file(path), tmp_path / "bad.safetensors", metadata=header | {"gamma": text})
        with pytest.raises(ModelError, match="not a number from 0 to 16"):
            read_trained(tmp_path / "bad.safetensors")


def test_a_gate(tmp_path: Path) -> None:
    got = read_trained(tiny.write_trained(tmp_path / "with.safetensors", gate_bias=0.5))
    assert got.gate is not None and got.gate.shape == (1, 65) and got.gate[0, -1] == 0.5
    assert read_trained(tiny.write_trained(tmp_path / "without.safetensors")).gate is None
    with pytest.raises(DataError, match=r"gate\.weight is of shape \[1, 3\], not \[1, 65\]"):
        save_trained(tmp_path / "bad", {}, np.zeros((2, 64)), "xy", 1.0, "", gate=np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((2, 3), np.int64), "int64"),
        (np.zeros((2, 3), np.float32), "float32"),
        (np.zeros(6, np.int32), r"shape \[6\]"),
        (np.zeros((0, 3), np.int32), "0 sequences of 3"),
        (np.zeros((1, 4096), np.int32), "1 sequences of 4096"),
        (np.zeros((17, 2048), np.int32), "17 sequences of 2048"),
        (np.full((2, 3), -1, np.int32), "the token -1"),
    ],
)
def test_refused_calibration(ids: Any, message: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        tiny.write_trained(tmp_path / "r.safetensors", calibration=ids)
    metadata = {"experts": json.dumps(["general", "math"]), "scale": "2.0", "base_sha256": ""}
    save_file(load_file(trained) | {"calibration": ids}, tmp_path / "r.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match=message):
        read_trained(tmp_path / "r.safetensors")


def test_existing_file(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "router.safetensors"
    file.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        tiny.write_trained(file)
    assert file.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("delta", "experts", "scale", "message"),
    [
        ({}, ["a"], 1.0, "of shape .* for 1 experts"),
        ({}, ["a", "a"], 1.0, "named twice"),
        ({}, ["a", ""], 1.0, "not a list of names"),
        ({}, ["a", "b"], float("nan"), "scale is nan"),
        ({Q0: (np.zeros((2, 64), np.float32), np.zeros((64, 3), np.float32))}, ["a", "b"], 1.0, "do not multiply"),
        ({Q0: (np.zeros((2, 64)), np.zeros((64, 2)))}, ["a", "b"], 1.0, "float64"),
    ],
)
def test_refuses_to_save(delta: Any, experts: list[str], scale: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        save_trained(tmp_path / "r.safetensors", delta, np.zeros((2, 64), np.float32), experts, scale, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"experts": None}}, "header entry"),
        ({"metadata": {"scale": "much"}}, "header entry"),
        ({"metadata": {"experts": '["a"]'}}, "for 1 experts"),
        ({"tensors": {"routing.weight": None}}, "missing"),
        ({"tensors": {f"delta.{Q0}.lora_B": None}}, "no partner"),
        ({"tensors": {"extra": np.zeros(2, np.float32)}}, "not known"),
        ({"tensors": {f"delta.{Q0}.lora_A": np.full((4, 64), np.inf, np.float32)}}, "not finite"),
    ],
)
def test_refuses_to_read(change: dict[str, dict[str, Any]], message: str, trained: Path, tmp_path: Path) -> None:
    metadata = {"experts": json.dumps(["general", "math"]), "scale": "2.0", "base_sha256": ""}
    metadata |= change.get("metadata", {})
    tensors = load_file(trained) | change.get("tensors", {})
    file = tmp_path / "router.safetensors"
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        file,
        metadata={name: value for name, value in metadata.items() if value is not None},
    )
    with pytest.raises(ModelError, match=message):
        read_trained(file)


def test_truncated_and_missing(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no trained router"):
        read_trained(tmp_path)
    file = tmp_path / "router.safetensors"
    for size in (0, 7, 100, -1):
        file.write_bytes(trained.read_bytes()[:size])
        with pytest.raises(ModelError, match=r"router\.safetensors"):
            read_trained(file)
