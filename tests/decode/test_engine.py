"""The opened engine on tiny real models: what policies promise, and what is refused."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import tiny
from bundles import write_bundle

from frcli.bundle import Bundle, read_bundle
from frcli.decode.engine import Engine, Options
from frcli.decode.loop import Step
from frcli.decode.sampler import Sampling
from frcli.errors import BundleError, ContextError, ModelError, UsageError
from frcli.sources.source import Feed

GREEDY = Sampling(temperature=0)

pytestmark = pytest.mark.usefixtures("cache")


def answer(engine: Engine, prompt: str, n: int = 24, sampling: Sampling = GREEDY) -> list[Step]:
    steps: list[Step] = []
    tokens = engine.encode_messages([{"role": "user", "content": prompt}])
    engine.write(tokens, sampling, max_tokens=n, on_step=steps.append).run()
    return steps


def plain_llama(path: Path, prompt: list[int], n: int) -> list[int]:
    """llama.cpp's own greedy tokens: its sampler on its context, nothing of ours."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
    sampler = llama_cpp.llama_sampler_init_greedy()
    vocab, fed, tokens = llama_cpp.llama_model_get_vocab(model), list(prompt), []
    while len(tokens) < n:
        kept = (llama_cpp.llama_token * len(fed))(*fed)  # the batch only points to it
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(kept, len(fed))) == 0
        tokens.append(llama_cpp.llama_sampler_sample(sampler, context, -1))
        if llama_cpp.llama_vocab_is_eog(vocab, tokens[-1]):
            break
        fed = tokens[-1:]
    llama_cpp.llama_sampler_free(sampler)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return tokens


def test_one_expert_is_llama_cpp_greedy(bundle: Bundle) -> None:
    with Engine(bundle, Options(policy="expert:general")) as engine:
        prompt = engine.encode_messages([{"role": "user", "content": "the and of"}])
        tokens = [step.token for step in answer(engine, "the and of", 40)]
    assert tokens == plain_llama(bundle.base().path, prompt, 40)


def test_one_expert_and_a_router_with_gamma_zero_is_llama_cpp_greedy(tmp_path: Path) -> None:
    alone = write_bundle(tmp_path / "alone", ("general",))
    with Engine(alone, Options(gamma=0.0)) as engine:
        prompt = engine.encode_messages([{"role": "user", "content": "the and of"}])
        tokens = [step.token for step in answer(engine, "the and of", 40)]
    assert tokens == plain_llama(alone.base().path, prompt, 40)


def test_gamma_zero_is_exactly_the_routed_expert_alone(bundle: Bundle) -> None:
    with Engine(bundle, Options(gamma=0.0)) as engine:
        steps = answer(engine, "hello", 24)
        prompt = engine.encode_messages([{"role": "user", "content": "hello"}])
        assert len({step.experts for step in steps}) > 1
        # Each step again, by the expert that the router chose, from its own row and nothing else.
        tokens = list(prompt)
        for step in steps:
            source = engine.expert(step.experts[0])
            source.rewind(0, 0)
            row = source.extend([Feed(0, tokens)])[0].logits[0]
            best = float(row.max())
            assert best - float(row[step.token]) < 5e-3
            tokens.append(step.token)


def test_a_late_expert_agrees_with_one_that_read_every_token(bundle: Bundle) -> None:
    """Tolerance: 5e-3 of a logit, from the f16 cache that is filled in other shapes; tokens here lie further apart."""
    with Engine(bundle, Options(policy="expert:math")) as always, Engine(bundle) as fused:
        steps = answer(fused, "hello the world", 40)
        prompt = fused.encode_messages([{"role": "user", "content": "hello the world"}])
        late, early = fused.expert("math"), always.expert("math")
        tokens = [*prompt, *(step.token for step in steps)]
        for token in tokens[:-1]:
            early.extend([Feed(0, [token], 0)])
        expected = early.extend([Feed(0, tokens[-1:])])[0].logits[0].copy()
        behind = late.length(0)
        got = late.extend([Feed(0, tokens[behind:])])[0].logits[0]
        np.testing.assert_allclose(got, expected, atol=5e-3, rtol=0)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(bundle: Bundle) -> None:
    def tokens(seed: int) -> list[int]:
        with Engine(bundle) as engine:
            return [
                s.token
                for s in answer(engine, "hi", 24, Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed))
            ]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_an_expert_that_was_not_chosen_has_no_context(bundle: Bundle) -> None:
    with Engine(bundle, Options(policy="expert:code")) as engine:
        answer(engine, "x", 3)
        assert set(engine._sources) == {"code"}
        assert engine.router is None


def changed(bundle: Bundle, tmp_path: Path, old: str, new: str) -> Bundle:
    """A copy of the bundle whose manifest has ``new`` for ``old``."""
    import shutil

    folder = tmp_path / "trio"
    shutil.copytree(bundle.folder, folder)
    manifest = folder / "bundle.toml"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    return read_bundle(str(folder))


def test_an_expert_count_that_is_not_the_routers(bundle: Bundle, tmp_path: Path) -> None:
    fewer = changed(bundle, tmp_path, '[experts.code]\nadapter = "code.gguf"\n', "")
    path, built = fewer.router_model(), bundle.router_model()
    assert path is not None and built is not None
    path.write_bytes(built.read_bytes())
    with pytest.raises(
        BundleError, match=r"among 3 experts \(general, math, code\), and the manifest names 2 \(general, math\)"
    ):
        Engine(fewer)


def test_experts_with_different_tokenizers_are_refused_with_the_ids(bundle: Bundle, tmp_path: Path) -> None:
    other = changed(bundle, tmp_path, 'adapter = "math.gguf"', 'file = "other.gguf"')
    shape = tiny.TinyShape(vocabulary=tiny.TinyVocabulary(swapped=(40, 41)))
    tiny.write_gguf(other.folder / "other.gguf", shape)
    with pytest.raises(BundleError, match=r"different tokenizers.*40 .*41 "):
        Engine(other)


def test_an_expert_with_a_wider_padded_vocabulary_is_cut_to_the_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    wide = changed(bundle, tmp_path, 'adapter = "math.gguf"', 'file = "wide.gguf"')
    tiny.write_gguf(wide.folder / "wide.gguf", tiny.TinyShape(vocabulary=tiny.TinyVocabulary(padding=64)), seed=5)
    with Engine(wide, Options(policy="sum")) as engine:
        assert engine.width == engine.base.size
        steps = answer(engine, "hello", 12)
        assert len(steps) == 12 and all(step.token < engine.base.size for step in steps)


def test_a_router_that_is_not_built_or_an_adapter_that_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    other = changed(bundle, tmp_path, 'precision = "fp32"', 'precision = "int4"')
    with pytest.raises(BundleError, match="not built yet; run frcli models pull trio"):
        Engine(other)
    (other.folder / "math.gguf").unlink()
    with pytest.raises(BundleError, match=r"expert math file .*math.gguf is missing"):
        Engine(other)


def test_an_adapter_for_another_model(bundle: Bundle, tmp_path: Path) -> None:
    from converters.adapter import convert_adapter

    other = changed(bundle, tmp_path, 'adapter = "math.gguf"', 'adapter = "wrong.gguf"')
    shape = tiny.TinyShape(hidden=32, heads=2, kv_heads=2)
    base = tiny.write_gguf(tmp_path / "small.gguf", shape)
    convert_adapter(tiny.write_peft(tmp_path / "peft", shape), base, other.folder / "wrong.gguf")
    with Engine(other, Options(policy="expert:math")) as engine, pytest.raises(ModelError, match="wrong.gguf"):
        answer(engine, "hi", 1)


def test_prompts_that_are_too_long_or_empty_leave_the_engine_usable(bundle: Bundle) -> None:
    with Engine(bundle, Options(context=32)) as engine:
        with pytest.raises(ContextError, match="context 32"):
            answer(engine, "hello " * 40)
        with pytest.raises(UsageError, match="empty"):
            engine.write([], GREEDY).run()
        steps = answer(engine, "hi", 100)
        assert steps[-1].finish in ("context", "eos")


@pytest.mark.parametrize("threads", [-1, 100_000])
def test_threads_that_the_machine_does_not_have(bundle: Bundle, threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads are not possible"):
        Engine(bundle, Options(threads=threads))


def test_an_expert_that_somebody_else_has_used_starts_anew(bundle: Bundle) -> None:
    with Engine(bundle, Options(policy="expert:math")) as engine:
        expected = [step.token for step in answer(engine, "hello", 8)]
    with Engine(bundle, Options(policy="expert:math")) as engine:
        engine.expert("math").extend([Feed(0, [5, 6, 7], 0)])
        assert [step.token for step in answer(engine, "hello", 8)] == expected


def test_another_policy_with_the_same_models(bundle: Bundle) -> None:
    def tokens(policy: str) -> list[int]:
        with Engine(bundle, Options(policy=policy)) as engine:
            return [step.token for step in answer(engine, "hello", 8)]

    with Engine(bundle, Options(policy="expert:math")) as engine:
        for policy in ("expert:math", "fusionroute", "sum", "fusionroute"):
            engine.use(policy)
            assert engine.policy.name == policy
            assert [step.token for step in answer(engine, "hello", 8)] == tokens(policy)
        with pytest.raises(UsageError, match="nobody"):
            engine.use("expert:nobody", 0.1)
        assert (engine.policy.name, engine.options.gamma) == ("fusionroute", None)


def test_a_writing_that_is_left_frees_its_sampler(bundle: Bundle) -> None:
    with Engine(bundle, Options(policy="expert:general")) as engine:
        writing = engine.write(engine.encode_messages([{"role": "user", "content": "hi"}]), GREEDY, max_tokens=50)
        for _ in writing:
            break
        spans = iter(writing)
        assert list(spans) == []


def test_a_built_router_that_was_damaged_is_not_used(bundle: Bundle, tmp_path: Path) -> None:
    import hashlib
    import shutil

    from frcli.bundle import sha256_note

    other = tmp_path / "trio"
    shutil.copytree(bundle.folder, other)
    (other / "bundle.toml").write_text((other / "bundle.toml").read_text().replace('name = "trio"', 'name = "other"'))
    copied, built = read_bundle(str(other)).router_model(), bundle.router_model()
    assert copied is not None and built is not None
    content = bytearray(built.read_bytes())
    sha256_note(copied).write_text(hashlib.sha256(content).hexdigest())
    content[-3000:-2000] = bytes(1000)
    copied.write_bytes(content)
    with pytest.raises(BundleError, match="the built router file .* has sha256"):
        Engine(read_bundle(str(other)))


@pytest.mark.parametrize("context", [8, 513, 1 << 21])
def test_contexts_that_the_model_cannot_have(bundle: Bundle, context: int) -> None:
    with pytest.raises(UsageError, match=str(context)):
        Engine(bundle, Options(context=context))
