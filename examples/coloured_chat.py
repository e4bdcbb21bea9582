"""Ask a bundle some questions and save the answers as a picture, each token in the colour of the expert that wrote it.

    python examples/coloured_chat.py docs/chat.svg "How many legs do 7 spiders have?" "Write a Python function that ..."

It is also the shortest use of frcli from Python: open a bundle, write an answer, look at its spans.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from frcli.bundle import DEFAULT_BUNDLE, read_bundle
from frcli.cli.chatview import COLOURS, status
from frcli.config import Settings, read_settings
from frcli.decode.engine import Engine


def expert_style(name: str, experts: Sequence[str]) -> str:
    """The colour in which the chat draws an expert's text, as rich names it; none for what several wrote together."""
    if name not in experts:
        return ""
    code = int(COLOURS[experts.index(name) % len(COLOURS)])  # 30 to 37, and 90 to 97 for bright ones
    return f"color({code - 30 if code < 90 else code - 82})"


def main(out: Path, questions: list[str]) -> None:
    """Write the picture of the conversation to ``out``."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    bundle = read_bundle(DEFAULT_BUNDLE)
    legend = Text("written by  ", style="dim")
    for name in bundle.experts:
        legend.append(f"■ {name}  ", style=expert_style(name, bundle.experts))
    console.print(legend)
    settings = read_settings(Settings(max_tokens=160, temperature=0), {}).with_bundle(bundle)
    with Engine(bundle, settings.options()) as engine:
        for question in questions:
            console.print(Text(f"\n>>> {question}", style="bold"))
            prompt = engine.encode_messages([{"role": "user", "content": question}])
            answer = engine.write(prompt, settings.sampling(), max_tokens=settings.max_tokens).run()
            text = Text()
            for span in answer.spans:
                text.append(span.text, style=expert_style(span.tag, bundle.experts))
            console.print(text)
            console.print(Text(status(answer, settings.max_tokens, engine.context), style="dim"))
    console.save_svg(str(out), title=f"frcli chat {bundle.name} --show-experts")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} OUT.svg QUESTION...")
    main(Path(sys.argv[1]), sys.argv[2:])
