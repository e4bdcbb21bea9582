"""Hugging Face checkpoint -> GGUF, the form in which llama.cpp runs a model, in any of its types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.decoder import Checkpoint
from converters.foreign import run_script
from converters.gguf_file import FILE_TYPES, context_length, hyperparameters, write_model, write_vocabulary
from converters.hugging import open_folder, read_config, read_json, shards, stored_types
from converters.llamacpp import LlamaRunner, tokenize_all
from converters.output import refuse_existing, staging
from converters.parity import TEXT, Parity, Tally, Window, check_window
from converters.reference import logits as reference_logits
from converters.requantize import read_importance, requantize, type_number
from converters.runner import BLOCK, Array, Rows
from converters.tokenization import COMMON, RARE, disagreement
from converters.vocabulary import CONTROL, USER_DEFINED, Vocabulary, read_vocabulary
from frcli.errors import MissingExtra, ModelError, UsageError

# Mean KL in nats above which a conversion is taken for broken; half-precision matrices also round what they multiply.
_LIMITS = {"f32": 1e-3, "f16": 0.1, "bf16": 0.1}
_WHOLE = {frozenset({"F16"}): "f16", frozenset({"BF16"}): "bf16"}
_CHECKED = 320
_MARKS = (CONTROL, USER_DEFINED)


@dataclass(frozen=True, slots=True)
class Conversion:
    """How well the result agrees with its source, None if that was not checked, and what there is to know of it."""

    parity: Parity | None
    notices: tuple[str, ...] = ()


def convert_expert(
    src: Path,
    out: Path,
    quant: str = "f16",
    *,
    imatrix: Path | None = None,
    pre: str | None = None,
    llama_cpp: Path | None = None,
    force: bool = False,
    verify: bool = True,
) -> Conversion:
    """Write the GGUF ``out`` made of the checkpoint in the folder ``src``, in the type ``quant``.

    f32, f16 and bf16 are written here, a few rows at a time; of other types llama.cpp makes the result out of a file as
    exact as the source. ``imatrix`` is an importance matrix for them, ``pre`` overrides llama.cpp's name of the
    pre-tokenizer, and ``llama_cpp`` is a checkout whose own script reads ``src`` instead. With ``verify`` llama.cpp's
    logits are compared with those of :mod:`converters.reference`; a result that is far off is not kept.

    Raises ``UsageError`` for an unknown type or options that exclude each other, ``ModelError`` for files that cannot
    be read or are not supported, ``MissingExtra`` without llama-cpp-python where it is needed, ``OutputError`` if the
    result exists or cannot be written.
    """
    direct = quant.lower() in FILE_TYPES
    if not direct:
        type_number(quant)
    elif imatrix is not None:
        raise UsageError(f"{quant} needs no importance matrix", "leave --imatrix out or choose a smaller type")
    if llama_cpp is not None and pre is not None:
        raise UsageError("--pre has no meaning for llama.cpp's own script", "leave one of --pre and --llama-cpp out")
    refuse_existing(out, force)
    importance = None if imatrix is None else read_importance(imatrix)
    precision = quant.lower() if direct else ""
    with staging(out, force) as folder:
        whole = folder / (out.name if direct else f"{out.name}.whole")
        notices: list[str] = []
        if llama_cpp is not None:
            run_script(llama_cpp, src, whole, precision or "auto")
            if verify and direct:
                notices.append("it was not compared with its source, which only llama.cpp's own script can read")
            check = _Check.against_llama_cpp(whole) if verify and not direct else None
        else:
            source = _open(src)
            precision = precision or _WHOLE.get(frozenset(stored_types(src)), "f32")
            notices += _write(whole, source, precision, pre)
            check = _Check.against_source(source, whole) if verify else None
            if check:
                check.parity(whole).require(_LIMITS[precision], f"the model converted from {src}")
        if not direct:
            requantize(whole, folder / out.name, quant, importance)
            whole.unlink()
        # Of a type with few bits nobody can say how far off is too far: the figure is for the user to judge.
        return Conversion(check.parity(folder / out.name) if check else None, tuple(notices))


@dataclass(frozen=True, slots=True)
class _Check:
    """A text and the logits, float32 [tokens, vocab], that a result should give for it."""

    window: Window
    expected: Array

    @classmethod
    def against_source(cls, source: Checkpoint, whole: Path) -> _Check:
        window = check_window(
            whole, source.config.vocab, min(_CHECKED, source.config.context, context_length(source.config))
        )
        return cls(window, reference_logits(source, window.tokens))

    @classmethod
    def against_llama_cpp(cls, whole: Path) -> _Check:
        tokens = tokenize_all(whole, [TEXT], add_special=True, parse_special=False)[0][:_CHECKED]
        with closing(LlamaRunner(whole)) as runner:
            expected = np.empty((len(tokens), runner.vocab), dtype=np.float32)
            for at, rows in zip(range(0, len(tokens), BLOCK), runner.blocks(tokens), strict=True):
                expected[at : at + BLOCK] = rows.logits
        return cls(Window(tokens, [*tokens[1:], None]), expected)

    def parity(self, result: Path) -> Parity:
        tally = Tally()
        expected = (Rows(self.expected[at : at + BLOCK]) for at in range(0, len(self.expected), BLOCK))
        with closing(LlamaRunner(result)) as runner:
            tally.add_blocks(self.window, expected, runner.blocks(self.window.tokens))
        return tally.parity()


def _open(src: Path) -> Checkpoint:
    read_json(src / "config.json")  # without which llama.cpp's script is no help either
    try:
        read_config(src)
    except ModelError as error:
        raise ModelError(
            error.what, f"{error.hint}; a checkout of llama.cpp may know it: name its folder with --llama-cpp"
        ) from error
    return open_folder(src)


def _write(path: Path, source: Checkpoint, precision: str, pre: str | None) -> Iterator[str]:
    """Write the model, and yield what there is to know of it."""
    src, config = source.path, source.config
    hyperparameters(src, config)  # what llama.cpp cannot run is found before any work is done
    vocabulary = read_vocabulary(src, config.vocab, pre)
    about = _about(src)
    about["name"] = _telling_name(about["name"], vocabulary)
    yield from _tokens_agree(path.with_name(f"{path.name}.vocabulary"), source, vocabulary, about, pre)
    if context_length(config) < (config.long_context or config.context):
        yield (
            f"llama.cpp reads all of a text where this model sees only the last {context_length(config)} tokens: "
            f"the file gives {context_length(config)} as its context"
        )
    write_model(path, source, shards(src), vocabulary, precision, about)


def _telling_name(name: str, vocabulary: Vocabulary) -> str:
    """The name of the model such that llama.cpp takes its tokenizer for what it is.

    In models with Phi-3 in their names it drops the spaces after special tokens, and cannot do without these four.
    """
    named = any(each in name.lower() for each in ("phi-3", "phi3"))
    strips = vocabulary.strips and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(vocabulary.tokens)
    if strips and not named:
        return f"{name} (Phi-3)"
    return re.sub("(?i)phi-?3", "Phi 3", name) if named and not strips else name


def _tokens_agree(
    path: Path, source: Checkpoint, vocabulary: Vocabulary, about: Mapping[str, str], pre: str | None
) -> Iterator[str]:
    """Yield where llama.cpp cuts text otherwise than the tokenizer; raise ``ModelError`` if that is plain text.

    Not raised if the user named the pre-tokenizer.
    """
    src = source.path
    write_vocabulary(path, vocabulary, source.config, about)
    # Special tokens in the midst of text, where the models themselves put them.
    named = [text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in _MARKS][:8]
    marked = [form.format(text) for text in named for form in ("{0}Hello{0} world", "a {0} b", "{0}\n\nx{0}{0}")]
    try:
        if not (src / "tokenizer.json").is_file():
            yield "its tokens were not compared with those of a tokenizer.json, because there is none"
            return
        plain = disagreement(path, src, COMMON)
        others = [plain if pre else None, disagreement(path, src, RARE), disagreement(path, src, marked)]
    except MissingExtra as error:
        yield f"its tokens were not compared with those of tokenizer.json: {error}"
        return
    except ModelError as error:
        raise ModelError(error.what.replace(str(path), str(src)), error.hint or "choose another --pre") from error
    finally:
        path.unlink()
    if plain is not None and pre is None:
        raise ModelError(
            f"llama.cpp cuts {plain[:60]!r} into other tokens than {src / 'tokenizer.json'} does",
            "name another pre-tokenizer of llama.cpp with --pre; what is written with --pre may still differ",
        )
    for text in others:
        if text is not None:
            yield f"llama.cpp cuts {text[:60]!r} into other tokens than the model's own tokenizer"


def _about(src: Path) -> dict[str, str]:
    """The model's name, and its licence if the head of README.md says it."""
    place = src.resolve()
    # A folder that came from the hub is named by its commit, and two above it by its repository: models--OWNER--NAME.
    name = place.parents[1].name.split("--")[-1] if place.parent.name == "snapshots" else place.name
    about = {"name": name.encode("utf-8", "replace").decode("utf-8")}
    try:
        head = (src / "README.md").read_text(encoding="utf-8").split("---", 2)
    except (OSError, UnicodeError):
        return about
    lines = head[1].splitlines() if len(head) == 3 and not head[0].strip() else []
    licence = next((line.partition(":")[2].strip().strip("'\"") for line in lines if line.startswith("license:")), "")
    return about | ({"license": licence} if licence else {})
