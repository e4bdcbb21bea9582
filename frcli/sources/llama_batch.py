"""The batch that one call of ``llama_decode`` reads: tokens of any number of sequences, filled from Python at once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class LlamaBatch:
    """A ``llama_batch`` with room for ``size`` tokens, each of one sequence; its arrays are numpy's.

    ``filled`` is the number of tokens in it, ``rows`` how many of them give a row, and ``ends`` the lengths that their
    sequences have after it.
    """

    def __init__(self, lib: Any, size: int) -> None:
        self.size = size
        tokens, positions, seqs = (np.zeros(size, np.int32) for _ in range(3))
        wanted = np.zeros(size, np.int8)
        self._arrays: tuple[NDArray[Any], ...] = tokens, positions, seqs, wanted
        counts = np.ones(size, np.int32)
        addresses = seqs.ctypes.data + 4 * np.arange(size, dtype=np.uintp)  # of the one sequence of each token
        self._kept = counts, addresses  # C has only pointers to them
        arrays: dict[str, NDArray[Any]] = {
            "token": tokens,
            "pos": positions,
            "n_seq_id": counts,
            "seq_id": addresses,
            "logits": wanted,
        }
        kinds = dict(lib.llama_batch._fields_)
        pointers = {name: ctypes.cast(array.ctypes.data, kinds[name]) for name, array in arrays.items()}
        self._struct = lib.llama_batch(n_tokens=0, embd=None, **pointers)
        self.clear()

    def clear(self) -> None:
        """Begin an empty batch."""
        self.filled = self.rows = 0
        self.ends: dict[int, int] = {}
        self._takers: list[tuple[int, int]] = []  # feeds that get rows, with how many, in the order of the tokens
        # Lists until all is there: one assignment of sixteen tokens takes as long as one of a single token.
        self._lists: tuple[list[int], list[int], list[int], list[bool]] = ([], [], [], [])

    def add(self, feed: int, seq: int, tokens: Sequence[int], start: int, rows: int) -> None:
        """Put in ``tokens`` that follow the first ``start`` of their sequence; the last ``rows`` of them give rows.

        The caller sees to it that they fit.
        """
        n = len(tokens)
        end = self.ends[seq] = start + n
        into, positions, seqs, wanted = self._lists
        into += tokens
        positions += range(start, end)
        seqs += [seq] * n
        wanted += [False] * (n - rows) + [True] * rows
        self.filled += n
        if rows:
            self._takers.append((feed, rows))
            self.rows += rows

    def split(self, block: NDArray[np.float32]) -> list[tuple[int, NDArray[np.float32]]]:
        """Views of ``block`` float32 [rows, width], which the batch gave: each feed that gets rows, and its rows."""
        found, at = [], 0
        for feed, rows in self._takers:
            found.append((feed, block[at : at + rows]))
            at += rows
        return found

    def struct(self) -> Any:
        """The C struct with all that was added; it holds until the batch is cleared."""
        n = self._struct.n_tokens = self.filled
        for array, values in zip(self._arrays, self._lists, strict=True):
            array[:n] = values
        return self._struct
