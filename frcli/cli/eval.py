"""``frcli eval``: how good experts, router and fused system are on answers that are known."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import completion
from frcli.cli.command import Group
from frcli.cli.options import BundleName, Context, Fit, Force, GpuLayers, KvType, Parallel
from frcli.files import save
from frcli.shelf import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from frcli.evaluation.nll import Sums

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


@app.command(
    "nll",
    epilog="""
    # experts, router and fused system on two domains
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl \\
        --data code=mbpp.jsonl

    # how much of the router's logits is best, on the first 200 rows
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl@0:200 \\
        --gammas 0,0.25,0.5,1

    # other policies, and a router that was just converted
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl --policy sum \\
        --policy packllm --router new=router.onnx -o numbers.json
    """,
)
def nll(
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="NAME=PATH[@START:STOP]",
            help="NAME=PATH of JSON lines, or NAME=PATH@START:STOP; repeatable. Columns with one name are joined.",
        ),
    ],
    bundle: BundleName = DEFAULT_BUNDLE,
    gammas: Annotated[
        str, typer.Option(help="Gammas of the fused system, separated by commas; empty: the bundle's own.")
    ] = "",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="A policy that is scored, too; repeatable.",
            show_default=False,
            autocompletion=completion.policies,
        ),
    ] = None,
    router: Annotated[
        list[str] | None,
        typer.Option(
            "--router",
            metavar="NAME=ONNX",
            help="Another router of the same experts, scored beside the bundle's own; repeatable.",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=16, help="Tokens of prompt and answer; longer answers are cut.")
    ] = 1024,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 is one for each physical core.")] = 0,
    kv_type: KvType = "f16",
    gpu_layers: GpuLayers = "auto",
    fit: Fit = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the numbers to this JSON file, too.")] = None,
    force: Force = False,
) -> None:
    """Mean NLL per answer token (nats) of each expert, the router, the fused system and policies, as Markdown on
    stdout; and how many of the router's drafts greedy decoding would accept.

    The answers are forced: every system is asked for the probability of the right answer, nothing is generated.
    """
    from frcli.bundle import read_bundle
    from frcli.cli.ui import progress, write
    from frcli.decode.engine import Engine, Options
    from frcli.errors import BundleError, OutputError, UsageError
    from frcli.evaluation.nll import Sums, Systems, score_all
    from frcli.examples import encode_examples, read_examples
    from frcli.fusion.policy import BASE, LARGE
    from frcli.sources.devices import parse_gpu_layers

    named = _named_routers(router or [])
    columns: dict[str, list[str]] = {}
    for text in data:
        name, separator, spec = text.partition("=")
        if not (name and separator and spec):
            raise UsageError(f"--data {text} has no name", "write NAME=PATH")
        columns.setdefault(name, []).append(spec)
    opened = read_bundle(bundle)
    grid = _numbers(gammas) if gammas else [opened.manifest.defaults.gamma]
    if out is not None and out.exists() and not force:
        raise OutputError(f"{out} exists", "choose another name, or use --force to replace it")
    examples = {spec: read_examples(spec) for specs in columns.values() for spec in specs}
    first = "fusionroute" if opened.manifest.router else f"expert:{opened.experts[0]}"
    options = Options(
        policy=first,
        context=max_length,
        threads=threads,
        max_rows=64,
        gpu_layers=parse_gpu_layers(gpu_layers),
        kv_type=kv_type,
        fit=fit,
    )
    results: dict[str, Sums] = {}
    document: dict[str, Any] = {"bundle": opened.name, "columns": {}, "files": {}}
    with Engine(opened, options) as engine, ExitStack() as rivals:
        if engine.template is None:
            raise BundleError(f"{engine.base.path.name} has no chat template", "its answers cannot be put into a chat")
        others = [BASE, LARGE] if LARGE in opened.roles else [BASE]
        policies = {text: engine.make_policy(replace(engine.options, policy=text)) for text in policy or ()}
        systems = Systems(
            {name: engine.expert(name) for name in opened.experts},
            engine.router,
            engine.width,
            gammas=grid,
            policies=policies,
            others={name: engine.expert(name) for name in others} if policies else {},
            rivals={name: rivals.enter_context(closing(engine.open_router(file))) for name, file in named.items()},
        )
        for column, specs in columns.items():
            for spec in specs:
                encoded = encode_examples(examples[spec], engine.base, engine.template, max_length)
                with progress(f"{column}: {Path(spec).name}", len(encoded)) as report:
                    sums = score_all(encoded, systems, report)
                results.setdefault(column, Sums()).add(sums)
                document["columns"][column] = {k: v for k, v in _plain(results[column]).items() if k != "each"}
                document["files"][spec] = {"column": column, **_plain(sums)}
                if out is not None:
                    # After each file: an evaluation takes long and may be cut off.
                    save(json.dumps(document) + "\n", out)
    write(table(document) + "\n")


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
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 is one for each physical core.")] = 0,
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
    with ui.working(f"opening {opened.name}"):
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

    Several are joined if they asked the same items of the same bundle; a policy that is in two counts as in the last.
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

    files = {}
    for text in given:
        name, separator, place = text.partition("=")
        if not name or (separator and not place):
            raise UsageError(f"--task {text} is not a task", "write NAME or NAME=FILE")
        if place:
            files[name] = place
    return list(dict.fromkeys(text.partition("=")[0] for text in given)), files


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


def _named_routers(texts: list[str]) -> dict[str, Path]:
    from frcli.errors import UsageError

    named = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file or name in named:
            raise UsageError(
                f"--router {text} does not name a router of its own", "write NAME=FILE.onnx, each name once"
            )
        named[name] = Path(file)
    return named


def _numbers(text: str) -> list[float]:
    from frcli.errors import UsageError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--gammas {text} is not a list of numbers", "for example 0,0.25,0.5,1") from None
    if not all(0 <= number <= 16 for number in numbers):
        raise UsageError(f"--gammas {text} has a gamma outside 0 to 16")
    return list(dict.fromkeys(numbers))


def _plain(sums: Sums) -> dict[str, Any]:
    return {
        "examples": sums.examples,
        "tokens": sums.tokens,
        # A policy that rules tokens out gives some right answers no probability at all; JSON has no infinity.
        "nll": {n: round(value / sums.tokens, 5) if math.isfinite(value) else None for n, value in sums.nll.items()},
        "chosen": sums.chosen,
        "accepted": {name: round(count / sums.tokens, 4) for name, count in sums.accepted.items()},
        "each": [
            [tokens, [round(value, 3) if math.isfinite(value) else None for value in nll.values()]]
            for tokens, nll in sums.each
        ],
    }


def table(document: dict[str, Any]) -> str:
    """The numbers as a Markdown table: systems x columns, and the mean over the columns; the best of each column in
    bold.
    """
    columns: dict[str, Any] = document["columns"]
    systems = list(next(iter(columns.values()))["nll"])
    values = {
        system: [math.inf if column["nll"][system] is None else column["nll"][system] for column in columns.values()]
        for system in systems
    }
    for numbers in values.values():
        numbers.append(sum(numbers) / len(numbers))
    best = [min(column) for column in zip(*values.values(), strict=True)]
    lines = [f"| NLL per answer token | {' | '.join(columns)} | mean |", "|---|" + "---|" * (len(columns) + 1)]
    for system, numbers in values.items():
        cells = [f"**{n:.3f}**" if n == b else f"{n:.3f}" for n, b in zip(numbers, best, strict=True)]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    accepted = {system: [c.get("accepted", {}).get(system) for c in columns.values()] for system in systems}
    if any(None not in shares for shares in accepted.values()):
        lines.append(f"| *drafts accepted* |{' |' * (len(columns) + 1)}")
        for system, shares in accepted.items():
            if None not in shares:
                cells = [f"{share:.1%}" for share in (*shares, sum(shares) / len(shares))]
                lines.append(f"| {system} | {' | '.join(cells)} |")
    counts = [f"{column['examples']} rows, {column['tokens']} tokens" for column in columns.values()]
    lines.append(f"| *answers* | {' | '.join(counts)} | |")
    return "\n".join(lines)
