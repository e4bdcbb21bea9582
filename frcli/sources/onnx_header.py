"""What an ONNX file says of itself, read without its graph, which may have gigabytes.

An ONNX file is a protobuf message: fields one after the other, each a varint that holds its number and kind, and what
belongs to it. All but the metadata are passed over by their lengths.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from frcli.errors import ModelError

_METADATA = 14  # ModelProto.metadata_props
_KEY, _VALUE = 1, 2  # of a StringStringEntryProto
_NUMBER, _BYTES = 0, 2  # kinds of fields


def onnx_metadata(path: Path) -> dict[str, str]:
    """The texts that the file's maker has put beside the graph, by key.

    Raises ``ModelError`` when the file cannot be read or is no ONNX file.
    """
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for entry in _fields(file, path.stat().st_size, _METADATA):
                texts = [next(_fields(io.BytesIO(entry), len(entry), each), b"").decode() for each in (_KEY, _VALUE)]
                found[texts[0]] = texts[1]
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", "pull the bundle again") from None
    except ValueError:
        raise ModelError(f"{path} is not an ONNX file", "make it again with frcli models pull") from None
    return found


def _fields(file: BinaryIO, size: int, wanted: int) -> Iterator[bytes]:
    """The contents of every field ``wanted`` of a message that ends at ``size``; ``ValueError`` if it is none."""
    while file.tell() < size:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == _NUMBER:
            _varint(file)
            continue
        if kind != _BYTES:
            raise ValueError(f"a field of kind {kind}")
        length = _varint(file)
        if length > size - file.tell():
            raise ValueError("a field that is longer than the file")
        if number == wanted:
            yield file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number without an end")
