"""Checkpoints in GGUF files, of any quantization, for the families of :mod:`converters.hugging`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters import rope
from converters.decoder import (
    ALL_ROWS,
    GELU,
    LAYERS,
    SILU,
    Array,
    Checkpoint,
    DecoderConfig,
    check_shapes,
    layer_and_part,
)
from frcli.checks.gguf import check_gguf
from frcli.errors import ModelError

Fields = Mapping[str, Any]

# What gguf's reader raises on bytes that are not what they claim to be.
CORRUPT = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError, OSError)


def gguf_name(module: str, family: str = "llama") -> str | None:
    """Return the GGUF name of a module (``model.layers.3.self_attn.q_proj`` -> ``blk.3.attn_q``), or None."""
    if not module.startswith(LAYERS):
        return _names(family).get_name(module)  # type: ignore[no-any-return]
    number, _, part = module.removeprefix(LAYERS).partition(".")
    if not re.fullmatch("0|[1-9][0-9]*", number):
        return None
    # Layers are named alike, and a map of many takes megabytes: a file may say that it has hundreds.
    first: str | None = _names(family).get_name(f"{LAYERS}0.{part}")
    return None if first is None else first.replace("blk.0.", f"blk.{number}.", 1)


@lru_cache(maxsize=64)
def _names(family: str) -> Any:
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds["llama" if family == "mistral" else family], 1)


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return q or k rows [heads * head_dim, ...] in llama.cpp's order for Llama, Mistral and SmolLM3.

    Hugging Face pairs row i of a head with row i + head_dim/2 for the rotation; llama.cpp pairs rows 2i and 2i + 1.
    Only the output rows move, so the same reordering applies to a weight and to the B of a low-rank update of it.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo :func:`interleave`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def interleaved_heads(config: DecoderConfig) -> dict[str, int]:
    """The modules of a layer whose rows llama.cpp has in an order of its own, and their numbers of heads."""
    if config.family not in ("llama", "mistral", "smollm3"):
        return {}
    return {"self_attn.q_proj": config.heads, "self_attn.k_proj": config.kv_heads}


def open_gguf(path: Path) -> Checkpoint:
    """Return the checkpoint in a GGUF file; raises ``ModelError`` for one that is damaged or not supported."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    check_gguf(path)
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except CORRUPT as error:
        raise ModelError(
            f"cannot read {path} as GGUF: {error}", "it is damaged or no GGUF file: fetch it again"
        ) from error
    config = _read_config(path, fields, tensors)
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()}
    places = _places(config, shapes)
    found = {name: (place[1].stop - place[1].start, *shapes[place[0]][1:]) for name, place in places.items()}
    known = {place for place, _ in places.values()} | set(rope.TENSORS.values())
    check_shapes(path, config, found | {name: shape for name, shape in shapes.items() if name not in known})
    heads = interleaved_heads(config)

    def read(name: str, part: slice = ALL_ROWS) -> Array:
        stored, rows = places[name]
        tensor = tensors[stored]
        rotated = heads.get(name.split(".", 3)[-1].rpartition(".")[0])
        start, stop, _ = part.indices(rows.stop - rows.start)
        wanted = rows if rotated else slice(rows.start + start, rows.start + stop)
        try:
            array = dequantize(tensor.data[wanted], tensor.tensor_type).reshape(-1, *found[name][1:])
        except (*CORRUPT, NotImplementedError) as error:
            raise ModelError(f"cannot read {stored} of {path} ({tensor.tensor_type.name}): {error}") from error
        return np.asarray(deinterleave(array, rotated)[part] if rotated else array, dtype=np.float32)

    return Checkpoint(path, config, read)


def _places(config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, slice]]:
    """Where the rows of each tensor are: the name in the file, and which of its rows."""
    joint = {}
    for whole, parts in config.joint().items():
        start = 0
        for part, rows in parts.items():
            joint[part] = whole, start
            start += rows
    places = {}
    for name, shape in config.shapes().items():
        module, _, kind = name.rpartition(".")
        layer, part = layer_and_part(module)
        whole, start = joint.get(part, (part, 0))
        stored = gguf_name(layer + whole, config.family)
        if stored is None or f"{stored}.{kind}" not in shapes:
            continue
        rows = shape[0] if part in joint else shapes[f"{stored}.{kind}"][0]
        places[name] = f"{stored}.{kind}", slice(start, start + rows)
    return places


def _read_config(path: Path, fields: Fields, tensors: Mapping[str, Any]) -> DecoderConfig:
    family = fields.get("general.architecture")
    if family not in _FAMILIES or fields.get("general.type", "model") != "model":
        kind = "a LoRA adapter" if fields.get("general.type") == "adapter" else f"of the architecture {family!r}"
        raise ModelError(f"{path} is {kind}", f"models that can be converted are {', '.join(_FAMILIES)}")
    if fields.get("split.count", 0) > 1:
        raise ModelError(f"{path} is one part of a split GGUF", "merge the parts with llama-gguf-split first")
    own = {name.removeprefix(f"{family}."): value for name, value in fields.items() if name.startswith(f"{family}.")}
    if own.get("expert_count", 0):
        raise ModelError(f"{path} is a mixture of experts", "only dense models can be converted")
    try:
        return _config(path, str(family), own, tensors)
    except KeyError as error:
        raise ModelError(f"{path} lacks {error.args[0]}", "it is damaged or incomplete: fetch it again") from error
    except (ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"{path} has a configuration that makes no sense: {error}", "fetch it again") from error


def _config(path: Path, family: str, own: Fields, tensors: Mapping[str, Any]) -> DecoderConfig:
    heads, hidden, layers = (int(own[name]) for name in ("attention.head_count", "embedding_length", "block_count"))
    if not 0 < layers <= 1024:
        raise ValueError(f"{layers} layers")
    head_dim = int(own.get("attention.key_length", hidden // heads))
    if int(own.get("rope.dimension_count", head_dim)) != head_dim:
        raise ModelError(f"{path} rotates only a part of each head", "such models are not supported")
    if int(own.get("attention.value_length", head_dim)) != head_dim:
        raise ModelError(f"{path} has values of another size than its keys", "such models are not supported")
    return DecoderConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(own.get("attention.head_count_kv", heads)),
        head_dim=head_dim,
        intermediate=int(own["feed_forward_length"]),
        vocab=int(tensors["token_embd.weight"].shape[1]),
        rms_eps=float(own["attention.layer_norm_rms_epsilon"]),
        tied="output.weight" not in tensors,
        family=family,
        activation=GELU if family.startswith("gemma") else SILU,
        **rope.from_gguf(path, own, tensors, head_dim),
        **_FAMILIES[family](own, layers, hidden // heads),
    )


def _llama(own: Fields, layers: int, width: int) -> dict[str, Any]:
    return {}


def _qwen2(own: Fields, layers: int, width: int) -> dict[str, Any]:
    return {"qkv_bias": True}


def _qwen3(own: Fields, layers: int, width: int) -> dict[str, Any]:
    return {"qk_norm": True}


# llama.cpp itself knows some things by family that are not in the file: which layers of Gemma have a window and of
# SmolLM3 no rotation, and that the largest model of each Gemma scales its queries by another number than head_dim.


def _gemma(own: Fields, layers: int, pattern: int, width: int, largest: int) -> dict[str, Any]:
    window = int(own.get("attention.sliding_window", 4096))
    return {
        "windows": tuple(window if (layer + 1) % pattern else 0 for layer in range(layers)),
        "post_norms": True,
        "embedding_scale": float(own["embedding_length"]) ** 0.5,
        "attention_scale": width**-0.5 if layers == largest else float(own["attention.key_length"]) ** -0.5,
        "attention_cap": float(own.get("attn_logit_softcapping", 0)),
        "logit_cap": float(own.get("final_logit_softcapping", 0)),
    }


def _gemma2(own: Fields, layers: int, width: int) -> dict[str, Any]:
    return _gemma(own, layers, 2, width, largest=46)


def _gemma3(own: Fields, layers: int, width: int) -> dict[str, Any]:
    local = float(own.get("rope.freq_base_swa", 10000.0))
    return {**_gemma(own, layers, 6, width, largest=62), "qk_norm": True, "local_theta": local}


def _smollm3(own: Fields, layers: int, width: int) -> dict[str, Any]:
    return {"unrotated": tuple(range(3, layers, 4))}


_FAMILIES: dict[str, Callable[[Fields, int, int], dict[str, Any]]] = {
    "llama": _llama,  # and Mistral
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "smollm3": _smollm3,
    "phi3": _llama,
}


def implied(family: str, own: Fields, layers: int) -> dict[str, Any]:
    """Return the fields of :class:`DecoderConfig` that llama.cpp makes of a family's name and the numbers in a file.

    ``own`` has the numbers by their keys without the family (``attention.key_length``).
    """
    width = int(own["embedding_length"]) // int(own["attention.head_count"])
    return _FAMILIES[family](own, layers, width)
