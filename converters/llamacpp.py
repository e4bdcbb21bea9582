"""The little of llama.cpp that conversion needs: ids of texts, and logits of a model with an adapter."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    C = library()
    with listening(C) as heard:
        parameters = C.llama_model_default_params()
        parameters.vocab_only = True
        model = C.llama_model_load_from_file(str(base).encode(), parameters)
        if not model:
            raise ModelError(f"llama.cpp cannot read the vocabulary of {base}{first(heard)}")
        try:
            vocabulary = C.llama_model_get_vocab(model)
            return [_ids(C, vocabulary, text.encode(), add_special, parse_special) for text in texts]
        finally:
            C.llama_model_free(model)


def logits(base: Path, adapter: Path | None, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return llama.cpp's logits at every position, float32 [tokens, vocab], with the LoRA adapter at scale 1.

    The cache is float32, so that what differs from the source is the weights and how they are multiplied. Raises
    ``ModelError`` if llama.cpp refuses a file, ``MissingExtra`` if llama-cpp-python is not installed.
    """
    C = library()
    with listening(C) as heard:
        parameters = C.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = C.llama_model_load_from_file(str(base).encode(), parameters)
        if not model:
            raise ModelError(f"llama.cpp cannot load {base}{first(heard)}", "fetch it again")
        try:
            width = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
            if min(tokens) < 0 or max(tokens) >= width:
                raise ModelError(f"{base} has {width} tokens, and the check needs the id {max(tokens)}")
            lora = None if adapter is None else C.llama_adapter_lora_init(model, str(adapter).encode())
            if adapter is not None and not lora:
                raise ModelError(
                    f"llama.cpp refuses the adapter {adapter} for {base}{first(heard)}", "convert it for this base"
                )
            return _evaluate(C, model, lora, tokens, width)
        finally:
            C.llama_model_free(model)  # frees its adapters too


def _evaluate(C: Any, model: Any, lora: Any, tokens: Sequence[int], width: int) -> NDArray[np.float32]:
    parameters = C.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = parameters.n_outputs_max = len(tokens)
    parameters.n_seq_max = 1
    parameters.n_threads = parameters.n_threads_batch = _THREADS
    parameters.type_k = parameters.type_v = C.GGML_TYPE_F32
    parameters.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = C.llama_init_from_model(model, parameters)
    if not context:
        raise ModelError(f"llama.cpp cannot make a context of {len(tokens)} tokens", "free some memory")
    batch = C.llama_batch_init(len(tokens), 0, 1)
    try:
        if lora is not None:
            C.llama_set_adapters_lora(context, (C.llama_adapter_lora_p_ctypes * 1)(lora), 1, (ctypes.c_float * 1)(1.0))
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        code = C.llama_decode(context, batch)
        if code:
            raise ModelError(f"llama.cpp failed with code {code} on {len(tokens)} tokens")
        rows = C.llama_get_logits(context)
        return np.ctypeslib.as_array(rows, shape=(len(tokens), width)).copy()
    finally:
        C.llama_batch_free(batch)
        C.llama_free(context)


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
