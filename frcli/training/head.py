"""The routing heads, fitted to their end on a router whose language model is trained.

Trained jointly, the head starts from nothing and sees as many steps as the language model, which starts from a good
one; and domains with short answers hardly count in a sum over tokens. Given the hidden states, what is left is a small
smooth problem in the head alone, which L-BFGS solves in seconds. The head that chooses an expert for a whole answer is
fitted in the same way, to the mean NLL of each answer at the last token of its prompt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def fit_head(
    weight: NDArray[np.float32],
    hidden: NDArray[np.float32],
    nll: NDArray[np.float32],
    importance: NDArray[np.float32],
    *,
    decay: float = 1e-3,
    iterations: int = 60,
) -> NDArray[np.float32]:
    """The head, float32 [experts, hidden], that minimises the routing loss, starting from ``weight``.

    The loss is FusionRoute's ``L_expert``: ``sum_t importance_t sum_i softmax(W h_t)[i] NLL_i(t)``, with importances
    that are made to sum to 1, plus ``decay * |W|^2``. ``hidden`` is float32 [tokens, hidden] and ``nll`` float32
    [tokens, experts], of tokens where the experts disagree, ``importance`` [tokens]. A head is returned as it came when
    there are none.
    """
    import torch

    if not len(hidden):
        return weight
    states, costs = torch.from_numpy(hidden), torch.from_numpy(nll)
    share = torch.from_numpy(importance / importance.sum())
    head = torch.from_numpy(weight.copy()).requires_grad_(True)
    optimizer = torch.optim.LBFGS([head], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        routed = ((states @ head.T).softmax(-1) * costs).sum(-1)
        loss = (routed * share).sum() + decay * head.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted: NDArray[np.float32] = head.detach().numpy()
    return fitted
