"""Comparisons of some policies or some tasks each, put together: what takes longer than a day can be asked in parts.

Scores compare wherever they were made, since greedy answers depend on no machine but for near-ties; speeds compare only
within one run, so what is joined has none.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from frcli.errors import DataError, UsageError
from frcli.evaluation import logiglue
from frcli.evaluation.comparison import differences, summary

_SAME = ("bundle", "experts", "limit", "seed")
_HINT = "join those of one bundle on the same items"


def join(documents: Sequence[Mapping[str, Any]], against: str = "") -> dict[str, Any]:
    """One document of all systems and all tasks, in the order in which they are met; what a system did in a task counts
    as in the last document that has it. A single document is left as it is.

    ``against``: the system that differences are from; the first document's if empty. Raises ``DataError`` for documents
    of other bundles or items, and where a system misses a task that another one has; ``UsageError`` if ``against`` is
    in none.
    """
    joined = copy.deepcopy(dict(documents[0]))
    for document in documents[1:]:
        _add(joined, document)
    if len(documents) > 1:
        for system, result in joined["systems"].items():
            if missing := [task for task in joined["tasks"] if task not in result["tasks"]]:
                raise DataError(f"{system} was not asked {missing[0]}", "every policy needs every task")
            cells = {task: result["tasks"][task] for task in joined["tasks"]}
            joined["systems"][system] = summary(cells) | {"tokens_per_second": None}
        joined["groups"] = logiglue.groups(joined["tasks"])
    joined["against"] = against or joined["against"]
    if joined["against"] not in joined["systems"]:
        raise UsageError(f"{against} is not compared", f"the policies are {', '.join(joined['systems'])}")
    joined["differences"] = differences(joined, joined["against"], joined["seed"])
    return joined


def _add(joined: dict[str, Any], document: Mapping[str, Any]) -> None:
    """Add the document's tasks, systems and samples to those that were joined so far."""
    for what in _SAME:
        if document[what] != joined[what]:
            raise DataError(f"these comparisons differ in {what}", _HINT)
    for task, asked in document["tasks"].items():
        if joined["tasks"].setdefault(task, asked) != asked:
            raise DataError(f"these comparisons differ in the items of {task}", _HINT)
    for system, result in copy.deepcopy(dict(document["systems"])).items():
        joined["systems"].setdefault(system, {"tasks": {}})["tasks"] |= result["tasks"]
    samples = {(sample["task"], sample["doc"]): sample for sample in joined["samples"]}
    for sample in document["samples"]:
        known = samples.setdefault((sample["task"], sample["doc"]), copy.deepcopy(dict(sample)))
        known |= {what: sample[what] or known[what] for what in ("prompt", "answer")}
        known["written"] = known["written"] | sample["written"]
    joined["samples"] = list(samples.values())
