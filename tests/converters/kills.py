"""Kills real runs of a converter: run as ``python kills.py KIND FOLDER SEED TIMES``, which prints JSON.

Each run is a process of its own that sends itself SIGKILL at a call (of Python or C) that was drawn beforehand, or just
before or after a file gets its name, so it dies at a random moment of its work, and at about the same one every time.
What it left under the result's name, with what the result names itself, is compared with what was there before and with
what a whole run writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import vocabularies

KINDS = ("expert-f16", "expert-q8_0", "adapter", "router", "router-split")
SPLIT = "router-split"
OLD = b"what was there before"
# What the child counts: calls of Python and C, and renames. A call is told of before it is made.
CALLS, BEGUN, DONE = "calls", "renames begun", "renames done"
Moment = tuple[str, int]
Files = dict[str, bytes | None]  # by name, None for one that is missing


def converter(kind: str, folder: Path, seed: int = 0) -> Callable[[Path], object]:
    """Write what the converter reads, and return what writes its result, the old one being replaced."""
    from converters.adapter import convert_adapter
    from converters.expert import convert_expert
    from converters.router import convert_router

    if kind.startswith("expert"):
        source = vocabularies.write_plain_tokenizer(tiny.write_safetensors(folder / "model"))
        quant = kind.partition("-")[2]
        return lambda out: convert_expert(source, out, quant, force=True, verify=False)
    base = tiny.write_gguf(folder / f"base-{seed}.gguf", seed=seed)
    if kind == "adapter":
        peft = tiny.write_peft(folder / "peft")
        return lambda out: convert_adapter(peft, base, out, force=True, verify=False)
    trained = tiny.write_trained(folder / f"router-{seed}.safetensors", seed=seed)
    largest = 1000 if kind == SPLIT else 1 << 30
    return lambda out: convert_router(
        base, out, trained, precision="int8", context=64, force=True, verify=False, largest=largest
    )


def run(convert: Callable[[Path], object], out: Path, moment: Moment | None = None) -> dict[str, int]:
    """Convert in a child that dies at the moment; what it has counted if it comes to its end."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        counts = dict.fromkeys((CALLS, BEGUN, DONE), 0)

        def count(frame: Any, event: str, arg: Any) -> None:
            counts[CALLS] += event in ("call", "c_call")
            if arg is os.replace:
                counts[BEGUN] += event == "c_call"
                counts[DONE] += event == "c_return"
            if moment and counts[moment[0]] == moment[1]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        convert(out)
        sys.setprofile(None)
        os.write(sink, json.dumps(counts).encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told or "{}")  # type: ignore[no-any-return]


def files(place: Path) -> Files:
    """Return what a user sees in the folder."""
    return {path.name: path.read_bytes() for path in place.iterdir() if not path.name.startswith(".")}


def result(out: Path, kind: str) -> Files:
    """Return the result as a user reads it: the file, and those that it names as its parts."""
    if not out.exists():
        return {}
    found: Files = {out.name: out.read_bytes()}
    if kind == SPLIT:
        import onnx

        weights = onnx.load(out, load_external_data=False).graph.initializer
        for name in {entry.value for each in weights for entry in each.external_data if entry.key == "location"}:
            part = out.with_name(name)
            found[name] = part.read_bytes() if part.exists() else None
    return found


def main(kind: str, folder: Path, seed: int, times: int) -> dict[str, Any]:
    place = folder / "results"
    place.mkdir()
    out = place / "result"
    if kind == SPLIT:
        converter(kind, folder, seed=1)(out)
    else:
        out.write_bytes(OLD)
    old = files(place)
    convert = converter(kind, folder)
    counts = run(convert, out)
    whole = files(place)
    random = np.random.default_rng(seed)
    found = {"old": 0, "whole": 0, "none": 0, "half": 0, "killed": 0, **counts}
    # The last hundred calls, where the result gets its name, are drawn as often as all the others; the number of all
    # differs by a few from run to run.
    last = counts[CALLS] - 50
    moments = [(CALLS, int(random.integers(1, last) if n % 2 else last - random.integers(100))) for n in range(times)]
    moments += [(what, number) for number in range(1, counts[DONE] + 1) for what in (BEGUN, DONE)]
    found["tried"] = len(moments)
    for number, moment in enumerate(moments):
        replaces = number >= times or number % 3 > 0
        shutil.rmtree(place)  # with what the last one left, which would take calls of its own to look at
        place.mkdir()
        if replaces:
            for name, data in old.items():
                (place / name).write_bytes(data or b"")
        found["killed"] += not run(convert, out, moment)
        left = result(out, kind)
        state = "old" if left == old else "whole" if left == whole else "half" if left or replaces else "none"
        found[state] += 1
    convert(out)
    found["visible"] = len(files(place).keys() ^ whole.keys())  # too many or too few
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
