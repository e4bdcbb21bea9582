"""The head of a GGUF file, read with every size compared with what is there.

llama.cpp checks much of a file itself, but some of what it finds ends the process (an assertion), and gguf's reader
follows any count that a file claims. What passes here, both can be given. Only the head is read, through a mapping;
the weights are numbers, and any will do.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from frcli.errors import ModelError

# Types of values by number, as struct names them, little-endian.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
UINT32, INT32, FLOAT32 = 4, 5, 6
# Numbers in a block and its bytes, by the type of tensor: ggml's formats of weights.
_FLOATS = {0: (1, 4), 1: (1, 2), 30: (1, 2)}
_BLOCKS = _FLOATS | {
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110), 12: (256, 144),
    13: (256, 176), 14: (256, 210), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
_LONGEST_NAME = 63  # of a tensor; ggml keeps 64 bytes
_LONGEST_KEY = 1 << 16
_MOST_LAYERS, _MOST_EXPERTS = 512, 1024  # llama.cpp's own bounds
_MOST_HEADS, _WIDEST = 1 << 16, 1 << 24
_HINT = "it is damaged or no GGUF file: fetch it again"


@dataclass(frozen=True, slots=True)
class Items:
    """An array of the file: the type and the number of its elements, and where they are."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file: its shape (the columns first), its type by ggml's number, and where its data begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(slots=True)
class Head:
    """What a GGUF file says of itself: values by key (arrays as :class:`Items`), their types, and its tensors."""

    fields: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter."""
        return bool(self.fields.get("general.type") == "adapter")


class _Broken(Exception):
    """What is wrong with a file."""


def check_gguf(path: Path, *, adapter: bool | None = None) -> Head:
    """Return the head of a GGUF file that llama.cpp and gguf's reader can be given: as a LoRA ``adapter`` or as a model
    (None: to read its values only).

    Raises ``ModelError`` for a file that is missing, is no GGUF, is cut short, says what would end or hang the process,
    or says that it is something else.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", "give the name of a GGUF file") from error
    head = _checked(path, found.st_size, found.st_mtime_ns)
    # What it says that it is decides what of it was looked at.
    if adapter is not None and (kind := head.fields.get("general.type", "model")) != (
        "adapter" if adapter else "model"
    ):
        raise ModelError(f"{path} says that it is {kind!r}", f"give a {'LoRA adapter' if adapter else 'model'}")
    return head


@lru_cache(maxsize=4)  # a file is looked at when its memory is planned, and again when it is loaded
def _checked(path: Path, _size: int, _changed: int) -> Head:
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file", "give a GGUF, or fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data)
                head = reader.head()
                if head.fields.get("general.type", "model") == "model":
                    _check_vocabulary(head, reader)
                    _check_shape(head)
                elif head.is_adapter:
                    _check_adapter(head)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", "give the name of a GGUF file") from error
    except struct.error:
        raise ModelError(f"cannot read {path} as GGUF: it ends too soon", _HINT) from None
    except (_Broken, ValueError, OverflowError) as error:
        raise ModelError(f"cannot read {path} as GGUF: {error}", _HINT) from error
    return head


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.size = data, 4, len(data)

    def head(self) -> Head:
        version = self._number("I")
        if version not in (2, 3):
            raise _Broken(f"version {version} is not known")
        tensors, fields = self._number("Q"), self._number("Q")
        # A value takes at least 13 bytes, a tensor 24: no more can be there.
        if fields > self.size // 13 or tensors > self.size // 24:
            raise _Broken(f"{fields} values and {tensors} tensors are not in {self.size} bytes")
        head = Head()
        for _ in range(fields):
            self._field(head)
        for _ in range(tensors):
            self._tensor(head)
        self._check_places(head)
        return head

    def _field(self, head: Head) -> None:
        key = self._text(_LONGEST_KEY)
        if not key or key in head.fields:
            raise _Broken(f"the key {key[:60]!r} is there twice or empty")
        kind = self._number("I")
        head.kinds[key] = kind
        if kind == _STRING:
            head.fields[key] = self._bytes().decode("utf-8", "replace")
        elif kind == _ARRAY:
            head.fields[key] = self._items(key)
        elif kind in _SCALARS:
            head.fields[key] = self._number(_SCALARS[kind])
        else:
            raise _Broken(f"{key[:60]!r} is of the unknown type {kind}")

    def _items(self, key: str) -> Items:
        kind, count = self._number("I"), self._number("Q")
        start = self.at
        if kind == _STRING:
            if count > (self.size - self.at) // 8:
                raise _Broken(f"{key[:60]!r} claims {count} texts")
            self._skip_strings(count)
        elif kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            if count > (self.size - self.at) // width:
                raise _Broken(f"{key[:60]!r} claims {count} numbers")
            self.at += count * width
        else:
            raise _Broken(f"{key[:60]!r} is an array of the type {kind}")
        return Items(kind, count, start)

    def _skip_strings(self, count: int) -> None:
        data, at, size, read = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + read(data, at)[0]
            if at > size:
                raise _Broken("a text goes beyond the end of the file")
        self.at = at

    def strings(self, items: Items) -> list[bytes]:
        """The texts of an array that was read before."""
        data, at, read = self.data, items.start, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(items.count):
            end = at + 8 + read(data, at)[0]
            found.append(data[at + 8 : end])
            at = end
        return found

    def _tensor(self, head: Head) -> None:
        name = self._text(_LONGEST_NAME)
        if not name or name in head.tensors:
            raise _Broken(f"the tensor {name!r} is there twice or has no name")
        dimensions = self._number("I")
        if not 1 <= dimensions <= 4:
            raise _Broken(f"{name} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        head.tensors[name] = Tensor(shape, self._number("I"), self._number("Q"))

    def _check_places(self, head: Head) -> None:
        alignment = head.fields.get("general.alignment", 32)
        if head.kinds.get("general.alignment", UINT32) != UINT32 or alignment not in {1 << n for n in range(3, 21)}:
            raise _Broken(f"its alignment is {alignment}")
        start = -(-self.at // alignment) * alignment
        behind = 0
        for name, tensor in head.tensors.items():
            if tensor.kind not in _BLOCKS:
                raise _Broken(f"{name} is of the type {tensor.kind}, which is none of weights")
            block, width = _BLOCKS[tensor.kind]
            count = math.prod(tensor.shape)
            if min(tensor.shape) < 1 or tensor.shape[0] % block:
                raise _Broken(f"{name} has the shape {list(tensor.shape)} in blocks of {block}")
            size = count // block * width
            if tensor.offset != behind or start + tensor.offset + size > self.size:
                raise _Broken(f"the data of {name} are not in the file: it may be cut short")
            behind = -(-(tensor.offset + size) // alignment) * alignment

    def _text(self, longest: int) -> str:
        return self._bytes(longest).decode("utf-8")

    def _bytes(self, longest: int | None = None) -> bytes:
        length = self._number("Q")
        if length > self.size - self.at or (longest is not None and length > longest):
            raise _Broken(f"a text of {length} bytes")
        self.at += length
        return self.data[self.at - length : self.at]

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(form)
        return value


# ----------------------------------------------------------------------------- what llama.cpp answers with an assertion


def _check_vocabulary(head: Head, reader: _Reader) -> None:
    fields = head.fields
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    if not isinstance(tokens, Items) or tokens.kind != _STRING:
        raise _Broken("its tokens are no texts")
    for key, kinds in (("token_type", (UINT32, INT32)), ("scores", (FLOAT32,))):
        items = fields.get(f"tokenizer.ggml.{key}")
        if items is not None and not (isinstance(items, Items) and items.kind in kinds and items.count == tokens.count):
            raise _Broken(f"tokenizer.ggml.{key} is not one number for each of {tokens.count} tokens")
    texts = reader.strings(tokens)
    if len({text or b"[EMPTY_%d]" % number for number, text in enumerate(texts)}) < len(texts):
        raise _Broken("two of its tokens have the same text")
    if fields.get("tokenizer.ggml.model") == "llama":
        known = set(texts)
        for byte in range(256):  # llama.cpp looks for one or the other when it has no token for a character
            if b"<0x%02X>" % byte not in known and bytes([byte]) not in known:
                raise _Broken(f"its vocabulary has no token <0x{byte:02X}>, in which other characters are written")
    merges = fields.get("tokenizer.ggml.merges")
    if merges is not None and not (isinstance(merges, Items) and merges.kind == _STRING):
        raise _Broken("its merges are no texts")
    for role in ("bos", "eos"):
        token = fields.get(f"tokenizer.ggml.{role}_token_id")
        if fields.get(f"tokenizer.ggml.add_{role}_token") is True and not (
            token is None or (isinstance(token, int) and 0 <= token < tokens.count)
        ):
            raise _Broken(f"it adds {role}, which is the token {token} of {tokens.count}")


def _check_shape(head: Head) -> None:
    family = head.fields.get("general.architecture")
    if not isinstance(family, str):
        raise _Broken("it does not name its architecture")
    own = {key.removeprefix(f"{family}."): value for key, value in head.fields.items() if key.startswith(f"{family}.")}
    for key, low, high in (
        ("block_count", 1, _MOST_LAYERS),
        ("nextn_predict_layers", 0, own.get("block_count", 0)),
        ("embedding_length", 1, _WIDEST),
        ("attention.key_length", 1, _MOST_HEADS),
        ("attention.value_length", 1, _MOST_HEADS),
        ("expert_count", 0, _MOST_EXPERTS),
    ):
        value = own.get(key)
        if value is not None and not (isinstance(value, int) and low <= value <= high):
            raise _Broken(f"its {key} is {_shown(value)}")
    _check_heads(own)
    _check_experts(own)
    for key, value in own.items():
        if isinstance(value, float) and not (math.isfinite(value) and (value >= 0 or not key.endswith("epsilon"))):
            raise _Broken(f"its {key} is {value}")
    scaling = own.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise _Broken(f"its rope.scaling.type is {_shown(scaling)}")
    for name, tensor in head.tensors.items():
        if len(tensor.shape) == 1 and tensor.kind != 0:
            raise _Broken(f"{name} is a vector and not in F32")


def _check_heads(own: Mapping[str, Any]) -> None:
    heads, kv_heads = own.get("attention.head_count"), own.get("attention.head_count_kv")
    for key, value in (("attention.head_count", heads), ("attention.head_count_kv", kv_heads)):
        # A number for each layer is checked by llama.cpp, which then finds other shapes of tensors.
        if value is not None and not isinstance(value, Items) and not (_is_count(value) and value <= _MOST_HEADS):
            raise _Broken(f"its {key} is {_shown(value)}")
    if not isinstance(heads, int):
        return
    if isinstance(kv_heads, int) and kv_heads and heads % kv_heads:
        raise _Broken(f"{heads} heads cannot share {kv_heads} key heads")
    width = own.get("attention.key_length") or (own.get("embedding_length", 0) // heads if heads else 0)
    rotated = own.get("rope.dimension_count", width)
    if not (_is_count(rotated) and rotated <= width and rotated % 2 == 0):
        raise _Broken(f"it rotates {_shown(rotated)} dimensions of {width}")


def _check_experts(own: Mapping[str, Any]) -> None:
    experts, groups = own.get("expert_count", 0), own.get("expert_group_count", 0)
    used = own.get("expert_used_count", 0)
    if isinstance(used, Items):  # a number for each layer, which nothing here runs
        raise _Broken("it uses another number of experts in each layer")
    sound = used == groups == 0 if not experts else 0 < used <= experts and 0 <= groups < experts
    if sound and groups > 1:
        sound = experts % groups == 0 and 0 < own.get("expert_group_used_count", 0) < groups
    if not sound:
        raise _Broken(f"it uses {used} of {experts} experts in {groups} groups")


def _check_adapter(head: Head) -> None:
    kinds = {"general.architecture": _STRING, "adapter.type": _STRING, "adapter.lora.alpha": FLOAT32}
    for key, kind in kinds.items():
        if head.kinds.get(key, kind) != kind:
            raise _Broken(f"its {key} is of the type {head.kinds[key]}")
    if not math.isfinite(head.fields.get("adapter.lora.alpha", 0.0)):
        raise _Broken("its alpha is not finite")
    for name, tensor in head.tensors.items():
        if name.endswith((".lora_a", ".lora_b")) and len(tensor.shape) != 2:
            raise _Broken(f"{name} is not a matrix")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _shown(value: Any) -> str:
    return repr(value)[:60]
