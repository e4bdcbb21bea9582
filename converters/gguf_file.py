"""A model's shape, vocabulary and tensors as one GGUF file, written a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.decoder import Checkpoint, DecoderConfig, layer_and_part
from converters.gguf_model import gguf_name, implied, interleave, interleaved_heads
from converters.rope import yarn_factors, yarn_scale
from converters.vocabulary import Vocabulary
from frcli.errors import ModelError

# Numbers in a block: what is read, rounded and written at once.
_BLOCK = 1 << 23
_ALIGNMENT = 32
# Families whose windows llama.cpp keeps; it reads all of the text in every layer of the others.
_WINDOWED = ("gemma2", "gemma3")
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the file: its parts in the checkpoint, one below the other, and how many heads are interleaved."""

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int = 0


def architecture(config: DecoderConfig) -> str:
    """Return llama.cpp's name of the family; it runs Mistral as a Llama."""
    return "llama" if config.family == "mistral" else config.family


def context_length(config: DecoderConfig) -> int:
    """Return for how many positions llama.cpp's result is that of the model: up to a window that it would ignore."""
    windows = [] if config.family in _WINDOWED else [window for window in config.windows if window]
    return min(config.long_context or config.context, *windows, 1 << 31)


def hyperparameters(path: Path, config: DecoderConfig) -> dict[str, int | float | str]:
    """Return what the file says of the shape, by key without the family (``attention.head_count``).

    Raises ``ModelError`` if llama.cpp knows better by the family's name and would run another model.
    """
    own: dict[str, int | float | str] = {
        "context_length": context_length(config),
        "embedding_length": config.hidden,
        "block_count": config.layers,
        "feed_forward_length": config.intermediate,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab,
    }
    window = max(config.windows, default=0)
    if config.family in _WINDOWED:
        own["attention.sliding_window"] = window
    if config.local_theta:
        own["rope.freq_base_swa"] = config.local_theta
    if config.attention_cap:
        own["attn_logit_softcapping"] = config.attention_cap
    if config.logit_cap:
        own["final_logit_softcapping"] = config.logit_cap
    if config.long_factors:
        own |= {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": config.context,
            "rope.scaling.attn_factor": config.rope_scale,
        }
    elif config.yarn_factor:
        own |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": config.yarn_factor,
            "rope.scaling.original_context_length": config.yarn_context,
            "rope.scaling.attn_factor": config.rope_scale / yarn_scale(config.yarn_factor),
        }
    elif _linear(config):
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factors[0]}
    _require_implied(path, config, own)
    return own


def _linear(config: DecoderConfig) -> bool:
    return len(set(config.rope_factors)) == 1 and config.rope_factors[0] != 1.0


def _require_implied(path: Path, config: DecoderConfig, own: Mapping[str, Any]) -> None:
    scaled = len(set(config.rope_factors)) > 1 or bool(config.long_factors)
    if config.yarn_factor:
        usual = yarn_factors(config.rope_theta, config.head_dim, config.yarn_factor, config.yarn_context)
        if not np.allclose(config.rope_factors, usual, rtol=1e-6):
            raise ModelError(f"{path} has a YaRN with other ramps than llama.cpp's", "it is not supported")
    elif scaled and config.family not in ("llama", "mistral", *(("phi3",) if config.long_factors else ())):
        raise ModelError(
            f"{path} has a rope scaling that llama.cpp does not have for the family {config.family}",
            "it is not supported",
        )
    caps = (config.attention_cap, config.logit_cap)
    if (config.family == "gemma2" and not all(caps)) or (config.family == "gemma3" and any(caps)):
        raise ModelError(
            f"{path} caps scores at {caps[0]:g} and logits at {caps[1]:g}, which llama.cpp's {config.family} cannot do",
            "it is not supported",
        )
    for name, value in implied(architecture(config), own, config.layers).items():
        actual: Any = config.query_scale if name == "attention_scale" else getattr(config, name)
        if name == "windows":
            value, actual = (tuple(bool(window) for window in each) for each in (value, actual))
        if actual != value and not (isinstance(value, float) and abs(actual - value) <= 1e-6 * abs(value)):
            raise ModelError(
                f"{path} has {name} {actual}, and llama.cpp takes a {config.family} of its shape to have {value}",
                "it is not supported",
            )


def places(config: DecoderConfig, files: Mapping[str, Path]) -> dict[str, Place]:
    """Return the file's tensors by name, in the order in which the checkpoint's ``files`` have them.

    One shard after the other: reading all that is needed of one closes it for good.
    """
    shapes, heads = config.shapes(), interleaved_heads(config)
    joint = {next(iter(parts)): (whole, tuple(parts)) for whole, parts in config.joint().items()}
    joined = {part for _, parts in joint.values() for part in parts}
    found: dict[str, Place] = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        layer, part = layer_and_part(module)
        parts: tuple[str, ...] = (name,)
        if part in joint:
            module, parts = layer + joint[part][0], tuple(f"{layer}{each}.{kind}" for each in joint[part][1])
            shape = (sum(shapes[each][0] for each in parts), *shape[1:])
        elif part in joined:
            continue
        stored = gguf_name(module, config.family)
        if stored is None:
            raise ModelError(f"llama.cpp has no place for {name} in its family {architecture(config)}")
        found[f"{stored}.{kind}"] = Place(parts, shape, heads.get(part, 0))
    order = {file: number for number, file in enumerate(sorted(set(files.values())))}
    return dict(sorted(found.items(), key=lambda item: order.get(files.get(item[1].parts[0], Path()), 0)))


def write_model(
    path: Path,
    checkpoint: Checkpoint,
    files: Mapping[str, Path],
    vocabulary: Vocabulary,
    precision: str,
    about: Mapping[str, str],
) -> None:
    """Write the model to ``path``, with matrices in ``precision`` ("f32", "f16" or "bf16") and vectors in float32.

    ``files`` are the checkpoint's by tensor, and ``about`` is what ``general.`` keys say. Raises ``ModelError`` for a
    value that float16 cannot hold, ``OSError`` if the file cannot be written.
    """
    import gguf

    config = checkpoint.config
    writer = gguf.GGUFWriter(path, architecture(config))
    writer.add_type("model")
    for key, text in about.items():
        writer.add_string(f"general.{key}", text)
    writer.add_file_type(FILE_TYPES[precision])
    for key, value in hyperparameters(checkpoint.path, config).items():
        kind = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
        writer.add_key_value(f"{architecture(config)}.{key}", value, kind[type(value)])
    vocabulary.add_to(writer)
    constants = _rope_tensors(config)
    tensors = places(config, files)
    for name, array in constants.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    for name, place in tensors.items():
        stored = "f32" if len(place.shape) == 1 else precision
        size = int(np.prod(place.shape)) * (4 if stored == "f32" else 2)
        writer.add_tensor_info(name, place.shape, np.dtype(np.float32), size, gguf.GGMLQuantizationType[stored.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    # The data follow block by block: gguf would take each tensor whole, and an embedding can be larger than all else.
    with open(path, "ab") as file:
        for array in constants.values():
            _pad(file)
            file.write(array.tobytes())
        for name, place in tensors.items():
            _pad(file)
            for block in _blocks(checkpoint, place):
                file.write(_rounded(block, "f32" if len(place.shape) == 1 else precision, name).data.cast("B"))
        _pad(file)


def write_vocabulary(path: Path, vocabulary: Vocabulary, config: DecoderConfig, about: Mapping[str, str]) -> None:
    """Write a GGUF that has the vocabulary and no tensors, which llama.cpp can ask for the ids of a text."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture(config))
    writer.add_string("general.name", about["name"])
    vocabulary.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _rope_tensors(config: DecoderConfig) -> dict[str, NDArray[np.float32]]:
    if config.long_factors:
        factors = {"rope_factors_long.weight": config.long_factors, "rope_factors_short.weight": config.rope_factors}
    elif len(set(config.rope_factors)) > 1 and not config.yarn_factor:
        factors = {"rope_freqs.weight": config.rope_factors}
    else:
        factors = {}
    return {name: np.asarray(values, dtype=np.float32) for name, values in factors.items()}


def _blocks(checkpoint: Checkpoint, place: Place) -> Iterator[NDArray[np.float32]]:
    shapes, head_dim = checkpoint.config.shapes(), checkpoint.config.head_dim
    unit = head_dim if place.heads else 1
    step = max(_BLOCK // int(np.prod((*place.shape[1:], unit))), 1) * unit
    for name in place.parts:
        for start in range(0, shapes[name][0], step):
            block = checkpoint.part(name, start, min(start + step, shapes[name][0]))
            if place.heads:
                block = interleave(block, len(block) // head_dim)
            yield np.ascontiguousarray(block)


def _rounded(block: NDArray[np.float32], precision: str, name: str) -> NDArray[Any]:
    if precision == "f32":
        return block
    if precision == "bf16":
        import ml_dtypes

        return block.astype(ml_dtypes.bfloat16).view(np.uint16)
    with np.errstate(over="ignore"):
        rounded = block.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise ModelError(f"{name} has values that f16 cannot hold", "convert to bf16 or f32")
    return rounded


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))
