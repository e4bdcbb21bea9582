"""Bundles of two and of eight experts that route alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frcli.bench.engines import barred, forget, warm_up
from frcli.bench.idle import NEVER, crowd, restrict_router
from frcli.bench.measure import measure_idle
from frcli.bench.plan import Plan, Prompt
from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.errors import ModelError
from frcli.fusion.route import FusionRoute
from frcli.sources.onnx import OnnxRouter
from frcli.sources.source import Feed

PROMPT = Prompt((1, 20, 30, 40, 50, 60, 70))
PLAN = Plan(repetitions=2, tokens=12, ignore_end=True)


def test_a_restricted_router_gives_the_kept_weights_and_never_for_the_others(trio: Bundle, tmp_path: Path) -> None:
    source = trio.router_model()
    assert source is not None
    restrict_router(source, tmp_path / "some.onnx", [2, 0], ("code", "general", "x", "y"))
    whole, some = OnnxRouter(source, context=64), OnnxRouter(tmp_path / "some.onnx", context=64)
    feed = [Feed(0, PROMPT.tokens, 3)]
    expected, got = whole.extend(feed)[0], some.extend(feed)[0]
    assert some.experts == ("code", "general", "x", "y")
    assert expected.weights is not None and got.weights is not None
    np.testing.assert_array_equal(got.weights[:, :2], expected.weights[:, [2, 0]])
    np.testing.assert_array_equal(got.weights[:, 2:], np.full((3, 2), NEVER, np.float32))
    np.testing.assert_array_equal(got.logits, expected.logits)
    whole.close()
    some.close()


def test_a_file_that_is_no_router_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save_model

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    save_model(helper.make_model(helper.make_graph([node], "one", values[:1], values[1:])), str(tmp_path / "x.onnx"))
    with pytest.raises(ModelError, match="no routing weights"):
        restrict_router(tmp_path / "x.onnx", tmp_path / "out.onnx", [0], ("a",))


def write(bundle: Bundle) -> tuple[Engine, list[Step]]:
    engine = Engine(bundle, Options(threads=1, draft="off"))
    warm_up(engine, PROMPT)
    forget(engine)
    return engine, list(engine.steps(PROMPT.tokens, PLAN.sampling(0, 0, barred(PLAN, engine)), max_tokens=40))


def test_two_and_eight_experts_write_the_same_with_the_same_two(trio: Bundle, tmp_path: Path) -> None:
    busy = ["math", "general"]
    few, two = write(crowd(trio, busy, 2, tmp_path))
    many, eight = write(crowd(trio, busy, 8, tmp_path))
    assert many.bundle.experts == (*busy, "general-2", "math-2", "code-2", "general-3", "math-3", "code-3")
    assert [step.token for step in two] == [step.token for step in eight]
    assert [step.experts for step in two] == [step.experts for step in eight]
    assert {name for step in two for name in step.experts} == {"math", "general"}  # the tiny router likes both
    assert len({id(many.expert(name)) for name in many.bundle.experts}) == 8
    few.close()
    many.close()


def test_they_choose_as_the_whole_bundle_does_among_the_two(trio: Bundle, tmp_path: Path) -> None:
    few, two = write(crowd(trio, ["math", "general"], 2, tmp_path))
    few.close()
    engine = Engine(trio, Options(threads=1, draft="off"))
    policy = engine.policy
    assert isinstance(policy, FusionRoute)

    class AmongTwo(FusionRoute):
        def choose(self, weights: np.ndarray | None) -> tuple[str, ...]:  # type: ignore[type-arg,override]
            assert weights is not None
            return ("math",) if weights[1] >= weights[0] else ("general",)

    engine.decoder.use(AmongTwo(policy.experts, policy.gamma), engine.router, engine.width)
    expected = list(engine.steps(PROMPT.tokens, PLAN.sampling(0, 0, barred(PLAN, engine)), max_tokens=40))
    engine.close()
    assert [(step.token, step.experts) for step in two] == [(step.token, step.experts) for step in expected]


def test_seconds_a_token_for_each_repetition(trio: Bundle) -> None:
    seen: list[str] = []
    found = measure_idle(
        trio,
        Options(threads=1, context=64),
        PLAN,
        [PROMPT, Prompt(PROMPT.tokens[:3])],
        ["math", "code"],
        lambda phase, note, done, total: seen.append(phase),
    )
    assert {size: len(seconds) for size, seconds in found.items()} == {2: 2, 8: 2}
    assert all(second > 0 for seconds in found.values() for second in seconds)
    assert set(seen) == {"idle experts"}
