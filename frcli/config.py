"""What a user can set, once for flags, environment, configuration file and ``/set`` in a chat.

    built-in default  <  the bundle's [defaults]  <  config.toml  <  FRCLI_NAME  <  --name

``config.toml`` lies in the user's configuration folder, or where ``$FRCLI_CONFIG`` says; its keys are the long flags
without the dashes in front (``max-tokens = 200``). Each field of :class:`Settings` is one setting; its metadata say
what it means and how it is spelled, so that no command repeats that.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frcli.errors import UsageError

if TYPE_CHECKING:
    from frcli.bundle import Bundle
    from frcli.decode.engine import Options
    from frcli.decode.sampler import Sampling

NONE = "none"  # how a setting that may be absent is taken back
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'"}
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def unescape(text: str) -> str:
    r"""The text with ``\n``, ``\t``, ``\r``, ``\\``, ``\"``, ``\'`` and ``\xHH`` replaced; other backslashes stay."""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _ESCAPED.get(m[2], m[0]), text)


def escape(text: str) -> str:
    """The text as :func:`unescape` reads it, on one line."""
    for letter, character in (("\\", "\\"), ("n", "\n"), ("r", "\r"), ("t", "\t")):
        text = text.replace(character, "\\" + letter)
    return text


def _whole(text: str) -> int:
    return int(text)


def _number(text: str) -> float:
    return float(text)


def _switch(text: str) -> bool:
    return _SWITCH[text.lower()]


def _texts(text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        return (text,)
    values = json.loads(text)
    if not all(isinstance(value, str) for value in values):
        raise ValueError
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of a setting are written: ``name`` for people, ``read`` for text, ``toml`` for what TOML may hold."""

    name: str
    read: Callable[[str], Any]
    toml: tuple[type, ...]


WHOLE = Kind("a whole number", _whole, (int,))
NUMBER = Kind("a number", _number, (int, float))
SWITCH = Kind("on or off", _switch, (bool,))
TEXT = Kind("a text", str, (str,))
LAYERS = Kind("auto or a whole number", str, (str, int))
TEXTS = Kind('a text, or a list like ["a", "b"]', _texts, (str, list))


def _setting(default: Any, kind: Kind, about: str, *, sampling: bool = False, fixed: bool = False) -> Any:
    return field(default=default, metadata={"kind": kind, "about": about, "sampling": sampling, "fixed": fixed})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set for chat and generate; None leaves it to the bundle, or to chance for ``seed``.

    Metadata of a field: ``kind`` (:class:`Kind`), ``about`` (help), ``sampling`` (it is one of ``Sampling``), ``fixed``
    (it holds for as long as the models are open).
    """

    bundle: str | None = _setting(None, TEXT, "Name or folder of the bundle to use.", fixed=True)
    policy: str | None = _setting(
        None,
        TEXT,
        "How the models write together: fusionroute, expert:NAME, sum and others (docs/policies.md).",
    )
    gamma: float | None = _setting(None, NUMBER, "Weight of the router's own logits; 0 is the routed expert alone.")
    sharp: bool = _setting(False, SWITCH, "Add logits as the paper does, without dividing by 1 + gamma.")
    max_tokens: int = _setting(512, WHOLE, "Most tokens of an answer; 0 means until the context is full.")
    temperature: float = _setting(0.8, NUMBER, "Randomness; 0 takes the most likely token.", sampling=True)
    top_k: int = _setting(40, WHOLE, "Draw from the K most likely tokens; 0 is off.", sampling=True)
    top_p: float = _setting(0.95, NUMBER, "Draw from the likeliest tokens that sum up to P; 1 is off.", sampling=True)
    min_p: float = _setting(0.05, NUMBER, "Drop tokens below P times the likeliest one; 0 is off.", sampling=True)
    typical_p: float = _setting(1.0, NUMBER, "Locally typical sampling with mass P; 1 is off.", sampling=True)
    xtc_probability: float = _setting(
        0.0, NUMBER, "Chance of leaving out the likeliest tokens (XTC); 0 is off.", sampling=True
    )
    xtc_threshold: float = _setting(0.1, NUMBER, "Probability above which XTC may leave out.", sampling=True)
    repeat_penalty: float = _setting(1.0, NUMBER, "Penalty on tokens that were seen; 1 is off.", sampling=True)
    presence_penalty: float = _setting(0.0, NUMBER, "Penalty on tokens that were seen, once.", sampling=True)
    frequency_penalty: float = _setting(0.0, NUMBER, "Penalty on tokens for each time they were seen.", sampling=True)
    penalty_last_n: int = _setting(
        64, WHOLE, "Tokens that penalties look back; -1 is the whole context.", sampling=True
    )
    dry_multiplier: float = _setting(
        0.0, NUMBER, "Strength of the DRY penalty on repeated phrases; 0 is off.", sampling=True
    )
    dry_base: float = _setting(1.75, NUMBER, "Growth of the DRY penalty with the phrase's length.", sampling=True)
    dry_allowed_length: int = _setting(2, WHOLE, "Tokens that may repeat before DRY sets in.", sampling=True)
    dry_penalty_last_n: int = _setting(-1, WHOLE, "Tokens that DRY looks back; -1 is the whole context.", sampling=True)
    seed: int | None = _setting(
        None, WHOLE, "Seed of the random draws; a new one each time if not given.", sampling=True
    )
    stop: tuple[str, ...] = _setting((), TEXTS, r"End the answer before this text (\n and \t are read); repeatable.")
    logit_bias: tuple[str, ...] = _setting((), TEXTS, "ID=VALUE: add to a token's logit, -inf bans it; repeatable.")
    grammar: str = _setting("", TEXT, "GBNF grammar that the answer must follow.", sampling=True)
    grammar_file: str | None = _setting(None, TEXT, "File with the GBNF grammar.")
    schema: str | None = _setting(None, TEXT, "JSON Schema that the answer must fit, or a file of one.")
    system: str | None = _setting(None, TEXT, "System prompt.")
    show_experts: bool = _setting(False, SWITCH, "Colour the text by the expert that wrote it.")
    marks: bool = _setting(
        False, SWITCH, "Underline each expert's text in a way of its own, beside its colour or without colours."
    )
    markdown: bool = _setting(True, SWITCH, "Draw headings, lists, emphasis and code of answers on a terminal.")
    history: bool = _setting(
        True, SWITCH, "Keep conversations and what was typed in the user's data folder.", fixed=True
    )
    draft: str = _setting(
        "auto", TEXT, "Tokens to draft at a time: a number, off, or auto for as many as pay.", fixed=True
    )
    ctx: int | None = _setting(None, WHOLE, "Tokens of context.", fixed=True)
    threads: int = _setting(0, WHOLE, "Threads; 0 is one for each physical core.", fixed=True)
    kv_type: str = _setting(
        "f16", TEXT, "What keys and values are kept as: f16, q8_0 (half of it), q4_0 and others.", fixed=True
    )
    gpu_layers: str = _setting(
        "auto", LAYERS, "Layers of each model on GPUs: a number, -1 for all, or auto for what has room.", fixed=True
    )
    fit: bool = _setting(True, SWITCH, "Refuse what needs more memory than is free.", fixed=True)

    def sampling(self, **overrides: Any) -> Sampling:
        """The sampler's settings under ``overrides``; raises ``UsageError`` when one is out of range."""
        from frcli.decode.sampler import Sampling  # numpy takes a while: not for --help

        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["sampling"]}
        sampling = Sampling(**({**values, "logit_bias": self.biases()} | overrides))
        sampling.validate()
        return sampling

    def biases(self) -> dict[int, float]:
        """What is added to the logits of tokens, by token id; raises ``UsageError`` for what cannot be read."""
        biases = {}
        for text in self.logit_bias:
            token, _, value = text.partition("=")
            try:
                biases[int(token)] = float(value)
            except ValueError:
                raise UsageError(f"logit-bias is {text!r}", "write ID=VALUE, for example 42=-1.5 or 42=-inf") from None
        return biases

    def options(self) -> Options:
        """How the bundle's models are opened."""
        from frcli.decode.engine import Options
        from frcli.sources.devices import parse_gpu_layers

        return Options(
            self.policy,
            self.gamma,
            self.sharp,
            self.ctx,
            self.threads,
            gpu_layers=parse_gpu_layers(self.gpu_layers),
            kv_type=self.kv_type,
            fit=self.fit,
            draft=self.draft,
        )

    def check(self) -> None:
        """Raise ``UsageError`` for the first value that no bundle could use."""
        self.sampling()
        if self.grammar:
            from frcli.decode.grammar import check_grammar

            check_grammar(self.grammar)
        from frcli.decode.draft import parse_draft
        from frcli.sources.devices import parse_gpu_layers
        from frcli.sources.kv_types import check_kv_type

        parse_draft(self.draft)
        parse_gpu_layers(self.gpu_layers)
        check_kv_type(self.kv_type)
        for name in ("max_tokens", "threads"):
            if getattr(self, name) < 0:
                raise UsageError(f"{flag(name)} is {getattr(self, name)}", "it cannot be negative")
        if self.gamma is not None and not 0 <= self.gamma <= 16:
            raise UsageError(f"gamma is {self.gamma}", "it is a number from 0 to 16")
        if self.ctx is not None and self.ctx < 16:
            raise UsageError(f"ctx is {self.ctx}", "it must be at least 16 tokens")
        if any(not stop for stop in self.stop):
            raise UsageError("a stop text is empty", "give at least one character")

    def with_bundle(self, bundle: Bundle) -> Settings:
        """The settings with what the bundle's ``[defaults]`` say where nothing else does."""
        given = bundle.manifest.defaults
        return replace(
            self,
            policy=given.policy if self.policy is None else self.policy,
            gamma=given.gamma if self.gamma is None else self.gamma,
            ctx=given.context if self.ctx is None else self.ctx,
            system=given.system if self.system is None else self.system,
        )

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """The settings with these values by field name; a grammar file or a schema that is named is read."""
        given = [name for name in ("grammar", "grammar_file", "schema") if values.get(name)]
        if len(given) > 1:
            raise UsageError(f"{flag(given[0])} and {flag(given[1])} are both given", "give one of them")
        if "schema" in values and values["schema"] is not None:
            from frcli.decode.json_schema import grammar_of

            values = {**values, "grammar": grammar_of(read_schema(values["schema"])), "grammar_file": None}
        elif values.get("grammar_file") is not None:
            values = {**values, "grammar": read_grammar(Path(values["grammar_file"])), "schema": None}
        elif not {"grammar", "grammar_file", "schema"}.isdisjoint(values):
            values = {**values, "grammar": values.get("grammar", ""), "grammar_file": None, "schema": None}
        settings = replace(self, **values)
        settings.check()
        return settings


KINDS: dict[str, Kind] = {f.name: f.metadata["kind"] for f in fields(Settings)}
ABOUT: dict[str, str] = {f.name: f.metadata["about"] for f in fields(Settings)}
FIXED: frozenset[str] = frozenset(f.name for f in fields(Settings) if f.metadata["fixed"])
OPTIONAL: frozenset[str] = frozenset(f.name for f in fields(Settings) if f.default in (None, (), ""))


def flag(name: str) -> str:
    """The setting as flags and files spell it: ``max-tokens``."""
    return name.replace("_", "-")


def parse(name: str, text: str) -> Any:
    """The value of the setting ``name`` that ``text`` means; ``none`` takes an optional one back.

    Raises ``UsageError`` when it means none.
    """
    kind = KINDS[name]
    if name in OPTIONAL and text.lower() == NONE:
        return next(f.default for f in fields(Settings) if f.name == name)
    try:
        value = kind.read(text)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{flag(name)} is {text!r}", f"it must be {kind.name}") from None
    return tuple(unescape(stop) for stop in value) if name == "stop" and not text.startswith("[") else value


def show(name: str, value: Any) -> str:
    """The value as a person would write it after ``/set``."""
    if value is None or value == () or value == "":
        return NONE
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return escape(value[0]) if len(value) == 1 else json.dumps(value, ensure_ascii=False)
    return escape(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration file is, or would be."""
    if given := environ.get("FRCLI_CONFIG"):
        return Path(given).expanduser()
    from platformdirs import user_config_path

    return user_config_path("frcli", appauthor=False) / "config.toml"


def read_settings(defaults: Settings, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """``defaults`` under the configuration file, the environment and ``flags`` (by field name; None: not given).

    Raises ``UsageError`` naming the file and key, the variable or the flag that is wrong.
    """
    path = config_file(environ)
    settings = _layer(defaults, _from_file(path, must_exist=bool(environ.get("FRCLI_CONFIG"))), f"{path}: ")
    settings = _layer(settings, _from_environment(environ), "the environment: ")
    return _layer(settings, {name: value for name, value in flags.items() if value is not None}, "")


def _layer(settings: Settings, values: Mapping[str, Any], where: str) -> Settings:
    try:
        return settings.with_values(values) if values else settings
    except UsageError as error:
        raise UsageError(f"{where}{error.what}", error.hint) from None


def _from_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise UsageError(f"there is no configuration file {path}", "correct or unset FRCLI_CONFIG") from None
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "correct its permissions") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deep", "write lines like max-tokens = 200") from None
    except ValueError as error:  # of UTF-8, of TOML, and of Python for a number of thousands of digits
        raise UsageError(f"{path} is not TOML: {error}", "write lines like max-tokens = 200") from None
    names = {flag(name): name for name in KINDS}
    values = {}
    for key, value in table.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise UsageError(
                f"{path}: {key} is not a setting", f"did you mean {near[0]}?" if near else "see frcli chat --help"
            )
        values[names[key]] = _from_toml(names[key], value, path)
    return values


def _from_toml(name: str, value: Any, path: Path) -> Any:
    kind = KINDS[name]
    right = isinstance(value, kind.toml) and isinstance(value, bool) == (kind is SWITCH)
    if not right or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
        raise UsageError(f"{path}: {flag(name)} is {value!r}", f"it must be {kind.name}")
    if kind is LAYERS:
        return str(value)
    if kind is TEXTS:
        return (value,) if isinstance(value, str) else tuple(value)
    if kind is NUMBER:
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{path}: {flag(name)} is too large", f"it must be {kind.name}") from None
    return value


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name in KINDS:
        variable = f"FRCLI_{name.upper()}"
        if text := environ.get(variable):
            try:
                values[name] = parse(name, text)
            except UsageError as error:
                raise UsageError(f"{variable}: {error.what}", error.hint) from None
    return values


def read_grammar(path: Path) -> str:
    """The text of a grammar file; raises ``UsageError`` when it cannot be read or is empty."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the grammar {path}: {error.strerror}", "give a file of GBNF") from None
    except UnicodeDecodeError:
        raise UsageError(f"the grammar {path} is not UTF-8", "give a file of GBNF") from None
    if not text.strip():
        raise UsageError(f"the grammar {path} is empty", "give a file of GBNF")
    return text


def read_schema(text: str) -> Any:
    """The JSON Schema that ``text`` is, or that is in the file of that name; raises ``UsageError`` for neither."""
    if text.lstrip().startswith(("{", "[")) or text.strip() in ("true", "false"):
        source, where = text, "the schema"
    else:
        where = f"the schema {text}"
        try:
            source = Path(text).expanduser().read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UsageError(f"cannot read {where}: {error.strerror}", "give a file, or JSON itself") from None
        except UnicodeDecodeError:
            raise UsageError(f"{where} is not UTF-8", "give a file of JSON") from None
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", 'write one like {"type": "object"}') from None
