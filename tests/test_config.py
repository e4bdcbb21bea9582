"""Settings: which layer wins, and what is said about values that are none."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from frcli.bundle import Bundle, Manifest
from frcli.config import Settings, escape, parse, read_settings, show, unescape
from frcli.decode.sampler import Sampling
from frcli.errors import UsageError

START = Settings()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def settle(config: Path, text: str = "", flags: dict[str, Any] | None = None, **environ: str) -> Settings:
    config.write_text(text)
    return read_settings(START, flags or {}, {"FRCLI_CONFIG": str(config), **environ})


def refusal(config: Path, text: str = "", flags: dict[str, Any] | None = None, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        settle(config, text, flags, **environ)
    return str(caught.value)


def test_flags_beat_the_environment_that_beats_the_file_that_beats_the_defaults(config: Path) -> None:
    text = "top-k = 1\ntop-p = 0.1\nmin-p = 0.2\n"
    settings = settle(config, text, {"top_k": 3, "seed": None}, FRCLI_TOP_K="2", FRCLI_TOP_P="0.5")
    assert (settings.top_k, settings.top_p, settings.min_p, settings.typical_p) == (3, 0.5, 0.2, 1.0)


def test_the_bundle_ranks_between_defaults_and_file(config: Path) -> None:
    manifest = {"format": 1, "name": "b", "base": {"file": "b.gguf"}, "experts": {"one": {}}}
    given = {"policy": "sum", "gamma": 0.25, "context": 99, "system": "Be brief."}
    bundle = Bundle(config.parent, Manifest.model_validate({**manifest, "defaults": given}))
    settings = settle(config, "gamma = 0.5").with_bundle(bundle)
    assert (settings.policy, settings.gamma, settings.ctx, settings.system) == ("sum", 0.5, 99, "Be brief.")


def test_a_file_sets_every_kind(config: Path) -> None:
    settings = settle(config, 'sharp = true\ntemperature = 1\nstop = ["a", "b"]\npolicy = "sum"\nmax-tokens = 5\n')
    assert (settings.sharp, settings.temperature, settings.max_tokens) == (True, 1.0, 5)
    assert (settings.stop, settings.policy) == (("a", "b"), "sum")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", "temprature is not a setting; did you mean temperature?"),
        ("top_k = 1", "top_k is not a setting; did you mean top-k?"),
        ("top-k = 1.5", "top-k is 1.5; it must be a whole number"),
        ("top-k = true", "top-k is True; it must be a whole number"),
        ("sharp = 1", "sharp is 1; it must be on or off"),
        ("stop = [1]", "stop is [1]"),
        ("top-p = 2", "top_p is 2.0"),
        ("[chat]", "chat is not a setting"),
        ("top-k =", "is not TOML"),
        ("top-k = " + "9" * 5000, "is not TOML"),
        ("top-p = " + "9" * 400, "top-p is too large; it must be a number"),
        ("top-k = " + "[" * 100_000, "is nested too deep"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(config: Path, text: str, said: str) -> None:
    sentence = refusal(config, text)
    assert said in sentence
    assert str(config) in sentence


def test_a_file_that_was_named_must_be_there(config: Path) -> None:
    with pytest.raises(UsageError, match="there is no configuration file"):
        read_settings(START, {}, {"FRCLI_CONFIG": str(config)})


def test_the_users_own_file_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_settings(START, {}, {}) == START
    (tmp_path / "frcli").mkdir()
    (tmp_path / "frcli" / "config.toml").write_text("seed = 7")
    assert read_settings(START, {}, {}).seed == 7


def test_a_wrong_variable_is_named(config: Path) -> None:
    assert "FRCLI_TEMPERATURE: temperature is 'hot'; it must be a number" in refusal(config, FRCLI_TEMPERATURE="hot")


def test_an_empty_variable_is_none(config: Path) -> None:
    assert settle(config, "top-k = 4", FRCLI_TOP_K="").top_k == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_tokens": -1}, "max-tokens is -1"),
        ({"threads": -2}, "threads is -2"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"ctx": 3}, "ctx is 3"),
        ({"stop": ("",)}, "a stop text is empty"),
        ({"logit_bias": ("7",)}, "logit-bias is '7'"),
        ({"logit_bias": ("x=1",)}, "write ID=VALUE"),
        ({"grammar": "root ::= root"}, "grammar"),
        ({"grammar": 'root ::= "a"', "grammar_file": "g.gbnf"}, "both given"),
        ({"grammar_file": "/no/such.gbnf"}, "cannot read the grammar /no/such.gbnf"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_that_nothing_can_be_done_with(config: Path, flags: dict[str, Any], said: str) -> None:
    assert said in refusal(config, flags=flags)


def test_a_grammar_file_is_read_and_the_later_layer_wins(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "g.gbnf"
    file.write_text('root ::= "file"')
    lower = f"grammar-file = {str(file)!r}"
    assert settle(config, lower).grammar == 'root ::= "file"'
    assert settle(config, lower, {"grammar": 'root ::= "flag"'}).grammar == 'root ::= "flag"'
    over = settle(config, "grammar = 'root ::= \"b\"'", {"grammar_file": str(file)})
    assert over.grammar == 'root ::= "file"'
    assert over.with_values({"grammar_file": None}).grammar == ""


def test_every_sampling_setting_reaches_the_sampler() -> None:
    defaults = Sampling()
    values: dict[str, Any] = {
        f.name: 3 if isinstance(f.default, int) or f.default is None else "" if f.default == "" else 0.75
        for f in fields(Settings)
        if f.metadata["sampling"]
    }
    changed = Settings(**(values | {"logit_bias": ("5=-inf", "6=1.5"), "dry_base": 1.5})).sampling()
    ours = {f.name for f in fields(Sampling)} - {"dry_sequence_breakers", "grammar"}
    assert {name for name in ours if getattr(changed, name) == getattr(defaults, name)} == set()
    assert changed.logit_bias == {5: -math.inf, 6: 1.5}


def test_settings_have_the_samplers_defaults() -> None:
    assert Settings().sampling() == Sampling()


def test_overrides_of_a_row_win() -> None:
    assert Settings(top_k=5).sampling(top_k=9, seed=1) == Sampling(top_k=9, seed=1)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top_k", "7", 7),
        ("temperature", "0.5", 0.5),
        ("sharp", "On", True),
        ("sharp", "0", False),
        ("stop", r"\n\n", ("\n\n",)),
        ("stop", r'["a", "\n"]', ("a", "\n")),
        ("stop", "none", ()),
        ("seed", "none", None),
        ("policy", "expert:x", "expert:x"),
    ],
)
def test_parse_and_show(name: str, text: str, value: Any) -> None:
    assert parse(name, text) == value
    assert parse(name, show(name, value)) == value


@pytest.mark.parametrize(("name", "text"), [("top_k", "1.5"), ("sharp", "perhaps"), ("stop", "[1]"), ("top_k", "none")])
def test_parse_refuses(name: str, text: str) -> None:
    with pytest.raises(UsageError, match="it must be"):
        parse(name, text)


def test_escapes() -> None:
    assert unescape(r"a\nb\t\x41\\n\q") == "a\nb\tA\\n\\q"
    assert unescape(escape("a\\n\n\t\r")) == "a\\n\n\t\r"
