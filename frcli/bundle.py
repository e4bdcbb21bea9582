"""Bundles: which files belong together, and how they are used.

A bundle is a folder with a ``bundle.toml``. Paths in it are relative to the folder and stay inside it. A file that is
not kept in the folder names a ``source`` (see :mod:`frcli.fetch`) and lies in the user's cache under its sha256 once it
was pulled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from frcli.errors import BundleError
from frcli.shelf import DEFAULT_BUNDLE as DEFAULT_BUNDLE
from frcli.shelf import MANIFEST as MANIFEST
from frcli.shelf import bundle_folders as bundle_folders
from frcli.shelf import find_bundle
from frcli.shelf import list_bundles as list_bundles

ROUTER_FORMAT = "1"  # of a router's ONNX file: what goes in, what comes out, what its metadata says
_ROUTER_BUILD = 1  # raise it when the converter writes other numbers: routers in the cache are then built anew


REMOTE = ("pypi:", "hf:", "https://", "http://")  # what a source on another machine begins with
_ROLES = ("router", "large", "base")  # models that are no experts


# Names that are devices on Windows, in every folder and whatever is behind a dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def _inside(text: str) -> str:
    parts = PurePosixPath(text).parts
    # Windows leaves dots and spaces at the end of a name out: ".. " is "..", too.
    odd = any(part[-1] in ". " or part.split(".")[0].strip().lower() in _DEVICES for part in parts)
    if not parts or odd or text.startswith("/") or "\\" in text or ":" in text or not text.isprintable():
        raise ValueError(f"{text!r} is not a path inside the bundle")
    return text


def _sha256(text: str) -> str:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError(f"{text!r} is not a sha256 of 64 lower-case hex digits")
    return text


def valid_name(text: str) -> str:
    """``text``, if it can name an expert or a bundle; ``ValueError`` otherwise."""
    if not text or not all(c.isalnum() or c in "-_." for c in text) or text in _ROLES:
        raise ValueError(
            f"{text!r} is not a name of letters, digits, '-', '_' and '.' (and none of {', '.join(_ROLES)})"
        )
    return text


InsidePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
ExpertName = Annotated[str, AfterValidator(valid_name)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelTable(_Table):
    """``[base]``: the GGUF file that LoRA experts share, whose vocabulary is the bundle's; or ``[large]``: that of a
    larger model, which the base and its experts can steer.
    """

    file: InsidePath
    source: str | None = None
    sha256: Sha256 | None = None


class ExpertTable(_Table):
    """``[experts.NAME]``: the base itself, the base with an ``adapter``, or a model ``file`` of its own."""

    about: str = ""
    adapter: InsidePath | None = None
    file: InsidePath | None = None
    source: str | None = None
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> ExpertTable:
        if self.adapter and self.file:
            raise ValueError("an expert has an adapter or a file, not both")
        if self.sha256 and not (self.adapter or self.file):
            raise ValueError("sha256 is given without a file")
        return self


class RouterTable(_Table):
    """``[router]``: an ONNX ``file``, or what training left (``trained``), from which and the base the file is built on
    set-up; or from ``base``, ``[router.base]``, if the router is made of another model.
    """

    file: InsidePath | None = None
    trained: InsidePath | None = None
    source: str | None = None
    sha256: Sha256 | None = None
    precision: str = Field(default="int4", pattern="^(fp32|fp16|int8|int4)$")
    base: ModelTable | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> RouterTable:
        if bool(self.file) == bool(self.trained):
            raise ValueError("a router has either a file or a trained part")
        if self.file and self.base:
            raise ValueError("a router's file is made of nothing else: leave its base out")
        return self


class DefaultsTable(_Table):
    """``[defaults]``: what is used when neither a flag, the environment nor the user's configuration says otherwise."""

    policy: str = "fusionroute"
    gamma: float = Field(default=1.0, ge=0, le=16)
    context: int = Field(default=2048, ge=16, le=1 << 22)
    system: str | None = None


class Manifest(_Table):
    """The whole of ``bundle.toml``."""

    format: int = Field(ge=1, le=1)
    name: ExpertName
    description: str = ""
    license: str = ""
    vocabulary: Sha256 | None = None
    base: ModelTable
    experts: dict[ExpertName, ExpertTable] = Field(min_length=1)
    router: RouterTable | None = None
    large: ModelTable | None = None
    defaults: DefaultsTable = DefaultsTable()


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a bundle: what it is for, where it is or will be, where it can be had, and what it must hash to.

    ``noted`` says that the manifest gives no sha256 and that of the first pull stands in for it.
    """

    role: str
    path: Path
    source: str | None
    sha256: str | None
    noted: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest that was read and the folder that it came from; its files may not be there yet."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.manifest.name

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the order of the router's weights."""
        return tuple(self.manifest.experts)

    @property
    def trained(self) -> tuple[str, ...]:
        """The experts that are not the base itself."""
        return tuple(name for name, table in self.manifest.experts.items() if table.adapter or table.file)

    @property
    def roles(self) -> frozenset[str]:
        """The models that the bundle has beside base and experts: ``router``, ``large``."""
        return frozenset(role for role in ("router", "large") if getattr(self.manifest, role) is not None)

    def base(self) -> Artifact:
        """The base model."""
        table = self.manifest.base
        return self._artifact("base", table.file, table.source, table.sha256)

    def large(self) -> Artifact | None:
        """The large model, if there is one."""
        table = self.manifest.large
        return self._artifact("large", table.file, table.source, table.sha256) if table else None

    def expert(self, name: str) -> Artifact | None:
        """The file of an expert: its adapter or its own model, or None for the base itself."""
        table = self.manifest.experts[name]
        file = table.adapter or table.file
        return self._artifact(f"expert {name}", file, table.source, table.sha256) if file else None

    def router(self) -> Artifact | None:
        """The router's file as the manifest names it: ONNX, or the trained part that it is built from."""
        table = self.manifest.router
        if table is None:
            return None
        return self._artifact("router", table.file or table.trained or "", table.source, table.sha256)

    def router_base(self) -> Artifact:
        """The model that the router is made of: the bundle's base, or one of its own."""
        router = self.manifest.router
        if router is None or router.base is None:
            return self.base()
        return self._artifact("router's base", router.base.file, router.base.source, router.base.sha256)

    def router_model(self) -> Path | None:
        """Where the router's ONNX file is, or will be when it is built: in the cache, named by all that it is made
        from.
        """
        table, artifact = self.manifest.router, self.router()
        if table is None or artifact is None:
            return None
        if table.file:
            return artifact.path
        made_from = [part.sha256 or file_sha256(part.path) for part in (self.router_base(), artifact)]
        recipe = json.dumps([ROUTER_FORMAT, _ROUTER_BUILD, made_from, table.precision, self.experts])
        return cache_folder() / "routers" / f"{self.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.onnx"

    def built_router(self) -> Artifact | None:
        """The router's ONNX file in the cache and the sha256 that was noted when it was built."""
        table, path = self.manifest.router, self.router_model()
        if table is None or path is None or table.file:
            return None
        return Artifact("built router", path, None, _noted(path))

    def artifacts(self) -> Iterator[Artifact]:
        """All files that the manifest names: base, large model, experts, router and what it is made of."""
        yield self.base()
        if (large := self.large()) is not None:
            yield large
        for name in self.experts:
            if (artifact := self.expert(name)) is not None:
                yield artifact
        if (artifact := self.router()) is not None:
            yield artifact
        if (table := self.manifest.router) is not None and table.base is not None:
            yield self.router_base()

    def _artifact(self, role: str, file: str, source: str | None, sha256: str | None) -> Artifact:
        path = self.folder / file
        # A link may stand in for a file, which is then read, never written to; one to a folder would be written to.
        if path.parent != self.folder and not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError(f"{path.parent} is a link out of the bundle {self.folder}", "put the folder itself there")
        if source and not source.startswith(REMOTE):
            source = str(self.folder / os.path.expanduser(source))
        if source and not path.exists():
            name = (sha256 or hashlib.sha256(source.encode()).hexdigest())[:16]
            path = cache_folder() / "files" / name / path.name
            if sha256 is None:
                noted = _noted(path)
                return Artifact(role, path, source, noted, noted is not None)
        return Artifact(role, path, source, sha256)


def cache_folder() -> Path:
    """Where pulled and built files lie: ``$FRCLI_CACHE`` or the platform's cache folder for frcli."""
    if override := os.environ.get("FRCLI_CACHE"):
        return Path(override)
    from platformdirs import user_cache_path

    return user_cache_path("frcli", appauthor=False)


def read_bundle(name_or_path: str) -> Bundle:
    """The bundle with that name, or in that folder; only its manifest is read.

    Raises ``BundleError`` naming the file and the key when it is missing or wrong.
    """
    folder = find_bundle(name_or_path)
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise BundleError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the manifest"
        problem = "is not a known key" if first["type"] == "extra_forbidden" else f"is wrong: {first['msg']}"
        raise BundleError(f"{path}: {key} {problem}", "compare it with docs/bundles.md") from None
    return Bundle(folder, manifest)


def file_sha256(path: Path) -> str:
    """Hex sha256 of the file's contents, computed once for as long as its size and its time of change stay as they are.

    Raises ``BundleError`` when it cannot be read.
    """
    try:
        known = _hash_of(path)
        if known.is_file():
            return known.read_text()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}", "pull the bundle again with frcli models pull"
        ) from None
    keep_sha256(path, digest)
    return digest


def keep_sha256(path: Path, digest: str) -> None:
    """Let :func:`file_sha256` know what the file hashes to."""
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a hash at the next start, nothing else
        known = _hash_of(path)
        known.parent.mkdir(parents=True, exist_ok=True)
        beside = known.with_name(f"{known.name}.{os.getpid()}.part")
        beside.write_text(digest)
        beside.replace(known)


def _hash_of(path: Path) -> Path:
    status = path.stat()
    stamp = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    return cache_folder() / "sha256" / hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()


def sha256_note(path: Path) -> Path:
    """Where the sha256 of a file in the cache is noted that no manifest gives: it was built here, or pulled without."""
    return path.with_name(path.name + ".sha256")


def _noted(path: Path) -> str | None:
    try:
        return _sha256(sha256_note(path).read_text().strip())
    except (OSError, ValueError):
        return None


def check_artifact(artifact: Artifact) -> None:
    """Raise ``BundleError`` unless the file is there and hashes to what the manifest says."""
    path = artifact.path
    if not path.is_file():
        raise BundleError(f"the {artifact.role} file {path} is missing", "fetch it with frcli models pull")
    if artifact.sha256 is not None and (actual := file_sha256(path)) != artifact.sha256:
        raise BundleError(
            f"the {artifact.role} file {path} has sha256 {actual[:12]}..., not {artifact.sha256[:12]}...",
            "delete it and run frcli models pull",
        )
