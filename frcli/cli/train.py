"""``frcli train``: experts and routers from JSON lines, on top of a GGUF base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from frcli.examples import Encoded
    from frcli.training.loop import Schedule

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Train LoRA experts, and the router that leads them (needs the train extra).",
)

Base = Annotated[Path, typer.Option("--base", metavar="GGUF", help="GGUF file of the base model.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="PATH[@START:STOP]",
        help="JSON lines, or a slice of their rows; repeatable, a file given twice counts twice.",
    ),
]
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
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 is one for each physical core.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")]


@app.command("expert")
def expert(
    base: Base,
    data: Data,
    out: Out,
    rank: Rank = 16,
    epochs: Epochs = 1,
    learning_rate: Rate = 1e-3,
    batch_tokens: Budget = 1536,
    max_length: Length = 640,
    seed: Seed = 1,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Train a LoRA expert on the answers of one domain's examples; the result is a PEFT adapter in OUT."""
    from frcli.training.loop import Schedule

    schedule = Schedule(epochs=epochs, budget=batch_tokens, learning_rate=learning_rate, seed=seed)
    examples = _prepare(base, data, max_length, schedule)
    if dry_run:
        return
    from frcli.cli.ui import training_progress
    from frcli.sources.devices import physical_cores
    from frcli.training.expert import train_expert

    _refuse_finished(out / "adapter_config.json")
    with training_progress() as report:
        train_expert(
            base, examples, out, rank=rank, schedule=schedule, threads=threads or physical_cores(), report=report
        )
    typer.echo(f"wrote {out}; convert it with: frcli convert adapter {out} --base {base} -o NAME.gguf", err=True)


@app.command("router")
def router(
    base: Base,
    data: Data,
    out: Out,
    experts: Annotated[
        list[str],
        typer.Option(
            "--expert",
            metavar="NAME[=FOLDER]",
            help="NAME=FOLDER of a PEFT adapter, or NAME for the base itself; repeatable, in the order of the bundle.",
        ),
    ],
    rank: Rank = 32,
    lam: Annotated[float, typer.Option("--lambda", min=0, help="Weight of the routing loss; the paper has 1/3.")] = 1
    / 3,
    epochs: Epochs = 1,
    learning_rate: Rate = 1e-3,
    batch_tokens: Budget = 1536,
    max_length: Length = 640,
    seed: Seed = 1,
    threads: Threads = 0,
    dry_run: DryRun = False,
) -> None:
    """Train a FusionRoute router (its language model and its routing head) by the paper's SFT loss."""
    from frcli.bundle import valid_name
    from frcli.errors import UsageError
    from frcli.training.loop import Schedule

    named: dict[str, Path | None] = {}
    for text in experts:
        name, _, folder = text.partition("=")
        try:
            valid_name(name)
        except ValueError as error:
            raise UsageError(f"--expert {text}: {error}") from None
        if name in named:
            raise UsageError(
                f"--expert {text}: the name is given twice", "write --expert NAME=FOLDER once for each expert"
            )
        named[name] = Path(folder) if folder else None
        if folder and not (Path(folder) / "adapter_model.safetensors").is_file():
            raise UsageError(
                f"--expert {text}: {folder} holds no adapter", "give a folder that train expert has written"
            )
    schedule = Schedule(epochs=epochs, budget=batch_tokens, learning_rate=learning_rate, seed=seed)
    examples = _prepare(base, data, max_length, schedule)
    if dry_run:
        return
    from frcli.cli.ui import training_progress
    from frcli.sources.devices import physical_cores
    from frcli.training.router import train_router

    _refuse_finished(out / "router.safetensors")
    with training_progress() as report:
        file = train_router(
            base,
            named,
            examples,
            out,
            rank=rank,
            lam=lam,
            schedule=schedule,
            threads=threads or physical_cores(),
            report=report,
            report_scores=report.scoring,
        )
    typer.echo(
        f"wrote {file}; export it with: frcli convert router --base {base} --trained {file} -o router.onnx", err=True
    )


def _prepare(base: Path, data: list[str], max_length: int, schedule: Schedule) -> list[Encoded]:
    """Read and encode the examples, and say on stderr how much there is to do."""
    from frcli.errors import ModelError
    from frcli.examples import encode_examples, read_examples
    from frcli.sources.llama import LlamaModel
    from frcli.tokens import ChatTemplate
    from frcli.training.loop import plan

    examples = [example for spec in data for example in read_examples(spec)]
    model = LlamaModel(base, vocab_only=True)
    try:
        if not model.chat_template:
            raise ModelError(f"{base} has no chat template", "train on a model that was made for chat")
        template = ChatTemplate(model.chat_template, bos=model.bos, eos=model.eos)
        encoded = encode_examples(examples, model, template, max_length)
    finally:
        model.close()
    tokens = sum(len(e.prompt) + len(e.answer) for e in encoded)
    answers = sum(len(e.answer) for e in encoded)
    steps = len(plan(encoded, schedule))
    typer.echo(f"{len(encoded)} examples, {tokens} tokens ({answers} of answers), {steps} steps", err=True)
    return encoded


def _refuse_finished(file: Path) -> None:
    if file.exists():
        from frcli.errors import OutputError

        raise OutputError(f"{file} exists: this training is finished", "give another --out, or delete it")
