"""Kills real installations of a bundle: run as ``python installs.py FOLDER``, which prints JSON.

Each is a process of its own that sends itself SIGKILL before one step on the file system: the first of them, the second
one, and so on, until one comes to its end. What it has left under the bundle's name is looked at, and installed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from frcli.bundle import MANIFEST, check_artifact, read_bundle
from frcli.errors import BundleError
from frcli.installation import install, room_in

NAMES = ("base.gguf", "math.gguf", "router.onnx", "router.onnx.data")


def make(place: Path, folder: Path, which: str) -> None:
    """Install the bundle ``which``, whose files have that as their content and whose system message says it."""
    files = {name: place / which / name for name in NAMES}
    room = room_in(folder, force=True)

    def table(name: str) -> str:
        return f'file = "{room}{name}"\nsha256 = "{hashlib.sha256(files[name].read_bytes()).hexdigest()}"\n'

    text = f'format = 1\nname = "b"\n[base]\n{table(NAMES[0])}[experts.general]\n[experts.math]\n{table(NAMES[1])}'
    text += f'[router]\n{table(NAMES[2])}[defaults]\nsystem = "{which}"\n'
    install(folder, room, files, text, link=False)


def runs_to_its_end(work: Callable[[], None], last: int) -> bool:
    """Work in a child that dies before the step of the number ``last``, if there are so many."""
    child = os.fork()
    if not child:
        steps = 0

        def step(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal steps
            steps += event == "open" or event.startswith(("os.", "shutil.", "tempfile."))
            if steps == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def state(folder: Path) -> str:
    """Which bundle the folder holds, or that it holds none, or half of one."""
    if not (folder / MANIFEST).exists():
        return "half" if folder.exists() else "none"
    try:
        bundle = read_bundle(str(folder))
        for artifact in bundle.artifacts():
            check_artifact(artifact)
    except BundleError:
        return "half"
    data = bundle.router().path.with_name("router.onnx.data").read_text()  # type: ignore[union-attr]
    return str(bundle.manifest.defaults.system) if data == bundle.manifest.defaults.system else "half"


def main(place: Path) -> dict[str, Any]:
    """Kill the first installation and one that replaces another at every step, and say what was left."""
    for which in ("old", "new"):
        (place / which).mkdir()
        for name in NAMES:
            (place / which / name).write_text(which)
    folder = place / "models" / "b"
    found: dict[str, Any] = {"left": []}
    for before in ("none", "old"):
        states: Counter[str] = Counter()
        for last in count(1):
            shutil.rmtree(folder.parent, ignore_errors=True)
            if before == "old":
                make(place, folder, "old")
            done = runs_to_its_end(lambda: make(place, folder, "new"), last)
            states[state(folder)] += 1
            make(place, folder, "new")
            named = {artifact.path for artifact in read_bundle(str(folder)).artifacts()} | {folder / MANIFEST}
            files = [path for path in folder.parent.rglob("*") if path.is_file()]
            found["left"] += [str(path) for path in files if path not in named and path.suffix != ".data"]
            if len(files) != len(NAMES) + 1 or state(folder) != "new":
                found["left"].append(f"{len(files)} files, {state(folder)}")
            if done:
                break
        found[before] = states
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
