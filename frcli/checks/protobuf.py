"""Protocol buffers, read field by field without a schema and without copying."""

from __future__ import annotations

from collections.abc import Iterator

Buffer = bytes | memoryview

_LONGEST = 10  # bytes of a varint


def fields(data: Buffer) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field of a message: an int, or 4, 8 or as many bytes as it says.

    Raises ``ValueError`` for what is no message.
    """
    view = memoryview(data)
    at, size = 0, len(view)
    while at < size:
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, at = _varint(view, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if at + length > size:
            raise ValueError("it ends too soon")
        yield tag >> 3, view[at : at + length]
        at += length


def numbers(value: int | memoryview) -> list[int]:
    """Return the integers of a repeated field, one or packed, as unsigned numbers of 64 bits."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST):
        if at + index >= len(view):
            raise ValueError("it ends too soon")
        byte = view[at + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, at + index + 1
    raise ValueError("a number of more than 64 bits")
