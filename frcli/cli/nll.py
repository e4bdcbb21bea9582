"""``frcli eval nll``: how probable the right answers are to experts, router, fused system and policies."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import completion
from frcli.cli.options import BundleName, Fit, Force, GpuLayers, KvType, Threads, by_name
from frcli.files import save
from frcli.shelf import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from frcli.evaluation.nll import Sums

EXAMPLES = """
    # experts, router and fused system on two domains
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl \\
        --data code=mbpp.jsonl

    # how much of the router's logits is best, on the first 200 rows
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl@0:200 \\
        --gammas 0,0.25,0.5,1

    # other policies, and a router that was just converted
    frcli eval nll smollm2-quartet --data math=gsm8k.jsonl --policy sum \\
        --policy packllm --router new=router.onnx -o numbers.json
    """


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
    threads: Threads = 0,
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
    from frcli.cli.ui import opening, progress, write
    from frcli.decode.engine import Engine, Options
    from frcli.errors import BundleError, OutputError, UsageError
    from frcli.evaluation.nll import Sums, Systems, score_all
    from frcli.examples import encode_examples, read_examples
    from frcli.fusion.policy import BASE, LARGE
    from frcli.sources.devices import parse_gpu_layers

    named = {name: Path(file) for name, file in by_name(router, "--router", "FILE.onnx", needed=True).items()}
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
    with ExitStack() as stack:
        with opening(opened.name):
            engine = stack.enter_context(Engine(opened, options))
            rivals = {name: stack.enter_context(closing(engine.open_router(file))) for name, file in named.items()}
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
            rivals=rivals,
        )
        if taken := [name for name, count in Counter(systems.names).items() if count > 1]:
            raise UsageError(f"{taken[0]} would name two of the systems", "give --router another name")
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
