"""Branches with real models: what was read up to a mark is not read again, and a trace has all tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import write_bundle

from frcli.chat.commands.table import run_command
from frcli.chat.session import Session
from frcli.config import Settings
from frcli.decode.engine import Engine
from frcli.decode.loop import Step

QUESTION = "What do you think of that, and why?"


class Watched(Session):
    """A session that tells how many tokens the expert read for the first token of the last answer."""

    read = 0

    def answer(self, question: str) -> list[int]:
        """Ask; return the prompt."""
        self.ask(question)
        self.read = 0
        self.record(self.write().run())
        return self.engine.encode_messages(self.conversation.messages()[:-1])

    def _step(self, step: Step) -> None:
        super()._step(step)
        self.read = self.read or step.read


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("branches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRCLI_CACHE", str(folder / "cache"))
        bundle = write_bundle(folder / "trio")
        settings = Settings(threads=1).with_bundle(bundle)
        with Engine(bundle, settings.options()) as opened:
            yield opened


def chat(engine: Engine, **settings: object) -> Watched:
    given = Settings(**{"policy": "fusionroute", "gamma": 0.5, "temperature": 0.0, "max_tokens": 8, **settings})  # type: ignore[arg-type]
    session = Watched(engine, given, dict.fromkeys(engine.bundle.experts, ""))
    session.allow(engine.bundle.experts)
    return session


def common(one: list[int], other: list[int]) -> int:
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


@pytest.mark.parametrize("back", ["/pop", "/undo"])
def test_what_was_read_up_to_a_branch_is_not_read_again(engine: Engine, back: str) -> None:
    session = chat(engine)
    run_command("/force math", session)
    session.answer(QUESTION)
    run_command("/push", session)
    first = session.answer("Tell me more.")
    run_command(back, session)
    second = session.answer("Something else.")
    shared = common(first, second)
    assert shared > len(engine.encode_messages([{"role": "user", "content": QUESTION}]))
    assert session.read == len(second) - shared
    run_command("/force none", session)


def test_regen_reads_one_token(engine: Engine) -> None:
    session = chat(engine)
    run_command("/force math", session)
    session.answer(QUESTION)
    run_command("/regen", session)
    session.read = 0
    session.record(session.write().run())
    assert session.read == 1
    run_command("/force none", session)


def test_only_those_who_may_write_do(engine: Engine) -> None:
    session = chat(engine, max_tokens=40)
    for command, allowed in (
        ("/force code", {"code"}),
        ("/force none", {"general", "math", "code"}),
        ("/ban code", {"general", "math"}),
        ("/ban general", {"math"}),
    ):
        run_command(command, session)
        session.conversation.clear()
        session.answer(QUESTION)
        written = {name for _, names, _ in session.conversation.turns[0].tokens for name in names}
        assert written <= allowed, command
    run_command("/ban none", session)


def test_a_trace_has_every_token_and_changes_none(engine: Engine, tmp_path: Path) -> None:
    session = chat(engine, max_tokens=24)
    session.answer(QUESTION)
    plain = session.conversation.turns[0]
    run_command("/clear", session)
    run_command(f"/trace {tmp_path}/trace.jsonl", session)
    session.answer(QUESTION)
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert session.conversation.turns[0].answer == plain.answer
    assert [line["experts"] for line in lines] == [list(names) for _, names, _ in plain.tokens]
    assert {line["rank"] for line in lines} == {1}  # at temperature 0 it is always the likeliest
    assert all(line["rank_change"] == line["expert_rank"] - 1 >= 0 for line in lines)
    run_command("/trace off", session)
    run_command("/regen", session)
    session.record(session.write().run())
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == len(lines)


def test_without_the_routers_logits_no_rank_changes(engine: Engine, tmp_path: Path) -> None:
    session = chat(engine, max_tokens=12, gamma=0.0)
    run_command(f"/trace {tmp_path}/trace.jsonl", session)
    session.answer(QUESTION)
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert {line["rank_change"] for line in lines} == {0}
    run_command("/trace off", session)
