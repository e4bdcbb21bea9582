"""``frcli convert``: from what training leaves to what frcli runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frcli.cli import completion, ui
from frcli.cli.command import Group
from frcli.cli.options import Force, Json
from frcli.errors import DataError, ModelError

if TYPE_CHECKING:
    from converters.verify import Verification

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="Turn checkpoints, adapters and routers into what frcli runs.",
    epilog="""
    # a checkpoint from the Hugging Face Hub, and an adapter of yours
    frcli convert expert Qwen/Qwen2.5-0.5B-Instruct -o qwen.gguf --quant Q4_K_M
    frcli convert adapter math --base base.gguf -o math.gguf

    # what frcli train router has left
    frcli convert router --base base.gguf --trained router -o router.onnx
    """,
)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a PEFT adapter.", show_default=False)]
ExpertSource = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="Folder with config.json and safetensors, or OWNER/NAME on the Hub.", show_default=False
    ),
]
Quant = Annotated[
    str,
    typer.Option(
        "--quant",
        metavar="TYPE",
        help="f32, f16, bf16, or a type of llama.cpp's: Q4_K_M.",
        autocompletion=completion.one_of("f32", "f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M"),
    ),
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
    typer.Option("--vocab", help="GGUF file with the experts' tokenizer; --base's if not given.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="Numbers in the file: f16 or f32.", autocompletion=completion.one_of("f16", "f32")),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Weights of the router: int4, int8, fp16 or fp32.",
        autocompletion=completion.PRECISIONS,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Embedding and head in a precision of their own; with int4 they are int8.",
        show_default=False,
        autocompletion=completion.PRECISIONS,
    ),
]
Layers = Annotated[int, typer.Option("--layers", min=0, help="Keep the first so many layers; 0 for all.")]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="cpu, or cuda: computes in fp16 (untested on a GPU).",
        autocompletion=completion.one_of("cpu", "cuda"),
    ),
]
Context = Annotated[
    int | None, typer.Option("--context", min=1, help="Most tokens; as the base, at most 8192, if not given.")
]
First = Annotated[Path, typer.Argument(metavar="A", help="The model to compare with.", show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B", help="The model to be judged.", show_default=False)]
Text = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="Text to compare on; a built-in one if not given.")
]
AnyBase = Annotated[
    Path | None, typer.Option("--base", help="Base of an adapter or a trained router.", show_default=False)
]
OtherBase = Annotated[Path | None, typer.Option("--base-b", help="Base of B, if not that of A.", show_default=False)]
TextVocabulary = Annotated[
    Path | None, typer.Option("--vocab", help="GGUF with the tokenizer of two models without one.", show_default=False)
]
Window = Annotated[
    int | None, typer.Option("--ctx", help="Tokens that are read at once; 512 if not given.", show_default=False)
]
MaxKl = Annotated[
    float | None, typer.Option("--max-kl", min=0, help="Fail if the mean KL in nats is above.", show_default=False)
]


@app.command(
    epilog="""
    # a checkpoint in a folder, quantized
    frcli convert expert Qwen2.5-0.5B-Instruct -o qwen.gguf --quant Q4_K_M

    # one from the Hugging Face Hub, at full size
    frcli convert expert Qwen/Qwen2.5-0.5B-Instruct -o qwen.gguf

    # a type that needs an importance matrix
    frcli convert expert model -o model.gguf --quant IQ2_XXS \\
        --imatrix imatrix.gguf
    """
)
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


@app.command(
    epilog="""
    # the folder that frcli train expert or PEFT has written
    frcli convert adapter math --base base.gguf -o math.gguf

    # without the comparison: less memory and time
    frcli convert adapter math --base base.gguf -o math.gguf --no-verify
    """
)
def adapter(
    src: Source, base: Base, out: Out, dtype: Dtype = "f16", no_verify: NoVerify = False, force: Force = False
) -> None:
    """Convert a PEFT LoRA adapter to GGUF, and compare the two on the same tokens."""
    from converters.adapter import convert_adapter

    with ui.working(f"converting {src.name}"):
        parity = convert_adapter(src, base, out, dtype, force=force, verify=not no_verify)
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")
    if parity:
        ui.say(f"parity with {src}: {parity}")


@app.command(
    epilog="""
    # a router that was trained on the experts' own base
    frcli convert router --base base.gguf --trained router -o router.onnx

    # one that is larger and nearer to what was trained
    frcli convert router --base base.gguf --trained router \\
        -o router.onnx --precision int8

    # one of which all weights were trained (--full)
    frcli convert router --base router/model --trained router \\
        --vocab base.gguf -o router.onnx
    """
)
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
    no_verify: NoVerify = False,
    force: Force = False,
) -> None:
    """Convert a trained router and its base to ONNX, and compare the two on the same tokens."""
    from frcli.cli.models import build_router

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
            verify=not no_verify,
        )
    ui.say(f"{out}: {ui.size(out.stat().st_size)}")
    if parity:
        ui.say(f"parity with {trained}: {parity}")


@app.command(
    epilog="""
    # what quantizing has cost, on a text of yours; fails above the limit
    frcli convert verify model-f16.gguf model-q4.gguf --text book.txt \\
        --max-kl 0.05

    # an adapter before and after conversion
    frcli convert verify math math.gguf --base base.gguf

    # a router, for a program to read
    frcli convert verify router.safetensors router.onnx --base base.gguf --json
    """
)
def verify(
    a: First,
    b: Second,
    text: Text = None,
    base: AnyBase = None,
    base_b: OtherBase = None,
    vocab: TextVocabulary = None,
    ctx: Window = None,
    max_kl: MaxKl = None,
    as_json: Json = False,
) -> None:
    """Compare two models of any form on the same text: KL, top tokens, perplexity, and where they differ most.

    A and B are GGUF files, folders with config.json and safetensors, routers in ONNX, or, with --base, PEFT adapters,
    GGUF adapters and trained routers. The exit code is 1 if the mean KL is above --max-kl.
    """
    from converters.verify import as_json as told
    from converters.verify import verify as compared

    given = {} if text is None else {"text": _read_text(text)}
    with ui.working(f"comparing {a.name} and {b.name}"):
        done = compared(a, b, base=base, result_base=base_b, vocabulary=vocab, window=ctx, **given)
    if as_json:
        ui.write_json(told(str(a), str(b), done, max_kl), indent=2)
    else:
        _show(done)
    if max_kl is not None and not done.parity.mean_kl <= max_kl:
        raise ModelError(f"the mean KL is {done.parity.mean_kl:.2e} nats, and at most {max_kl:g} was asked for")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file} as text: {error}", "give a text file in UTF-8") from error


def _show(done: Verification) -> None:
    parity = done.parity
    for notice in done.notices:
        ui.say(f"note: {notice}")
    rows = {
        "KL": f"{parity.mean_kl:.3e} nats, at most {parity.max_kl:.3e}",
        "same top token": f"{parity.top1:.2%}",
        "top ten in common": f"{parity.top10:.2%}",
        "perplexity": "{:.5g} and {:.5g}".format(*parity.perplexity) if parity.perplexity else "",
        "routing KL": "" if parity.routing_kl is None else f"{parity.routing_kl:.3e} nats",
        "prompt routing KL": "" if parity.prompt_kl is None else f"{parity.prompt_kl:.3e} nats",
        "gates apart": "" if parity.gate_distance is None else f"{parity.gate_distance:.3e}",
        "tokens": f"{parity.tokens} in windows of {done.window}",
    }
    ui.pairs({name: value for name, value in rows.items() if value})
    ui.write("\nWhere they differ most:\n")
    shown = [
        (
            str(place.difference.position),
            f"{place.difference.kl:.2e}",
            ascii(place.before)[1:-1][-40:],
            "(end)" if place.following is None else ascii(place.following)[1:-1],
            f"{ascii(place.source)[1:-1]} {place.difference.source[1]:.0%}",
            f"{ascii(place.result)[1:-1]} {place.difference.result[1]:.0%}",
        )
        for place in done.places
    ]
    ui.table(("at", "KL", "text", "next", "A says", "B says"), shown)
