"""Key and value buffers of a router: memory that a run reads and writes in place, on the host or on a GPU."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU, CUDA = "cpu", "cuda"


class HostBuffer:
    """One buffer [sequences, kv_heads, context, head_dim] of ``dtype``, mapped when it is written: a long context costs
    what has been read of it.
    """

    device = CPU

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._array = _lazy_zeros(shape, np.dtype(dtype))

    def bind(self, binding: Any, past: str, present: str, rows: slice) -> None:
        """Let a run read the buffer's ``rows`` as ``past`` and write them as ``present``."""
        part = self._array[rows]
        for bind, name in ((binding.bind_input, past), (binding.bind_output, present)):
            bind(name, self.device, 0, part.dtype.type, part.shape, part.ctypes.data)

    def copy(self, src: int, dst: int, tokens: int) -> None:
        """Make the first ``tokens`` of sequence ``dst`` those of ``src``."""
        self._array[dst, :, :tokens] = self._array[src, :, :tokens]


class DeviceBuffer:
    """The same in a GPU's memory. Untested: there was no GPU to test it on."""

    device = CUDA

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        import onnxruntime as ort

        self._shape, self._dtype = shape, np.dtype(dtype)
        self._value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._dtype), CUDA, 0)

    def bind(self, binding: Any, past: str, present: str, rows: slice) -> None:
        """See :meth:`HostBuffer.bind`."""
        place = self._value.data_ptr() + rows.start * math.prod(self._shape[1:]) * self._dtype.itemsize
        shape = (rows.stop - rows.start, *self._shape[1:])
        for bind, name in ((binding.bind_input, past), (binding.bind_output, present)):
            bind(name, self.device, 0, self._dtype.type, shape, place)

    def copy(self, src: int, dst: int, tokens: int) -> None:
        """See :meth:`HostBuffer.copy`; ONNX Runtime copies whole buffers only, so it goes by way of the host."""
        whole = self._value.numpy()
        whole[dst, :, :tokens] = whole[src, :, :tokens]
        self._value.update_inplace(whole)


def _lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros in memory that is mapped when it is written.

    On Linux numpy asks for pages of 2 MB, and a sequence's first token would map most of its buffer.
    """
    if sys.platform != "linux":
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, dtype.itemsize * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages refuses to be told not to use them
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
