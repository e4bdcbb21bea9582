"""``frcli train``: experts and routers from JSON lines, on top of a GGUF base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frcli.cli import completion
from frcli.cli.command import Group
from frcli.cli.options import Data, Threads, by_name
from frcli.cli.pairs import EXAMPLES, pairs
from frcli.cli.plan import prepare, refuse_finished, say_asking, say_cost

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="Train LoRA experts, and the router that leads them (needs the train extra).",
    epilog="""
    # an expert, and the file that the router is trained with
    frcli train expert --base base.gguf --data math.jsonl -o math
    frcli convert adapter math --base base.gguf -o math.gguf

    # a router for the base and that expert
    frcli train router --base base.gguf --expert general \\
        --expert math=math.gguf --data mixed.jsonl -o router
    """,
)

Base = Annotated[Path, typer.Option("--base", metavar="GGUF", help="GGUF file of the base model.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Folder for the result; a run that was cut off goes on from it."
    ),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.")]
Rate = Annotated[float, typer.Option("--learning-rate", min=0, help="Peak learning rate of AdamW.")]
Budget = Annotated[int, typer.Option("--batch-tokens", min=1, help="Padded tokens in one optimisation step.")]
Length = Annotated[
    int, typer.Option("--max-length", min=16, help="Tokens of prompt and answer; longer answers are cut.")
]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the LoRA matrices; alpha is twice the rank.")]
Seed = Annotated[int, typer.Option(help="Decides the order of the data and the initial weights.")]
Device = Annotated[
    str,
    typer.Option(
        help="Where to train, by torch's name: cpu, cuda, mps (untested but for cpu).",
        autocompletion=completion.one_of("cpu", "cuda", "mps"),
    ),
]
SaveMemory = Annotated[
    bool, typer.Option("--save-memory", help="Compute inner values again instead of keeping them: a third slower.")
]
Pack = Annotated[
    bool,
    typer.Option(
        "--pack",
        help="Put short examples into one row, and read what several prompts begin with once; without it rows of like "
        "length share a step.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")]


@app.command(
    "expert",
    epilog="""
    # rows of prompt and answer from one domain; goes on where it was cut off
    frcli train expert --base base.gguf --data math.jsonl -o math

    # how many steps, how much memory and time
    frcli train expert --base base.gguf --data math.jsonl -o math --dry-run

    # the first 2000 rows three times, with less memory
    frcli train expert --base base.gguf --data math.jsonl@0:2000 -o math \\
        --epochs 3 --batch-tokens 768 --save-memory
    """,
)
def expert(
    base: Base,
    data: Data,
    out: Out,
    rank: Rank = 16,
    modules: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Linear layers that learn; more of them learn more, and cost more of each token."
        ),
    ] = "q_proj,v_proj,up_proj,down_proj",
    epochs: Epochs = 1,
    learning_rate: Rate = 1e-3,
    batch_tokens: Budget = 1536,
    max_length: Length = 640,
    seed: Seed = 1,
    threads: Threads = 0,
    device: Device = "cpu",
    save_memory: SaveMemory = False,
    pack: Pack = False,
    dry_run: DryRun = False,
) -> None:
    """Train a LoRA expert on the answers of one domain's examples; the result is a PEFT adapter in OUT."""
    from frcli.errors import UsageError
    from frcli.training.base import ROUTER_MODULES, Hardware
    from frcli.training.loop import Schedule

    chosen = tuple(part.strip() for part in modules.split(","))
    if unknown := [part for part in chosen if part not in ROUTER_MODULES]:
        raise UsageError(f"--modules: there is no {unknown[0]!r}", f"there are {', '.join(ROUTER_MODULES)}")
    schedule = Schedule(epochs=epochs, budget=batch_tokens, learning_rate=learning_rate, seed=seed, pack=pack)
    examples, _ = prepare(base, data, max_length, schedule)
    if dry_run:
        say_cost(base, examples, schedule, chosen, rank, threads, save_memory=save_memory)
        return
    from frcli.cli.ui import training_progress
    from frcli.sources.devices import physical_cores
    from frcli.training.expert import train_expert

    refuse_finished(out / "adapter_config.json")
    hardware = Hardware(threads or physical_cores(), device, save_memory)
    with training_progress() as report:
        train_expert(
            base, examples, out, rank=rank, schedule=schedule, hardware=hardware, report=report, modules=chosen
        )
    typer.echo(f"wrote {out}; convert it with: frcli convert adapter {out} --base {base} -o NAME.gguf", err=True)


@app.command(
    "router",
    epilog="""
    # the paper's losses, for three experts of which one is the base itself
    frcli train router --base base.gguf --expert general \\
        --expert math=math.gguf --expert code=code.gguf \\
        --data mixed.jsonl -o router

    # the likelihood of the fused distribution instead
    frcli train router --base base.gguf --expert general \\
        --expert math=math.gguf --data mixed.jsonl --objective fused -o router

    # go on with preference pairs (CDPO)
    frcli train router --base base.gguf --expert general \\
        --expert math=math.gguf --data mixed.jsonl --start router \\
        --pairs pairs.jsonl -o router-cdpo
    """,
)
def router(
    base: Base,
    data: Data,
    out: Out,
    experts: Annotated[
        list[str],
        typer.Option(
            "--expert",
            metavar="NAME[=GGUF]",
            help="NAME=GGUF of its adapter or its own model, or NAME for the base itself; repeatable, in order.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--router",
            metavar="PATH",
            help="What it is made of: a GGUF or a Hugging Face folder; else --base.",
            show_default=False,
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights of the router, not a LoRA.")] = False,
    rank: Rank = 32,
    objective: Annotated[
        str,
        typer.Option(
            help="sft: the paper's loss; fused: likelihood of the right token under the fused distribution.",
            autocompletion=completion.one_of("sft", "fused"),
        ),
    ] = "sft",
    lam: Annotated[
        float | None,
        typer.Option(
            "--lambda", min=0, show_default=False, help="Weight of the routing loss; else the paper's 1/3, fused: 0."
        ),
    ] = None,
    lm_share: Annotated[
        float | None,
        typer.Option(
            min=0, show_default=False, help="fused: weight of the router's own language model loss; else 0.1."
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(min=0, max=16, show_default=False, help="fused: exponent of the router's logits; else 1."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="fused: learn for each token how much the router's logits count.")
    ] = False,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs",
            metavar="PATH[@START:STOP][*WEIGHT]",
            help="Rows of prompt, chosen and rejected: adds CDPO, from the router of --start on; repeatable.",
            show_default=False,
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(min=0, show_default=False, help="CDPO's beta; else the paper's 0.1.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on from this router.safetensors.", show_default=False),
    ] = None,
    layers: Annotated[
        int, typer.Option(min=0, help="Layers that are kept of the router, chosen by least harm; 0 for all.")
    ] = 0,
    first: Annotated[bool, typer.Option("--first", help="Keep the first --layers instead.")] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="ONNX", help="A router to distill from, such as one of full depth.", show_default=False),
    ] = None,
    distill: Annotated[
        float | None, typer.Option(min=0, show_default=False, help="Weight of the divergence from the teacher; else 1.")
    ] = None,
    fit_head: Annotated[
        bool, typer.Option(help="Fit the routing head to its end afterwards; the paper keeps it as it was trained.")
    ] = True,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the experts' rows are kept, for several trainings; else OUT/rows.",
            show_default=False,
        ),
    ] = None,
    epochs: Epochs = 1,
    learning_rate: Rate = 1e-3,
    batch_tokens: Budget = 1536,
    max_length: Length = 640,
    seed: Seed = 1,
    threads: Threads = 0,
    device: Device = "cpu",
    save_memory: SaveMemory = False,
    pack: Pack = False,
    dry_run: DryRun = False,
) -> None:
    """Train a FusionRoute router: its language model, its routing head and, if wanted, its gate.

    The experts are asked once, by llama.cpp, what they say of every answer; OUT keeps that.
    """
    from frcli.bundle import valid_name
    from frcli.errors import UsageError
    from frcli.training.base import ROUTER_MODULES, Hardware
    from frcli.training.loop import Schedule

    if objective not in ("sft", "fused"):
        raise UsageError(f"the objective is {objective!r}", "it is sft or fused")
    if gate and objective != "fused":
        raise UsageError("a gate is learnt from the fused distribution", "add --objective fused")
    weights = {
        "lm_share": (lm_share, "--lm-share", objective == "fused", "--objective fused"),
        "gamma": (gamma, "--gamma", objective == "fused", "--objective fused"),
        "beta": (beta, "--beta", bool(pairs), "--pairs"),
        "distill": (distill, "--distill", teacher is not None, "--teacher"),
    }
    given = {name: weight for name, (weight, *_) in weights.items() if weight is not None}
    for _, option, used, to in map(weights.__getitem__, given):
        if not used:
            raise UsageError(f"{option} weighs nothing here", f"it belongs to {to}")
    if lam is not None:  # both objectives have a place for it
        given["lam"] = lam
    if pairs and start is None:
        raise UsageError("--pairs go on from a router", "train one without them first, and give it as --start")
    if first and not layers:
        raise UsageError("--first keeps some layers", "say how many with --layers")
    if model is not None and not model.exists():
        raise UsageError(f"--router: there is no {model}", "give a GGUF file or a folder with config.json")
    if start is not None and start.is_dir():
        start = start / "router.safetensors"
    for option, path in (("--start", start), ("--teacher", teacher)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option}: there is no {path}", "give a router that was trained, or its ONNX file")
    named: dict[str, Path | None] = {}
    for name, file in by_name(experts, "--expert", "GGUF").items():
        try:
            valid_name(name)
        except ValueError as error:
            raise UsageError(f"--expert {name}: {error}") from None
        named[name] = Path(file) if file else None
        if file and not Path(file).is_file():
            raise UsageError(f"--expert {name}={file}: there is no {file}", "make it with frcli convert adapter")
    schedule = Schedule(epochs=epochs, budget=batch_tokens, learning_rate=learning_rate, seed=seed, pack=pack)
    examples, encoded = prepare(base, data, max_length, schedule, pairs or ())
    if dry_run:
        both = [answer for pair in encoded for answer in pair]
        modules = None if full else ROUTER_MODULES
        losses = 1 + (objective == "fused") + 2 * bool(pairs) + (teacher is not None)
        say_cost(
            model or base,
            [*examples, *both],
            schedule,
            modules,
            rank,
            threads,
            layers=layers,
            single=len(examples),
            losses=losses,
            save_memory=save_memory,
        )
        say_asking([*named, *(["the teacher"] if teacher else [])], examples, both)
        return
    from frcli.cli.ui import training_progress
    from frcli.sources.devices import physical_cores
    from frcli.training.model import Recipe
    from frcli.training.router import train_router

    refuse_finished(out / "router.safetensors")
    with training_progress() as report:
        trained = train_router(
            base,
            named,
            examples,
            out,
            recipe=Recipe(
                objective=objective,
                gate=gate,
                rank=rank,
                layers=layers,
                first=first,
                full=full,
                fit_head=fit_head,
                **given,
            ),
            schedule=schedule,
            hardware=Hardware(threads or physical_cores(), device, save_memory),
            report=report,
            report_around=report.around,
            pairs=encoded,
            start=start,
            teacher=teacher,
            model=model,
            rows=rows,
        )
    source = out / "model" if full else model or base
    vocab = f" --vocab {base}" if source.is_dir() else ""
    typer.echo(
        f"wrote {trained}; export it with: frcli convert router --base {source} --trained {trained}{vocab} "
        "-o router.onnx",
        err=True,
    )


app.command("pairs", epilog=EXAMPLES)(pairs)
