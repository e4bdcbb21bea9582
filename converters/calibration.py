"""Quantization of a Llama's layers one after the other, each for the inputs that it gets behind the quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import EMBEDDING, Array, Checkpoint, LlamaConfig
from converters.gptq import Hessian, quantize_calibrated
from converters.quantize import Quantized
from converters.weights import Matrix, Precision, Weights, linears, rounded, stacked

# Multiplies inputs [sequences, length, in] by the matrix of the modules: [sequences, length, out].
_Linear = Callable[[tuple[str, ...], Array], Array]


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
    for layer in range(checkpoint.config.layers):
        state = _forward(checkpoint, layer, state, linear)

    def weights(modules: Sequence[str]) -> Matrix:
        return layers.get(tuple(modules)) or others(modules)

    return weights


def _forward(checkpoint: Checkpoint, layer: int, state: Array, linear: _Linear) -> Array:
    """Return what a layer makes of float32 [sequences, length, hidden], with ``linear`` for its matrices."""
    config, prefix = checkpoint.config, f"model.layers.{layer}."
    qkv, out, gate_up, down = linears(layer)
    normed = _rms_norm(state, checkpoint.tensor(f"{prefix}input_layernorm.weight"), config.rms_eps)
    state = state + linear(out, _attention(linear(qkv, normed), config))
    normed = _rms_norm(state, checkpoint.tensor(f"{prefix}post_attention_layernorm.weight"), config.rms_eps)
    gate, up = np.split(linear(gate_up, normed), 2, axis=-1)
    active = np.empty(gate.shape, dtype=np.float32)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(_swiglu, gate, up, active))
    return state + linear(down, active)


def _swiglu(gate: Array, up: Array, active: Array) -> None:
    np.divide(gate, 2, out=active)
    np.tanh(active, out=active)  # x sigmoid(x) is x (1 + tanh(x / 2)) / 2, without overflow
    active += 1
    active *= gate
    active /= 2
    active *= up


def _rms_norm(state: Array, weight: Array, eps: float) -> Array:
    scale = 1 / np.sqrt(np.square(state).mean(axis=-1, keepdims=True) + np.float32(eps))
    return np.asarray(state * scale * weight, dtype=np.float32)


def _attention(qkv: Array, config: LlamaConfig) -> Array:
    """Return causal attention within each sequence, float32 [sequences, length, heads * head_dim]."""
    sequences, length, _ = qkv.shape
    width, shared = config.head_dim, config.heads // config.kv_heads
    cos, sin = config.rotary(length)
    future = np.triu(np.full((length, length), -np.inf, dtype=np.float32), k=1)
    attended = np.empty((sequences, length, config.heads * width), dtype=np.float32)
    for index in range(sequences):  # one at a time, because the scores are the largest arrays of all
        heads = qkv[index].reshape(length, -1, width).swapaxes(0, 1)
        query, key, value = np.split(heads, [config.heads, config.heads + config.kv_heads])
        query = _rotate(query, cos, sin).reshape(config.kv_heads, shared, length, width)
        key = _rotate(key, cos, sin)[:, None]
        scores = query @ key.swapaxes(-1, -2) * np.float32(width**-0.5) + future
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        odds /= odds.sum(axis=-1, keepdims=True)
        mixed = (odds @ value[:, None]).reshape(config.heads, length, width)
        attended[index] = mixed.swapaxes(0, 1).reshape(length, -1)
    return attended


def _rotate(heads: Array, cos: Array, sin: Array) -> Array:
    """Turn the plane of dimensions i and i + head_dim / 2 by its angle, float32 [heads, length, head_dim]."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
