"""Conversations for others to read."""

from __future__ import annotations

import html.parser
import shutil
import subprocess
from pathlib import Path

import pytest

from frcli.chat.conversation import Conversation
from frcli.chat.export import export
from frcli.chat.store import SavedConversation

EXPERTS = ("general", "math")


def conversation() -> SavedConversation:
    talk = Conversation("Be <kind>.")
    talk.ask("<b>2</b> & 2?")
    tokens = [
        ("<script>", ("general",), (1.5, -0.25)),
        (" 4\n", ("math",), (0.0, 1.0)),
        ("", ("general", "math"), None),
    ]
    talk.answered("<script> 4\n", tokens=tokens, experts=EXPERTS)
    talk.ask("And 3?")
    talk.answered("five is", stopped=True)
    talk.ask("unanswered")
    return SavedConversation.of(talk, "duo")


class Page(html.parser.HTMLParser):
    """The tags, and the tokens by class, what a pointer shows, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, str, str]] = []
        self.text = ""
        self._token = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._token = tag == "span" and "title" in dict(attrs)
        if self._token:
            self.tokens.append((str(dict(attrs)["class"]), str(dict(attrs)["title"]), ""))

    def handle_endtag(self, tag: str) -> None:
        self._token = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._token:
            self.tokens[-1] = (*self.tokens[-1][:2], self.tokens[-1][2] + data)


def test_the_page_says_who_wrote_each_token() -> None:
    assert Page(export(conversation(), ".html", EXPERTS)).tokens == [
        ("e0", "general\ngeneral +1.50  math -0.25", "<script>"),
        ("e1", "math\ngeneral +0.00  math +1.00", " 4\n"),
        ("several", "general, math", ""),
    ]


def test_the_page_has_all_that_was_said_and_needs_nothing_else() -> None:
    text = export(conversation(), ".html", EXPERTS)
    page = Page(text)
    for said in ("Be <kind>.", "<b>2</b> & 2?", "five is", "stopped", "unanswered", "general 50%, math 50%"):
        assert said in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "b", "kind"}
    assert not [name for _, attributes in page.tags for name in attributes if name in ("src", "href")]
    assert "url(" not in text and "@import" not in text


def test_a_conversation_that_began_with_other_experts() -> None:
    page = Page(export(conversation(), ".html", ("law", "math", "general")))
    assert [style for style, *_ in page.tokens] == ["e0", "e1", "several"]
    legend = [attributes["class"] for tag, attributes in page.tags if tag == "span" and "title" not in attributes]
    assert legend == ["e0", "e1", "e2", "several"]


def test_markdown() -> None:
    text = export(conversation(), ".md", EXPERTS)
    assert text.startswith("# A chat with duo, 20")
    assert text.partition("\n\n")[2] == (
        "## System\n\nBe <kind>.\n\n## You\n\n<b>2</b> & 2?\n\n"
        "## Answer\n\n<script> 4\n\n\n*general 50%, math 50%*\n\n"
        "## You\n\nAnd 3?\n\n## Answer\n\nfive is\n\n*stopped*\n\n## You\n\nunanswered\n"
    )


@pytest.mark.browser
def test_a_browser_shows_it(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    path = tmp_path / "chat.html"
    path.write_text(export(conversation(), ".html", EXPERTS), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [text for *_, text in Page(done.stdout).tokens] == ["<script>", " 4\n", ""]
