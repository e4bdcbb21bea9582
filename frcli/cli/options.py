"""Flags that several commands share, made from the table of settings in ``config.py``."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from frcli.cli import completion
from frcli.cli.ui import manner
from frcli.config import ABOUT, KINDS, NUMBER, SWITCH, TEXTS, WHOLE, Settings, flag, show, unescape
from frcli.errors import UsageError

MEMORY = ("kv_type", "gpu_layers", "fit")
DECODING = (
    *("policy", "gamma", "sharp", "max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("xtc_probability", "xtc_threshold", "repeat_penalty", "presence_penalty", "frequency_penalty", "penalty_last_n"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("seed", "stop", "logit_bias", "grammar", "grammar_file", "draft", "ctx", "threads", *MEMORY),
)
_SHORT = {"max_tokens": "-n", "temperature": "-t"}
_METAVARS = {
    "policy": "POLICY",
    "draft": "off|N|auto",
    "kv_type": "TYPE",
    "gpu_layers": "N|auto",
    "stop": "TEXT",
    "logit_bias": "ID=VALUE",
    "grammar_file": "PATH",
    "grammar": "TEXT",
    "schema": "JSON|PATH",
    "system": "TEXT",
}
_COMPLETIONS: Mapping[str, Callable[..., list[str]]] = {
    "policy": completion.policies,
    "draft": completion.one_of("auto", "off"),
    "kv_type": completion.kv_types,
    "gpu_layers": completion.one_of("auto"),
}

Bundle = Annotated[
    str | None,
    typer.Argument(
        metavar="BUNDLE",
        help="Name or folder of a bundle.",
        show_default=False,
        autocompletion=completion.bundles,
    ),
]
BundleName = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A bundle's name or folder.", autocompletion=completion.bundles)
]
Context = Annotated[int | None, typer.Option(min=16, help="Tokens of prompt and answer.", show_default=False)]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="PATH[@START:STOP][*WEIGHT]",
        help="JSON lines, or a slice of their rows, *2 for twice, *0.5 for half of them; repeatable.",
    ),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 is one for each physical core.")]
Parallel = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="How many answers to write at once.",
        autocompletion=completion.one_of("auto"),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
KvType = Annotated[
    str, typer.Option("--kv-type", metavar="TYPE", help=ABOUT["kv_type"], autocompletion=_COMPLETIONS["kv_type"])
]
GpuLayers = Annotated[
    str,
    typer.Option("--gpu-layers", metavar="N|auto", help=ABOUT["gpu_layers"], autocompletion=_COMPLETIONS["gpu_layers"]),
]
Fit = Annotated[bool, typer.Option(help=ABOUT["fit"])]

Command = Callable[..., Any]


def with_settings(names: Sequence[str], defaults: Settings) -> Callable[[Command], Command]:
    """Give a command a flag for each of these settings; it gets ``flags``: values by name, None where not given.

    ``defaults`` are only shown in the help.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**given: Any) -> Any:
            return command(flags={name: _value(name, given.pop(name)) for name in names}, **given)

        own = [p for p in _parameters(command) if p.name != "flags"]
        return _resigned(run, [*own, *(_parameter(name, getattr(defaults, name)) for name in names)])

    return decorate


def _value(name: str, given: Any) -> Any:
    if KINDS[name] is not TEXTS:
        return given
    return tuple(unescape(text) if name == "stop" else text for text in given) if given else None


def _parameter(name: str, default: Any) -> inspect.Parameter:
    kind = KINDS[name]
    types: Mapping[Any, Any] = {WHOLE: int | None, NUMBER: float | None, SWITCH: bool | None, TEXTS: list[str] | None}
    long = f"--{flag(name)}"
    spelled = [f"{long}/--no-{flag(name)}"] if kind is SWITCH else [*filter(None, [_SHORT.get(name)]), long]
    shown = f" [default: {show(name, default)}]" if default not in (None, (), "") else ""
    option = typer.Option(
        *spelled,
        help=ABOUT[name] + shown,
        show_default=False,
        metavar=_METAVARS.get(name),
        autocompletion=_COMPLETIONS.get(name),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[types.get(kind, str | None), option]
    )


def _parameters(command: Command) -> list[inspect.Parameter]:
    """The command's parameters with their annotations evaluated, by keyword: flags are added behind them."""
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
    ]


def _resigned(command: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """The command under another signature, which is where typer reads its flags from."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def with_manner(command: Command) -> Command:
    """Give a command ``--debug``, ``--verbose`` and ``--quiet``, which the program as a whole has too."""

    @wraps(command)
    def run(debug: bool, verbose: bool, quiet: bool, **given: Any) -> Any:
        set_manner(debug=debug, verbose=verbose, quiet=quiet)
        return command(**given)

    switches = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("debug", Debug), ("verbose", Verbose), ("quiet", Quiet))
    ]
    return _resigned(run, [*_parameters(command), *switches])


Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr what happens, llama.cpp's messages too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no statistics.")]


def set_manner(*, debug: bool, verbose: bool, quiet: bool) -> None:
    """Add to what was asked for before: the flags may stand before and behind the command."""
    manner.debug |= debug
    manner.verbose |= verbose
    manner.quiet |= quiet
    log = logging.getLogger("frcli")
    log.handlers.clear()
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    log.addHandler(handler)
    # Without --verbose the one sentence of the error says it all; llama.cpp's own words come before it.
    log.setLevel(logging.DEBUG if manner.verbose else logging.CRITICAL)


def by_name(given: Sequence[str] | None, option: str, value: str = "VALUE", *, needed: bool = False) -> dict[str, str]:
    """``NAME=VALUE`` by name; a value may be left out, and is empty then, unless it is ``needed``.

    Raises ``UsageError`` for a text without a name or a needed value, and for a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, separator, its = text.partition("=")
        if not name or ((needed or separator) and not its):
            missing = "value" if name else "name"
            raise UsageError(f"{option} {text} has no {missing}", f"write {option} {name or 'NAME'}={value}")
        if name in found:
            raise UsageError(f"{option} names {name} twice", "choose another name")
        found[name] = its
    return found
