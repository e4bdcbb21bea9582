"""A Hugging Face tokenizer as the vocabulary of a GGUF.

llama.cpp has two kinds that matter here: byte-level BPE ("gpt2"), whose merges are listed and whose cutting is named,
and SentencePiece BPE ("llama"), which joins the neighbours with the best score and writes other bytes as <0x..>.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.hugging import read_json
from converters.pretokenizer import pre_tokenizer_name
from converters.sentencepiece_model import read_pieces
from frcli.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPECIAL = ("bos", "eos", "unk", "pad")
_SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

Template = str | list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF says of its tokenizer; ``tokens``, ``types`` and ``scores`` are by id, one for each row of the
    embedding.

    ``model`` is "gpt2" or "llama". ``special`` are ids by role (bos, eos, eot, unk, pad). ``spaced`` says that text
    gets a space before it, ``strips`` that some special token swallows the spaces after it, and ``size`` how many ids
    are the tokenizer's own.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    size: int
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    spaced: bool = False
    strips: bool = False
    template: Template | None = None

    def add_to(self, writer: Any) -> None:
        """Add the fields to a ``GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([token.encode("utf-8", "surrogatepass") for token in self.tokens])
        writer.add_token_types(self.types)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.spaced)
        else:
            writer.add_token_merges(self.merges)
        for role, token in self.special.items():
            getattr(writer, f"add_{role}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.template is not None:
            writer.add_chat_template(self.template)


@dataclass(frozen=True, slots=True)
class _Added:
    """A token that is found in text before anything else."""

    id: int
    text: str
    special: bool
    rstrip: bool = False


def read_vocabulary(folder: Path, width: int, pre: str | None = None) -> Vocabulary:
    """Return the vocabulary of the tokenizer in a folder, filled up to ``width`` ids with unused ones.

    ``pre`` is llama.cpp's name of the pre-tokenizer, found from tokenizer.json if it is None. Raises ``ModelError`` for
    files that are missing or damaged, a tokenizer of another kind, and one that has more ids than ``width``.
    """
    try:
        return _read(folder, width, pre)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the tokenizer in {folder} cannot be read: {type(error).__name__} {error}", "fetch it again"
        ) from error


def _read(folder: Path, width: int, pre: str | None) -> Vocabulary:
    file, pieces_file = folder / "tokenizer.json", folder / "tokenizer.model"
    settings = _optional(folder / "tokenizer_config.json")
    tokenizer = _optional(file)
    model = tokenizer.get("model", {})
    if tokenizer and model.get("type") != "BPE":
        raise ModelError(f"{file} is a tokenizer of the kind {model.get('type')!r}", "only BPE can be converted")
    if not tokenizer and not pieces_file.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json and no tokenizer.model", "save the tokenizer with transformers there"
        )
    added = _added(folder, tokenizer, settings)
    _check_ids([*model.get("vocab", {}).values(), *(token.id for token in added)], folder, width)
    merges: list[str] = []
    if pieces_file.is_file() and (not tokenizer or model.get("byte_fallback")):
        texts, types, scores, spaced = _pieces(pieces_file)
        kind, name = "llama", pre or "default"
    elif model.get("byte_fallback"):
        texts, types, scores, spaced = _byte_fallback(file, tokenizer)
        kind, name = "llama", pre or "default"
    else:
        texts, types = _by_id(model["vocab"])
        scores, spaced = [0.0] * len(texts), False
        kind, name, merges = "gpt2", pre or pre_tokenizer_name(tokenizer, file), _merges(model)
    _lay_over(texts, types, scores, added, kind)
    size = len(texts)
    _check_ids([size - 1], folder, width)
    texts += [f"[PAD{number}]" for number in range(size, width)]
    types += [UNUSED] * (width - size)
    scores += [-1000.0] * (width - size)
    ids = {text: number for number, text in enumerate(texts)}
    template = _template(folder, settings)
    special = _special(folder, settings, ids, width, template)
    starts, ends = _adds(tokenizer, settings, special, ids)
    return Vocabulary(
        kind, name, texts, types, scores, merges, size, special, starts, ends, spaced,
        strips=any(token.rstrip and token.special for token in added),
        template=template,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tokens


def _added(folder: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> list[_Added]:
    """The tokens outside the model, from the newest place that names them."""
    if tokenizer:
        listed = {int(each["id"]): each for each in tokenizer.get("added_tokens", ())}
    else:
        old = {int(number): {"content": text} for text, number in _optional(folder / "added_tokens.json").items()}
        listed = old | {int(number): each for number, each in settings.get("added_tokens_decoder", {}).items()}
    return [
        _Added(number, str(each["content"]), bool(each.get("special")), bool(each.get("rstrip")))
        for number, each in sorted(listed.items())
    ]


def _check_ids(ids: Sequence[int], folder: Path, width: int) -> None:
    """Raise ``ModelError`` for an id that has no row in the embedding, before lists of such a length are made."""
    if (most := max(ids, default=-1)) >= width:
        raise ModelError(
            f"the tokenizer in {folder} has {most + 1} ids and the embedding only {width} rows",
            "they do not belong together: fetch both again",
        )
    if (least := min(ids, default=0)) < 0:
        raise ModelError(f"the tokenizer in {folder} has the id {least}", "fetch it again")


def _by_id(vocab: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """The texts by id and their types; ids that no text has are unused."""
    size = max(vocab.values(), default=-1) + 1
    texts, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for text, number in vocab.items():
        texts[number], types[number] = text, NORMAL
    return texts, types


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [_unicode(merge if isinstance(merge, str) else " ".join(merge)) for merge in model["merges"]]


def _pieces(file: Path) -> tuple[list[str], list[int], list[float], bool]:
    pieces, spaced = read_pieces(file)
    texts = [piece.text.replace(_SPACE, " ") if piece.kind == USER_DEFINED else piece.text for piece in pieces]
    return texts, [piece.kind for piece in pieces], [piece.score for piece in pieces], spaced


def _byte_fallback(file: Path, tokenizer: Mapping[str, Any]) -> tuple[list[str], list[int], list[float], bool]:
    """A SentencePiece BPE model in Hugging Face's form: the score of a piece is how early it is merged."""
    model = tokenizer["model"]
    texts, types = _by_id(model["vocab"])
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    scores = [-float(ranks.get(text, len(ranks))) for text in texts]
    types = [BYTE if _BYTE.fullmatch(text) else kind for text, kind in zip(texts, types, strict=True)]
    if model.get("unk_token") is not None:
        types[texts.index(model["unk_token"])] = UNKNOWN
    return texts, types, scores, _is_spaced(file, tokenizer)


def _is_spaced(file: Path, tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text; raises ``ModelError`` for normalizing that SentencePiece does not do."""
    normalizer, cut = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    known = {"Prepend": {"prepend": _SPACE}, "Replace": {"pattern": {"String": " "}, "content": _SPACE}}
    for step in steps:
        if known.get(step["type"]) != {key: value for key, value in step.items() if key != "type"}:
            raise ModelError(
                f"{file} normalizes text by {step}, which llama.cpp does not do",
                "only Llama's and Gemma's ways are known",
            )
    # Gemma cuts at spaces when none are left, which does nothing.
    if cut.get("type") not in (None, "Metaspace") and cut.get("pattern") != {"String": " "}:
        raise ModelError(
            f"{file} cuts text by {cut.get('type')}, which llama.cpp does not do",
            "only Llama's and Gemma's ways are known",
        )
    return any(step["type"] == "Prepend" for step in steps) or (
        cut.get("type") == "Metaspace" and cut.get("prepend_scheme", "always") != "never"
    )


def _lay_over(texts: list[str], types: list[int], scores: list[float], added: Sequence[_Added], kind: str) -> None:
    for token in added:
        for number in range(len(texts), token.id + 1):
            texts.append(f"[PAD{number}]")
            types.append(UNUSED)
            scores.append(-1000.0)
        if types[token.id] in (UNKNOWN, BYTE) and texts[token.id] == token.text:
            continue
        # llama.cpp looks for these tokens in the text as it was written, where a space is a space.
        plain = token.text.replace(_SPACE, " ") if kind == "llama" and not token.special else token.text
        texts[token.id], types[token.id] = plain, CONTROL if token.special else USER_DEFINED


# --------------------------------------------------------------------------------------------------- special, template


def _special(
    folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int], width: int, template: Template | None
) -> dict[str, int]:
    """Ids by role: by the tokenizer's own words first, then by those of the model."""
    mapped = _optional(folder / "special_tokens_map.json")
    config = _optional(folder / "config.json") | _optional(folder / "generation_config.json")
    special: dict[str, int] = {}
    ends: list[int] = []
    for role in _SPECIAL:
        named = settings.get(f"{role}_token") or mapped.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        listed = config.get(f"{role}_token_id")
        numbers = [number for number in (listed if isinstance(listed, list) else [listed]) if isinstance(number, int)]
        if role == "eos":
            ends = numbers
        if text in ids:
            special[role] = ids[str(text)]
        elif numbers and 0 <= numbers[0] < width:
            special[role] = numbers[0]
    # Of several ends, a turn ends by the one that the template writes; llama.cpp has a place for it beside eos.
    written, texts = str(template or ""), {number: text for text, number in ids.items()}
    turns = [number for number in ends if number in texts and texts[number] in written]
    if turns and special.get("eos") not in turns:
        special["eot"] = turns[-1]
    return special


def _adds(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], special: Mapping[str, int], ids: Mapping[str, int]
) -> tuple[bool, bool]:
    """Whether bos is put before a text and eos behind it."""
    processor = tokenizer.get("post_processor") or {}
    starts = ends = False
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            around = [ids.get(each.get("SpecialToken", {}).get("id", ""), -1) for each in step.get("single", ())]
            starts = bool(around) and around[0] == special.get("bos", -2)
            ends = bool(around) and around[-1] == special.get("eos", -2)
    if not tokenizer:
        starts = "bos" in special  # as Llama's and Gemma's tokenizers do unless they are told otherwise
    told = [settings.get(f"add_{role}_token") for role in ("bos", "eos")]
    starts, ends = (bool(found if said is None else said) for found, said in zip((starts, ends), told, strict=True))
    return starts and "bos" in special, ends and "eos" in special


def _template(folder: Path, settings: Mapping[str, Any]) -> Template | None:
    """The chat template: a file of its own, or among the settings, as one text or as a list of named ones."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"cannot read {file}: {error.strerror}") from error
    template = settings.get("chat_template") or _optional(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        return [{key: _unicode(each[key]) for key in ("name", "template")} for each in template]
    return _unicode(template) if isinstance(template, str) else None


def _unicode(text: Any) -> str:
    """The text, if it can be written in UTF-8: JSON can spell halves of characters, which raise ``ValueError``."""
    str(text).encode("utf-8")
    return str(text)


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
