"""How probable tokens are under rows of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frcli.sources.source import Logits


def log_normalizer(rows: Logits) -> Logits:
    """``log sum_v exp(z_v)`` of each row: float32 [rows] from float32 [rows, width]."""
    top = rows.max(axis=1, keepdims=True)
    total: Logits = np.log(np.exp(rows - top).sum(axis=1)) + top[:, 0]
    return total


def token_nll(rows: Logits, tokens: Sequence[int]) -> Logits:
    """NLL in nats of ``tokens[i]`` under ``softmax(rows[i])``: float32 [rows]."""
    picked: Logits = rows[np.arange(len(tokens)), np.asarray(tokens)]
    return log_normalizer(rows) - picked
