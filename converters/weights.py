"""Where a model under construction gets its matrices from, in the precision that it is to have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.decoder import EMBEDDING, HEAD, Checkpoint
from converters.quantize import Quantized, quantize
from frcli.errors import ModelError, UsageError

# A matrix [rows, columns] as the model will hold it: float32, float16 or quantized.
Matrix = NDArray[Any] | Quantized
# Returns the weights of the named modules, which read the same input, with their rows one below the other.
Weights = Callable[[Sequence[str]], Matrix]

TABLES = tuple(name.removesuffix(".weight") for name in (EMBEDDING, HEAD))


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are stored: ``bits`` of the layers, ``table_bits`` of embedding and head; 32 and 16 are floats.

    ``calibrated`` says that the layers lose enough for calibration to be worth its time.
    """

    name: str
    bits: int
    table_bits: int
    symmetric: bool = False
    table_symmetric: bool = True
    calibrated: bool = False


PRECISIONS = {
    "fp32": Precision("fp32", 32, 32),
    "fp16": Precision("fp16", 16, 16),
    "int8": Precision("int8", 8, 8, symmetric=True),
    "int4": Precision("int4", 4, 8, calibrated=True),
}


_TABLES = {"fp32": (32, True), "fp16": (16, True), "int8": (8, True), "int4": (4, False)}


def precision_named(name: str, head: str | None = None) -> Precision:
    """Return the precision of that name, embedding and head in one of their own if ``head`` names it; raises
    ``UsageError`` for others.
    """
    for each in filter(None, (name, head)):
        if each not in PRECISIONS:
            raise UsageError(f"unknown precision {each!r}", f"choose one of {', '.join(PRECISIONS)}")
    chosen = PRECISIONS[name]
    if head is None:
        return chosen
    bits, symmetric = _TABLES[head]
    return replace(chosen, table_bits=bits, table_symmetric=symmetric)


def linears(layer: int) -> tuple[tuple[str, ...], ...]:
    """Return the modules of a layer that read the same input: those of query, key and value; output; gate and up; down.

    Each of the four is one matrix in the graph: a step waits for its threads four times in a layer instead of seven.
    """
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    return (
        (f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"),
        (f"{attention}o_proj",),
        (f"{mlp}gate_proj", f"{mlp}up_proj"),
        (f"{mlp}down_proj",),
    )


def stacked(checkpoint: Checkpoint, modules: Sequence[str]) -> NDArray[np.float32]:
    """Return the checkpoint's weights of the modules one below the other, float32 [rows of all, columns]."""
    parts = [checkpoint.tensor(f"{module}.weight") for module in modules]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def bias_of(checkpoint: Checkpoint, layer: int) -> NDArray[np.float32]:
    """Return the biases of the layer's query, key and value one behind the other, float32 [rows of all]."""
    return np.concatenate([checkpoint.tensor(f"{module}.bias") for module in linears(layer)[0]])


def rounded(checkpoint: Checkpoint, precision: Precision) -> Weights:
    """Return the checkpoint's weights, each rounded by itself to the nearest level of its block."""

    def weights(modules: Sequence[str]) -> Matrix:
        matrix = stacked(checkpoint, modules)
        table = modules[0] in TABLES
        bits = precision.table_bits if table else precision.bits
        if bits >= 16:
            return _half(matrix, modules[0]) if bits == 16 else matrix
        return quantize(matrix, bits, precision.table_symmetric if table else precision.symmetric)

    return weights


def _half(matrix: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = matrix.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"{name} has values that fp16 cannot hold", "choose another precision")
    return half
