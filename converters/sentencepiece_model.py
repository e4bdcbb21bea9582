"""A SentencePiece model's pieces, read from its tokenizer.model.

The file is one protocol buffer, of which three things are needed: the pieces with their scores and kinds, the kind of
model, and whether a space is put before the text. That little is read here, so that no further package is needed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcli.checks.protobuf import fields
from frcli.errors import ModelError

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_MODEL_TYPE, _BPE = 3, 2  # of the trainer's settings; 1 is a unigram model, which is the default
_ADD_DUMMY_PREFIX = 3  # of the normalizer's settings


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece's text, its score (the higher, the sooner it is merged), and its kind, by the number that llama.cpp has
    for it, too: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    """

    text: str
    score: float
    kind: int


def read_pieces(file: Path) -> tuple[list[Piece], bool]:
    """Return the pieces by id, and whether a space is put before the text.

    Raises ``ModelError`` for a file that is damaged, or a model that is not BPE.
    """
    try:
        data = file.read_bytes()
        pieces, prefix = [], True
        kind: Any = 1
        value: Any
        for field, value in fields(data):
            if field == _PIECE:
                pieces.append(_piece(value))
            elif field == _TRAINER:
                kind = dict(fields(value)).get(_MODEL_TYPE, 1)
            elif field == _NORMALIZER:
                prefix = bool(dict(fields(value)).get(_ADD_DUMMY_PREFIX, 1))
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise ModelError(f"cannot read {file}: {error}", "it is damaged: fetch it again") from error
    if not pieces:
        raise ModelError(f"{file} holds no SentencePiece model", "it is damaged: fetch it again")
    if kind != _BPE:
        raise ModelError(f"{file} is not a BPE model", "the families that can be converted all have one")
    return pieces, prefix


def _piece(data: Any) -> Piece:
    parts: dict[int, Any] = dict(fields(data))
    text, kind = parts[1], parts.get(3, 1)
    if isinstance(text, int) or not isinstance(kind, int):  # bytes() of a number is as many zeros
        raise ValueError("a piece whose text or kind is none")
    if not 1 <= kind <= 6:
        raise ValueError(f"a piece of the kind {kind}")
    score = struct.unpack("<f", parts.get(2, bytes(4)))[0]
    if not math.isfinite(score):
        raise ValueError(f"a piece with the score {score}")
    return Piece(bytes(text).decode("utf-8"), score, kind)
