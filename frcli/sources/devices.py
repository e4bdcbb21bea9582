"""What hardware there is, and how many threads may run on it.

llama.cpp and ONNX Runtime take turns, each with all threads. More threads than physical cores in flight make barriers
wait for the scheduler: a token of 9 ms then takes seconds.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def physical_cores() -> int:
    """Number of physical cores that this process may use, at least 1.

    On Linux: the cores behind the allowed processors, cut by the CPU quota of a container. Elsewhere half of the
    logical processors on x86, all of them otherwise.
    """
    logical = os.cpu_count() or 1
    if sys.platform != "linux":
        import platform

        return max(1, logical // 2 if platform.machine().lower() in ("x86_64", "amd64") else logical)
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(len(allowed))))


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(logical: int) -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return logical if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return logical


def available_memory() -> int:
    """Bytes of main memory that this process may still take without pushing others out.

    On Linux what the kernel says, cut by the limit of a container; elsewhere half of what the machine has.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, OSError, ValueError):
            return 4 << 30
    try:
        cgroup = Path("/sys/fs/cgroup")
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def cuda_router() -> bool:
    """Whether ONNX Runtime was built with its CUDA provider; whether that works shows when a session is made."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def cuda_failure() -> str | None:
    """Why a session on the CUDA provider cannot be made, None when it can."""
    import onnxruntime
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare pybind exceptions of many names
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None if "CUDAExecutionProvider" in session.get_providers() else "it falls back to the CPU"
