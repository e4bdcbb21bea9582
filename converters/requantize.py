"""A GGUF in another type of llama.cpp's, made by llama.cpp itself, weighted by an importance matrix if there is one."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.gguf_model import CORRUPT
from converters.llamacpp import first, library, listening
from frcli.checks.gguf import check_gguf
from frcli.errors import ModelError, UsageError

Importance = Mapping[str, NDArray[np.float32]]

_PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
# For mixtures of experts, or not a type but a note.
_OTHERS = ("MXFP4_MOE",)
_SMALLEST_ENTRY = 12  # bytes: three numbers


def type_names() -> dict[str, int]:
    """Return llama.cpp's numbers of file types by name (F32, Q4_K_M, ...), as this build has them."""
    C = library()
    names: dict[str, int] = {}
    for prefix in _PREFIXES:
        names |= {name.removeprefix(prefix): getattr(C, name) for name in dir(C) if name.startswith(prefix)}
    return {name: number for name, number in sorted(names.items(), key=lambda item: item[1]) if name not in _OTHERS}


def type_number(name: str) -> int:
    """Return llama.cpp's number of the file type of that name, in capitals or not; raises ``UsageError`` for none."""
    names = type_names()
    if name.upper() not in names:
        raise UsageError(f"unknown type {name!r}", f"choose one of {', '.join(names)}")
    return names[name.upper()]


def requantize(src: Path, out: Path, name: str, importance: Importance | None = None) -> None:
    """Write ``out``, the GGUF ``src`` in the type of that name; raises ``ModelError`` if llama.cpp cannot."""
    C = library()
    parameters = C.llama_model_quantize_default_params()
    parameters.ftype = type_number(name)
    parameters.nthread = os.cpu_count() or 1
    known = _fitting(src, importance) if importance else {}
    # Each entry keeps its name and its numbers alive as long as the call lasts.
    entries = (C.llama_model_imatrix_data * (len(known) + 1))()
    for entry, (tensor, values) in zip(entries, known.items(), strict=False):
        entry.name, entry.size = tensor.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if known:
        parameters.imatrix = entries
    with listening(C) as heard:
        code = C.llama_model_quantize(str(src).encode(), str(out).encode(), ctypes.byref(parameters))
    if code or not out.is_file():
        if any("imatrix" in text for text in heard):
            raise ModelError(f"llama.cpp makes {name} only with an importance matrix", "give one with --imatrix")
        raise ModelError(
            f"llama.cpp cannot make {name} of it{first(heard)}", "see whether the disk is full, or choose another type"
        )


def _fitting(src: Path, importance: Importance) -> Importance:
    """The entries that are for a tensor of the model; ``ModelError`` if there are none or one has another size.

    llama.cpp trusts the sizes of most entries and would read past their ends, and takes a name to end at a zero byte.
    """
    from gguf import GGUFReader

    columns = {tensor.name: int(tensor.shape[0]) for tensor in GGUFReader(src).tensors}
    known = {name: values for name, values in importance.items() if name in columns}
    if not known:
        raise ModelError("the importance matrix names no tensor of this model", "make one with this model")
    for name, values in known.items():
        if values.size != columns[name]:
            raise ModelError(
                f"the importance matrix has {values.size} values for the {columns[name]} columns of {name}",
                "make one with this model",
            )
    return known


# --------------------------------------------------------------------------------------------------- importance matrix


def read_importance(file: Path) -> dict[str, NDArray[np.float32]]:
    """Return the mean square of each column's input by tensor, float32 [columns], from what llama-imatrix wrote.

    Both of its forms are read, GGUF and the older one. Raises ``ModelError`` for another or a damaged file.
    """
    try:
        with open(file, "rb") as handle:
            modern = handle.read(4) == b"GGUF"
        if modern:
            check_gguf(file)
        found = _from_gguf(file) if modern else _from_dat(file.read_bytes())
    except ModelError as error:
        raise ModelError(error.what, "make it with llama-imatrix") from error
    except (*CORRUPT, struct.error, UnicodeError) as error:
        raise ModelError(
            f"cannot read {file} as an importance matrix: {error}", "make it with llama-imatrix"
        ) from error
    if not found:
        raise ModelError(f"{file} holds no importance matrix", "make it with llama-imatrix")
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ModelError(f"{file} has values for {name} that are not finite", "make it again with llama-imatrix")
    return found


def _from_gguf(file: Path) -> dict[str, NDArray[np.float32]]:
    from gguf import GGUFReader

    tensors = {tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in GGUFReader(file).tensors}
    found = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            tensor = name.removesuffix(".in_sum2")
            counts = np.maximum(tensors[f"{tensor}.counts"].reshape(-1, 1), 1)
            means = sums.reshape(len(counts), -1) / counts
            found[tensor] = np.ascontiguousarray(means.reshape(-1), dtype=np.float32)
    return found


def _from_dat(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Each entry is the length of a name, the name, how many texts were summed up, the number of sums, and these."""
    at = 4
    found = {}
    for _ in range(_size(data, 0, len(data) // _SMALLEST_ENTRY, "entries")):
        size = _size(data, at, len(data), "letters in a name")
        name = data[at + 4 : at + 4 + size].decode("utf-8")
        at += 4 + size
        calls = struct.unpack_from("<i", data, at)[0]
        count = _size(data, at + 4, len(data) // 4, "sums")
        values: NDArray[Any] = np.frombuffer(data, dtype="<f4", count=count, offset=at + 8)
        with np.errstate(invalid="ignore"):  # what is not finite is refused later
            found[name] = np.ascontiguousarray(values / max(calls, 1), dtype=np.float32)
        at += 8 + 4 * count
    return found


def _size(data: bytes, at: int, most: int, what: str) -> int:
    """The number at ``at``, which says how much follows; ``ValueError`` if that cannot be so."""
    size: int = struct.unpack_from("<i", data, at)[0]
    if not 0 <= size <= most:
        raise ValueError(f"{size} {what} in {len(data)} bytes")
    return size
