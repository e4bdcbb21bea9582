"""Where the files of a checkpoint are: a folder, or a repository of the Hugging Face Hub that is fetched first."""

from __future__ import annotations

import re
from pathlib import Path

from frcli.errors import ModelError
from frcli.hub import hub_checkpoint

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def source_folder(src: str) -> Path:
    """Return the folder that ``src`` names, or the one that a repository OWNER/NAME was fetched into.

    Nothing is fetched if there is something at the path ``src``. Raises ``ModelError`` if it is neither, ``FetchError``
    if the repository cannot be had.
    """
    path = Path(src).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _REPOSITORY.fullmatch(src):
        kind = f"{path} is a file" if path.exists() else f"there is no folder {path}"
        raise ModelError(kind, "give a folder with config.json and safetensors, or OWNER/NAME on the Hugging Face Hub")
    return hub_checkpoint(src)
