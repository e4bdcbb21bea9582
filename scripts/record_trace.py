"""Write the trace that ``scripts/pictures.py`` draws: one greedy answer of a bundle, a line of JSON for each token.

    python scripts/record_trace.py "QUESTION" -o docs/pictures/trace.jsonl

The first line says what was asked of what: ``bundle``, ``experts``, ``gamma``, ``question``, ``prompt_tokens``,
``draft``. The others are the lines of a chat's ``/trace`` (docs/chat.md) with one field more: ``top`` has, for
``expert``, ``router`` and ``fused``, the likeliest tokens as ``[text, probability]``.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from frcli.bundle import read_bundle
from frcli.chat.trace import Trace
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.files import save
from frcli.fusion.around import Observed
from frcli.fusion.policy import ROUTER
from frcli.sources.source import Logits

LIKELIEST = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the trace that scripts/pictures.py draws.")
    parser.add_argument("question")
    parser.add_argument("-b", "--bundle", default="smollm2-quartet")
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("--draft", default="3")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    save(record(given.question, given.bundle, given.tokens, given.draft, given.out), given.out)


def record(question: str, bundle: str, tokens: int, draft: str, near: Path) -> str:
    """The trace's text; the chat's own lines lie beside ``near`` while it is made."""
    opened = read_bundle(bundle)
    beside = near.with_name(near.name + ".part")
    beside.unlink(missing_ok=True)
    tops: deque[dict[str, list[tuple[str, float]]]] = deque()
    with Engine(opened, Options(draft=draft)) as engine:
        trace = Trace(beside, opened.experts, engine.piece)

        def top(row: Logits) -> list[tuple[str, float]]:
            odds = np.exp(row - row.max(), dtype=np.float64)
            odds /= odds.sum()
            best = np.argsort(-odds, kind="stable")[:LIKELIEST]
            return [(engine.piece(int(i)).decode(errors="backslashreplace"), round(float(odds[i]), 4)) for i in best]

        def see(rows: Mapping[str, Logits], fused: Logits) -> None:
            trace.see(rows, fused)
            (expert,) = (row for name, row in rows.items() if name != ROUTER)
            tops.append({"expert": top(expert), "router": top(rows[ROUTER]), "fused": top(fused)})

        engine.use(around=lambda policy: Observed(policy, see))
        messages = [{"role": "user", "content": question}]
        if opened.manifest.defaults.system:
            messages.insert(0, {"role": "system", "content": opened.manifest.defaults.system})
        prompt = engine.encode_messages(messages)
        trace.begin()
        engine.write(prompt, Sampling(temperature=0), max_tokens=tokens, on_step=trace.step).run()
        trace.end()
    head = {
        "bundle": opened.name,
        "experts": list(opened.experts),
        "gamma": opened.manifest.defaults.gamma,
        "question": question,
        "prompt_tokens": len(prompt),
        "draft": draft,
    }
    lines = [json.loads(line) for line in beside.read_text(encoding="utf-8").splitlines()]
    beside.unlink()
    whole = [head, *({**line, "top": each} for line, each in zip(lines, tops, strict=True))]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole)


if __name__ == "__main__":
    main()
