"""Policies by name: frcli's own, and those that other packages add.

A policy is spelt ``NAME``, ``NAME:EXPERT,EXPERT`` or with settings of its own behind, ``NAME:EXPERT,key=value``. A
package adds one under the entry point group ``frcli.policies``: a function that takes a :class:`Request` and returns a
:class:`~frcli.fusion.policy.Policy`, or raises ``UsageError``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from frcli.errors import UsageError
from frcli.fusion.mixture import PackLLM, UniformSum, UnionOfTopK
from frcli.fusion.policy import BASE, LARGE, ROUTER, Policy
from frcli.fusion.route import FusionRoute, OneExpert, PromptRouter
from frcli.fusion.steering import Contrast, DynamicLogitFusion, ProxyTuning

GROUP = "frcli.policies"


@dataclass(frozen=True)
class Request:
    """What a policy is asked for: ``named`` experts and ``settings`` as the user spelt them behind ``name``, and what
    the bundle has: ``experts`` in the order of the router's weights, those of them that are ``trained`` (not the base
    itself), and ``roles`` (``router``, ``large``).
    """

    name: str
    experts: tuple[str, ...]
    trained: tuple[str, ...]
    roles: Set[str]
    named: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    gamma: float = 1.0
    sharp: bool = False

    def need(self, role: str) -> None:
        """Raise ``UsageError`` unless the bundle has the role."""
        if role not in self.roles:
            what = "router" if role == ROUTER else f"{role} model"
            raise UsageError(
                f"{self.name} needs a {what}, and this bundle has none",
                f"add [{role}] to its manifest or choose another --policy",
            )

    def one(self) -> str:
        """The only expert that was named."""
        if len(self.named) != 1:
            raise UsageError(f"{self.name} takes one expert", f"write {self.name}:{self.experts[-1]}, for example")
        return self.named[0]

    def steering(self, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """The experts that were named, or ``otherwise``, none of which is the base itself."""
        for name in self.named:
            if name not in self.trained:
                raise UsageError(f"{self.name} cannot steer by {name}: {name} is the base itself", "name other experts")
        if not self.some(otherwise):
            raise UsageError(f"{self.name} needs an expert that is not the base itself", "choose another --policy")
        return self.some(otherwise)

    def some(self, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """The experts that were named, or ``otherwise``."""
        return self.named or otherwise

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A setting between ``low`` and ``high``, both allowed."""
        text = self.settings.get(key)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # NaN fails the comparison too
            raise UsageError(f"{key} is {text!r} in the policy {self.name}", f"it is a number from {low:g} to {high:g}")
        return value

    def accept(self, *keys: str, experts: bool = True) -> None:
        """Raise ``UsageError`` for a setting of another name, and for named experts where there can be none."""
        for key in self.settings:
            if key not in keys:
                known = f"its settings are {', '.join(keys)}" if keys else "it has none"
                raise UsageError(f"the policy {self.name} has no setting {key!r}", known)
        if self.named and not experts:
            raise UsageError(f"the policy {self.name} does not take experts", f"write {self.name} alone")


Maker = Callable[[Request], Policy]


def _fusionroute(request: Request) -> Policy:
    request.accept("gamma", "prior", experts=False)
    request.need(ROUTER)
    gamma, prior = request.number("gamma", request.gamma, 0, 16), request.number("prior", 0, 0, 16)
    return FusionRoute(request.experts, gamma, request.sharp, prior)


def _prompt_router(request: Request) -> Policy:
    request.accept(experts=False)
    request.need(ROUTER)
    return PromptRouter(request.experts)


def _expert(request: Request) -> Policy:
    request.accept()
    return OneExpert(request.one())


def _sum(request: Request) -> Policy:
    request.accept()
    return UniformSum(request.some(request.experts), request.sharp)


def _packllm(request: Request) -> Policy:
    request.accept("tau")
    return PackLLM(request.some(request.experts), request.number("tau", 1.0, 1e-3, 1e3))


def _topk_union(request: Request) -> Policy:
    request.accept("k")
    return UnionOfTopK(request.some(request.experts), int(request.number("k", 10, 1, 1e6)))


def _proxy(request: Request) -> Policy:
    request.accept("alpha")
    request.need(LARGE)
    (expert,) = request.steering((request.one(),))
    return ProxyTuning(expert, request.number("alpha", 1.0, -16, 16))


def _dlf(request: Request) -> Policy:
    request.accept()
    request.need(LARGE)
    return DynamicLogitFusion(request.steering(request.trained))


def _contrast(request: Request) -> Policy:
    request.accept("alpha", "weaker")
    weaker = request.settings.get("weaker", BASE)
    if weaker != BASE:
        _check_expert(weaker, request.experts)
    if request.one() == weaker or (weaker == BASE and request.one() not in request.trained):
        raise UsageError(f"contrast:{request.one()} contrasts a model with itself", "name another expert")
    return Contrast(request.one(), weaker, request.number("alpha", 0.1, 1e-6, 1.0))


OWN: Mapping[str, Maker] = {
    "fusionroute": _fusionroute,
    "prompt-router": _prompt_router,
    "expert": _expert,
    "sum": _sum,
    "packllm": _packllm,
    "topk-union": _topk_union,
    "dlf": _dlf,
    "proxy": _proxy,
    "contrast": _contrast,
}


def make_policy(
    text: str,
    experts: Sequence[str],
    *,
    gamma: float,
    sharp: bool,
    roles: Set[str] = frozenset(),
    trained: Sequence[str] | None = None,
) -> Policy:
    """The policy that the user spells ``text``, for a bundle with these experts (``trained``: not the base itself; all
    if not given) and roles.

    Raises ``UsageError`` for a name, an expert, a setting or a gamma that does not exist, and for a role that the
    bundle lacks.
    """
    if not 0 <= gamma <= 16:  # NaN fails the comparison too
        raise UsageError(
            f"gamma is {gamma}", "it is a number from 0 (the expert alone) to 1 (as in the paper), 16 at the most"
        )
    name, named, settings = _parse(text)
    for expert in filter(None, named):
        _check_expert(expert, experts)
    maker = OWN.get(name) or _added(name) if all(named) else None
    if maker is None:
        names = [*OWN, *(point.name for point in entry_points(group=GROUP))]
        raise UsageError(f"there is no policy {text!r}", f"the policies are {', '.join(names)}")
    own = tuple(experts)
    if len(set(named)) < len(named):
        raise UsageError(f"the policy {text} names an expert twice", "name each once")
    request = Request(name, own, own if trained is None else tuple(trained), roles, named, settings, gamma, sharp)
    return maker(request)


def _check_expert(name: str, experts: Sequence[str]) -> None:
    if name not in experts:
        raise UsageError(f"there is no expert {name!r}", f"the experts are {', '.join(experts)}")


def _parse(text: str) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Name, experts and settings of ``NAME[:EXPERT,...][,key=value,...]``."""
    head, *parts = text.replace(":", ",", 1).split(",")
    experts = tuple(part for part in parts if "=" not in part)
    return head, experts, dict(part.split("=", 1) for part in parts if "=" in part)


def _added(name: str) -> Maker | None:
    found = entry_points(group=GROUP, name=name)
    if not found:
        return None
    try:
        maker: Maker = next(iter(found)).load()
    except Exception as error:  # whatever another package does when it is imported
        raise UsageError(f"the policy {name!r} cannot be loaded: {error}", "ask those who made it") from error
    return maker
