"""The little of llama.cpp that conversion needs: a vocabulary, and logits of a model with an adapter."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.runner import BLOCK, Rows
from frcli.checks.gguf import check_gguf
from frcli.errors import MissingExtra, ModelError

_THREADS = 2
_ERROR = 4  # a level of ggml's log


def tokenize(base: Path, text: str) -> list[int]:
    """Return the ids of ``text`` in a GGUF's vocabulary; none if llama.cpp is missing or cannot read it."""
    try:
        return tokenize_all(base, [text], add_special=True, parse_special=False)[0]
    except (MissingExtra, ModelError):
        return []


def tokenize_all(base: Path, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
    """Return the ids of each text in a GGUF's vocabulary, of which nothing else is read.

    ``add_special`` puts bos and eos around a text as the file says; ``parse_special`` reads special tokens that are
    written out in it. Raises ``ModelError`` if llama.cpp refuses the file, ``MissingExtra`` without llama-cpp-python.
    """
    with _vocabulary(base) as (C, vocabulary):
        return [_ids(C, vocabulary, text.encode(), add_special, parse_special) for text in texts]


def token_texts(base: Path) -> list[bytes]:
    """Return the texts of a GGUF's tokens by id, without the unused ones at the end; raises as :func:`tokenize_all`."""
    with _vocabulary(base) as (C, vocabulary):
        size = C.llama_vocab_n_tokens(vocabulary)
        while size and C.llama_vocab_get_attr(vocabulary, size - 1) & C.LLAMA_TOKEN_ATTR_UNUSED:
            size -= 1
        return [C.llama_vocab_get_text(vocabulary, token) for token in range(size)]


def beginning(base: Path) -> list[int]:
    """Return the ids that a GGUF's vocabulary puts before a text: bos or nothing; raises as :func:`tokenize_all`."""
    with _vocabulary(base) as (C, vocabulary):
        bos = C.llama_vocab_bos(vocabulary)
        return [bos] if bos >= 0 and C.llama_vocab_get_add_bos(vocabulary) else []


def pieces(base: Path, tokens: Sequence[int]) -> list[bytes]:
    """Return what each token writes, special ones their names; raises as :func:`tokenize_all`."""
    with _vocabulary(base) as (C, vocabulary):
        size = C.llama_vocab_n_tokens(vocabulary)
        return [_piece(C, vocabulary, token) if 0 <= token < size else b"" for token in tokens]


class LlamaRunner:
    """A GGUF in llama.cpp, with a LoRA adapter at scale 1 if there is one: a :class:`converters.runner.Runner`.

    The cache is float32, so that what differs from a source is the weights and how they are multiplied. Raises
    ``ModelError`` if llama.cpp refuses a file, ``MissingExtra`` if llama-cpp-python is not installed.
    """

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        C = self._C = library()
        check_gguf(base, adapter=False)
        if adapter is not None:
            check_gguf(adapter, adapter=True)
        self._base = base
        with listening(C) as heard:
            parameters = C.llama_model_default_params()
            parameters.n_gpu_layers = 0
            parameters.use_extra_bufts = False  # repacked weights are a second copy, and no pages of the file
            self._model = C.llama_model_load_from_file(str(base).encode(), parameters)
            if not self._model:
                raise ModelError(f"llama.cpp cannot load {base}{first(heard)}", "fetch it again")
            self.vocab: int = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self._model))
            self.context: int = C.llama_model_n_ctx_train(self._model)
            self._lora = None if adapter is None else C.llama_adapter_lora_init(self._model, str(adapter).encode())
            if adapter is not None and not self._lora:
                self.close()
                raise ModelError(
                    f"llama.cpp refuses the adapter {adapter} for {base}{first(heard)}", "convert it for this base"
                )
            if C.llama_model_has_encoder(self._model):
                self.close()
                raise ModelError(f"{base} has an encoder", "give a model that only decodes")

    def blocks(self, tokens: Sequence[int], size: int = BLOCK) -> Iterator[Rows]:
        """Yield the rows of a text from its beginning, ``size`` at a time; they are views until the next block."""
        if min(tokens) < 0 or max(tokens) >= self.vocab:
            raise ModelError(f"{self._base} has {self.vocab} tokens, and the check needs the id {max(tokens)}")
        C = self._C
        with listening(C):
            context = self._new_context(len(tokens), size)
        batch = C.llama_batch_init(size, 0, 1)
        try:
            for start in range(0, len(tokens), size):
                with listening(C):
                    rows = self._read(context, batch, tokens[start : start + size], start)
                yield Rows(rows)
        finally:
            C.llama_batch_free(batch)
            with listening(C):
                C.llama_free(context)

    def _new_context(self, length: int, size: int) -> Any:
        C = self._C
        parameters = C.llama_context_default_params()
        parameters.n_ctx = length
        parameters.n_batch = parameters.n_ubatch = parameters.n_outputs_max = min(size, length)
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = _THREADS
        parameters.type_k = parameters.type_v = C.GGML_TYPE_F32
        parameters.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = C.llama_init_from_model(self._model, parameters)
        if not context:
            raise ModelError(f"llama.cpp cannot make a context of {length} tokens", "free some memory")
        if self._lora is not None:
            C.llama_set_adapters_lora(
                context, (C.llama_adapter_lora_p_ctypes * 1)(self._lora), 1, (ctypes.c_float * 1)(1.0)
            )
        return context

    def _read(self, context: Any, batch: Any, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        C = self._C
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        code = C.llama_decode(context, batch)
        rows = C.llama_get_logits(context) if not code else None
        if not rows:
            raise ModelError(f"llama.cpp failed with code {code} on {len(tokens)} tokens of {self._base}")
        return np.ctypeslib.as_array(rows, shape=(len(tokens), self.vocab))

    def close(self) -> None:
        """Free the model, and its adapter with it."""
        if self._model:
            with listening(self._C):
                self._C.llama_model_free(self._model)
        self._model = None


def logits(base: Path, adapter: Path | None, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits of :class:`LlamaRunner` at every position, float32 [tokens, vocab], read at once."""
    runner = LlamaRunner(base, adapter)
    try:
        return np.concatenate([rows.logits.copy() for rows in runner.blocks(tokens, len(tokens))])
    finally:
        runner.close()


@contextmanager
def _vocabulary(base: Path) -> Iterator[tuple[Any, Any]]:
    C = library()
    check_gguf(base)
    with listening(C) as heard:
        parameters = C.llama_model_default_params()
        parameters.vocab_only = True
        model = C.llama_model_load_from_file(str(base).encode(), parameters)
        if not model:
            raise ModelError(f"llama.cpp cannot read the vocabulary of {base}{first(heard)}")
        try:
            yield C, C.llama_model_get_vocab(model)
        finally:
            C.llama_model_free(model)


def _piece(C: Any, vocabulary: Any, token: int) -> bytes:
    room = 256
    buffer = ctypes.create_string_buffer(room)
    size = C.llama_token_to_piece(vocabulary, token, buffer, room, 0, True)
    if size < 0:
        room = -size
        buffer = ctypes.create_string_buffer(room)
        size = C.llama_token_to_piece(vocabulary, token, buffer, room, 0, True)
    return buffer.raw[: max(size, 0)]


def _ids(C: Any, vocabulary: Any, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
    room = len(text) + 8
    ids = (C.llama_token * room)()
    count = C.llama_tokenize(vocabulary, text, len(text), ids, room, add_special, parse_special)
    return list(ids[: max(count, 0)])


def library() -> Any:
    """Return the module ``llama_cpp``; raises ``MissingExtra`` if it is not there or cannot be loaded."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtra(
            "llama-cpp-python is not installed or cannot be loaded", "pip install llama-cpp-python"
        ) from error
    return llama_cpp


@contextmanager
def listening(C: Any) -> Iterator[list[str]]:
    """Yield a list that errors of llama.cpp's log are put into, and keep all else of it from the terminal.

    The log is one for the whole process; afterwards it is given back to whoever had it.
    """
    before, data = C.llama_log_callback(), ctypes.c_void_p()
    C.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    heard: list[str] = []

    def hear(level: int, text: bytes, user_data: Any) -> None:
        if level == _ERROR:
            heard.append(text.decode("utf-8", "replace").strip())

    callback = C.llama_log_callback(hear)
    C.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield heard
    finally:
        C.llama_log_set(before, data)


def first(heard: Sequence[str]) -> str:
    """Return the first error that was heard, to be put behind a sentence: what follows it is only its consequences."""
    for text in heard:
        function, _, said = text.partition(": ")
        if said:
            return f": {said if function.isidentifier() else text}"
    return ""
