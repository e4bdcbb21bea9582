"""Shell completion: what may stand where the cursor is.

A shell asks at every press of Tab, so nothing is imported that reads models, numbers or whole manifests. Where nothing
is offered the shell offers files.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import typer

Complete = Callable[[str], list[str]]

VARIABLE = "_FRCLI_COMPLETE"
# What the models of a bundle must have besides experts for each policy; a test compares the names with the registry.
ALONE = {"fusionroute": "router", "prompt-router": "router", "sum": "", "packllm": "", "topk-union": "", "dlf": "large"}
WITH_EXPERT = {"expert": "", "contrast": "", "proxy": "large"}
_BREAKS = re.compile("[:=]+")  # bash ends a word before and behind these


def one_of(*words: str) -> Complete:
    """Complete to one of these words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


PRECISIONS = one_of("int4", "int8", "fp16", "fp32")


def bundles(incomplete: str) -> list[str]:
    """Names of bundles."""
    from frcli.shelf import list_bundles

    return [folder.name for folder in list_bundles() if folder.name.startswith(incomplete)]


def policies(ctx: typer.Context, incomplete: str) -> list[str]:
    """Policies that the chosen bundle can serve, with its experts behind those that take one."""
    manifest = _manifest(ctx.params.get("bundle") or _argument(ctx, "bundle"))
    experts = list(manifest.get("experts", ()))
    policy, colon, named = incomplete.partition(":")
    if colon:
        before, comma, _ = named.rpartition(",")
        offered = [f"{policy}:{before}{comma}{name}" for name in experts]
    else:
        offered = [name for name, need in ALONE.items() if not need or need in manifest]
        for name, need in WITH_EXPERT.items():
            if not need or need in manifest:
                offered += [f"{name}:{expert}" for expert in experts]
    return [text for text in offered if text.startswith(incomplete)]


def _argument(ctx: typer.Context, name: str) -> str | None:
    """An argument that stands before an option without its value, which click has not taken up then."""
    arguments = [param.name for param in ctx.command.params if param.param_type_name == "argument"]
    at = arguments.index(name) if name in arguments else len(ctx.args)
    return ctx.args[at] if at < len(ctx.args) else None


def kv_types(incomplete: str) -> list[str]:
    """Types that keys and values are kept in."""
    from frcli.sources.kv_types import KV_TYPES

    return one_of(*KV_TYPES)(incomplete)


def _manifest(bundle: str | None) -> dict[str, Any]:
    """The manifest of this bundle or, if none is given, of the one that the command would use; nothing is checked."""
    from frcli.config import config_file
    from frcli.shelf import DEFAULT_BUNDLE, MANIFEST, find_bundle

    chosen = bundle or os.environ.get("FRCLI_BUNDLE")
    if not chosen and (file := config_file()).is_file():
        chosen = _toml(file).get("bundle")
    return _toml(find_bundle(chosen or DEFAULT_BUNDLE) / MANIFEST)


def _toml(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def asked() -> bool:
    """Whether a shell asks for completions: the program does nothing else then."""
    return os.environ.get(VARIABLE, "").startswith("complete_")


def answer(run: Callable[[Sequence[str]], int]) -> int:
    """Write what the shell may offer to stdout and return the exit code, which fish wants to know.

    ``run`` is the program. An error is not told, as it would stand in the middle of what is being typed.
    """
    prefix = _join_words() if os.environ[VARIABLE] == "complete_bash" else ""
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(io.StringIO()):
        code = run([])
    sys.stdout.write("".join(f"{line.removeprefix(prefix)}\n" for line in told.getvalue().splitlines()))
    return code


def _join_words() -> str:
    """Put together what bash took apart at ``:`` and ``=``, and return what of the last word bash has already.

    bash gives ``expert:ma`` as three words and replaces the last of them; typer would take the others for arguments.
    """
    given = os.environ["COMP_WORDS"].split("\n")
    given = given[: int(os.environ["COMP_CWORD"]) + 1]
    words: list[str] = []
    joins = False
    for word in given:
        breaks = bool(_BREAKS.fullmatch(word))
        if words and word and (joins or breaks):
            words[-1] += word
        else:
            words.append(word)
        joins = breaks
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    typed = "" if joins else given[-1]
    before = words[-1].removesuffix(typed)
    return before.partition("=")[2] if before.startswith("-") else before
