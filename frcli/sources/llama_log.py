"""What llama.cpp logs of the memory that it takes; with a simulated model, of what it would take."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.needs import Running

MIB = 1 << 20
_BUFFER = re.compile(r"(\S+) +(KV|compute|output) buffer size = +([\d.]+) MiB")
_KV_SIZE = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB")


@contextmanager
def listening() -> Iterator[dict[str, int]]:
    """Bytes by kind of buffer (``KV``, ``compute``, ``output``) that llama.cpp has logged when this is closed, and
    ``kept`` for the size that it says of its KV caches, which is right in simulations, too.

    A compute buffer is told again whenever it is made anew, so the last word on each device counts; a model may have
    several KV caches on one device.
    """
    sizes: dict[str, int] = {}
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, listener = logging.getLogger("frcli.llama"), Listener()
    level, propagate = log.level, log.propagate
    log.addHandler(listener)
    log.propagate = propagate and log.isEnabledFor(logging.DEBUG)  # nobody else has asked for these messages
    log.setLevel(logging.DEBUG)
    try:
        yield sizes
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
        log.propagate = propagate
        sizes |= buffers(lines)


def buffers(lines: Iterable[str]) -> dict[str, int]:
    """Bytes by kind of buffer, from what llama.cpp logs while a context is made and used."""
    last: dict[tuple[str, str], int] = {}
    for line in lines:
        if found := _BUFFER.search(line):
            device, kind, size = found.groups()
            before = last.get((device, kind), 0) if kind == "KV" else 0
            last[device, kind] = before + int(float(size) * MIB)
        elif found := _KV_SIZE.search(line):
            last["", "kept"] = last.get(("", "kept"), 0) + int(float(found[1]) * MIB)
    total: dict[str, int] = {}
    for (_, kind), size in last.items():
        total[kind] = total.get(kind, 0) + size
    return total


def simulate(path: Path, running: Running) -> dict[str, int]:
    """What llama.cpp itself says that one context of the model takes, in bytes: ``weights``, ``kv`` and ``compute``
    (its output buffer included). No weights are read; it takes a few tenths of a second.

    Raises ``ModelError`` for a file that cannot be loaded, or a context that cannot be made.
    """
    model = LlamaModel(path, simulated=True)
    try:
        with listening() as said:
            LlamaSource(
                model,
                context=running.context,
                sequences=running.sequences,
                max_rows=running.rows,
                kv_type=running.kv_type,
            ).close()
        return {
            "weights": model.weight_bytes,
            "kv": said.get("kept", 0),
            "compute": said.get("compute", 0) + said.get("output", 0),
        }
    finally:
        model.close()
