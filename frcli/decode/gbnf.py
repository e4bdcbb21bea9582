"""Pieces of GBNF, llama.cpp's language of grammars: alternatives, repetitions, ranges of numbers as written."""

from __future__ import annotations

from collections.abc import Sequence

DIGITS = 15  # of a number without an upper bound, and behind a point: what a double holds


def literal(text: str) -> str:
    """The characters of ``text`` themselves."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def either(parts: Sequence[str]) -> str:
    """One of the ``parts``, of which there is at least one."""
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def repeat(item: str, least: int, most: int | None) -> str:
    """``least`` to ``most`` of an item; None: without end."""
    return "" if most == 0 else f"{item}{{{least},{'' if most is None else most}}}"


def naturals(low: int, high: int | None) -> str:
    """Whole numbers from ``low`` (0 or more) to ``high``, written without zeros in front."""
    parts = []
    if high is None:
        digits = len(str(low))
        high = 10**digits - 1
        if digits < DIGITS:
            parts.append(f"[1-9] [0-9]{{{digits},{DIGITS - 1}}}")
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        parts.append(_same_length(str(first), str(min(high, 10**digits - 1))))
    return either(parts)


def _same_length(low: str, high: str) -> str:
    """Digits from ``low`` to ``high``, which are as long."""
    if low == high:
        return f'"{low}"'
    rest = len(low) - 1
    if not rest:
        return f"[{low}-{high}]"
    any_rest = f"[0-9]{{{rest}}}"
    first, last = int(low[0]), int(high[0])
    parts = []
    if low[1:] != "0" * rest:
        parts.append(f'"{first}" {_same_length(low[1:], high[1:] if first == last else "9" * rest)}')
        first += 1
    if first <= last and high[1:] != "9" * rest:
        if first < last:
            parts.append(f"[{first}-{last - 1}] {any_rest}")
        parts.append(f'"{last}" {_same_length("0" * rest, high[1:])}')
    elif first <= last:
        parts.append(f"[{first}-{last}] {any_rest}")
    return either(parts)


def magnitudes(low: int, high: float | None, low_open: bool, high_open: bool) -> list[str]:
    """Numbers without a sign from ``low`` to ``high``; an open end is not among them."""
    top = None if high is None else int(high)
    parts = []
    if low_open and (top is None or low < top):
        parts.append(f'"{low}." [0-9]{{0,{DIGITS - 1}}} [1-9]')
    start = low + 1 if low_open else low
    if top is None or start < top:
        whole = naturals(start, None if top is None else top - 1)
        parts.append(f'{whole} ("." [0-9]{{1,{DIGITS}}})?')
    if top is not None and not high_open and top >= start:
        parts.append(f'"{top}"')
    return parts
