"""What a bundle needs: bytes of weights, KV caches and compute buffers, by formula, before anything is loaded.

    KV       cells x sum over layers (keys x bytes of a key + values x bytes of a value);
             cells = context x sequences, in whole blocks of 256
    compute  tokens that are computed together x 4 x (4 hidden + 3 ffn), its largest step, or the logits where they are
             larger, and a mask of these tokens x cells x 2; without flash attention (float32 caches, float16 ones on a
             CPU) a mask of tokens x cells x 4 and the scores of all heads, tokens x cells x 4 each
    output   rows x vocabulary x 4

The formula of the compute buffer was read off what llama.cpp reserves for Llamas of 135M to 8B parameters with calls of
512 tokens; for shorter calls and contexts it is some MiB too large.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from frcli.bundle import Bundle
from frcli.checks.onnx import weight_files
from frcli.errors import ModelError
from frcli.fusion.policy import BASE, LARGE, Policy
from frcli.sources.kv_types import KV_TYPES, computed_together, without_flash
from frcli.sources.onnx_header import onnx_metadata
from frcli.sources.shape import ModelShape, read_shape

BATCH = 512  # tokens that one call of llama.cpp reads at the most

# Bytes in memory for a byte of a router's file: ONNX Runtime packs the weights again beside what it has read, and keeps
# what its runs need. Measured with the shipped router (int4, 97 MiB): 192 MiB when it is opened, 27 more once it reads.
_ROUTER_HELD = 2.25
# The same for an adapter: measured with those of the shipped bundle, 11 to 13 MiB for 5.6, larger graphs included.
_ADAPTER_HELD = 2
# Bytes of a token in llama.cpp's vocabulary, merges included: 19 MiB for 49,152.
VOCABULARY = 400
# Bytes of a weight in a router's file by precision, tables and norms included; measured for int4.
_ROUTER_BYTES = {"int4": 0.75, "int8": 1.2, "fp16": 2.1, "fp32": 4.1}


@dataclass(frozen=True, slots=True)
class Running:
    """How a bundle is run: tokens of ``context`` for each of ``sequences``, the type of the KV caches, and how many
    rows of logits one call can give.
    """

    context: int
    sequences: int = 1
    kv_type: str = "f16"
    rows: int = 16

    @property
    def cells(self) -> int:
        """Tokens that one KV cache holds."""
        return -(-self.context * self.sequences // 256) * 256

    @property
    def tokens(self) -> int:
        """Tokens that one call reads at the most."""
        return min(BATCH, self.context * self.sequences)


def kv_bytes(shape: ModelShape, running: Running) -> tuple[int, ...]:
    """Bytes that one context keeps of its tokens, by layer."""
    kept = KV_TYPES[running.kv_type]
    numbers = (keys + values for keys, values in zip(shape.keys, shape.values, strict=True))
    return tuple(running.cells * each * kept.bytes // kept.numbers for each in numbers)


def compute_bytes(shape: ModelShape, running: Running, on_cpu: bool) -> int:
    """Bytes of one context's compute and output buffers; ``on_cpu``: none of the model's layers is on a GPU."""
    tokens = computed_together(running.tokens, on_cpu)
    logits = min(max(running.rows, running.sequences), running.tokens) * shape.vocab * 4
    step, pairs = tokens * 4, tokens * running.cells
    scores = 4 * pairs * (shape.hidden // shape.key_length)
    plain = without_flash(running.kv_type, scores, on_cpu)
    seen = scores + 4 * pairs if plain else 2 * pairs
    return step * 4 * shape.hidden + max(step * 3 * shape.ffn, logits) + seen + logits


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """A model that is loaded once for all who use it: ``contexts`` are their names, ``adapters`` the bytes that
    each one's adapter takes, 0 for none. ``path`` is its file, if there is one.
    """

    role: str
    shape: ModelShape
    contexts: tuple[str, ...]
    adapters: tuple[int, ...]
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class RouterNeed:
    """The router: bytes of its ``file``, and of what it keeps of a token; ``cuda``: it was made for a GPU."""

    file: int
    token: int
    cuda: bool = False

    @property
    def weights(self) -> int:
        """Bytes that its session takes."""
        return int(self.file * _ROUTER_HELD)

    def kv(self, running: Running) -> int:
        """Bytes of its KV buffers when they are full; they are mapped as they fill."""
        return self.token * running.context * running.sequences


@dataclass(frozen=True, slots=True)
class Demand:
    """All that a bundle loads under one policy."""

    models: tuple[ModelNeed, ...]
    router: RouterNeed | None = None

    def with_experts(self, count: int) -> Demand:
        """The same with the first ``count`` contexts of experts only."""
        left, models = count, []
        for model in self.models:
            kept = len(model.contexts) if model.role == LARGE else min(left, len(model.contexts))
            left -= 0 if model.role == LARGE else kept
            if kept or model.role == BASE:
                models.append(replace(model, contexts=model.contexts[:kept], adapters=model.adapters[:kept]))
        return replace(self, models=tuple(models))

    def in_quant(self, quant: str) -> Demand:
        """The same with every model whose weights are larger than those of ``quant`` in that type."""
        models = [
            replace(model, shape=smaller) if (smaller := model.shape.in_quant(quant)).bits < model.shape.bits else model
            for model in self.models
        ]
        return replace(self, models=tuple(models))

    @property
    def experts(self) -> int:
        """Number of contexts but the large model's."""
        return sum(len(model.contexts) for model in self.models if model.role != LARGE)


def demand(bundle: Bundle, policy: Policy | None = None) -> Demand:
    """What the bundle loads for what ``policy`` may use (None: all experts and the router), and its base in any case.

    Only headers are read. Raises ``ModelError`` for a file that is missing or says no shape.
    """
    sources = bundle.experts if policy is None or policy.sources is None else policy.sources
    untrained = next((name for name in bundle.experts if name not in bundle.trained), BASE)
    used = list(dict.fromkeys(untrained if name == BASE else name for name in sources))
    base = read_shape(bundle.base().path)
    on_base: dict[str, int] = {}
    own: list[ModelNeed] = []
    for name in bundle.experts:
        artifact, table = bundle.expert(name), bundle.manifest.experts[name]
        if name not in used:
            continue
        if artifact is not None and table.file:
            own.append(ModelNeed(f"expert {name}", read_shape(artifact.path), (name,), (0,), artifact.path))
        else:
            on_base[name] = _ADAPTER_HELD * artifact.path.stat().st_size if artifact is not None else 0
    if BASE in used:
        on_base[BASE] = 0
    models = [ModelNeed(BASE, base, tuple(on_base), tuple(on_base.values()), bundle.base().path), *own]
    if LARGE in used and (large := bundle.large()) is not None:
        models.append(ModelNeed(LARGE, read_shape(large.path), (LARGE,), (0,), large.path))
    return Demand(tuple(models), router_of(bundle) if policy is None or policy.needs_router else None)


def router_of(bundle: Bundle) -> RouterNeed | None:
    """The router's file if it is built, or else what it will be by its base and precision; None without a router.

    Raises ``ModelError`` for a file that is no router.
    """
    path, table = bundle.router_model(), bundle.manifest.router
    if path is None or table is None:
        return None
    if path.is_file():
        said = onnx_metadata(path)
        try:
            layers, heads, size = (int(said[f"frcli.{key}"]) for key in ("layers", "kv_heads", "head_dim"))
        except (KeyError, ValueError):
            raise ModelError(f"{path} is not a router", "make it again with frcli models pull") from None
        cuda = said.get("frcli.target") == "cuda"
        path = path.resolve()
        weights = path.stat().st_size
        with suppress(ModelError):  # a damaged file is refused where it is opened
            weights += sum(part.stat().st_size for part in weight_files(path))
        return RouterNeed(weights, 2 * layers * heads * size * (2 if cuda else 4), cuda)
    return router_need(read_shape(bundle.router_base().path), table.precision)


def router_need(shape: ModelShape, precision: str) -> RouterNeed:
    """What a router of this shape and precision needs, before there is one."""
    weights = 8 * (sum(shape.layers) / shape.bits) + shape.vocab * shape.hidden
    return RouterNeed(int(weights * _ROUTER_BYTES[precision]), 4 * (sum(shape.keys) + sum(shape.values)))
