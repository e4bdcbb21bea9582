"""A forward pass of a whole model in numpy, in double precision but for its matrices: what converters' results are
compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.decoder import EMBEDDING, FINAL_NORM, HEAD, Array, Checkpoint
from converters.forward import State, capped, rms_norm, run_layer
from converters.weights import stacked


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
