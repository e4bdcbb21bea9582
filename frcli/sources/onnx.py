"""The ONNX Runtime router: next-token logits and routing weights from a graph whose KV buffers are updated in place.

The graph is what ``frcli convert router`` writes. Each layer has one key and one value buffer
(:mod:`frcli.sources.kv`), bound both as past and as present; rewinding is telling the graph a smaller length. A run
takes neighbouring rows of these buffers: one row behind any number of new tokens, or many rows with one new token each,
whose prefixes may differ in length. ONNX Runtime has no run for several tokens behind several prefixes.

This is the only file that imports ``onnxruntime``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.bundle import ROUTER_FORMAT
from frcli.checks.onnx import check_onnx
from frcli.errors import ModelError
from frcli.metadata import expert_names
from frcli.sources.devices import load_cuda
from frcli.sources.kv import DeviceBuffer, HostBuffer
from frcli.sources.source import Feed, Rows, check_feeds, check_sequence

# What idle rows between two that read may cost: as much as so many short rows, which a second run costs beyond its own.
# Attention over _TOKENS_PER_ROW tokens costs as much as the rest of a row. Measured with the int4 router of 30 layers
# on one thread: 10 ms for a run, 2.7 ms for a row without logits, 0.01 ms for a token of its prefix.
_RUN_COST = 3.5
_TOKENS_PER_ROW = 256


_CUDA_PROVIDER = "CUDAExecutionProvider"
# Outputs beside the logits: weights of the experts for a token and for an answer, and how much the logits count.
_ROUTING, _PROMPT, _GATE = _HEADS = ("routing", "prompt_routing", "gate")


class OnnxRouter:
    """A router file as a :class:`~frcli.sources.source.LogitSource` whose rows carry routing weights.

    ``context`` is in tokens for each of ``sequences``. ``gpu`` runs it on CUDA if ONNX Runtime can (untested). Raises
    ``ModelError`` when the file is missing, damaged, or not a router that this version can run.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        sequences: int = 1,
        threads: int = 1,
        chunk: int = 256,
        gpu: bool = False,
    ) -> None:
        self.path, self._chunk = path, chunk
        session = self._session = _open(path, threads, gpu)
        meta = session.get_modelmeta().custom_metadata_map
        if meta.get("frcli.format") != ROUTER_FORMAT:
            raise ModelError(
                f"{path} is not a router of format {ROUTER_FORMAT}",
                "make it again with frcli models pull or frcli convert router",
            )
        try:
            self.experts: tuple[str, ...] = expert_names(meta["frcli.experts"], path)
            self.vocabulary: str = meta["frcli.vocabulary"]
            self._limit = int(meta["frcli.context"])
            layers, kv_heads, head_dim = (int(meta[f"frcli.{key}"]) for key in ("layers", "kv_heads", "head_dim"))
            outputs = {output.name: output for output in session.get_outputs()}
            self._width = int(outputs["logits"].shape[-1])
            inputs = {each.name: each.type for each in session.get_inputs()}
            dtype = np.float16 if inputs["past_key.0"] == "tensor(float16)" else np.float32
            self._heads = {name: int(outputs[name].shape[-1]) for name in _HEADS if name in outputs}
        except (KeyError, ValueError, StopIteration, TypeError) as error:
            raise ModelError(
                f"{path} lacks {error}", "make it again with frcli models pull or frcli convert router"
            ) from None
        if context > self._limit:
            raise ModelError(f"{path} reads at most {self._limit} tokens, not {context}", "ask for a shorter context")
        self._context = context
        self._lengths = [0] * sequences
        shape = (sequences, kv_heads, context, head_dim)
        buffer = DeviceBuffer if _CUDA_PROVIDER in session.get_providers() else HostBuffer
        self._caches = [(buffer(shape, dtype), buffer(shape, dtype)) for _ in range(layers)]
        # A binding names every key and value buffer, which takes a millisecond: it is made once for each run of
        # neighbouring rows (first, number) that comes up. What changes from run to run has its fixed place, too, and is
        # named again only when its size or its place in the output buffers is another one than last time.
        self._bindings: dict[tuple[int, int], Any] = {}
        self._bound: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._ids, self._picked = (np.zeros(max(sequences, chunk), np.int64) for _ in range(2))
        self._seqlens = np.zeros(sequences, np.int32)
        self._total = np.zeros((), np.int32)
        self._reserve(sequences)

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

    def _reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows, and one more for a run whose row nobody wants."""
        self._logits = np.empty((rows + 1, self._width), np.float32)
        self._weights = {name: np.empty((rows + 1, width), np.float32) for name, width in self._heads.items()}
        self._bound.clear()

    def extend(self, feeds: Sequence[Feed]) -> list[Rows]:
        """See :meth:`LogitSource.extend`. Sequences that read one token share a run; longer feeds are read one after
        the other.
        """
        if self._session is None:
            raise ModelError(f"the router {self.path} is closed")
        check_feeds(feeds, self._lengths, context=self._context, width=self._width, name=self.path.name)
        wanted = sum(feed.rows for feed in feeds)
        if wanted >= len(self._logits):
            self._reserve(wanted)
        times = Counter(feed.seq for feed in feeds)
        together: dict[int, int] = {}  # sequence -> its feed
        firsts, at = [0] * len(feeds), 0
        for index, feed in enumerate(feeds):
            if len(feed.tokens) == 1 and times[feed.seq] == 1:
                together[feed.seq] = index
                continue
            firsts[index] = at
            self._read(feed, at)
            at += feed.rows
        for seqs in self._neighbours(together):
            members = [together[seq] for seq in seqs]
            self._step([feeds[index] for index in members], at)
            for index in members:
                firsts[index] = at
                at += feeds[index].rows
        return [self._rows(slice(at, at + feed.rows)) for at, feed in zip(firsts, feeds, strict=True)]

    def _rows(self, rows: slice) -> Rows:
        heads = {name: values[rows] for name, values in self._weights.items()}
        gate = heads[_GATE][:, 0] if _GATE in heads else None
        return Rows(self._logits[rows], heads.get(_ROUTING), heads.get(_PROMPT), gate)

    def _read(self, feed: Feed, at: int) -> None:
        """Read all tokens of one feed; its rows go to the output buffers from row ``at`` on."""
        total = len(feed.tokens)
        for start in range(0, total, self._chunk):
            tokens = feed.tokens[start : start + self._chunk]
            n = len(tokens)
            rows = min(n, max(0, start + n - (total - feed.rows)))
            self._run(feed.seq, np.array([tokens], np.int64), range(n - rows, n), at)
            self._lengths[feed.seq] += n
            at += rows

    def _neighbours(self, seqs: Iterable[int]) -> list[list[int]]:
        """The sequences in order, in groups whose rows are read by one run each, with the idle rows between them."""
        groups: list[list[int]] = []
        for seq in sorted(seqs):
            if groups and self._bridged(groups[-1][-1] + 1, seq):
                groups[-1].append(seq)
            else:
                groups.append([seq])
        return groups

    def _bridged(self, first: int, end: int) -> bool:
        """Whether the idle rows ``first`` to ``end`` - 1 may and should be read along with those around them."""
        idle = self._lengths[first:end]
        # An idle row reads a token behind its prefix, which nothing counts: there must be room for it.
        return max(idle, default=0) < self._context and len(idle) + sum(idle) / _TOKENS_PER_ROW <= _RUN_COST

    def _step(self, feeds: Sequence[Feed], at: int) -> None:
        """Read the one token of each feed; the feeds are in the order of their sequences."""
        first = feeds[0].seq
        tokens = np.zeros((feeds[-1].seq + 1 - first, 1), np.int64)
        tokens[[feed.seq - first for feed in feeds], 0] = [feed.tokens[0] for feed in feeds]
        self._run(first, tokens, [feed.seq - first for feed in feeds if feed.rows], at)
        for feed in feeds:
            self._lengths[feed.seq] += 1

    def _run(self, first: int, tokens: NDArray[np.int64], picked: Sequence[int], at: int) -> None:
        """Read ``tokens`` int64 [rows, n] behind the prefixes of the KV rows from ``first`` on; the rows of the tokens
        at the flat positions ``picked`` go to the output buffers from row ``at`` on.
        """
        many, n = tokens.shape
        lengths = self._lengths[first : first + many]
        self._seqlens[first : first + many] = [length + n - 1 for length in lengths]
        self._total[()] = max(lengths) + n
        self._ids[: many * n] = tokens.ravel()
        # The graph wants at least one row; a row that nobody asked for goes where the next one will be written over it.
        rows = max(1, len(picked))
        self._picked[:rows] = picked if len(picked) else many * n - 1
        binding = self._binding(first, many, n, rows, at)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises bare pybind exceptions of many names
            reason = " ".join(str(error).split())
            raise ModelError(f"the router {self.path.name} failed to read {tokens.size} tokens: {reason}") from None

    def _binding(self, first: int, many: int, n: int, rows: int, at: int) -> Any:
        key = first, many
        if key not in self._bindings:
            self._bindings[key] = self._bind(first, many)
        binding = self._bindings[key]
        if self._bound.get(key) != (n, rows, at):
            _bind_in(binding, "input_ids", self._ids[: many * n].reshape(many, n))
            _bind_in(binding, "rows", self._picked[:rows])
            _bind_out(binding, "logits", self._logits[at : at + rows])
            for name, weights in self._weights.items():
                _bind_out(binding, name, weights[at : at + rows])
            self._bound[key] = n, rows, at
        return binding

    def _bind(self, first: int, many: int) -> Any:
        binding = self._session.io_binding()
        rows = slice(first, first + many)
        for layer, caches in enumerate(self._caches):
            for kind, cache in zip(("key", "value"), caches, strict=True):
                cache.bind(binding, f"past_{kind}.{layer}", f"present_{kind}.{layer}", rows)
        _bind_in(binding, "seqlens_k", self._seqlens[rows])
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
        n = self._lengths[src]
        self._lengths[dst] = 0  # an interrupt may leave it half copied
        for caches in self._caches:
            for cache in caches:
                cache.copy(src, dst, n)
        self._lengths[dst] = n

    def close(self) -> None:
        """Free the session and the KV buffers."""
        self._session = None
        self._bindings.clear()
        self._caches.clear()


def _open(path: Path, threads: int, gpu: bool) -> Any:
    if not path.is_file():
        raise ModelError(f"the router {path} does not exist", "make it with frcli models pull")
    path = path.resolve()  # its weights may lie beside the file itself, and not beside a link to it
    check_onnx(path)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The pool spins between the operators of a step, which are too short to sleep (four steps in a row take 29 ms
    # instead of 40), and stops at its end: a spinning pool would take the cores from llama.cpp, whose step then goes
    # from 9 to 22 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    if gpu:
        load_cuda()
    try:
        providers = [each for each in (_CUDA_PROVIDER,) if gpu and each in ort.get_available_providers()]
        # Falling back from the processor to the processor would only print a second reason, on stdout.
        more = {} if providers else {"enable_fallback": 0}
        return ort.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"], **more)
    except Exception as error:  # onnxruntime raises bare pybind exceptions of many names
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"ONNX Runtime cannot load {path}: {reason}", "make it again with frcli models pull --force"
        ) from None


def _bind_in(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_out(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
