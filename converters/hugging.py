"""Checkpoints in Hugging Face's form: config.json and safetensors files, whole or in shards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.decoder import (
    ALL_ROWS,
    GELU,
    HEAD,
    SILU,
    Array,
    Checkpoint,
    DecoderConfig,
    check_shapes,
    layer_and_part,
)
from converters.rope import from_hugging
from frcli.errors import ModelError

Values = Mapping[str, Any]

_ACTIVATIONS = {"silu": SILU, "gelu_pytorch_tanh": GELU}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Tensors that some checkpoints hold although they follow from the configuration.
_DERIVED = ("rotary_emb.inv_freq",)
# In models that also see images: what of them is not the language model, and where that is (the newer name first).
_SEEING = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
LANGUAGE_NAMES = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
# What transformers takes for granted about a Gemma-3 that sees images; its config.json has only what is otherwise.
_GEMMA3_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
}


def open_folder(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder; raises ``ModelError`` for files that are missing, damaged or not supported."""
    config = read_config(path)
    files = dict(_files(path))
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(files.values())):
        handle = open_safetensors(file)
        found |= {
            name: tuple(handle.get_slice(name).get_shape())
            for name in handle.keys()  # noqa: SIM118 - not a dict
        }
        files |= dict.fromkeys(handle.keys(), file)
    named = {language_name(name): name for name in found if not name.endswith(_DERIVED) and not sees_images(name)}
    if config.tied:
        named.pop(HEAD, None)
    places = {name: (stored, range(found[stored][0] if found[stored] else 0)) for name, stored in named.items()}
    found = {name: found[stored] for name, stored in named.items()}
    if config.joint():
        found, places = _in_parts(config, found)
    check_shapes(path, config, found)
    shifted = 1.0 if config.family in ("gemma2", "gemma3") else 0.0

    # One shard is open at a time: pages of a mapped file that were read count as memory until it is closed.
    opened: list[tuple[Path, Any]] = []

    def read(name: str, part: slice = ALL_ROWS) -> Array:
        stored, rows = places[name]
        file = files[stored]
        if not opened or opened[0][0] != file:
            opened.clear()
            opened.append((file, open_safetensors(file)))
        array = read_tensor(opened[0][1], file, stored, slice(rows[part].start, rows[part].stop))
        return array + np.float32(shifted) if shifted and name.endswith("norm.weight") else array

    return Checkpoint(path, config, read)


def stored_types(path: Path) -> set[str]:
    """Return the types that a folder's tensors are stored in, as safetensors names them: F32, F16, BF16."""
    types = set()
    for file in sorted(set(dict(_files(path)).values())):
        handle = open_safetensors(file)
        types |= {handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118 - not a dict
    return types


def shards(path: Path) -> dict[str, Path]:
    """Return the safetensors file that holds each tensor of a folder, by its name in the language model."""
    files: dict[str, Path] = {}
    for file in sorted(set(dict(_files(path)).values())):
        files |= dict.fromkeys(map(language_name, open_safetensors(file).keys()), file)
    return files


def language_name(name: str) -> str:
    """Return a tensor's or module's name as it is in a model that does not see images."""
    for inside, plain in LANGUAGE_NAMES.items():
        name = re.sub(inside, plain, name)
    return name


def sees_images(name: str) -> bool:
    """Return whether a tensor or module of that name is for images only."""
    return _SEEING.match(name) is not None


def _in_parts(
    config: DecoderConfig, found: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, range]]]:
    """Phi-3's joint matrices as those of the others: shapes by name, and where the rows of each are."""
    shapes, places = {}, {}
    for name, shape in found.items():
        module, _, kind = name.rpartition(".")
        layer, part = layer_and_part(module)
        parts = config.joint().get(part, {})
        if not parts or sum(parts.values()) != shape[0]:
            shapes[name], places[name] = shape, (name, range(shape[0] if shape else 0))
            continue
        start = 0
        for each, rows in parts.items():
            shapes[f"{layer}{each}.{kind}"] = (rows, *shape[1:])
            places[f"{layer}{each}.{kind}"] = name, range(start, start + rows)
            start += rows
    return shapes, places


def open_safetensors(file: Path) -> Any:
    """Return a handle on a safetensors file; raises ``ModelError`` if it is missing, truncated or corrupt."""
    import ml_dtypes  # noqa: F401 - teaches numpy bfloat16, in which most checkpoints are stored
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {file}: {error}", "it is missing or damaged: fetch it again") from error


def read_tensor(handle: Any, file: Path, name: str, rows: slice = ALL_ROWS) -> Array:
    """Return rows of a tensor of :func:`open_safetensors` as float32.

    Raises ``ModelError`` if it cannot be read or is not floating point.
    """
    from safetensors import SafetensorError

    try:
        array = handle.get_tensor(name) if rows == ALL_ROWS else handle.get_slice(name)[rows]
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {name} of {file}: {error}") from error
    if array.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise ModelError(
            f"{name} of {file} is stored as {array.dtype.name}", "use the unquantized checkpoint or a GGUF"
        )
    return np.asarray(array, dtype=np.float32)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file():
        refuse_pickles(path, single.name)
        yield "", single
        return
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelError(f"{index} has no weight_map", "fetch the checkpoint again")
    for name, file in weight_map.items():
        if Path(file).name != file or not file.isprintable():
            raise ModelError(f"{index} names the file {file!r} outside its folder", "fetch the checkpoint again")
        yield name, path / file


def refuse_pickles(path: Path, wanted: str) -> None:
    """Raise ``ModelError`` if a folder has files of pickles, and none that matches the pattern ``wanted``."""
    pickles = sorted(file.name for file in path.glob("*") if file.suffix in _PICKLES)
    if pickles and not any(path.glob(wanted)):
        raise ModelError(
            f"{path} has no {wanted} but the pickle file {pickles[0]}, which can run any code when it is read",
            "save it as safetensors, as save_pretrained does, where you trust it",
        )


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises ``ModelError`` if it is missing or something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"cannot read {file}: {error}", "it belongs to the checkpoint or adapter: fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object", "fetch it again")
    return value


# ------------------------------------------------------------------------------------------------------- configuration


def read_config(path: Path) -> DecoderConfig:
    """Return the shape that a folder's config.json describes; raises ``ModelError`` for one that is not supported."""
    file = path / "config.json"
    values = read_json(file)
    kind = values.get("model_type")
    if kind == "gemma3" and isinstance(values.get("text_config"), dict):
        kind, values = "gemma3_text", {**_GEMMA3_DEFAULTS, **values["text_config"]}
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise ModelError(
            f"{path} is of the architecture {kind!r}", f"known are {', '.join(_FAMILIES)}; a GGUF of others may do"
        )
    try:
        return _config(path, kind, values)
    except KeyError as error:
        raise ModelError(f"{file} lacks {error.args[0]}", "fetch the checkpoint again") from error
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"{file} has a value that makes no sense: {error}", "fetch the checkpoint again") from error


def _config(path: Path, kind: str, values: Values) -> DecoderConfig:
    for name in ("attention_bias", "mlp_bias"):
        if values.get(name):
            raise ModelError(f"{path} has {name}", "it is not supported")
    activation = values.get("hidden_activation") or values.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"{path} uses the activation {activation!r}", f"supported are {' and '.join(sorted(_ACTIVATIONS))}"
        )
    hidden, heads, layers = (int(values[name]) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    if not 0 < layers <= 1024:
        raise ValueError(f"{layers} layers")
    head_dim = int(values.get("head_dim") or hidden // heads)
    if not 0 < head_dim <= 1 << 16:  # lists of this length are made before any tensor has confirmed it
        raise ValueError(f"heads of {head_dim} numbers")
    rotation = _rotation(values)
    theta = float(rotation.get("rope_theta") or values.get("rope_theta") or 10000.0)
    context = int(values.get("max_position_embeddings", 2048))
    family: dict[str, Any] = {
        "qkv_bias": False,
        "tied": bool(values.get("tie_word_embeddings", kind in ("gemma2", "gemma3_text", "smollm3"))),
    } | _FAMILIES[kind](values, layers)
    return DecoderConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        intermediate=int(values["intermediate_size"]),
        vocab=int(values["vocab_size"]),
        rms_eps=float(values["rms_norm_eps"]),
        family={"gemma3_text": "gemma3"}.get(kind, kind),
        activation=_ACTIVATIONS[activation],
        **from_hugging(path, rotation, values, theta, head_dim, context),
        **family,
    )


def _windows(values: Values, sliding: Callable[[int], bool], layers: int) -> tuple[int, ...]:
    """The window of each layer: as ``layer_types`` says, or else where ``sliding(layer)``."""
    window = values.get("sliding_window")
    if not window or values.get("use_sliding_window") is False:
        return ()
    types = values.get("layer_types") or ["sliding_attention" if sliding(layer) else "" for layer in range(layers)]
    if len(types) != layers:
        raise ValueError(f"layer_types has {len(types)} entries for {layers} layers")
    return tuple(int(window) if kind == "sliding_attention" else 0 for kind in types)


def _llama(values: Values, layers: int) -> dict[str, Any]:
    return {}


def _mistral(values: Values, layers: int) -> dict[str, Any]:
    return {"windows": _windows(values, lambda layer: True, layers)}


def _qwen2(values: Values, layers: int) -> dict[str, Any]:
    return {"qkv_bias": True, "windows": _qwen_windows(values, layers)}


def _qwen3(values: Values, layers: int) -> dict[str, Any]:
    return {"qk_norm": True, "windows": _qwen_windows(values, layers)}


def _qwen_windows(values: Values, layers: int) -> tuple[int, ...]:
    if not values.get("use_sliding_window"):
        return ()
    first = int(values.get("max_window_layers", 28))
    return _windows(values, lambda layer: layer >= first, layers)


def _gemma(values: Values, layers: int, pattern: int) -> dict[str, Any]:
    return {
        "windows": _windows(values, lambda layer: (layer + 1) % pattern != 0, layers),
        "post_norms": True,
        "embedding_scale": float(values["hidden_size"]) ** 0.5,
        "attention_scale": float(values["query_pre_attn_scalar"]) ** -0.5,
        "attention_cap": float(values.get("attn_logit_softcapping") or 0),
        "logit_cap": float(values.get("final_logit_softcapping") or 0),
    }


def _gemma2(values: Values, layers: int) -> dict[str, Any]:
    return _gemma(values, layers, 2)


def _gemma3(values: Values, layers: int) -> dict[str, Any]:
    if values.get("use_bidirectional_attention"):
        raise ValueError("its attention looks ahead, as in a model for embeddings")
    pattern = int(values.get("_sliding_window_pattern") or values.get("sliding_window_pattern") or 6)
    local = (values.get("rope_parameters") or {}).get("sliding_attention") or {}
    theta = float(local.get("rope_theta") or values.get("rope_local_base_freq") or 10000.0)
    return {**_gemma(values, layers, pattern), "qk_norm": True, "local_theta": theta}


def _smollm3(values: Values, layers: int) -> dict[str, Any]:
    interval = int(values.get("no_rope_layer_interval") or 4)
    rotated = values.get("no_rope_layers") or [(layer + 1) % interval != 0 for layer in range(layers)]
    return {
        "unrotated": tuple(layer for layer in range(layers) if not rotated[layer]),
        "windows": _windows(values, lambda layer: False, layers) if values.get("use_sliding_window") else (),
    }


_FAMILIES: dict[str, Callable[[Values, int], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "smollm3": _smollm3,
    "phi3": _mistral,
}


def _rotation(values: Values) -> Values:
    """The rotation of the layers without a window; transformers 5 moved all that is said of it into one place."""
    rotation = values.get("rope_parameters") or values.get("rope_scaling") or {}
    chosen = rotation.get("full_attention", rotation)
    if not isinstance(chosen, dict):
        raise ValueError(f"the rotation is {chosen!r}")
    return chosen
