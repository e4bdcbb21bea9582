"""Checkpoints whatever their form: a GGUF file or a Hugging Face safetensors folder, read lazily as float32."""

from __future__ import annotations

import hashlib
from pathlib import Path

from converters.decoder import Checkpoint
from converters.gguf_model import open_gguf
from converters.hugging import open_folder
from frcli.errors import ModelError


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a GGUF file (any quantization) or in a folder with config.json and safetensors files.

    Raises ``ModelError`` for a missing, truncated or corrupt file, and for a family that is not known.
    """
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return open_gguf(path)
    raise ModelError(
        f"there is no model at {path}", "give a GGUF file or a folder with config.json and model.safetensors"
    )


def fingerprint(path: Path) -> str:
    """Return the sha256 that names a base: of the file, or of the names and hashes of a folder's safetensors files."""
    if not path.is_dir():
        try:
            with open(path, "rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    whole = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        whole.update(f"{file.name} {fingerprint(file)}\n".encode())
    return whole.hexdigest()
