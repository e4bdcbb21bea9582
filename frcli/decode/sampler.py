"""llama.cpp's own sampler chain, applied to a row of fused logits.

The order and the meaning of every setting are those of llama.cpp's ``common_sampler``: logit bias, penalties, DRY,
top-k, typical, top-p, min-p, XTC, temperature, and a draw from what is left. Temperature 0 takes the most likely token,
the first one of a tie; bias, penalties, DRY and the grammar still apply.

A grammar is asked after the draw. Only when it forbids the drawn token is it applied to the whole row and a second
token drawn: most steps then cost the check of one token instead of the whole vocabulary.

llama.cpp meets an impossible call by ending the process, so whatever reaches it from here has been checked first.
"""

from __future__ import annotations

import copy
import ctypes
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.decode.grammar import check_grammar, open_grammar
from frcli.errors import ModelError, UsageError
from frcli.sources.source import Logits

MAX_SEED = 2**32 - 2  # 2**32 - 1 is how llama.cpp spells "draw a seed yourself"
WHOLE_CONTEXT = 65_536  # what -1 means for a window of tokens: llama.cpp allocates the window at once
_TOP_K_MAX = 2**31 - 1
_WINDOW_MAX = 1_000_000
_TOO_UNLIKELY = 1e-30

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of a :class:`Sampler`; those that are off by default have llama.cpp's neutral value.

    ``penalty_last_n`` and ``dry_penalty_last_n`` count tokens: 0 is off, -1 the whole context (up to
    ``WHOLE_CONTEXT``). ``logit_bias`` adds to the logit of a token id; ``-inf`` bans it. ``grammar`` is GBNF with a
    rule named ``root``. ``seed`` None draws one, which :attr:`Sampler.seed` tells.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str = ""

    def validate(self) -> None:
        """Raise ``UsageError`` naming the first value that is out of its range."""
        if self.temperature != 0:  # 0 is greedy; much smaller than this and a logit divided by it is infinite
            _within("temperature", self.temperature, 1e-6, 100.0, note="0 (greedy) or ")
        _whole("top_k", self.top_k, 0, _TOP_K_MAX)
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"):
            _within(name, getattr(self, name), 0.0, 1.0)
        _within("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _within("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _whole("penalty_last_n", self.penalty_last_n, -1, _WINDOW_MAX)
        _within("dry_multiplier", self.dry_multiplier, 0.0, 100.0)
        _within("dry_base", self.dry_base, 1.0, 100.0)
        _whole("dry_allowed_length", self.dry_allowed_length, 0, _WINDOW_MAX)
        _whole("dry_penalty_last_n", self.dry_penalty_last_n, -1, _WINDOW_MAX)
        for breaker in self.dry_sequence_breakers:
            if not breaker or "\0" in breaker:
                raise UsageError(
                    f"a DRY sequence breaker is {breaker!r}", "give at least one character, none of them NUL"
                )
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED)
        for token, bias in self.logit_bias.items():
            if bias != -math.inf:
                _within(f"logit_bias of token {token}", bias, -1e6, 1e6, note="-inf (never) or ")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        neutral = self.repeat_penalty == 1 and self.presence_penalty == 0 and self.frequency_penalty == 0
        return self.penalty_last_n != 0 and not neutral

    @property
    def dries(self) -> bool:
        return self.dry_multiplier != 0 and self.dry_penalty_last_n != 0

    @property
    def drops_likely_tokens(self) -> bool:
        """Whether the filters may drop the most likely token, so that greedy decoding needs them too."""
        return self.typical_p < 1 or (self.xtc_probability > 0 and self.xtc_threshold <= 0.5)


class Sampler:
    """Draws tokens of one sequence from rows of logits.

    ``width`` is the number of logits in a row; ``vocab`` the ``llama_vocab`` pointer, which DRY and a grammar need. The
    model that owns it must outlive the sampler. Not for two threads at once.

    Raises ``UsageError`` for settings out of range, a token id outside the row, a grammar that llama.cpp refuses, or
    DRY or a grammar without a vocabulary.
    """

    def __init__(self, sampling: Sampling, width: int, vocab: Any = None) -> None:
        self._api: Any = None  # llama_cpp, imported only when something needs it: plain greedy decoding does not
        self._chain: Any = None
        self._grammar: Any = None
        self._closed = False
        sampling.validate()
        if width < 1:
            raise ModelError(f"a row of logits cannot have a width of {width}", "check the model's vocabulary")
        for token in sampling.logit_bias:
            if not 0 <= token < width:
                raise UsageError(f"logit_bias names token {token}", f"token ids go from 0 to {width - 1}")
        if (sampling.dries or sampling.grammar) and not vocab:
            what = "a grammar" if sampling.grammar else "dry_multiplier"
            raise UsageError(f"{what} needs the model's vocabulary", "leave it out, or open a model that has one")
        if sampling.grammar:
            check_grammar(sampling.grammar)
        self.sampling = sampling
        self.width = width
        self.seed = _drawn_seed() if sampling.seed is None else sampling.seed
        self._history = _history(sampling)
        self._masked_width = width
        if not (sampling.grammar or _needs_chain(sampling)):
            return
        from llama_cpp import llama_cpp as api

        self._api = api
        if sampling.grammar:
            self._grammar = open_grammar(api, vocab, sampling.grammar)
            # A row may be padded beyond the vocabulary; llama.cpp must not be asked for the text of such an id.
            self._masked_width = min(width, int(api.llama_vocab_n_tokens(vocab)))
        if _needs_chain(sampling):
            parameters = api.llama_sampler_chain_default_params()
            parameters.no_perf = True
            self._chain = api.llama_sampler_chain_init(parameters)
            for stage in _stages(api, sampling, width, vocab, self.seed):
                api.llama_sampler_chain_add(self._chain, stage)  # the chain owns it from here on
        self._allocate()

    @property
    def plain(self) -> bool:
        """Whether it takes the largest logit of each row, whatever came before."""
        return self._chain is None and self._grammar is None

    def sample(self, logits: Logits) -> int:
        """Return the id of the next token for ``logits``, float32 [width], which is left as it is.

        The token is not accepted: call :meth:`accept` with the token that the sequence goes on with. Raises
        ``ModelError`` for a row of another shape or type, or one that holds a NaN, an infinity or no finite logit, and
        ``UsageError`` when bans and grammar leave no token.
        """
        self._check_open()
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.shape != (self.width,):
            shape = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else type(logits).__name__
            raise ModelError(f"a row of logits is {shape}", f"the sampler was made for float32 [{self.width}]")
        best = int(logits.argmax())  # the first NaN, when there is one
        if not math.isfinite(logits[best]):
            raise ModelError(f"the model gave the logit {logits[best]} for token {best}", "check the model file")
        token = best if self._chain is None else self._draw(logits, masked=False)
        if self._grammar is None or self._fits(token):
            return token
        return self._draw(logits, masked=True)

    def accept(self, token: int) -> None:
        """Take note of a token that the sequence goes on with.

        Raises ``UsageError`` for an id outside the row, or one that the grammar forbids here.
        """
        self._check_open()
        self._check_token(token)
        if self._grammar is not None and not self._fits(token):
            raise UsageError(f"the grammar does not allow token {token} here", "accept only tokens that sample() gave")
        if self._grammar is not None:
            self._api.llama_sampler_accept(self._grammar, token)
        if self._history:
            self._api.llama_sampler_accept(self._chain, token)

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Let penalties and DRY see the prompt's tokens; the grammar does not, for it describes the answer only."""
        self._check_open()
        for token in tokens:
            self._check_token(token)
        if not self._history:
            return
        for token in tokens[-self._history :]:  # older ones would leave the windows again
            self._api.llama_sampler_accept(self._chain, token)

    def reset(self) -> None:
        """Go back to the state after construction: no tokens seen, the same seed again."""
        self._check_open()
        for part in (self._chain, self._grammar):
            if part is not None:
                self._api.llama_sampler_reset(part)

    def clone(self) -> Sampler:
        """Return a sampler in the same state that goes its own way from here; close both.

        They share the memory of a step: not for two threads at once.
        """
        self._check_open()
        other = copy.copy(self)
        other._chain = other._grammar = None
        if self._chain is not None:
            other._chain = self._api.llama_sampler_clone(self._chain)
        if self._grammar is not None:
            other._grammar = self._api.llama_sampler_clone(self._grammar)
        return other

    def close(self) -> None:
        """Free llama.cpp's memory; a second call does nothing."""
        chain, self._chain = self._chain, None
        grammar, self._grammar = self._grammar, None
        self._closed = True
        for part in (chain, grammar):
            if part is not None:
                self._api.llama_sampler_free(part)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _allocate(self) -> None:
        """Make the arrays that every step fills anew, so that a token costs no allocation."""
        self._candidates: NDArray[Any] = np.zeros(self.width, dtype=_CANDIDATE)
        self._ids = np.arange(self.width, dtype=np.int32)
        self._first = self._candidates.ctypes.data_as(ctypes.POINTER(self._api.llama_token_data))
        self._array = self._api.llama_token_data_array()
        self._one = self._api.llama_token_data()
        self._one_array = self._api.llama_token_data_array()

    def _draw(self, logits: Logits, *, masked: bool) -> int:
        size = self._masked_width if masked else self.width
        self._candidates["id"] = self._ids  # the last step has sorted and cut them
        self._candidates["logit"] = logits
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._first, size, -1, False
        if masked:
            self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if self._chain is None:
            chosen = self._candidates[int(self._candidates["logit"][:size].argmax())]
            token, logit = int(chosen["id"]), float(chosen["logit"])
        else:
            self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
            if not 0 <= array.selected < array.size:
                raise ModelError("the sampler chain selected no token", "use other sampling settings")
            winner = array.data[array.selected]  # XTC moves array.data, so the index counts from there
            token, logit = int(winner.id), float(winner.logit)
        if math.isfinite(logit):
            return token
        if masked:
            raise UsageError(
                "the grammar allows no token here", "check the grammar and the tokens that logit_bias bans"
            )
        if logit == -math.inf:
            raise UsageError("logit_bias bans every token", "ban fewer tokens")
        raise ModelError(f"sampling ended in the logit {logit} for token {token}", "use milder sampling settings")

    def _fits(self, token: int) -> bool:
        """Whether the grammar allows the token here; the grammar's state stays as it is."""
        if token >= self._masked_width:
            return False
        one, array = self._one, self._one_array
        one.id, one.logit, one.p = token, 1.0, 0.0
        array.data, array.size, array.selected, array.sorted = ctypes.pointer(one), 1, -1, False
        self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(one.logit != -math.inf)

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self.width:
            raise UsageError(f"the token id {token} is outside the vocabulary", f"ids go from 0 to {self.width - 1}")

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the sampler is closed", "make a new one")

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


def _needs_chain(sampling: Sampling) -> bool:
    """Whether the next token may be another than the first with the largest logit."""
    plain = sampling.greedy and not sampling.drops_likely_tokens
    return not plain or bool(sampling.logit_bias) or sampling.penalizes or sampling.dries


def _stages(api: Any, sampling: Sampling, width: int, vocab: Any, seed: int) -> list[Any]:
    """llama.cpp's samplers in the order of ``common_sampler``, those that would do nothing left out."""
    stages: list[Any] = []
    if sampling.logit_bias:
        biases = (api.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
        stages.append(api.llama_sampler_init_logit_bias(width, len(biases), biases))
    if sampling.penalizes:
        stages.append(
            api.llama_sampler_init_penalties(
                width,
                _window(sampling.penalty_last_n),
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.dries:
        breakers = [breaker.encode() for breaker in sampling.dry_sequence_breakers]
        stages.append(
            api.llama_sampler_init_dry(
                vocab,
                sampling.dry_multiplier,
                sampling.dry_base,
                sampling.dry_allowed_length,
                _window(sampling.dry_penalty_last_n),
                (ctypes.c_char_p * len(breakers))(*breakers),
                len(breakers),
            )
        )
    if sampling.greedy and not sampling.drops_likely_tokens:
        return [*stages, api.llama_sampler_init_greedy()]
    if sampling.top_k:
        stages.append(api.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        # It takes the logarithm of every probability: one that is zero, banned or underflown, makes the entropy NaN
        # and the order of the tokens arbitrary. Tokens this unlikely are never drawn, so they can go first.
        stages.append(api.llama_sampler_init_min_p(_TOO_UNLIKELY, 0))
        stages.append(api.llama_sampler_init_typical(sampling.typical_p, 0))
    if sampling.top_p < 1:
        stages.append(api.llama_sampler_init_top_p(sampling.top_p, 0))
    if sampling.min_p > 0:
        stages.append(api.llama_sampler_init_min_p(sampling.min_p, 0))
    if sampling.xtc_probability > 0 and sampling.xtc_threshold <= 0.5:
        stages.append(api.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 0, seed))
    stages.append(api.llama_sampler_init_temp_ext(sampling.temperature, 0.0, 1.0))
    stages.append(api.llama_sampler_init_dist(seed))
    return stages


def _window(tokens: int) -> int:
    return WHOLE_CONTEXT if tokens == -1 else tokens


def _history(sampling: Sampling) -> int:
    """How many tokens back the chain's state depends on."""
    penalties = _window(sampling.penalty_last_n) if sampling.penalizes else 0
    return max(penalties, _window(sampling.dry_penalty_last_n) if sampling.dries else 0)


def _drawn_seed() -> int:
    return int.from_bytes(os.urandom(4), "little") % (MAX_SEED + 1)


def _within(name: str, value: float, low: float, high: float, note: str = "") -> None:
    """Raise ``UsageError`` when the number is not in [low, high]; NaN never is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}", f"it must be {note}between {low:g} and {high:g}")


def _whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}", f"it must be a whole number between {low} and {high}")
