"""``frcli models``: which bundles there are, what is in them, and getting their files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frcli.cli import completion, ui
from frcli.cli.command import Group
from frcli.cli.options import Bundle as Name
from frcli.cli.options import Force, Json
from frcli.errors import BundleError, UsageError

if TYPE_CHECKING:
    from frcli.bundle import Artifact, Bundle

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="List, show, fetch and make bundles.",
    epilog="""
    # which bundles there are, and fetch one
    frcli models list
    frcli models pull smollm2-quartet

    # a bundle of your own files
    frcli models new mine --base base.gguf --expert math=math.gguf
    """,
)


@app.command(
    "list",
    epilog="""
    # names, and whether their files are here
    frcli models list

    # the names alone, for a script
    frcli models list --json | jq -r '.[].name'
    """,
)
def list_(as_json: Json = False) -> None:
    """List the bundles, and whether their files are here."""
    from frcli.bundle import bundle_folders, list_bundles, read_bundle

    found: list[dict[str, str]] = []
    for folder in list_bundles():
        try:
            bundle = read_bundle(str(folder))
            entry = {"name": folder.name, "state": state(bundle), "description": bundle.manifest.description}
        except BundleError as error:
            entry = {"name": folder.name, "state": "broken", "description": str(error)}
        found.append({**entry, "folder": str(folder)})
    if as_json:
        ui.write_json(found, indent=2)
    elif found:
        ui.table(("name", "state", "description"), [(e["name"], e["state"], e["description"]) for e in found])
    else:
        ui.say(f"there are no bundles in {', '.join(map(str, bundle_folders()))}")


@app.command(
    epilog="""
    # experts, router and defaults of the shipped bundle
    frcli models show smollm2-quartet

    # a bundle in a folder
    frcli models show ./mine

    # where its files are
    frcli models show smollm2-quartet --json | jq -r '.files[].path'
    """
)
def show(bundle: Name = None, as_json: Json = False) -> None:
    """Show what a bundle is made of, and where its files are."""
    from frcli.bundle import DEFAULT_BUNDLE, read_bundle

    read = read_bundle(bundle or DEFAULT_BUNDLE)
    told = describe(read)
    if as_json:
        ui.write_json(told, indent=2)
        return
    defaults = {name: value for name, value in told["defaults"].items() if value is not None}
    ui.pairs(
        {
            "name": read.name,
            "description": read.manifest.description,
            "license": read.manifest.license,
            "folder": str(read.folder),
            "state": told["state"],
            "defaults": ", ".join(f"{name} {value}" for name, value in defaults.items()),
        }
    )
    ui.write("\n")
    ui.table(("expert", "about"), [(name, table.about) for name, table in read.manifest.experts.items()])
    ui.write("\n")
    rows = [
        (f["role"], ui.size(f["bytes"]) if f["bytes"] is not None else "missing", (f["sha256"] or "-")[:12], f["path"])
        for f in told["files"]
    ]
    ui.table(("file", "size", "sha256", "path"), rows)


@app.command(
    epilog="""
    # fetch the shipped bundle's base and build its router
    frcli models pull smollm2-quartet

    # fetch and build everything again
    frcli models pull smollm2-quartet --force
    """
)
def pull(bundle: Name = None, force: Force = False) -> None:
    """Fetch a bundle's files and build its router.

    What is here already and has the right sha256 is left as it is.
    """
    from frcli.bundle import DEFAULT_BUNDLE, read_bundle

    read = read_bundle(bundle or DEFAULT_BUNDLE)
    for artifact in read.artifacts():
        _pull(artifact, force=force)
    _build_router(read, force=force)
    ui.say(f"{read.name} is ready: frcli chat {bundle or read.name}")


@app.command(
    epilog="""
    # the base itself, an adapter, and a router that was trained for the two
    frcli models new duo --base base.gguf --expert general \\
        --expert math=math.gguf --router router/router.safetensors

    # no router: every token from all experts together
    frcli models new mix --base base.gguf --expert math=math.gguf \\
        --expert code=code.gguf --policy sum

    # where the files are, without copies, with a line on an expert
    frcli models new mine --base base.gguf --expert math=math.gguf \\
        --policy expert:math --about math="sums and proofs" --link
    """
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new bundle.", show_default=False)],
    base: Annotated[
        str, typer.Option(metavar="FILE", help="GGUF of the base: a file, or hf:USER/REPO/FILE.", show_default=False)
    ],
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=FILE]", help="An adapter or a model of its own; without a file the base itself."),
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
    The files are put into the bundle's folder, which can be moved. What is named by hf:USER/REPO/FILE is fetched by
    frcli models pull.
    """
    from frcli.assembly import Wish, assemble
    from frcli.bundle import bundle_folders

    adapters = _named(adapter, "--adapter", needed=True)
    experts = {**_named(expert, "--expert"), **adapters} or {"general": ""}
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
        about=_named(about, "--about", needed=True),
        link=link,
    )
    folder = out or bundle_folders()[0] / name
    with ui.working(f"making {name}"):
        bundle, notes = assemble(wish, folder, force=force)
    for note in notes:
        ui.say(note)
    _say_memory(bundle)
    ready = state(bundle) == "ready"
    ui.say(f"{name} is in {folder}: frcli {'chat' if ready else 'models pull'} {name if out is None else folder}")


def _named(given: list[str] | None, option: str, *, needed: bool = False) -> dict[str, str]:
    """``NAME=VALUE`` by name; a value may be left out unless it is needed."""
    found: dict[str, str] = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not name or ((needed or separator) and not value):
            raise UsageError(f"{option} {text} has no {'value' if name else 'name'}", f"write {option} NAME=VALUE")
        if name in found:
            raise UsageError(f"{option} names {name} twice", "choose another name")
        found[name] = value
    return found


def _say_memory(bundle: Bundle) -> None:
    """Say what the bundle takes on this machine, and what would fit if it does not."""
    from frcli.sources.needs import Running
    from frcli.sources.plan import plan_bundle
    from frcli.sources.remedies import remedies

    if not all(artifact.path.is_file() for artifact in bundle.artifacts()):
        ui.say("what it needs is told when its files are here: frcli doctor")
        return
    context = bundle.manifest.defaults.context
    plan = plan_bundle(bundle, Running(context))
    for device in plan.devices:
        if plan.needed(device):
            free = f"{ui.size(device.free)} are free{', which is too little' if device in plan.short else ''}"
            ui.say(f"{device.name}: {ui.size(plan.needed(device))} at {context} tokens of context; {free}")
    for remedy in remedies(plan):
        ui.say(f"with {remedy.change} it fits, in {ui.size(remedy.bytes)}")


def _pull(artifact: Artifact, *, force: bool) -> None:
    from frcli.bundle import check_artifact
    from frcli.fetch import Telling, fetch

    renew, wanted = force, force or not artifact.path.exists()
    if not wanted:
        try:
            check_artifact(artifact)
        except BundleError as error:
            if artifact.source is None:
                raise
            ui.say(f"{error.what}; fetching it again")
            force = wanted = True
    if not wanted or (artifact.source is None and artifact.path.exists()):
        ui.say(f"{artifact.role}: {artifact.path} is here")
        return
    ui.say(f"{artifact.role}: fetching {artifact.source or artifact.path.name}")
    began = time.monotonic()
    fetch(
        artifact, force=force, renew=renew, telling=Telling(ui.working, lambda text: ui.say(f"{artifact.role}: {text}"))
    )
    ui.say(
        f"{artifact.role}: {ui.size(artifact.path.stat().st_size)} in {time.monotonic() - began:.1f} s, {artifact.path}"
    )


def _build_router(bundle: Bundle, *, force: bool) -> None:
    from frcli.bundle import check_artifact, file_sha256, sha256_note

    table, artifact, out = bundle.manifest.router, bundle.router(), bundle.router_model()
    if table is None or artifact is None or out is None or table.trained is None:
        return
    built = bundle.built_router()
    if out.is_file() and not force and built is not None:
        try:
            check_artifact(built)
            ui.say(f"router: {out} is here")
            return
        except BundleError as error:
            ui.say(f"{error.what}; building it again")
            force = True
    ui.say(f"router: building it from {bundle.router_base().path.name} and {artifact.path.name} ({table.precision})")
    began = time.monotonic()
    with ui.working("building the router"):
        parity = build_router(
            bundle.router_base().path,
            artifact.path,
            out,
            experts=bundle.experts,
            precision=table.precision,
            vocabulary=bundle.base().path,
            force=force,
        )
    sha256_note(out).write_text(file_sha256(out))
    ui.say(f"router: {ui.size(out.stat().st_size)} in {time.monotonic() - began:.1f} s, {out}")
    ui.say(f"router: {parity}")


def build_router(
    base: Path,
    trained: Path,
    out: Path,
    *,
    experts: tuple[str, ...] = (),
    precision: str,
    context: int | None = None,
    vocabulary: Path | None = None,
    force: bool,
    **more: Any,
) -> Any:
    """Convert a trained router to ONNX ``out`` and return the parity.

    ``vocabulary`` is the GGUF file whose tokenizer the router is for, the base itself if not given. ``experts``,
    ``context`` and ``more`` are those of :func:`converters.router.convert_router`.
    """
    from converters.router import convert_router
    from frcli.sources.llama import LlamaModel
    from frcli.tokens import vocabulary_hash

    model = LlamaModel(vocabulary or base, vocab_only=True)
    try:
        digest = vocabulary_hash(model.texts())
    finally:
        model.close()
    return convert_router(base, out, trained, experts, precision, context, digest, force=force, **more)


def state(bundle: Bundle) -> str:
    """``ready``, ``not pulled``, or what is missing of the bundle."""
    artifacts = list(bundle.artifacts())
    missing = [artifact for artifact in artifacts if not artifact.path.is_file()]
    if missing and missing == [artifact for artifact in artifacts if artifact.source is not None]:
        return "not pulled"
    if missing:
        return f"missing {', '.join(artifact.role for artifact in missing)}"
    router = bundle.router_model()
    return "router not built" if router is not None and not router.is_file() else "ready"


def describe(bundle: Bundle) -> dict[str, Any]:
    """Everything that ``show`` tells, for JSON."""
    files = []
    for artifact in bundle.artifacts():
        here = artifact.path.is_file()
        files.append(
            {
                "role": artifact.role,
                "path": str(artifact.path),
                "bytes": artifact.path.stat().st_size if here else None,
                "sha256": artifact.sha256,
                "source": artifact.source,
            }
        )
    now = state(bundle)
    router = bundle.manifest.router
    if router is not None and router.trained is not None and now in ("ready", "router not built"):
        built = bundle.router_model()
        assert built is not None
        size = built.stat().st_size if built.is_file() else None
        files.append({"role": "router, built", "path": str(built), "bytes": size, "sha256": None, "source": None})
    return {
        "name": bundle.name,
        "description": bundle.manifest.description,
        "license": bundle.manifest.license,
        "folder": str(bundle.folder),
        "state": now,
        "experts": {name: table.about for name, table in bundle.manifest.experts.items()},
        "router": router.precision if router is not None else None,
        "defaults": bundle.manifest.defaults.model_dump(),
        "files": files,
    }
