"""What frcli's HTML pages share: answers in which each token says who wrote it.

A page is one file that needs nothing else and runs nothing. Its template lies beside the module that fills it and may
import ``tokens.html`` from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_STYLES = 8  # classes e0 to e7 of tokens.html


def render(template: Path, **values: Any) -> str:
    """The template filled with ``values``; what they hold is text, not HTML."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    return environment.get_template(template.name).render(**values)


def legend(experts: Sequence[str]) -> list[tuple[str, str]]:
    """Each expert and the class of its tokens."""
    return [(name, f"e{number % _STYLES}") for number, name in enumerate(experts)]


def drawn(
    tokens: Iterable[Sequence[Any]], experts: Sequence[str], routed: Sequence[str] | None = None
) -> list[tuple[str, str, str]]:
    """Tokens (text, experts, weights or None) as text, class, and what a pointer shows: who wrote it, and the routing
    weights, which are those of ``routed`` (the same as ``experts`` if not given).
    """
    routed = experts if routed is None else routed
    styles = dict(legend(experts))
    result = []
    for text, names, weights in tokens:
        style = styles.get(names[0], "several") if len(names) == 1 else "several"
        shown = ", ".join(names)
        if weights is not None:
            shown += "\n" + "  ".join(f"{name} {weight:+.2f}" for name, weight in zip(routed, weights, strict=True))
        result.append((text, style, shown))
    return result
