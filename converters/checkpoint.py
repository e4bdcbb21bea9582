"""Llama-family checkpoints, from a GGUF file or a Hugging Face safetensors folder, read lazily as float32.

Tensors carry Hugging Face names and layouts whatever the file is (``model.layers.0.self_attn.q_proj.weight`` is [out,
in]).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError

Array = NDArray[np.float32]

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_LAYERS = "model.layers."


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape of a Llama model.

    ``rope_factors`` divide the rotary frequencies theta^(-2i/head_dim), one factor for each of the head_dim / 2
    frequencies; all are 1 without rope scaling. ``context`` is the number of positions that the model was trained for.
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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the checkpoint by name; a tied one has no head."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden), FINAL_NORM: (self.hidden,)}
        if not self.tied:
            shapes[HEAD] = (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
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
        return shapes

    def rotary(self, positions: int) -> tuple[Array, Array]:
        """Return cosines and sines of the rotary angles, float32 [positions, head_dim / 2] each."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        frequencies = self.rope_theta**-exponents / np.asarray(self.rope_factors)
        angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration and a way to read its tensors one at a time."""

    path: Path
    config: LlamaConfig
    read: Callable[[str], Array]

    def tensor(self, name: str) -> Array:
        """Return the tensor as float32 in the Hugging Face layout; the head of a tied model is its embedding.

        Raises ``ModelError`` if the file holds values that are not finite, or can no longer be read.
        """
        if name == HEAD and self.config.tied:
            name = EMBEDDING
        array = self.read(name)
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

        def read(name: str) -> Array:
            if name.startswith(_LAYERS):
                number, _, rest = name.removeprefix(_LAYERS).partition(".")
                name = f"{_LAYERS}{layers[int(number)]}.{rest}"
            return self.read(name)

        return replace(self, config=replace(self.config, layers=len(layers)), read=read)


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a GGUF file (any quantization) or in a folder with config.json and safetensors files.

    Raises ``ModelError`` for a missing, truncated or corrupt file, and for an architecture that is not Llama.
    """
    if path.is_dir():
        return _open_safetensors(path)
    if path.is_file():
        return _open_gguf(path)
    raise ModelError(
        f"there is no model at {path}", "give a GGUF file or a folder with config.json and model.safetensors"
    )


def fingerprint(path: Path) -> str:
    """Return the sha256 that names a base: of the file, or of the names and hashes of a folder's safetensors files."""
    if not path.is_dir():
        try:
            with open(path, "rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    whole = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        whole.update(f"{file.name} {fingerprint(file)}\n".encode())
    return whole.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- GGUF

_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HF_MODULES = {hugging: gguf for gguf, hugging in _GGUF_NAMES.items()}


def gguf_name(module: str) -> str | None:
    """Return the GGUF name of a module (``model.layers.3.self_attn.q_proj`` -> ``blk.3.attn_q``), or None."""
    parts = module.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdecimal():
        known = _HF_MODULES.get(".".join(parts[3:]))
        return f"blk.{parts[2]}.{known}" if known else None
    return _HF_MODULES.get(module)


def _hugging_name(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[3] == "weight" and parts[2] in _GGUF_NAMES:
        return f"model.layers.{parts[1]}.{_GGUF_NAMES[parts[2]]}.weight"
    if len(parts) == 2 and parts[1] == "weight" and parts[0] in _GGUF_NAMES:
        return f"{_GGUF_NAMES[parts[0]]}.weight"
    return None


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return q or k rows [heads * head_dim, ...] in llama.cpp's order.

    Hugging Face pairs row i of a head with row i + head_dim/2 for the rotation; llama.cpp pairs rows 2i and 2i + 1.
    Only the output rows move, so the same reordering applies to a weight and to the B of a low-rank update of it.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo :func:`interleave`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


# What gguf's reader raises on bytes that are not what they claim to be.
_CORRUPT = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError, OSError)


def _open_gguf(path: Path) -> Checkpoint:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except _CORRUPT as error:
        raise ModelError(
            f"cannot read {path} as GGUF: {error}", "it is damaged or no GGUF file: fetch it again"
        ) from error

    architecture = fields.get("general.architecture")
    if architecture != "llama" or fields.get("general.type", "model") != "model":
        kind = "a LoRA adapter" if fields.get("general.type") == "adapter" else f"of the architecture {architecture!r}"
        raise ModelError(f"{path} is {kind}, not a model of the Llama family", "only Llama models can be converted")
    if fields.get("split.count", 0) > 1:
        raise ModelError(f"{path} is one part of a split GGUF", "merge the parts with llama-gguf-split first")
    if fields.get("llama.expert_count", 0):
        raise ModelError(f"{path} is a mixture of experts", "only dense Llama models can be converted")

    try:
        heads = int(fields["llama.attention.head_count"])
        hidden = int(fields["llama.embedding_length"])
        head_dim = int(fields.get("llama.attention.key_length", hidden // heads))
        config = LlamaConfig(
            hidden=hidden,
            layers=int(fields["llama.block_count"]),
            heads=heads,
            kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
            head_dim=head_dim,
            intermediate=int(fields["llama.feed_forward_length"]),
            vocab=int(tensors["token_embd.weight"].shape[1]),
            rms_eps=float(fields["llama.attention.layer_norm_rms_epsilon"]),
            rope_theta=float(fields.get("llama.rope.freq_base", 10000.0)),
            rope_factors=_gguf_rope_factors(path, fields, tensors, head_dim),
            tied="output.weight" not in tensors,
            context=int(fields.get("llama.context_length", 2048)),
        )
    except KeyError as error:
        raise ModelError(f"{path} lacks {error.args[0]}", "it is damaged or incomplete: fetch it again") from error
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ModelError(f"{path} has a configuration that makes no sense: {error}", "fetch it again") from error
    if int(fields.get("llama.rope.dimension_count", head_dim)) != head_dim:
        raise ModelError(f"{path} rotates only a part of each head", "such Llama variants are not supported")

    stored = {_hugging_name(name) or name: tensor for name, tensor in tensors.items() if name != "rope_freqs.weight"}
    _check_shapes(path, config, {name: tuple(int(n) for n in reversed(t.shape)) for name, t in stored.items()})
    permuted = {"self_attn.q_proj.weight": config.heads, "self_attn.k_proj.weight": config.kv_heads}

    def read(name: str) -> Array:
        tensor = stored[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type).reshape(config_shapes[name])
        except (*_CORRUPT, NotImplementedError) as error:
            raise ModelError(f"cannot read {name} of {path} ({tensor.tensor_type.name}): {error}") from error
        rotated = permuted.get(name.split(".", 3)[-1])
        return np.asarray(deinterleave(array, rotated) if rotated else array, dtype=np.float32)

    config_shapes = config.shapes()
    return Checkpoint(path, config, read)


def _gguf_rope_factors(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any], head_dim: int
) -> tuple[float, ...]:
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelError(f"{path} uses the rope scaling {kind!r}", "only none, linear and llama3 scaling are supported")
    factor = float(fields.get("llama.rope.scaling.factor", 1.0)) if kind == "linear" else 1.0
    factors = np.full(head_dim // 2, factor)
    if "rope_freqs.weight" in tensors:  # llama3 scaling, worked out by whoever wrote the file
        factors = factors * np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64).reshape(-1)
    return tuple(factors.tolist())


# --------------------------------------------------------------------------------------------------------- safetensors


def _open_safetensors(path: Path) -> Checkpoint:
    config = _read_config(path)
    files = dict(_safetensors_files(path))
    handles: dict[Path, Any] = {}
    stored: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(files.values())):
        handles[file] = handle = open_safetensors(file)
        stored |= {
            name: tuple(handle.get_slice(name).get_shape())
            for name in handle.keys()  # noqa: SIM118 - not a dict
        }
        files |= dict.fromkeys(handle.keys(), file)
    stored = {name: shape for name, shape in stored.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        stored.pop(HEAD, None)
    _check_shapes(path, config, stored)

    def read(name: str) -> Array:
        return read_tensor(handles[files[name]], files[name], name)

    return Checkpoint(path, config, read)


def open_safetensors(file: Path) -> Any:
    """Return a handle on a safetensors file; raises ``ModelError`` if it is missing, truncated or corrupt."""
    import ml_dtypes  # noqa: F401 - teaches numpy bfloat16, in which most checkpoints are stored
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {file}: {error}", "it is missing or damaged: fetch it again") from error


def read_tensor(handle: Any, file: Path, name: str) -> Array:
    """Return a tensor of :func:`open_safetensors` as float32; raises ``ModelError`` if it is not floating point."""
    from safetensors import SafetensorError

    try:
        array = handle.get_tensor(name)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {name} of {file}: {error}") from error
    if array.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise ModelError(
            f"{name} of {file} is stored as {array.dtype.name}", "use the unquantized checkpoint or a GGUF"
        )
    return np.asarray(array, dtype=np.float32)


def _safetensors_files(path: Path) -> Iterator[tuple[str, Path]]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file():
        yield "", single
        return
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelError(f"{index} has no weight_map", "fetch the checkpoint again")
    for name, file in weight_map.items():
        if Path(file).name != file:
            raise ModelError(f"{index} names the file {file!r} outside its folder", "fetch the checkpoint again")
        yield name, path / file


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises ``ModelError`` if it is missing or something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {file}: {error}", "it belongs to the checkpoint or adapter: fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object", "fetch it again")
    return value


def _read_config(path: Path) -> LlamaConfig:
    file = path / "config.json"
    values = read_json(file)
    if values.get("model_type") != "llama":
        raise ModelError(
            f"{path} is of the architecture {values.get('model_type')!r}, not of the Llama family",
            "only Llama models can be converted",
        )
    if values.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{path} uses the activation {values['hidden_act']!r}", "only silu is supported")
    try:
        hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
        head_dim = int(values.get("head_dim") or hidden // heads)
        # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)
        return LlamaConfig(
            hidden=hidden,
            layers=int(values["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            intermediate=int(values["intermediate_size"]),
            vocab=int(values["vocab_size"]),
            rms_eps=float(values["rms_norm_eps"]),
            rope_theta=theta,
            rope_factors=_rope_factors(path, rope, theta, head_dim),
            tied=bool(values.get("tie_word_embeddings", False)),
            context=int(values.get("max_position_embeddings", 2048)),
        )
    except KeyError as error:
        raise ModelError(f"{file} lacks {error.args[0]}", "fetch the checkpoint again") from error
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(f"{file} has a value that makes no sense: {error}", "fetch the checkpoint again") from error


def _rope_factors(path: Path, rope: Mapping[str, Any], theta: float, head_dim: int) -> tuple[float, ...]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return (1.0,) * (head_dim // 2)
    if kind == "linear":
        return (float(rope["factor"]),) * (head_dim // 2)
    if kind != "llama3":
        raise ModelError(
            f"{path} uses the rope scaling {kind!r}", "only default, linear and llama3 scaling are supported"
        )
    # Llama 3.1: wavelengths above original/low are divided by the factor, those below original/high are kept, and those
    # between change smoothly from one to the other.
    factor, original = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factors = []
    for pair in range(head_dim // 2):
        turns = original * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def _check_shapes(path: Path, config: LlamaConfig, stored: Mapping[str, tuple[int, ...]]) -> None:
    if min(config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim, config.vocab) < 1:
        raise ModelError(f"{path} has a configuration that makes no sense: {config}", "fetch it again")
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
            f"{path} has the tensor {extra[0]}, which plain Llama models do not have", "it is not supported"
        )
