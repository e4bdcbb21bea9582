"""What the manifests' models take: the page says what the plan says, and the plan follows the manifests."""

from __future__ import annotations

import manifest_sizes
from manifest_sizes import GIB, bundles, demand_of, parts, repository, sentences, shape_of, sizes, smallest, written

from frcli.bundle import list_bundles


def test_the_page_has_the_table() -> None:
    before, found, behind = parts((manifest_sizes.MODELS / "README.md").read_text(encoding="utf-8"))
    assert found == written(), "run benchmarks/manifest_sizes.py --write"
    assert before.startswith("# Bundles") and behind


def test_every_manifest_is_in_it() -> None:
    shipped = {folder.name for folder in list_bundles() if folder.parent == manifest_sizes.MODELS}
    assert {bundle.name for bundle in bundles()} == shipped - {"smollm2-quartet"}
    sources = {artifact.source for bundle in bundles() for artifact in bundle.artifacts()}
    assert all(source is not None and repository(source)[0] in manifest_sizes.SHAPES for source in sources)


def test_parameters_are_those_that_the_models_are_named_by() -> None:
    named = {"Qwen/Qwen2.5-1.5B-Instruct": 1.54e9, "Qwen/Qwen2.5-7B-Instruct": 7.61e9}
    named |= {"meta-llama/Llama-3.1-8B-Instruct": 8.03e9, "MergeBench/gemma-2-2b-it_math": 2.61e9}
    for repo, count in named.items():
        assert abs(shape_of(f"hf:{repo}!BF16").weights / 2 / count - 1) < 0.01


def test_contexts_are_those_that_the_policy_uses() -> None:
    found = {bundle.name: {need.role: need.contexts for need in demand_of(bundle).models} for bundle in bundles()}
    assert found["qwen2.5-1.5b-trio"] == {
        "base": ("general",),
        "expert code": ("code",),
        "expert math": ("math",),
    }
    assert found["qwen2.5-7b-dlf"] == {
        "base": ("base",),
        "large": ("large",),
        "expert code": ("code",),
        "expert math": ("math",),
    }


def test_what_fits_which_main_memory() -> None:
    found = {bundle.name: sizes(bundle) for bundle in bundles()}
    fits = {name: (smallest(each), smallest(each, router=True)) for name, each in found.items()}
    assert fits == {
        "qwen2.5-1.5b-trio": (8, 8),
        "qwen2.5-7b-dlf": (12, 12),  # it needs no router
        "llama-3.1-8b-mergebench": (24, None),
        "gemma-2-2b-mergebench": (12, 24),
    }
    for name, each in found.items():
        host = each.processor.devices[0]
        size = smallest(each)
        assert size is not None and each.processor.needed(host) + 2 * GIB <= size * GIB
        assert f"`{name}`" in sentences()
    assert sentences() == (
        "Without a GPU, and with 2 GiB left to the system, `qwen2.5-1.5b-trio` fits 8 GB of main memory, "
        "`qwen2.5-7b-dlf` and `gemma-2-2b-mergebench` fit 12 GB of main memory, "
        "`llama-3.1-8b-mergebench` fits 24 GB of main memory. "
        "With a router, `qwen2.5-1.5b-trio` fits 8 GB of main memory, "
        "`gemma-2-2b-mergebench` fits 24 GB of main memory, `llama-3.1-8b-mergebench` fits none of 8, 12, 24 GB.\n"
    )


def test_what_fits_where() -> None:
    found = {bundle.name: sizes(bundle) for bundle in bundles()}
    for each in found.values():
        assert each.files < each.download and each.disk > each.files
        assert all(plan.fits for plan in each.gpus)
        assert all(
            plan.needed(plan.devices[1]) <= size * GIB for plan, size in zip(each.gpus, (8, 12, 24), strict=True)
        )
    whole = {
        name: [sum(p.on_gpu for p in plan.placements) == sum(p.layers for p in plan.placements) for plan in each.gpus]
        for name, each in found.items()
    }
    assert whole == {
        "qwen2.5-1.5b-trio": [True, True, True],
        "qwen2.5-7b-dlf": [False, True, True],
        "llama-3.1-8b-mergebench": [False, False, True],
        "gemma-2-2b-mergebench": [True, True, True],
    }
