"""Mean negative log-likelihood per answer token, of every expert alone and of policies, on the same answers.

Each example's prompt and right answer are read once by the router and by every expert (teacher forcing); everything
else is arithmetic on their rows of logits, so a whole grid of gammas, or every policy, costs no more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from frcli.decode.evidence import PromptEvidence
from frcli.decode.reading import Reader
from frcli.decode.sampler import Sampler, Sampling
from frcli.decode.stopwatch import Stopwatch
from frcli.decode.window import Continuation
from frcli.errors import ModelError
from frcli.examples import Encoded
from frcli.fusion.likelihood import token_nll
from frcli.fusion.policy import ROUTER, Policy
from frcli.fusion.route import FusionRoute
from frcli.sources.source import Feed, Logits, LogitSource


@dataclass(slots=True)
class Sums:
    """Summed NLL (nats) of systems by name, over ``tokens`` answer tokens; ``chosen`` counts the router's choices by
    expert. ``each`` has, for every example, its tokens and its NLL by system, for paired comparisons.
    """

    nll: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    each: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, other: Sums) -> None:
        """Add another's counts to these."""
        for name, value in other.nll.items():
            self.nll[name] = self.nll.get(name, 0.0) + value
        for name, count in other.chosen.items():
            self.chosen[name] = self.chosen.get(name, 0) + count
        self.tokens += other.tokens
        self.each += other.each

    @property
    def examples(self) -> int:
        """How many examples were added."""
        return len(self.each)

    def mean(self, system: str) -> float:
        """Mean NLL in nats per answer token."""
        return self.nll[system] / self.tokens


def fused_name(gamma: float) -> str:
    """How ``Sums`` name the fused system with this gamma."""
    return f"fused {gamma}"


@dataclass(frozen=True, slots=True)
class Systems:
    """What is scored: each expert by its name, the router, FusionRoute for each of ``gammas``, and ``policies`` by what
    the user calls them.

    Sources must give ``block`` rows a call and hold sequence 0, which is overwritten. ``others`` are the sources that
    are no experts and that a policy needs (``base``, ``large``).
    """

    experts: Mapping[str, LogitSource]
    router: LogitSource | None
    width: int
    gammas: Sequence[float] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    others: Mapping[str, LogitSource] = field(default_factory=dict)
    block: int = 64

    def source(self, name: str) -> LogitSource:
        """The source that a policy calls ``name``."""
        if name == ROUTER:
            assert self.router is not None
            return self.router
        return self.experts[name] if name in self.experts else self.others[name]

    @property
    def names(self) -> Sequence[str]:
        """What is scored, in the order of the results."""
        fused = ["router", *map(fused_name, self.gammas)] if self.router is not None else []
        return [*self.experts, *fused, *self.policies]


def score(example: Encoded, systems: Systems) -> Sums:
    """One example's ``Sums``.

    FusionRoute's row is the mean ``(z_i + gamma z_router) / (1 + gamma)`` with i the router's choice.
    """
    experts, router, width = systems.experts, systems.router, systems.width
    for source in {id(source): source for source in (*experts.values(), *systems.others.values(), router)}.values():
        if source is not None:
            source.rewind(0, 0)
            source.extend([Feed(0, example.prompt[:-1], 0)])
    policies = _for_prompt(example, systems)
    names = list(experts)
    sums = Sums(dict.fromkeys(systems.names, 0.0))
    inputs = [example.prompt[-1], *example.answer[:-1]]
    for start in range(0, len(example.answer), systems.block):
        tokens = inputs[start : start + systems.block]
        targets = example.answer[start : start + systems.block]
        feed = [Feed(0, tokens, len(tokens))]
        rows = {name: source.extend(feed)[0].logits[:, :width] for name, source in experts.items()}
        for name in names:
            sums.nll[name] += float(token_nll(rows[name], targets).sum())
        weights, gates = None, [1.0] * len(tokens)
        if router is not None:
            routed = router.extend(feed)[0]
            weights, rows[ROUTER] = routed.weights, routed.logits[:, :width]
            if weights is None:
                raise ModelError("the router gives no routing weights", "make it again with frcli convert router")
            choice = weights.argmax(axis=1)
            picked = np.stack([rows[names[c]][i] for i, c in enumerate(choice)])
            sums.nll["router"] += float(token_nll(rows[ROUTER], targets).sum())
            gates = gates if routed.gate is None else routed.gate.tolist()
            for gamma in systems.gammas:
                plain = FusionRoute(tuple(names), gamma)
                mixed = np.stack(
                    [
                        plain.gated(gate).fuse({"chosen": picked[i], ROUTER: rows[ROUTER][i]})
                        for i, gate in enumerate(gates)
                    ]
                )
                sums.nll[fused_name(gamma)] += float(token_nll(mixed, targets).sum())
            for c in choice:
                sums.chosen[names[c]] = sums.chosen.get(names[c], 0) + 1
        for name, source in systems.others.items():
            known = next((expert for expert, other in experts.items() if other is source), None)  # the base, as a rule
            rows[name] = rows[known] if known else source.extend(feed)[0].logits[:, :width]
        for name, policy in policies.items():
            mixed = np.stack([_fused(policy, rows, weights, gates, i) for i in range(len(tokens))])
            sums.nll[name] += float(token_nll(mixed, targets).sum())
    sums.tokens = len(example.answer)
    sums.each.append((sums.tokens, dict(sums.nll)))
    return sums


def _for_prompt(example: Encoded, systems: Systems) -> Mapping[str, Policy]:
    """The policies for the example's prompt, which may read it again."""
    if not systems.policies:
        return {}
    # Whole distributions are scored, so a rule that only keeps the largest logit must not be used: temperature 1.
    with Sampler(Sampling(temperature=1), systems.width) as sampler:
        continuation = Continuation(0, list(example.prompt), sampler)
        reader = Reader(Stopwatch(), lambda: False, systems.block)
        evidence = PromptEvidence(continuation, systems.source, systems.width, reader)
        return {name: policy.for_prompt(evidence) for name, policy in systems.policies.items()}


def _fused(
    policy: Policy, rows: Mapping[str, Logits], weights: Logits | None, gates: Sequence[float], at: int
) -> Logits:
    routed = weights[at] if weights is not None and policy.drafter == ROUTER else None
    names = policy.choose(routed)
    if policy.drafter is not None:
        names = (*names, policy.drafter)
    return policy.gated(gates[at]).fuse({name: rows[name][at] for name in names})


def score_all(examples: Sequence[Encoded], systems: Systems, report: Callable[[int], None] = lambda done: None) -> Sums:
    """The ``Sums`` over all examples; ``report(done)`` after each."""
    total = Sums()
    for done, example in enumerate(examples, 1):
        total.add(score(example, systems))
        report(done)
    return total
