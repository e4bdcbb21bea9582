"""The picture of a trace, as XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from frcli.bench.plot import costs, draw, initials, rejections
from frcli.bench.trace import Traced

SVG = "{http://www.w3.org/2000/svg}"
MS = {"draft": 0.0, "router": 4.0, "experts": 5.0, "fuse": 0.5, "sample": 0.5}


def line(
    index: int,
    expert: str | tuple[str, ...] = "math",
    *,
    configuration: str = "fused, draft off",
    prompt: int = 0,
    window: int | None = None,
    proposed: int = 0,
    drafted: bool = False,
    wall: float = 12.0,
    repetition: int = 0,
) -> Traced:
    experts = (expert,) if isinstance(expert, str) else expert
    window = 100 * prompt + index if window is None else window
    return Traced(configuration, repetition, prompt, index, window, experts, proposed, drafted, MS, wall)


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_the_cost_of_a_token_leaves_out_the_steps_that_read_prompts() -> None:
    lines = [line(0, wall=900), line(1), line(2, wall=16)]
    lines += [line(0, prompt=1, window=2, wall=16), line(1, prompt=1, window=500, wall=14)]  # begun in the same step
    assert costs(lines) == pytest.approx({**MS, "rest": 13 - 10})
    assert costs([line(0)]) == {}


def test_where_drafts_were_not_taken() -> None:
    answer = [
        line(0, window=0),
        line(1, window=1, proposed=3, drafted=True),
        line(2, window=1),
        line(3, window=2, proposed=1, drafted=True),
        line(4, window=2),
        line(5, window=3, proposed=2),
    ]
    assert rejections(answer) == {2, 5}


def test_initials_are_as_short_as_they_can_be() -> None:
    assert initials(["math", "code", "logic"]) == {"math": "m", "code": "c", "logic": "l"}
    assert initials(["math", "music"]) == {"math": "ma", "music": "mu"}
    assert initials(["expert-a", "expert-b", "x"]) == {"expert-a": "1", "expert-b": "2", "x": "x"}
    assert initials(["code", "code-2"]) == {"code": "1", "code-2": "2"}


def test_the_picture_says_everything_in_words_too() -> None:
    answer = [line(i, "math" if i < 5 else "code") for i in range(9)]
    drafted = [line(0, configuration="fused, draft auto")]
    drafted += [
        line(i, configuration="fused, draft auto", window=1, proposed=4 * (i == 1), drafted=i < 4) for i in range(1, 5)
    ]
    root = ElementTree.fromstring(draw([*answer, *drafted]))
    shown = texts(root)
    for text in (
        "router 4",
        "experts 5",
        "12",
        "m = math",
        "c = code",
        "fused, draft off",
        "fused, draft auto",
        "prompt 0",
    ):
        assert text in shown
    assert shown.count("m") == 2 and shown.count("c") == 1  # where a line begins, and where another expert takes over
    assert len(list(root.iter(f"{SVG}circle"))) == 1 + 3  # the legend's, and an accepted draft each
    assert len(list(root.iter(f"{SVG}path"))) == 1 + 1
    cells = [rect for rect in root.iter(f"{SVG}rect") if rect.get("width") == "6.00" and rect.get("height") == "14"]
    assert len(cells) == 9 + 5
    style = next(root.iter(f"{SVG}style")).text or ""
    assert "prefers-color-scheme: dark" in style
    assert all(element.tag != f"{SVG}script" and "href" not in str(element.attrib) for element in root.iter())


def test_long_answers_are_broken_and_everything_lies_inside() -> None:
    name = "4 at once, draft auto, temperature 0.8"
    lines = [line(i, prompt=p, configuration=name) for p in range(6) for i in range(300)]
    root = ElementTree.fromstring(draw(lines, prompts=2))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for rect in root.iter(f"{SVG}rect"):
        assert 0 <= float(rect.get("x", -1)) <= width - float(rect.get("width", 0))
        assert 0 <= float(rect.get("y", -1)) <= height - float(rect.get("height", 0))
    assert texts(root).count("prompt 1") == 1
    assert "prompt 2" not in texts(root)
    cells = [rect for rect in root.iter(f"{SVG}rect") if rect.get("width") == "6.00"]
    assert len(cells) == 600


def test_several_experts_share_a_cell_and_names_are_escaped() -> None:
    both = ("a<b", "c&d")
    root = ElementTree.fromstring(draw([line(i, both) for i in range(3)]))
    assert "+" in texts(root)
    assert any("a<b" in text for text in texts(root))
    halves = [rect for rect in root.iter(f"{SVG}rect") if rect.get("width") == "6.00"]
    assert [rect.get("height") for rect in halves] == ["7"] * 6


def test_a_trace_without_generation_has_no_bars() -> None:
    assert "not measured" in texts(ElementTree.fromstring(draw([line(0)])))
