"""Quantization of a decoder's layers one by one, each for the inputs that it gets behind the quantized ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from converters.decoder import EMBEDDING, Array, Checkpoint
from converters.forward import run_layer
from converters.gptq import Hessian, quantize_calibrated
from converters.quantize import Quantized
from converters.weights import Matrix, Precision, Weights, rounded, stacked


def calibrated(checkpoint: Checkpoint, precision: Precision, tokens: NDArray[np.int32]) -> Weights:
    """Return the checkpoint's weights, the layers quantized so that their outputs on ``tokens`` change little.

    ``tokens`` [sequences, length] are texts of the kind that the model will read. They go through the source and,
    beside it, through the quantized model: each matrix is quantized for the inputs that reach it behind the quantized
    layers, to give the outputs of the source (:mod:`converters.gptq`), so that a layer makes up for what those before
    it lost. Embedding and head are rounded only.
    """
    others = rounded(checkpoint, precision)
    layers: dict[tuple[str, ...], Quantized] = {}

    def linear(modules: tuple[str, ...], inputs: Array) -> Array:
        weights = stacked(checkpoint, modules)
        source, behind = inputs.reshape(2, -1, inputs.shape[-1])
        hessian = Hessian(behind)
        aim = hessian.aim(weights, source)
        layers[modules] = matrix = quantize_calibrated(aim, hessian, precision.bits, precision.symmetric)
        outputs = np.empty((2, len(source), len(weights)), dtype=np.float32)
        np.matmul(source, weights.T, out=outputs[0])
        np.matmul(behind, matrix.dequantize().T, out=outputs[1])
        return outputs.reshape(*inputs.shape[:-1], -1)

    table = others(["model.embed_tokens"])
    rounded_table = table.dequantize() if isinstance(table, Quantized) else table
    # Each text twice: first as it goes through the source, then through the quantized model.
    state = np.concatenate([checkpoint.tensor(EMBEDDING)[tokens], rounded_table[tokens]])
    state *= np.float32(checkpoint.config.embedding_scale)
    for layer in range(checkpoint.config.layers):
        state = run_layer(checkpoint, layer, state, linear)

    def weights(modules: Sequence[str]) -> Matrix:
        return layers.get(tuple(modules)) or others(modules)

    return weights
