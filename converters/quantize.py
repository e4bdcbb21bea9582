"""Block quantization of weight matrices in the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

BLOCK = 32
# Weights handled at once by a thread: small enough that the search's temporaries stay in the processor's cache.
_CHUNK = 1 << 17
# How much of the range of a block the search lets the levels span. Less than 1 clips outliers to serve the others
# better.
_SPANS = (1.0, 0.95, 0.9, 0.85, 0.78, 0.7)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [rows, columns] of integers with one scale, and perhaps one zero point, for each block of 32 columns.

    The weight in a block is scale * (q - zero), where zero is 2^(bits-1) if there are no zero points.

        packed   uint8 [rows, blocks, 32 * bits / 8]; with 4 bits, the even column is in the low half of a byte
        scales   float32 [rows, blocks]
        zeros    uint8 [rows, ceil(blocks * bits / 8)], packed like ``packed``, or None
    """

    bits: int
    columns: int
    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None

    def dequantize(self) -> NDArray[np.float32]:
        """Return the matrix that the integers stand for, float32 [rows, columns]."""
        rows, blocks, _ = self.packed.shape
        levels = _unpack(self.packed, self.bits).astype(np.float32)
        if self.zeros is None:
            levels -= 1 << (self.bits - 1)
        else:
            levels -= _unpack(self.zeros, self.bits)[:, :blocks, None]
        return (levels * self.scales[:, :, None]).reshape(rows, blocks * BLOCK)[:, : self.columns]


def quantize(weights: NDArray[np.float32], bits: int = 4, symmetric: bool = False) -> Quantized:
    """Return the quantized matrix, float32 [rows, columns] -> 4 or 8 bits.

    For every block, levels that span the block's range or a part of it are tried, with the best zero point and its
    neighbours unless ``symmetric``. For levels d = q - zero the least-squares scale is s = <w, d> / <d, d>, and it
    leaves the squared error <w, w> - <w, d>^2 / <d, d>; the candidate with the largest <w, d>^2 / <d, d> wins. The last
    block is padded with zeros.
    """
    rows, columns = weights.shape
    blocks = -(-columns // BLOCK)
    if columns % BLOCK:
        weights = np.pad(weights, ((0, 0), (0, blocks * BLOCK - columns)))
    flat = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, BLOCK)
    levels = np.empty(flat.shape, dtype=np.uint8)
    scales = np.empty(len(flat), dtype=np.float32)
    zeros = np.empty(len(flat), dtype=np.uint8)

    def fill(part: slice) -> None:
        levels[part], scales[part], zeros[part] = search(flat[part], bits, symmetric)

    step = _CHUNK // BLOCK
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(fill, (slice(start, start + step) for start in range(0, len(flat), step))))
    return from_levels(
        bits,
        columns,
        levels.reshape(rows, blocks, BLOCK),
        scales.reshape(rows, blocks),
        None if symmetric else zeros.reshape(rows, blocks),
    )


def from_levels(
    bits: int,
    columns: int,
    levels: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
) -> Quantized:
    """Return the quantized matrix of integers [rows, blocks, 32], scales and zero points [rows, blocks]."""
    return Quantized(bits, columns, _pack(levels, bits), scales, None if zeros is None else _pack(zeros, bits))


def search(
    blocks: NDArray[np.float32], bits: int, symmetric: bool, importance: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Return levels [n, 32], scales [n] and zero points [n] with the least squared error for each block.

    ``importance`` [32] is what the squared error of each column counts; without it they count the same.
    """
    counted = blocks if importance is None else blocks * importance
    top = (1 << bits) - 1
    best_gain = np.full(len(blocks), -1.0, dtype=np.float32)
    best_scale = np.zeros(len(blocks), dtype=np.float32)
    best_zero = np.full(len(blocks), 1 << (bits - 1), dtype=np.float32)
    best_step = np.zeros(len(blocks), dtype=np.float32)
    levels, squares = np.empty_like(blocks), np.empty_like(blocks)
    for step, zero in _candidates(blocks, bits, symmetric):
        _round(blocks, step, zero, top, levels)
        product = np.einsum("nk,nk->n", counted, levels)
        weighted = levels if importance is None else np.multiply(levels, importance, out=squares)
        norm = np.einsum("nk,nk->n", weighted, levels)
        scale = np.divide(product, norm, out=np.zeros_like(product), where=norm > 0)
        gain = product * scale
        better = gain > best_gain
        for best, found in ((best_gain, gain), (best_scale, scale), (best_zero, zero), (best_step, step)):
            np.copyto(best, found, where=better)
    _round(blocks, best_step, best_zero, top, levels)
    levels += best_zero[:, None]
    return levels.astype(np.uint8), best_scale, best_zero.astype(np.uint8)


def _round(blocks: Array, step: Array, zero: Array, top: int, levels: Array) -> None:
    """Write the whole multiples of ``step`` [n] next to the ``blocks`` [n, 32], within the range of the bits."""
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
    np.multiply(blocks, inverse[:, None], out=levels)
    np.rint(levels, out=levels)
    np.maximum(levels, -zero[:, None], out=levels)  # faster than np.clip
    np.minimum(levels, top - zero[:, None], out=levels)


def _candidates(
    blocks: NDArray[np.float32], bits: int, symmetric: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield (step between levels [n], zero point [n]) for the search."""
    top = np.float32((1 << bits) - 1)
    # A zero point lies on a level, so the levels always reach from one side of 0 to the other.
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    if symmetric:
        middle = np.full(len(blocks), 1 << (bits - 1), dtype=np.float32)
        if bits == 8:
            yield np.maximum(high, -low) / 127, middle
            return
        # There is one level more below zero than above: the larger end gets it, by a negative scale if need be.
        extreme = np.where(high > -low, high, low)
        for span in _SPANS:
            yield -extreme * span / (1 << (bits - 1)), middle
            yield extreme * span / ((1 << (bits - 1)) - 1), middle
        return
    width = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = np.where(width > 0, np.rint(-low * top / width), 0).astype(np.float32)
    for shift in (0, -1, 1) if bits == 4 else (0,):
        zero = np.clip(centre + shift, 0, top)
        for span in _SPANS if bits == 4 else (1.0,):
            yield width * np.float32(span) / top, zero


def _pack(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return levels
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    return np.asarray(levels[..., 0::2] | (levels[..., 1::2] << 4), dtype=np.uint8)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
