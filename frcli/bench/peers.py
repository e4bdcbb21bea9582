"""What a fused system is compared with: each expert in a bare loop of llama.cpp, the router in a bare loop of ONNX
Runtime, and llama.cpp's own ``llama-bench``.

The bare loops share nothing with the engine but the weights in memory. :class:`BareExpert` opens a context of its own
on the engine's model, with the same adapter, the same threads and the same sizes, and calls llama.cpp's functions and
nothing else. :class:`BareRouter` binds buffers of its own to the engine's session and runs it. Both read tokens, take
the row of logits of the last one, and choose the next.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.decode.engine import Engine
from frcli.decode.sampler import Sampling
from frcli.errors import DataError, ModelError, UsageError
from frcli.sources.kv_types import computed_together
from frcli.sources.llama import LlamaModel, LlamaSource, keep_as
from frcli.sources.onnx import OnnxRouter
from frcli.sources.source import Logits

BATCH = 512  # prompt tokens in one call, as in the engine


@dataclass(slots=True)
class BareRun:
    """One text by a bare loop. Times are in seconds.

    ``first`` is the time from the start to the first token, ``generation`` from there to the last one; ``calls`` holds
    the time of each call that read a single token, without the choice of the next one.
    """

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    first: float = 0.0
    generation: float = 0.0
    calls: list[float] = field(default_factory=list)


def loaded_model(engine: Engine, name: str) -> LlamaModel:
    """The weights that the engine has loaded for the expert ``name``."""
    source = engine.expert(name)
    assert isinstance(source, LlamaSource)
    return source._model


class BareExpert:
    """A context of llama.cpp on weights that are loaded already; a context manager."""

    def __init__(
        self, model: LlamaModel, adapter: Path | None, *, context: int, threads: int, kv_type: str = "f16"
    ) -> None:
        lib = self._lib = model._lib
        self._name, self._width, self._context = model.path.name, model.n_vocab, context
        loaded = model.load_adapter(adapter) if adapter else None
        params = lib.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = min(BATCH, context)
        params.n_ubatch = computed_together(params.n_batch, model.on_cpu)
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        keep_as(kv_type, params, model)
        self._ctx = lib.llama_init_from_model(model._model, params)
        if not self._ctx:
            raise ModelError(f"llama.cpp cannot make a context of {context} tokens for {self._name}", "shorten it")
        self._memory = lib.llama_get_memory(self._ctx)
        if loaded is not None:
            adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(loaded), (ctypes.c_float * 1)(1.0)
            if lib.llama_set_adapters_lora(self._ctx, adapters, 1, scales):
                self.close()
                raise ModelError(f"llama.cpp cannot use the adapter {adapter} with {self._name}", "convert it again")

    def write(self, prompt: Sequence[int], tokens: int, sampling: Sampling) -> BareRun:
        """A text of ``tokens`` tokens after the prompt; tokens that end an answer do not end it.

        Greedy decoding takes numpy's argmax of the row, which is the fastest choice; otherwise llama.cpp's own chain
        (top-k, top-p, min-p, temperature, draw) samples from the context without a copy of the row in Python.
        """
        check_length(len(prompt), tokens, self._context, self._width, prompt)
        lib, ctx, clock = self._lib, self._ctx, time.perf_counter
        chain = None if sampling.temperature == 0 else _chain(lib, sampling)
        buffer = (ctypes.c_int32 * max(1, len(prompt)))(*prompt)
        address = ctypes.addressof(buffer)
        chunk = min(BATCH, self._context)
        one = (ctypes.c_int32 * 1)()
        single = lib.llama_batch_get_one(one, 1)
        lib.llama_memory_clear(self._memory, False)
        run = BareRun(len(prompt))

        def choose() -> int:
            if chain is not None:
                return int(lib.llama_sampler_sample(chain, ctx, -1))
            row = np.ctypeslib.as_array(lib.llama_get_logits_ith(ctx, -1), shape=(self._width,))
            return int(row.argmax())

        try:
            began = clock()
            for start in range(0, len(prompt), chunk):
                part = (ctypes.c_int32 * min(chunk, len(prompt) - start)).from_address(address + 4 * start)
                self._decode(lib.llama_batch_get_one(part, len(part)))
            run.tokens.append(choose())
            written = clock()
            run.first = written - began
            while len(run.tokens) < tokens:
                one[0] = run.tokens[-1]
                before = clock()
                self._decode(single)
                run.calls.append(clock() - before)
                run.tokens.append(choose())
            run.generation = clock() - written
        finally:
            if chain is not None:
                lib.llama_sampler_free(chain)
        return run

    def _decode(self, batch: Any) -> None:
        code = self._lib.llama_decode(self._ctx, batch)
        if code == 0:
            # On a device the call may return before the work is done; the row is what waits for it.
            if not self._lib.llama_get_logits_ith(self._ctx, -1):
                raise ModelError(f"llama.cpp gave no logits for {self._name}")
            return
        raise ModelError(f"llama.cpp failed to read {batch.n_tokens} tokens with {self._name} (code {code})")

    def close(self) -> None:
        """Free the context; the weights and the adapter stay with the model."""
        if self._ctx:
            self._lib.llama_free(self._ctx)
            self._ctx = None

    def __enter__(self) -> BareExpert:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _chain(lib: Any, sampling: Sampling) -> Any:
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)
    for stage in (
        lib.llama_sampler_init_top_k(sampling.top_k),
        lib.llama_sampler_init_top_p(sampling.top_p, 0),
        lib.llama_sampler_init_min_p(sampling.min_p, 0),
        lib.llama_sampler_init_temp(sampling.temperature),
        lib.llama_sampler_init_dist(sampling.seed or 0),
    ):
        lib.llama_sampler_chain_add(chain, stage)
    return chain


def check_length(prompt: int, tokens: int, context: int, width: int, ids: Sequence[int]) -> None:
    """Raise for what a bare loop must not begin: llama.cpp may end the process over a size that it did not expect."""
    if prompt < 1 or tokens < 1:
        raise UsageError(f"a text of {prompt} and {tokens} tokens cannot be measured", "give at least one of each")
    if prompt + tokens > context:
        raise UsageError(f"{prompt} and {tokens} tokens do not fit in a context of {context}", "raise --ctx")
    if not 0 <= min(ids) <= max(ids) < width:
        raise ModelError(f"a token is outside the vocabulary of {width}")


class BareRouter:
    """The engine's ONNX Runtime session with KV buffers of its own, float32 [1, kv_heads, context, head_dim]."""

    def __init__(self, router: OnnxRouter, *, context: int) -> None:
        self._session, self._context, self._width = router._session, context, router.width
        self._buffers: dict[str, Logits] = {}
        for entry in self._session.get_inputs():
            if entry.name.startswith(("past_key.", "past_value.")):
                _, heads, _, size = entry.shape
                self._buffers[entry.name] = np.zeros((1, int(heads), context, int(size)), np.float32)
        self._logits = np.empty((1, router.width), np.float32)
        self._weights = np.empty((1, len(router.experts)), np.float32)
        self._last, self._total = np.zeros(1, np.int32), np.zeros((), np.int32)

    def read(self, prompt: Sequence[int], tokens: Sequence[int]) -> BareRun:
        """Read the prompt in one go, then ``tokens`` one by one, each with its row of logits and routing weights."""
        check_length(len(prompt), len(tokens), self._context, self._width, [*prompt, *tokens])
        clock = time.perf_counter
        run = BareRun(len(prompt), list(tokens))
        began = clock()
        for start in range(0, len(prompt), BATCH):
            part = np.array(prompt[start : start + BATCH], np.int64).reshape(1, -1)
            end = start + part.shape[1]
            self._last[0], self._total[()] = end - 1, end
            self._session.run_with_iobinding(self._bound(part))
        read = clock()
        run.first = read - began
        one = np.zeros((1, 1), np.int64)
        binding = self._bound(one)
        for at, token in enumerate(tokens, len(prompt)):
            one[0, 0], self._last[0], self._total[()] = token, at, at + 1
            before = clock()
            self._session.run_with_iobinding(binding)
            run.calls.append(clock() - before)
        run.generation = clock() - read
        return run

    @property
    def last_row(self) -> Logits:
        """The row of logits of the token that was read last, float32 [width]."""
        row: Logits = self._logits[0]
        return row

    def _bound(self, tokens: NDArray[np.int64]) -> Any:
        binding = self._session.io_binding()
        # The binding holds addresses only.
        self._held = [tokens, np.array([tokens.shape[1] - 1], np.int64)]
        inputs: dict[str, NDArray[Any]] = {"input_ids": tokens, "rows": self._held[1], "seqlens_k": self._last}
        inputs |= {"total_sequence_length": self._total, **self._buffers}
        outputs: dict[str, NDArray[Any]] = {"logits": self._logits, "routing": self._weights}
        outputs |= {name.replace("past_", "present_", 1): buffer for name, buffer in self._buffers.items()}
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding


@dataclass(frozen=True, slots=True)
class LlamaBench:
    """Tokens per second that ``llama-bench`` measured on the base, and which build of it."""

    pp: float
    tg: float
    build: str
    threads: int
    model: str


def llama_bench(program: Path, model: Path, *, prompt: int, tokens: int, threads: int, gpu_layers: int) -> LlamaBench:
    """Run ``llama-bench`` once on ``model``: ``prompt`` tokens read, ``tokens`` written from an empty context.

    Raises ``UsageError`` when there is no such program and ``DataError`` when it fails or prints something else.
    """
    command = [str(program), "-m", str(model), "-p", str(prompt), "-n", str(tokens), "-t", str(threads)]
    command += ["-ngl", str(gpu_layers), "-r", "1", "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UsageError(f"cannot run {program}: {error.strerror}", "give the path of llama-bench") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-200:]
        raise DataError(f"{program.name} left with {done.returncode}: {said}", "run it by hand to see why")
    return parse_llama_bench(done.stdout, program.name)


def parse_llama_bench(text: str, name: str = "llama-bench") -> LlamaBench:
    """What ``llama-bench -o json`` printed; raises ``DataError`` when a test or a field is missing."""
    try:
        rows = json.loads(text)
        pp = next(row for row in rows if row["n_prompt"] and not row["n_gen"])
        tg = next(row for row in rows if row["n_gen"] and not row["n_prompt"])
        return LlamaBench(
            float(pp["avg_ts"]),
            float(tg["avg_ts"]),
            f"{tg.get('build_number', '?')} ({tg.get('build_commit', '?')})",
            int(tg["n_threads"]),
            str(tg.get("model_type", "")),
        )
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise DataError(
            f"{name} did not print what llama-bench prints as JSON: {error!r}", "give a llama-bench of 2024 or later"
        ) from None
