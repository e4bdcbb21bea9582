"""A model as it is named on the command line, whatever its form, ready to be compared with another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from converters.checkpoint import open_checkpoint
from converters.gguf_file import write_vocabulary
from converters.llamacpp import LlamaRunner
from converters.lora import in_parts, merge, read_peft
from converters.reference import ReferenceRunner
from converters.runner import Runner
from converters.session import RouterRunner
from converters.trained import FILE_NAME, read_trained
from converters.vocabulary import read_vocabulary
from frcli.checks.gguf import check_gguf
from frcli.errors import ModelError, UsageError

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and where its vocabulary can be read: ``vocabulary`` is a GGUF for llama.cpp, None if there is none, and
    ``digest`` the hash of the vocabulary that a router was made for.
    """

    name: str
    runner: Runner
    vocabulary: Path | None = None
    digest: str = ""


@contextmanager
def open_subject(path: Path, base: Path | None = None) -> Iterator[Subject]:
    """Yield the model at ``path``: a GGUF (run by llama.cpp), a folder of Hugging Face's (by
    :mod:`converters.reference`), a router in ONNX (by ONNX Runtime), or an adapter or a trained router with its
    ``base``.

    Raises ``UsageError`` for an adapter without a base or another model with one, ``ModelError`` for files that are
    missing, damaged or not supported.
    """
    with TemporaryDirectory() as scratch:
        subject = _open(path, base, Path(scratch))
        try:
            yield subject
        finally:
            subject.runner.close()


def needs_base(path: Path) -> bool:
    """Whether the file or folder is no model without its base; raises ``ModelError`` for a file that is no model."""
    if path.is_dir():
        return not (path / "config.json").is_file() and (
            (path / "adapter_config.json").is_file() or (path / FILE_NAME).is_file()
        )
    return path.suffix == ".safetensors" or (_magic(path) == b"GGUF" and check_gguf(path).is_adapter)


def _open(path: Path, base: Path | None, scratch: Path) -> Subject:
    name = str(path)
    if not needs_base(path):
        if path.is_dir():
            return Subject(name, ReferenceRunner(open_checkpoint(path)), vocabulary_file(path, scratch))
        if _magic(path) == b"GGUF":
            return Subject(name, LlamaRunner(path), path)
        router = RouterRunner(path)
        return Subject(name, router, None, router.vocabulary)
    if base is None:
        raise UsageError(f"{path} is no model without its base", "name the base with --base")
    if path.is_file() and path.suffix != ".safetensors":
        if base.is_dir():
            raise UsageError(f"{base} is a folder, and llama.cpp needs a GGUF", f"give the GGUF that {path} is for")
        return Subject(name, LlamaRunner(base, path), base)
    checkpoint, vocabulary = open_checkpoint(base), vocabulary_file(base, scratch)
    if path.is_dir() and not (path / FILE_NAME).is_file():
        merged = merge(checkpoint, in_parts(checkpoint.config, read_peft(path)))
        return Subject(name, ReferenceRunner(merged), vocabulary)
    trained = read_trained(path)
    if trained.layers is not None:
        checkpoint = checkpoint.keeping(trained.layers)
    if trained.routing.shape[1] != checkpoint.config.hidden:
        raise ModelError(f"{path} routes by another width than {base} has", "give the base that it was trained on")
    runner = ReferenceRunner(merge(checkpoint, trained.delta), trained.routing, trained.prompt, trained.gate)
    return Subject(name, runner, vocabulary)


def vocabulary_file(path: Path, scratch: Path) -> Path | None:
    """Return the model's vocabulary as a GGUF: the file itself, or one made in ``scratch`` of a folder's tokenizer.

    The result is None if the folder has none.
    """
    if not path.is_dir():
        return path
    if not any((path / name).is_file() for name in _TOKENIZERS):
        return None
    config = open_checkpoint(path).config
    file = scratch / "vocabulary.gguf"
    write_vocabulary(file, read_vocabulary(path, config.vocab), config, {"name": "vocabulary"})
    return file


def _magic(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}", "give a model's file or folder"
        ) from error
    if start.startswith(_PICKLES):
        raise ModelError(
            f"{path} is a pickle file, which can run any code when it is read", "use its safetensors files"
        )
    return start
