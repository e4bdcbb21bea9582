"""``frcli chat`` with one answer: what comes in, and what goes where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frcli.bundle import Bundle
from frcli.chat.conversation import Conversation
from frcli.chat.store import SavedConversation, Store, read_conversation
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling

Run = Callable[..., Any]
SHORT = ("-n", "12", "-t", "0")


def expected(bundle: Bundle, question: str, system: str | None = None, **options: Any) -> str:
    """The greedy answer of 12 tokens, from the engine itself."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    with Engine(bundle, Options(threads=1, **options)) as engine:
        prompt = engine.encode_messages([*messages, {"role": "user", "content": question}])
        return engine.write(prompt, Sampling(temperature=0), max_tokens=12).run().text


@pytest.fixture(autouse=True)
def _cache(trio: Bundle, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])


@pytest.mark.parametrize(
    ("prompt", "piped", "question"),
    [
        (["-p", "What is 2 + 2?"], "", "What is 2 + 2?"),
        ([], "What is 2 + 2?\n", "What is 2 + 2?"),
        (["-p", "Sum up:"], "first line\nsecond line\n", "Sum up:\n\nfirst line\nsecond line"),
        (["-p", "Sum up:"], " \n", "Sum up:"),
    ],
)
def test_a_prompt_a_pipe_or_both(frcli: Run, trio: Bundle, prompt: list[str], piped: str, question: str) -> None:
    ran = frcli("chat", "trio", *prompt, *SHORT, stdin=piped)
    assert ran.code == 0
    assert ran.out == expected(trio, question) + "\n"
    assert ran.err == "the answer was cut off at --max-tokens 12\n"


def test_a_process_of_its_own(process: Run, trio: Bundle) -> None:
    ran = process("chat", "trio", *SHORT, stdin="hello\n")
    assert (ran.code, ran.out) == (0, expected(trio, "hello") + "\n")


def test_policy_gamma_and_system_reach_the_engine(frcli: Run, trio: Bundle) -> None:
    for flags, options in (
        (["--policy", "sum"], {"policy": "sum"}),
        (["--policy", "expert:math"], {"policy": "expert:math"}),
        (["--gamma", "3"], {"gamma": 3.0}),
        (["--system", "Be brief."], {"system": "Be brief."}),
    ):
        ran = frcli("chat", "trio", "-p", "hello", *SHORT, *flags)
        assert ran.out == expected(trio, "hello", **options) + "\n"  # type: ignore[arg-type]


def test_json_is_one_object(frcli: Run, trio: Bundle) -> None:
    told = frcli("chat", "trio", "-p", "hello", "--json", *SHORT).json
    assert told["text"] == expected(trio, "hello")
    assert told["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 12 == sum(told["usage"]["experts"].values())
    assert told["usage"]["prompt_tokens"] > 5
    assert set(told["usage"]["experts"]) <= {"general", "math", "code"}
    assert told["timings"]["seconds"] >= told["timings"]["first_token_seconds"] > 0


def test_show_experts_marks_without_colour(frcli: Run, trio: Bundle) -> None:
    ran = frcli("chat", "trio", "-p", "hello", "--show-experts", *SHORT)
    told = frcli("chat", "trio", "-p", "hello", "--json", "--show-experts", *SHORT).json
    marked, last = "", ""
    for span in told["spans"]:
        marked += f"[{span['tag']}]{span['text']}" if span["tag"] != last else span["text"]
        last = span["tag"]
    assert ran.out == marked + "\n"
    assert ran.err.startswith("written by  [general]  [math]  [code]\n")


def test_a_seed_repeats_the_answer(frcli: Run) -> None:
    first, again, other = (
        frcli("chat", "trio", "-p", "hello", "-n", "12", "-t", "2", "--seed", seed).out for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_a_stop_text_with_an_escape(frcli: Run, trio: Bundle) -> None:
    whole = expected(trio, "hello")
    stop = whole[3:5]
    spelled = "".join(f"\\x{ord(c):02x}" if ord(c) < 256 else c for c in stop)
    told = frcli("chat", "trio", "-p", "hello", "--json", *SHORT, "--stop", spelled).json
    assert (told["text"], told["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_a_grammar_is_followed(frcli: Run, tmp_path: Path) -> None:
    file = tmp_path / "g.gbnf"
    file.write_text('root ::= "yes, " ("of course" | "sure")')
    assert frcli("chat", "trio", "-p", "well?", "--grammar-file", file).out.startswith("yes, ")


def test_a_schema_is_followed(frcli: Run, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for given in (file, json.dumps(schema)):
        assert set(json.loads(frcli("chat", "trio", "-p", "well?", "--schema", given).out)) == {"sure"}
    ran = frcli("chat", "trio", "-p", "well?", "--schema", file, "--grammar", 'root ::= "a"')
    assert (ran.code, ran.err) == (2, "frcli: grammar and schema are both given; give one of them\n")


def test_one_answer_goes_on_with_the_last_conversation(frcli: Run, tmp_path: Path) -> None:
    env = {"XDG_DATA_HOME": str(tmp_path)}
    ran = frcli("chat", "trio", "-c", "-p", "hello", *SHORT, env=env)
    assert (ran.code, ran.err) == (2, "frcli: there is no conversation to go on with; leave out -c\n")
    frcli("chat", "trio", "-p", "hello", *SHORT, env=env)
    assert not list(tmp_path.rglob("*.json"))  # one answer alone is not kept
    store = Store(tmp_path / "frcli" / "sessions")
    talk = Conversation("Be kind.")
    talk.ask("one")
    talk.answered("1")
    store.write(SavedConversation.of(talk, "trio"))
    told = frcli("chat", "-c", "-p", "two", "--json", *SHORT, env=env).json
    (kept,) = store.kept()
    saved = read_conversation(kept.path)
    assert [(turn.question, turn.answer) for turn in saved.turns] == [("one", "1"), ("two", told["text"])]
    assert saved.system == "Be kind."
    assert sum(len(names) for _, names, _ in saved.turns[1].tokens) == told["usage"]["completion_tokens"]
    kept.path.write_text("{")
    ran = frcli("chat", "-c", "-p", "three", *SHORT, env=env)
    assert ran.code == 1
    assert "is damaged, or no conversation of frcli; it was left as it is" in ran.err
    assert kept.path.read_text() == "{"


def test_the_environment_and_the_file_are_read(frcli: Run, trio: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('policy = "sum"\nmax-tokens = 12\ntemperature = 0\nbundle = "trio"\n')
    env = {"FRCLI_CONFIG": str(file), "FRCLI_POLICY": "expert:code"}
    assert frcli("chat", "-p", "hello", env=env).out == expected(trio, "hello", policy="expert:code") + "\n"


def test_quiet_says_nothing(frcli: Run) -> None:
    assert frcli("chat", "trio", "-q", "-p", "hello", "--show-experts", *SHORT).err == ""


def test_verbose_lets_llama_cpp_speak(frcli: Run) -> None:
    assert "frcli.llama: " in frcli("chat", "trio", "--verbose", "-p", "hello", *SHORT).err


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["trio", "-p", ""], "", 2, "the prompt is empty"),
        (["trio", "-p", " \n"], "\n", 2, "the prompt is empty"),
        (["trio"], "", 2, "the prompt is empty"),
        (["trio"], b"\xff\xfe", 1, "standard input is not UTF-8 at byte 0"),
        (["nosuch", "-p", "x"], "", 1, "there is no bundle 'nosuch'; the bundles here are: "),
        (["trio", "-p", "x", "--policy", "vote"], "", 2, "there is no policy 'vote'"),
        (["trio", "-p", "x", "--policy", "expert:bio"], "", 2, "there is no expert 'bio'"),
        (["trio", "-p", "x", "--ctx", "100000"], "", 2, "a context of 100000 tokens is not possible"),
        (["trio", "-p", "x", "--temperature", "-1"], "", 2, "temperature is -1.0"),
        (["trio", "-p", "x", "--logit-bias", "99999=1"], "", 2, "logit_bias names token 99999"),
        (["trio", "-p", "x", "--grammar", "nonsense"], "", 2, "the grammar cannot be used"),
        (["trio", "-p", "long " * 400], "", 1, "tokens and the context holds 256; shorten it"),
    ],
)
def test_what_cannot_be_answered(frcli: Run, arguments: list[str], stdin: str | bytes, code: int, said: str) -> None:
    ran = frcli("chat", *arguments, stdin=stdin)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("frcli: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_a_damaged_file_is_named(frcli: Run, trio: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    manifest = 'format = 1\nname = "damaged"\n[base]\nfile = "base.gguf"\n[experts.one]\n[defaults]\npolicy = "sum"\n'
    (folder / "bundle.toml").write_text(manifest)
    ran = frcli("chat", folder, "-p", "x")
    assert f"the base file {folder / 'base.gguf'} is missing" in ran.err
    (folder / "base.gguf").write_bytes(trio.base().path.read_bytes()[:5000])
    ran = frcli("chat", folder, "-p", "x")
    assert ran.code == 1
    assert f"cannot read {folder / 'base.gguf'} as GGUF" in ran.err
    assert ran.err.count("\n") == 1
