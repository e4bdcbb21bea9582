"""Slash commands, each by what it says and does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from frcli.chat.commands import COMMANDS, SETTABLE, Action, Reply, is_command, run_command
from frcli.chat.session import Session
from frcli.errors import UsageError

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


@pytest.mark.parametrize("line", ["/exit", "/bye", "/quit", "/exit now"])
def test_leaving(scripted: Make, line: str) -> None:
    assert run_command(line, scripted()).action is Action.LEAVE


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/exprts", "there is no command /exprts; did you mean /experts?"),
        ("/xyzzy", "there is no command /xyzzy; /help lists the commands"),
        ("/", "there is no command /"),
        ("/regen", "there is no answer to write again"),
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
    assert session.settings == before


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
    assert "tokens    6" in text
    assert "context   10 of 100 tokens (10%)" in text
    assert "code      2 tokens (33%)" in text
