"""llama.cpp models: weights with their vocabulary, LoRA adapters, and contexts that are :class:`LogitSource`.

One ``LlamaModel`` backs any number of ``LlamaSource``: LoRA experts share the base weights, each in a context of its
own with its adapter fixed. llama.cpp answers a size that it did not expect by aborting the process, so every size is
checked here first.

This file and ``decode/sampler.py`` are the only ones that import ``llama_cpp``.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from frcli.checks.gguf import check_gguf
from frcli.errors import ModelError
from frcli.sources.kv_types import KV_TYPES, computed_together, without_flash
from frcli.sources.llama_batch import LlamaBatch
from frcli.sources.source import Feed, Logits, Rows, check_feeds, check_sequence

log = logging.getLogger("frcli.llama")

# ggml's level numbers: 1 debug, 2 info, 3 warning, 4 error, 5 continuation of the line before.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}


# OpenMP's threads wait for more work in a busy loop, so many rounds long. It must outlast the waits between the
# operators of a step, and be over soon after the step: with libgomp's own 300,000 rounds (some 10 ms) a thread of
# llama.cpp keeps a core busy through the router's whole step. Measured on two cores: router 10.7 ms with 300,000, 7.7
# with 5,000; the expert 11.4 with either, 15 with 300, 50 without a loop.
_SPINS = "5000"

_kept_alive: list[Any] = []  # C keeps only a pointer to the log callback


@lru_cache(maxsize=1)
def library() -> Any:
    """The ``llama_cpp`` module, its log messages sent to ``logging`` under the name ``frcli.llama``."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)  # read when the library is loaded
    try:
        import llama_cpp
    except (ImportError, OSError) as error:
        raise ModelError(
            f"llama.cpp does not load: {error}", "install llama-cpp-python again in this environment"
        ) from None

    def forward(level: int, text: bytes, _data: Any) -> None:
        log.log(_LEVELS.get(level, logging.DEBUG), text.decode("utf-8", "replace").rstrip())

    callback = llama_cpp.llama_log_callback(forward)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    _kept_alive.append(callback)
    return llama_cpp


class LlamaModel:
    """The weights and the vocabulary of one GGUF file.

    ``gpu_layers`` of its last layers go to GPUs (the head counts as one; negative: all), split between them as
    ``gpu_split`` says, by free memory if it does not; with 0 no GPU is used for it at all. A ``simulated`` model has no
    weights: contexts on it say in llama.cpp's log what they would take. Raises ``ModelError`` when the file is missing,
    is not a GGUF, is cut short, or holds a model that cannot be rewound.
    """

    def __init__(
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        gpu_layers: int = 0,
        gpu_split: Sequence[int] = (),
        simulated: bool = False,
    ) -> None:
        self.path, self.simulated = path, simulated
        self.on_cpu = gpu_layers == 0
        self._adapters: list[Any] = []
        self._model = None
        check_gguf(path, adapter=False)
        lib = self._lib = library()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        if gpu_layers == 0:
            # Or else llama.cpp sends long calls through the first GPU all the same, and keeps buffers there for that.
            params.split_mode, params.main_gpu = lib.LLAMA_SPLIT_MODE_NONE, -1
        if any(gpu_split):
            shares = (ctypes.c_float * lib.llama_max_devices())(*gpu_split[: lib.llama_max_devices()])
            params.tensor_split = shares  # read while the model is loaded
        if simulated:
            params.no_alloc, params.load_mode = True, lib.LLAMA_LOAD_MODE_NONE  # with a mapped file it would abort
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelError(
                f"llama.cpp cannot load {path}", "the file may be cut short or damaged: pull the bundle again"
            )
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        if problem := self._problem(vocab_only):
            self.close()
            raise ModelError(f"{path} {problem}", "use a decoder with plain attention, such as a Llama or a Qwen")

    def _problem(self, vocab_only: bool) -> str:
        """Why the engine cannot run this model; some of these would abort the process at the first call."""
        lib = self._lib
        if lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
            return "has no vocabulary"
        if vocab_only:
            return ""
        if lib.llama_model_has_encoder(self._model):
            return "has an encoder"
        if lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model):
            return "is a recurrent model, whose state cannot be rewound"
        return ""

    @property
    def vocab(self) -> Any:
        """llama.cpp's handle of the vocabulary, for samplers. Raises ``ModelError`` after ``close``."""
        if not self._model:
            raise ModelError(f"{self.path.name} is closed")
        return self._vocab

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bytes."""
        return int(self._lib.llama_model_size(self._model))

    @property
    def trained_context(self) -> int:
        """Number of tokens that the model was trained to read."""
        return int(self._lib.llama_model_n_ctx_train(self._model))

    @cached_property
    def size(self) -> int:
        """Number of usable token ids: the width of the vocabulary without the padding at its end."""
        kind = self._lib.llama_vocab_get_attr
        n = self.n_vocab
        while n and kind(self.vocab, n - 1) & 2:  # LLAMA_TOKEN_ATTR_UNUSED
            n -= 1
        return n

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's chat template, if the file has one."""
        text = self._lib.llama_model_chat_template(self._model, None)
        return text.decode("utf-8", "replace") if text else None

    @cached_property
    def bos(self) -> str:
        """Text of the token that begins a sequence, empty if there is none."""
        return self.token_text(self._lib.llama_vocab_bos(self.vocab))

    @cached_property
    def eos(self) -> str:
        """Text of the token that ends a sequence, empty if there is none."""
        return self.token_text(self._lib.llama_vocab_eos(self.vocab))

    def token_text(self, token: int) -> str:
        """The text of the token as the file spells it, empty for a number below 0: llama.cpp's for none."""
        if token < 0:
            return ""
        return str(self._lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    def texts(self) -> list[bytes]:
        """The texts of all usable tokens as the file spells them, by id."""
        get = self._lib.llama_vocab_get_text
        return [get(self.vocab, token) for token in range(self.size)]

    def encode(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        """The token ids of ``text``; with ``special``, the texts of control tokens stand for these tokens.

        ``add_bos`` puts the beginning token first where the vocabulary asks for one.
        """
        raw = text.encode("utf-8", "replace")
        capacity = len(raw) + 2
        buffer = (ctypes.c_int32 * capacity)()
        n = self._lib.llama_tokenize(self.vocab, raw, len(raw), buffer, capacity, add_bos, special)
        if n < 0:
            buffer = (ctypes.c_int32 * -n)()
            n = self._lib.llama_tokenize(self.vocab, raw, len(raw), buffer, -n, add_bos, special)
        if n < 0:
            raise ModelError(f"the vocabulary of {self.path} cannot encode a text of {len(raw)} bytes")
        return list(buffer[:n])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that ``token`` stands for; control tokens give none unless ``special``."""
        if not 0 <= token < self.n_vocab:
            raise ModelError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def is_end(self, token: int) -> bool:
        """Whether ``token`` ends an answer."""
        return bool(0 <= token < self.n_vocab and self._lib.llama_vocab_is_eog(self.vocab, token))

    def load_adapter(self, path: Path) -> Any:
        """A LoRA adapter made for this model, from a GGUF file; it lives as long as the model.

        Raises ``ModelError`` when it cannot be read or was made for another architecture.
        """
        check_gguf(path, adapter=True)
        adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise ModelError(f"llama.cpp cannot load the adapter {path}", f"was it made for {self.path.name}?")
        self._adapters.append(adapter)
        return adapter

    def close(self) -> None:
        """Free adapters and weights; every source on this model must be closed before."""
        for adapter in self._adapters:
            self._lib.llama_adapter_lora_free(adapter)
        self._adapters.clear()
        if self._model:
            self._lib.llama_model_free(self._model)
        self._model = None


class LlamaSource:
    """A context of a ``LlamaModel``, with at most one adapter, as a :class:`~frcli.sources.source.LogitSource`.

    ``max_rows`` is the number of rows that one call of llama.cpp may give (more are read in several calls): it sets the
    size of the compute buffer. The ``sequences`` share one KV cache with cells for ``context`` tokens of each, which
    cost memory whether they are used or not; ``kv_type`` is what keys and values are kept as, one of
    :data:`~frcli.sources.kv_types.KV_TYPES` whose blocks the heads fill. Quantized values need flash attention.

    A row that is read again, after ``rewind``, by a call of the same shape is the same to the bit. Calls of other
    shapes (more tokens at a time, or more sequences) may sum in another order, which depends on the kernels of the
    weights' type, and so may attention where other sequences have filled the cells between a sequence's own.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        context: int,
        sequences: int = 1,
        adapter: Any = None,
        threads: int = 1,
        max_rows: int = 1,
        batch: int = 512,
        kv_type: str = "f16",
    ) -> None:
        self._model, self._lib, self._ctx = model, model._lib, None
        self._context, self._sequences = context, sequences
        batch = max(1, min(batch, context * sequences))
        # llama.cpp aborts when it may give fewer rows than it has sequences.
        self._max_rows = min(max(max_rows, sequences), batch)
        if sequences > self._max_rows:
            raise ModelError(f"{sequences} sequences do not fit in a batch of {batch} tokens", "use fewer")
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_batch, params.n_ubatch = batch, computed_together(batch, model.on_cpu)
        params.n_seq_max = sequences
        params.n_outputs_max = self._max_rows
        params.n_threads = params.n_threads_batch = threads
        keep_as(kv_type, params, model)
        # With a cache for each sequence llama.cpp reads only sequences with neighbouring numbers together: eight that
        # are no neighbours take twice as long as from one cache, and an expert seldom gets neighbours.
        params.kv_unified = True
        self._ctx = lib.llama_init_from_model(model._model, params)
        if not self._ctx:
            raise ModelError(
                f"llama.cpp cannot make a context of {sequences} x {context} tokens for {model.path.name}",
                "ask for a shorter context, fewer sequences or --kv-type f16",
            )
        self._memory = lib.llama_get_memory(self._ctx)
        if not self._memory:
            self.close()
            raise ModelError(f"{model.path.name} keeps no KV cache", "use a decoder, such as a Llama or a Qwen")
        if adapter is not None:
            adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            if lib.llama_set_adapters_lora(self._ctx, adapters, 1, scales):
                self.close()
                raise ModelError(f"llama.cpp cannot use the adapter with {model.path.name}", "convert it again")
        self._lengths = [0] * sequences
        self._batch = LlamaBatch(lib, batch)
        self._view, self._view_of = np.empty((0, self.width), np.float32), (0, 0)

    @property
    def width(self) -> int:
        """Number of logits in a row."""
        return self._model.n_vocab

    @property
    def context(self) -> int:
        """Number of tokens that one sequence can hold."""
        return self._context

    def length(self, seq: int) -> int:
        """Number of tokens that the sequence has read."""
        return self._lengths[self._checked(seq)]

    def _checked(self, seq: int) -> int:
        self._check_open()
        return check_sequence(seq, self._sequences, self._model.path.name)

    def _check_open(self) -> None:
        if self._ctx is None or self._model.simulated:
            state = "closed" if self._ctx is None else "only simulated"
            raise ModelError(f"the context of {self._model.path.name} is {state}")

    def extend(self, feeds: Sequence[Feed]) -> list[Rows]:
        """See :meth:`LogitSource.extend`. One row, or rows of one call, come as a view; rows of several calls are
        copied.
        """
        self._check_open()
        check_feeds(feeds, self._lengths, context=self._context, width=self.width, name=self._model.path.name)
        batch = self._batch
        parts: list[list[Logits]] = [[] for _ in feeds]
        batch.clear()
        for index, feed in enumerate(feeds):
            total = len(feed.tokens)
            first_row, at = total - feed.rows, 0
            while at < total:
                n = min(total - at, batch.size - batch.filled)
                if at + n > first_row:  # a token whose row does not fit any more must wait for the next call
                    n = min(n, max(0, first_row - at) + self._max_rows - batch.rows)
                if n == 0:
                    for taker, rows in self._decode():
                        parts[taker].append(rows.copy())
                    batch.clear()
                    continue
                start = batch.ends.get(feed.seq, self._lengths[feed.seq])
                batch.add(index, feed.seq, feed.tokens[at : at + n], start, max(0, at + n - max(at, first_row)))
                at += n
        if batch.filled:
            for taker, rows in self._decode():
                parts[taker].append(rows)
        none = self._view[:0]
        return [Rows(part[0] if len(part) == 1 else np.concatenate(part) if part else none) for part in parts]

    def _decode(self) -> list[tuple[int, Logits]]:
        """Read the batch; for each feed that gets rows from it, its number and a view of them."""
        batch, name = self._batch, self._model.path.name
        code = self._lib.llama_decode(self._ctx, batch.struct())
        if code:
            for seq in range(self._sequences):
                self._lengths[seq] = self._lib.llama_memory_seq_pos_max(self._memory, seq) + 1
            raise ModelError(f"llama.cpp failed to read {batch.filled} tokens with {name} (code {code})")
        for seq, length in batch.ends.items():
            self._lengths[seq] = length
        if not batch.rows:
            return []
        # A negative index counts outputs from the last one; they lie in one block, in the order of the batch.
        pointer = self._lib.llama_get_logits_ith(self._ctx, -batch.rows)
        if not pointer:
            raise ModelError(f"llama.cpp gave no logits for {name}")
        block = (ctypes.addressof(pointer.contents), batch.rows)
        if block != self._view_of:  # the address seldom changes, and making a view is slow
            self._view, self._view_of = np.ctypeslib.as_array(pointer, shape=(batch.rows, self.width)), block
        return batch.split(self._view)

    def rewind(self, seq: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of the sequence."""
        if not 0 <= length <= self._lengths[self._checked(seq)]:
            raise ModelError(f"cannot rewind a sequence of {self._lengths[seq]} tokens to {length}")
        # Asked even where nothing seems to be left: an interrupt may have come between a call and its bookkeeping.
        if not self._lib.llama_memory_seq_rm(self._memory, seq, length, -1):
            raise ModelError(f"{self._model.path.name} cannot be rewound", "use a model with plain attention")
        self._lengths[seq] = length

    def fork(self, src: int, dst: int) -> None:
        """Make ``dst`` a copy of ``src``'s prefix; the two share its cells."""
        if self._checked(src) == self._checked(dst):
            return
        self.rewind(dst, 0)
        self._lib.llama_memory_seq_cp(self._memory, src, dst, -1, -1)
        self._lengths[dst] = self._lengths[src]

    def close(self) -> None:
        """Free the context; the model stays."""
        if self._ctx is not None:
            self._lib.llama_free(self._ctx)
            self._ctx = None


def keep_as(kv_type: str, params: Any, model: LlamaModel) -> None:
    """Let a context of the model with these parameters keep its keys and values as that type."""
    lib = model._lib
    params.type_k = params.type_v = KV_TYPES[kv_type].id
    scores = 4 * params.n_ubatch * params.n_ctx * lib.llama_model_n_head(model._model)
    if KV_TYPES[kv_type].quantized:
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    elif without_flash(kv_type, scores, model.on_cpu):
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
