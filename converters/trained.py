"""What training a router leaves: a LoRA delta, a routing head and the names of the experts, in one safetensors file.

The file (``router.safetensors``) holds

    delta.<module>.lora_A   [r, in]               float16 or float32
    delta.<module>.lora_B   [out, r]              float16 or float32
    routing.weight          [n_experts, hidden]   float32
    prompt.weight           [n_experts, hidden]   float32, optional
    gate.weight             [1, hidden + 1]       float32, optional
    calibration             [sequences, length]   int32, optional

where ``<module>`` is a Hugging Face module path such as ``model.layers.3.self_attn.q_proj``, and in its header the
strings ``experts`` (JSON list of names, in the order of the rows of ``routing.weight``), ``scale`` (the decimal that B
A is multiplied with, lora_alpha / r) and ``base_sha256`` (the base that the delta belongs to). ``prompt.weight`` is a
head that chooses one expert for a whole answer, at the prompt's last token. ``gate.weight``, its last column a bias, is
a head whose sigmoid weighs the router's logits token by token. ``calibration`` holds token ids of texts of
the kind that the router will read; quantization to few bits minds what they need most.

Two more strings may be there: ``gamma``, the decimal exponent of the router's logits that it was trained for, and, for
a router of fewer layers than its base, ``layers``: a JSON list of those of the base that it has, from 0 and rising;
``<module>`` counts the layers that are left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.lora import Lora
from converters.output import staging
from frcli.errors import DataError, ModelError
from frcli.metadata import MOST_GAMMA, expert_names, trained_gamma

FILE_NAME = "router.safetensors"
_PREFIX, _A, _B = "delta.", ".lora_A", ".lora_B"
_ROUTING, _PROMPT, _GATE, _CALIBRATION = "routing.weight", "prompt.weight", "gate.weight", "calibration"
# Tokens that calibration may have: its time and memory grow with them, and beyond some thousands nothing is gained.
_MOST_TOKENS, _LONGEST = 1 << 15, 1 << 11


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained part of a router.

    ``delta`` maps module paths to low-rank updates; ``routing`` is float32 [n_experts, hidden] and reads the final
    hidden state after the final norm; row i belongs to ``experts[i]``, and so it is with ``prompt``, if there is one.
    ``gate`` is float32 [1, hidden + 1], the bias last; ``layers`` are the base's that the router has, None for all.
    ``calibration`` int32 [sequences, length] holds the ids of texts to quantize for, if there are any. ``gamma`` is
    what it was trained for, None where that is not known.
    """

    delta: Mapping[str, Lora]
    routing: NDArray[np.float32]
    experts: tuple[str, ...]
    base_sha256: str
    calibration: NDArray[np.int32] | None = None
    prompt: NDArray[np.float32] | None = None
    gate: NDArray[np.float32] | None = None
    layers: tuple[int, ...] | None = None
    gamma: float | None = None


def save_trained(
    path: Path,
    delta: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    routing: NDArray[Any],
    experts: Sequence[str],
    scale: float,
    base_sha256: str,
    force: bool = False,
    calibration: NDArray[np.int32] | None = None,
    prompt: NDArray[Any] | None = None,
    gate: NDArray[Any] | None = None,
    layers: Sequence[int] | None = None,
    gamma: float | None = None,
) -> None:
    """Write the trained part of a router to the file ``path``.

    ``delta`` maps a module path to (A [r, in], B [out, r]), float16 or float32; ``routing`` and ``prompt`` are
    [n_experts, hidden], ``gate`` [1, hidden + 1]; ``calibration`` is int32 [sequences, length] with at most 32768 ids
    in sequences of at most 2048. Raises ``DataError`` if a part is not like that or does not fit the others,
    ``OutputError`` if the file exists or cannot be written.
    """
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {_ROUTING: np.ascontiguousarray(routing, dtype=np.float32)}
    for module, (a, b) in delta.items():
        tensors[_PREFIX + module + _A] = np.ascontiguousarray(a)
        tensors[_PREFIX + module + _B] = np.ascontiguousarray(b)
    if prompt is not None:
        tensors[_PROMPT] = np.ascontiguousarray(prompt, dtype=np.float32)
    if gate is not None:
        tensors[_GATE] = np.ascontiguousarray(gate, dtype=np.float32)
    if calibration is not None:
        tensors[_CALIBRATION] = np.ascontiguousarray(calibration)
    metadata = {"experts": json.dumps(list(experts)), "scale": repr(float(scale)), "base_sha256": base_sha256}
    if layers is not None:
        metadata["layers"] = json.dumps(list(layers))
    if gamma is not None:
        metadata["gamma"] = repr(float(gamma))
    problem = _problem(tensors, list(experts), float(scale), None if layers is None else list(layers))
    if not problem and gamma is not None and not 0 <= gamma <= MOST_GAMMA:
        problem = f"gamma is {gamma}, not a number from 0 to {MOST_GAMMA}"
    if problem:
        raise DataError(f"a trained router cannot be saved: {problem}")
    with staging(path, force) as folder:
        (folder / path.name).write_bytes(save(tensors, metadata=metadata))


def read_trained(path: Path) -> Trained:
    """Return the trained part of a router from a file, or from the folder that holds ``router.safetensors``.

    Raises ``ModelError`` if the file is missing, corrupt or not what the module's docstring says.
    """
    from safetensors import SafetensorError, safe_open

    file = path / FILE_NAME if path.is_dir() else path
    hint = "train it again, or fetch it again if it was downloaded"
    if not file.is_file():
        raise ModelError(
            f"no trained router at {file}", "give the folder or the router.safetensors that training wrote"
        )
    try:
        with safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read {file}: {error}", hint) from error
    try:
        experts = list(expert_names(metadata["experts"], file))
        scale = float(metadata["scale"])
        base_sha256 = metadata["base_sha256"]
        layers = json.loads(metadata["layers"]) if "layers" in metadata else None
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} has no usable header entry for {error}", "it is not a trained router") from error
    gamma = trained_gamma(metadata.get("gamma"), file)
    problem = _problem(tensors, experts, scale, layers)
    if problem:
        raise ModelError(f"{file} is not a usable trained router: {problem}", hint)
    delta = {
        name[len(_PREFIX) : -len(_A)]: Lora(tensor, tensors[name[: -len(_A)] + _B], scale)
        for name, tensor in tensors.items()
        if name.endswith(_A)
    }
    prompt, gate = (tensors[name].astype(np.float32) if name in tensors else None for name in (_PROMPT, _GATE))
    routing = tensors[_ROUTING].astype(np.float32)
    kept = None if layers is None else tuple(layers)
    return Trained(delta, routing, tuple(experts), base_sha256, tensors.get(_CALIBRATION), prompt, gate, kept, gamma)


def _problem(tensors: Mapping[str, NDArray[Any]], experts: Any, scale: float, layers: Any) -> str:
    """Return what is wrong with a file's contents, or nothing."""
    if not isinstance(experts, list) or not experts or not all(isinstance(name, str) and name for name in experts):
        return "the experts are not a list of names"
    if len(set(experts)) != len(experts):
        return f"an expert is named twice in {', '.join(experts)}"
    if not math.isfinite(scale):
        return f"the scale is {scale}"
    if layers is not None and not _rises(layers):
        return f"the layers are {layers}, not numbers that rise from 0"
    routing = tensors.get(_ROUTING)
    if routing is None or routing.ndim != 2 or routing.shape[0] != len(experts):
        shape = "missing" if routing is None else f"of shape {list(routing.shape)}"
        return f"routing.weight is {shape} for {len(experts)} experts"
    if (prompt := tensors.get(_PROMPT)) is not None and prompt.shape != routing.shape:
        return f"prompt.weight is of shape {list(prompt.shape)}, and routing.weight of {list(routing.shape)}"
    if (gate := tensors.get(_GATE)) is not None and gate.shape != (1, routing.shape[1] + 1):
        return f"gate.weight is of shape {list(gate.shape)}, not [1, {routing.shape[1] + 1}]"
    for name, tensor in tensors.items():
        if name == _CALIBRATION:
            if problem := _calibration_problem(tensor):
                return problem
            continue
        if tensor.dtype not in (np.float16, np.float32):
            return f"{name} is {tensor.dtype}, not float16 or float32"
        if not np.isfinite(tensor).all():
            return f"{name} has values that are not finite"
        if name in (_ROUTING, _PROMPT, _GATE):
            continue
        if not name.startswith(_PREFIX) or not name.endswith((_A, _B)):
            return f"the tensor {name} is not known"
        stem, kind = name[: -len(_A)], name[-len(_A) :]
        other = tensors.get(stem + (_B if kind == _A else _A))
        if other is None:
            return f"{name} has no partner"
        a, b = (tensor, other) if kind == _A else (other, tensor)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            return f"{stem} has A {list(a.shape)} and B {list(b.shape)}, which do not multiply"
    return ""


def _rises(layers: Any) -> bool:
    if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
        return False
    return layers[0] >= 0 and all(one < other for one, other in zip(layers, layers[1:], strict=False))


def _calibration_problem(ids: NDArray[Any]) -> str:
    if ids.dtype != np.int32 or ids.ndim != 2:
        return f"calibration is {ids.dtype} of shape {list(ids.shape)}, not int32 [sequences, length]"
    if not ids.size or ids.size > _MOST_TOKENS or ids.shape[1] > _LONGEST:
        return (
            f"calibration has {ids.shape[0]} sequences of {ids.shape[1]} tokens, "
            f"and may have up to {_MOST_TOKENS} tokens in sequences of up to {_LONGEST}"
        )
    if ids.min() < 0:
        return f"calibration holds the token {ids.min()}"
    return ""
