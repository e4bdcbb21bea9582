"""Low-rank updates: W + scale * B A, read from a PEFT adapter or made by router training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.decoder import ALL_ROWS, HEAD, Array, Checkpoint, DecoderConfig, layer_and_part
from converters.hugging import language_name, open_safetensors, read_json, read_tensor, refuse_pickles, sees_images
from frcli.errors import ModelError

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<kind>[AB])\.(?:default\.)?weight")

# Settings that change what the two matrices mean, with why a plain low-rank update cannot express them.
_REFUSED = {
    "use_dora": "DoRA also rescales every output row, which a LoRA adapter of llama.cpp cannot do",
    "lora_bias": "it has bias vectors, which a LoRA adapter of llama.cpp cannot hold",
    "use_qalora": "QA-LoRA pools the inputs, which a LoRA adapter of llama.cpp cannot do",
    "modules_to_save": "it replaces whole modules, which a LoRA adapter cannot hold",
    "layer_replication": "it repeats layers of the base",
    "trainable_token_indices": "it trains rows of the embedding",
    "alora_invocation_tokens": "it is active only after certain tokens",
    "use_bdlora": "BD-LoRA's matrices are block diagonal",
    "kasa_config": "KaSA also changes the base weights",
    "monteclora_config": "MonteCLoRA adds matrices of its own",
    "arrow_config": "Arrow switches between several adapters",
    "target_parameters": "it changes parameters that are not in linear layers",
}
_INITIAL_BASE_KEPT = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class Lora:
    """One low-rank update of a linear layer: ``a`` [r, in], ``b`` [out, r], float16 or float32, and its scale."""

    a: NDArray[Any]
    b: NDArray[Any]
    scale: float

    def delta(self, rows: slice = ALL_ROWS) -> Array:
        """Return those rows of scale * B A, float32 [out, in]."""
        return np.float32(self.scale) * (self.b[rows].astype(np.float32) @ self.a.astype(np.float32))


def read_peft(folder: Path) -> dict[str, Lora]:
    """Return the updates of a PEFT LoRA adapter by module path (``model.layers.0.self_attn.q_proj``), as float32.

    The scale is alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA, with r and alpha from the patterns where they
    match. Raises ``ModelError`` for anything that is not plain LoRA, saying why, and for missing or corrupt files.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no adapter folder at {folder}", "give the folder with adapter_config.json")
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder} is a PEFT adapter of type {config.get('peft_type')!r}", "only LORA can be converted"
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise ModelError(f"the adapter {folder} sets {key}: {reason}", "train it as plain LoRA")
    if config.get("bias", "none") != "none":
        raise ModelError(f"the adapter {folder} trains biases (bias={config['bias']!r})", "train it with bias='none'")
    if config.get("init_lora_weights", True) not in _INITIAL_BASE_KEPT:
        raise ModelError(
            f"the adapter {folder} was initialised by {config['init_lora_weights']!r}, "
            "which also changes the base weights",
            "save it converted to plain LoRA (path_initial_model_for_weight_conversion in PEFT)",
        )

    file = folder / "adapter_model.safetensors"
    refuse_pickles(folder, file.name)
    handle = open_safetensors(file)
    pairs: dict[str, dict[str, Array]] = {}
    for name in handle.keys():  # noqa: SIM118 - not a dict
        match = _NAME.fullmatch(name)
        if match is None:
            raise ModelError(
                f"{file} holds {name}, which is not a LoRA matrix of a linear layer", "train it as plain LoRA"
            )
        pairs.setdefault(match["module"], {})[match["kind"]] = read_tensor(handle, file, name)
    if not pairs:
        raise ModelError(f"{file} holds no LoRA matrices", "fetch or train it again")

    updates = {}
    for module, pair in sorted(pairs.items(), key=lambda item: _natural(item[0])):
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(f"{file} has no matching lora_A and lora_B for {module}", "fetch or train it again")
        rank, scale = _rank_and_scale(folder, config, module)
        if sees_images(module):
            raise ModelError(
                f"the adapter {folder} changes {module}, which is not of the language model", "train it without"
            )
        if a.shape[0] != rank:
            raise ModelError(f"{file} has rank {a.shape[0]} for {module} where adapter_config.json says {rank}")
        updates[language_name(module)] = Lora(a, b, scale)
    return updates


def merge(base: Checkpoint, updates: Mapping[str, Lora]) -> Checkpoint:
    """Return the checkpoint whose tensors are those of ``base`` with the updates added, each when it is read.

    An update of ``lm_head`` unties it from the embedding. Raises ``ModelError`` if an update does not fit the base.
    """
    config = replace(base.config, tied=False) if HEAD.removesuffix(".weight") in updates else base.config
    check_fit(base, updates)

    def read(name: str, rows: slice = ALL_ROWS) -> Array:
        weight = base.tensor(name) if rows == ALL_ROWS else base.part(name, rows.start, rows.stop)
        update = updates.get(name.removesuffix(".weight"))
        return weight if update is None else weight + update.delta(rows)

    return replace(base, config=config, read=read)


def in_parts(config: DecoderConfig, updates: Mapping[str, Lora]) -> dict[str, Lora]:
    """Return the updates with each one of a joint matrix (Phi-3) as one of each part: they share A, and have rows of B.

    An update that does not have the joint matrix's rows stays as it is.
    """
    found: dict[str, Lora] = {}
    for module, update in updates.items():
        layer, name = layer_and_part(module)
        parts = config.joint().get(name, {})
        if not parts or sum(parts.values()) != len(update.b):
            found[module] = update
            continue
        start = 0
        for part, rows in parts.items():
            found[layer + part] = replace(update, b=update.b[start : start + rows])
            start += rows
    return found


def check_fit(base: Checkpoint, updates: Mapping[str, Lora]) -> None:
    """Raise ``ModelError`` if an update names a module that ``base`` lacks, or does not have its dimensions."""
    shapes = replace(base.config, tied=False).shapes()
    for module, update in updates.items():
        shape = shapes.get(f"{module}.weight")
        if shape is None or len(shape) != 2 or module == "model.embed_tokens":
            raise ModelError(
                f"the update of {module} has no linear layer in {base.path}", "it was trained on another base"
            )
        if shape != (update.b.shape[0], update.a.shape[1]):
            raise ModelError(
                f"the update of {module} is for a layer of shape {[update.b.shape[0], update.a.shape[1]]}, "
                f"and {base.path} has {list(shape)}",
                "it was trained on another base",
            )


def _rank_and_scale(folder: Path, config: Mapping[str, Any], module: str) -> tuple[int, float]:
    try:
        rank = int(_by_pattern(config.get("rank_pattern"), module, config["r"]))
        alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
        raise ModelError(f"{folder}/adapter_config.json has no usable r and lora_alpha: {error}") from error
    if not 1 <= rank < 1 << 20 or not math.isfinite(alpha):
        raise ModelError(f"{folder}/adapter_config.json has r={rank!s:.20} and lora_alpha={alpha} for {module}")
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the whole path or a dotted tail of it, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _natural(module: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in module.split(".")]
