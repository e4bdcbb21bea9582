"""``frcli eval``: how good experts, router and fused system are on answers that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from frcli.cli import completion
from frcli.cli.command import Group
from frcli.cli.nll import EXAMPLES, nll
from frcli.cli.options import BundleName, Context, Fit, Force, GpuLayers, KvType, Parallel, Threads
from frcli.files import save
from frcli.shelf import DEFAULT_BUNDLE

Outs = Annotated[
    list[Path] | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write to this file: .md, .json or .html by its name; repeatable. Not given: Markdown on stdout.",
        show_default=False,
    ),
]

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="Measure a bundle on answers that are known.",
    epilog="""
    # the bundle's policy and each expert alone, on the same 100 questions
    frcli eval compare smollm2-quartet -t frcli_gsm8k=gsm8k.jsonl

    # how probable the right answers are, without writing any
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl
    """,
)


app.command("nll", epilog=EXAMPLES)(nll)


@app.command(
    "compare",
    epilog="""
    # the bundle's policy and each expert alone, as Markdown
    frcli eval compare smollm2-quartet -t frcli_gsm8k=gsm8k.jsonl

    # policies of your choice on two tasks, as a page and as numbers
    frcli eval compare smollm2-quartet -t frcli_gsm8k=gsm8k.jsonl \\
        -t frcli_mbpp=mbpp.jsonl --policy fusionroute --policy expert:math \\
        --policy sum --limit 50 -o report.html -o numbers.json

    # a task of lm-eval's own
    frcli eval compare smollm2-quartet -t arc_easy --limit 200
    """,
)
def compare_policies(
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            "-t",
            metavar="NAME[=FILE]",
            help="A task of ours (frcli eval tasks) or of lm-eval, and where its rows are; repeatable.",
        ),
    ],
    bundle: BundleName = DEFAULT_BUNDLE,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="A policy to compare; repeatable. Not given: the bundle's own and each expert alone.",
            show_default=False,
            autocompletion=completion.policies,
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Differences are from this one; the first if not given.",
            autocompletion=completion.policies,
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Items of each task, drawn by the seed; 0 for all.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Draws the items, and the resamples of the intervals.")] = 0,
    out: Outs = None,
    ctx: Context = None,
    parallel: Parallel = "auto",
    draft: Annotated[
        str,
        typer.Option(
            metavar="N|auto|off",
            help="Tokens to draft at a time.",
            autocompletion=completion.one_of("auto", "off"),
        ),
    ] = "off",
    threads: Threads = 0,
    kv_type: KvType = "f16",
    gpu_layers: GpuLayers = "auto",
    fit: Fit = True,
    force: Force = False,
) -> None:
    """Policies and single experts side by side on tasks, with the same items for all: scores and standard errors,
    speed, and paired differences.

    Answers are kept in OUT.journal as they come: the same command goes on where it was cut off.
    """
    from frcli.bundle import read_bundle
    from frcli.cli import ui
    from frcli.cli.generate import sequences
    from frcli.decode.engine import Engine, Options
    from frcli.errors import Interrupted
    from frcli.sources.devices import parse_gpu_layers

    outs = list(out or ())
    _check_outs(outs, force)
    names, files = _tasks(task)
    at_once = sequences(parallel)
    _need_harness()
    from frcli.evaluation.comparison import Plan, compare
    from frcli.journal import Journal

    opened = read_bundle(bundle)
    own = opened.manifest.defaults.policy
    policies = list(dict.fromkeys(policy or [own, *(f"expert:{name}" for name in opened.experts)]))
    options = Options(
        policy=policies[0],
        context=ctx,
        sequences=at_once,
        max_rows=64,
        threads=threads,
        draft=draft,
        gpu_layers=parse_gpu_layers(gpu_layers),
        kv_type=kv_type,
        fit=fit,
    )
    place = outs[0].with_name(f"{outs[0].name}.journal") if outs else None
    with ui.opening(opened.name):
        engine = Engine(opened, options)
    with engine, Journal(place) as journal, ui.Meter() as meter:
        if len(journal):
            ui.say(f"going on from {place}, which has {len(journal)} results")
        try:
            document = compare(
                engine,
                Plan(policies, names, files, limit, seed, against),
                journal,
                lambda system, done, items: meter(system, done, items, f"{done} of {items} items"),
            )
        except KeyboardInterrupt:
            kept = f"{len(journal)} results are safe in {place}: the same command goes on" if place else ""
            raise Interrupted("stopped", kept) from None
    _write_all(document, outs)
    if place is not None:
        place.unlink(missing_ok=True)


@app.command(
    "report",
    epilog="""
    # a page of what eval compare has written
    frcli eval report numbers.json -o report.html

    # the table on the terminal
    frcli eval report numbers.json
    """,
)
def report(
    numbers: Annotated[
        list[Path],
        typer.Argument(metavar="JSON...", help="What eval compare has written; several are put into one table."),
    ],
    against: Annotated[
        str,
        typer.Option(metavar="POLICY", help="Differences are from this one; not given: as in the first JSON."),
    ] = "",
    out: Outs = None,
    force: Force = False,
) -> None:
    """Write comparisons again from their JSON, as Markdown, HTML or one JSON.

    Several are joined if they are of one bundle and have the same items where they have the same task; what is in two
    counts as in the last, and speeds, which compare only within one run, are left out.
    """
    from frcli.errors import DataError
    from frcli.evaluation.joining import join

    outs = list(out or ())
    _check_outs(outs, force)
    documents = []
    for path in numbers:
        try:
            documents.append(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", "give the JSON of eval compare") from None
        except ValueError as error:
            raise DataError(f"{path} is no comparison: {error!r}", "give the JSON of eval compare") from None
    try:
        _write_all(join(documents, against), outs)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        named = ", ".join(map(str, numbers))
        raise DataError(f"{named} is no comparison: {error!r}", "give the JSON of eval compare") from None


@app.command(
    "tasks",
    epilog="""
    # all of them
    frcli eval tasks

    # those of LogiGLUE
    frcli eval tasks | grep logiglue
    """,
)
def tasks() -> None:
    """The names of our own tasks, and of tags that stand for several; lm-eval's are known, too: lm_eval ls tasks."""
    from frcli.cli.ui import write

    _need_harness()
    from frcli.evaluation.comparison import known_tasks

    write("".join(f"{name}\n" for name in known_tasks()))


def _need_harness() -> None:
    from importlib.util import find_spec

    from frcli.errors import UsageError

    if find_spec("lm_eval") is None:
        raise UsageError("lm-evaluation-harness is not installed", "pip install 'frcli[eval]'")


def _tasks(given: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names of tasks in order, and the places that were given for some."""
    from frcli.errors import UsageError

    names: list[str] = []
    files: dict[str, str] = {}
    for text in given:
        name, separator, place = text.partition("=")
        if not name or (separator and not place):
            raise UsageError(f"--task {text} is not a task", "write NAME or NAME=FILE")
        names.append(name)
        if place and files.setdefault(name, place) != place:
            raise UsageError(f"task {name} has two files, {files[name]} and {place}", "join their rows in one file")
    return list(dict.fromkeys(names)), files


def _markdown(document: dict[str, Any]) -> str:
    from frcli.evaluation.report import markdown

    return markdown(document)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def _html(document: dict[str, Any]) -> str:
    from frcli.evaluation.page import page

    return page(document)


_WRITERS = {".md": _markdown, ".json": _json, ".html": _html}


def _check_outs(outs: list[Path], force: bool) -> None:
    from frcli.errors import OutputError, UsageError

    for path in outs:
        if path.suffix not in _WRITERS:
            raise UsageError(f"{path} is none of {', '.join(_WRITERS)}", "its name says what is written to it")
        if path.exists() and not force:
            raise OutputError(f"{path} exists", "choose another name, or use --force to replace it")
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path.absolute().parent} is no folder", "make it first")


def _write_all(document: dict[str, Any], outs: list[Path]) -> None:
    from frcli.cli.ui import write

    for path in outs:
        save(_WRITERS[path.suffix](document), path)
    if not outs:
        write(_markdown(document))
