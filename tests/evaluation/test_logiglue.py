"""LogiGLUE rows as they are on the hub, with their defects, and rows of other logic sets in its form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frcli.errors import DataError
from frcli.evaluation import logiglue
from frcli.evaluation.comparison import TASKS

OPTIONS = {"context": "Rain is wet.", "question": "Is it?", "options": ["A) True", "B) False"], "answer": "B"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**changes: Any) -> dict[str, Any]:
    made = {
        "id_": "1",
        "context": "Rain is wet.",
        "question": "Is it?",
        "choices": ["True", "False"],
        "answer_choice": 1,
        "answer_text": "False",
        "input": "Context: Rain is wet. Question: Is it? Options: - True - False",
    }
    return made | changes


def test_all_data_sets_have_a_task_that_agrees_with_the_table() -> None:
    assert len(logiglue.DATA_SETS) == 24
    assert sum(data_set.in_domain for data_set in logiglue.DATA_SETS.values()) == 10
    files = {path.stem for path in TASKS.glob("logiglue_*.yaml")}
    assert files == {logiglue.task_name(name) for name in logiglue.DATA_SETS}
    for name in logiglue.DATA_SETS:
        text = (TASKS / f"{logiglue.task_name(name)}.yaml").read_text()
        assert f"task: {logiglue.task_name(name)}\n" in text
        assert f"data_set: {name}}}" in text
        assert f"tag: [{', '.join(logiglue.tags(name))}]" in text
    assert logiglue.tags("folio") == ["logiglue", "logiglue_deductive", "logiglue_in_domain"]


def test_a_row_is_asked_by_its_own_input() -> None:
    made = logiglue.prepare(row(), "x:1")
    assert made == {"prompt": row()["input"], "answer": "False", "choices": ["True", "False"]}


def test_what_is_wrong_with_rows_is_put_right() -> None:
    one_indexed = logiglue.prepare(row(answer_choice=2), "x:1")
    assert one_indexed["answer"] == "False"  # the text counts, not the number
    assert logiglue.prepare(row(answer_text="", answer_choice=0), "x:1")["answer"] == "True"
    assert logiglue.prepare(row(choices=[""], answer_text="uncle"), "x:1")["choices"] == []
    entailed = {"premise": "All men die.", "hypothesis": "I do.", "answer_text": "entailment"}
    prompt = logiglue.prepare(entailed, "x:1")["prompt"]
    assert prompt == "Context: All men die.\nQuestion: Does this follow: I do.\nOptions: - entailment - not-entailment"


def test_rows_without_an_answer_or_a_question_are_refused() -> None:
    for broken in (
        row(answer_text="", answer_choice=7),
        row(answer_text=None, choices=None),
        {"answer_text": "x"},
        OPTIONS | {"answer": "C"},
        OPTIONS | {"answer": None},
    ):
        with pytest.raises(DataError, match="^x:1 has"):
            logiglue.prepare(broken, "x:1")


def test_rows_with_lettered_options_take_its_form() -> None:
    made = logiglue.prepare(OPTIONS, "x:1")
    assert made["prompt"] == "Context: Rain is wet.\nQuestion: Is it?\nOptions: - True - False"
    assert (made["answer"], made["choices"]) == ("False", ["True", "False"])


def test_rows_come_from_a_folder_or_a_file_and_only_once(tmp_path: Path) -> None:
    other = row(input="another")
    test = write(tmp_path / "folio" / "folio_dev.jsonl", row(), row(id_="2"), other)
    assert [made["prompt"] for made in logiglue.read("folio", tmp_path)] == [row()["input"], "another"]
    write(tmp_path / "folio" / "folio_test.jsonl", other)
    assert [made["prompt"] for made in logiglue.read("folio", tmp_path)] == ["another"]
    assert len(logiglue.read("anything", test)) == 2
    with pytest.raises(DataError, match=r"no reclor_test\.jsonl"):
        logiglue.read("reclor", tmp_path)


def test_groups_are_by_reasoning_and_by_domain() -> None:
    tasks = ["frcli_gsm8k", "logiglue_folio", "logiglue_prontoqa", "logiglue_cluttr", "logiglue_reclor"]
    assert logiglue.groups(tasks) == {
        "deductive": ["logiglue_folio", "logiglue_prontoqa"],
        "inductive": ["logiglue_cluttr"],
        "mixed": ["logiglue_reclor"],
        "in domain": ["logiglue_folio", "logiglue_cluttr"],
        "left out": ["logiglue_prontoqa", "logiglue_reclor"],
    }
    assert logiglue.groups(["frcli_gsm8k"]) == {}
