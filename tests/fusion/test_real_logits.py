"""Dynamic Logit Fusion on the logits of the shipped models: against the paper's grid, and its special cases.

The router stands in for a large model, which no package index has in this vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from frcli.bundle import DEFAULT_BUNDLE, read_bundle
from frcli.decode.engine import Engine, Options
from frcli.fusion.alpha import best_alpha, grid_alpha, shift
from frcli.fusion.steering import DynamicLogitFusion, moved
from frcli.sources.source import Feed, Logits

pytestmark = pytest.mark.bundle

QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May. How many did she sell altogether?"
ANSWER = "In May she sold 48 / 2 = 24 clips.\nAltogether she sold 48 + 24 = 72 clips.\n#### 72"
EXPERTS = ("math", "code", "logic")


@pytest.fixture(scope="module")
def rows() -> list[Mapping[str, Logits]]:
    """Rows of every model at each token of the answer."""
    with Engine(read_bundle(DEFAULT_BUNDLE), Options(context=512, max_rows=64)) as engine:
        prompt = engine.encode_messages([{"role": "user", "content": QUESTION}])
        answer = engine.base.encode(ANSWER, special=False)
        sources = {name: engine.expert(name) for name in ("base", *EXPERTS)} | {"large": engine.router}
        found = {}
        for name, source in sources.items():
            assert source is not None
            (got,) = source.extend([Feed(0, [*prompt, *answer], len(answer))])
            found[name] = got.logits[:, : engine.width].copy()
        return [{name: logits[i] for name, logits in found.items()} for i in range(len(answer))]


def test_the_search_is_as_good_as_the_grid(rows: list[Mapping[str, Logits]]) -> None:
    for row in rows:
        directions = {name: row[name] - row["base"] for name in EXPERTS}
        shifts = {name: shift(row[name], row["base"]) for name in EXPERTS}
        mean = tuple(np.mean([shifts[name] for name in EXPERTS], axis=0))
        for name, direction in directions.items():
            for target in (shifts[name], mean):
                alpha, loss = best_alpha(row["large"], direction, target)
                on_grid, least = grid_alpha(row["large"], direction, target)
                assert loss <= least * (1 + 1e-3) + 1e-9
                assert abs(alpha - on_grid) <= 0.1 or loss < least


def test_skipping_changes_no_token_and_happens(rows: list[Mapping[str, Logits]]) -> None:
    skipped = 0
    for row in rows:
        for experts in (("math",), EXPERTS):
            quick, full = DynamicLogitFusion(experts, greedy=True), DynamicLogitFusion(experts)
            assert int(quick.fuse(row).argmax()) == int(full.fuse(row).argmax())
            skipped += quick.act(row).skipped
    assert len(rows) / 2 < skipped < 2 * len(rows)


def test_a_large_model_that_is_the_base_becomes_the_expert(rows: list[Mapping[str, Logits]]) -> None:
    for row in rows:
        alpha, loss = best_alpha(row["base"], row["math"] - row["base"], shift(row["math"], row["base"]))
        assert loss < 1e-5  # alpha is found to within 1e-3
        got = moved(row["base"], row["math"] - row["base"], alpha)
        assert abs(shift(got, row["math"])[0]) < 1e-4


def test_an_expert_that_is_the_base_moves_nothing(rows: list[Mapping[str, Logits]]) -> None:
    for row in rows:
        acting = DynamicLogitFusion(("same",)).act({**row, "same": row["base"]})
        assert acting.alpha == 0
