"""Whether drafts change what is written, and where they do, how near to a tie the tokens were.

The rows of logits that decide a token are the same with drafts and without, but for the rounding of llama.cpp's and
ONNX Runtime's sums, which depends on how many tokens a call has. Two tokens whose fused logits are nearer to each other
than that may then be taken for each other, and the rest of the answer follows the one that was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from frcli.bench.engines import Engines, barred, forget
from frcli.bench.measure import Measured
from frcli.bench.plan import Plan, Prompt, fused_name
from frcli.bench.recording import Recording
from frcli.bench.spread import significant
from frcli.decode.draft import OFF
from frcli.decode.engine import Engine
from frcli.decode.sampler import Sampling
from frcli.fusion.around import Observed
from frcli.sources.source import Logits

MOST = 50  # differences that are looked into


def compare(engines: Engines, plan: Plan, prompts: Sequence[Prompt], measured: Measured) -> dict[str, Any]:
    """How the answers of each fused configuration compare with those without drafts; empty when there is only that.

    For each: ``prompts`` and ``answers`` (prompts x repetitions) compared; ``differ``, at how many prompts an answer
    was another one in some repetition; and for these ``differences`` (:func:`explain`).
    """
    compared = []
    for (draft, temperature), fused in measured.fused.items():
        if draft != OFF:
            name, engine = fused_name(draft), partial(engines.engine, draft)
            compared.append(_compare(name, temperature, fused, engine, engines, plan, prompts, measured))
    for (sequences, temperature), batch in measured.batch.items():
        name = plan.batch_name(sequences)
        compared.append(_compare(name, temperature, batch, None, engines, plan, prompts, measured))
    return {"reference": fused_name(OFF), "compared": compared} if compared else {}


def _compare(
    name: str,
    temperature: float,
    repetitions: Sequence[Sequence[Recording]],
    other: Callable[[], Engine] | None,
    engines: Engines,
    plan: Plan,
    prompts: Sequence[Prompt],
    measured: Measured,
) -> dict[str, Any]:
    answers, differing = 0, {}
    for plain, recordings in zip(measured.fused[OFF, temperature], repetitions, strict=True):
        for p in range(len(prompts)):
            one = next(r.tokens(p) for r in plain if p in r.prompts)
            two = next(r.tokens(p) for r in recordings if p in r.prompts)
            answers += 1
            if p not in differing and first_difference(one, two) is not None:
                differing[p] = one, two
    differences = []
    for p, (one, two) in list(differing.items())[:MOST]:
        engine = engines.engine(OFF)
        sampling = plan.sampling(temperature, p, barred(plan, engine))
        differences.append({"prompt": p, **explain(engine, other, prompts[p].tokens, sampling, one, two)})
    row = {"name": name, "temperature": temperature, "prompts": len(prompts), "answers": answers}
    return {**row, "differ": len(differing), "differences": differences}


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token in which two answers differ, or the shorter one's length; None if they are equal."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return None if len(one) == len(other) else min(len(one), len(other))


def explain(
    plain: Engine,
    drafting: Callable[[], Engine] | None,
    prompt: Sequence[int],
    sampling: Sampling,
    one: Sequence[int],
    other: Sequence[int],
) -> dict[str, Any]:
    """Where the answers ``one`` (of ``plain``) and ``other`` (of ``drafting``) first differ, and by how little.

    ``at`` is the token's place in the answer; ``gap`` the difference of the two tokens' fused logits without drafts;
    ``shift`` how far drafts moved the fused logit of one of these tokens, when the answer is written again up to there
    (absent when it went another way this time). At temperature 0 a gap of at most twice the shift is a tie as far as
    the arithmetic goes. At other temperatures a draw falls between two tokens, whatever their gap is.
    """
    at = first_difference(one, other)
    assert at is not None
    found: dict[str, Any] = {"at": at}
    if at >= min(len(one), len(other)):
        return found
    before = _row(plain, prompt, sampling, one[:at], at + 1)
    if before is None:
        return found
    pair = np.array([one[at], other[at]])
    found["gap"] = significant(float(abs(before[pair[0]] - before[pair[1]])))
    after = None if drafting is None else _row(drafting(), prompt, sampling, one[:at], at + 1)
    if after is not None:
        found["shift"] = significant(float(np.abs(before[pair] - after[pair]).max()))
    return found


def _row(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, before: Sequence[int], tokens: int
) -> Logits | None:
    """The fused row of the last of ``tokens`` tokens, None when those before it are not ``before`` this time."""
    policy = engine.policy
    fused: list[Logits] = []
    written: list[int] = []

    def see(_: Mapping[str, Logits], row: Logits) -> None:
        fused[:] = [row.copy()]

    forget(engine)
    engine.decoder.use(Observed(policy, see), engine.router, engine.width)
    try:
        engine.write(prompt, sampling, max_tokens=tokens, on_step=lambda step: written.append(step.token)).run()
    finally:
        engine.decoder.use(policy, engine.router, engine.width)
    return fused[-1] if fused and written[: tokens - 1] == list(before) and len(written) == tokens else None
