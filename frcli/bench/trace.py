"""Traces: every token of every fused configuration as a line of JSON, and back.

    {"configuration": "fused, draft auto", "temperature": 0, "repetition": 0, "prompt": 2, "index": 17, "window": 9,
     "token": 198, "experts": ["math"], "weights": [...], "read": 1, "proposed": 3, "drafted": false,
     "ms": {"draft": 0.1, "router": 4.2, "experts": 5.0, "fuse": 0.1, "sample": 0.0}, "wall": 9.6, "finish": null}

``index`` is the token's place in its answer, ``window`` the decoder's step that gave it (tokens of several answers may
share one), ``wall`` the token's equal share of the milliseconds of that step. Repetitions, prompts and steps are
counted from 0. The step of a token with index 0 has read a prompt.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcli.bench.measure import Measured
from frcli.bench.plan import Plan, fused_name
from frcli.bench.recording import MS, Recording, turns
from frcli.bench.spread import significant
from frcli.decode.stopwatch import PARTS
from frcli.errors import DataError, OutputError


@dataclass(frozen=True, slots=True)
class Traced:
    """What a plot needs of a line of a trace."""

    configuration: str
    repetition: int
    prompt: int
    index: int
    window: int
    experts: tuple[str, ...]
    proposed: int
    drafted: bool
    ms: dict[str, float]
    wall: float


def write_trace(path: Path, measured: Measured, plan: Plan) -> int:
    """Write all tokens and return their number; the file gets its name when it is whole.

    Raises ``OutputError`` when it cannot be written.
    """
    beside = path.with_name(f"{path.name}.part")
    count = 0
    try:
        with beside.open("w", encoding="utf-8") as file:
            for line in _lines(measured, plan):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return count


def _lines(measured: Measured, plan: Plan) -> Iterator[dict[str, Any]]:
    groups = [(fused_name(draft), t, fused) for (draft, t), fused in measured.fused.items()]
    groups += [(plan.batch_name(n), t, batch) for (n, t), batch in measured.batch.items()]
    for name, temperature, repetitions in groups:
        for repetition, recordings in enumerate(repetitions):
            window = 0
            for recording in recordings:
                for line in _recorded(recording, window):
                    window = line["window"] + 1
                    yield {"configuration": name, "temperature": temperature, "repetition": repetition, **line}


def _recorded(recording: Recording, window: int) -> Iterator[dict[str, Any]]:
    index = dict.fromkeys(recording.prompts, 0)
    events = iter(recording.events)
    for turn in turns(recording):
        for step in turn.steps:
            prompt = next(events).prompt
            yield {
                "prompt": prompt,
                "index": index[prompt],
                "window": window,
                "token": step.token,
                "experts": list(step.experts),
                "weights": None if step.weights is None else [significant(weight) for weight in step.weights],
                "read": step.read,
                "proposed": step.proposed,
                "drafted": step.drafted,
                "ms": {part: significant(MS * getattr(step.timings, part)) for part in PARTS},
                "wall": significant(MS * turn.seconds / len(turn.steps)),
                "finish": step.finish,
            }
            index[prompt] += 1
        window += 1


def read_trace(path: Path) -> list[Traced]:
    """The lines of a trace, each configuration's name followed by its temperature where that is not 0.

    Raises ``DataError`` naming the line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "give a file that --trace has written") from None
    traced = [_traced(line, f"{path}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not traced:
        raise DataError(f"{path} holds no tokens", "give a file that --trace has written")
    return traced


def _traced(line: str, where: str) -> Traced:
    try:
        row = json.loads(line)
        warm = f", temperature {row['temperature']:g}" if row["temperature"] else ""
        return Traced(
            str(row["configuration"]) + warm,
            int(row["repetition"]),
            int(row["prompt"]),
            int(row["index"]),
            int(row["window"]),
            tuple(str(name) for name in row["experts"]),
            int(row["proposed"]),
            bool(row["drafted"]),
            {part: float(row["ms"][part]) for part in PARTS},
            float(row["wall"]),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where} is no line of a trace: {error!r}", "give a file that --trace has written") from None


def by_configuration(traced: Iterable[Traced]) -> dict[str, list[Traced]]:
    """The lines by configuration, in the file's order."""
    groups: dict[str, list[Traced]] = {}
    for line in traced:
        groups.setdefault(line.configuration, []).append(line)
    return groups
