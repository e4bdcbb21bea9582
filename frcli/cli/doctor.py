"""``frcli doctor``: what is here, what is wrong, and what to do about it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from frcli.cli import ui
from frcli.cli.options import Bundle as Name
from frcli.cli.options import Json
from frcli.errors import FrcliError

if TYPE_CHECKING:
    from frcli.bundle import Bundle
    from frcli.config import Settings
    from frcli.sources.plan import Share

app = typer.Typer(add_completion=False)

OK, WARN, PROBLEM = "ok", "warn", "problem"
REBUILD = (
    "CMAKE_ARGS='{}' pip install --force-reinstall --no-cache-dir --no-deps --no-binary llama-cpp-python "
    "'llama-cpp-python>=0.3.36,<0.3.37'"
)
# With all of CUDA and cuDNN that the wheel of onnxruntime-gpu needs, from the same index as the wheel itself.
CUDA_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at (``about``), how it is (``state``: ok, warn or problem), what was found, and what to do."""

    about: str
    state: str
    found: str
    advice: str = ""


@app.command(
    epilog="""
    # this machine, the installation, and the bundle that chat would use
    frcli doctor

    # whether a bundle's files are whole and fit into memory
    frcli doctor smollm2-quartet

    # only what is wrong
    frcli doctor --json | jq '.checks[] | select(.state != "ok")'
    """
)
def doctor(bundle: Name = None, as_json: Json = False) -> None:
    """Check this machine, the installation and a bundle; the exit code is 1 when there is a problem."""
    checks = []
    for check in examine(bundle):
        checks.append(check)
        if not as_json:
            ui.check_line(check.state, f"{check.about}: {check.found}", check.advice)
    if as_json:
        ui.write_json({"ok": all(c.state != PROBLEM for c in checks), "checks": [asdict(c) for c in checks]}, indent=2)
    if any(check.state == PROBLEM for check in checks):
        raise typer.Exit(1)


def examine(name: str | None) -> Iterator[Check]:
    """All checks, one after the other; none of them raises."""
    from frcli.bundle import DEFAULT_BUNDLE, read_bundle
    from frcli.config import Settings, config_file, read_settings

    yield python()
    yield from libraries()
    yield processor()
    yield from memory()
    try:
        settings = read_settings(Settings(), {"bundle": name})
        file = config_file()
    except FrcliError as error:
        yield Check("configuration", PROBLEM, error.what, error.hint)
        return
    yield Check("configuration", OK, str(file) if file.is_file() else f"none ({file})")
    try:
        bundle = read_bundle(settings.bundle or DEFAULT_BUNDLE)
    except FrcliError as error:
        yield Check("bundle", PROBLEM, error.what, error.hint)
        return
    yield from files(bundle, settings)


def python() -> Check:
    """The versions of frcli and Python."""
    from frcli import __version__

    found = f"frcli {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Check("version", OK, found)


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def libraries(installed: Callable[[str], str | None] = version) -> Iterator[Check]:
    """llama.cpp, ONNX Runtime and numpy: whether they load, and what they were built for."""
    yield llama(installed("llama-cpp-python"))
    yield from onnx(installed("onnxruntime"), installed("onnxruntime-gpu"))
    number = installed("numpy")
    yield Check("numpy", OK, number) if number else Check("numpy", PROBLEM, "not installed", "pip install numpy")


def llama(number: str | None) -> Check:
    """Whether llama.cpp loads, uses this processor's instructions, and could use a GPU."""
    if number is None:
        return Check("llama-cpp-python", PROBLEM, "not installed", "pip install llama-cpp-python")
    from frcli.sources.llama import library

    try:
        lib = library()
    except FrcliError as error:
        return Check("llama-cpp-python", PROBLEM, error.what, error.hint)
    built = lib.llama_print_system_info().decode("utf-8", "replace")
    gpu = bool(lib.llama_supports_gpu_offload())
    found = f"{number}, {'built with GPU offload' if gpu else 'built for the CPU only'}"
    if not gpu and (way := gpu_build()) is not None:
        card, option = way
        return Check("llama-cpp-python", WARN, f"{found}, and there is {card}", REBUILD.format(option))
    if "avx2" in processor_flags() and "AVX2 = 1" not in built:
        return Check("llama-cpp-python", WARN, f"{found}, without AVX2", REBUILD.format("-DGGML_NATIVE=on"))
    return Check("llama-cpp-python", OK, found)


def gpu_build() -> tuple[str, str] | None:
    """A GPU that is here, whoever can use it, and the option of llama.cpp's build that would; None without one."""
    from frcli.sources.devices import has_nvidia

    if has_nvidia():
        return "an NVIDIA GPU", "-DGGML_CUDA=on"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple's GPU", "-DGGML_METAL=on"
    if any(Path("/dev/dri").glob("renderD*")):
        return "a GPU that Vulkan may reach", "-DGGML_VULKAN=on"
    return None


def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can do; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def onnx(plain: str | None, gpu: str | None) -> Iterator[Check]:
    """Whether one ONNX Runtime is installed and loads, and whether its CUDA provider works if there is a GPU."""
    if plain and gpu:
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        yield Check("onnxruntime", PROBLEM, f"onnxruntime {plain} and onnxruntime-gpu {gpu} overwrite each other", fix)
        return
    if not plain and not gpu:
        yield Check("onnxruntime", PROBLEM, "not installed", "pip install onnxruntime")
        return
    name = f"onnxruntime-gpu {gpu}" if gpu else f"onnxruntime {plain}"
    try:
        from frcli.sources.devices import cuda_failure, cuda_router, has_nvidia

        cuda = cuda_router()
    except (ImportError, OSError, AttributeError) as error:
        yield Check("onnxruntime", PROBLEM, f"{name} does not load: {error}", "install it again")
        return
    if not cuda:
        lacking = has_nvidia()
        yield Check(
            "onnxruntime",
            WARN if lacking else OK,
            f"{name}, without CUDA" + (", and there is an NVIDIA GPU" if lacking else ""),
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu" if lacking else "",
        )
    elif not has_nvidia():
        yield Check("onnxruntime", OK, f"{name}, no NVIDIA GPU to use its CUDA provider on")
    elif reason := cuda_failure():
        found = f"{name}, whose CUDA provider does not work, so a router runs on the CPU: {reason}"
        yield Check("onnxruntime", WARN, found, CUDA_LIBRARIES)
    else:
        yield Check("onnxruntime", OK, f"{name}, its CUDA provider works")


def processor() -> Check:
    """How many cores there are and how many threads run."""
    from frcli.sources.devices import physical_cores

    cores = physical_cores()
    return Check(
        "processor", OK, f"{os.cpu_count()} logical processors, {cores} physical cores to use, {cores} threads"
    )


def memory() -> Iterator[Check]:
    """How much each device has and how much of it is free, and which GPU is not used and why."""
    from frcli.sources.devices import CPU, devices

    try:
        found = devices()
    except FrcliError as error:
        yield Check("memory", PROBLEM, error.what, error.hint)
        return
    for device in found:
        about = "memory" if device.kind == CPU else device.name
        free = f"{ui.size(device.total)}, {ui.size(device.free)} free"
        if device.kind == CPU:
            yield Check(about, OK, free)
        elif not device.llama:
            said = f"{device.about}, {free}; llama.cpp does not use it: this build has no CUDA"
            yield Check(about, WARN, said, REBUILD.format("-DGGML_CUDA=on"))
        else:
            yield Check(about, OK, f"{device.about}, {free}{', shared with main memory' if device.shared else ''}")


def files(bundle: Bundle, settings: Settings) -> Iterator[Check]:
    """Whether the bundle's files are there and are what the manifest says, and whether its models fit together."""
    pull = f"frcli models pull {bundle.name}"
    sound = True
    yield Check("bundle", OK, f"{bundle.name} in {bundle.folder}")
    for artifact in bundle.artifacts():
        check = _file(artifact, pull)
        sound &= check.state != PROBLEM
        yield check
    if sound:
        yield from fits(bundle, settings)
        yield from together(bundle, pull)


def _file(artifact: Any, pull: str) -> Check:
    from frcli.bundle import file_sha256

    path = artifact.path
    if not path.is_file():
        return Check(artifact.role, PROBLEM, f"{path} is missing", pull)
    if artifact.sha256 is None:
        return Check(artifact.role, WARN, f"{path} is here, and the manifest gives no sha256", "add it to the manifest")
    try:
        with ui.working(f"checking {path.name}"):
            actual = file_sha256(path)
    except FrcliError as error:
        return Check(artifact.role, PROBLEM, error.what, error.hint)
    if actual != artifact.sha256:
        found = f"{path} has sha256 {actual[:12]}..., not {artifact.sha256[:12]}... as the manifest says"
        return Check(artifact.role, PROBLEM, found, f"delete it and run {pull}")
    return Check(artifact.role, OK, f"{path} ({ui.size(path.stat().st_size)}), sha256 is right")


def fits(bundle: Bundle, settings: Settings) -> Iterator[Check]:
    """What the bundle takes on which device, by formula and as llama.cpp says, whether that is free, and what would fit
    if it is not.
    """
    from frcli.decode.draft import MOST_DRAFTS
    from frcli.sources.devices import parse_gpu_layers
    from frcli.sources.llama_log import simulate
    from frcli.sources.needs import Running, compute_bytes, kv_bytes
    from frcli.sources.plan import plan_bundle
    from frcli.sources.remedies import remedies

    layers = parse_gpu_layers(settings.gpu_layers)
    running = Running(settings.ctx or bundle.manifest.defaults.context, 1, settings.kv_type, 1 + MOST_DRAFTS)
    try:
        plan = plan_bundle(bundle, running, gpu_layers=layers)
        yield from map(_share, plan.shares)
        for model in plan.demand.models:
            assert model.path is not None
            said = simulate(model.path, running)
            compute = compute_bytes(model.shape, running, on_cpu=True)
            parts = {"kv": sum(kv_bytes(model.shape, running)), "compute": compute}
            text = ", ".join(f"{ui.size(said[part])} of {part} (by formula {ui.size(parts[part])})" for part in parts)
            yield Check(f"llama.cpp on {model.role}", OK, f"{ui.size(said['weights'])} of weights; a context {text}")
    except FrcliError as error:
        yield Check("fit", PROBLEM, error.what, error.hint)
        return
    for place in plan.placements:
        if any(plan_device.llama for plan_device in plan.devices[1:]):
            yield Check(f"layers of {place.role}", OK, f"{place.on_gpu} of {place.layers} on a GPU")
    told = "; ".join(
        f"{ui.size(plan.needed(device))} of {ui.size(device.free)} on {device.name}"
        for device in plan.devices
        if plan.needed(device)
    )
    context = f"{running.context} tokens of context, {running.kv_type} keys and values"
    if plan.fits:
        yield Check("fit", OK, f"{told}, with {context}")
        return
    changes = ", or ".join(remedy.change for remedy in remedies(plan, layers))
    yield Check("fit", PROBLEM, f"{told}, with {context}", changes or "close other programs, or use smaller models")


def _share(share: Share) -> Check:
    parts = {"weights": share.weights, "adapters": share.adapters, "KV": share.kv, "compute": share.compute}
    told = ", ".join(f"{ui.size(size)} of {part}" for part, size in parts.items() if size)
    more = f"; up to {ui.size(share.mapped)} more of its file stay mapped while there is room" if share.mapped else ""
    return Check(f"{share.role} on {share.device}", OK, f"{ui.size(share.bytes)}: {told}{more}")


def together(bundle: Bundle, pull: str) -> Iterator[Check]:
    """Whether the base loads with the right vocabulary, and whether the router is built and made for it."""
    from frcli.sources.llama import LlamaModel
    from frcli.tokens import vocabulary_hash

    try:
        model = LlamaModel(bundle.base().path, vocab_only=True)
        try:
            vocabulary = vocabulary_hash(model.texts())
        finally:
            model.close()
    except FrcliError as error:
        yield Check("vocabulary", PROBLEM, error.what, error.hint)
        return
    stated = bundle.manifest.vocabulary
    if stated and stated != vocabulary:
        found = f"the base's is {vocabulary[:12]}..., not {stated[:12]}... as the manifest says"
        yield Check("vocabulary", PROBLEM, found, "the adapters and the router were made for another model")
        return
    yield Check("vocabulary", OK, f"{vocabulary[:12]}...")
    path = bundle.router_model()
    if path is None:
        yield Check("router", OK, "none, so fusionroute cannot be used with this bundle")
        return
    if not path.is_file():
        yield Check("router", PROBLEM, f"{path} is not built", pull)
        return
    from frcli.sources.onnx import OnnxRouter

    try:
        router = OnnxRouter(path, context=16)
    except FrcliError as error:
        yield Check("router", PROBLEM, error.what, error.hint)
        return
    try:
        if router.experts != bundle.experts:
            found = f"{path} chooses among {', '.join(router.experts)}, the manifest names {', '.join(bundle.experts)}"
            yield Check("router", PROBLEM, found, "both must be the same, in the same order")
        elif router.vocabulary != vocabulary:
            yield Check("router", PROBLEM, f"{path} was made for another tokenizer", f"{pull} --force")
        else:
            yield Check("router", OK, f"{path} ({ui.size(path.stat().st_size)}), made for these experts")
    finally:
        router.close()
