"""The ONNX Runtime router: next-token logits and routing weights from a graph whose KV buffers are updated in place.

The graph is what ``frcli convert router`` writes. Each sequence owns one key and one value buffer per layer, float32
[1, kv_heads, context, head_dim], bound both as past and as present; rewinding is telling the graph a smaller length.
This is the only file that imports ``onnxruntime``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.bundle import ROUTER_FORMAT
from frcli.errors import ModelError
from frcli.sources.source import Feed, Rows, check_feeds, check_sequence


class OnnxRouter:
    """A router file as a :class:`~frcli.sources.source.LogitSource` whose rows carry routing weights.

    ``context`` is in tokens for each of ``sequences``. Raises ``ModelError`` when the file is missing, damaged, or not
    a router that this version can run.
    """

    def __init__(self, path: Path, *, context: int, sequences: int = 1, threads: int = 1, chunk: int = 256) -> None:
        self.path, self._chunk = path, chunk
        session = self._session = _open(path, threads)
        meta = session.get_modelmeta().custom_metadata_map
        if meta.get("frcli.format") != ROUTER_FORMAT:
            raise ModelError(
                f"{path} is not a router of format {ROUTER_FORMAT}",
                "make it again with frcli models pull or frcli convert router",
            )
        try:
            self.experts: tuple[str, ...] = tuple(json.loads(meta["frcli.experts"]))
            self.vocabulary: str = meta["frcli.vocabulary"]
            self._limit = int(meta["frcli.context"])
            layers, kv_heads, head_dim = (int(meta[f"frcli.{key}"]) for key in ("layers", "kv_heads", "head_dim"))
            self._width = int(next(o for o in session.get_outputs() if o.name == "logits").shape[-1])
        except (KeyError, ValueError, StopIteration, TypeError) as error:
            raise ModelError(
                f"{path} lacks {error}", "make it again with frcli models pull or frcli convert router"
            ) from None
        if context > self._limit:
            raise ModelError(f"{path} reads at most {self._limit} tokens, not {context}", "ask for a shorter context")
        self._context = context
        self._lengths = [0] * sequences
        shape = (1, kv_heads, context, head_dim)
        # np.zeros maps pages only when they are written: a long context costs memory as it fills.
        self._caches: list[list[NDArray[np.float32]] | None] = [None] * sequences
        self._cache_shape, self._layers = shape, layers
        self._bindings: list[Any] = [None] * sequences
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.empty((1, self._width), np.float32)
        self._weights = np.empty((1, len(self.experts)), np.float32)

    @property
    def width(self) -> int:
        """Number of logits in a row."""
        return self._width

    @property
    def context(self) -> int:
        """Number of tokens that one sequence can hold."""
        return self._context

    def length(self, seq: int) -> int:
        """Number of tokens that the sequence has read."""
        return self._lengths[self._checked(seq)]

    def _checked(self, seq: int) -> int:
        return check_sequence(seq, len(self._lengths), self.path.name)

    def extend(self, feeds: Sequence[Feed]) -> list[Rows]:
        """See :meth:`LogitSource.extend`; the sequences are read one after the other."""
        if self._session is None:
            raise ModelError(f"the router {self.path} is closed")
        check_feeds(feeds, self._lengths, context=self._context, width=self._width, name=self.path.name)
        wanted = sum(feed.rows for feed in feeds)
        if wanted > len(self._logits):
            self._logits = np.empty((wanted, self._width), np.float32)
            self._weights = np.empty((wanted, len(self.experts)), np.float32)
        results, at = [], 0
        for feed in feeds:
            for start in range(0, len(feed.tokens), self._chunk):
                tokens = feed.tokens[start : start + self._chunk]
                rows = min(len(tokens), max(0, start + len(tokens) - (len(feed.tokens) - feed.rows)))
                self._run(feed.seq, np.array(tokens, np.int64), rows, at)
                at += rows
            results.append(Rows(self._logits[at - feed.rows : at], self._weights[at - feed.rows : at]))
        return results

    def _run(self, seq: int, tokens: NDArray[np.int64], rows: int, at: int) -> None:
        """Read ``tokens`` and write the last ``rows`` of them to the output buffers from row ``at`` on."""
        binding = self._bindings[seq]
        if binding is None:
            binding = self._bindings[seq] = self._bind(seq)
        n = len(tokens)
        total = self._lengths[seq] + n
        self._seqlens[0], self._total[()] = total - 1, total
        _bind_in(binding, "input_ids", tokens.reshape(1, n))
        # The graph wants at least one row; a row that nobody asked for goes where the next one will be written over it.
        picked = np.arange(n - max(1, rows), n, dtype=np.int64)
        logits, weights = (
            (self._logits[at : at + rows], self._weights[at : at + rows])
            if rows
            else (np.empty((1, self._width), np.float32), np.empty((1, len(self.experts)), np.float32))
        )
        _bind_in(binding, "rows", picked)
        _bind_out(binding, "logits", logits)
        _bind_out(binding, "routing", weights)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises bare pybind exceptions of many names
            raise ModelError(f"the router {self.path.name} failed to read {n} tokens: {error}") from None
        self._lengths[seq] = total

    def _bind(self, seq: int) -> Any:
        binding = self._session.io_binding()
        cache = self._caches[seq] = [np.zeros(self._cache_shape, np.float32) for _ in range(2 * self._layers)]
        for i in range(self._layers):
            for kind, buffer in (("key", cache[2 * i]), ("value", cache[2 * i + 1])):
                _bind_in(binding, f"past_{kind}.{i}", buffer)
                _bind_out(binding, f"present_{kind}.{i}", buffer)
        _bind_in(binding, "seqlens_k", self._seqlens)
        _bind_in(binding, "total_sequence_length", self._total)
        return binding

    def rewind(self, seq: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of the sequence."""
        if not 0 <= length <= self._lengths[self._checked(seq)]:
            raise ModelError(f"cannot rewind a sequence of {self._lengths[seq]} tokens to {length}")
        self._lengths[seq] = length

    def fork(self, src: int, dst: int) -> None:
        """Make ``dst`` a copy of ``src``'s prefix."""
        if self._checked(src) == self._checked(dst):
            return
        n = self._lengths[dst] = self._lengths[src]
        if n:
            if self._bindings[dst] is None:
                self._bindings[dst] = self._bind(dst)
            for old, new in zip(self._caches[src] or (), self._caches[dst] or (), strict=True):
                new[:, :, :n] = old[:, :, :n]

    def close(self) -> None:
        """Free the session and the KV buffers."""
        self._session = None
        self._bindings.clear()
        self._caches.clear()


def _open(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise ModelError(f"the router {path} does not exist", "make it with frcli models pull")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool steals the cores from llama.cpp between two router steps: its token goes from 9 to 22 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare pybind exceptions of many names
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"ONNX Runtime cannot load {path}: {reason}", "make it again with frcli models pull --force"
        ) from None


def _bind_in(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_out(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
