"""A plain numpy forward pass of a Llama model, which the results of converters are compared with.

It reads the same checkpoint and shares nothing else with the graph: full attention over the whole text, no cache,
float64 where sums are long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import EMBEDDING, FINAL_NORM, HEAD, Array, Checkpoint, LlamaConfig

Double = NDArray[np.float64]


def hidden_states(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    """Return the hidden states after the final norm, float32 [tokens, hidden]: Hugging Face's ``last_hidden_state``."""
    config = checkpoint.config
    state = checkpoint.tensor(EMBEDDING)[np.asarray(tokens)].astype(np.float32)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."

        def weight(name: str, prefix: str = prefix) -> Array:
            return checkpoint.tensor(f"{prefix}{name}.weight")

        normed = _rms_norm(state, weight("input_layernorm"), config.rms_eps)
        query = normed @ weight("self_attn.q_proj").T
        key = normed @ weight("self_attn.k_proj").T
        value = normed @ weight("self_attn.v_proj").T
        state = state + _attention(query, key, value, config) @ weight("self_attn.o_proj").T
        normed = _rms_norm(state, weight("post_attention_layernorm"), config.rms_eps)
        gate, up = normed @ weight("mlp.gate_proj").T, normed @ weight("mlp.up_proj").T
        state = state + (_silu(gate) * up) @ weight("mlp.down_proj").T
    return _rms_norm(state, checkpoint.tensor(FINAL_NORM), config.rms_eps)


def logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    """Return the logits for every position, float32 [tokens, vocab]."""
    return hidden_states(checkpoint, tokens) @ checkpoint.tensor(HEAD).T


def _rms_norm(state: Array, weight: Array, eps: float) -> Array:
    wide = state.astype(np.float64)
    scale = 1 / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
    return np.asarray(wide * scale * weight, dtype=np.float32)


def _silu(value: Array) -> Array:
    wide = value.astype(np.float64)
    return np.asarray(wide * 0.5 * (1 + np.tanh(wide / 2)), dtype=np.float32)  # x sigmoid(x), without overflow


def _attention(query: Array, key: Array, value: Array, config: LlamaConfig) -> Array:
    """Return causal softmax attention, float32 [tokens, heads * head_dim]; key heads are shared by neighbours."""
    tokens, width = len(query), config.head_dim
    turns = _angles(tokens, config)
    keys = [_rotate(head, turns) for head in _heads(key, width)]
    values = list(_heads(value, width))
    future = np.triu(np.full((tokens, tokens), -np.inf), k=1)
    out = []
    for index, head in enumerate(_heads(query, width)):
        shared = index * config.kv_heads // config.heads
        scores = _rotate(head, turns) @ keys[shared].T / np.sqrt(width) + future
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out.append(odds / odds.sum(axis=-1, keepdims=True) @ values[shared])
    return np.concatenate(out, axis=-1).astype(np.float32)


def _heads(rows: Array, width: int) -> Iterator[Double]:
    for start in range(0, rows.shape[1], width):
        yield rows[:, start : start + width].astype(np.float64)


def _angles(tokens: int, config: LlamaConfig) -> Double:
    """Return the rotation of every pair of dimensions at every position, radians [tokens, head_dim / 2]."""
    half = config.head_dim // 2
    speeds = np.array([config.rope_theta ** (-pair / half) / config.rope_factors[pair] for pair in range(half)])
    return np.outer(np.arange(tokens), speeds)


def _rotate(head: Double, turns: Double) -> Double:
    """Turn the plane of dimensions i and i + head_dim / 2 by its angle (RoPE in the Hugging Face layout)."""
    plane = head[:, : turns.shape[1]] + 1j * head[:, turns.shape[1] :]
    turned = plane * np.exp(1j * turns)
    return np.concatenate([turned.real, turned.imag], axis=1)
