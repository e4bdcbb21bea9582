"""Slash commands, each by what it says and does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frcli.chat.commands.command import Action, Reply
from frcli.chat.commands.settings import SETTABLE
from frcli.chat.commands.table import COMMANDS, is_command, run_command
from frcli.chat.session import Session
from frcli.chat.store import Store, read_conversation
from frcli.errors import DataError, OutputError, UsageError

Make = Callable[..., Session]


def answered(session: Session, question: str) -> str:
    session.conversation.ask(question)
    answer = session.write().run()
    session.record(answer)
    return answer.text


def test_what_a_command_is() -> None:
    assert is_command("/help")
    assert not is_command(" /etc/passwd is a file")
    assert not is_command("/usr\n/bin")


def test_help_names_every_command(scripted: Make) -> None:
    text = run_command("/help", scripted()).text
    assert all(f"/{name}" in text for name in COMMANDS)
    assert run_command("/?", scripted()).text == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each(scripted: Make, name: str) -> None:
    text = run_command(f"/help {name}", scripted()).text
    assert text.startswith(COMMANDS[name].usage)
    assert COMMANDS[name].about in text
    assert run_command(f"/help /{name}", scripted()).text == text


@pytest.mark.parametrize("line", ["/exit", "/bye", "/quit", "/exit now"])
def test_leaving(scripted: Make, line: str) -> None:
    assert run_command(line, scripted()).action is Action.LEAVE


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/exprts", "there is no command /exprts; did you mean /experts?"),
        ("/xyzzy", "there is no command /xyzzy; /help lists the commands"),
        ("/", "there is no command /"),
        ("/help exprts", "there is no command /exprts; did you mean /experts?"),
        ("/regen", "there is no answer to write again"),
        ("/undo", "there is nothing to take back"),
        ("/pop", "no point is marked to go back to; /push marks one"),
        ("/read", "/read takes a file"),
        ("/read /no/such", "cannot read /no/such: No such file or directory"),
        ("/read /", "cannot read /: Is a directory"),
        ("/show nonsense", "there is nothing called 'nonsense' to show"),
        ("/save", "conversations are not kept"),
        ("/load x", "conversations are not kept"),
        ("/export", "/export takes a file that ends in .html, .md, .json"),
        ("/export chat.pdf", "/export takes a file that ends in .html, .md, .json"),
        ("/export chat.md", "nothing was said yet"),
        ("/force bio", "there is no expert 'bio'; the experts are math, code"),
        ("/ban maht", "there is no expert 'maht'; did you mean math?"),
        ("/ban math code", "nobody would be left to write"),
        ("/set schema {", "the schema is not JSON"),
        ("/set schema /no/such", "cannot read the schema /no/such"),
        ("/set tempreature 1", "there is no setting 'tempreature'; did you mean temperature?"),
        ("/set temperature hot", "temperature is 'hot'; it must be a number"),
        ("/set temperature 200", "temperature is 200.0"),
        ("/set temperature -1", "temperature is -1.0"),
        ("/set temperature nan", "temperature is nan"),
        ("/set top_k 1.5", "top-k is '1.5'; it must be a whole number"),
        ("/set max-tokens -5", "max-tokens is -5"),
        ("/set gamma 17", "gamma is 17"),
        ("/set policy nonsense", "there is no policy 'nonsense'"),
        ("/set ctx 4096", "ctx is fixed while the models are open; start again with --ctx"),
        ("/set bundle other", "bundle is fixed"),
        ("/set logit_bias 5", "write ID=VALUE"),
        ("/set grammar_file /no/such", "cannot read the grammar"),
        ("/set seed -4", "seed is -4"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(scripted: Make, line: str, said: str) -> None:
    session = scripted()
    before = session.settings
    with pytest.raises(UsageError) as caught:
        run_command(line, session)
    assert said in str(caught.value)
    assert (session.settings, session.allowed) == (before, ("math", "code"))


def test_set_lists_all_that_can_be_set(scripted: Make) -> None:
    lines = run_command("/set", scripted(seed=4)).text.splitlines()
    assert [line.split()[0] for line in lines] == list(SETTABLE)
    assert {"seed 4", "gamma 0.5", "stop none", "sharp off"} <= {" ".join(line.split()) for line in lines}


def test_set_reaches_the_next_answer(scripted: Make) -> None:
    session = scripted("one", "two", seed=1)
    answered(session, "a")
    for line in (
        "/set temperature 0.2",
        "/set max_tokens 7",
        r"/set stop \n\n",
        "/set seed 9",
        '/set system "Be brief. "',
    ):
        run_command(line, session)
    answered(session, "b")
    engine = session.engine
    assert [s.temperature for s in engine.samplings] == [0.8, 0.2]  # type: ignore[attr-defined]
    assert [s.seed for s in engine.samplings] == [1, 9]  # type: ignore[attr-defined]
    assert engine.limits == [(512, ()), (7, ("\n\n",))]  # type: ignore[attr-defined]
    assert engine.prompts[1].startswith("<s>Be brief. <u>a")  # type: ignore[attr-defined]


def test_set_policy_gamma_and_sharp_go_to_the_engine(scripted: Make) -> None:
    session = scripted()
    for line in ("/set policy sum", "/set gamma 1", "/set sharp on"):
        run_command(line, session)
    assert session.engine.policies == [("sum", 0.5, False), ("sum", 1.0, False), ("sum", 1.0, True)]  # type: ignore[attr-defined]


def test_none_takes_policy_and_gamma_back(scripted: Make) -> None:
    session = scripted()
    before = (session.settings.policy, session.settings.gamma)
    for line in ("/set policy sum", "/set gamma 0", "/set policy none", "/set gamma none"):
        said = run_command(line, session).text
    assert said == "gamma  0.5"
    assert (session.settings.policy, session.settings.gamma) == before
    assert session.engine.policies[-1][:2] == before  # type: ignore[attr-defined]


def test_set_default_goes_back_to_the_start(scripted: Make) -> None:
    session = scripted(temperature=0.3, stop=("x",))
    for line in ("/set temperature 1", "/set temperature default", "/set stop none"):
        run_command(line, session)
    assert (session.settings.temperature, session.settings.stop) == (0.3, ())
    run_command("/set stop default", session)
    assert session.settings.stop == ("x",)


def test_set_shows_one(scripted: Make) -> None:
    assert run_command("/set top-k", scripted()).text.startswith("top_k  40\nDraw from the K most likely tokens")


def test_regen_asks_again_with_another_seed(scripted: Make) -> None:
    session = scripted("first", "second", seed=5)
    answered(session, "a")
    assert run_command("/regen", session) == Reply("", Action.ANSWER)
    session.record(session.write().run())
    assert [turn.answer for turn in session.conversation.turns] == ["second"]
    assert session.engine.prompts == ["<u>a", "<u>a"]  # type: ignore[attr-defined]
    assert [s.seed for s in session.engine.samplings] == [5, 6]  # type: ignore[attr-defined]


def test_regen_says_that_greedy_answers_do_not_change(scripted: Make) -> None:
    session = scripted("first", temperature=0.0)
    answered(session, "a")
    assert "temperature 0" in run_command("/regen", session).text


def test_clear_forgets(scripted: Make) -> None:
    session = scripted("1", "2")
    answered(session, "a")
    run_command("/clear", session)
    answered(session, "b")
    assert session.engine.prompts[-1] == "<u>b"  # type: ignore[attr-defined]


def test_experts_and_stats_count_tokens(scripted: Make) -> None:
    session = scripted("12345", context=100)
    assert run_command("/stats", session).text == "nothing was written yet"
    assert "   -  math  sums" in run_command("/experts", session).text
    answered(session, "a")  # "1234" by math; "5" and the end token by code; 4 tokens of prompt
    assert " 67%  math  sums" in run_command("/experts", session).text
    text = run_command("/stats", session).text
    assert "tokens   6" in text
    assert "context  10 of 100 tokens (10%)" in text
    assert "drafts   2 of 6 accepted (33%)" in text
    assert "code     2 tokens (33%)" in text


def test_undo_takes_back_one_turn_after_the_other(scripted: Make) -> None:
    session = scripted("1", "2", "3")
    for question in ("a", "b", "c"):
        answered(session, question)
    assert run_command("/undo", session).text == "taken back: c"
    assert session.totals.used == len("<u>a<a>1<u>b<a>2")
    run_command("/undo", session)
    assert [turn.question for turn in session.conversation.turns] == ["a"]


def test_push_and_pop_are_branch_points(scripted: Make) -> None:
    session = scripted(*"123456")
    answered(session, "a")
    assert run_command("/push", session).text == "marked after 1 turn; /pop comes back here"
    answered(session, "b")
    assert run_command("/push", session).text.endswith("(2 marks)")
    answered(session, "c")
    assert run_command("/pop", session).text == "back after 2 turns (1 more to go back to)"
    run_command("/undo", session)
    run_command("/undo", session)  # further back than the mark
    assert run_command("/pop", session).text == "back after 1 turn"
    answered(session, "d")
    assert session.engine.prompts[-1] == "<u>a<a>1<u>d"  # type: ignore[attr-defined]


def test_regen_after_a_mark_leaves_what_was_marked(scripted: Make) -> None:
    session = scripted("1", "2")
    answered(session, "a")
    run_command("/push", session)
    run_command("/regen", session)
    session.record(session.write().run())
    run_command("/pop", session)
    assert [turn.answer for turn in session.conversation.turns] == ["1"]


def test_a_file_goes_with_the_next_message_only(scripted: Make, tmp_path: Path) -> None:
    session = scripted("1", "2")
    (tmp_path / "my notes.txt").write_text("\ufeffone\ntwo\n", encoding="utf-8")
    said = run_command(f"/read {tmp_path}/my notes.txt", session).text
    assert said == "my notes.txt, 11 tokens, goes with your next message"
    assert "with my notes.txt" in session.line()
    session.ask("Sum it up.")
    session.record(session.write().run())
    session.ask("Again.")
    questions = [turn.question for turn in session.conversation.turns]
    assert questions == ["my notes.txt:\n```\none\ntwo\n```\n\nSum it up.", "Again."]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff", "is not UTF-8 at byte 0"), (b" \n", "is empty"), (b"x" * 2000, "has 2003 tokens and the context holds")],
)
def test_files_that_cannot_be_read(scripted: Make, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file").write_bytes(content)
    session = scripted()
    with pytest.raises(UsageError, match=said):
        run_command(f"/read {tmp_path}/file", session)
    assert not session.attached


def test_the_system_prompt(scripted: Make) -> None:
    session = scripted("1", "2", system="Be kind.")
    assert run_command("/system", session).text == "system  Be kind."
    run_command("/system Be brief.", session)
    answered(session, "a")
    assert run_command("/system none", session).text == "there is no system prompt"
    answered(session, "b")
    assert session.engine.prompts == ["<s>Be brief.<u>a", "<u>a<a>1<u>b"]  # type: ignore[attr-defined]


def test_a_schema_is_a_grammar(scripted: Make, tmp_path: Path) -> None:
    session = scripted()
    file = tmp_path / "schema.json"
    file.write_text('{"type": "boolean"}')
    run_command(f"/set schema {file}", session)
    assert session.settings.sampling().grammar.startswith("root ::=")
    run_command('/set grammar root ::= "a"', session)
    assert (session.settings.schema, session.settings.grammar) == (None, 'root ::= "a"')
    run_command('/set schema {"type": "null"}', session)
    assert "null" in session.settings.grammar
    run_command("/set schema none", session)
    assert session.settings.grammar == ""


def test_show(scripted: Make) -> None:
    session = scripted("one", system="Be kind.")
    session.shown = {"bundle": lambda: "four experts"}
    assert run_command("/show", session).text.splitlines() == [
        "duo \u00b7 fusionroute \u00b7 context 0 of 1000 (0%)",
        "/show settings | system | conversation | file | bundle",
    ]
    assert run_command("/show bundle", session).text == "four experts"
    assert run_command("/show system", session).text == "system  Be kind."
    assert run_command("/show settings", session).text == run_command("/set", session).text
    assert run_command("/show conversation", session).text == "nothing was said yet"
    answered(session, "a")
    assert run_command("/show conversation", session).text == ">>> a\none"
    assert run_command("/show file", session).text == "this conversation is not kept"


def test_context_says_what_fills_it(scripted: Make) -> None:
    session = scripted(*["1"] * 12, context=200, system="Be kind.")
    for number in range(12):
        answered(session, f"q{number}")
    text = run_command("/context", session).text.splitlines()
    assert text[0].endswith("121 of 200 tokens (60%)")
    assert text[0].count("#") == 24
    rows = [line.split() for line in text[1:-1]]
    assert rows[0] == ["system", "11"]
    assert rows[1] == ["turns", "1-2", "18"]
    assert rows[-2:] == [["turn", "12", "10", "q11"], ["left", "79"]]
    assert "/clear" in text[-1]


def test_a_banned_expert_makes_way_for_the_next_best(scripted: Make) -> None:
    session = scripted()
    weights = np.array([0.75, 0.25], np.float32)
    assert run_command("/ban", session).text == "all experts may write"
    assert "math will not write" in run_command("/ban math", session).text or "only code" in session.line()
    assert session.engine.policy.choose(weights) == ("code",)  # type: ignore[attr-defined]
    assert "code  programs" in run_command("/experts", session).text
    assert "(banned)" in run_command("/experts", session).text
    run_command("/force math", session)
    assert session.engine.policy.choose(weights[::-1]) == ("math",)  # type: ignore[attr-defined]
    assert "only math" in session.line()
    run_command("/force none", session)
    assert session.engine.policy.choose(weights) == ("math",)  # type: ignore[attr-defined]


def test_a_policy_that_does_not_route_cannot_be_told_whom_to_choose(scripted: Make) -> None:
    session = scripted()
    run_command("/set policy sum", session)
    with pytest.raises(UsageError, match="the policy sum does not route, so no expert can be forced or banned"):
        run_command("/force math", session)
    run_command("/set policy fusionroute", session)
    run_command("/force math", session)
    with pytest.raises(UsageError, match="the policy sum does not route"):
        run_command("/set policy sum", session)
    assert (session.settings.policy, session.allowed) == ("fusionroute", ("math",))


def test_save_and_load(scripted: Make, tmp_path: Path) -> None:
    session = scripted("1", "2", store=Store(tmp_path), system="Be kind.")
    with pytest.raises(UsageError, match="nothing was said yet"):
        run_command("/save holidays", session)
    answered(session, "a")
    assert "kept as holidays" in run_command("/save holidays", session).text
    assert [path.name for path in tmp_path.iterdir()] == ["holidays.json"]
    assert "kept as holidays after each turn" in run_command("/save", session).text
    assert "the last one is kept, /load holidays" in run_command("/clear", session).text
    run_command("/system Be brief.", session)
    answered(session, "b")
    session.keep()
    assert len(list(tmp_path.iterdir())) == 2
    assert "holidays" in run_command("/load", session).text
    assert run_command("/load holidays", session).text == "holidays goes on after 1 turn, the last: a"
    assert session.conversation.messages()[0]["content"] == session.settings.system == "Be kind."
    assert session.totals.used > 0


def test_load_says_that_another_bundle_began_it(scripted: Make, tmp_path: Path) -> None:
    session = scripted("1", store=Store(tmp_path))
    session.bundle = "quartet"
    answered(session, "a")
    session.keep()
    other = scripted(store=Store(tmp_path))
    text = run_command(f"/load {session.store.name}", other).text  # type: ignore[union-attr]
    assert text.endswith("it was begun with quartet")


def test_what_is_damaged_is_not_loaded(scripted: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    session = scripted("1", store=Store(tmp_path))
    answered(session, "a")
    with pytest.raises(DataError, match="damaged"):
        run_command("/load bad", session)
    assert [turn.question for turn in session.conversation.turns] == ["a"]


@pytest.mark.parametrize("suffix", [".md", ".html", ".json", ".MD"])
def test_export_replaces_nothing_unasked(scripted: Make, tmp_path: Path, suffix: str) -> None:
    session = scripted("one", "two")
    answered(session, "a")
    file = tmp_path / f"chat{suffix}"
    assert run_command(f"/export {file}", session).text == f"written to {file}"
    first = file.read_text()
    answered(session, "b")
    with pytest.raises(OutputError, match="exists; choose another name, or /export --force"):
        run_command(f"/export {file}", session)
    assert file.read_text() == first
    run_command(f"/export --force {file}", session)
    assert file.read_text() != first


def test_an_export_is_loaded_again(scripted: Make, tmp_path: Path) -> None:
    session = scripted("one")
    answered(session, "a")
    run_command(f"/export {tmp_path}/chat.json", session)
    other = scripted(store=Store(tmp_path / "sessions"))
    assert "goes on after 1 turn" in run_command(f"/load {tmp_path}/chat.json", other).text
    assert read_conversation(tmp_path / "chat.json").turns[0].experts == ("math", "code")


def test_trace_on_and_off(scripted: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    session = scripted()
    assert run_command("/trace", session).text == "no trace is written"
    assert run_command("/trace on", session).text == f"tokens are traced to {tmp_path}/frcli/traces/chat.jsonl"
    assert "traced" in session.line()
    assert run_command("/trace off", session).text == "no trace is written"
    with pytest.raises(OutputError, match="cannot write the trace"):
        run_command(f"/trace {tmp_path}", session)
    assert session.trace is None
