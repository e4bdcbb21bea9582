"""What is measured: prompts, configurations, and plans that cannot be followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frcli.bench.engines import Engines
from frcli.bench.measure import Bench
from frcli.bench.plan import PROMPTS, Plan, Prompt, context_for, read_prompts
from frcli.bundle import Bundle
from frcli.decode.engine import Options
from frcli.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(repetitions=0), "0 repetitions"),
        (Plan(tokens=1), "1 tokens"),
        (Plan(sequences=(0, 4)), "sequences are not possible"),
        (Plan(sequences=(1000,)), "sequences are not possible"),
        (Plan(draft="many"), "draft"),
        (Plan(temperatures=(-1.0,)), "temperature"),
        (Plan(temperatures=(float("nan"),)), "temperature"),
        (Plan(llama_bench=Path("gone")), "no program gone"),
    ],
)
def test_plans_that_cannot_be_followed(plan: Plan, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan.check()


def test_drafts_are_compared_with_none() -> None:
    Plan().check()
    assert Plan().drafts == ("off", "auto")
    assert Plan(draft="3").drafts == ("off", "3")
    assert Plan(draft="off").drafts == Plan(draft="0").drafts == ("off",)


def test_each_prompt_has_its_own_draws_in_every_configuration() -> None:
    plan = Plan(seed=5)
    assert [plan.sampling(0.8, p).seed for p in range(3)] == [5, 6, 7]
    assert plan.sampling(0.8, 0, [2]).logit_bias == {}
    assert Plan(ignore_end=True).sampling(0.8, 0, [2]).logit_bias == {2: float("-inf")}


def test_prompts_come_from_files_as_eval_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "answer": "a"}) + "\n" for i in range(5)))
    assert read_prompts([f"{path}@1:3", str(path)])[:3] == [
        ("p1", "rows.jsonl@1:3"),
        ("p2", "rows.jsonl@1:3"),
        ("p0", "rows.jsonl"),
    ]
    assert read_prompts([]) == [(text, "") for text in PROMPTS]
    with pytest.raises(DataError, match="cannot read"):
        read_prompts([str(tmp_path / "gone")])


def test_the_context_is_what_the_prompts_need() -> None:
    prompts = [Prompt(tuple(range(length))) for length in (20, 200)]
    assert context_for(prompts, 56, None, 8192) == 256
    assert context_for(prompts, 57, None, 8192) == 512
    assert context_for(prompts, 57, None, 300) == 300
    assert context_for(prompts, 57, 2048, 8192) == 2048
    for asked, trained in ((256, 8192), (None, 256)):
        with pytest.raises(UsageError, match="200 tokens and 57 more do not fit in a context of 256"):
            context_for(prompts, 57, asked, trained)


class Idle:
    """Engines that nobody opens: the order of the work is looked at, not the work."""

    def __init__(self, *, roomy: bool) -> None:
        self.roomy = roomy


def order(trio: Bundle, plan: Plan, prompts: int, repetition: int, *, roomy: bool = True) -> list[str]:
    bench = Bench(Idle(roomy=roomy), trio, plan, [Prompt((1, 2, 3))] * prompts)  # type: ignore[arg-type]
    return [label for label, _ in bench._jobs(repetition)]


def test_what_is_compared_is_measured_in_turns_and_each_expert_in_each_repetition(trio: Bundle) -> None:
    plan = Plan(sequences=(1, 4))
    first = order(trio, plan, 2, 0)
    assert first == [
        *("draft off", "draft auto", "general alone"),
        *("draft auto", "draft off", "math alone"),
        "code alone",
        *("router alone", "1 at once", "4 at once"),
    ]
    second = order(trio, plan, 2, 1)
    assert second[:6] == ["draft auto", "draft off", "math alone", "draft off", "draft auto", "code alone"]
    for repetition in range(4):
        assert {"general alone", "math alone", "code alone"} <= set(order(trio, plan, 2, repetition))


def test_where_memory_is_short_engines_change_seldom(trio: Bundle) -> None:
    labels = order(trio, Plan(sequences=()), 4, 0, roomy=False)
    changes = [label == "draft auto" for label in labels]
    assert sum(a != b for a, b in zip(changes, changes[1:], strict=False)) == 2


def test_each_temperature_is_measured_and_llama_bench_once(trio: Bundle) -> None:
    labels = order(trio, Plan(sequences=(4,), temperatures=(0.0, 0.8), llama_bench=Path("x")), 3, 0)
    assert labels.count("draft off") == 6
    assert labels.count("4 at once") == 2
    assert labels.count("llama-bench") == labels.count("router alone") == 1


def test_short_of_memory_one_engine_is_closed_before_another_is_opened(trio: Bundle) -> None:
    options = Options(threads=1, context=64)
    with Engines(trio, options, Prompt((1, 20, 30)), roomy=False) as engines:
        plain = engines.engine("off")
        bare = engines.expert("math")
        assert engines.engine("off") is plain
        assert engines.expert("math") is bare
        engines.engine("auto")
        assert plain.router is None  # closed
        assert engines.expert("math") is not bare
    with Engines(trio, options, Prompt((1, 20, 30)), roomy=True) as engines:
        plain = engines.engine("off")
        assert engines.engine("auto") is not plain
        assert engines.engine("off") is plain
