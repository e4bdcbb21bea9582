"""What would make a bundle fit that does not, or fit the GPUs as a whole: each change alone, or a few together.

Each is found by planning again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from frcli.errors import FitError, UsageError
from frcli.sources.devices import AUTO
from frcli.sources.kv_types import KV_TYPES
from frcli.sources.needs import Demand, Running
from frcli.sources.plan import Plan, make_plan
from frcli.sources.shape import QUANTS

_LEAST_CONTEXT = 512
_KV_TYPES = ("q8_0", "q4_0")  # the first costs next to nothing in quality


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes the bundle fit: ``change`` as a person would make it, and what it needs then, in bytes of
    main memory.
    """

    change: str
    bytes: int


def require_fit(plan: Plan, name: str, gpu_layers: int | str = AUTO) -> None:
    """Raise ``FitError`` with the changes that would help, unless the plan fits."""
    if plan.fits:
        return
    missing = ", ".join(
        f"{gib(plan.needed(device))} of memory on {device.name}, where {gib(device.free)} are free"
        for device in plan.short
    )
    found = [remedy.change for remedy in remedies(plan, gpu_layers)]
    hint = f"what would fit: {', or '.join(found)}" if found else "close other programs, or use smaller models"
    raise FitError(f"{name} needs {missing}", f"{hint}; --no-fit tries it all the same")


def gib(count: int) -> str:
    """A number of bytes in GiB with one digit behind the point, in MiB below one."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def remedies(plan: Plan, gpu_layers: int | str = AUTO) -> list[Remedy]:
    """Changes that make the plan fit, each by itself, or, where none does, one of several together; empty when nothing
    helps or nothing is wrong.
    """
    if plan.fits:
        return []
    return _found(plan, gpu_layers, lambda other: other.fits)


def remedies_for_all_layers(plan: Plan) -> list[Remedy]:
    """Changes with which the GPUs have room for all layers, as :func:`remedies` has those that make the plan fit; empty
    where all are there, where nothing helps, and where there is no GPU.
    """
    if plan.all_on_gpus or not any(device.llama for device in plan.devices[1:]):
        return []
    return _found(plan, AUTO, lambda other: other.fits and other.all_on_gpus)


Change = tuple[str, Demand | None, Running]  # how it is called, and what is asked for then; None: as it was
Aim = Callable[[Plan], bool]  # whether a plan is what is looked for


def _found(plan: Plan, gpu_layers: int | str, aim: Aim) -> list[Remedy]:
    running, demand = plan.running, plan.demand
    changes = [
        _layers(plan, gpu_layers, aim),
        _context(plan, gpu_layers, aim),
        next(_of_each(plan, gpu_layers, aim, _kv_changes(running)), None),
        next(_of_each(plan, gpu_layers, aim, _quant_changes(demand, running)), None),
        next(_of_each(plan, gpu_layers, aim, _sequence_changes(running)), None),
        next(_of_each(plan, gpu_layers, aim, _expert_changes(demand, running)), None),
    ]
    alone = [change for change in changes if change is not None]
    return alone or list(_of_each(plan, gpu_layers, aim, _together(demand, running)))[:1]


def _of_each(plan: Plan, gpu_layers: int | str, aim: Aim, changes: Iterator[Change]) -> Iterator[Remedy]:
    """Those of the changes that lead to a plan that is looked for."""
    for change, demand, running in changes:
        try:
            other = make_plan(demand or plan.demand, running, plan.devices, gpu_layers)
        except UsageError:  # a KV type that its heads cannot fill
            continue
        if aim(other):
            yield Remedy(change, other.needed(plan.devices[0]))


def _layers(plan: Plan, gpu_layers: int | str, aim: Aim) -> Remedy | None:
    """As many layers on the GPUs as have room, where too many were asked for, or none."""
    if gpu_layers == AUTO or not any(device.llama for device in plan.devices[1:]):
        return None
    return next(_of_each(plan, AUTO, aim, iter([(f"--gpu-layers {AUTO}", None, plan.running)])), None)


def _context(plan: Plan, gpu_layers: int | str, aim: Aim) -> Remedy | None:
    """The longest context that fits, in steps of 256 tokens."""
    low, high = _LEAST_CONTEXT // 256, (plan.running.context - 1) // 256
    found = None
    while low <= high:
        middle = (low + high) // 2
        running = replace(plan.running, context=256 * middle)
        fit = next(_of_each(plan, gpu_layers, aim, iter([(f"--ctx {256 * middle}", None, running)])), None)
        if fit is None:
            high = middle - 1
        else:
            found, low = fit, middle + 1
    return found


def _size(kv_type: str) -> float:
    return KV_TYPES[kv_type].bytes / KV_TYPES[kv_type].numbers


def _kv_changes(running: Running) -> Iterator[Change]:
    for kv_type in _KV_TYPES:
        if _size(kv_type) < _size(running.kv_type):
            yield f"--kv-type {kv_type}", None, replace(running, kv_type=kv_type)


def _quant_changes(demand: Demand, running: Running) -> Iterator[Change]:
    largest = max((model.shape.bits for model in demand.models), default=0)
    for quant in sorted(QUANTS, key=lambda quant: -QUANTS[quant][0]):
        if QUANTS[quant][0] < largest:
            yield f"its models in {quant}", demand.in_quant(quant), running


def _sequence_changes(running: Running) -> Iterator[Change]:
    for sequences in range(running.sequences - 1, 0, -1):
        yield f"--parallel {sequences}", None, replace(running, sequences=sequences)


def _expert_changes(demand: Demand, running: Running) -> Iterator[Change]:
    for count in range(demand.experts - 1, 0, -1):
        yield f"{count} of its {demand.experts} experts", demand.with_experts(count), running


def _together(demand: Demand, running: Running) -> Iterator[Change]:
    """Several changes at once, the mildest first."""
    short = replace(running, context=min(running.context, 2048), sequences=1)
    for quant, smaller, _ in _quant_changes(demand, running):
        for kv_type in _KV_TYPES:
            change = f"--ctx {short.context} with --kv-type {kv_type} and {quant}"
            yield change, smaller, replace(short, kv_type=kv_type)
