"""Policies by name: settings, roles that are missing, and policies of other packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from frcli.errors import UsageError
from frcli.fusion.mixture import PackLLM, UniformSum, UnionOfTopK
from frcli.fusion.policy import Policy
from frcli.fusion.registry import make_policy
from frcli.fusion.route import FusionRoute
from frcli.fusion.steering import Contrast, DynamicLogitFusion, ProxyTuning

EXPERTS = ("general", "math", "code")


def made(text: str, roles: tuple[str, ...] = ("router", "large")) -> Policy:
    return make_policy(text, EXPERTS, gamma=0.5, sharp=False, roles=set(roles), trained=EXPERTS[1:])


def test_experts_and_settings_stand_behind_the_name() -> None:
    assert made("sum:math,code") == UniformSum(("math", "code"))
    assert made("packllm,tau=0.5") == PackLLM(EXPERTS, 0.5)
    assert made("topk-union:math,code,k=3") == UnionOfTopK(("math", "code"), 3)
    assert made("proxy:math,alpha=1.5") == ProxyTuning("math", 1.5)
    assert made("dlf") == DynamicLogitFusion(("math", "code"))
    assert made("dlf:code") == DynamicLogitFusion(("code",))
    assert made("contrast:math") == Contrast("math")
    assert made("contrast:math,weaker=code,alpha=0.2") == Contrast("math", "code", 0.2)


@pytest.mark.parametrize("text", ["fusionroute", "sum", "packllm", "topk-union", "dlf", "expert:math", "proxy:math"])
def test_names_are_the_users_own(text: str) -> None:
    assert made(text).name == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proxy", "takes one expert"),
        ("proxy:math,code", "takes one expert"),
        ("proxy:nobody", "no expert 'nobody'"),
        ("proxy:general", "general is the base itself"),
        ("dlf:general,math", "general is the base itself"),
        ("contrast:general", "contrasts a model with itself"),
        ("contrast:math,weaker=math", "contrasts a model with itself"),
        ("contrast:math,weaker=nobody", "no expert 'nobody'"),
        ("contrast:math,alpha=0", "alpha is '0'"),
        ("packllm,tau=warm", "tau is 'warm'"),
        ("packllm,tau=nan", "tau is 'nan'"),
        ("sum,k=3", "no setting 'k'"),
        ("fusionroute:math", "does not take experts"),
        ("sum:math,code,math", "names an expert twice"),
        ("topk", "no policy 'topk'"),
        ("", "no policy ''"),
    ],
)
def test_what_does_not_exist_is_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(text)


@pytest.mark.parametrize(
    ("text", "role"), [("dlf", "large model"), ("proxy:math", "large model"), ("fusionroute", "router")]
)
def test_a_role_that_is_missing_is_named(text: str, role: str) -> None:
    with pytest.raises(UsageError, match=f"needs a {role}, and this bundle has none"):
        made(text, roles=())


def test_another_package_adds_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[frcli.policies]\nloud = loud:make\nbroken = loud:nothing\n")
    (tmp_path / "loud.py").write_text(
        "from frcli.fusion.mixture import UniformSum\n"
        "def make(request):\n"
        "    request.accept('by')\n"
        "    return UniformSum(request.some(request.experts), sharp=request.number('by', 1, 0, 9) > 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "loud", raising=False)
    assert made("loud:math,by=2") == UniformSum(("math",), sharp=True)
    with pytest.raises(UsageError, match="'broken' cannot be loaded"):
        made("broken")
    with pytest.raises(UsageError, match="the policies are .*contrast.*loud"):
        made("louder")


def test_gamma_can_be_part_of_the_spelling() -> None:
    assert made("fusionroute") == FusionRoute(EXPERTS, 0.5)
    assert made("fusionroute,gamma=0.25") == FusionRoute(EXPERTS, 0.25)
    assert made("fusionroute,prior=0.5") == FusionRoute(EXPERTS, 0.5, prior=0.5)
    with pytest.raises(UsageError, match="prior is '-1'"):
        made("fusionroute,prior=-1")
    with pytest.raises(UsageError, match="gamma is '17'"):
        made("fusionroute,gamma=17")
