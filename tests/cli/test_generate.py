"""``frcli generate`` on a tiny bundle: rows in, answers out, settings of both, and what is kept when it goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("trio")


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: dict[str, Any] | str) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(frcli: Run, source: Path, *flags: str, out: Path | None = None) -> tuple[Any, list[dict[str, Any]]]:
    target = out or source.with_name("out.jsonl")
    ran = frcli("generate", source, "-o", target, "-b", "trio", *flags)
    return ran, read(target) if target.exists() else []


def test_rows_are_answered_as_the_engine_answers(
    frcli: Run, rows: Callable[..., Path], trio: Bundle, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two"}]
    raw = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 4}}
    ran, answers = generate(frcli, rows({"prompt": "one"}, {"id": "b", "messages": messages}, raw), "-n", "9")
    assert ran.code == 0
    with Engine(trio, Options(threads=1)) as engine:
        prompts = [
            (engine.encode_messages([{"role": "user", "content": "one"}]), 9),
            (engine.encode_messages(messages), 9),
            (engine.base.encode("Once", special=True), 4),
        ]
        expected = [engine.write(p, Sampling(temperature=0), max_tokens=n).run() for p, n in prompts]
    assert [(a["id"], a["text"], a["finish_reason"]) for a in answers[:2]] == [
        (1, expected[0].text, expected[0].finish_reason),
        ("b", expected[1].text, expected[1].finish_reason),
    ]
    assert answers[0]["usage"]["experts"] == expected[0].experts
    body = answers[2]["response"]["body"]
    assert (body["choices"][0]["text"], body["model"]) == (expected[2].text, "trio")
    assert "3 rows, 0 failed, " in ran.err.splitlines()[-1]


def test_a_system_prompt_goes_before_rows_that_have_none(
    frcli: Run, rows: Callable[..., Path], trio: Bundle, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "two"}
    given = rows({"prompt": "two"}, {"messages": [user]}, {"messages": [system, user]})
    ran, answers = generate(frcli, given, "-n", "9", "--system", "Be brief.")
    assert ran.code == 0
    with Engine(trio, Options(threads=1)) as engine:
        expected = engine.write(engine.encode_messages([system, user]), Sampling(temperature=0), max_tokens=9).run()
    assert [answer["text"] for answer in answers] == [expected.text] * 3


def test_rows_that_fail_leave_the_others_and_exit_code_3(frcli: Run, rows: Callable[..., Path]) -> None:
    lines = ({"prompt": "one"}, "{broken", {"prompt": "far too long " * 300}, {"prompt": "x", "temperature": 999})
    ran, answers = generate(frcli, rows(*lines, {"prompt": "two"}), "-n", "3")
    assert ran.code == 3
    assert ["text" in answer for answer in answers] == [True, False, False, False, True]
    assert "the context 256" in answers[2]["error"]["message"]
    assert "temperature is 999" in answers[3]["error"]["message"]
    assert ran.err.splitlines()[-1].startswith("frcli: 3 of 5 rows failed; ")


def test_standard_input_and_output(frcli: Run) -> None:
    ran = frcli("generate", "-", "-b", "trio", "-n", "3", "-q", stdin='{"prompt": "one"}\n{"prompt": "two"}\n')
    assert (ran.code, ran.err) == (0, "")
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == [1, 2]


def test_each_row_has_a_random_stream_of_its_own(frcli: Run, rows: Callable[..., Path]) -> None:
    flags = ("-n", "8", "-t", "2", "--seed", "10")
    _, answers = generate(frcli, rows(*[{"prompt": "same"}] * 3), *flags)
    assert len({answer["text"] for answer in answers}) > 1
    # The second row alone, with the seed that it had: nothing depends on the row before it.
    _, alone = generate(frcli, rows({"prompt": "same", "seed": 11}), *flags, "--force")
    assert alone[0]["text"] == answers[1]["text"]
    # An id takes the place of the line: a row that has one is answered the same wherever it is.
    _, named = generate(frcli, rows({"prompt": "x"}, {"prompt": "same", "id": "a"}), *flags, "--force")
    _, first = generate(frcli, rows({"prompt": "same", "id": "a"}), *flags, "--force")
    assert named[1]["text"] == first[0]["text"]


def test_a_row_wins_over_the_flags(frcli: Run, rows: Callable[..., Path]) -> None:
    source = rows({"prompt": "one", "max_tokens": 2}, {"prompt": "one"}, {"prompt": "one", "temperature": 0})
    _, answers = generate(frcli, source, "-n", "5", "-t", "2", "--seed", "1")
    assert [a["usage"]["completion_tokens"] for a in answers[:2]] == [2, 5]
    _, greedy = generate(frcli, rows({"prompt": "one"}), "-n", "5", "--force")
    assert answers[2]["text"] == greedy[0]["text"]


def test_limit_answers_the_first_rows(frcli: Run, rows: Callable[..., Path]) -> None:
    ran, answers = generate(frcli, rows(*[{"prompt": "x"}] * 5), "-n", "2", "--limit", "2")
    assert (ran.code, [a["id"] for a in answers]) == (0, [1, 2])


def test_an_output_that_exists_is_kept(frcli: Run, rows: Callable[..., Path]) -> None:
    source = rows({"prompt": "x"})
    out = source.with_name("out.jsonl")
    out.write_text("precious\n")
    ran = frcli("generate", source, "-o", out, "-b", "trio")
    assert ran.code == 1
    assert f"{out} exists" in ran.err
    assert out.read_text() == "precious\n"
    ran, answers = generate(frcli, source, "-n", "2", "--force")
    assert (ran.code, len(answers)) == (0, 1)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["nowhere.jsonl"], 2, "nowhere.jsonl does not exist"),
        (["-", "--top-p", "3"], 2, "top_p is 3.0"),
        (["-", "-b", "nosuch"], 1, "there is no bundle 'nosuch'"),
        (["-"], 1, "standard input has no rows"),
    ],
)
def test_what_cannot_be_begun(frcli: Run, flags: list[str], code: int, said: str) -> None:
    ran = frcli("generate", "-b", "trio", *flags)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_log_probabilities_are_those_of_the_fused_distribution(
    frcli: Run, rows: Callable[..., Path], trio: Bundle, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRCLI_CACHE", environ["FRCLI_CACHE"])
    body = {"prompt": "Once", "max_tokens": 6, "logprobs": 3, "temperature": 2, "seed": 4}
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "logprobs": True, "n": 2}
    ran, answers = generate(
        frcli,
        rows(
            {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body},
            {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        ),
    )
    assert ran.code == 0
    choice = answers[0]["response"]["body"]["choices"][0]
    scores = choice["logprobs"]
    assert "".join(scores["tokens"]) == choice["text"] or any("bytes:" in token for token in scores["tokens"])
    with Engine(trio, Options(threads=1)) as engine:
        # The same tokens forced upon the engine, whose likelihood is computed in another way.
        from frcli.decode.scoring import score_many

        prompt = engine.base.encode("Once", special=True)
        steps = list(engine.steps(prompt, Sampling(temperature=2, seed=4), max_tokens=6))
        tokens = [step.token for step in steps if step.finish != "eos"]
        (likelihood,) = dict(score_many(engine, [(prompt, tokens)])).values()
    assert sum(scores["token_logprobs"]) == pytest.approx(likelihood.logprob, abs=1e-3)
    for token, logprob, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert len(top) == 3
        assert logprob <= max(top.values()) <= 0
        assert top.get(token, logprob) == logprob
    both = answers[1]["response"]["body"]["choices"]
    assert len(both) == 2
    assert all(len(each["logprobs"]["content"]) in (3, 4) for each in both)
    assert all(part["top_logprobs"] == [] for each in both for part in each["logprobs"]["content"])


def test_several_answers_of_a_row_are_drawn_apart(frcli: Run, rows: Callable[..., Path]) -> None:
    body = {"prompt": "Once", "max_tokens": 6, "temperature": 2, "seed": 4, "n": 5}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    _, answers = generate(frcli, rows(line), "--parallel", "2")
    texts = [each["text"] for each in answers[0]["response"]["body"]["choices"]]
    assert len(set(texts)) > 1
    alone = {**line, "body": {**body, "n": 1}}
    _, first = generate(frcli, rows(alone), "--force")
    assert first[0]["response"]["body"]["choices"][0]["text"] == texts[0]


def test_an_answer_keeps_to_a_schema(frcli: Run, rows: Callable[..., Path]) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    _, answers = generate(frcli, rows({"prompt": "one", "response_format": form}), "-n", "200")
    assert set(json.loads(answers[0]["text"])) == {"a", "b"}


def test_unknown_fields_are_refused_or_kept(frcli: Run, rows: Callable[..., Path]) -> None:
    source = rows({"prompt": "one", "gold": 4}, {"prompt": "two"})
    ran, answers = generate(frcli, source, "-n", "2")
    assert ran.code == 3
    assert "unknown field gold" in answers[0]["error"]["message"]
    ran, answers = generate(frcli, source, "-n", "2", "--lenient")
    assert ran.code == 0
    assert (answers[0]["extra"], "extra" in answers[1]) == ({"gold": 4}, False)
    assert "2 rows (1 were there), 0 failed" in ran.err


def test_a_dry_run_counts_and_writes_nothing(frcli: Run, rows: Callable[..., Path]) -> None:
    source = rows({"prompt": "one"}, {"prompt": "two", "max_tokens": 3}, {"prompt": "too long " * 300}, "{")
    ran = frcli("generate", source, "-o", source.with_name("out.jsonl"), "-b", "trio", "-n", "7", "--dry-run")
    assert ran.code == 0
    told = dict(line.split(None, 1) for line in ran.out.splitlines())
    assert told["rows"] == "4"
    assert told["refused"].startswith("2 (line 3: the prompt has ")
    assert told["answers"] == "at most 10 tokens"
    assert [each.name for each in source.parent.iterdir()] == ["in.jsonl"]


@pytest.fixture
def started(tmp_path: Path, environ: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """A long job in a process of its own that has answered a few rows."""

    def start(source: Path, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "frcli", "generate", str(source), "-o", str(out), "-b", "trio", "-n", "4"]
        process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
        journal = out.with_name(out.name + ".journal")
        end = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 2) and time.monotonic() < end:
            time.sleep(0.02)
        return process

    return start


def kept(out: Path) -> list[dict[str, Any]]:
    return read(out.with_name(out.name + ".journal"))


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_stopped_keeps_the_rows_that_are_done(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path, wish: signal.Signals
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "one"}\n' * 100_000)
    process = started(source, out)
    process.send_signal(wish)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert not out.exists()
    assert kept(out)[0]["record"]["id"] == 1
    assert f"{len(kept(out))} finished rows are safe in {out}.journal" in said.splitlines()[-1]


def test_a_job_that_was_killed_goes_on(
    started: Callable[..., subprocess.Popen[str]], frcli: Run, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"custom_id": f"q{n}", "prompt": f"one {n}"}) + "\n" for n in range(40)))
    process = started(source, out)
    process.kill()
    process.communicate()
    known = out.with_name(out.name + ".journal").read_bytes().count(b"\n")
    ran = frcli("generate", source, "-o", out, "-b", "trio", "-n", "4")
    assert ran.code == 0
    assert f"40 rows ({known} were there), 0 failed" in ran.err
    answers = read(out)
    assert [answer["id"] for answer in answers] == [f"q{n}" for n in range(40)]
    _, whole = generate(frcli, source, "-n", "4", out=tmp_path / "whole.jsonl")
    assert answers == whole
