"""What ggml, the library below llama.cpp, says in plain C: which devices there are, and what a GGUF header holds.

llama-cpp-python declares none of these functions, so they are declared here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from frcli.checks.gguf import check_gguf
from frcli.errors import ModelError
from frcli.sources.llama import library

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}

# Numbers of the types of values in a GGUF header, each with the function that reads one and the C type of an array.
_INTEGERS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    7: ("bool", ctypes.c_bool),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
}
_STRING, _ARRAY = 8, 9


class _InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


_SIZE, _POINTER, _INDEX = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
_DECLARED: dict[str, tuple[list[Any], Any]] = {
    "ggml_backend_dev_count": ([], _SIZE),
    "ggml_backend_dev_get": ([_SIZE], _POINTER),
    "ggml_backend_dev_name": ([_POINTER], ctypes.c_char_p),
    "ggml_backend_dev_description": ([_POINTER], ctypes.c_char_p),
    "ggml_backend_dev_type": ([_POINTER], ctypes.c_int),
    "ggml_backend_dev_memory": ([_POINTER, ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)], None),
    "gguf_init_from_file": ([ctypes.c_char_p, _InitParams], _POINTER),
    "gguf_free": ([_POINTER], None),
    "gguf_find_key": ([_POINTER, ctypes.c_char_p], _INDEX),
    "gguf_get_kv_type": ([_POINTER, _INDEX], ctypes.c_int),
    "gguf_get_val_str": ([_POINTER, _INDEX], ctypes.c_char_p),
    "gguf_get_arr_type": ([_POINTER, _INDEX], ctypes.c_int),
    "gguf_get_arr_n": ([_POINTER, _INDEX], _SIZE),
    "gguf_get_arr_data": ([_POINTER, _INDEX], _POINTER),
    "gguf_get_n_tensors": ([_POINTER], _INDEX),
    "gguf_get_tensor_name": ([_POINTER, _INDEX], ctypes.c_char_p),
    "gguf_get_tensor_type": ([_POINTER, _INDEX], ctypes.c_int),
    "gguf_get_tensor_size": ([_POINTER, _INDEX], _SIZE),
    "gguf_get_tensor_ne": ([_POINTER, _INDEX], ctypes.POINTER(ctypes.c_int64)),
    "ggml_type_name": ([ctypes.c_int], ctypes.c_char_p),
    **{f"gguf_get_val_{name}": ([_POINTER, _INDEX], kind) for name, kind in _INTEGERS.values()},
}


@lru_cache(maxsize=1)
def _functions() -> dict[str, Any]:
    """The declared functions; ``ModelError`` when this build of llama.cpp lacks one."""
    module = library().llama_cpp
    folder = Path(getattr(module, "_base_path", Path(module.__file__).parent / "lib"))
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    libraries = [module._lib]  # on Windows a library does not pass on what it was linked with
    for name in ("ggml", "ggml-base"):
        for path in (folder / f"lib{name}{suffix}", folder / f"{name}{suffix}"):
            if path.is_file():
                libraries.append(ctypes.CDLL(str(path)))
                break
    found = {}
    for name, (arguments, result) in _DECLARED.items():
        function = next((getattr(lib, name) for lib in libraries if hasattr(lib, name)), None)
        if function is None:
            raise ModelError(f"llama.cpp lacks {name}", "install llama-cpp-python again in this environment")
        function.argtypes, function.restype = arguments, result
        found[name] = function
    return found


@dataclass(frozen=True, slots=True)
class Backend:
    """One device as ggml sees it: ``kind`` is ``cpu``, ``gpu``, ``igpu`` or ``accelerator``, sizes are in bytes."""

    name: str
    about: str
    kind: str
    free: int
    total: int


def backends() -> list[Backend]:
    """All devices that llama.cpp was built for and that are here, in its order; the processor is one of them."""
    call = _functions()
    found = []
    for index in range(call["ggml_backend_dev_count"]()):
        device = call["ggml_backend_dev_get"](index)
        free, total = _SIZE(), _SIZE()
        call["ggml_backend_dev_memory"](device, ctypes.byref(free), ctypes.byref(total))
        name, about = (
            (call[f"ggml_backend_dev_{what}"](device) or b"").decode("utf-8", "replace")
            for what in ("name", "description")
        )
        kind = _KINDS.get(call["ggml_backend_dev_type"](device), "accelerator")
        found.append(Backend(name, about, kind, free.value, total.value))
    return found


@lru_cache(maxsize=1)
def repacked_types() -> frozenset[str]:
    """The types of weights that llama.cpp lays out anew in memory of its own for this processor, beside the file.

    Its rule (``repack.cpp``) for matrices whose rows come in eights.
    """
    said = library().llama_print_system_info().decode("utf-8", "replace")
    has = {part.partition(" = ")[0].split()[-1] for part in said.split("|") if part.strip().endswith("= 1")}
    if "REPACK" not in has:
        return frozenset()
    if "AVX2" in has:
        return frozenset({"q4_0", "q4_K", "iq4_nl", "mxfp4", *({"q2_K"} if "AVX512" in has else ())})
    if has & {"DOTPROD", "MATMUL_INT8"}:
        return frozenset({"q4_0", "q4_K", "q5_K", "q6_K", "q8_0", "iq4_nl", "mxfp4"})
    return frozenset()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a GGUF file: its name, its type as ggml names it (``q4_K``), its bytes, and its size; one of several
    matrices (a mixture's experts) counts as one with the rows of all.
    """

    name: str
    type: str
    bytes: int
    columns: int
    rows: int


class Header:
    """A GGUF file's header, while :func:`open_header` is open."""

    def __init__(self, pointer: int) -> None:
        self._pointer, self._call = pointer, _functions()

    def text(self, key: str) -> str:
        """A text of the header, empty if it is not there."""
        index = self._find(key)
        if index < 0 or self._call["gguf_get_kv_type"](self._pointer, index) != _STRING:
            return ""
        return str(self._call["gguf_get_val_str"](self._pointer, index).decode("utf-8", "replace"))

    def numbers(self, key: str) -> list[int]:
        """A whole number, or an array of them, as a list; empty if it is neither."""
        index = self._find(key)
        if index < 0:
            return []
        call, pointer = self._call, self._pointer
        kind = call["gguf_get_kv_type"](pointer, index)
        if kind in _INTEGERS:
            return [int(call[f"gguf_get_val_{_INTEGERS[kind][0]}"](pointer, index))]
        if kind != _ARRAY or (inner := call["gguf_get_arr_type"](pointer, index)) not in _INTEGERS:
            return []
        size = call["gguf_get_arr_n"](pointer, index)
        place = call["gguf_get_arr_data"](pointer, index)
        return [int(value) for value in (_INTEGERS[inner][1] * size).from_address(place)] if size else []

    def length(self, key: str) -> int:
        """Number of entries of an array; 0 if there is none."""
        index = self._find(key)
        if index < 0 or self._call["gguf_get_kv_type"](self._pointer, index) != _ARRAY:
            return 0
        return int(self._call["gguf_get_arr_n"](self._pointer, index))

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, in the order of the file."""
        call, pointer = self._call, self._pointer
        for index in range(call["gguf_get_n_tensors"](pointer)):
            sizes = call["gguf_get_tensor_ne"](pointer, index)
            kind = call["gguf_get_tensor_type"](pointer, index)
            yield Tensor(
                call["gguf_get_tensor_name"](pointer, index).decode("utf-8", "replace"),
                call["ggml_type_name"](kind).decode(),
                int(call["gguf_get_tensor_size"](pointer, index)),
                int(sizes[0]),
                int(sizes[1] * sizes[2] * sizes[3]),
            )

    def _find(self, key: str) -> int:
        return int(self._call["gguf_find_key"](self._pointer, key.encode()))


@contextmanager
def open_header(path: Path) -> Iterator[Header]:
    """The header of a GGUF file; none of its weights are read. ``ModelError`` for a file that is none, or is cut."""
    check_gguf(path)
    call = _functions()
    pointer = call["gguf_init_from_file"](os.fsencode(path), _InitParams(True, None))
    if not pointer:
        raise ModelError(f"llama.cpp cannot read the header of {path}", "the file may be damaged: pull it again")
    try:
        yield Header(pointer)
    finally:
        call["gguf_free"](pointer)
