from __future__ import annotations

import numpy as np
import pytest

from converters.quantize import quantize


def test_block_of_levels_by_hand() -> None:
    """Sixteen levels 0.25 apart from -1 to 2.75: scale 0.25, zero point 4, and the levels themselves as integers."""
    row = 0.25 * (np.arange(32) % 16) - 1.0
    got = quantize(row[None].astype(np.float32))
    assert got.packed.shape == (1, 1, 16)
    assert got.packed[0, 0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2
    assert got.scales.tolist() == [[0.25]]
    assert got.zeros is not None and got.zeros.tolist() == [[4]]
    np.testing.assert_array_equal(got.dequantize()[0], row)


def test_symmetric_block_by_hand() -> None:
    """The largest magnitude takes level 0, one step further from 8 than level 15; it is positive, the scale is not."""
    row = np.zeros(32, dtype=np.float32)
    row[:4] = [4.0, 2.0, -3.5, 0.5]
    got = quantize(row[None], symmetric=True)
    assert got.zeros is None
    assert got.scales.tolist() == [[-0.5]]
    assert got.packed[0, 0, :2].tolist() == [0x40, 0x7F]  # 8 - 8, 8 - 4, 8 + 7, 8 - 1
    assert got.packed[0, 0, 2:].tolist() == [0x88] * 14
    np.testing.assert_array_equal(got.dequantize()[0], row)


def test_eight_bits_by_hand() -> None:
    row = np.zeros(32, dtype=np.float32)
    row[:3] = [1.27, -0.64, 0.01]
    got = quantize(row[None], bits=8, symmetric=True)
    assert got.packed[0, 0, :4].tolist() == [255, 64, 129, 128]
    np.testing.assert_allclose(got.scales, [[0.01]], rtol=1e-6)


def test_scale_is_that_of_least_squares() -> None:
    """Given its integers, no other scale of a block may be better: the residual is orthogonal to the levels."""
    weights = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    got = quantize(weights)
    residual = (weights - got.dequantize()).reshape(8, 2, 32)
    levels = got.dequantize().reshape(8, 2, 32) / got.scales[..., None]
    np.testing.assert_allclose((residual * levels).sum(-1), 0, atol=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_search_beats_rounding_to_the_full_range(symmetric: bool) -> None:
    weights = np.random.default_rng(1).standard_t(4, (64, 256)).astype(np.float32)
    blocks = weights.reshape(-1, 32)
    if symmetric:
        scale = np.abs(blocks).max(1, keepdims=True) / 7
        plain = np.clip(np.rint(blocks / scale), -8, 7) * scale
    else:
        low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
        scale = (high - low) / 15
        zero = np.rint(-low / scale)
        plain = (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero) * scale
    error = ((quantize(weights, symmetric=symmetric).dequantize() - weights).reshape(-1, 32) ** 2).sum(1)
    plain_error = ((plain - blocks) ** 2).sum(1)
    assert (error <= plain_error * 1.0001).all()
    assert error.sum() < 0.95 * plain_error.sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_odd_number_of_columns_and_empty_blocks(bits: int, symmetric: bool) -> None:
    weights = np.random.default_rng(2).standard_normal((5, 80)).astype(np.float32)
    weights[2] = 0
    got = quantize(weights, bits, symmetric)
    assert got.packed.shape == (5, 3, 4 * bits)
    assert got.dequantize().shape == (5, 80)
    assert not got.dequantize()[2].any()
    step = 8 / (1 << bits)
    assert np.abs(got.dequantize() - weights).max() < step


def test_same_weights_give_the_same_bytes() -> None:
    weights = np.random.default_rng(3).standard_normal((300, 512)).astype(np.float32)
    first, second = quantize(weights), quantize(weights)
    np.testing.assert_array_equal(first.packed, second.packed)
    np.testing.assert_array_equal(first.scales, second.scales)
