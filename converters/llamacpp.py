"""The little of llama.cpp that parity checks need: ids of a text, and logits of a model with an adapter."""

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


def tokenize(base: Path, text: str) -> list[int]:
    """Return the ids of ``text`` in a GGUF's vocabulary; none if llama.cpp is missing or cannot read it."""
    try:
        C = _library()
    except MissingExtra:
        return []
    with _quiet(C):
        parameters = C.llama_model_default_params()
        parameters.vocab_only = True
        model = C.llama_model_load_from_file(str(base).encode(), parameters)
        if not model:
            return []
        try:
            return _ids(C, C.llama_model_get_vocab(model), text.encode())
        finally:
            C.llama_model_free(model)


def logits(base: Path, adapter: Path | None, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return llama.cpp's logits at every position, float32 [tokens, vocab], with the LoRA adapter at scale 1.

    The cache is float32, so that what differs from the source is the weights and how they are multiplied. Raises
    ``ModelError`` if llama.cpp refuses a file, ``MissingExtra`` if llama-cpp-python is not installed.
    """
    C = _library()
    with _quiet(C):
        parameters = C.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = C.llama_model_load_from_file(str(base).encode(), parameters)
        if not model:
            raise ModelError(f"llama.cpp cannot load {base}", "fetch it again")
        try:
            width = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
            if min(tokens) < 0 or max(tokens) >= width:
                raise ModelError(f"{base} has {width} tokens, and the check needs the id {max(tokens)}")
            lora = None if adapter is None else C.llama_adapter_lora_init(model, str(adapter).encode())
            if adapter is not None and not lora:
                raise ModelError(f"llama.cpp refuses the adapter {adapter} for {base}", "convert it for this base")
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


def _ids(C: Any, vocabulary: Any, text: bytes) -> list[int]:
    room = len(text) + 8
    ids = (C.llama_token * room)()
    count = C.llama_tokenize(vocabulary, text, len(text), ids, room, True, False)
    return list(ids[: max(count, 0)])


def _library() -> Any:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtra(
            "llama-cpp-python is not installed or cannot be loaded", "pip install llama-cpp-python"
        ) from error
    return llama_cpp


@contextmanager
def _quiet(C: Any) -> Iterator[None]:
    """Silence llama.cpp's log, which is one for the whole process, and give it back to whoever had it."""
    before, data = C.llama_log_callback(), ctypes.c_void_p()
    C.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    silent = C.llama_log_callback(lambda level, text, user_data: None)
    C.llama_log_set(silent, ctypes.c_void_p(0))
    try:
        yield
    finally:
        C.llama_log_set(before, data)
