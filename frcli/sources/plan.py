"""The memory plan: what of a bundle goes to which device, whether it fits, and what would make it fit.

A plan is made before anything is loaded, from a :class:`~frcli.sources.needs.Demand` and the devices. Models fill the
GPUs in the order of how many experts run on them, each from its end, as llama.cpp takes layers: first what makes logits
(the head counts as a layer), then the last layer. What has no room stays with the processor, and so do the tables that
tokens are looked up in. The router comes first where ONNX Runtime can use the GPU and its file was made for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from frcli.bundle import Bundle
from frcli.fusion.policy import ROUTER, Policy
from frcli.sources.devices import AUTO, CPU, Device, devices
from frcli.sources.ggml import repacked_types
from frcli.sources.kv_types import check_kv_type
from frcli.sources.needs import VOCABULARY, Demand, ModelNeed, Running, compute_bytes, demand, kv_bytes

_RESERVE = 512 << 20  # left free on a GPU for its driver, the screen, and what the formulas miss


@dataclass(frozen=True, slots=True)
class Share:
    """What one part of a bundle takes on one device, in bytes.

    ``mapped`` comes on top of ``weights``: pages of the file that are in memory, too, and that the system takes back
    when it needs them.
    """

    role: str
    device: str
    weights: int = 0
    adapters: int = 0
    kv: int = 0
    compute: int = 0
    mapped: int = 0

    @property
    def bytes(self) -> int:
        """What must be there: everything but ``mapped``."""
        return self.weights + self.adapters + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's layers go: ``gpus`` has the number of its last layers (the head is one of them) on each GPU that
    llama.cpp can use, ``layers`` how many there are.
    """

    role: str
    gpus: tuple[int, ...]
    layers: int

    @property
    def on_gpu(self) -> int:
        """Number of layers that are not the processor's: llama.cpp's ``n_gpu_layers``."""
        return sum(self.gpus)


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes where, and what it takes there."""

    demand: Demand
    running: Running
    devices: tuple[Device, ...]
    placements: tuple[Placement, ...]
    shares: tuple[Share, ...]

    def needed(self, device: Device) -> int:
        """Bytes that must be free on the device."""
        inside = {device.name}
        if device.kind == CPU:
            inside |= {other.name for other in self.devices if other.shared}
        return sum(share.bytes for share in self.shares if share.device in inside)

    @property
    def resident(self) -> int:
        """Bytes of main memory that the process takes in the end, mapped pages of files included."""
        host = self.devices[0]
        return self.needed(host) + sum(share.mapped for share in self.shares if share.device == host.name)

    @property
    def short(self) -> list[Device]:
        """The devices that have too little free."""
        return [device for device in self.devices if self.needed(device) > device.free]

    @property
    def fits(self) -> bool:
        """Whether every device has what it needs to have."""
        return not self.short

    @property
    def running_models(self) -> tuple[Placement, ...]:
        """Where those models go of which more than the vocabulary is used."""
        used = {model.role for model in self.demand.models if model.contexts}
        return tuple(each for each in self.placements if each.role in used)

    @property
    def all_on_gpus(self) -> bool:
        """Whether the processor has no layer of a model that runs."""
        return all(each.on_gpu == each.layers for each in self.running_models)

    @property
    def router_on_gpu(self) -> bool:
        """Whether ONNX Runtime shall run the router on a GPU."""
        host = self.devices[0].name
        return any(share.role == ROUTER and share.device != host for share in self.shares)

    def placement(self, role: str) -> Placement:
        """Where the layers of the model go that the plan calls ``role``."""
        return next(each for each in self.placements if each.role == role)


def plan_bundle(
    bundle: Bundle,
    running: Running,
    policy: Policy | None = None,
    *,
    gpu_layers: int | str = AUTO,
    available: Sequence[Device] | None = None,
) -> Plan:
    """The plan for a bundle whose files are here, on this machine unless ``available`` names other devices.

    ``policy`` None is one that may use all experts and the router. Raises ``ModelError`` for a file that is missing or
    has no shape, ``UsageError`` for a KV type that a model cannot have.
    """
    return make_plan(demand(bundle, policy), running, devices() if available is None else available, gpu_layers)


def make_plan(needed: Demand, running: Running, available: Sequence[Device], gpu_layers: int | str = AUTO) -> Plan:
    """The plan for what is needed on the devices that there are, the processor first.

    ``gpu_layers`` is how many layers of each model go to GPUs: ``auto`` for as many as have room, negative for all.
    Whether it fits is the plan's to say. Raises ``UsageError`` for a KV type that a model cannot have.
    """
    check_kv_type(running.kv_type, [model.shape for model in needed.models if model.contexts])
    host = available[0]
    gpus = [device for device in available[1:] if device.llama]
    room = {gpu.name: min(gpu.free, host.free) if gpu.shared else gpu.free for gpu in available[1:]}
    room = {name: max(0, free - _RESERVE) for name, free in room.items()}
    shares: list[Share] = []
    if needed.router is not None:
        share = Share(ROUTER, host.name, needed.router.weights, kv=needed.router.kv(running))
        if needed.router.cuda and gpu_layers != 0:
            places = (gpu.name for gpu in available[1:] if gpu.onnx and room[gpu.name] >= share.bytes)
            share = replace(share, device=next(places, host.name))
        shares.append(share)
    placements = {}
    for model in sorted(needed.models, key=lambda model: -len(model.contexts)):
        left = [room[gpu.name] - sum(s.bytes for s in shares if s.device == gpu.name) for gpu in gpus]
        units = _units(model, running)
        counts: tuple[int, ...] = (0,) * len(gpus)  # of a model of which only the vocabulary is used
        if model.contexts and gpu_layers == AUTO:
            counts = _fill(units, len(model.contexts) * compute_bytes(model.shape, running, on_cpu=False), left)
        elif model.contexts:
            counts = _divide(len(units) if int(gpu_layers) < 0 else min(int(gpu_layers), len(units)), left)
        placements[model.role] = Placement(model.role, counts, len(units))
        shares += _shares(model, placements[model.role], running, [host, *gpus])
    ordered = tuple(placements[model.role] for model in needed.models)
    return Plan(needed, running, tuple(available), ordered, tuple(shares))


def _units(model: ModelNeed, running: Running) -> list[int]:
    """Bytes that each layer takes on a GPU with its part of adapters and KV caches, from the head to the first."""
    shape, contexts = model.shape, len(model.contexts)
    adapter = _adapter_bytes(model)
    kept = kv_bytes(shape, running)
    layers = [weights + adapter + contexts * kv for weights, kv in zip(shape.layers, kept, strict=True)]
    return [shape.head + shape.tied, *reversed(layers)]


def _adapter_bytes(model: ModelNeed) -> int:
    """Bytes of all adapters for each layer of the model, rounded up: what fits by layers shall fit as a whole."""
    return -(-sum(model.adapters) // len(model.shape.layers))


def _fill(units: Sequence[int], fixed: int, room: Sequence[int]) -> tuple[int, ...]:
    """How many of the units fit on each GPU, where a GPU that gets any needs ``fixed`` bytes beside them: all on one if
    one has room for all.
    """
    counts = [0] * len(room)
    for index in sorted(range(len(room)), key=lambda index: -room[index]):
        if fixed + sum(units) <= room[index]:
            counts[index] = len(units)
            return tuple(counts)
    at = 0
    for index in reversed(range(len(room))):  # the last layers are the last GPU's
        left = room[index] - fixed
        while at < len(units) and units[at] <= left:
            left -= units[at]
            counts[index] += 1
            at += 1
    return tuple(counts)


def _divide(layers: int, room: Sequence[int]) -> tuple[int, ...]:
    """So many layers on the GPUs, in proportion to the room that they have."""
    weights = [max(1, each) for each in room]
    ends = [round(layers * sum(weights[: index + 1]) / sum(weights)) for index in range(len(weights))]
    return tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))


def _shares(model: ModelNeed, placement: Placement, running: Running, places: Sequence[Device]) -> list[Share]:
    """What the model takes on each of the devices, of which the first is the processor."""
    shape, contexts = model.shape, len(model.contexts)
    count = len(shape.layers)
    packed = [sum(kinds.get(kind, 0) for kind in repacked_types()) for kinds in shape.repackable] or [0] * (count + 1)
    kept = kv_bytes(shape, running)
    compute = contexts * compute_bytes(shape, running, on_cpu=placement.on_gpu == 0)
    ends = [count + 1 - placement.on_gpu]
    for number in placement.gpus:
        ends.append(ends[-1] + number)
    shares = []
    for device, begin, end in zip(places, [0, *ends], ends, strict=False):
        if begin == end and device.kind != CPU:
            continue
        layers = range(begin, min(end, count))
        weights, mapped = sum(shape.layers[layer] for layer in layers), 0
        buffers = compute
        if device.kind == CPU:
            weights += shape.embedding
            mapped = sum(packed[layer] for layer in layers)
            if begin == end:  # what it hands on to the GPUs: the tokens' embeddings and the mask
                buffers = contexts * running.tokens * (4 * shape.hidden + 2 * running.cells)
            buffers += VOCABULARY * shape.vocab
        if end > count:
            weights += shape.head
            if device.kind != CPU:
                weights += shape.tied  # a second copy: the processor keeps the table to look tokens up
            elif shape.tied:
                weights += packed[count]
            else:
                mapped += packed[count]
        kv = contexts * sum(kept[layer] for layer in layers)
        shares.append(Share(model.role, device.name, weights, _adapter_bytes(model) * len(layers), kv, buffers, mapped))
    return shares
