"""The layers of a decoder in plain numpy, for calibration (in float32) and as a reference (in float64).

It shares nothing with the graph for ONNX Runtime but the checkpoint: full attention over whole texts, and no cache.
Arrays are [sequences, length, width] and keep their dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.decoder import LAYERS, SILU, Checkpoint, DecoderConfig
from converters.weights import bias_of, linears

State = NDArray[Any]
# Multiplies inputs [sequences, length, in] by the matrix of the modules: [sequences, length, out].
Linear = Callable[[tuple[str, ...], State], State]


def run_layer(checkpoint: Checkpoint, layer: int, state: State, linear: Linear) -> State:
    """Return what a layer makes of the state, with ``linear`` for its matrices."""
    config, prefix = checkpoint.config, f"{LAYERS}{layer}."
    qkv, out, gate_up, down = linears(layer)

    def norm(value: State, name: str) -> State:
        return rms_norm(value, checkpoint.tensor(name), config.rms_eps)

    joint = linear(qkv, norm(state, f"{prefix}input_layernorm.weight"))
    if config.qkv_bias:
        joint = joint + bias_of(checkpoint, layer).astype(joint.dtype)
    branch = linear(out, _attention(checkpoint, layer, joint))
    if config.post_norms:
        branch = norm(branch, f"{prefix}post_attention_layernorm.weight")
    state = state + branch
    gate, up = np.split(linear(gate_up, norm(state, config.norm_before_mlp(layer))), 2, axis=-1)
    active = np.empty(gate.shape, dtype=gate.dtype)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(_silu if config.activation == SILU else _gelu, gate, active))
    branch = linear(down, np.multiply(active, up, out=active))
    if config.post_norms:
        branch = norm(branch, f"{prefix}post_feedforward_layernorm.weight")
    return state + branch


def rms_norm(state: State, weight: State, eps: float) -> State:
    """Return the state over its root mean square, times ``weight``."""
    scale = 1 / np.sqrt(np.square(state).mean(axis=-1, keepdims=True) + state.dtype.type(eps))
    return np.asarray(state * scale * weight, dtype=state.dtype)


def capped(values: State, cap: float) -> State:
    """Return cap tanh(values / cap), or the values themselves if the cap is 0."""
    return np.tanh(values / cap) * values.dtype.type(cap) if cap else values


def _silu(gate: State, active: State) -> None:
    np.divide(gate, 2, out=active)
    np.tanh(active, out=active)  # x sigmoid(x) is x (1 + tanh(x / 2)) / 2, without overflow
    active += 1
    active *= gate
    active /= 2


def _gelu(gate: State, active: State) -> None:
    """The approximation with tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    np.multiply(gate, gate, out=active)
    active *= gate
    active *= gate.dtype.type(0.044715)
    active += gate
    active *= gate.dtype.type(np.sqrt(2 / np.pi))
    np.tanh(active, out=active)
    active += 1
    active *= gate
    active /= 2


def _attention(checkpoint: Checkpoint, layer: int, joint: State) -> State:
    """Return causal attention within each sequence, [sequences, length, heads * head_dim]."""
    config = checkpoint.config
    sequences, length, _ = joint.shape
    width, shared = config.head_dim, config.heads // config.kv_heads
    hidden = _hidden(length, config.window(layer)).astype(joint.dtype)
    waves = [wave.astype(joint.dtype) for wave in _waves(config, length, layer)]
    norms = [checkpoint.tensor(f"{LAYERS}{layer}.self_attn.{part}_norm.weight") for part in "qk" if config.qk_norm]
    attended = np.empty((sequences, length, config.heads * width), dtype=joint.dtype)
    for index in range(sequences):  # one at a time, because the scores are the largest arrays of all
        heads = joint[index].reshape(length, -1, width).swapaxes(0, 1)
        query, key, value = np.split(heads, [config.heads, config.heads + config.kv_heads])
        if norms:
            query, key = (rms_norm(part, w, config.rms_eps) for part, w in zip((query, key), norms, strict=True))
        if layer not in config.unrotated:
            query, key = _rotate(query, *waves), _rotate(key, *waves)
        query = query.reshape(config.kv_heads, shared, length, width)
        scores = query @ key[:, None].swapaxes(-1, -2) * joint.dtype.type(config.query_scale)
        scores = capped(scores, config.attention_cap) + hidden
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        odds /= odds.sum(axis=-1, keepdims=True)
        mixed = (odds @ value[:, None]).reshape(config.heads, length, width)
        attended[index] = mixed.swapaxes(0, 1).reshape(length, -1)
    return attended


def _hidden(length: int, window: int) -> NDArray[np.float64]:
    """What is added to scores [length, length]: -inf for tokens to come, and for those before the window."""
    back = np.arange(length)[:, None] - np.arange(length)
    return np.where((back < 0) | ((back >= window) if window else False), -np.inf, 0.0)


def _waves(config: DecoderConfig, length: int, layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    angles = np.outer(np.arange(length), config.frequencies(layer))
    return config.rope_scale * np.cos(angles), config.rope_scale * np.sin(angles)


def _rotate(heads: State, cos: State, sin: State) -> State:
    """Turn the plane of dimensions i and i + head_dim / 2 by its angle, [heads, length, head_dim]."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
