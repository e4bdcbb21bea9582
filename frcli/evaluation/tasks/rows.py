"""What the tasks of this folder call: where their rows come from, and how answers are graded.

lm-evaluation-harness loads this file by its path, so it only passes on to the package. ``files`` are the places that
the user gave, by task; a task without one fetches its rows from the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from frcli.errors import DataError
from frcli.evaluation import grading, logiglue
from frcli.examples import example_of, read_rows


def examples(
    task: str, files: dict[str, str] | None = None, hub: str = "", config: str | None = None, **other: Any
) -> dict[str, Dataset]:
    """Rows of any shape that :mod:`frcli.examples` reads."""
    if place := (files or {}).get(task):
        rows = read_rows(place)
    elif hub:
        rows = [(dict(row), f"{hub}:{number}") for number, row in enumerate(load_dataset(hub, config, split="test"))]
    else:
        raise DataError(f"{task} needs a file of rows", f"give it with --task {task}=FILE")
    docs = []
    for row, where in rows:
        example = example_of(row, where)
        docs.append({"prompt": example.prompt, "answer": example.answer, **_tests(row)})
    return {"test": Dataset.from_list(docs)}


def _tests(row: dict[str, Any]) -> dict[str, Any]:
    return {"tests": list(row.get("test_list", ())), "setup": row.get("test_setup_code") or ""}


def logical(task: str, data_set: str, files: dict[str, str] | None = None, **other: Any) -> dict[str, Dataset]:
    """Rows of a LogiGLUE data set."""
    given = files or {}
    place = next((given[name] for name in (task, *logiglue.tags(data_set)) if name in given), None)
    return {"test": Dataset.from_list(logiglue.read(data_set, Path(place) if place else None))}


def number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right when it comes to the same number."""
    return {"right": float(grading.same_number(results[0], doc["answer"]))}


def option(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right when it picks the same option."""
    return {"right": float(grading.same_option(results[0], doc["answer"]))}


def text(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right when it is the same text."""
    return {"right": float(grading.same_text(results[0], doc["answer"]))}


def program(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right when the program passes all tests."""
    return {"right": float(grading.run_tests(results[0], doc["tests"], doc["setup"]).finished)}
