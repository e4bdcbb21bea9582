"""Kills real runs of a converter: run as ``python kills.py KIND FOLDER SEED TIMES``, which prints JSON.

Each run is a process of its own that sends itself SIGKILL at a call (of Python or C) that was drawn beforehand, so it
dies at a random moment of its work, and at the same one every time. What it left under the result's name is compared
with what was there before and with what a whole run writes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import vocabularies

KINDS = ("expert-f16", "expert-q8_0", "adapter", "router")
OLD = b"what was there before"


def converter(kind: str, folder: Path) -> Callable[[Path], object]:
    """Write what the converter reads, and return what writes its result, the old one being replaced."""
    from converters.adapter import convert_adapter
    from converters.expert import convert_expert
    from converters.router import convert_router

    if kind.startswith("expert"):
        source = vocabularies.write_plain_tokenizer(tiny.write_safetensors(folder / "model"))
        quant = kind.partition("-")[2]
        return lambda out: convert_expert(source, out, quant, force=True, verify=False)
    base = tiny.write_gguf(folder / "base.gguf")
    if kind == "adapter":
        peft = tiny.write_peft(folder / "peft")
        return lambda out: convert_adapter(peft, base, out, force=True, verify=False)
    trained = tiny.write_trained(folder / "router.safetensors")
    return lambda out: convert_router(base, out, trained, precision="int8", context=64, force=True, verify=False)


def run(convert: Callable[[Path], object], out: Path, last: int) -> int:
    """Convert in a child that dies at the call of the number ``last``; its calls if it comes to its end, else 0."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        calls = 0

        def count(frame: Any, event: str, arg: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        convert(out)
        sys.setprofile(None)
        os.write(sink, str(calls).encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return int(told or 0)


def main(kind: str, folder: Path, seed: int, times: int) -> dict[str, Any]:
    convert = converter(kind, folder)
    place = folder / "results"
    place.mkdir()
    out = place / "result"
    total = run(convert, out, 0)
    whole = out.read_bytes()
    random = np.random.default_rng(seed)
    found = {"calls": total, "killed": 0, "old": 0, "whole": 0, "none": 0, "half": 0}
    # The last hundred calls, where the result gets its name, are drawn as often as all the others.
    moments = [int(random.integers(1, total)) if n % 2 else total - int(random.integers(1, 100)) for n in range(times)]
    for number, last in enumerate(moments):
        out.unlink(missing_ok=True)
        if number % 3:
            out.write_bytes(OLD)
        found["killed"] += run(convert, out, last) == 0
        left = out.read_bytes() if out.exists() else None
        found["none" if left is None else {OLD: "old", whole: "whole"}.get(left, "half")] += 1
        if left is None and number % 3:
            found["half"] += 1  # the old one is gone and no new one is there
    found["visible"] = len([path for path in place.iterdir() if not path.name.startswith(".") and path != out])
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
