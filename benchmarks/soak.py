"""A day's worth of turns in one chat: whether memory grows, and whether the conversation is what the commands say.

    python benchmarks/soak.py --turns 100000 --seed 1 -o soak.json

A tiny bundle is made and opened once, and the chat itself (its loop, its session, its files, its drawing, on a
terminal that a thread empties) is driven by a script that is drawn from the seed: messages, /regen, /edit, /undo,
/push and /pop, /clear, /save and /load, /set, /system, /ban and /force, /trace, what shows something, Ctrl-C before and
in an answer. The context is small, so that it overflows all the time.

After each line the conversation and its file are compared with what the line must have made of them; the first that
differs ends the run. Memory that no file backs is looked at once the first tenth is over and at the end: ``growth`` is
the share that came in between, which must stay below 0.05, and neither may files be left open.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chat_script import Script, Watched, Wrong

from frcli.chat.session import Session
from frcli.chat.store import Store
from frcli.config import Settings
from frcli.files import save

if TYPE_CHECKING:
    from frcli.bundle import Bundle

CONTEXT = 192
MOST_GROWTH = 0.05


@contextmanager
def _terminal() -> Iterator[None]:
    """Put standard output and error on a terminal that a thread empties."""
    master, slave = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed
            while os.read(master, 1 << 16):
                pass

    reader = threading.Thread(target=drain)
    reader.start()
    kept = sys.stdout, sys.stderr
    try:
        with open(slave, "w", encoding="utf-8") as screen:
            sys.stdout = sys.stderr = screen
            yield
    finally:
        sys.stdout, sys.stderr = kept
        reader.join()
        os.close(master)


def _bundle(folder: Path) -> Bundle:
    os.environ["FRCLI_CACHE"] = str(folder / "cache")
    from bundles import write_bundle
    from tiny import TinyShape

    return write_bundle(folder / "trio", shape=TinyShape(layers=1, hidden=32, heads=2, kv_heads=1, intermediate=32))


def soak(folder: Path, turns: int, seed: int) -> dict[str, object]:
    """Chat for so many turns; returns what came of it."""
    from frcli.chat.loop import converse
    from frcli.decode.engine import Engine

    bundle = _bundle(folder)
    settings = Settings(ctx=CONTEXT, threads=1, max_tokens=12).with_bundle(bundle)
    began = time.monotonic()
    with Engine(bundle, settings.options()) as engine:
        experts = dict.fromkeys(bundle.experts, "")
        session = Session(engine, settings, experts, bundle="trio", store=Store(folder / "sessions"))
        view = Watched(session)
        script = Script(session, view, folder, turns, seed)
        try:
            with _terminal():
                converse(session, script, view)
        except Wrong as wrong:
            raise SystemExit(f"turn {view.answers}, seed {seed}, {script.line!r}: {wrong}") from None
        conversations = script.compare_files()
    warm = next(sample for sample in script.memory if sample[0] >= turns / 10)
    end = script.memory[-1]
    return {
        "turns": view.answers,
        "seed": seed,
        "lines": dict(sorted(script.counts.items())),
        "conversations": conversations,
        "bytes_after_a_tenth": warm[1],
        "bytes_at_the_end": end[1],
        "growth": round(end[1] / warm[1] - 1, 4),
        "open_files": [warm[2], end[2]],
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run the soak and print its result; exit code 1 if memory or open files grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1000, help="answers that are asked for")
    parser.add_argument("--seed", type=int, default=0, help="of the script")
    parser.add_argument("-o", "--out", type=Path, help="write the result to this JSON file, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.turns, arguments.seed)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out is not None:
        save(text, arguments.out)
    print(text, end="")
    before, after = result["open_files"]  # type: ignore[misc]
    sys.exit(int(float(str(result["growth"])) >= MOST_GROWTH or after > before))


if __name__ == "__main__":
    main()
