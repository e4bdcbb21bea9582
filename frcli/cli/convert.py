"""``frcli convert``: from what training leaves to what frcli runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frcli.cli import ui
from frcli.cli.options import Force

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Turn adapters and routers into what frcli runs.")

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a PEFT adapter.", show_default=False)]
Base = Annotated[Path, typer.Option("--base", help="GGUF file of the base model.", show_default=False)]
Trained = Annotated[Path, typer.Option("--trained", help="router.safetensors, or its folder.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)]
Dtype = Annotated[str, typer.Option("--dtype", help="Numbers in the file: f16 or f32.")]
Precision = Annotated[str, typer.Option("--precision", help="Weights of the router: int4, int8 or fp32.")]
Context = Annotated[
    int | None, typer.Option("--context", min=1, help="Most tokens; as the base, at most 8192, if not given.")
]


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
    base: Base, trained: Trained, out: Out, precision: Precision = "int4", context: Context = None, force: Force = False
) -> None:
    """Convert a trained router and its base to ONNX, and compare the two on the same tokens."""
    from frcli.cli.models import build_router

    with ui.working(f"converting {trained.name}"):
        parity = build_router(base, trained, out, (), precision, context, force=force)
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")
    ui.say(f"parity with {trained}: {parity}")
