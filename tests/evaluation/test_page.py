"""The reports of a comparison, from a document written by hand."""

from __future__ import annotations

import copy
import html.parser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from frcli.evaluation.page import page
from frcli.evaluation.report import markdown

DOCUMENT: dict[str, Any] = {
    "bundle": "duo",
    "experts": ["general", "math"],
    "limit": 4,
    "seed": 0,
    "at_once": 16,
    "draft": "off",
    "tasks": {
        "frcli_gsm8k": {"metric": "right", "items": [1, 3, 4, 9]},
        "logiglue_folio": {"metric": "right", "items": [0, 2]},
    },
    "groups": {"deductive": ["logiglue_folio"], "in domain": ["logiglue_folio"]},
    "systems": {
        "fusionroute": {
            "tasks": {
                "frcli_gsm8k": {"mean": 0.75, "stderr": 0.25, "scores": [1, 1, 1, 0], "tokens": 40},
                "logiglue_folio": {"mean": 0.5, "stderr": 0.5, "scores": [1, 0], "tokens": 4},
            },
            "mean": 0.625,
            "stderr": 0.28,
            "tokens_per_second": 44.0,
            "calls_per_token": 2.0,
        },
        "expert:math": {
            "tasks": {
                "frcli_gsm8k": {"mean": 0.25, "stderr": 0.25, "scores": [1, 0, 0, 0], "tokens": 40},
                "logiglue_folio": {"mean": 0.5, "stderr": None, "scores": None},
            },
            "mean": 0.375,
            "stderr": None,
            "tokens_per_second": None,
            "calls_per_token": None,
        },
    },
    "against": "fusionroute",
    "differences": {"expert:math": {"frcli_gsm8k": [-0.5, -0.9, -0.1]}},
    "samples": [
        {
            "task": "frcli_gsm8k",
            "doc": 3,
            "prompt": "<b>2</b> & 2?",
            "answer": "4",
            "written": {
                "fusionroute": {
                    "score": 1.0,
                    "tokens": [["<script>", ["general"], [1.5, -0.25]], [" 4\n", ["math"], [0.0, 1.0]]],
                },
                "expert:math": {"score": 0.0, "tokens": [["4½", ["math"], None], ["", ["general", "math"], None]]},
            },
        },
        {"task": "logiglue_folio", "doc": 0, "prompt": "", "answer": "", "written": {}},
    ],
}


class Reader(html.parser.HTMLParser):
    """Rows of tables, and the tokens with their class and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tokens: list[tuple[str, str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._token: tuple[str, str] | None = None
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self._inside = True
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "span" and dict(attrs).get("title") is not None:
            self._token = str(dict(attrs)["class"]), str(dict(attrs)["title"])
            self.tokens.append((*self._token, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._token = None
        if tag == "table":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._token:
            self.tokens[-1] = (*self._token, self.tokens[-1][2] + data)
        elif self._inside and self.rows[-1]:
            self.rows[-1][-1] += data


def test_markdown_has_scores_speeds_groups_and_differences() -> None:
    assert markdown(DOCUMENT).splitlines() == [
        "|  | gsm8k | logiglue_folio | mean | tokens/s | calls/token |",
        "|---|---:|---:|---:|---:|---:|",
        "| fusionroute | **0.750** ± 0.250 | **0.500** ± 0.500 | **0.625** ± 0.280 | 44.0 | 2.00 |",
        "| expert:math | 0.250 ± 0.250 | **0.500** | 0.375 |  |  |",
        "| *items* | 4 | 2 | 6 |  |  |",
        "",
        "| LogiGLUE | deductive | in domain |",
        "|---|---:|---:|",
        "| fusionroute | 0.500 | 0.500 |",
        "| expert:math | 0.500 | 0.500 |",
        "",
        "| minus fusionroute | gsm8k | logiglue_folio | mean |",
        "|---|---:|---:|---:|",
        "| expert:math | **-0.500** (-0.900 to -0.100) |  |  |",
    ]


def test_the_page_has_the_same_numbers() -> None:
    rows = [[cell.strip() for cell in row] for row in Reader(page(DOCUMENT)).rows]
    assert rows[1] == [
        "fusionroute",
        "0.750 ± 0.250",
        "0.500 ± 0.500",
        "0.625 ± 0.280",
        "0.500",
        "0.500",
        "44.0",
        "2.00",
    ]
    assert rows[2] == ["expert:math", "0.250 ± 0.250", "0.500", "0.375", "0.500", "0.500", "", ""]
    assert rows[4][:2] == ["expert:math", "-0.500-0.900 to -0.100"]


def test_each_token_says_its_expert_and_its_weights() -> None:
    tokens = Reader(page(DOCUMENT)).tokens
    assert tokens == [
        ("e0", "general\ngeneral +1.50  math -0.25", "<script>"),
        ("e1", "math\ngeneral +0.00  math +1.00", " 4\n"),
        ("e1", "math", "4½"),
        ("several", "general, math", ""),
    ]


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    text = page(DOCUMENT)
    reader = Reader(text)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "b"}
    assert not [name for _, attributes in reader.tags for name in attributes if name in ("src", "href")]
    assert "url(" not in text and "@import" not in text
    assert "<b>" not in text and "&lt;b&gt;2&lt;/b&gt; &amp; 2?" in text


def test_bars_end_where_the_numbers_say() -> None:
    tags = Reader(page(DOCUMENT)).tags
    widths = [float(str(attributes["width"])) for tag, attributes in tags if tag == "rect"]
    assert len(widths) == 6
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.3)  # 0.75 and 0.25 of one task
    assert len([tag for tag, _ in tags if tag == "figure"]) == 3


def test_scores_of_nothing_draw_no_bars() -> None:
    empty = copy.deepcopy(DOCUMENT)
    for result in empty["systems"].values():
        result["mean"] = 0.0
        for cell in result["tasks"].values():
            cell["mean"], cell["stderr"] = 0.0, None
    assert 'width="0.0"' in page(empty)


@pytest.mark.browser
def test_a_browser_shows_it(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    path = tmp_path / "page.html"
    path.write_text(page(DOCUMENT), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more, path.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = Reader(run("--dump-dom"))
    assert [row[0].strip() for row in shown.rows] == ["", "fusionroute", "expert:math", "", "expert:math"]
    assert [text for *_, text in shown.tokens] == ["<script>", " 4\n", "4½", ""]
    picture = tmp_path / "page.png"
    run(f"--screenshot={picture}", "--window-size=1200,1400")
    data = picture.read_bytes()
    assert re.match(rb"\x89PNG", data) and len(data) > 20_000  # an empty page of this size has some 6,000 bytes
