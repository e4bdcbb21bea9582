"""A decoder-only transformer: its shape, with what tells its family from a Llama, and its tensors, read one at a time.

Tensors carry Hugging Face names and layouts whatever file they come from (``model.layers.0.self_attn.q_proj.weight`` is
[out, in]), with two exceptions that make families alike: Gemma's norms, stored as w for a factor of 1 + w, have that
factor here, and the joint matrices of Phi-3 are read in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError

Array = NDArray[np.float32]

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYERS = "model.layers."
SILU, GELU = "silu", "gelu_tanh"
ALL_ROWS = slice(None)
_LARGEST = (1 << 31) - 1  # what files have room for


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a model; the fields with defaults are what a Llama does not have.

    ``rope_factors`` divide the rotary frequencies theta^(-2i/head_dim), one factor for each of the head_dim / 2
    frequencies; all are 1 without rope scaling. ``rope_scale`` multiplies cosines and sines (longrope, YaRN).
    ``context`` is the number of positions that the model was trained for. ``long_factors`` take the place of
    ``rope_factors`` in texts of more than ``context`` positions, up to ``long_context`` (longrope; nothing here reads
    such texts). Factors of YaRN are those of ``yarn_factor`` and of ``yarn_context``, the positions before it.

    ``windows`` has for each layer how many tokens its attention sees, the own one included, 0 for all (empty: all
    layers see all). Layers with a window are rotated by ``local_theta`` without factors, if it is not 0 (Gemma-3).
    ``unrotated`` are layers without rotation (SmolLM3). ``qkv_bias`` adds biases to q, k and v (Qwen2), ``qk_norm``
    norms each of their heads before the rotation (Qwen3, Gemma-3), and ``post_norms`` the branches before they are
    added (Gemma). The embedding is multiplied by ``embedding_scale``; queries by ``attention_scale``, 0 for
    head_dim^-1/2. ``attention_cap`` and ``logit_cap`` c bound scores and logits by c tanh(x / c), 0 for none.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rms_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...]
    tied: bool
    context: int
    family: str = "llama"
    rope_scale: float = 1.0
    windows: tuple[int, ...] = ()
    local_theta: float = 0.0
    unrotated: tuple[int, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    activation: str = SILU
    long_factors: tuple[float, ...] = ()
    long_context: int = 0
    yarn_factor: float = 0.0
    yarn_context: int = 0

    @property
    def query_scale(self) -> float:
        """What products of queries and keys are multiplied with."""
        return self.attention_scale or float(self.head_dim**-0.5)

    def window(self, layer: int) -> int:
        """How many tokens the layer's attention sees, the own one included; 0 for all."""
        return self.windows[layer] if self.windows else 0

    def norm_before_mlp(self, layer: int) -> str:
        """The name of the norm whose result the layer's MLP reads."""
        name = "pre_feedforward_layernorm" if self.post_norms else "post_attention_layernorm"
        return f"{LAYERS}{layer}.{name}.weight"

    def numbers(self) -> list[float]:
        """Return every number of the shape."""
        found: list[float] = []
        for each in fields(self):
            value = getattr(self, each.name)
            found += [part for part in (value if isinstance(value, tuple) else (value,)) if not isinstance(part, str)]
        return found

    def joint(self) -> dict[str, dict[str, int]]:
        """Return the matrices that Phi-3 has as one, by module of a layer: the rows of each part, from the top."""
        if self.family != "phi3":
            return {}
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.qkv_proj": {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": key},
            "mlp.gate_up_proj": {"mlp.gate_proj": self.intermediate, "mlp.up_proj": self.intermediate},
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the checkpoint by name; a tied one has no head."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden), FINAL_NORM: (self.hidden,)}
        if not self.tied:
            shapes[HEAD] = (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"{LAYERS}{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (self.hidden,),
                prefix + "self_attn.q_proj.weight": (query, self.hidden),
                prefix + "self_attn.k_proj.weight": (key, self.hidden),
                prefix + "self_attn.v_proj.weight": (key, self.hidden),
                prefix + "self_attn.o_proj.weight": (self.hidden, query),
                prefix + "post_attention_layernorm.weight": (self.hidden,),
                prefix + "mlp.gate_proj.weight": (self.intermediate, self.hidden),
                prefix + "mlp.up_proj.weight": (self.intermediate, self.hidden),
                prefix + "mlp.down_proj.weight": (self.hidden, self.intermediate),
            }
            if self.qkv_bias:
                shapes |= {f"{prefix}self_attn.{part}_proj.bias": (query if part == "q" else key,) for part in "qkv"}
            if self.qk_norm:
                shapes |= {f"{prefix}self_attn.{part}_norm.weight": (self.head_dim,) for part in "qk"}
            if self.post_norms:
                shapes |= {f"{prefix}{part}_feedforward_layernorm.weight": (self.hidden,) for part in ("pre", "post")}
        return shapes

    def frequencies(self, layer: int) -> NDArray[np.float64]:
        """Return the layer's rotation of each pair of dimensions per position, radians, float64 [head_dim / 2]."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        if self.window(layer) and self.local_theta:
            return np.asarray(self.local_theta**-exponents)
        return np.asarray(self.rope_theta**-exponents / np.asarray(self.rope_factors))

    def rotary(self, positions: int, layer: int = 0) -> tuple[Array, Array]:
        """Return the layer's cosines and sines of the rotary angles, float32 [positions, head_dim / 2] each."""
        angles = np.arange(positions, dtype=np.float64)[:, None] * self.frequencies(layer)
        cos, sin = (self.rope_scale * wave for wave in (np.cos(angles), np.sin(angles)))
        return cos.astype(np.float32), sin.astype(np.float32)

    def keeping(self, layers: Sequence[int]) -> DecoderConfig:
        """Return the shape that has only these layers, numbered anew."""
        return replace(
            self,
            layers=len(layers),
            windows=tuple(self.window(layer) for layer in layers) if self.windows else (),
            unrotated=tuple(new for new, old in enumerate(layers) if old in self.unrotated),
        )


class Reader(Protocol):
    """Returns a tensor, or those of its rows that are asked for, as float32 in the Hugging Face layout."""

    def __call__(self, name: str, rows: slice = ALL_ROWS, /) -> Array: ...


def layer_and_part(module: str) -> tuple[str, str]:
    """Split ``model.layers.3.self_attn.q_proj`` into ``model.layers.3.`` and the rest, which is all without a layer."""
    if not module.startswith(LAYERS):
        return "", module
    number, _, part = module.removeprefix(LAYERS).partition(".")
    return f"{LAYERS}{number}.", part


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration and a way to read its tensors one at a time."""

    path: Path
    config: DecoderConfig
    read: Reader

    def tensor(self, name: str) -> Array:
        """Return the tensor as float32 in the Hugging Face layout; the head of a tied model is its embedding.

        Raises ``ModelError`` if the file holds values that are not finite, or can no longer be read.
        """
        return self._finite(name, self.read(self._stored(name)))

    def part(self, name: str, start: int, stop: int) -> Array:
        """Return rows ``start`` to ``stop`` of a tensor as :meth:`tensor` does, without holding the others."""
        return self._finite(name, self.read(self._stored(name), slice(start, stop)))

    def _stored(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.config.tied else name

    def _finite(self, name: str, array: Array) -> Array:
        if not np.isfinite(array).all():
            raise ModelError(
                f"{self.path} holds values in {name} that are not finite", "the file is damaged: fetch it again"
            )
        return array

    def keeping(self, layers: Sequence[int]) -> Checkpoint:
        """Return the checkpoint that has only these layers, in this order, numbered anew.

        Raises ``ModelError`` unless they rise and exist.
        """
        if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < self.config.layers:
            raise ModelError(f"{self.path} has {self.config.layers} layers, of which {list(layers)} cannot be kept")

        def read(name: str, rows: slice = ALL_ROWS) -> Array:
            if name.startswith(LAYERS):
                number, _, rest = name.removeprefix(LAYERS).partition(".")
                name = f"{LAYERS}{layers[int(number)]}.{rest}"
            return self.read(name, rows)

        return replace(self, config=self.config.keeping(layers), read=read)


def check_shapes(path: Path, config: DecoderConfig, stored: dict[str, tuple[int, ...]]) -> None:
    """Raise ``ModelError`` unless the configuration makes sense and ``stored`` has its tensors and no others."""
    sizes = (
        *(config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim, config.vocab),
        *(config.intermediate, config.context),
    )
    if min(sizes) < 1 or max(sizes) > _LARGEST or not all(map(_is_sound, config.numbers())) or 0 in config.rope_factors:
        raise ModelError(f"{path} has a configuration that makes no sense: {str(config)[:400]}", "fetch it again")
    if config.heads % config.kv_heads or config.head_dim % 2 or len(config.rope_factors) != config.head_dim // 2:
        raise ModelError(
            f"{path} has {config.heads} heads, {config.kv_heads} key heads and {config.head_dim} dimensions in each, "
            "which do not fit together",
            "fetch it again",
        )
    expected = config.shapes()
    for name, shape in expected.items():
        if name not in stored:
            raise ModelError(f"{path} lacks the tensor {name}", "it is incomplete: fetch it again")
        if stored[name] != shape:
            raise ModelError(
                f"{path} has {name} of shape {list(stored[name])} where its configuration says {list(shape)}",
                "it is damaged: fetch it again",
            )
    extra = sorted(stored.keys() - expected.keys())
    if extra:
        raise ModelError(
            f"{path} has the tensor {extra[0]}, which models of the family {config.family} do not have",
            "it is not supported",
        )


def _is_sound(number: float) -> bool:
    return 0 <= number <= float(np.finfo(np.float32).max)
