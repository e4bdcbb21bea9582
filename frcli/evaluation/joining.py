"""Comparisons of some policies each, put together: what takes longer than a day can be asked in parts.

Scores compare wherever they were made, since greedy answers depend on no machine but for near-ties; speeds compare only
between runs on the same machine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from frcli.errors import DataError, UsageError
from frcli.evaluation.comparison import differences

_SAME = ("bundle", "experts", "limit", "seed", "tasks")


def join(documents: Sequence[Mapping[str, Any]], against: str = "") -> dict[str, Any]:
    """One document of all systems, in the order in which they are met; one that is in several counts as in the last.

    ``against``: the system that differences are from; the first document's if empty. Raises ``DataError`` for documents
    of other bundles or items, ``UsageError`` if ``against`` is in none.
    """
    joined = copy.deepcopy(dict(documents[0]))
    for document in documents[1:]:
        for what in _SAME:
            if document[what] != joined[what]:
                raise DataError(f"these comparisons differ in {what}", "join those of one bundle on the same items")
        joined["systems"] |= document["systems"]
        samples = {(sample["task"], sample["doc"]): sample for sample in joined["samples"]}
        for sample in document["samples"]:
            known = samples.setdefault((sample["task"], sample["doc"]), copy.deepcopy(dict(sample)))
            known |= {what: sample[what] or known[what] for what in ("prompt", "answer")}
            known["written"] = known["written"] | sample["written"]
        joined["samples"] = list(samples.values())
    joined["against"] = against or joined["against"]
    if joined["against"] not in joined["systems"]:
        raise UsageError(f"{against} is not compared", f"the policies are {', '.join(joined['systems'])}")
    joined["differences"] = differences(joined, joined["against"], joined["seed"])
    return joined
