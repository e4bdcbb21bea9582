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
from frcli.sources.source import Feed, Logits, LogitSource, Rows


@dataclass(slots=True)
class Sums:
    """Summed NLL (nats) of systems by name, over ``tokens`` answer tokens; ``chosen`` counts the router's choices by
    expert, and ``accepted``, for systems that a router drafts for, the tokens at which both find the same one
    likeliest. ``each`` has, for every example, its tokens and its NLL by system, for paired comparisons.
    """

    nll: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    each: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, other: Sums) -> None:
        """Add another's counts to these."""
        for name, value in other.nll.items():
            self.nll[name] = self.nll.get(name, 0.0) + value
        for mine, others in ((self.chosen, other.chosen), (self.accepted, other.accepted)):
            for name, count in others.items():
                mine[name] = mine.get(name, 0) + count
        self.tokens += other.tokens
        self.each += other.each

    @property
    def examples(self) -> int:
        """How many examples were added."""
        return len(self.each)

    def mean(self, system: str) -> float:
        """Mean NLL in nats per answer token."""
        return self.nll[system] / self.tokens


def fused_name(gamma: float, router: str = "") -> str:
    """How ``Sums`` name the fused system with this gamma, of the router that goes by this name."""
    return f"{router} fused {gamma}".lstrip()


@dataclass(frozen=True, slots=True)
class Systems:
    """What is scored: each expert by its name, the router, FusionRoute for each of ``gammas``, ``policies`` by what the
    user calls them, and by their names ``rivals``: other routers of the same experts, each alone and fused.

    Sources must give ``block`` rows a call and hold sequence 0, which is overwritten. ``others`` are the sources that
    are no experts and that a policy needs (``base``, ``large``).
    """

    experts: Mapping[str, LogitSource]
    router: LogitSource | None
    width: int
    gammas: Sequence[float] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    others: Mapping[str, LogitSource] = field(default_factory=dict)
    rivals: Mapping[str, LogitSource] = field(default_factory=dict)
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
        rivals = [name for rival in self.rivals for name in (rival, *(fused_name(g, rival) for g in self.gammas))]
        return [*self.experts, *fused, *self.policies, *rivals]


def score(example: Encoded, systems: Systems) -> Sums:
    """One example's ``Sums``.

    FusionRoute's row is the mean ``(z_i + gamma z_router) / (1 + gamma)`` with i the router's choice.
    """
    experts, router, width = systems.experts, systems.router, systems.width
    named = (*experts.values(), *systems.others.values(), *systems.rivals.values(), router)
    sources = {id(source): source for source in named if source is not None}.values()
    for source in sources:
        source.rewind(0, 0)
    policies = _for_prompt(example, systems)  # whoever is asked has read the prompt for it
    for source in sources:
        if unread := example.prompt[source.length(0) : -1]:
            source.extend([Feed(0, unread, 0)])
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
            choice = _score_router("", routed, rows, targets, systems, sums)
            weights, rows[ROUTER] = routed.weights, routed.logits[:, :width]
            gates = gates if routed.gate is None else routed.gate.tolist()
            for c in choice:
                sums.chosen[names[c]] = sums.chosen.get(names[c], 0) + 1
        for rival, source in systems.rivals.items():
            _score_router(rival, source.extend(feed)[0], rows, targets, systems, sums)
        for name, source in systems.others.items():
            known = next((expert for expert, other in experts.items() if other is source), None)  # the base, as a rule
            rows[name] = rows[known] if known else source.extend(feed)[0].logits[:, :width]
        for name, policy in policies.items():
            mixed = np.stack([_fused(policy, rows, weights, gates, i) for i in range(len(tokens))])
            sums.nll[name] += float(token_nll(mixed, targets).sum())
            if policy.drafter == ROUTER:
                _count_accepted(sums, name, rows[ROUTER], mixed)
    sums.tokens = len(example.answer)
    sums.each.append((sums.tokens, dict(sums.nll)))
    return sums


def _score_router(
    name: str, routed: Rows, experts: Mapping[str, Logits], targets: Sequence[int], systems: Systems, sums: Sums
) -> Sequence[int]:
    """Add a router's NLL, alone and fused for each gamma; return the places of the experts that it chooses."""
    if routed.weights is None:
        raise ModelError("a router gives no routing weights", "make it again with frcli convert router")
    names, own = list(systems.experts), routed.logits[:, : systems.width]
    choice: list[int] = routed.weights.argmax(axis=1).tolist()
    sums.nll[name or ROUTER] += float(token_nll(own, targets).sum())
    for gamma in systems.gammas:
        plain, system = FusionRoute(tuple(names), gamma), fused_name(gamma, name)
        mixed = np.empty_like(own)
        for i, c in enumerate(choice):
            policy = plain if routed.gate is None else plain.gated(float(routed.gate[i]))
            mixed[i] = policy.fuse({"chosen": experts[names[c]][i], ROUTER: own[i]})
        sums.nll[system] += float(token_nll(mixed, targets).sum())
        _count_accepted(sums, system, own, mixed)
    return choice


def _count_accepted(sums: Sums, system: str, drafter: Logits, fused: Logits) -> None:
    same = int((drafter.argmax(axis=1) == fused.argmax(axis=1)).sum())
    sums.accepted[system] = sums.accepted.get(system, 0) + same


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
