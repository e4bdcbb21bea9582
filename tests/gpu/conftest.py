"""Ends a run of ``check_vulkan.py`` with a table: each check, and whether it passed."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Called by pytest after the last test."""
    outcomes: dict[str, list[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            file, _, test = report.nodeid.partition("::")
            if file.startswith("tests/gpu/"):
                name = test.partition("[")[0].removeprefix("test_").replace("_", " ")
                outcomes.setdefault(name, []).append(outcome)
    if not outcomes:  # other tests only
        return
    width = max(map(len, outcomes))
    terminalreporter.section("llama.cpp on a device")
    for name, found in outcomes.items():
        worst = next(each for each in ("error", "failed", "skipped", "passed") if each in found)
        several = f" ({found.count(worst)} of {len(found)})" if len(found) > 1 and worst != "passed" else ""
        terminalreporter.write_line(f"{name:{width}}  {worst}{several}")
