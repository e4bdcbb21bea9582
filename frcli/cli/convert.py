"""``frcli convert``: from what training leaves to what frcli runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frcli.cli import ui
from frcli.cli.options import Force
from frcli.errors import UsageError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Turn checkpoints, adapters and routers into what frcli runs."
)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a PEFT adapter.", show_default=False)]
ExpertSource = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="Folder with config.json and safetensors, or OWNER/NAME on the Hub.", show_default=False
    ),
]
Quant = Annotated[
    str, typer.Option("--quant", metavar="TYPE", help="f32, f16, bf16, or a type of llama.cpp's: Q4_K_M.")
]
Imatrix = Annotated[
    Path | None, typer.Option("--imatrix", help="Importance matrix, of llama-imatrix.", show_default=False)
]
Pre = Annotated[
    str | None, typer.Option("--pre", metavar="NAME", help="llama.cpp's pre-tokenizer.", show_default=False)
]
LlamaCpp = Annotated[
    Path | None,
    typer.Option("--llama-cpp", metavar="DIR", help="Checkout whose own script reads SRC.", show_default=False),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare logits with the source.")]
Base = Annotated[Path, typer.Option("--base", help="GGUF file of the base model.", show_default=False)]
Trained = Annotated[Path, typer.Option("--trained", help="router.safetensors, or its folder.", show_default=False)]
RouterBase = Annotated[
    Path, typer.Option("--base", help="GGUF file or safetensors folder of the base model.", show_default=False)
]
Vocabulary = Annotated[
    Path | None,
    typer.Option("--vocab", help="GGUF file with the experts' tokenizer; --base if not given.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)]
Dtype = Annotated[str, typer.Option("--dtype", help="Numbers in the file: f16 or f32.")]
Precision = Annotated[str, typer.Option("--precision", help="Weights of the router: int4, int8, fp16 or fp32.")]
Head = Annotated[
    str | None,
    typer.Option(
        "--head", help="Embedding and head in a precision of their own; with int4 they are int8.", show_default=False
    ),
]
Layers = Annotated[int, typer.Option("--layers", min=0, help="Keep the first so many layers; 0 for all.")]
Target = Annotated[str, typer.Option("--target", help="cpu, or cuda: computes in fp16 (untested on a GPU).")]
Context = Annotated[
    int | None, typer.Option("--context", min=1, help="Most tokens; as the base, at most 8192, if not given.")
]


@app.command()
def expert(
    src: ExpertSource,
    out: Out,
    quant: Quant = "f16",
    imatrix: Imatrix = None,
    pre: Pre = None,
    llama_cpp: LlamaCpp = None,
    no_verify: NoVerify = False,
    force: Force = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF, and compare the two on the same tokens."""
    from converters.expert import convert_expert
    from converters.hub import source_folder

    folder = source_folder(src)
    with ui.working(f"converting {src}"):
        done = convert_expert(
            folder, out, quant, imatrix=imatrix, pre=pre, llama_cpp=llama_cpp, force=force, verify=not no_verify
        )
    for notice in done.notices:
        ui.say(f"note: {notice}")
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")
    if done.parity:
        ui.say(f"parity with {src}: {done.parity}")


@app.command()
def adapter(src: Source, base: Base, out: Out, dtype: Dtype = "f16", force: Force = False) -> None:
    """Convert a PEFT LoRA adapter to GGUF, and compare the two on the same tokens."""
    from converters.adapter import convert_adapter

    with ui.working(f"converting {src.name}"):
        parity = convert_adapter(src, base, out, dtype, force=force)
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")
    ui.say(f"parity with {src}: {parity}")


@app.command()
def router(
    base: RouterBase,
    trained: Trained,
    out: Out,
    precision: Precision = "int4",
    head: Head = None,
    layers: Layers = 0,
    target: Target = "cpu",
    context: Context = None,
    vocab: Vocabulary = None,
    force: Force = False,
) -> None:
    """Convert a trained router and its base to ONNX, and compare the two on the same tokens."""
    from frcli.cli.models import build_router

    if base.is_dir() and vocab is None:
        raise UsageError(
            f"{base} has no tokenizer that llama.cpp can read", "name an expert's GGUF file with --vocab, too"
        )
    with ui.working(f"converting {trained.name}"):
        parity = build_router(
            base,
            trained,
            out,
            precision=precision,
            context=context,
            vocabulary=vocab,
            force=force,
            head=head,
            layers=layers,
            target=target,
        )
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")
    ui.say(f"parity with {trained}: {parity}")
