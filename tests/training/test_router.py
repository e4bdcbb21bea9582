"""Routers trained on tiny real models, by every objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import tiny

from converters.adapter import convert_adapter
from frcli.errors import ModelError
from frcli.examples import Encoded
from frcli.sources.llama import LlamaModel
from frcli.tokens import vocabulary_hash
from frcli.training.base import Hardware
from frcli.training.batches import make_batch
from frcli.training.loop import Progress, Schedule

pytestmark = pytest.mark.train

EXAMPLES = [Encoded([1 + i, 2, 3], [4 + i % 5, 5, 2]) for i in range(12)] + [
    Encoded([9] * 9, [8, 7]),
    Encoded([6], [7]),
]
PAIRS = [(Encoded([1 + i, 2, 3], [4 + i % 5, 5, 2]), Encoded([1 + i, 2, 3], [30 + i, 31])) for i in range(8)]
SCHEDULE = Schedule(epochs=12, budget=48, learning_rate=1e-2, save_every=5)


def no_report(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Path | None]]:
    """A base, and an expert that has learnt the answers."""
    from frcli.training.expert import train_expert

    folder = tmp_path_factory.mktemp("experts")
    base = tiny.write_gguf(folder / "tiny.gguf")
    schedule = Schedule(epochs=6, budget=48, learning_rate=1e-2)
    train_expert(base, EXAMPLES, folder / "peft", rank=4, schedule=schedule, hardware=Hardware(), report=no_report)
    convert_adapter(folder / "peft", base, folder / "taught.gguf")
    return base, {"general": None, "taught": folder / "taught.gguf"}


def train(
    experts: tuple[Path, Mapping[str, Path | None]],
    out: Path,
    stop: int = 0,
    schedule: Schedule = SCHEDULE,
    **more: Any,
) -> tuple[Path, list[dict[str, float]]]:
    from frcli.training.model import Recipe
    from frcli.training.router import train_router

    pairs = more.pop("pairs", ())
    start, model, teacher, rows = (more.pop(name, None) for name in ("start", "model", "teacher", "rows"))
    steps: list[dict[str, float]] = []

    def report(progress: Progress) -> None:
        assert all(map(math.isfinite, progress.losses.values()))
        steps.append(progress.losses)
        if progress.step == stop:
            raise KeyboardInterrupt

    file = train_router(
        experts[0],
        experts[1],
        EXAMPLES,
        out,
        recipe=Recipe(rank=4, **more),
        schedule=schedule,
        hardware=Hardware(),
        report=report,
        report_around=no_report,
        pairs=pairs,
        start=start,
        model=model,
        teacher=teacher,
        rows=rows,
    )
    return file, steps


@pytest.mark.parametrize("more", [{}, {"objective": "fused", "gamma": 0.5}, {"objective": "fused", "gate": True}])
def test_a_router_learns_whom_to_choose_and_its_file_becomes_an_onnx_router(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path, more: dict[str, Any]
) -> None:
    from converters.router import convert_router
    from converters.trained import read_trained
    from frcli.sources.onnx import OnnxRouter
    from frcli.sources.source import Feed

    file, steps = train(experts, tmp_path / "router", **more)
    assert np.mean([step["fused"] for step in steps[-5:]]) < 0.5 * steps[0]["fused"]
    assert read_trained(file).gamma == (0.5 if "gamma" in more else 1.0)
    assert np.mean([step["accepted"] for step in steps[-5:]]) > steps[0]["accepted"]
    convert_router(experts[0], tmp_path / "r.onnx", file, ("general", "taught"), "fp32", 64, "v", verify=False)
    router = OnnxRouter(tmp_path / "r.onnx", context=64)
    chosen = []
    for example in EXAMPLES:
        router.rewind(0, 0)
        rows = router.extend([Feed(0, [*example.prompt, *example.answer[:-1]], len(example.answer))])[0]
        assert rows.weights is not None and rows.prompt_weights is not None
        assert (rows.gate is not None) == ("gate" in more)
        chosen += rows.weights.argmax(axis=1).tolist()
        assert rows.prompt_weights[0].argmax() == 1
    if more.get("objective") != "fused":  # fused with a router that knows them too, both experts will do
        assert np.mean(chosen) > 0.8  # the taught expert knows these answers, the base does not


PACKED = Schedule(epochs=12, budget=48, learning_rate=1e-2, save_every=5, pack=True)


@pytest.mark.parametrize(
    "more", [{"objective": "fused", "gate": True}, {"pairs": PAIRS}, {"full": True}, {"schedule": PACKED}]
)
def test_a_run_that_was_cut_off_ends_bit_for_bit_the_same(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path, more: dict[str, Any]
) -> None:
    from safetensors.numpy import load_file

    whole, all_steps = train(experts, tmp_path / "whole", **more)
    with pytest.raises(KeyboardInterrupt):
        train(experts, tmp_path / "cut", stop=13, **more)
    cut, steps = train(experts, tmp_path / "cut", **more)
    one, other = load_file(whole), load_file(cut)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert len(steps) == len(all_steps) - 10  # stopped at 13, saved every 5
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_cdpo_goes_on_from_a_router_and_parts_right_from_wrong(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path
) -> None:
    first, _ = train(experts, tmp_path / "first", schedule=Schedule(epochs=2, budget=48, learning_rate=1e-3))
    gentle = Schedule(epochs=6, budget=48, learning_rate=3e-3)
    _, steps = train(experts, tmp_path / "second", schedule=gentle, pairs=PAIRS, start=first)
    losses = [step["cdpo"] for step in steps if "cdpo" in step]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert any("lm" in step for step in steps)


@pytest.fixture
def step(experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path) -> Any:
    """Returns a fresh router, and its losses on batches of the examples (and pairs, numbered behind them)."""
    from frcli.training import router as of_router
    from frcli.training.known import distinct, known_rows
    from frcli.training.model import Recipe, RouterModel

    everything = [*EXAMPLES, *(answer for pair in PAIRS for answer in pair)]
    different, spans = distinct(EXAMPLES)
    rows = known_rows(*experts, different, tmp_path / "rows", 1, no_report)
    known = of_router.Known(rows, spans)
    pairs = np.ones(len(PAIRS), np.float32)

    def losses(indices: list[int], **recipe: Any) -> tuple[Any, Any, dict[str, Any]]:
        router = RouterModel(experts[0], 2, Recipe(rank=4, **recipe), Hardware(), 1, lambda _: [])
        batch = make_batch(everything, indices)
        before = of_router.Before(pairs, 0.1 * pairs)
        return router, batch, of_router.losses(router, known, batch, len(EXAMPLES), before)

    losses.known = known  # type: ignore[attr-defined]
    return losses


@pytest.mark.parametrize("objective", ["sft", "fused"])
def test_what_the_loss_is_made_of(step: Any, objective: str) -> None:
    """L_LM + lambda L_expert, or the fused NLL by the head's choice + a share of L_LM, each over all answer tokens."""
    import torch

    from frcli.training.objectives import fused_nll, routing_loss

    indices = [0, 3, 12]
    recipe = {"objective": objective, "lam": 0.4, "lm_share": 0.0, "gate": objective == "fused"}
    router, batch, found = step(indices, **recipe)
    states, n = router.states(batch), 3 + 3 + 2
    kept, target, weights = step.known.kept(indices), torch.from_numpy(batch.target), router.head(states)
    logp = router.logits(states).log_softmax(-1)[range(n), target]
    if objective == "sft":
        wanted = -logp.mean()
    else:
        wanted = (weights.softmax(-1) * fused_nll(router.logits(states), target, kept, router.gamma(states))).sum() / n
    wanted = wanted + 0.4 * routing_loss(weights, kept) / n
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found["lm"].item() == pytest.approx((-logp.mean()).item(), rel=1e-5)
    _, _, shared = step(indices, **recipe | {"lm_share": 0.5, "lam": 0.0})
    more = 0.5 * found["lm"] * (objective == "fused") - 0.4 * routing_loss(weights, kept) / n
    assert (shared["loss"] - found["loss"]).item() == pytest.approx(more.item(), rel=1e-4)
    _, _, own = step(indices, **recipe | {"lam": None})
    usual = 1 / 3 if objective == "sft" else 0
    more = (usual - 0.4) * routing_loss(weights, kept) / n
    assert (own["loss"] - found["loss"]).item() == pytest.approx(more.item(), rel=1e-4)


def test_pairs_move_nothing_but_the_language_model(step: Any) -> None:
    """Beside examples they change neither what these cost nor what the routing head and the gate learn."""
    import torch

    recipe = {"objective": "fused", "gate": True}
    first = len(EXAMPLES)
    router, _, found = step([first, first + 1], **recipe)
    found["loss"].backward()
    assert router.head.weight.grad is None and router.gate.weight.grad is None
    assert any(each.grad is not None and each.grad.abs().max() > 0 for each in router.language.parameters())
    alone, _, single = step([0, 1], **recipe)
    both, _, mixed = step([0, first, 1, first + 1], **recipe)
    assert (mixed["loss"] - mixed["cdpo"]).item() == pytest.approx(single["loss"].item(), rel=1e-5)
    assert mixed["cdpo"].item() == pytest.approx(found["cdpo"].item(), rel=1e-5)
    for each in (single, mixed):
        each["loss"].backward()
    torch.testing.assert_close(alone.head.weight.grad, both.head.weight.grad, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(alone.gate.weight.grad, both.gate.weight.grad, rtol=1e-3, atol=1e-7)


def test_the_experts_are_asked_once_for_all_trainings(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frcli.training import known

    written: list[int] = []
    write = known._write

    def counted(source: Any, width: int, examples: Any, *rest: Any) -> None:
        written.append(len(examples))
        write(source, width, examples, *rest)

    monkeypatch.setattr(known, "_write", counted)
    one = Schedule(epochs=1, budget=48, learning_rate=1e-3)
    first, _ = train(experts, tmp_path / "first", schedule=one, rows=tmp_path / "rows")
    assert written == [len(EXAMPLES)] * 2  # once by each expert
    soon = replace(one, save_every=1)  # a checkpoint is the first thing that comes into the folder
    train(experts, tmp_path / "fused", schedule=soon, objective="fused", rows=tmp_path / "rows")
    assert len(written) == 2
    train(experts, tmp_path / "cdpo", schedule=one, pairs=[*PAIRS, *PAIRS], start=first, rows=tmp_path / "rows")
    assert written[2:] == [2 * len(PAIRS)] * 2  # the answers of pairs, and no example again nor a pair twice


def test_the_routing_head_as_it_was_trained(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters.trained import read_trained
    from frcli.training import router

    heads = []
    one = Schedule(epochs=2, budget=48, learning_rate=1e-3)
    for number, fit in enumerate((True, False)):
        file, _ = train(experts, tmp_path / str(number), schedule=one, rows=tmp_path / "rows", fit_head=fit)
        heads.append(read_trained(file).routing)
    assert np.abs(heads[1]).max() < 0.1 < np.abs(heads[0]).max()  # which began with a spread of 0.01
    monkeypatch.setattr(router, "_FITTED", 10 * heads[0].shape[1])  # of some ten tokens only
    few, _ = train(experts, tmp_path / "few", schedule=one, rows=tmp_path / "rows")
    assert not np.allclose(read_trained(few).routing, heads[0])


def test_a_router_of_another_family_is_refused_before_anything_is_asked(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path
) -> None:
    import json

    folder = tiny.write_safetensors(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "olmo2"}))
    with pytest.raises(ModelError, match="architecture 'olmo2'"):
        train(experts, tmp_path / "out", model=folder)
    assert not (tmp_path / "out").exists()
    narrow = families.save(families.make("llama", vocab_size=64), tmp_path / "narrow")
    with pytest.raises(ModelError, match="has 64 tokens, fewer than"):
        train(experts, tmp_path / "out", model=narrow)


def test_the_first_step_of_cdpo_has_no_margin_but_the_experts(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path
) -> None:
    """At the start the router is its own reference: the loss is that of the offset alone."""
    from frcli.training.known import known_rows

    first, _ = train(experts, tmp_path / "first", schedule=Schedule(epochs=1, budget=48, learning_rate=1e-3))
    one = Schedule(epochs=1, budget=10_000, learning_rate=1e-9, max_steps=1)
    _, steps = train(experts, tmp_path / "second", schedule=one, pairs=PAIRS, start=first)
    answers = [answer for pair in PAIRS for answer in pair]
    rows = known_rows(experts[0], experts[1], answers, tmp_path / "second" / "rows", 1, no_report, gold_only=True)
    gold = np.stack([each.gold for each in rows.values()])
    at, offsets = 0, []
    for right, wrong in PAIRS:
        sums = []
        for answer in (right, wrong):
            sums.append(gold[:, at : at + len(answer.answer)])
            at += len(answer.answer)
        offsets.append(sums)
    # Which expert the router chooses is its own matter: the loss lies between the extremes of all choices.
    low = [0.1 * (right.min(0).sum() - wrong.max(0).sum()) for right, wrong in offsets]
    high = [0.1 * (right.max(0).sum() - wrong.min(0).sum()) for right, wrong in offsets]
    bounds = [float(np.mean(np.log1p(np.exp(-np.array(margin))))) for margin in (high, low)]
    assert bounds[0] - 1e-4 <= steps[0]["cdpo"] <= bounds[1] + 1e-4


def test_a_start_that_does_not_fit_is_refused(experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path) -> None:
    other = tiny.write_trained(tmp_path / "router.safetensors", experts=("taught", "general"))
    with pytest.raises(ModelError, match="routes to taught, general, not to general, taught"):
        train(experts, tmp_path / "out", start=other)
    wide = tiny.write_trained(tmp_path / "wide.safetensors", experts=("general", "taught"), rank=8)
    with pytest.raises(ModelError, match="rank 8"):
        train(experts, tmp_path / "out", start=wide)
    names, gated, foreign = ("general", "taught"), tmp_path / "gated.safetensors", tmp_path / "foreign.safetensors"
    tiny.write_trained(gated, experts=names, gate_bias=0.0)
    with pytest.raises(ModelError, match="has a gate"):
        train(experts, tmp_path / "out", start=gated)
    tiny.write_trained(foreign, experts=names, base_sha256="ab" * 32)
    with pytest.raises(ModelError, match="another base"):
        train(experts, tmp_path / "out", start=foreign)


def test_a_shallow_router_is_healed_by_its_teacher(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path
) -> None:
    from converters.router import convert_router
    from converters.trained import read_trained
    from frcli.sources.onnx import OnnxRouter
    from frcli.sources.source import Feed
    from frcli.training.model import Recipe
    from frcli.training.router import train_router

    first, _ = train(experts, tmp_path / "whole")
    teacher = tmp_path / "teacher.onnx"
    names = ("general", "taught")
    convert_router(experts[0], teacher, first, names, "fp32", 64, "ab", verify=False)
    with pytest.raises(ModelError, match="another tokenizer"):
        train(experts, tmp_path / "out", teacher=teacher)
    model = LlamaModel(experts[0], vocab_only=True)
    convert_router(experts[0], teacher, first, names, "fp32", 64, vocabulary_hash(model.texts()), True, False)
    model.close()
    steps: list[dict[str, float]] = []
    file = train_router(
        experts[0],
        experts[1],
        EXAMPLES,
        tmp_path / "shallow",
        recipe=Recipe(rank=4, layers=1),
        schedule=SCHEDULE,
        hardware=Hardware(),
        report=lambda progress: steps.append(progress.losses),
        report_around=no_report,
        start=first,
        teacher=teacher,
    )
    assert np.mean([step["distilled"] for step in steps[-5:]]) < 0.5 * np.mean(
        [step["distilled"] for step in steps[:5]]
    )
    trained = read_trained(file)
    assert trained.layers in ((0,), (1,))
    assert {name.split(".")[2] for name in trained.delta} == {"0"}
    out = tmp_path / "r.onnx"
    convert_router(experts[0], out, file, ("general", "taught"), "fp32", 64, "v", verify=True)  # against numpy
    router = OnnxRouter(out, context=64)
    (rows,) = router.extend([Feed(0, EXAMPLES[0].prompt, 1)])
    assert rows.logits.shape == (1, tiny.DEFAULT.vocab)


def test_the_layer_that_does_least_harm_is_left_out(tmp_path: Path) -> None:
    import torch

    from frcli.training.base import load_base
    from frcli.training.depth import chosen_layers, drop_layers, least_harm
    from frcli.training.expert import answer_loss

    shape = tiny.TinyShape(layers=4)
    base = tiny.write_gguf(tmp_path / "deep.gguf", shape)
    done: list[tuple[int, int]] = []
    model = load_base(base, Hardware())
    left = least_harm(model, EXAMPLES, 2, lambda *counts: done.append(counts))
    assert len(model.model.layers) == 4 and done[-1] == (7, 7)

    def nll(layers: list[int]) -> float:
        fresh = load_base(base, Hardware())
        drop_layers(fresh, layers)
        with torch.inference_mode():
            losses = [
                float(answer_loss(fresh, make_batch(EXAMPLES, [i]))) * len(e.answer) for i, e in enumerate(EXAMPLES)
            ]
        return sum(losses)

    three = min(([0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]), key=nll)
    assert left == min(([layer for layer in three if layer != out] for out in three), key=nll)

    for keep, measured, layers in ((3, 4, three), (2, 3, left), (3, 0, three)):  # a search goes on from a deeper one
        counts: list[tuple[int, int]] = []
        found = chosen_layers(model, base, EXAMPLES, keep, tmp_path, 1, lambda *c, to=counts: to.append(c))
        assert (found, len(counts)) == (layers, measured)


ROUTERS = ["llama3", "mistral-window", "qwen2-tied", "qwen3", "gemma2", "gemma3", "smollm3", "phi3"]


@pytest.mark.parametrize(
    ("family", "more"),
    [
        *((family, {}) for family in ROUTERS),
        ("gemma3", {"layers": 6, "first": True}),
        ("smollm3", {"layers": 3}),
        ("gemma2", {"full": True, "layers": 2}),
        ("phi3", {"full": True, "objective": "fused", "gate": True}),
    ],
)
def test_any_family_can_be_the_router_of_any_experts(
    experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path, family: str, more: dict[str, Any]
) -> None:
    """A Hugging Face folder is trained, exported, and loaded to go on from; all three give the same logits."""
    import torch

    from converters.parity import kl
    from converters.router import convert_router
    from converters.session import run_text
    from frcli.training.model import Recipe, RouterModel

    folder = families.save(families.make(family), tmp_path / "model")
    short = Schedule(epochs=4, budget=64, learning_rate=5e-3)
    file, steps = train(experts, tmp_path / "out", schedule=short, model=folder, **more)
    assert np.mean([step["lm"] for step in steps[-3:]]) < np.mean([step["lm"] for step in steps[:3]])
    source = tmp_path / "out" / "model" if more.get("full") else folder
    convert_router(source, tmp_path / "r.onnx", file, ("general", "taught"), "fp32", 64, "v")
    kept = RouterModel(
        source, 2, Recipe(rank=4, **more), Hardware(save_memory=True), 0, lambda _: list(kept_layers(file))
    )
    if not more.get("full"):
        from converters.checkpoint import fingerprint

        kept.load(file, ["general", "taught"], fingerprint(source))
    text = [EXAMPLES[3].prompt[0], *range(40, 80)]
    with torch.no_grad():
        states = kept.states(make_batch([Encoded(text[:1], text[1:])], [0]))
        expected = kept.logits(states).numpy()
    assert kl(expected, run_text(tmp_path / "r.onnx", text[:-1])["logits"]).max() < 1e-5


def kept_layers(file: Path) -> tuple[int, ...]:
    from converters.trained import read_trained

    return read_trained(file).layers or ()


def test_an_expert_may_be_a_model_of_its_own(experts: tuple[Path, Mapping[str, Path | None]], tmp_path: Path) -> None:
    """Two files with the same weights are the same expert, whether it is the base or stands beside it."""
    from frcli.training.known import is_adapter, known_rows

    base, others = experts
    twin = tmp_path / "twin.gguf"
    twin.write_bytes(base.read_bytes())
    taught = others["taught"]
    assert taught is not None and is_adapter(taught) and not is_adapter(twin)
    rows = known_rows(
        base, {"general": None, "twin": twin, "taught": taught}, EXAMPLES, tmp_path / "rows", 1, no_report
    )
    np.testing.assert_array_equal(rows["twin"].gold, rows["general"].gold)
    assert not np.allclose(rows["taught"].gold, rows["general"].gold)
