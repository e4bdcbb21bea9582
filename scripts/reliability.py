"""The table of docs/reliability.md, from what the scripts under benchmarks/ have written to benchmarks/reliability/.

python scripts/reliability.py            # the table, as Markdown
python scripts/reliability.py --write    # the table into the page
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def _kills(found: Mapping[str, Any]) -> tuple[str, str]:
    jobs = f"{found['jobs']} batch jobs of {found['rows_of_a_job']} rows"
    return f"{found['points']:,} kills by SIGKILL at random moments of {jobs}", (
        f"rows lost {found['rows_lost']}, doubled {found['rows_doubled']}; outputs that differ from the undisturbed "
        f"one {found['outputs_different']}; {found['between_rows']} kills fell between rows, {found['torn']} tore a "
        "line"
    )


def _fuzz(found: Mapping[str, Any]) -> tuple[str, str]:
    readers = list(found.values())
    accepted, refused = (sum(each[name] for each in readers) for name in ("accepted", "refused"))
    crashes, hangs = (sum(len(each[name]) for each in readers) for name in ("crashes", "hangs"))
    files = accepted + refused + crashes + hangs
    return f"{files:,} changed files for {len(readers)} readers", (
        f"crashes {crashes}, hangs {hangs}; {accepted:,} accepted, {refused:,} refused with a sentence"
    )


def _soak(found: Mapping[str, Any]) -> tuple[str, str]:
    start, end = (found[name] / 2**20 for name in ("bytes_after_a_tenth", "bytes_at_the_end"))
    lines = found["lines"]
    return f"{found['turns']:,} turns of one chat", (
        f"memory {start:.1f} MiB after a tenth, {end:.1f} MiB at the end ({found['growth']:+.1%}); open files "
        f"{found['open_files'][0]}, {found['open_files'][1]}; {lines['failed']:,} turns met a full context, "
        f"{lines['stopped']:,} were stopped; {found['conversations']:,} conversations kept"
    )


def _agreement(found: Mapping[str, Any]) -> tuple[str, str]:
    return f"{found['combinations']} random combinations of policy, sampling and length", (
        f"{found['compared']:,} answers with drafts, in batch and both, against those without: different "
        f"{found['failures']}, near-ties {found['near_ties']}; {found['tokens']:,} tokens, {found['accepted']:,} "
        "drafts accepted"
    )


ROWS = {"kill_batch": _kills, "fuzz": _fuzz, "soak": _soak, "agreement": _agreement}


def table() -> str:
    """The table as Markdown."""
    lines = ["| tried | came of it | by |", "|---|---|---|"]
    for name, tell in ROWS.items():
        what, outcome = tell(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        lines.append(f"| {what} | {outcome} | [`{name}.py`](../benchmarks/{name}.py) |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    text = PAGE.read_text(encoding="utf-8")
    before, behind = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{behind}", encoding="utf-8")


if __name__ == "__main__":
    main()
