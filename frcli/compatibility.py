"""Whether a bundle's models belong together: one tokenizer, adapters that fit the base, a router for these experts.

Files are named by their roles, as :meth:`frcli.bundle.Bundle.artifacts` names them: ``base``, ``large``, ``expert
NAME``, ``router``, ``router's base``. Of a model only its header and its vocabulary are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from frcli.bundle import ROUTER_FORMAT, file_sha256
from frcli.errors import BundleError, ModelError
from frcli.fusion.policy import BASE, ROUTER
from frcli.metadata import expert_names, trained_gamma
from frcli.sources.ggml import Tensor, open_header
from frcli.sources.llama import LlamaModel
from frcli.sources.onnx_header import onnx_metadata
from frcli.sources.special_tokens import SpecialTokens, special_tokens
from frcli.tokens import explain_difference, vocabulary_hash

ROUTER_BASE = "router's base"
_EXPERT = "expert "


@dataclass(frozen=True, slots=True)
class Comparison:
    """What models have in common: the hash of their ``vocabulary``, empty without a base; for each expert with a file
    whether that is an ``adapter`` or a model ``file`` (``kinds``); and ``notes``, one sentence for each other
    difference that a user should know of.
    """

    vocabulary: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RouterPart:
    """What a router's file says of it: the experts in the order of its weights, the gamma that it was trained for, None
    where that is not known.
    """

    experts: tuple[str, ...]
    gamma: float | None


def compare(files: Mapping[str, Path]) -> Comparison:
    """Compare the models in these files, by role, with the base among them.

    Raises ``BundleError`` for models of other tokenizers, adapters of other models, and files in the wrong role,
    ``ModelError`` for files that cannot be read.
    """
    kinds: dict[str, str] = {}
    for role, path in files.items():
        if role == ROUTER:
            continue
        with open_header(path) as header:
            adapter = header.text("general.type") == "adapter"
        if role.startswith(_EXPERT):
            kinds[role.removeprefix(_EXPERT)] = "adapter" if adapter else "file"
        elif adapter:
            raise BundleError(f"the {role} {path} is an adapter", "give a model")
    base = files.get(BASE)
    if base is None:
        return Comparison(kinds=kinds)
    with closing(LlamaModel(base, vocab_only=True)) as first:
        texts, manner = first.texts(), _Manner.of(first)
    notes: list[str] = []
    for role, path in files.items():
        if role in (BASE, ROUTER):
            continue
        if kinds.get(role.removeprefix(_EXPERT)) == "adapter":
            _check_adapter(path, base)
            continue
        with closing(LlamaModel(path, vocab_only=True)) as other:
            if difference := explain_difference("the base", texts, role, other.texts()):
                raise BundleError(difference, "all models must share the base's tokenizer")
            notes += [f"{role}: {difference}" for difference in _Manner.of(other).differences(manner, texts)]
    return Comparison(vocabulary_hash(texts), kinds, notes)


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a model's conversations are laid out, and where its answers end."""

    template: str
    special: SpecialTokens

    @classmethod
    def of(cls, model: LlamaModel) -> _Manner:
        return cls(model.chat_template or "", special_tokens(model))

    def differences(self, base: _Manner, texts: Sequence[bytes]) -> Iterator[str]:
        """A sentence for each difference from the base's, whose tokens have these ``texts``."""
        own, theirs = self.special, base.special
        single = {
            "beginning token": (own.beginning, theirs.beginning),
            "end token": (own.end, theirs.end),
            "end-of-turn token": (own.end_of_turn, theirs.end_of_turn),
            "padding token": (own.padding, theirs.padding),
            "chat template": (self.template, base.template),
        }
        for what, (mine, counts) in single.items():
            if mine != counts:
                found, base_has = _shown(mine, counts), _shown(counts, mine)
                yield f"its {what} is {found}, the base's is {base_has}, which is what counts"
        sets = {"end an answer": (own.ends, theirs.ends), "are control tokens": (own.controls, theirs.controls)}
        for what, (some, others) in sets.items():
            if more := some - others:
                yield f"tokens that {what} for it and not for the base, which is what counts: {_listed(more, texts)}"
            if less := others - some:
                yield f"tokens that {what} for the base, which is what counts, and not for it: {_listed(less, texts)}"


def _listed(tokens: Set[int], texts: Sequence[bytes]) -> str:
    named = [ascii(texts[token].decode("utf-8", "replace"))[:40] for token in sorted(tokens)[:8]]
    return ", ".join(named) + (f", and {len(tokens) - 8} more" if len(tokens) > 8 else "")


def _shown(text: str, other: str) -> str:
    """The text from where it differs from the other one, a few characters before included."""
    begin = max(0, len(os.path.commonprefix([text, other])) - 20)
    return f"{'...' if begin else ''}{ascii(text[begin : begin + 60])}" if text else "missing"


def _check_adapter(path: Path, base: Path) -> None:
    """Raise ``BundleError`` unless every matrix of the adapter fits one of the base's."""
    with open_header(base) as header:
        family, sizes = header.text("general.architecture"), {each.name: each for each in header.tensors()}
    with open_header(path) as header:
        own, parts = header.text("general.architecture"), list(header.tensors())
    if own != family:
        raise BundleError(f"the adapter {path} was made for the architecture {own}, and the base is {family}")
    for part in parts:
        if problem := _misfit(part, sizes):
            raise BundleError(f"the adapter {path} does not fit the base: {problem}", "was it made for another model?")


def _misfit(part: Tensor, sizes: Mapping[str, Tensor]) -> str:
    name, _, side = part.name.rpartition(".")
    whole = sizes.get(name)
    if whole is None:
        return f"there is no {name}"
    if side == "lora_a" and part.columns != whole.columns:
        return f"{name} has {whole.columns} columns, not {part.columns}"
    if side == "lora_b" and part.rows != whole.rows:
        return f"{name} has {whole.rows} rows, not {part.rows}"
    return ""


def check_router(path: Path, experts: Sequence[str], vocabulary: str, role: str, made_of: Path | None) -> RouterPart:
    """What the router's file says of itself. It is made of the model in the ``role``, ``made_of`` if that is here.

    Raises ``BundleError`` for a router of other experts, of another tokenizer than ``vocabulary`` says (empty: not
    known) or of another model, ``ModelError`` for a file that is none.
    """
    if path.suffix == ".onnx":
        said = onnx_metadata(path)
        if said.get("frcli.format") != ROUTER_FORMAT:
            raise BundleError(f"{path} is no router of frcli's", "make one with frcli convert router")
        names, gamma = expert_names(said.get("frcli.experts"), path), trained_gamma(said.get("frcli.gamma"), path)
        found = RouterPart(names, gamma)
        if vocabulary and said.get("frcli.vocabulary") != vocabulary:
            raise BundleError(f"the router {path} was made for another tokenizer than the base's")
    else:
        found, made_from = _trained(path)
        source = file_sha256(made_of) if made_of is not None else ""
        if made_from and source and made_from != source:
            raise BundleError(
                f"the router {path} was trained on a model with sha256 {made_from[:12]}..., and the "
                f"{role} has {source[:12]}...",
                "give that model as --router-base",
            )
    if set(found.experts) != set(experts):
        raise BundleError(
            f"the router chooses among {', '.join(found.experts) or 'nobody'}, "
            f"and the experts are {', '.join(experts)}",
            "name the experts as the router does; --expert NAME without a file is the base itself",
        )
    return found


def _trained(path: Path) -> tuple[RouterPart, str]:
    """What a trained router says of itself, and the sha256 of the model that it was trained on."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            said = stored.metadata() or {}
    except (SafetensorError, ValueError, OSError):
        said = {}
    if "experts" not in said:
        raise ModelError(f"{path} is no router", "give router.safetensors of frcli train, or an ONNX file")
    part = RouterPart(expert_names(said["experts"], path), trained_gamma(said.get("gamma"), path))
    return part, said.get("base_sha256", "")
