"""SentencePiece models whose fields may be anything."""

from __future__ import annotations

import math
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.sentencepiece_model import read_pieces
from frcli.errors import ModelError

NUMBER = st.sampled_from([0, 1, 2, 3, 6, 7, 1 << 31, 1 << 40, (1 << 64) - 1]) | st.integers(0, 1 << 40)


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def field(number: int, value: int | float | bytes) -> bytes:
    """A field with a number, a float in four bytes, or as many bytes as there are."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


PIECE = field(1, b"a") + field(2, -1.0)
BPE = field(2, field(3, 2))


@pytest.mark.parametrize(
    "piece, match",
    [
        (field(1, 1 << 40), "text or kind is none"),
        (field(1, b"a") + field(3, 7), "kind 7"),
        (field(1, b"a") + field(3, 1 << 40), "kind 1099511627776"),
        (field(1, b"a") + field(3, b"1"), "text or kind is none"),
        (field(1, b"a") + field(2, math.nan), "score"),
        (field(1, b"a") + field(2, math.inf), "score"),
        (field(1, b"\xff"), "utf-8"),
        (field(2, 0.0), "damaged"),
    ],
)
def test_a_piece_that_is_none_is_refused(piece: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(field(1, PIECE) + field(1, piece) + BPE)
    with pytest.raises(ModelError, match=match):
        read_pieces(tmp_path / "m")


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """Models that are nearly right: fields of any number, in any form, with any value."""
    value = NUMBER | st.floats(width=32) | st.binary(max_size=8)

    def message(known: bytes) -> bytes:
        found = known if draw(st.integers(0, 7)) else b""
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            found += field(draw(st.integers(0, 4) | NUMBER.map(lambda number: number >> 4)), draw(value))
        return found if draw(st.integers(0, 9)) else draw(st.binary(max_size=12))

    data = b"".join(field(1, message(PIECE)) for _ in range(draw(st.integers(0, 3))))
    data += field(2, message(field(3, 2))) + field(3, message(field(3, 0)))
    data += field(draw(st.integers(0, 4)), draw(value)) if draw(st.integers(0, 3)) == 0 else b""
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def test_any_model_is_read_or_refused(tmp_path: Path) -> None:
    kept = []

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(data=models())
    def read(data: bytes) -> None:
        (tmp_path / "m").write_bytes(data)
        tracemalloc.start()
        try:
            pieces, _ = read_pieces(tmp_path / "m")
            kept.append(len(pieces))
            assert all(piece.kind in range(1, 7) and math.isfinite(piece.score) for piece in pieces)
        except ModelError as error:
            assert "\n" not in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 1 << 24

    read()
    assert len(kept) > 20  # else nearly all would be refused for one thing
