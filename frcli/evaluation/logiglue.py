"""LogiGLUE (arXiv 2310.00836): 24 data sets of logical reasoning as questions with a text for an answer.

Rows come from the hub (``logicreasoning/logi_glue``) or from a folder in its format, ``FOLDER/NAME/NAME_test.jsonl``:

    context, question, choices, answer_choice, answer_text, input, id_

``input`` is the prompt and ``answer_text`` the answer, an option's text and not its letter. What is known to be wrong
with the rows is put right here: ``id_`` is not unique, so that rows are told apart by their prompt; ``answer_choice``
counts from 1 in one set, so that it is read only where there is no ``answer_text``; sets of texts have ``choices``
with one empty text. ``logiQA_2.0`` has ``premise`` and ``hypothesis`` and no prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcli.errors import DataError
from frcli.examples import read_rows

HUB = "logicreasoning/logi_glue"
REASONING = ("deductive", "inductive", "abductive", "mixed")


@dataclass(frozen=True, slots=True)
class DataSet:
    """What kind of reasoning a data set asks for, and whether it has training rows (in domain) or is left out."""

    reasoning: str
    in_domain: bool


DATA_SETS: Mapping[str, DataSet] = {
    "adv": DataSet("abductive", True),
    "alpha_nli": DataSet("abductive", True),
    "cluttr": DataSet("inductive", True),
    "abduction_animal": DataSet("abductive", True),
    "anli": DataSet("deductive", True),
    "logiQA": DataSet("mixed", True),
    "logicNLI": DataSet("deductive", True),
    "proofwriter": DataSet("deductive", True),
    "rulebert": DataSet("deductive", True),
    "folio": DataSet("deductive", True),
    "babi_task_15": DataSet("deductive", False),
    "babi_task_16": DataSet("inductive", False),
    "cluttr_systematic": DataSet("inductive", False),
    "abduction_person": DataSet("abductive", False),
    "birdelectricity": DataSet("deductive", False),
    "natlang": DataSet("deductive", False),
    "winologic": DataSet("deductive", False),
    "Rulebert-Union-Rules": DataSet("deductive", False),
    "wanli": DataSet("deductive", False),
    "logiQA_2.0": DataSet("deductive", False),
    "bigbench_deduction": DataSet("deductive", False),
    "bigbench-logical-Args": DataSet("abductive", False),
    "reclor": DataSet("mixed", False),
    "prontoqa": DataSet("deductive", False),
}


def task_name(data_set: str) -> str:
    """How the task of a data set is called."""
    return f"logiglue_{data_set}"


def tags(data_set: str) -> list[str]:
    """The names that stand for several data sets, this one among them."""
    known = DATA_SETS[data_set]
    return ["logiglue", f"logiglue_{known.reasoning}", f"logiglue_{'in_domain' if known.in_domain else 'left_out'}"]


def groups(tasks: Iterable[str]) -> dict[str, list[str]]:
    """The LogiGLUE tasks among ``tasks`` by reasoning and by whether they are in the domain; no group is empty."""
    found: dict[str, list[str]] = {}
    named = {task_name(name): data_set for name, data_set in DATA_SETS.items()}
    for task in tasks:
        if (data_set := named.get(task)) is not None:
            for group in (data_set.reasoning, "in domain" if data_set.in_domain else "left out"):
                found.setdefault(group, []).append(task)
    return {name: found[name] for name in (*REASONING, "in domain", "left out") if name in found}


def read(data_set: str, place: Path | None) -> list[dict[str, Any]]:
    """The rows to be answered, as ``prompt``, ``answer`` and ``choices``: of ``place``, a file or a folder of folders,
    or from the hub when it is None.

    Raises ``DataError`` for rows that cannot be read or have no answer.
    """
    if place is None:
        rows = _from_hub(data_set)
    elif place.is_dir():
        rows = read_rows(str(_split(place / data_set, data_set)))
    else:
        rows = read_rows(str(place))
    prepared: dict[str, dict[str, Any]] = {}
    for row, where in rows:
        made = prepare(row, where)
        prepared.setdefault(made["prompt"], made)
    return list(prepared.values())


def _split(folder: Path, data_set: str) -> Path:
    """The file of test rows, or, where a set has none, of development rows."""
    for name in ("test", "dev"):
        if (path := folder / f"{data_set}_{name}.jsonl").is_file():
            return path
    raise DataError(f"{folder} has no {data_set}_test.jsonl", "give a folder in the format of the hub, or a file")


def _from_hub(data_set: str) -> list[tuple[dict[str, Any], str]]:
    from datasets import load_dataset

    try:
        splits = load_dataset(HUB, data_set)
    except Exception as error:  # whatever the network or the hub does
        raise DataError(
            f"cannot fetch {data_set} of {HUB}: {(str(error) or type(error).__name__).splitlines()[0]}",
            "give a folder with -t NAME=FOLDER",
        ) from error
    for name in ("test", "validation", "dev"):
        if name in splits:
            return [(dict(row), f"{HUB}/{data_set}:{number}") for number, row in enumerate(splits[name])]
    raise DataError(f"{data_set} of {HUB} has no test rows", f"it has {', '.join(splits)}")


def prepare(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``prompt``, ``answer`` and ``choices`` of one row: in LogiGLUE's form, or a logic row (context, question,
    options, answer letter), which is brought into it. Raises ``DataError`` for any other.
    """
    if "options" in row:
        row = from_options(row, where)
    choices = [str(choice) for choice in row.get("choices") or () if str(choice).strip()]
    answer = str(row.get("answer_text") or "").strip()
    if not answer and choices and isinstance(row.get("answer_choice"), int):
        place = row["answer_choice"]
        answer = choices[place] if 0 <= place < len(choices) else ""
    if not answer:
        raise DataError(f"{where} has no answer_text", "LogiGLUE's rows have one")
    prompt = str(row.get("input") or "").strip() or _prompt(row, choices)
    if not prompt:
        raise DataError(f"{where} has neither input nor context and question", "LogiGLUE's rows have them")
    return {"prompt": prompt, "answer": answer, "choices": choices}


def _prompt(row: Mapping[str, Any], choices: Sequence[str]) -> str:
    if "premise" in row:
        context, question = row["premise"], f"Does this follow: {row.get('hypothesis', '')}"
        choices = choices or ("entailment", "not-entailment")
    else:
        context, question = row.get("context") or "", row.get("question") or ""
    parts = [f"Context: {context}" if context else "", f"Question: {question}" if question else ""]
    if choices and any(parts):
        parts.append("Options: " + " ".join(f"- {choice}" for choice in choices))
    return "\n".join(filter(None, parts))


def from_options(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row with lettered ``options`` (``B) False``) and the letter of the ``answer``, in LogiGLUE's form."""
    try:
        lettered = [str(option).partition(")") for option in row["options"]]
        letters, choices = [part[0].strip() for part in lettered], [part[2].strip() for part in lettered]
        place = letters.index(row["answer"].strip())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{where} has no answer among its options", "options are A) ..., the answer a letter") from None
    return {
        "context": row.get("context", ""),
        "question": row.get("question", ""),
        "choices": choices,
        "answer_choice": place,
        "answer_text": choices[place],
    }
