"""A forward pass of a whole model in numpy, in double precision but for its matrices: what converters' results are
compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converters.decoder import EMBEDDING, FINAL_NORM, HEAD, Array, Checkpoint
from converters.forward import State, capped, rms_norm, run_layer
from converters.runner import BLOCK, Rows
from frcli.errors import ModelError

# Rows of an embedding or a head that are in memory at once, and positions whose logits are.
_ROWS, _POSITIONS = 1 << 13, 512


def hidden_states(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    """Return the hidden states after the final norm, float32 [tokens, hidden]: Hugging Face's ``last_hidden_state``."""
    config = checkpoint.config

    def linear(modules: tuple[str, ...], inputs: State) -> State:
        narrow = inputs.astype(np.float32)
        # One matrix after the other: put together they would be in memory twice.
        parts = [narrow @ checkpoint.tensor(f"{module}.weight").T for module in modules]
        return np.concatenate(parts, axis=-1).astype(np.float64)

    state = _embedded(checkpoint, tokens)[None].astype(np.float64) * config.embedding_scale
    for layer in range(config.layers):
        state = run_layer(checkpoint, layer, state, linear)
    final: Array = rms_norm(state, checkpoint.tensor(FINAL_NORM), config.rms_eps)[0].astype(np.float32)
    return final


def _embedded(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    ids = np.asarray(tokens)
    state = np.empty((len(ids), checkpoint.config.hidden), dtype=np.float32)
    for start in np.unique(ids // _ROWS * _ROWS).tolist():
        here = ids // _ROWS * _ROWS == start
        block = checkpoint.part(EMBEDDING, start, min(start + _ROWS, checkpoint.config.vocab))
        state[here] = block[ids[here] - start]
    return state


def logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    """Return the logits for every position, float32 [tokens, vocab]."""
    return logits_of(checkpoint, hidden_states(checkpoint, tokens))


def logits_of(checkpoint: Checkpoint, hidden: Array) -> Array:
    """Return the logits, float32 [n, vocab], of hidden states after the final norm."""
    config = checkpoint.config
    found = np.empty((len(hidden), config.vocab), dtype=np.float32)
    for start in range(0, config.vocab, _ROWS):
        block = checkpoint.part(HEAD, start, min(start + _ROWS, config.vocab))
        found[:, start : start + len(block)] = capped(hidden @ block.T, config.logit_cap)
    return found


class ReferenceRunner:
    """A checkpoint, and the heads of a router as :class:`converters.trained.Trained` has them: a
    :class:`converters.runner.Runner`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        routing: Array | None = None,
        prompt: Array | None = None,
        gate: Array | None = None,
    ) -> None:
        self._checkpoint, self._heads, self._gate = checkpoint, (routing, prompt), gate
        self.vocab, self.context = checkpoint.config.vocab, checkpoint.config.context

    def blocks(self, tokens: Sequence[int]) -> Iterator[Rows]:
        """Yield the rows of a text, ``BLOCK`` at a time."""
        config = self._checkpoint.config
        if min(tokens) < 0 or max(tokens) >= config.vocab:
            raise ModelError(f"{self._checkpoint.path} has {config.vocab} tokens, and the check needs {max(tokens)}")
        hidden = hidden_states(self._checkpoint, tokens)
        heads = [None if head is None else hidden @ head.T for head in self._heads]
        if (gate := self._gate) is not None:
            half = (hidden @ gate[:, :-1].T + gate[:, -1]) / 2
            heads.append((1 + np.tanh(half)) / 2)  # the sigmoid, without overflow
        for first in range(0, len(tokens), _POSITIONS):
            rows = logits_of(self._checkpoint, hidden[first : first + _POSITIONS])
            for at in range(0, len(rows), BLOCK):
                place = slice(first + at, first + at + BLOCK)
                yield Rows(rows[at : at + BLOCK], *(None if head is None else head[place] for head in heads))

    def close(self) -> None:
        """Nothing is held."""
