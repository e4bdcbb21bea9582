"""Where the files of a checkpoint are: a folder, or a repository of the Hugging Face Hub that is fetched first."""

from __future__ import annotations

import re
from pathlib import Path

from frcli.errors import FetchError, MissingExtra, ModelError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Not what some repositories hold besides: the same weights in another form, and files of other programs in folders.
_UNWANTED = ["*/*", "consolidated*"]
_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md"]


def source_folder(src: str) -> Path:
    """Return the folder that ``src`` names, or the one that a repository OWNER/NAME was fetched into.

    Nothing is fetched if there is something at the path ``src``. Raises ``ModelError`` if it is neither, ``FetchError``
    if the repository cannot be had, ``MissingExtra`` without huggingface_hub.
    """
    path = Path(src).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _REPOSITORY.fullmatch(src):
        kind = f"{path} is a file" if path.exists() else f"there is no folder {path}"
        raise ModelError(kind, "give a folder with config.json and safetensors, or OWNER/NAME on the Hugging Face Hub")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("the package huggingface_hub is not installed", "pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(src, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except Exception as error:  # the hub, the network and the disk each have errors of their own
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise FetchError(
            f"there is no folder {path}, and {src} cannot be fetched from the Hugging Face Hub: {said[0]}",
            "check the name and the network, or give a folder",
        ) from error
