"""Checkpoint (+ a trained delta and routing head) -> ONNX router."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters.calibration import calibrated
from converters.checkpoint import fingerprint, open_checkpoint
from converters.decoder import Checkpoint
from converters.graph import LARGEST_MESSAGE
from converters.lora import merge
from converters.output import refuse_existing, staging
from converters.parity import Parity, check_window, measure
from converters.reference import ReferenceRunner
from converters.session import RouterRunner
from converters.trained import FILE_NAME, Trained, read_trained
from converters.transformer import build_decoder
from converters.weights import precision_named, rounded
from frcli.bundle import ROUTER_FORMAT
from frcli.errors import BundleError, UsageError

# Mean KL in nats above which a result is taken for broken rather than for coarse.
_LIMITS = {"fp32": 1e-4, "fp16": 1e-3, "int8": 0.05, "int4": 1.0}
CPU, CUDA = TARGETS = ("cpu", "cuda")

# Positions that a router has unless more are asked for: its rotary tables grow with them.
_LONGEST = 8192


def convert_router(
    base: Path,
    out: Path,
    trained: Path | None = None,
    experts: Sequence[str] = (),
    precision: str = "int4",
    context: int | None = None,
    vocabulary: str = "",
    force: bool = False,
    verify: bool = True,
    *,
    head: str | None = None,
    layers: int = 0,
    target: str = CPU,
    largest: int = LARGEST_MESSAGE,
) -> Parity | None:
    """Write the ONNX router ``out`` made of ``base`` and the trained part, and return how well it agrees with them.

    ``base`` is a GGUF file or a safetensors folder of a known family. Without ``trained`` the result is the plain
    model, without a routing output; if the trained part holds texts for calibration, int4 is quantized for them.
    ``experts``, if given, must be the trained ones in their order. ``context`` is the largest number of positions the
    router can be asked for, as the base at most and at most 8192 if not given; ``vocabulary`` names the tokenizer in
    the metadata. ``head`` is the precision of embedding and head, ``layers`` keeps the first so many of a router that
    was not trained with fewer, and the ``target`` ``cuda`` computes in float16. Weights of more than ``largest`` bytes
    lie in a file beside ``out``. With ``verify`` the source is evaluated by :mod:`converters.reference` on the same
    tokens; without it the result is None.

    Raises ``ModelError`` for files that cannot be read or do not fit, ``BundleError`` for experts that are not the
    trained ones, ``UsageError`` for an unknown precision or an impossible context, ``OutputError`` if the result exists
    or cannot be written.
    """
    chosen = precision_named(precision, head)
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}", f"choose one of {', '.join(TARGETS)}")
    refuse_existing(out, force)
    checkpoint = open_checkpoint(base)
    if context is None:
        context = min(checkpoint.config.context, _LONGEST)
    if not 1 <= context <= checkpoint.config.context:
        raise UsageError(
            f"{base} cannot have a context of {context} tokens", f"choose one from 1 to {checkpoint.config.context}"
        )
    source = {"base": fingerprint(base)}
    part: Trained | None = None
    if trained is not None:
        file = trained / FILE_NAME if trained.is_dir() else trained
        part = read_trained(file)
        source["trained"] = fingerprint(file)
        _check_together(base, source["base"], checkpoint, file, part, experts)
        if part.layers is not None:
            if layers:
                raise UsageError(f"{file} was trained with {len(part.layers)} layers", "leave --layers out")
            checkpoint = checkpoint.keeping(part.layers)
        checkpoint = merge(checkpoint, part.delta)
    elif experts:
        raise UsageError("experts were named, but there is no trained router that tells them apart", "give it too")

    if layers:
        checkpoint = checkpoint.keeping(range(layers))

    metadata = {
        "frcli.format": ROUTER_FORMAT,
        "frcli.experts": json.dumps(list(part.experts) if part else []),
        "frcli.vocabulary": vocabulary,
        "frcli.context": str(context),
        "frcli.precision": precision if head in (None, precision) else f"{precision}, head {head}",
        "frcli.target": target,
        "frcli.source": json.dumps(source),
        "frcli.layers": str(checkpoint.config.layers),
        "frcli.kv_heads": str(checkpoint.config.kv_heads),
        "frcli.head_dim": str(checkpoint.config.head_dim),
    }
    if part is not None and part.gamma is not None:
        metadata["frcli.gamma"] = repr(part.gamma)
    routing = part.routing if part else None
    with staging(out, force) as folder:
        if part is not None and part.calibration is not None and chosen.calibrated:
            weights = calibrated(checkpoint, chosen, part.calibration)
        else:
            weights = rounded(checkpoint, chosen)
        prompt, gate = (part.prompt, part.gate) if part else (None, None)
        dtype = np.float32 if target == CPU else np.float16
        graph = build_decoder(checkpoint, weights, context, routing, prompt, gate, dtype)
        graph.save(folder / out.name, metadata, "frcli", largest)
        if not verify:
            return None
        result = _check(base, ReferenceRunner(checkpoint, routing, prompt, gate), folder / out.name, context)
        return result.require(
            max(_LIMITS[each] for each in (precision, head or precision)), f"the router converted from {base}"
        )


def _check(base: Path, source: ReferenceRunner, model: Path, context: int) -> Parity:
    window = check_window(base, source.vocab, min(320, context))
    return measure(source, RouterRunner(model), [window])


def _check_together(
    base: Path, base_sha256: str, checkpoint: Checkpoint, file: Path, part: Trained, experts: Sequence[str]
) -> None:
    hint = "give the base that it was trained on"
    if part.base_sha256 and part.base_sha256 != base_sha256:
        raise BundleError(
            f"{file} was trained on a base with sha256 {part.base_sha256[:12]}..., "
            f"and {base} has {base_sha256[:12]}...",
            hint,
        )
    width = part.routing.shape[1]
    if width != checkpoint.config.hidden:
        raise BundleError(f"the routing head in {file} reads {width} numbers, not {checkpoint.config.hidden}", hint)
    if part.calibration is not None and part.calibration.max() >= checkpoint.config.vocab:
        raise BundleError(
            f"{file} is calibrated with the token {part.calibration.max()}, and {base} has {checkpoint.config.vocab}",
            hint,
        )
    if experts and tuple(experts) != part.experts:
        raise BundleError(
            f"{file} routes to {', '.join(part.experts)}, not to {', '.join(experts)}", "name its experts in its order"
        )
