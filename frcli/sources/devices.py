"""What hardware there is: processors, memory, GPUs, and why a GPU is not used.

llama.cpp and ONNX Runtime take turns, each with all threads. More threads than physical cores in flight make barriers
wait for the scheduler: a token of 9 ms then takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from frcli.errors import ModelError

CPU, GPU = "cpu", "gpu"


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


def total_memory() -> int | None:
    """Bytes of main memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        pass
    try:
        return _processor_memory()[1]
    except ModelError:
        return None


def available_memory() -> int:
    """Bytes of main memory that this process may still take without pushing others out.

    On Linux what the kernel says, cut by the limit of a container; elsewhere what llama.cpp says, which on a Mac is all
    that there is.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            return _processor_memory()[0]
        except ModelError:
            return (total_memory() or 8 << 30) // 2
    try:
        cgroup = Path("/sys/fs/cgroup")
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def _processor_memory() -> tuple[int, int]:
    """Free and total bytes of main memory as ggml says."""
    from frcli.sources.ggml import backends

    return next(((each.free, each.total) for each in backends() if each.kind == CPU), (0, 0))


@dataclass(frozen=True, slots=True)
class Device:
    """One place for weights: the processor with its memory, or a GPU; sizes are in bytes.

    ``llama`` and ``onnx`` say whether llama.cpp and ONNX Runtime can use it here; ``shared`` that its memory is main
    memory.
    """

    name: str
    about: str
    kind: str
    free: int
    total: int
    llama: bool = True
    onnx: bool = True
    shared: bool = False


def devices() -> tuple[Device, ...]:
    """The processor, then the GPUs that llama.cpp can use, in its order, then those that it cannot use."""
    from frcli.sources.ggml import backends

    found = backends()
    about = next((each.about for each in found if each.kind == CPU), "")
    free = available_memory()
    main = Device("CPU", about, CPU, free, max(free, total_memory() or 0))
    discrete = [each for each in found if each.kind == GPU]
    nvidia = nvidia_gpus()
    router = bool(nvidia) and cuda_router() and cuda_failure() is None
    gpus = []
    for each in discrete or [each for each in found if each.kind == "igpu"]:  # llama.cpp chooses likewise
        shared = each.kind == "igpu" or each.name.startswith(("Metal", "MTL"))
        known = any(each.about == other.about for other in nvidia)
        gpus.append(Device(each.name, each.about, GPU, each.free, each.total, onnx=known and router, shared=shared))
    seen = {gpu.about for gpu in gpus}
    others = [
        Device(gpu.name, gpu.about, GPU, gpu.free, gpu.total, llama=False, onnx=router)
        for gpu in nvidia
        if gpu.about not in seen
    ]
    return (main, *gpus, *others)


def nvidia_gpus() -> tuple[Device, ...]:
    """The NVIDIA GPUs that the driver knows, whether a library can use them or not."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.strip()]
        return tuple(
            Device(f"GPU{index}", name, GPU, int(free) << 20, int(total) << 20) for index, name, free, total in rows
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def has_nvidia() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded (Linux), or its tool is there."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def cuda_router() -> bool:
    """Whether ONNX Runtime was built with its CUDA provider; whether that works shows when a session is made."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@lru_cache(maxsize=1)
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
