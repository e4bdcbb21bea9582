"""How much of a model each quantized type keeps, on real weights.

A GGUF is taken apart to a Hugging Face folder, which ``frcli convert expert`` turns into each type. Each result is
compared with the file at the beginning, by the measure of ``frcli convert verify``; what that file lost when it was
quantized itself is not in the figures. The table goes to stdout as Markdown, and with ``-o`` its figures to a file of
JSON, of which ``--table`` makes the same table again.

    python benchmarks/quant_types.py MODEL.gguf --text FILE -o types.json
    python benchmarks/quant_types.py --table types.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from taken_apart import take_apart

from converters.expert import convert_expert
from converters.parity import TEXT, Parity
from converters.verify import verify
from frcli.errors import FrcliError
from frcli.files import save
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.source import Feed

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
_PROMPT, _STEPS, _ROUNDS = 64, 64, 5


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: the type, the bytes of its file, how far it is from the original (None for the original), and
    milliseconds a token takes (None if that was not measured).
    """

    name: str
    size: int
    parity: Parity | None = None
    milliseconds: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", type=Path, nargs="?", help="GGUF of a Llama, a Qwen or a Gemma")
    what.add_argument("--table", type=Path, metavar="FILE", help="only print the table of figures that -o wrote")
    parser.add_argument("--text", type=Path, help="text in UTF-8 to compare on; a short one is built in")
    parser.add_argument("--types", nargs="+", default=TYPES, metavar="TYPE", help=f"types to make: {' '.join(TYPES)}")
    parser.add_argument("--window", type=int, default=512, help="tokens that are read at once")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp for the speed")
    parser.add_argument("--no-speed", action="store_true", help="leave the time per token out")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="where the figures go as JSON")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print("\n".join(table(from_json(json.loads(arguments.table.read_text())))))
        return 0
    try:
        text = TEXT if arguments.text is None else arguments.text.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as scratch:
            threads = 0 if arguments.no_speed else arguments.threads
            lines = compare_types(arguments.model, Path(scratch), text, arguments.types, arguments.window, threads)
    except (FrcliError, OSError, UnicodeDecodeError) as error:
        print(f"quant_types: {error}", file=sys.stderr)
        return 1
    if arguments.out is not None:
        save(json.dumps(as_json(lines), indent=1) + "\n", arguments.out)
    print("\n".join(table(lines)))
    return 0


def as_json(lines: list[Line]) -> list[dict[str, Any]]:
    """The figures of the lines, without the positions at which models differ most."""
    rows = [asdict(line) for line in lines]
    for row in rows:
        if row["parity"] is not None:
            del row["parity"]["worst"]
    return rows


def from_json(rows: list[dict[str, Any]]) -> list[Line]:
    """The lines that :func:`as_json` wrote."""
    return [Line(**row | {"parity": row["parity"] and Parity(**row["parity"])}) for row in rows]


def compare_types(
    model: Path, folder: Path, text: str, types: tuple[str, ...] | list[str], window: int, threads: int
) -> list[Line]:
    """Return a line for the original and one for each type; ``threads`` 0 measures no speed."""
    source = folder / "source"
    take_apart(model, source)
    lines, files = [Line("original", model.stat().st_size)], [model]
    for name in types:
        began = time.monotonic()
        made = folder / f"{name}.gguf"
        convert_expert(source, made, name, verify=False)
        parity = verify(model, made, text, window=window).parity
        lines.append(Line(name, made.stat().st_size, parity))
        files.append(made)
        print(f"{name}: {parity} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    if not threads:
        return lines
    rounds = [[step_time(file, threads) for file in files] for _ in range(_ROUNDS)]  # in turns: machines drift
    medians = map(statistics.median, zip(*rounds, strict=True))
    return [replace(line, milliseconds=each) for line, each in zip(lines, medians, strict=True)]


def step_time(path: Path, threads: int) -> float:
    """Return the median time in milliseconds that llama.cpp takes for one token behind a prompt of 64."""
    model = LlamaModel(path)
    source = LlamaSource(model, context=_PROMPT + _STEPS, threads=threads)
    times = []
    try:
        source.extend([Feed(0, [1 + at % 200 for at in range(_PROMPT)])])
        for at in range(_STEPS):
            began = time.perf_counter()
            source.extend([Feed(0, [1 + at])])
            times.append(1e3 * (time.perf_counter() - began))
    finally:
        source.close()
        model.close()
    return statistics.median(times)


def table(lines: list[Line]) -> list[str]:
    """Return the lines of the Markdown table, the original first."""
    speed = lines[0].milliseconds is not None
    header = ["type", "MB", "KL", "largest KL", "same top token", "top ten", "perplexity"]
    rows = [header + ["ms per token"] * speed, ["---"] * (len(header) + speed)]
    for line in lines:
        parity = line.parity
        row = [line.name, f"{line.size / 1e6:.0f}"]
        if parity is None:
            before = lines[1].parity.perplexity if len(lines) > 1 and lines[1].parity else None
            row += [*[""] * 4, f"{before[0]:.3f}" if before else ""]
        else:
            row += [f"{parity.mean_kl:.1e}", f"{parity.max_kl:.1e}", f"{parity.top1:.1%}", f"{parity.top10:.1%}"]
            row.append(f"{parity.perplexity[1]:.3f}" if parity.perplexity else "")
        rows.append(row + ([f"{line.milliseconds:.1f}"] if line.milliseconds is not None else []))
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    sys.exit(main())
