"""Rounds: every policy answers as it would alone, and prompts are read once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from bundles import write_bundle

from frcli.decode.engine import Engine, Options
from frcli.sources.llama import LlamaSource
from frcli.sources.source import Feed, Rows

pytestmark = pytest.mark.eval

POLICIES = ("expert:math", "sum", "fusionroute", "packllm")
TIMED, ITEMS, LONG = 1, 5, 40  # items are numbered within their task; prompts have at least so many tokens


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        bundle = write_bundle(folder / "trio")
        with Engine(bundle, Options(policy="fusionroute", threads=1, sequences=2, max_rows=64, draft="off")) as engine:
            yield engine


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Tokens that each expert's source reads."""
    count: Counter[int] = Counter()
    extend = LlamaSource.extend

    def counted(source: LlamaSource, feeds: Sequence[Feed]) -> list[Rows]:
        count[id(source)] += sum(len(feed.tokens) for feed in feeds)
        return extend(source, feeds)

    monkeypatch.setattr(LlamaSource, "extend", counted)
    return count


class Keeper:
    """A recorder in memory that sees what is asked anew."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.asked: list[str] = []

    def known(self, instance: Any, key: Sequence[Any]) -> Any | None:
        return self.results.get(str(key))

    def step(self, instance: Any, step: Any) -> None:
        pass

    def keep(self, instance: Any, key: Sequence[Any], result: Any, answer: Any) -> None:
        self.asked.append(f"{instance.task_name}/{instance.doc_id}")
        self.results[str(key)] = result


def requests() -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(f"{task} {n} " + " and".join("the of is"[n : n + 4] * 12), {"max_gen_toks": 4, "until": []}),
            idx=0,
            metadata=(task, n, 1),
        )
        for task in ("one", "two")
        for n in range(ITEMS)
    ]


def alone(engine: Engine, policy: str) -> list[str]:
    from frcli.evaluation.harness import FrcliLM

    engine.use(policy)
    engine.decoder.forget()
    return FrcliLM(engine).generate_until(requests())


def test_answers_are_those_of_each_policy_alone(engine: Engine) -> None:
    from frcli.evaluation.rounds import Rounds

    wanted = {policy: alone(engine, policy) for policy in POLICIES}
    keepers = {policy: Keeper() for policy in POLICIES}
    got = Rounds(engine, keepers["expert:math"], keepers, TIMED).generate_until(requests())
    assert got == wanted["expert:math"]
    assert engine.policy.name == "expert:math"
    for policy, keeper in keepers.items():
        assert list(keeper.results.values()) != [""] * len(keeper.results)
        assert sorted(keeper.results.values()) == sorted(wanted[policy]), policy
        # The timed items first, all tasks together; then the others as they come.
        assert set(keeper.asked[:2]) == {"one/0", "two/0"}
        assert len(keeper.asked) == len(set(keeper.asked)) == 2 * ITEMS


def test_a_prompt_is_read_once_for_all_policies(engine: Engine, read: Counter[int]) -> None:
    from frcli.evaluation.rounds import Rounds

    def tokens(policies: Sequence[str]) -> int:
        """What the expert math reads for these policies, together."""
        engine.decoder.forget()
        read.clear()
        keepers = {policy: Keeper() for policy in policies}
        Rounds(engine, keepers[policies[0]], keepers, TIMED).generate_until(requests())
        return read[id(engine.expert("math"))]

    prompts = [len(engine.base.encode(request.args[0], special=True)) for request in requests()]
    assert min(prompts) >= LONG
    timed = prompts[0] + prompts[ITEMS]
    answers = 2 * ITEMS * 4
    one, both = tokens(["expert:math"]), tokens(["expert:math", "sum"])
    assert sum(prompts) <= one <= sum(prompts) + answers
    # The second policy reads the timed prompts again, and of each other prompt the last token.
    assert one + timed <= both <= one + timed + 2 * ITEMS + answers
