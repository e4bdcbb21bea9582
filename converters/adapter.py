"""PEFT LoRA adapter -> GGUF LoRA adapter, which llama.cpp applies to its base without merging."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import open_checkpoint
from converters.decoder import Checkpoint
from converters.gguf_model import gguf_name, interleave, interleaved_heads
from converters.llamacpp import LlamaRunner
from converters.lora import Lora, check_fit, in_parts, merge, read_peft
from converters.output import refuse_existing, staging
from converters.parity import Parity, check_window, measure
from converters.reference import ReferenceRunner
from frcli.errors import ModelError, UsageError

DTYPES = {"f16": np.float16, "f32": np.float32}
# Mean KL in nats above which a result is taken for broken: llama.cpp rounds activations to 8 bits for a quantized base,
# and that alone costs a few thousandths of a nat.
_LIMIT = 0.1


def convert_adapter(
    src: Path, base: Path, out: Path, dtype: str = "f16", force: bool = False, *, verify: bool = True
) -> Parity | None:
    """Write the GGUF adapter ``out`` made of the PEFT folder ``src``, and return how well llama.cpp agrees.

    ``base`` is the GGUF of the model that the adapter was trained on; ``dtype`` is "f16" or "f32". With ``verify`` the
    source is evaluated by :mod:`converters.reference`; without it the result is None. Raises ``ModelError`` for files
    that cannot be read or do not fit, ``UsageError`` for another dtype, ``MissingExtra`` without llama-cpp-python,
    ``OutputError`` if the result exists or cannot be written.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown precision {dtype!r}", f"choose one of {', '.join(DTYPES)}")
    refuse_existing(out, force)
    if base.is_dir():
        raise UsageError(f"{base} is a folder, and llama.cpp needs a GGUF", "give the GGUF file of the base")
    updates = read_peft(src)
    checkpoint = open_checkpoint(base)
    parts = in_parts(checkpoint.config, updates)
    check_fit(checkpoint, parts)
    with staging(out, force) as folder:
        _write(folder / out.name, checkpoint, updates, DTYPES[dtype])
        if not verify:
            return None
        return _check(base, folder / out.name, merge(checkpoint, parts)).require(
            _LIMIT, f"the adapter converted from {src}"
        )


def _check(base: Path, adapter: Path, source: Checkpoint) -> Parity:
    window = check_window(base, source.config.vocab, min(320, source.config.context))
    result = LlamaRunner(base, adapter)
    try:
        return measure(ReferenceRunner(source), result, [window])
    finally:
        result.close()


def _write(path: Path, checkpoint: Checkpoint, updates: Mapping[str, Lora], dtype: Any) -> None:
    import gguf

    # llama.cpp multiplies each pair by alpha / rank, with one alpha for the whole file. If all modules agree on it the
    # matrices stay as they were trained; otherwise alpha is 0, which stands for a factor of 1, and every B carries its
    # own scale.
    alphas = {round(update.scale * update.a.shape[0], 6) for update in updates.values()}
    common = len(alphas) == 1 and 0.0 not in alphas
    writer = gguf.GGUFWriter(path, checkpoint.config.family)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alphas.pop() if common else 0.0)
    heads = interleaved_heads(checkpoint.config)
    size = 0
    for module, update in updates.items():
        name = gguf_name(module, checkpoint.config.family)
        if name is None or (module == "lm_head" and checkpoint.config.tied):
            raise ModelError(f"llama.cpp has no place for an update of {module}", "train the adapter without it")
        b = update.b if common else update.b * np.float32(update.scale)
        rotated = heads.get(module.split(".", 3)[-1])
        if rotated:
            b = interleave(b, rotated)
        for kind, matrix in (("a", update.a), ("b", b)):
            stored = _rounded(matrix, dtype, module)
            writer.add_tensor(f"{name}.weight.lora_{kind}", stored)
            size += stored.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # numpy does not report that its last buffer found no room on the disk.
    if path.stat().st_size < size:
        raise OSError(None, "not all bytes arrived there")


def _rounded(matrix: NDArray[np.float32], dtype: Any, module: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(matrix, dtype=dtype)
    if not np.isfinite(rounded).all():
        raise ModelError(
            f"the update of {module} has values that {np.dtype(dtype).name} cannot hold", "convert it to f32"
        )
    return rounded
