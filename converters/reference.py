"""A forward pass of a whole model in numpy, in double precision but for its matrices: what converters' results are
compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converters.decoder import EMBEDDING, FINAL_NORM, HEAD, Array, Checkpoint
from converters.forward import State, capped, rms_norm, run_layer
from converters.runner import BLOCK, Rows
from converters.weights import stacked
from frcli.errors import ModelError


def hidden_states(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    """Return the hidden states after the final norm, float32 [tokens, hidden]: Hugging Face's ``last_hidden_state``."""
    config = checkpoint.config

    def linear(modules: tuple[str, ...], inputs: State) -> State:
        return (inputs.astype(np.float32) @ stacked(checkpoint, modules).T).astype(np.float64)

    state = checkpoint.tensor(EMBEDDING)[np.asarray(tokens)][None].astype(np.float64) * config.embedding_scale
    for layer in range(config.layers):
        state = run_layer(checkpoint, layer, state, linear)
    final: Array = rms_norm(state, checkpoint.tensor(FINAL_NORM), config.rms_eps)[0].astype(np.float32)
    return final


def logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> Array:
    """Return the logits for every position, float32 [tokens, vocab]."""
    return logits_of(checkpoint, hidden_states(checkpoint, tokens))


def logits_of(checkpoint: Checkpoint, hidden: Array) -> Array:
    """Return the logits, float32 [n, vocab], of hidden states after the final norm."""
    return capped(hidden @ checkpoint.tensor(HEAD).T, checkpoint.config.logit_cap)


class ReferenceRunner:
    """A checkpoint, and the routing head [experts, hidden] of a router: a :class:`converters.runner.Runner`."""

    def __init__(self, checkpoint: Checkpoint, routing: Array | None = None) -> None:
        self._checkpoint, self._routing = checkpoint, routing
        self.vocab, self.context = checkpoint.config.vocab, checkpoint.config.context

    def blocks(self, tokens: Sequence[int]) -> Iterator[Rows]:
        """Yield the rows of a text, ``BLOCK`` at a time."""
        config = self._checkpoint.config
        if min(tokens) < 0 or max(tokens) >= config.vocab:
            raise ModelError(f"{self._checkpoint.path} has {config.vocab} tokens, and the check needs {max(tokens)}")
        hidden = hidden_states(self._checkpoint, tokens)
        head = self._checkpoint.tensor(HEAD).T
        for start in range(0, len(tokens), BLOCK):
            part = hidden[start : start + BLOCK]
            routing = None if self._routing is None else part @ self._routing.T
            yield Rows(capped(part @ head, config.logit_cap), routing)

    def close(self) -> None:
        """Nothing is held."""
