"""Runs a converted router in ONNX Runtime, one sequence from its beginning, for parity checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from converters.runner import BLOCK, Array, Rows
from frcli.bundle import ROUTER_FORMAT
from frcli.checks.onnx import check_onnx
from frcli.errors import ModelError

_THREADS = 2


class RouterSession:
    """A router and the KV memory of ``batch`` sequences of up to ``length`` tokens, updated in place."""

    def __init__(self, path: Path, length: int, batch: int = 1) -> None:
        import onnxruntime as ort

        self._cache: list[Any] = []
        options = ort.SessionOptions()
        options.intra_op_num_threads = _THREADS
        options.log_severity_level = 4  # what it says comes back as an exception
        # A spinning pool steals the processor from whatever else runs between two steps.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = path.resolve()  # its weights may lie beside the file itself, and not beside a link to it
        check_onnx(path)
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            raise ModelError(f"ONNX Runtime cannot load {path}: {' '.join(str(error).split())}") from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if self.metadata.get("frcli.format") != ROUTER_FORMAT:
            raise ModelError(f"{path} is not a router of format {ROUTER_FORMAT}", "make it with frcli convert router")
        shapes = {each.name: each.shape for each in self._session.get_outputs()}
        self._outputs = [name for name in shapes if not name.startswith("present_")]
        try:
            self.context, self.vocab = int(self.metadata["frcli.context"]), int(shapes["logits"][-1])
            self._sizes = [int(self.metadata[f"frcli.{key}"]) for key in ("layers", "kv_heads", "head_dim")]
            self._kinds = {each.name: each.type for each in self._session.get_inputs()}
            self._batch = batch
            self.reserve(length)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} lacks {error}", "make it again with frcli convert router") from error

    def reserve(self, length: int) -> None:
        """Make the memory for ``length`` tokens of each sequence, and forget what they have read."""
        import onnxruntime as ort

        self._binding, self._cache = self._session.io_binding(), []
        layers, heads, width = self._sizes
        for index in range(layers):
            for kind in ("key", "value"):
                dtype = np.float16 if self._kinds[f"past_{kind}.{index}"] == "tensor(float16)" else np.float32
                memory = ort.OrtValue.ortvalue_from_numpy(np.zeros((self._batch, heads, length, width), dtype=dtype))
                self._binding.bind_ortvalue_input(f"past_{kind}.{index}", memory)
                self._binding.bind_ortvalue_output(f"present_{kind}.{index}", memory)
                self._cache.append(memory)

    def run(self, tokens: Sequence[Sequence[int]], past: Sequence[int], rows: Iterable[int]) -> dict[str, Array]:
        """Read ``tokens`` behind the first ``past`` [batch] tokens and return the outputs for ``rows``.

        Shorter lists of tokens are padded on the right; ``rows`` are flat positions in [batch, longest list].
        """
        widest = max(map(len, tokens))
        ids = np.array([[*part, *[0] * (widest - len(part))] for part in tokens], dtype=np.int64)
        lengths = np.array([start + len(part) for start, part in zip(past, tokens, strict=True)], dtype=np.int32)
        feeds = {
            "input_ids": ids,
            "rows": np.fromiter(rows, dtype=np.int64),
            "seqlens_k": lengths - 1,
            "total_sequence_length": np.array(lengths.max()),
        }
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, array)
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise ModelError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
        # Outputs come back in the order in which they were bound: the cache first, then these.
        values = self._binding.get_outputs()[len(self._cache) :]
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}


class RouterRunner:
    """A converted router, read in blocks with the cache in place, the last eight tokens one by one: a
    :class:`converters.runner.Runner`.

    ``vocabulary`` is the hash of the tokenizer that it was made for, empty if it does not say.
    """

    def __init__(self, path: Path) -> None:
        self._session, self._length = RouterSession(path, 1), 1
        self.vocab, self.context = self._session.vocab, self._session.context
        self.vocabulary = self._session.metadata.get("frcli.vocabulary", "")

    def blocks(self, tokens: Sequence[int]) -> Iterator[Rows]:
        """Yield the rows of a text, ``BLOCK`` at a time."""
        if len(tokens) > self._length:
            self._session.reserve(len(tokens))
            self._length = len(tokens)
        for start in range(0, len(tokens), BLOCK):
            end = min(start + BLOCK, len(tokens))
            steps = range(max(len(tokens) - 8, start + 1), end)
            outputs = _read(self._session, tokens, [start, *steps, end])
            yield Rows(outputs["logits"], *map(outputs.get, ("routing", "prompt_routing", "gate")))

    def close(self) -> None:
        """Free the session."""
        del self._session


def run_text(path: Path, tokens: Sequence[int], block: int = 64) -> dict[str, Array]:
    """Return the outputs at every position: read in blocks with the cache in place, the last eight one by one."""
    session = RouterSession(path, len(tokens))
    steps = max(len(tokens) - 8, 0)
    cuts = [*range(0, steps, block), *range(steps, len(tokens)), len(tokens)]
    return _read(session, tokens, cuts)


def _read(session: RouterSession, tokens: Sequence[int], cuts: Sequence[int]) -> dict[str, Array]:
    """Read the tokens between the cuts, one part after the other, and return the outputs at all of them."""
    parts = [session.run([tokens[start:end]], [start], range(end - start)) for start, end in pairwise(cuts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
