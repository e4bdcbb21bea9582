"""Every policy has its page, and what the pages work out by hand is what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import entry_points

import numpy as np
import pytest
from conftest import ROOT

from frcli.errors import UsageError
from frcli.fusion.registry import GROUP, OWN, make_policy

PAGES = ROOT / "docs" / "policies"
EXPERTS = ("general", "math", "code", "logic")
EVERYTHING = frozenset({"router", "large"})


class Told:
    """A prompt of which the example's table tells NLL and routing weights."""

    greedy = False

    def __init__(self, numbers: dict[str, float]) -> None:
        self.numbers = numbers

    def nll(self, source: str) -> float:
        return self.numbers[source]

    def routing(self) -> np.ndarray:
        return np.array(list(self.numbers.values()), np.float32)


def examples(name: str) -> Iterator[tuple[str, dict[str, float], dict[str, np.ndarray]]]:
    """Policy, weights or NLL by source, and rows by source (``**fused**`` too) of each worked example."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8").partition("## By hand")[2]
    for policy, head, body in re.findall(r"^`(\S+)`\n\n\| source (.*)\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        told, rows = {}, {}
        for line in body.splitlines():
            source, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            if head.startswith(("| weight", "| NLL")):
                first = cells.pop(0)
                if first:
                    told[source] = float(first)
            rows[source] = np.array([float(cell) for cell in cells], np.float32)
        yield policy, told, rows


def test_every_policy_has_a_page() -> None:
    names = {*OWN, *(point.name for point in entry_points(group=GROUP))}
    assert {page.stem for page in PAGES.glob("*.md")} == names
    overview = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    assert all(f"](policies/{name}.md)" in overview for name in names)


@pytest.mark.parametrize("name", OWN)
def test_the_example_is_what_the_code_does(name: str) -> None:
    found = list(examples(name))
    assert found
    for text, told, rows in found:
        expected = rows.pop("**fused**")
        experts = tuple(each for each in EXPERTS if each in rows or each == "general")
        policy = make_policy(text, experts, gamma=1.0, sharp=False, roles=EVERYTHING, trained=experts[1:])
        assert text.startswith(name)
        policy = policy.for_prompt(Told(told))
        weights = np.array([told[each] for each in experts], np.float32) if policy.drafter == "router" else None
        used = {*policy.choose(weights), *([policy.drafter] if policy.drafter else [])}
        assert used <= set(rows)
        fused = policy.fuse({each: rows[each] for each in used})
        np.testing.assert_allclose(fused, expected, atol=2e-3)


@pytest.mark.parametrize("name", OWN)
def test_the_page_says_what_a_missing_role_leads_to(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == [
        "Equation",
        "Settings",
        "What it needs",
        "Cost",
        "When to use it",
        "By hand",
        "Commands",
    ]
    spelt = {"expert": "expert:math", "proxy": "proxy:math", "contrast": "contrast:math"}.get(name, name)
    try:
        make_policy(spelt, EXPERTS, gamma=1.0, sharp=False, trained=EXPERTS[1:])
    except UsageError as error:
        assert f"frcli: {error}\n" in text
