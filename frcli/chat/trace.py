"""Traces of a chat: every token as a line of JSON, as it is written.

    {"answer": 2, "index": 0, "token": 198, "text": "\\n", "experts": ["math"], "weights": {"math": 1.2, "code": 0.3},
     "margin": 0.9, "rank": 1, "expert_rank": 3, "rank_change": 2, "drafted": true, "proposed": 0, "read": 1,
     "finish": null}

``margin`` is the largest routing weight minus the second largest, ``rank`` the token's place in the fused row (1: the
likeliest) and ``expert_rank`` that in its expert's own row; ``rank_change`` is how many places the router's logits have
raised it. What a policy does not have is null.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frcli.decode.loop import Step
from frcli.errors import OutputError
from frcli.fusion.policy import ROUTER
from frcli.sources.source import Logits


class Trace:
    """Appends to a file what :meth:`see` and :meth:`step` are shown of each answer."""

    def __init__(self, path: Path, experts: Sequence[str], piece: Callable[[int], bytes]) -> None:
        self.path = path
        self._experts, self._piece = tuple(experts), piece
        self._rows: deque[tuple[Logits | None, Logits]] = deque()  # of positions that no step was seen of yet
        self._lines: list[str] = []
        self._answers = 0

    def check(self) -> None:
        """Raise ``OutputError`` when the file cannot be written."""
        self._append("")

    def begin(self) -> None:
        """An answer begins."""
        self._rows.clear()
        self._lines.clear()
        self._answers += 1

    def see(self, rows: Mapping[str, Logits], fused: Logits) -> None:
        """A fusion, of which the token is not known yet."""
        others = [row for name, row in rows.items() if name != ROUTER]
        self._rows.append((others[0].copy() if len(others) == 1 else None, fused.copy()))

    def step(self, step: Step) -> None:
        """The token that was taken from the first fusion which has none."""
        own, fused = self._rows.popleft()
        rank, own_rank = _rank(fused, step.token), None if own is None else _rank(own, step.token)
        line: dict[str, Any] = {
            "answer": self._answers,
            "index": len(self._lines),
            "token": step.token,
            "text": self._piece(step.token).decode("utf-8", errors="backslashreplace"),
            "experts": list(step.experts),
            "weights": None if step.weights is None else dict(zip(self._experts, step.weights, strict=True)),
            "margin": _margin(step.weights),
            "rank": rank,
            "expert_rank": own_rank,
            "rank_change": None if own_rank is None else own_rank - rank,
            "drafted": step.drafted,
            "proposed": step.proposed,
            "read": step.read,
            "finish": step.finish,
        }
        self._lines.append(json.dumps(line, ensure_ascii=False))

    def end(self) -> None:
        """The answer is over: write its lines; raises ``OutputError`` when that cannot be."""
        self._append("".join(f"{line}\n" for line in self._lines))
        self._lines.clear()

    def _append(self, text: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"cannot write the trace {self.path}: {error.strerror}", "choose another file") from None


def _rank(row: Logits, token: int) -> int:
    return 1 + int((row > row[token]).sum())


def _margin(weights: Sequence[float] | None) -> float | None:
    if weights is None or len(weights) < 2:
        return None
    first, second, *_ = sorted(weights, reverse=True)
    return first - second
