"""``frcli models new``: a bundle of files and of models on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frcli.cli import completion, ui
from frcli.cli.fit import say_fit
from frcli.cli.options import Force, by_name

EXAMPLES = """
    # the base itself, an adapter, and a router that was trained for the two
    frcli models new duo --base base.gguf --expert general \\
        --expert math=math.gguf --router router/router.safetensors

    # no router: every token from all experts together
    frcli models new mix --base base.gguf --expert math=math.gguf \\
        --expert code=code.gguf --policy sum

    # where the files are, without copies, with a line on an expert
    frcli models new mine --base base.gguf --expert math=math.gguf \\
        --policy expert:math --about math="sums and proofs" --link

    # whole models on the hub, which frcli models pull fetches and converts
    frcli models new qwen --base Qwen/Qwen2.5-1.5B-Instruct --expert general \\
        --expert code=Qwen/Qwen2.5-Coder-1.5B-Instruct --policy sum
    """


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new bundle.", show_default=False)],
    base: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="The base: a GGUF file, hf:USER/REPO/FILE, or USER/REPO.", show_default=False
        ),
    ],
    expert: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FILE]",
            help="An adapter or a model of its own (or USER/REPO); without a file the base itself.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="An expert that is an adapter; a file that is here says so itself."),
    ] = None,
    router: Annotated[str, typer.Option(metavar="FILE", help="router.safetensors of training, or ONNX.")] = "",
    router_base: Annotated[
        str, typer.Option(metavar="FILE", help="GGUF that the router is made of, if not base.")
    ] = "",
    precision: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="int4, int8, fp16 or fp32: what the router is built in.",
            autocompletion=completion.PRECISIONS,
        ),
    ] = "",
    large: Annotated[str, typer.Option(metavar="FILE", help="GGUF of a larger model that the experts steer.")] = "",
    policy: Annotated[
        str,
        typer.Option(metavar="POLICY", help="How the models write together.", autocompletion=completion.policies),
    ] = "",
    gamma: Annotated[float | None, typer.Option(help="Weight of the router's own logits.", show_default=False)] = None,
    ctx: Annotated[int | None, typer.Option(help="Tokens of context.", show_default=False)] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System prompt.")] = "",
    description: Annotated[str, typer.Option(metavar="TEXT", help="One line for models list.")] = "",
    license_: Annotated[str, typer.Option("--license", metavar="TEXT", help="The licence of what is in it.")] = "",
    about: Annotated[list[str] | None, typer.Option(metavar="NAME=TEXT", help="One line on an expert.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Refer to the files where they are: no copies.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where it goes; not given: the user's models.")
    ] = None,
    force: Force = False,
) -> None:
    """Make a bundle of files that belong together.

    Models must share the base's tokenizer, adapters must fit the base, and the router must choose among these experts.
    The files are put into the bundle's folder, which can be moved. What is named by hf:USER/REPO/FILE, or USER/REPO for
    a whole model, is fetched, converted and compared by frcli models pull.
    """
    from frcli.assembly import Wish, assemble
    from frcli.bundle import bundle_folders
    from frcli.cli.models import state

    adapters = by_name(adapter, "--adapter", needed=True)
    experts = {**by_name(expert, "--expert"), **adapters} or {"general": ""}
    wish = Wish(
        name=name,
        base=base,
        experts=experts,
        adapters=frozenset(adapters),
        router=router,
        router_base=router_base,
        precision=precision,
        large=large,
        policy=policy,
        gamma=gamma,
        context=ctx,
        system=system,
        description=description,
        license=license_,
        about=by_name(about, "--about", needed=True),
        link=link,
    )
    folder = out or bundle_folders()[0] / name
    with ui.working(f"making {name}"):
        bundle, notes = assemble(wish, folder, force=force)
    for note in notes:
        ui.say(note)
    say_fit(bundle)
    ready = state(bundle) == "ready"
    then = f"frcli {'chat' if ready else 'models pull'} {name if out is None else folder}"
    ui.say(f"{name} is in {folder.absolute()}: {then}")
