"""The types that llama.cpp can keep keys and values in, and how its attention reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from frcli.errors import UsageError


class KvType(NamedTuple):
    """A type's number in ggml, how many ``numbers`` a block has, and its ``bytes``."""

    id: int
    numbers: int
    bytes: int

    @property
    def quantized(self) -> bool:
        """Whether it comes in blocks, which attention can only read as values with flash attention."""
        return self.numbers > 1

    @property
    def exact(self) -> bool:
        """Whether it is float32, which attention reads as it is only without flash attention."""
        return self.bytes == 4


KV_TYPES: Mapping[str, KvType] = {
    "f32": KvType(0, 1, 4),
    "f16": KvType(1, 1, 2),
    "bf16": KvType(30, 1, 2),
    "q8_0": KvType(8, 32, 34),
    "q5_1": KvType(7, 32, 24),
    "q5_0": KvType(6, 32, 22),
    "q4_1": KvType(3, 32, 20),
    "q4_0": KvType(2, 32, 18),
    "iq4_nl": KvType(20, 32, 18),
}


# Tokens that llama.cpp computes together on a CPU, of those that one call reads. Prompts are read no slower than by 512
# (7.3 ms a token instead of 7.6; with its OpenBLAS backend 3.5 instead of 3.3), in a fourth of the memory.
_CPU_TOKENS = 128
_MOST_SCORES = 1 << 28  # bytes of scores, with which flash attention does away


def computed_together(batch: int, on_cpu: bool) -> int:
    """How many of the ``batch`` tokens of a call are computed together (llama.cpp's ``n_ubatch``)."""
    return min(batch, _CPU_TOKENS) if on_cpu else batch


def without_flash(kv_type: str, scores: int, on_cpu: bool) -> bool:
    """Whether attention goes without flash attention, and so has ``scores`` bytes of scores in memory at once.

    On a CPU llama.cpp's flash attention adds up float16 values in float16, one key after the other: behind 4,000 tokens
    a token of a model of 135M took 135 ms with it and 41 without, while a prompt was read 13 % slower without.
    """
    return KV_TYPES[kv_type].exact or (kv_type == "f16" and on_cpu and scores <= _MOST_SCORES)


class Heads(Protocol):
    """A model's shape, of which this file wants to know how long the vectors of a head are."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def key_length(self) -> int:
        """Numbers of a head's key."""

    @property
    def value_length(self) -> int:
        """Numbers of a head's value."""


def check_kv_type(kv_type: str, shapes: Iterable[Heads] = ()) -> None:
    """Raise ``UsageError`` for a type that no KV cache has, or whose blocks the heads of a model cannot fill."""
    if kv_type not in KV_TYPES:
        raise UsageError(f"kv-type is {kv_type!r}", f"it is one of {', '.join(KV_TYPES)}")
    numbers = KV_TYPES[kv_type].numbers
    for shape in shapes:
        for length in (shape.key_length, shape.value_length):
            if length % numbers:
                found = f"heads of {shape.name} have {length} numbers, no multiple of {numbers}"
                raise UsageError(f"kv-type {kv_type} is not possible: {found}", "use f16")
