"""The graph of a decoder for ONNX Runtime, with KV buffers that are updated in place and an optional routing head.

Inputs

    input_ids               int64   [batch, tokens]
    rows                    int64   [n]      flat positions in batch * tokens whose logits and routing are wanted
    seqlens_k               int32   [batch]  tokens that a sequence holds after this call, minus 1
    total_sequence_length   int32   scalar   the largest of these lengths
    past_key.i, past_value.i   [batch, kv_heads, max_length, head_dim], float32, in a graph for a GPU float16

Outputs

    logits                  float32 [n, vocab]
    routing                 float32 [n, experts]   only with a routing head
    prompt_routing          float32 [n, experts]   only with a head for whole prompts
    gate                    float32 [n, 1]   only with a gate: how much the logits count, 0 to 1
    present_key.i, present_value.i   as the past; bind the same memory to both

A sequence's new tokens are written behind its first ``seqlens_k + 1 - tokens`` positions, so a smaller ``seqlens_k``
than last time rewinds it. ``rows`` may be empty: then the tokens are only read. Several sequences share a call in two
ways, no others: prompts from their beginning, padded on the right to one length (``seqlens_k`` is the real length - 1),
or one token each behind pasts of any length. ONNX Runtime refuses a batch of several tokens each behind a past; those
go one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.decoder import FINAL_NORM, LAYERS, SILU, Checkpoint
from converters.graph import MICROSOFT, Graph
from converters.weights import Matrix, Weights, bias_of, linears


def build_decoder(
    checkpoint: Checkpoint,
    weights: Weights,
    context: int,
    routing: NDArray[np.float32] | None = None,
    prompt: NDArray[np.float32] | None = None,
    gate: NDArray[np.float32] | None = None,
    dtype: Any = np.float32,
) -> Graph:
    """Return the graph of the checkpoint; ``context`` is the number of positions that it can rotate, and ``dtype`` what
    it computes in and keeps keys and values in: float32 or float16.

    Matrices come from ``weights``, which decides on their precision, and norms from the checkpoint itself. ``routing``
    float32 [experts, hidden] adds the routing output: the head reads the hidden state after the final norm. ``prompt``
    of the same shape adds another one, and ``gate`` [1, hidden + 1], its last column a bias, the gate.
    """
    heads = {"routing": routing, "prompt_routing": prompt}
    chosen = {name: head for name, head in heads.items() if head is not None}
    return _Decoder(checkpoint, weights, context, dtype).build(chosen, gate)


class _Decoder:
    def __init__(self, checkpoint: Checkpoint, weights: Weights, context: int, dtype: Any) -> None:
        self.checkpoint, self.config, self.weights = checkpoint, checkpoint.config, weights
        self.graph, self.context = Graph(dtype), context

    def build(self, heads: Mapping[str, NDArray[np.float32]], gate: NDArray[np.float32] | None) -> Graph:
        graph, config = self.graph, self.config
        ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
        rows = graph.input("rows", np.int64, ["n"])
        graph.input("seqlens_k", np.int32, ["batch"])
        graph.input("total_sequence_length", np.int32, [])
        cache: list[int | str] = ["batch", config.kv_heads, "max_length", config.head_dim]
        for layer in range(config.layers):
            for kind in ("key", "value"):
                graph.input(f"past_{kind}.{layer}", graph.dtype, cache)

        table = self.weights(["model.embed_tokens"])
        residual = graph.embed(ids, table, "embedding", "embedded")
        if config.embedding_scale != 1:
            scale = graph.weight("embedding.scale", np.array(config.embedding_scale, np.float32))
            residual = graph.node("Mul", [residual, scale], "embedded.scaled")
        branch = ""
        for layer in range(config.layers):
            residual, branch = self._layer(layer, residual, branch)

        # Only the wanted rows go through the final norm and the head, which costs a fifth of a small model's step.
        flat = graph.weight("flat", np.array([-1, config.hidden], dtype=np.int64))
        hidden = graph.node("Add", [residual, branch], "hidden")
        wanted = graph.node(
            "Gather", [graph.node("Reshape", [hidden, flat], "hidden.flat"), rows], "hidden.rows", axis=0
        )
        final = self._norm(wanted, FINAL_NORM)
        wide = graph.dtype == np.float32
        raw = "logits" if wide and not config.logit_cap else "logits.raw"
        if config.tied:
            graph.project(final, table, "embedding", raw)
        else:
            graph.project(final, self.weights(["lm_head"]), "head", raw)
        if not wide:  # what is fused and sampled from is float32
            final = graph.cast(final, np.float32, "final.wide")
            raw = graph.cast(raw, np.float32, "logits.wide" if config.logit_cap else "logits")
        if config.logit_cap:
            cap = graph.weight("logits.cap", np.array(config.logit_cap), np.float32)
            bent = graph.node("Tanh", [graph.node("Div", [raw, cap], "logits.small")], "logits.bent")
            graph.node("Mul", [bent, cap], "logits")
        graph.output("logits", np.float32, ["n", config.vocab])
        for name, head in heads.items():
            graph.node("MatMul", [final, graph.weight(f"{name}.weight", head.T, np.float32)], name)
            graph.output(name, np.float32, ["n", head.shape[0]])
        if gate is not None:
            raw = graph.node("MatMul", [final, graph.weight("gate.weight", gate[:, :-1].T, np.float32)], "gate.raw")
            moved = graph.node("Add", [raw, graph.weight("gate.bias", gate[0, -1:], np.float32)], "gate.moved")
            graph.output(graph.node("Sigmoid", [moved], "gate"), np.float32, ["n", 1])
        for layer in range(config.layers):
            for kind in ("key", "value"):
                graph.output(f"present_{kind}.{layer}", graph.dtype, cache)
        return graph

    def _layer(self, layer: int, residual: str, branch: str) -> tuple[str, str]:
        """Add one layer to residual + branch and return its residual and the branch that is still to be added to it."""
        prefix = f"{LAYERS}{layer}."
        qkv, out, gate_up, down = map(self.weights, linears(layer))
        normed, residual = self._add_norm(residual, branch, f"{prefix}input_layernorm.weight")
        branch = self._attention(layer, normed, qkv, out)
        if self.config.post_norms:
            branch = self._norm(branch, f"{prefix}post_attention_layernorm.weight")
        normed, residual = self._add_norm(residual, branch, self.config.norm_before_mlp(layer))
        branch = self._mlp(layer, normed, gate_up, down)
        if self.config.post_norms:
            branch = self._norm(branch, f"{prefix}post_feedforward_layernorm.weight")
        return residual, branch

    def _attention(self, layer: int, value: str, qkv: Matrix, out: Matrix) -> str:
        graph, config, name = self.graph, self.config, f"attention.{layer}"
        packed = graph.linear(value, qkv, f"{name}.qkv")
        if config.qkv_bias:
            bias = graph.weight(f"{name}.bias", bias_of(self.checkpoint, layer))
            packed = graph.node("Add", [packed, bias], f"{name}.moved")
        query = self._normed_heads(layer, packed) if config.qk_norm else [packed, "", ""]
        rotated = layer not in config.unrotated
        settings: dict[str, int | float] = {"do_rotary": int(rotated), "rotary_interleaved": 0}
        if config.attention_scale:
            settings["scale"] = config.attention_scale
        if config.attention_cap:
            settings["softcap"] = config.attention_cap
        if window := config.window(layer):
            settings["local_window_size"] = window
        attended, _, _ = graph.nodes(
            "GroupQueryAttention",
            [
                *query,
                f"past_key.{layer}",
                f"past_value.{layer}",
                "seqlens_k",
                "total_sequence_length",
                *(self._rotary(layer) if rotated else ()),
            ],
            [name, f"present_key.{layer}", f"present_value.{layer}"],
            MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            **settings,
        )
        return graph.linear(attended, out, f"{name}.out")

    def _rotary(self, layer: int) -> list[str]:
        """The cosines and sines of the layer's angles; layers that turn alike share them."""
        local = bool(self.config.window(layer) and self.config.local_theta)
        names = [f"{wave}.local" if local else wave for wave in ("cos", "sin")]
        tables = self.config.rotary(self.context, layer)
        return [self.graph.weight(name, table) for name, table in zip(names, tables, strict=True)]

    def _normed_heads(self, layer: int, packed: str) -> list[str]:
        """Query, key and value apart, each head of the first two divided by its root mean square."""
        graph, config = self.graph, self.config
        sizes = [count * config.head_dim for count in (config.heads, config.kv_heads, config.kv_heads)]
        names = [f"attention.{layer}.{part}" for part in ("q", "k", "v")]
        graph.nodes("Split", [packed, graph.weight("qkv.sizes", np.array(sizes, dtype=np.int64))], names, axis=-1)
        heads = graph.weight("heads.shape", np.array([0, 0, -1, config.head_dim], dtype=np.int64))
        joined = graph.weight("joined.shape", np.array([0, 0, -1], dtype=np.int64))
        normed = []
        for name, part in zip(names[:2], "qk", strict=True):
            apart = graph.node("Reshape", [name, heads], f"{name}.heads")
            even = self._norm(apart, f"{LAYERS}{layer}.self_attn.{part}_norm.weight")
            normed.append(graph.node("Reshape", [even, joined], f"{name}.normed"))
        return [*normed, names[2]]

    def _mlp(self, layer: int, value: str, gate_up: Matrix, down: Matrix) -> str:
        size = self.config.intermediate
        both = self.graph.linear(value, gate_up, f"mlp.{layer}.gate_up")
        sizes = self.graph.weight("mlp.sizes", np.array([size, size], dtype=np.int64))
        gate, up = self.graph.nodes("Split", [both, sizes], [f"mlp.{layer}.gate", f"mlp.{layer}.up"], axis=-1)
        if self.config.activation == SILU:  # x * sigmoid(alpha x) with alpha 1
            active = self.graph.node("QuickGelu", [gate], f"mlp.{layer}.silu", MICROSOFT, alpha=1.0)
        else:
            active = self.graph.node("Gelu", [gate], f"mlp.{layer}.gelu", approximate="tanh")
        product = self.graph.node("Mul", [active, up], f"mlp.{layer}.product")
        return self.graph.linear(product, down, f"mlp.{layer}.down")

    def _norm(self, value: str, name: str) -> str:
        weight = self.graph.weight(name, self.checkpoint.tensor(name))
        return self.graph.node(
            "SimplifiedLayerNormalization",
            [value, weight],
            f"{name}.out",
            axis=-1,
            epsilon=self.config.rms_eps,
            stash_type=1,
        )

    def _add_norm(self, residual: str, branch: str, name: str) -> tuple[str, str]:
        """Return the RMS norm of residual + branch, and that sum."""
        if not branch:
            return self._norm(residual, name), residual
        weight = self.graph.weight(name, self.checkpoint.tensor(name))
        normed, _, _, total = self.graph.nodes(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, weight],
            [f"{name}.out", "", "", f"{name}.sum"],
            MICROSOFT,
            epsilon=self.config.rms_eps,
        )
        return normed, total
