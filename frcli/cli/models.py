"""``frcli models``: which bundles there are, what is in them, and getting their files."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from frcli.cli import ui
from frcli.cli.command import Group
from frcli.cli.fit import say_fit
from frcli.cli.new import EXAMPLES, new
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

    What is here already and has the right sha256 is left as it is. Then the models are compared: all must share the
    base's tokenizer, and adapters must fit the base.
    """
    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.compatibility import compare

    read = read_bundle(bundle or DEFAULT_BUNDLE)
    for artifact in read.artifacts():
        _pull(artifact, force=force)
    notes = compare({artifact.role: artifact.path for artifact in read.artifacts()}).notes
    _build_router(read, force=force)
    for note in notes:
        ui.say(note)
    say_fit(read)
    ui.say(f"{read.name} is ready: frcli chat {bundle or read.name}")


app.command("new", epilog=EXAMPLES)(new)


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

    ``vocabulary`` is the GGUF file whose tokenizer the router is for, that of the base if not given. ``experts``,
    ``context`` and ``more`` are those of :func:`converters.router.convert_router`. Raises ``UsageError`` for a base
    without a tokenizer.
    """
    from converters.router import convert_router
    from converters.subject import vocabulary_file
    from frcli.sources.llama import LlamaModel
    from frcli.tokens import vocabulary_hash

    with TemporaryDirectory() as scratch:
        file = vocabulary or vocabulary_file(base, Path(scratch))
        if file is None:
            raise UsageError(f"{base} has no tokenizer", "name an expert's GGUF file with --vocab, too")
        model = LlamaModel(file, vocab_only=True)
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
