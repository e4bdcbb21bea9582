"""Runs a converted router in ONNX Runtime, one sequence from its beginning, for parity checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcli.errors import ModelError

Array = NDArray[np.float32]

_THREADS = 2


class RouterSession:
    """A router and the KV memory of ``batch`` sequences of up to ``length`` tokens, updated in place."""

    def __init__(self, path: Path, length: int, batch: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = _THREADS
        options.log_severity_level = 4  # what it says comes back as an exception
        # A spinning pool steals the processor from whatever else runs between two steps.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._binding = self._session.io_binding()
        self._outputs = [
            output.name for output in self._session.get_outputs() if not output.name.startswith("present_")
        ]
        self._batch = batch
        self._cache: list[Any] = []
        kinds = {each.name: each.type for each in self._session.get_inputs()}
        for index in range(int(self.metadata["frcli.layers"])):
            for kind in ("key", "value"):
                shape = (batch, int(self.metadata["frcli.kv_heads"]), length, int(self.metadata["frcli.head_dim"]))
                dtype = np.float16 if kinds[f"past_{kind}.{index}"] == "tensor(float16)" else np.float32
                memory = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=dtype))
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
            raise ModelError(f"ONNX Runtime failed: {error}") from error
        # Outputs come back in the order in which they were bound: the cache first, then these.
        values = self._binding.get_outputs()[len(self._cache) :]
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}


def run_text(path: Path, tokens: Sequence[int], block: int = 64) -> dict[str, Array]:
    """Return the outputs at every position: read in blocks with the cache in place, the last eight one by one."""
    session = RouterSession(path, len(tokens))
    steps = max(len(tokens) - 8, 0)
    cuts = [*range(0, steps, block), *range(steps, len(tokens)), len(tokens)]
    parts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        parts.append(session.run([tokens[start:end]], [start], range(end - start)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
