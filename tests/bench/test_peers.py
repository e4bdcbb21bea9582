"""The bare loops against the engine's sources on the same tiny models, and what llama-bench prints."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frcli.bench.peers import BareExpert, BareRouter, LlamaBench, llama_bench, loaded_model, parse_llama_bench
from frcli.bundle import Bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.sampler import Sampling
from frcli.errors import DataError, ModelError, UsageError
from frcli.sources.source import Feed

PROMPT = [1, 20, 30, 40, 50, 60, 70]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def engine(trio: Bundle) -> Iterator[Engine]:
    with Engine(trio, Options(threads=1, draft="off")) as opened:
        yield opened


def bare(engine: Engine, name: str, context: int = 256) -> BareExpert:
    artifact = engine.bundle.expert(name)
    return BareExpert(loaded_model(engine, name), artifact and artifact.path, context=context, threads=1)


@pytest.mark.parametrize("name", ["general", "math"])
def test_a_bare_loop_writes_what_the_engine_writes_with_that_expert_alone(engine: Engine, name: str) -> None:
    engine.use(policy=f"expert:{name}")
    written: list[int] = []
    banned = Sampling(temperature=0, logit_bias={0: float("-inf"), 2: float("-inf")})
    engine.write(PROMPT, banned, max_tokens=24, on_step=lambda step: written.append(step.token)).run()
    with bare(engine, name) as expert:
        run = expert.write(PROMPT, 24, GREEDY)
        again = expert.write(PROMPT, 24, GREEDY)
    ended = next((i for i, token in enumerate(run.tokens) if token in (0, 2)), 24)
    assert ended > 4
    assert run.tokens[:ended] == written[:ended]
    assert again.tokens == run.tokens  # nothing is left of the text before
    assert (run.prompt_tokens, len(run.tokens), len(run.calls)) == (7, 24, 23)
    assert 0 < sum(run.calls) <= run.generation


def test_adapters_make_a_difference(engine: Engine) -> None:
    with bare(engine, "general") as general, bare(engine, "math") as math:
        assert general.write(PROMPT, 24, GREEDY).tokens != math.write(PROMPT, 24, GREEDY).tokens


def test_a_bare_loop_samples_by_the_same_chain(engine: Engine) -> None:
    sampling = Sampling(temperature=0.8, seed=7)
    engine.use(policy="expert:general")
    written: list[int] = []
    engine.write(PROMPT, sampling, max_tokens=24, on_step=lambda step: written.append(step.token)).run()
    with bare(engine, "general") as expert:
        run = expert.write(PROMPT, 24, sampling)
        other = expert.write(PROMPT, 24, Sampling(temperature=0.8, seed=8))
    assert run.tokens[: len(written)] == written
    assert run.tokens != other.tokens


def test_a_prompt_longer_than_a_batch_is_read_in_pieces(engine: Engine) -> None:
    prompt = [3 + i % 250 for i in range(700)]
    with bare(engine, "general", context=1024) as expert:
        run = expert.write(prompt, 3, GREEDY)
    row = engine.expert("general")
    row.rewind(0, 0)
    with Engine(engine.bundle, Options(policy="expert:general", threads=1, context=1024, draft="off")) as other:
        source = other.expert("general")
        (rows,) = source.extend([Feed(0, prompt, 1)])
        assert run.tokens[0] == int(np.argmax(rows.logits[-1]))


@pytest.mark.parametrize(
    ("prompt", "tokens", "error"),
    [([], 4, UsageError), (PROMPT, 0, UsageError), (PROMPT, 250, UsageError), ([1, 10**6], 4, ModelError)],
)
def test_sizes_that_llama_cpp_would_end_the_process_for(
    engine: Engine, prompt: list[int], tokens: int, error: type[Exception]
) -> None:
    with bare(engine, "general") as expert, pytest.raises(error):
        expert.write(prompt, tokens, GREEDY)


def test_the_bare_router_gives_the_rows_of_the_source(engine: Engine) -> None:
    engine.use(policy="fusionroute")
    assert engine.router is not None
    alone = BareRouter(engine.router, context=256)
    run = alone.read(PROMPT, [11, 12, 13])
    engine.router.rewind(0, 0)
    (rows,) = engine.router.extend([Feed(0, [*PROMPT, 11, 12, 13], 1)])
    np.testing.assert_allclose(alone.last_row, rows.logits[-1], atol=1e-4)
    assert (run.prompt_tokens, run.tokens, len(run.calls)) == (7, [11, 12, 13], 3)
    engine.router.rewind(0, 0)


def test_the_bare_router_leaves_the_engines_text_alone(engine: Engine) -> None:
    engine.use(policy="fusionroute")
    assert engine.router is not None
    engine.router.rewind(0, 0)
    engine.router.extend([Feed(0, PROMPT, 0)])
    BareRouter(engine.router, context=256).read([5] * 20, [6])
    (rows,) = engine.router.extend([Feed(0, [11], 1)])
    kept = rows.logits[-1].copy()
    engine.router.rewind(0, 0)
    engine.router.extend([Feed(0, PROMPT, 0)])
    (rows,) = engine.router.extend([Feed(0, [11], 1)])
    np.testing.assert_array_equal(kept, rows.logits[-1])
    engine.router.rewind(0, 0)


def row(prompt: int, gen: int, speed: float) -> dict[str, Any]:
    """A row of ``llama-bench -o json``, cut to the fields of every version."""
    return {
        "build_commit": "8cf427ff",
        "build_number": 5163,
        "cpu_info": "a processor",
        "model_filename": "somewhere/base.gguf",
        "model_type": "llama ?B all F32",
        "n_threads": 2,
        "n_prompt": prompt,
        "n_gen": gen,
        "test_time": "2025-04-24T11:58:50Z",
        "avg_ns": 72135640,
        "stddev_ns": 0,
        "avg_ts": speed,
        "stddev_ts": 0.0,
        "samples_ns": [72135640],
        "samples_ts": [speed],
    }


def fake(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_llama_bench_is_run_on_the_base_with_the_same_threads(tmp_path: Path) -> None:
    rows = json.dumps([row(80, 0, 7100.5), row(0, 128, 118.9)])
    body = f"import json, sys\nopen({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(sys.argv[1:]))\nprint({rows!r})"
    program = fake(tmp_path / "llama-bench", body)
    found = llama_bench(program, Path("base.gguf"), prompt=80, tokens=128, threads=2, gpu_layers=0)
    assert found == LlamaBench(7100.5, 118.9, "5163 (8cf427ff)", 2, "llama ?B all F32")
    seen = json.loads((tmp_path / "seen").read_text())
    pairs = dict(zip(seen[::2], seen[1::2], strict=True))
    assert pairs == {
        "-m": "base.gguf",
        "-p": "80",
        "-n": "128",
        "-t": "2",
        "-ngl": "0",
        "-r": "1",
        "-o": "json",
    }


@pytest.mark.parametrize(
    "text", ["", "no json", "{}", "[]", "[1]", json.dumps([row(80, 0, 1.0)]), json.dumps([{"n_prompt": 1, "n_gen": 0}])]
)
def test_what_is_not_llama_benchs_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="llama-bench"):
        parse_llama_bench(text)


def test_a_llama_bench_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    program = fake(tmp_path / "llama-bench", "import sys\nsys.exit('no such model')")
    with pytest.raises(DataError, match="left with 1: no such model"):
        llama_bench(program, Path("x"), prompt=1, tokens=1, threads=1, gpu_layers=0)
    with pytest.raises(UsageError, match="cannot run"):
        llama_bench(tmp_path / "gone", Path("x"), prompt=1, tokens=1, threads=1, gpu_layers=0)
