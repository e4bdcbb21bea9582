"""The script that compares ways of writing, on a few combinations; and that it notices answers that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import agreement
import pytest

from frcli.bundle import Bundle
from frcli.decode.sampler import Sampling


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Bundle]:
    monkeypatch.setenv("FRCLI_CACHE", str(tmp_path / "cache"))
    return agreement.make_bundles(tmp_path)


def test_a_few_combinations_agree(bundles: list[Bundle]) -> None:
    for number in range(3):
        combination = agreement.draw(bundles, 7, number)
        counts, failures = agreement.compare(combination, bundles[combination.bundle])
        assert counts["compared"] == 3 * agreement.PROMPTS
        assert counts["tokens"] >= agreement.PROMPTS
        assert not failures


def test_answers_that_differ_are_failures(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    combination = agreement.Combination(
        0, "sum", 0.5, False, 128, "f32", 2, Sampling(temperature=0), 6, (), ("hello the world",) * agreement.PROMPTS
    )
    written = agreement.written

    def changed(engine: Any, asked: Any) -> Any:
        answers = written(engine, asked)
        if engine.sequences > 1:
            (tokens, *rest), *others = answers
            return [([tokens[0] ^ 1, *tokens[1:]], *rest), *others]
        return answers

    monkeypatch.setattr(agreement, "written", changed)
    _, failures = agreement.compare(combination, bundles[0])
    assert [(each["draft"], each["at_once"], each["at"]) for each in failures] == [("off", 8, 0), ("2", 8, 0)]


def test_a_combination_depends_on_its_number_alone(bundles: list[Bundle]) -> None:
    assert agreement.draw(bundles, 1, 17) == agreement.draw(bundles, 1, 17) != agreement.draw(bundles, 2, 17)
