"""What a router is trained for: losses on the gold tokens of answers, and on pairs of answers. Only torch here.

Shapes: n answer tokens, v tokens in the vocabulary, e experts, k kept tokens of an expert's row
(:mod:`frcli.training.known`). Losses are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kept:
    """What the experts say of a batch's tokens.

    ``ids`` int64 and ``logp`` [n, e, k], ``weight`` [k]; ``gold`` [n, e] is the log-prob of the right token and
    ``disagree`` bool [n] whether the experts' likeliest tokens are not all the same.
    """

    ids: Any
    logp: Any
    weight: Any
    gold: Any
    disagree: Any


def routing_loss(weights: Any, kept: Kept) -> Any:
    """``sum_{t in S} sum_i softmax(w_t)[i] NLL_i(t)``, a scalar: FusionRoute's L_expert (arXiv 2601.05106, section 3),
    S the tokens where the experts disagree, ``weights`` [n, e] the head's raw output.

    The paper has ``-log pi_agg`` with ``log pi_agg = sum_i w_i log pi_i`` and leaves open how w is bounded; raw weights
    would make the loss unbounded below.
    """
    return ((weights.softmax(-1) * -kept.gold).sum(-1) * kept.disagree).sum()


def fused_nll(logits: Any, target: Any, kept: Kept, gamma: Any) -> Any:
    """The NLL of the right token under the fused distribution with each expert, [n, e].

    ``fused = softmax((log pi_i + gamma log pi_router) / (1 + gamma))``, normalised over the vocabulary, which is what
    decoding samples from. ``logits`` [n, v] are the router's, ``gamma`` is a number or [n]. The sum over the vocabulary
    counts the tokens that are kept of the expert's row by their weights.
    """
    import torch

    router = logits.log_softmax(-1)
    n, e, k = kept.ids.shape
    exponent = torch.as_tensor(gamma, dtype=router.dtype).expand(n)[:, None]
    at_kept = router.gather(1, kept.ids.reshape(n, e * k)).reshape(n, e, k)
    scores = (kept.logp + exponent[..., None] * at_kept) / (1 + exponent[..., None]) + kept.weight.log()
    right = (kept.gold + exponent * router.gather(1, target[:, None])) / (1 + exponent)
    # The right token is known exactly and counts once, whether it was kept or stands for others: without it in the sum
    # the loss would have no floor, and with its stratum's weight too high a one.
    others = scores.masked_fill(kept.ids == target[:, None, None], float("-inf")).logsumexp(-1)
    return torch.logaddexp(others, right) - right


def agreement(logits: Any, kept: Kept, chosen: Any, gamma: Any) -> Any:
    """The share of tokens at which the router's likeliest token is that of the fused row with the ``chosen`` expert,
    int64 [n, 1]: the drafts that greedy decoding would accept.
    """
    import torch

    n, _, k = kept.ids.shape
    pick = chosen[..., None].expand(n, 1, k)
    ids, logp = kept.ids.gather(1, pick)[:, 0], kept.logp.gather(1, pick)[:, 0]
    exponent = torch.as_tensor(gamma, dtype=logits.dtype).expand(n)[:, None]
    fused = logp + exponent * logits.log_softmax(-1).gather(1, ids)
    best = ids.gather(1, fused.argmax(-1, keepdim=True))[:, 0]
    return (best == logits.argmax(-1)).float().mean()


def distill_loss(logits: Any, ids: Any, logp: Any, weight: Any) -> Any:
    """``sum_t KL(teacher || router)``, a scalar, over what is kept of the teacher's rows: ``ids`` int64 and ``logp``
    [n, k], ``weight`` [k]. What the kept tokens do not hold of the teacher's probability is spread over them.
    """
    teacher = (logp + weight.log()).log_softmax(-1)
    router = logits.log_softmax(-1).gather(1, ids) + weight.log()
    return (teacher.exp() * (teacher - router)).sum()


def cdpo_loss(chosen: Any, rejected: Any, reference: Any, offset: Any, beta: float) -> Any:
    """``-sum log sigmoid(beta ((chosen - rejected) - reference) + offset)``, a scalar over pairs: FusionRoute's CDPO
    (arXiv 2601.05106, equation 3).

    ``chosen`` and ``rejected`` [pairs] are the router's summed log-probs of the right and the wrong answer,
    ``reference`` [pairs] the difference of the two by the router before this phase, and ``offset`` [pairs] the same
    difference by the routed experts times beta: B, through which no gradient flows. The normaliser of the fused
    distribution is left out, as in the paper.
    """
    margin = beta * (chosen - rejected - reference.detach()) + offset.detach()
    return -_logsigmoid(margin).sum()


def _logsigmoid(value: Any) -> Any:
    import torch

    return torch.nn.functional.logsigmoid(value)
