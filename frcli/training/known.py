"""What experts say of every answer token, by llama.cpp itself (the quantized experts that will be used), kept on disk.

Whole rows would take 200 kB a token, so a row keeps its likeliest tokens and a sample of the others, by rank:

    rank 0 to 128        all of them
    rank 128 to 1024     96 of them, drawn evenly
    the rest             32 of them

Each kept token stands for as many as its stratum has for each that was drawn, so a sum over the vocabulary of any
function of the row is estimated without bias; the likeliest tokens, which make up nearly all of it, are exact.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError, OutputError
from frcli.examples import Encoded
from frcli.files import locked
from frcli.fusion.likelihood import log_normalizer
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.onnx import OnnxRouter
from frcli.sources.source import Feed, Logits, LogitSource
from frcli.tokens import explain_difference, vocabulary_hash
from frcli.training.loop import fingerprint

_STRATA = ((0, 128, 128), (128, 1024, 96), (1024, None, 32))  # first rank, last rank, how many are kept
BYTES = 6 * sum(kept for _, _, kept in _STRATA)  # for one token of one expert
_BLOCK = 128  # rows that are asked for at once
_SAVE_EVERY = 20  # examples


@dataclass(frozen=True, slots=True)
class KnownRows:
    """One expert's rows at the answer tokens of all examples, in their order.

    ``ids`` int32 and ``logp`` float16 [tokens, kept] are the kept tokens and their log-probs, which ``weight`` float32
    [kept] counts; ``gold`` float32 [tokens] is the log-prob of the right token, ``best`` int32 [tokens] the likeliest.
    Where only the right token's was asked for, nothing else is kept.
    """

    ids: NDArray[np.int32]
    logp: NDArray[np.float16]
    gold: NDArray[np.float32]
    best: NDArray[np.int32]
    weight: NDArray[np.float32]


def distinct(examples: Sequence[Encoded]) -> tuple[list[Encoded], list[slice]]:
    """The different ones among the examples, in their order, and for each of ``examples`` where its answer tokens are
    among those of these.
    """
    different: dict[tuple[tuple[int, ...], tuple[int, ...]], slice] = {}
    first: list[Encoded] = []
    spans, end = [], 0
    for example in examples:
        key = tuple(example.prompt), tuple(example.answer)
        if key not in different:
            different[key] = slice(end, end + len(example.answer))
            end += len(example.answer)
            first.append(example)
        spans.append(different[key])
    return first, spans


def strata(width: int) -> list[tuple[int, int, int]]:
    """The strata of a vocabulary of ``width``: first rank, last rank and how many of these are kept."""
    found = []
    for first, last, kept in _STRATA:
        end = min(width, width if last is None else last)
        if end > first:
            found.append((first, end, min(kept, end - first)))
    return found


def weights(width: int) -> NDArray[np.float32]:
    """How many tokens each kept one stands for, float32 [kept]."""
    return np.concatenate([np.full(kept, (end - first) / kept, np.float32) for first, end, kept in strata(width)])


def keep(logits: Logits, random: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Ids and log-probs of the tokens that are kept of one row, float32 [width]; the likeliest one is the first."""
    parts = strata(len(logits))
    cuts = [first for first, _, _ in parts[1:]]
    order = np.argpartition(-logits, cuts) if cuts else np.arange(len(logits))
    chosen = []
    for first, end, kept in parts:
        stratum = order[first:end]
        chosen.append(stratum if kept == len(stratum) else random.choice(stratum, kept, replace=False))
    ids = np.concatenate(chosen).astype(np.int32)
    front = int(logits[ids].argmax())
    ids[[0, front]] = ids[[front, 0]]
    return ids, (logits[ids] - log_normalizer(logits[None])[0]).astype(np.float16)


def is_adapter(file: Path) -> bool:
    """Whether a GGUF file is a LoRA adapter rather than a model; raises ``ModelError`` if it is no GGUF."""
    from gguf import GGUFReader

    try:
        kind = GGUFReader(file).fields.get("general.type")
        return kind is not None and kind.contents() == "adapter"
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"cannot read {file} as GGUF: {error}", "fetch it again") from None


def known_rows(
    base: Path,
    experts: Mapping[str, Path | None],
    examples: Sequence[Encoded],
    folder: Path,
    threads: int,
    report: Callable[[str, int, int], None],
    gpu_layers: int = 0,
    *,
    gold_only: bool = False,
) -> dict[str, KnownRows]:
    """Every expert's rows: those of the GGUF ``base`` with its GGUF adapter, of a GGUF model of its own, or (None) of
    the base itself.

    They are kept in ``folder`` and read again if they fit; a run that was cut off goes on. With ``gold_only`` no more
    is kept than the right token's log-prob and the likeliest token. ``gpu_layers`` is passed to llama.cpp (untested).
    ``report(label, done, total)`` counts examples. Raises ``ModelError`` for a model of another tokenizer than the
    base's.
    """
    found = {}
    texts = _texts(base)
    kept = () if gold_only else _STRATA
    for name, file in experts.items():
        whole = base if file is None or is_adapter(file) else file
        adapter = None if whole == file else file
        files = [whole] if adapter is None else [whole, adapter]
        place = folder / f"{name}-{fingerprint(files, examples, kept)[:16]}"
        if not place.is_dir():
            if whole != base:
                difference = explain_difference(str(base), texts, str(whole), _texts(whole))
                if difference:
                    raise ModelError(difference, "experts must share the base's tokenizer")
            with _expert(whole, adapter, examples, threads, gpu_layers) as source:
                count = partial(_count, report, f"asking {name}", len(examples))
                _write(source, len(texts), examples, place, count, gold_only)
        found[name] = _read(place)
    return found


def teacher_rows(
    router: Path,
    base: Path,
    examples: Sequence[Encoded],
    folder: Path,
    threads: int,
    report: Callable[[str, int, int], None],
) -> KnownRows:
    """The rows of an ONNX router, to be distilled from, kept and read again in the same way; raises ``ModelError`` for
    one of another tokenizer than the GGUF ``base``.
    """
    place = folder / f"teacher-{fingerprint([router], examples, _STRATA)[:16]}"
    if not place.is_dir():
        source = OnnxRouter(router, context=_longest(examples), threads=threads)
        try:
            if source.vocabulary != vocabulary_hash(_texts(base)):
                raise ModelError(f"{router} was made for another tokenizer than {base}", "use a router of its family")
            _write(
                source,
                source.width,
                examples,
                place,
                partial(_count, report, "asking the teacher", len(examples)),
                False,
            )
        finally:
            source.close()
    return _read(place)


def _count(report: Callable[[str, int, int], None], label: str, total: int, done: int) -> None:
    report(label, done, total)


def _longest(examples: Sequence[Encoded]) -> int:
    return max(len(example.prompt) + len(example.answer) for example in examples)


def _texts(base: Path) -> list[bytes]:
    """What the tokens of a GGUF say."""
    model = LlamaModel(base, vocab_only=True)
    try:
        return model.texts()
    finally:
        model.close()


@contextmanager
def _expert(
    base: Path, adapter: Path | None, examples: Sequence[Encoded], threads: int, gpu_layers: int
) -> Iterator[LogitSource]:
    """An expert in llama.cpp."""
    model = LlamaModel(base, gpu_layers=gpu_layers)
    try:
        loaded = model.load_adapter(adapter) if adapter is not None else None
        source = LlamaSource(model, context=_longest(examples), adapter=loaded, threads=threads, max_rows=_BLOCK)
        try:
            yield source
        finally:
            source.close()
    finally:
        model.close()


def _read(place: Path) -> KnownRows:
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in ("ids", "logp", "gold", "best", "weight")}
    return KnownRows(**arrays)


def _write(
    source: LogitSource,
    width: int,
    examples: Sequence[Encoded],
    place: Path,
    report: Callable[[int], None],
    gold_only: bool,
) -> None:
    """Write a source's rows beside their place, and rename them when they are whole; raises ``OutputError`` if another
    process is at it.
    """
    beside = place.with_name(f"{place.name}.part")
    beside.mkdir(parents=True, exist_ok=True)
    try:
        lock = locked(beside)
    except BlockingIOError:
        raise OutputError(
            f"another training is writing {beside}", "start this one when it has asked its experts"
        ) from None
    try:
        _score(source, width, examples, beside, report, gold_only)
        (beside / "done.json").unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        beside.replace(place)
    finally:
        if lock is not None:
            os.close(lock)


def _score(
    source: LogitSource,
    width: int,
    examples: Sequence[Encoded],
    folder: Path,
    report: Callable[[int], None],
    gold_only: bool,
) -> None:
    tokens, weight = sum(len(example.answer) for example in examples), weights(width)[: 0 if gold_only else None]
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.int32, (tokens, len(weight))),
        "logp": (np.float16, (tokens, len(weight))),
        "gold": (np.float32, (tokens,)),
        "best": (np.int32, (tokens,)),
    }
    marker = folder / "done.json"
    first = json.loads(marker.read_text()) if marker.is_file() else 0
    mode = "r+" if first else "w+"
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode, dtype=kind, shape=shape)
        for name, (kind, shape) in shapes.items()
    }
    np.save(folder / "weight.npy", weight)
    at = sum(len(example.answer) for example in examples[:first])
    for number in range(first, len(examples)):
        random = np.random.default_rng(number)  # so that a run that was cut off draws the same
        begin = at
        for target, row in zip(examples[number].answer, answer_rows(source, width, examples[number]), strict=True):
            if not gold_only:
                arrays["ids"][at], arrays["logp"][at] = keep(row, random)
            arrays["gold"][at] = row[target] - log_normalizer(row[None])[0]
            arrays["best"][at] = row.argmax()
            at += 1
        if not np.isfinite(arrays["gold"][begin:at]).all():
            raise ModelError("an expert gives logits that are not finite", "convert it again")
        report(number + 1)
        if (number + 1) % _SAVE_EVERY == 0:
            for array in arrays.values():
                array.flush()
            part = marker.with_name("done.part")
            part.write_text(json.dumps(number + 1))
            part.replace(marker)
    for array in arrays.values():
        array.flush()


def answer_rows(source: LogitSource, width: int, example: Encoded) -> Iterator[Logits]:
    """The row before each answer token, float32 [width]; a view that holds until the next one is asked for."""
    source.rewind(0, 0)
    source.extend([Feed(0, example.prompt[:-1], 0)])
    inputs = [example.prompt[-1], *example.answer[:-1]]
    for start in range(0, len(inputs), _BLOCK):
        block = inputs[start : start + _BLOCK]
        (rows,) = source.extend([Feed(0, block, len(block))])
        yield from rows.logits[:, :width]
