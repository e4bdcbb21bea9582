"""``frcli train pairs``: preference pairs from a bundle's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frcli.cli import completion
from frcli.cli.options import BundleName, Context, Data, Force, Parallel, Threads
from frcli.files import save
from frcli.shelf import DEFAULT_BUNDLE

EXAMPLES = """
    # four answers to each prompt; goes on where it was cut off
    frcli train pairs smollm2-quartet --data gsm8k.jsonl -o pairs.jsonl

    # more answers, of one expert
    frcli train pairs smollm2-quartet --data gsm8k.jsonl --samples 8 \\
        --policy expert:math -o pairs.jsonl
    """


def pairs(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON lines of prompt, chosen, rejected.")],
    bundle: BundleName = DEFAULT_BUNDLE,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Who answers; the bundle's own policy if not given.",
            autocompletion=completion.policies,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Answers to each prompt.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.01, max=10, help="At which they are drawn.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 320,
    ctx: Context = None,
    parallel: Parallel = "auto",
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 1,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Preference pairs from a bundle's own answers, graded by number, option or unit tests.

    A prompt gives a pair when at least one answer to it is wrong; the right one is the bundle's own, or else the
    data's. The same command goes on where it was cut off.
    """
    import json
    from dataclasses import asdict

    from frcli.bundle import read_bundle
    from frcli.cli import ui
    from frcli.cli.generate import sequences
    from frcli.decode.engine import Engine, Options
    from frcli.decode.sampler import Sampling
    from frcli.errors import DataError, Interrupted, OutputError
    from frcli.evaluation.pairs import Counts, make_pairs, question_of
    from frcli.examples import read_rows
    from frcli.journal import Journal

    if out.exists() and not force:
        raise OutputError(f"{out} exists", "choose another name, or use --force to replace it")
    asked = [question_of(row, where) for spec in data for row, where in read_rows(spec)]
    questions = [question for question in asked if question is not None]
    if not questions:
        raise DataError("no row can be graded", "rows have a number behind ####, options or a test_list")
    at_once = sequences(parallel)
    opened = read_bundle(bundle)
    counts, place = Counts(), out.with_name(f"{out.name}.journal")
    options = Options(policy=policy, context=ctx, sequences=at_once, threads=threads, draft="off")
    with ui.opening(opened.name):
        engine = Engine(opened, options)
    with engine, Journal(place) as journal, ui.progress("answering", len(questions)) as report:
        try:
            found = list(
                make_pairs(
                    engine,
                    questions,
                    journal,
                    samples=samples,
                    sampling=Sampling(temperature=temperature, seed=seed),
                    most=max_tokens,
                    counts=counts,
                    report=report,
                )
            )
        except KeyboardInterrupt:
            raise Interrupted("stopped", f"what was answered is safe in {place}: the same command goes on") from None
    save("".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in found), out)
    place.unlink(missing_ok=True)
    ungraded = len(asked) - len(questions)
    ui.say(
        f"{counts.written} pairs ({counts.gold} with the data's answer as the right one), {counts.easy} prompts always "
        f"answered right, {counts.too_long} without a whole answer, {ungraded} rows that cannot be graded"
    )
