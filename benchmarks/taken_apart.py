"""A GGUF as the Hugging Face folder that it may have come from: config.json, float32 safetensors and a tokenizer.

Numbers are those of the file, so what was lost in quantizing it stays lost. Read with the converters' own readers.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from converters.checkpoint import open_checkpoint
from converters.decoder import GELU, Checkpoint, DecoderConfig
from converters.vocabulary import CONTROL, UNUSED, USER_DEFINED
from frcli.errors import ModelError

_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_GEMMA = ("gemma2", "gemma3")
_WIDEST_SHARD = 1 << 29  # numbers in a safetensors file
_ENDINGS, _WORD = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How llama.cpp's pre-tokenizers of these names cut text before the bytes are merged.
_CUTS: dict[str, Mapping[str, Any] | None] = {
    "gpt-2": None,
    "smollm": {"type": "Digits", "individual_digits": True},
    "llama-bpe": {"type": "Split", "pattern": {"Regex": rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"}},
    "qwen2": {"type": "Split", "pattern": {"Regex": rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}"}},
}


def take_apart(gguf: Path, folder: Path) -> None:
    """Write the model in ``gguf`` to ``folder`` in Hugging Face's form.

    Raises ``ModelError`` for a file that cannot be read, a family other than Llama, Qwen2 and 3, Gemma-2 and 3, and a
    rotation or a tokenizer whose settings do not follow from the file.
    """
    checkpoint = open_checkpoint(gguf)
    values = config_values(checkpoint)
    fields = _tokenizer_fields(gguf)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    _write_tokenizer(gguf, folder, fields)
    _write_tensors(checkpoint, folder)


def config_values(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what config.json says of a checkpoint."""
    config = checkpoint.config
    if config.family not in _TYPES or len(set(config.rope_factors)) > 1:
        raise ModelError(
            f"{checkpoint.path} is a {config.family} or has a rotation scaled by parts, and cannot be taken apart",
            f"families that can be are {', '.join(_TYPES)}",
        )
    gelu = config.activation == GELU
    return {
        "architectures": [f"{'Gemma3' if config.family == 'gemma3' else config.family.capitalize()}ForCausalLM"],
        "model_type": _TYPES[config.family],
        "hidden_act": "gelu_pytorch_tanh" if gelu else "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
        **({"rope_scaling": _linear(config)} if config.rope_factors[0] != 1 else {}),
        **(_gemma(config) if config.family in _GEMMA else {}),
    }


def _linear(config: DecoderConfig) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": config.rope_factors[0]}


def _gemma(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": max(config.windows),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in config.windows],
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "rope_local_base_freq": config.local_theta,
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
    }


def _write_tensors(checkpoint: Checkpoint, folder: Path) -> None:
    """In shards: the tensors of one are in memory at a time."""
    from safetensors.numpy import save_file

    shifted = np.float32(checkpoint.config.family in _GEMMA)  # Gemma's norms are stored without the 1 of their factor
    shards: list[list[str]] = [[]]
    room = _WIDEST_SHARD
    for name, shape in checkpoint.config.shapes().items():
        size = int(np.prod(shape))
        if size > room and shards[-1]:
            shards.append([])
            room = _WIDEST_SHARD
        shards[-1].append(name)
        room -= size
    files = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        tensors: dict[str, NDArray[np.float32]] = {}
        for name in names:
            tensor = np.ascontiguousarray(checkpoint.tensor(name))
            tensors[name] = tensor - shifted if name.endswith("norm.weight") else tensor
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


# ------------------------------------------------------------------------------------------------------------ tokenizer


def _tokenizer_fields(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    prefix = "tokenizer."
    fields = GGUFReader(gguf).fields
    return {
        name.removeprefix(prefix).removeprefix("ggml."): field.contents()
        for name, field in fields.items()
        if name.startswith(prefix)
    }


def _write_tokenizer(gguf: Path, folder: Path, fields: Mapping[str, Any]) -> None:
    tokens: list[str] = fields["tokens"]
    types: list[int] = fields["token_type"]
    settings: dict[str, Any] = {
        f"{role}_token": tokens[fields[f"{key}_token_id"]]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if f"{key}_token_id" in fields
    }
    kind = fields["model"]
    settings |= {
        f"add_{role}_token": bool(fields.get(f"add_{role}_token", kind == "llama" and role == "bos"))
        for role in ("bos", "eos")
    }
    if "chat_template" in fields:
        settings["chat_template"] = fields["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "llama":
        spaced = bool(fields.get("add_space_prefix", True))
        (folder / "tokenizer.model").write_bytes(pieces_file(tokens, fields["scores"], types, spaced))
    elif kind == "gpt2" and fields.get("pre") in _CUTS:
        tokenizer = _byte_level(tokens, types, fields["merges"], _CUTS[fields["pre"]])
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    else:
        raise ModelError(
            f"{gguf} has the tokenizer {kind}, cut by {fields.get('pre')!r}",
            f"those that can be taken apart are llama, and gpt2 cut by {', '.join(_CUTS)}",
        )


def _byte_level(
    tokens: list[str], types: list[int], merges: list[str], cut: Mapping[str, Any] | None
) -> dict[str, Any]:
    named = (CONTROL, USER_DEFINED)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = cut is not None and cut["type"] == "Split"
    steps = [] if cut is None else [{**cut, **({"behavior": "Isolated", "invert": False} if split else {})}]
    kinds = list(enumerate(zip(tokens, types, strict=True)))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, "special": kind == CONTROL} | flags
            for number, (text, kind) in kinds
            if kind in named
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, by_bytes | {"use_regex": not split}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, (text, kind) in kinds if kind != UNUSED},
            "merges": merges,
        },
    }


def pieces_file(texts: list[str], scores: list[float], types: list[int], spaced: bool) -> bytes:
    """Return the bytes of a tokenizer.model with these pieces, of the kind BPE."""
    pieces = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind))
        for text, score, kind in zip(texts, scores, types, strict=True)
    )
    return pieces + _field(2, b"\x18\x02") + _field(3, b"\x18" + _varint(spaced))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
