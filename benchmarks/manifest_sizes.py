"""What the manifests take whose models are not here: download, disk and memory, by the models' published shapes.

    python benchmarks/manifest_sizes.py                       # the table, as Markdown
    python benchmarks/manifest_sizes.py --write               # the table, and what fits where, into models/README.md

Nothing is loaded and nothing is fetched: sizes follow from the numbers in each model's config.json, memory from frcli's
memory plan (frcli/sources/plan.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from frcli.bundle import Bundle, read_bundle
from frcli.fetch import repository
from frcli.fusion.policy import BASE, LARGE
from frcli.fusion.registry import make_policy
from frcli.sources.devices import CPU, GPU, Device
from frcli.sources.needs import Demand, ModelNeed, RouterNeed, Running, router_need
from frcli.sources.plan import Plan, make_plan
from frcli.sources.shape import ModelShape, describe_shape

MODELS = Path(__file__).parent.parent / "models"
GIB = 1 << 30
GPUS = MEMORIES = (8, 12, 24)  # GB, of a GPU and of main memory
SYSTEM = 2 * GIB  # of main memory that is left to everything else

_QWEN = {"layers": 28, "hidden": 1536, "ffn": 8960, "heads": 12, "kv_heads": 2, "vocab": 151936, "tied": True}
_LLAMA = {"layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocab": 128256, "context": 131072}
_GEMMA = {"layers": 26, "hidden": 2304, "ffn": 9216, "heads": 8, "kv_heads": 4, "vocab": 256000, "context": 8192}
_GEMMA |= {"head_dim": 256, "tied": True}
# Of the config.json of each repository.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-1.5B-Instruct": {**_QWEN, "context": 32768},
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": {**_QWEN, "context": 32768},
    "Qwen/Qwen2.5-Math-1.5B-Instruct": {**_QWEN, "context": 4096},
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "layers": 24,
        "hidden": 896,
        "ffn": 4864,
        "heads": 14,
        "kv_heads": 2,
        "vocab": 151936,
        "context": 32768,
        "tied": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "layers": 28,
        "hidden": 3584,
        "ffn": 18944,
        "heads": 28,
        "kv_heads": 4,
        "vocab": 152064,
        "context": 32768,
    },
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA,
    "MergeBench/Llama-3.1-8B-Instruct_math": _LLAMA,
    "MergeBench/Llama-3.1-8B-Instruct_coding": _LLAMA,
    "MergeBench/gemma-2-2b-it_instruction": _GEMMA,
    "MergeBench/gemma-2-2b-it_math": _GEMMA,
    "MergeBench/gemma-2-2b-it_coding": _GEMMA,
}
# What each bundle's router is to be made of, once it is trained.
ROUTERS = {
    "qwen2.5-1.5b-trio": "Qwen/Qwen2.5-0.5B-Instruct",
    "llama-3.1-8b-mergebench": "meta-llama/Llama-3.1-8B-Instruct",
    "gemma-2-2b-mergebench": "MergeBench/gemma-2-2b-it_instruction",
}


@dataclass(frozen=True)
class Sizes:
    """What a bundle takes, in bytes: its checkpoints, its GGUFs, the most disk that pulling it has in use at once
    (one checkpoint with its unquantized copy, and all GGUFs), and the plans for its memory.
    """

    download: int
    files: int
    disk: int
    processor: Plan
    gpus: tuple[Plan, ...]
    router: RouterNeed | None


def bundles() -> list[Bundle]:
    """The bundles whose models are not here."""
    return [read_bundle(str(MODELS / name)) for name in ("qwen2.5-1.5b-trio", "qwen2.5-7b-dlf", *list(ROUTERS)[1:])]


def shape_of(source: str, quant: str | None = None) -> ModelShape:
    """The shape of the model that ``hf:USER/REPO!TYPE`` gives, or the same in another type."""
    repo, _, kind = repository(source)
    return describe_shape(repo, quant or kind, **SHAPES[repo])


def demand_of(bundle: Bundle) -> Demand:
    """What the bundle loads under its manifest's policy."""
    policy = make_policy(
        bundle.manifest.defaults.policy,
        bundle.experts,
        gamma=1.0,
        sharp=False,
        roles=bundle.roles,
        trained=bundle.trained,
    )
    used = bundle.experts if policy.sources is None else policy.sources
    models = []
    for artifact in bundle.artifacts():
        role = artifact.role.split()[0]
        if role == BASE:
            contexts = tuple(
                name for name in used if name == BASE or name in bundle.experts and name not in bundle.trained
            )
        else:
            contexts = tuple(name for name in used if name == (LARGE if role == LARGE else artifact.role.split()[-1]))
        models.append(ModelNeed(artifact.role, shape_of(str(artifact.source)), contexts, (0,) * len(contexts)))
    return Demand(tuple(models))


def sizes(bundle: Bundle) -> Sizes:
    """What the bundle takes at its default context."""
    sources = [str(artifact.source) for artifact in bundle.artifacts()]
    running, demand = Running(bundle.manifest.defaults.context), demand_of(bundle)
    whole = [shape_of(source, "BF16").weights for source in sources]
    files = sum(shape_of(source).weights for source in sources)
    host = Device("CPU", "", CPU, 64 * GIB, 64 * GIB)
    gpus = tuple(make_plan(demand, running, (host, Device("CUDA0", "", GPU, size * GIB, size * GIB))) for size in GPUS)
    base = ROUTERS.get(bundle.name)
    router = router_need(describe_shape(base, "BF16", **SHAPES[base]), "int4") if base else None
    return Sizes(sum(whole), files, files + 2 * max(whole), make_plan(demand, running, (host,)), gpus, router)


def table() -> str:
    """The table of models/README.md."""
    heads = ["bundle", "what it is", "download", "GGUFs", "disk while it is pulled", "memory without a GPU"]
    heads += [f"on a GPU of {size} GB" for size in GPUS] + ["licence"]
    rows = [heads, ["---"] * len(heads)]
    for bundle in bundles():
        found = sizes(bundle)
        memory = f"{found.processor.needed(found.processor.devices[0]) / GIB:.1f} GiB"
        if found.router is not None:
            held = found.router.weights + found.router.kv(Running(bundle.manifest.defaults.context))
            memory += f" (and {held / GIB:.1f} for a router)"
        row = [f"`{bundle.name}`", bundle.manifest.description.removesuffix(" (not run here)")]
        row += [f"{size / 1e9:.1f} GB" for size in (found.download, found.files, found.disk)]
        rows.append([*row, memory, *map(_on_gpu, found.gpus), bundle.manifest.license])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def smallest(found: Sizes, *, router: bool = False) -> int | None:
    """The least of the MEMORIES that the bundle fits without a GPU, with its router beside it if that is wanted."""
    needed = found.processor.needed(found.processor.devices[0]) + SYSTEM
    if router and found.router is not None:
        needed += found.router.weights + found.router.kv(found.processor.running)
    return next((size for size in MEMORIES if needed <= size * GIB), None)


def sentences() -> str:
    """Which bundles fit which of the MEMORIES, for models/README.md."""
    found = {bundle.name: sizes(bundle) for bundle in bundles()}
    alone = {name: smallest(each) for name, each in found.items()}
    routed = {name: smallest(each, router=True) for name, each in found.items() if each.router is not None}
    return (
        f"Without a GPU, and with {SYSTEM // GIB} GiB left to the system, {_grouped(alone)}. "
        f"With a router, {_grouped(routed)}.\n"
    )


def _grouped(fits: dict[str, int | None]) -> str:
    parts = []
    for size in (*MEMORIES, None):
        names = [f"`{name}`" for name, least in fits.items() if least == size]
        if names:
            what = f"{size} GB of main memory" if size else f"none of {', '.join(map(str, MEMORIES))} GB"
            parts.append(f"{' and '.join(names)} fit{'s' if len(names) == 1 else ''} {what}")
    return ", ".join(parts)


def _on_gpu(plan: Plan) -> str:
    host, gpu = plan.devices
    on, layers = (sum(each) for each in zip(*((p.on_gpu, p.layers) for p in plan.placements), strict=True))
    share = "all" if on == layers else f"{on} of {layers} layers"
    return f"{share}, {plan.needed(gpu) / GIB:.1f} GiB; {plan.needed(host) / GIB:.1f} beside it"


def parts(text: str) -> Iterator[str]:
    """The text before the table, the table with the sentences below it, and the text behind them."""
    begin = text.index("| bundle | what it is |")
    end = text.index("\n\n", text.index("\nWithout a GPU, ", begin)) + 1
    yield from (text[:begin], text[begin:end], text[end:])


def written() -> str:
    """What models/README.md has of this."""
    return f"{table()}\n{sentences()}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put them into models/README.md")
    if not parser.parse_args().write:
        print(written(), end="")
        return
    page = MODELS / "README.md"
    before, _, behind = parts(page.read_text(encoding="utf-8"))
    page.write_text(before + written() + behind, encoding="utf-8")


if __name__ == "__main__":
    main()
