"""Mean negative log-likelihood per answer token, of every expert alone and of the fused system, on the same answers.

Each example's prompt and right answer are read once by the router and by every expert (teacher forcing); everything
else is arithmetic on their rows of logits, so a whole grid of gammas costs no more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from frcli.errors import ModelError
from frcli.examples import Encoded
from frcli.fusion.policy import ROUTER, FusionRoute
from frcli.sources.source import Feed, Logits, LogitSource


def log_normalizer(rows: Logits) -> Logits:
    """``log sum_v exp(z_v)`` of each row: float32 [rows] from float32 [rows, width]."""
    top = rows.max(axis=1, keepdims=True)
    total: Logits = np.log(np.exp(rows - top).sum(axis=1)) + top[:, 0]
    return total


def token_nll(rows: Logits, tokens: Sequence[int]) -> Logits:
    """NLL in nats of ``tokens[i]`` under ``softmax(rows[i])``: float32 [rows]."""
    picked: Logits = rows[np.arange(len(tokens)), np.asarray(tokens)]
    return log_normalizer(rows) - picked


@dataclass(slots=True)
class Sums:
    """Summed NLL (nats) of systems by name, over ``tokens`` answer tokens; ``chosen`` counts the router's choices by
    expert.
    """

    nll: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    examples: int = 0

    def add(self, other: Sums) -> None:
        """Add another's counts to these."""
        for name, value in other.nll.items():
            self.nll[name] = self.nll.get(name, 0.0) + value
        for name, count in other.chosen.items():
            self.chosen[name] = self.chosen.get(name, 0) + count
        self.tokens += other.tokens
        self.examples += other.examples

    def mean(self, system: str) -> float:
        """Mean NLL in nats per answer token."""
        return self.nll[system] / self.tokens


def fused_name(gamma: float) -> str:
    """How ``Sums`` name the fused system with this gamma."""
    return f"fused {gamma}"


def score(
    example: Encoded,
    experts: Mapping[str, LogitSource],
    router: LogitSource | None,
    gammas: Sequence[float],
    width: int,
    block: int = 64,
) -> Sums:
    """One example's ``Sums``: each expert by its name, ``router`` alone, and the fused system for each gamma.

    The fused row is FusionRoute's mean ``(z_i + gamma z_router) / (1 + gamma)`` with i the router's choice. Sources
    must give ``block`` rows a call and hold sequence 0, which is overwritten.
    """
    sources = [*experts.values(), *([router] if router is not None else [])]
    for source in sources:
        source.rewind(0, 0)
        source.extend([Feed(0, example.prompt[:-1], 0)])
    names = list(experts)
    sums = Sums(dict.fromkeys([*names, *(["router", *map(fused_name, gammas)] if router is not None else [])], 0.0))
    inputs = [example.prompt[-1], *example.answer[:-1]]
    for start in range(0, len(example.answer), block):
        tokens, targets = inputs[start : start + block], example.answer[start : start + block]
        feed = [Feed(0, tokens, len(tokens))]
        rows = {name: source.extend(feed)[0].logits[:, :width] for name, source in experts.items()}
        for name in names:
            sums.nll[name] += float(token_nll(rows[name], targets).sum())
        if router is not None:
            routed = router.extend(feed)[0]
            own = routed.logits[:, :width]
            if routed.weights is None:
                raise ModelError("the router gives no routing weights", "make it again with frcli convert router")
            choice = routed.weights.argmax(axis=1)
            picked = np.stack([rows[names[c]][i] for i, c in enumerate(choice)])
            sums.nll["router"] += float(token_nll(own, targets).sum())
            for gamma in gammas:
                mixed = FusionRoute(tuple(names), gamma).fuse({"chosen": picked, ROUTER: own})
                sums.nll[fused_name(gamma)] += float(token_nll(mixed, targets).sum())
            for c in choice:
                sums.chosen[names[c]] = sums.chosen.get(names[c], 0) + 1
    sums.tokens, sums.examples = len(example.answer), 1
    return sums


def score_all(
    examples: Sequence[Encoded],
    experts: Mapping[str, LogitSource],
    router: LogitSource | None,
    gammas: Sequence[float],
    width: int,
    report: Callable[[int], None] = lambda done: None,
) -> Sums:
    """The ``Sums`` over all examples; ``report(done)`` after each."""
    total = Sums()
    for done, sums in enumerate(_each(examples, experts, router, gammas, width), 1):
        total.add(sums)
        report(done)
    return total


def _each(
    examples: Sequence[Encoded],
    experts: Mapping[str, LogitSource],
    router: LogitSource | None,
    gammas: Sequence[float],
    width: int,
) -> Iterator[Sums]:
    for example in examples:
        yield score(example, experts, router, gammas, width)
