"""What is drawn with colour and without."""

from __future__ import annotations

import signal

import pytest

from frcli.cli import ui
from frcli.errors import Interrupted


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ui.manner, "quiet", True)
    ui.say("something")
    with ui.Meter(every=0) as meter:
        meter("rows", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_file_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ui.Meter(every=0) as meter:
        meter("rows", 1, 4, "1 failed")
    with ui.Meter(every=3600) as meter:
        meter("rows", 2, 4)
    assert capsys.readouterr().err == "rows 25%, 1 failed\n"


def test_what_was_there_before_tells_nothing_of_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 0.0, 60.0])
    monkeypatch.setattr(ui.time, "monotonic", lambda: next(times))
    with ui.Meter(every=0) as meter:
        meter("training", 91, 100)
        meter("training", 92, 100)
    assert capsys.readouterr().err == "training 91%\ntraining 92%, 8.0 min left\n"


def test_progress_of_an_unknown_total(capsys: pytest.CaptureFixture[str]) -> None:
    with ui.Meter(every=0) as meter:
        meter("rows", 1, None, "1 row")
    assert capsys.readouterr().err == "rows, 1 row\n"


def test_a_table_in_a_file_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    ui.table(("name", "about"), [("a", "x" * 200), ("longer", "")])
    assert capsys.readouterr().out == f"name    about\na       {'x' * 200}\nlonger\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (98362432, "93.8 MiB"), (2**50, "1024.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert ui.size(count) == text


@pytest.mark.parametrize("after", [None, ImportError("initialization failed"), KeyboardInterrupt()])
def test_ctrl_c_while_something_is_opened_is_neither_lost_nor_a_bug(after: BaseException | None) -> None:
    whole = False
    with pytest.raises(Interrupted), ui.opening("it"):
        signal.raise_signal(signal.SIGINT)
        whole = True  # no exception in the midst of it
        if after is not None:
            raise after
    assert whole
    with pytest.raises(ImportError), ui.opening("it"):
        raise ImportError
