"""Stands in for a program whose call is only checked: does it have what is asked of it?

    python only_parsed.py REPOSITORY make|pip|python|lm_eval ARG...

What is wrong goes to stderr, and the exit code is 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path


def make(root: Path, arguments: list[str]) -> str:
    """What make says against these targets; not the make of the PATH, which is this one."""
    return _complaint([shutil.which("make", path=os.defpath) or "/usr/bin/make", "-n", "-C", str(root), *arguments])


def pip(root: Path, arguments: list[str]) -> str:
    """Extras that frcli does not have."""
    with (root / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    asked = {
        name for each in arguments if (match := re.match(r"(?:frcli|\.)\[(.+)\]", each)) for name in match[1].split(",")
    }
    if arguments[:1] != ["install"]:
        return f"pip {arguments} is not known to this check"
    return f"frcli has no extra {', '.join(asked - extras)}" if asked - extras else ""


def python(root: Path, arguments: list[str]) -> str:
    """Options that the script does not have, if it has any."""
    script, *rest = arguments
    if not (root / script).is_file():
        return f"there is no {script}"
    if "argparse" not in (root / script).read_text(encoding="utf-8"):
        return ""
    return _unknown([sys.executable, str(root / script)], rest)


def lm_eval(root: Path, arguments: list[str]) -> str:
    """Options that lm-evaluation-harness does not have, where it is installed."""
    return _unknown([sys.executable, "-m", "lm_eval"], arguments) if find_spec("lm_eval") else ""


def _unknown(program: list[str], arguments: list[str]) -> str:
    """Long options that are not in the help that argparse gives in the place of running."""
    told = subprocess.run([*program, *arguments, "--help"], capture_output=True, text=True)
    if told.returncode:
        return told.stderr
    known = set(re.findall(r"--?[a-z][\w-]*", told.stdout))
    missing = [each for each in arguments if each.startswith("-") and each.split("=")[0] not in known]
    return f"there are no options {', '.join(missing)}" if missing else ""


def _complaint(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


if __name__ == "__main__":
    if os.environ.get("ONLY_PARSED"):
        sys.exit("a program that is only checked calls another one that is")
    os.environ["ONLY_PARSED"] = "1"
    checks = {"make": make, "pip": pip, "python": python, "lm_eval": lm_eval}
    sys.exit(checks[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:]) or 0)
