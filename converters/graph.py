"""Pieces that an ONNX graph is put together from: nodes, plain or quantized weights, inputs and outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.output import companion
from converters.quantize import BLOCK, Quantized
from converters.weights import Matrix

MICROSOFT = "com.microsoft"
_OPSET, _MICROSOFT_OPSET, _IR_VERSION = 21, 1, 10
# A protobuf message cannot grow beyond 2 GiB; a larger model keeps its weights in a file beside it.
LARGEST_MESSAGE = (1 << 31) - (1 << 20)
_SMALL = 1024  # bytes of a weight that stays in the graph all the same


class Graph:
    """An ONNX graph under construction. Values are known by name, and every method returns the name of what it made.

    ``dtype`` is what the graph computes in: float32, or for a GPU float16.
    """

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._bytes = 0
        self._cast: dict[str, str] = {}  # the float32 form of matrices that are stored in float16

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Declare an input of a numpy dtype; a dimension is a size or the name of a free one."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Declare an output; a node must have made ``name``."""
        self._outputs.append(_value_info(name, dtype, shape))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that output."""
        return self.nodes(operator, inputs, [output], domain, **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Add a node and return its outputs; an empty name leaves an optional input or output out."""
        from onnx import helper

        name = next(output for output in outputs if output)
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def weight(self, name: str, values: NDArray[Any], dtype: Any = None) -> str:
        """Store an array in the model, floats in ``dtype``, the graph's if not given; a name that is stored already is
        not stored again.
        """
        from onnx import numpy_helper

        if name not in self._weights:
            if values.dtype.kind == "f":
                values = values.astype(dtype or self.dtype, copy=False)
            self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self._bytes += values.nbytes
        return name

    def linear(self, value: str, matrix: Matrix, name: str) -> str:
        """Multiply ``value`` [..., in] by ``matrix`` [out, in] and return [..., out]."""
        if isinstance(matrix, Quantized):
            return self._matmul_bits(value, matrix, name, name)
        return self.node("MatMul", [value, self._table(name, matrix.T)], name)

    def cast(self, value: str, dtype: Any, name: str) -> str:
        """Return ``value`` as ``dtype``."""
        from onnx import helper

        return self.node("Cast", [value], name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _table(self, name: str, matrix: NDArray[Any]) -> str:
        """Store a matrix of floats; in a float32 graph one of float16 stays so in the file, and is cast on loading."""
        if matrix.dtype != np.float16 or self.dtype == np.float16:
            return self.weight(f"{name}.weight", matrix)
        stored = self.weight(f"{name}.weight", matrix, np.float16)
        if name not in self._cast:
            self._cast[name] = self.cast(stored, self.dtype, f"{name}.weight.cast")
        return self._cast[name]

    def embed(self, ids: str, table: Matrix, name: str, output: str) -> str:
        """Look up the rows ``ids`` of ``table`` [vocab, hidden], which ``project`` shares under the same ``name``."""
        if not isinstance(table, Quantized):
            return self.node("Gather", [self._table(name, table), ids], output, axis=0)
        packed, *scales = self._quantized(name, table)
        rows, columns = table.packed.shape[0], table.columns
        # MatMulNBits takes [rows, blocks, bytes], GatherBlockQuantized takes [rows, bytes]. The Reshape lets both read
        # one initializer; ONNX Runtime folds it when it loads, and then frees the original once MatMulNBits has
        # repacked it.
        padded = -(-columns // BLOCK) * BLOCK
        flat = self.weight(f"{name}.flat", np.array([rows, padded * table.bits // 8], dtype=np.int64))
        inputs = [self.node("Reshape", [packed, flat], f"{name}.rows"), ids, *scales]
        settings = {"bits": table.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        if padded == columns:
            return self.node("GatherBlockQuantized", inputs, output, MICROSOFT, **settings)
        wide = self.node("GatherBlockQuantized", inputs, f"{output}.padded", MICROSOFT, **settings)
        cut = [
            self.weight(f"{name}.{bound}", np.array([value], dtype=np.int64))
            for bound, value in (("first", 0), ("end", columns), ("axis", -1))
        ]
        return self.node("Slice", [wide, *cut], output)

    def project(self, value: str, table: Matrix, name: str, output: str) -> str:
        """Multiply ``value`` [n, hidden] by the rows of ``table`` [vocab, hidden] and return [n, vocab]."""
        if isinstance(table, Quantized):
            return self._matmul_bits(value, table, name, output)
        return self.node("Gemm", [value, self._table(name, table)], output, transB=1)

    def model(self, metadata: Mapping[str, str], producer: str) -> Any:
        """Return the finished ``onnx.ModelProto``."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, "router", self._inputs, self._outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, _MICROSOFT_OPSET)]
        model = helper.make_model(graph, producer_name=producer, opset_imports=opsets, ir_version=_IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        return model

    def save(self, path: Path, metadata: Mapping[str, str], producer: str, largest: int = LARGEST_MESSAGE) -> None:
        """Write the model to ``path``; weights of more than ``largest`` bytes go to a file beside it, named by what it
        holds (:func:`converters.output.companion`).
        """
        import onnx
        from onnx.external_data_helper import set_external_data

        model = self.model(metadata, producer)
        if self._bytes > largest:
            beside = [weight for weight in model.graph.initializer if len(weight.raw_data) >= _SMALL]
            digest = hashlib.sha256()
            for weight in beside:
                digest.update(weight.raw_data)
            for weight in beside:
                set_external_data(weight, companion(path, digest.hexdigest()))
        onnx.save_model(model, path)

    def _quantized(self, name: str, matrix: Quantized) -> list[str]:
        """Store a quantized matrix and return the names of its integers, scales and, if it has any, zero points."""
        parts = [self.weight(f"{name}.packed", matrix.packed), self.weight(f"{name}.scales", matrix.scales)]
        return parts if matrix.zeros is None else [*parts, self.weight(f"{name}.zeros", matrix.zeros)]

    def _matmul_bits(self, value: str, matrix: Quantized, name: str, output: str) -> str:
        # accuracy_level 4 lets the processor quantize activations to 8 bits and multiply integers.
        return self.node(
            "MatMulNBits",
            [value, *self._quantized(name, matrix)],
            output,
            MICROSOFT,
            K=matrix.columns,
            N=matrix.packed.shape[0],
            bits=matrix.bits,
            block_size=BLOCK,
            accuracy_level=4,
        )


def _value_info(name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
