from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import fakes
import numpy as np
import pytest
import random_llama
import user_sizes
from user_sizes import FREE, ROUTER, Costs

from frcli.errors import ModelError
from frcli.sources.source import Feed, Rows

# t_r + t_e is 0.5 s, and one expert alone takes 0.36 s.
COSTS = Costs(expert={1: 0.4, 2: 0.5, 3: 0.6}, router={1: 0.1, 2: 0.14, 3: 0.16}, alone=0.36)
SIZES = "layers=2,hidden=256,heads=4,kv_heads=2,head_dim=32,ffn=96,context=64"
SMALL = ["--expert", SIZES, "--router", SIZES, "--vocab", "600", "--prefix", "8", "--drafts", "3", "--threads", "1"]


@pytest.mark.parametrize(
    ("drafter", "acceptance", "k", "tokens", "seconds"),
    [
        (ROUTER, 0.5, 0, 1.0, 0.1 + 0.4),
        (ROUTER, 0.5, 1, 1.5, 0.2 + 0.5),
        (ROUTER, 0.5, 2, 1.75, 0.3 + 0.6),
        (ROUTER, 0.9, 2, 2.71, 0.3 + 0.6),
        (FREE, 0.5, 0, 1.0, 0.1 + 0.4),
        (FREE, 0.5, 2, 1.75, 0.16 + 0.6),
        (FREE, 1.0, 2, 3.0, 0.16 + 0.6),
    ],
)
def test_speed_by_hand(drafter: str, acceptance: float, k: int, tokens: float, seconds: float) -> None:
    speed = user_sizes.speed(COSTS, drafter, acceptance, k)
    assert speed["tokens_per_window"] == pytest.approx(tokens)
    assert speed["seconds_per_window"] == pytest.approx(seconds)
    assert speed["tokens_per_second"] == pytest.approx(tokens / seconds)
    assert speed["over_expert_alone"] == pytest.approx(tokens / seconds / (1 / 0.36))
    assert speed["over_sequential_limit"] == pytest.approx(tokens / seconds / (1 / 0.5))


def test_tokens_of_a_window_are_the_expectation_over_its_outcomes() -> None:
    for acceptance in (0.0, 0.3, 0.9, 1.0):
        for k in range(9):
            # j drafts accepted and the next refused gives j + 1 tokens; all accepted gives k + 1.
            outcomes = [(j + 1, acceptance**j * (1 - acceptance)) for j in range(k)] + [(k + 1, acceptance**k)]
            assert sum(p for _, p in outcomes) == pytest.approx(1)
            expected = sum(tokens * p for tokens, p in outcomes)
            assert user_sizes.tokens_per_window(acceptance, k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("drafter", "acceptance", "k"),
    # Tokens per second without drafts: 2. The router's: 1.5/0.7 = 2.14, 1.75/0.9 = 1.94 at 0.5; 1.95/0.7 = 2.79,
    # 2.8525/0.9 = 3.17 at 0.95; 1.2/0.7 = 1.71, 1.24/0.9 = 1.38 at 0.2. Free: 1.6/0.64 = 2.5, 1.96/0.76 = 2.58 at 0.6.
    [(ROUTER, 0.5, 1), (ROUTER, 0.95, 2), (ROUTER, 0.2, 0), (FREE, 0.6, 2)],
)
def test_the_best_number_of_drafts(drafter: str, acceptance: float, k: int) -> None:
    assert user_sizes.best(COSTS, drafter, acceptance)["k"] == k


class Clocked(fakes.FakeSource):
    """A source whose calls take ``base`` seconds and one for each token, on a clock that stands still otherwise."""

    now = 0.0

    def __init__(self, base: float, name: str, order: list[tuple[str, int, int]]) -> None:
        super().__init__(600, fakes.random_rows(600, 1))
        self._base, self._name, self._order = base, name, order

    def extend(self, feeds: Sequence[Feed]) -> list[Rows]:
        Clocked.now += self._base + len(feeds[0].tokens)
        self._order.append((self._name, len(feeds[0].tokens), self.length(0)))
        return super().extend(feeds)

    def rewind(self, seq: int, length: int) -> None:
        Clocked.now += 1000  # must not be part of any time
        super().rewind(seq, length)


def test_measure_times_calls_behind_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Clocked.now)
    order: list[tuple[str, int, int]] = []
    expert, router = Clocked(10, "expert", order), Clocked(2, "router", order)
    seconds = user_sizes.measure(expert, router, prefix=5, drafts=4, repeats=3)
    assert seconds["expert"] == {n: [10 + n] * 3 for n in range(1, 6)}
    assert seconds["router"] == {n: [2 + n] * 3 for n in range(1, 6)}
    assert seconds["alone"] == [11] * 3
    # k + 1 steps of the router, 3 seconds each, and one call of the expert
    assert seconds["windows"] == {k: [3 * (k + 1) + 10 + k + 1] * 3 for k in (1, 2, 4)}

    assert order[:2] == [("router", 5, 0), ("expert", 5, 0)]
    repetition = order[2 : 2 + (len(order) - 2) // 5]  # two do not count, three do
    pairs = repetition[:10]
    assert [name for name, _, _ in pairs] == ["router", "expert"] * 5
    assert all(first[1:] == second[1:] for first, second in zip(pairs[::2], pairs[1::2], strict=True))
    assert {start for _, _, start in pairs} == {5}
    assert repetition[-2:] == [("expert", 1, 5)] * 2
    assert all(rows == len(tokens) for calls in expert.calls[1:] for _, tokens, rows in calls)


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = fakes.FakeSource(600, lambda prefix: np.full(600, np.nan, np.float32))
    with pytest.raises(ModelError, match="the expert of random weights gives no finite logits"):
        user_sizes.read_text(broken, [300, 301], "expert")


def test_report_takes_medians() -> None:
    seconds = {
        "expert": {1: [0.5, 0.4, 0.3], 2: [0.5, 0.5, 9.0], 3: [0.6, 0.6, 0.6]},
        "router": {1: [0.1, 0.1, 7.0], 2: [0.14, 0.1, 0.2], 3: [0.16, 0.1, 0.2]},
        "windows": {1: [0.77, 0.77, 5.0]},
        "alone": [0.36, 0.1, 4.0],
    }
    result = user_sizes.report(seconds, {"prefix": 8})
    assert user_sizes.medians(seconds) == COSTS
    assert result["seconds"]["expert"][1] == {"median": 0.4, "low": pytest.approx(0.35), "high": pytest.approx(0.45)}
    assert result["windows"][1]["computed"] == pytest.approx(0.7)
    assert result["windows"][1]["ratio"] == pytest.approx(1.1)
    assert result["tokens_per_second"]["sequential_limit"] == pytest.approx(2)
    assert result["tokens_per_second"]["expert_alone"] == pytest.approx(1 / 0.36)


def test_the_whole_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, out, plot = tmp_path / "models", tmp_path / "out.json", tmp_path / "plot.svg"
    arguments = [str(models), *SMALL, "--repeats", "3", "--out", str(out), "--plot", str(plot)]
    user_sizes.main(arguments)
    result = json.loads(out.read_text())
    assert set(result["seconds"]["expert"]) == set(result["seconds"]["router"]) == {"1", "2", "3", "4"}
    assert set(result["windows"]) == {"1", "2"}
    assert len(result["speeds"]) == 2 * 6 * 4
    expert, router = (
        {n: cost["median"] for n, cost in result["seconds"][kind].items()} for kind in ("expert", "router")
    )
    alone = result["seconds"]["expert_alone"]["median"]
    for row in result["speeds"]:
        k, a = row["k"], row["acceptance"]
        reading = (k + 1) * router["1"] if row["drafter"] == ROUTER else router[str(k + 1)]
        seconds = reading + expert[str(k + 1)]
        tokens = (1 - a ** (k + 1)) / (1 - a)
        assert row["over_expert_alone"] == pytest.approx(tokens / seconds * alone, rel=1e-4)
    for row in result["best"]:
        same = [s for s in result["speeds"] if (s["drafter"], s["acceptance"]) == (row["drafter"], row["acceptance"])]
        assert row == max(same, key=lambda s: s["tokens_per_second"])
    assert result["machine"]["physical_cores"] >= 1 and "llama-cpp-python" in result["machine"]
    assert result["settings"]["expert"]["layers"] == 2 and result["settings"]["prefix"] == 8

    root = ElementTree.fromstring(plot.read_text())
    text = "".join(root.itertext())
    assert "computed from measured costs" in text and "prefers-color-scheme:dark" in text
    assert {"one expert alone", "1 draft", "2 drafts", "share of drafts accepted"} <= {e.text for e in root.iter()}

    capsys.readouterr()
    files = sorted(models.iterdir())
    before = [(file.name, file.stat().st_mtime_ns) for file in files]
    user_sizes.main([str(models), *SMALL, "--check"])
    assert [(file.name, file.stat().st_mtime_ns) for file in sorted(models.iterdir())] == before
    assert capsys.readouterr().err.count("gives a finite row behind 8 tokens") == 2


def test_the_plot_places_lines_on_its_scale() -> None:
    result = {
        "settings": {
            "expert": {"layers": 32, "hidden": 4096, "stored": "Q4_0"},
            "router": {"layers": 16, "hidden": 2048, "stored": "int4"},
        },
        "machine": {"physical_cores": 2, "processor": "Processor <A & B>"},
    }
    svg = user_sizes.plot(COSTS, result)
    root = ElementTree.fromstring(svg)
    place = "{http://www.w3.org/2000/svg}"
    ticks = {e.text: e for e in root.iter(f"{place}text") if e.get("class") == "tick"}
    zero, one = (float(ticks[text].get("y", "")) for text in ("0", "1"))
    paths = [(e.get("class", ""), e.get("d", "")) for e in root.iter(f"{place}path")]

    def heights(style: str, panel: int) -> list[float]:
        """The values that the line of a style shows in a panel, read back from the picture."""
        lines = [d for name, d in paths if name == style and "L" in d]
        ys = [float(y) for y in re.findall(r"[ML]\S+ (\S+?)(?=L|$)", lines[panel])]
        return [(zero - (y - -4)) / (zero - one) for y in ys]

    for panel, drafter in enumerate((ROUTER, FREE)):
        assert heights("rule", panel) == pytest.approx([1, 1], abs=0.01)
        assert heights("limit", panel) == pytest.approx([0.72, 0.72], abs=0.01)  # 0.36 s to 0.5 s
        shown = heights("c1", panel)  # two drafts
        for shown_at, acceptance in ((shown[0], 0.5), (shown[-1], 0.95)):
            expected = user_sizes.speed(COSTS, drafter, acceptance, 2)["over_expert_alone"]
            assert shown_at == pytest.approx(expected, abs=0.01)
    assert "Processor &lt;A &amp; B&gt;" in svg


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(random_llama.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(SystemExit) as stopped:
        user_sizes.main([str(tmp_path), *SMALL, "--check"])
    assert stopped.value.code == 1
    assert "has 0.0 GB free, and the models need 0.1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expert", "layer=2"], "'layer=2' names no size of a model"),
        (["--expert", "layers=two"], "'layers=two' names no size of a model"),
        (["--expert", "hidden=100"], "do not fit the blocks"),
        (["--router", "kv_heads=3"], "4 heads cannot share 3 key heads"),
        (["--router", "layers=0"], "all sizes are at least 1"),
        (["--vocab", "100"], "a vocabulary of 100 is too small"),
        (["--prefix", "100"], "do not fit in a context of 64"),
        (["--repeats", "0"], "are at least 1"),
    ],
)
def test_sizes_that_cannot_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if arguments[0] in ("--expert", "--router"):
        arguments = [arguments[0], f"{SIZES},{arguments[1]}"]
    with pytest.raises(SystemExit) as stopped:
        user_sizes.main([str(tmp_path), *SMALL, *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
