"""Scaled rotary embeddings: how a model reads texts longer than those it was first trained on.

Both forms of checkpoints say it in their own words, and both become the same fields of
:class:`converters.decoder.DecoderConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frcli.errors import ModelError

Values = Mapping[str, Any]
Factors = tuple[float, ...]

# Tensors of a GGUF that are numbers of the configuration.
TENSORS = {name: f"{name}.weight" for name in ("rope_freqs", "rope_factors_short", "rope_factors_long")}
_FAST, _SLOW = 32.0, 1.0


def llama3_factors(theta: float, head_dim: int, values: Values) -> Factors:
    """Return what divides each frequency of a Llama 3.1, by the keys of its ``rope_scaling``.

    Wavelengths above original / low are multiplied by the factor, those below original / high are kept, and those
    between change smoothly from one to the other.
    """
    factor, original = float(values["factor"]), float(values["original_max_position_embeddings"])
    low, high = float(values["low_freq_factor"]), float(values["high_freq_factor"])
    factors = []
    for pair in range(head_dim // 2):
        turns = original * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def yarn_factors(
    theta: float,
    head_dim: int,
    factor: float,
    original: int,
    fast: float = _FAST,
    slow: float = _SLOW,
    whole: bool = True,
) -> Factors:
    """Return what divides each frequency under YaRN (arXiv 2309.00071, section 3.2, "NTK-by-parts").

    Pairs that turn more than ``fast`` times in the ``original`` context keep their frequency, those that turn less than
    ``slow`` times have it divided by ``factor``, and a ramp over the numbers of the pairs lies between, from whole
    numbers unless ``whole`` is false. Raises ``ValueError`` for a factor below 1.
    """
    if not factor >= 1:
        raise ValueError(f"a factor of {factor:g}")
    # The pair that turns n times: original theta^(-2 i / head_dim) = 2 pi n, solved for i.
    first, last = (
        head_dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta)) for turns in (fast, slow)
    )
    if whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    return tuple((1 / (ramp / factor + (1 - ramp))).tolist())


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """Return what multiplies cosines and sines under YaRN, the root of 1/t of its section 3.4: 0.1 ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def from_hugging(path: Path, rope: Values, values: Values, theta: float, head_dim: int, context: int) -> dict[str, Any]:
    """Return the configuration's fields on rotation, from ``rope``, the part of a config.json (``values``) on it.

    Raises ``ModelError`` for a kind that is not supported, and ``KeyError`` or ``ValueError`` for one that lacks
    something or makes no sense.
    """
    if float(rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelError(f"{path} rotates only a part of each head", "it is not supported")
    kind, half = rope.get("rope_type", rope.get("type", "default")), head_dim // 2
    fields: dict[str, Any] = {"rope_theta": theta, "rope_factors": (1.0,) * half, "context": context}
    if kind == "default":
        return fields
    if kind == "linear":
        return fields | {"rope_factors": (float(rope["factor"]),) * half}
    if kind == "llama3":
        return fields | {"rope_factors": llama3_factors(theta, head_dim, rope)}
    original = int(rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings") or 0)
    if kind == "yarn":
        original = original or context
        return fields | _yarn(rope, theta, head_dim, context, original)
    if kind in ("longrope", "su"):
        if not original:
            raise KeyError("original_max_position_embeddings")
        longer = max(context / original, 1.0)
        scale = rope.get("attention_factor") or math.sqrt(1 + math.log(longer) / math.log(original))
        return fields | {
            "rope_factors": tuple(float(each) for each in rope["short_factor"]),
            "rope_scale": float(scale),
            "context": min(context, original),
            "long_factors": tuple(float(each) for each in rope["long_factor"]),
            "long_context": context,
        }
    raise ModelError(
        f"{path} uses the rope scaling {kind!r}", "default, linear, llama3, yarn and longrope are supported"
    )


def _yarn(rope: Values, theta: float, head_dim: int, context: int, original: int) -> dict[str, Any]:
    factor = float(rope.get("factor") or context / original)
    fast, slow = float(rope.get("beta_fast") or _FAST), float(rope.get("beta_slow") or _SLOW)
    scale = rope.get("attention_factor")
    if scale is None:
        own, all_dims = float(rope.get("mscale") or 0), float(rope.get("mscale_all_dim") or 0)
        scale = yarn_scale(factor, own) / yarn_scale(factor, all_dims) if own and all_dims else yarn_scale(factor)
    return {
        "rope_factors": yarn_factors(theta, head_dim, factor, original, fast, slow, bool(rope.get("truncate", True))),
        "rope_scale": float(scale),
        "context": max(context, round(factor * original)),  # a config.json often says how long the texts were before
        "yarn_factor": factor,
        "yarn_context": original,
    }


def from_gguf(path: Path, own: Values, tensors: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the configuration's fields on rotation, from a file's numbers without the family, and its tensors.

    Raises ``ModelError`` for a kind that is not supported.
    """
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ModelError(f"{path} uses the rope scaling {kind!r}", "none, linear, yarn and longrope are supported")
    theta, context = float(own.get("rope.freq_base", 10000.0)), int(own.get("context_length", 2048))
    fields: dict[str, Any] = {"rope_theta": theta, "context": context}
    factor = 1.0 if kind == "none" else float(own.get("rope.scaling.factor") or 1.0)
    original = int(own.get("rope.scaling.original_context_length", context))
    scale = float(own.get("rope.scaling.attn_factor", 1.0))
    factors = np.full(head_dim // 2, factor if kind == "linear" else 1.0)
    if kind == "yarn":
        tuned = [key for key in own if key.startswith("rope.scaling.yarn_")]
        if tuned:
            raise ModelError(f"{path} has {tuned[0]}, which not all families of llama.cpp read", "it is not supported")
        factors = np.asarray(yarn_factors(theta, head_dim, factor, original))
        scale *= yarn_scale(factor)
        fields |= {"yarn_factor": factor, "yarn_context": original}
    for name in ("rope_freqs", "rope_factors_short"):  # worked out by whoever wrote the file
        if TENSORS[name] in tensors:
            factors = factors * np.asarray(tensors[TENSORS[name]].data, dtype=np.float64).reshape(-1)
    if TENSORS["rope_factors_short"] in tensors:
        fields["context"] = min(context, original)
    return fields | {"rope_factors": tuple(factors.tolist()), "rope_scale": scale}
