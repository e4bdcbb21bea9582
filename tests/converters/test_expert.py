"""Whole checkpoints in GGUF, against transformers itself: every family, its tokens, texts, turns and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import gguf
import numpy as np
import pytest
import vocabularies

from converters import llamacpp
from converters.adapter import convert_adapter
from converters.checkpoint import open_checkpoint
from converters.expert import convert_expert
from converters.parity import kl
from frcli.errors import ModelError
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.source import Feed

pytestmark = pytest.mark.train

# Longer than the windows (24), shorter than what the scaled rotation was trained for.
TOKENS = np.random.default_rng(5).integers(3, 320, 100).tolist()
KINDS = {
    "llama": "gpt-2",
    "llama3": "llama-bpe",
    "llama3-tied": "llama-bpe",
    "llama-yarn": "llama-bpe",
    "mistral": "llama-2",
    "mistral-window": "llama-2",
    "qwen2": "qwen2",
    "qwen2-tied": "qwen2",
    "qwen2-window": "qwen2",
    "qwen2-yarn": "qwen2",
    "qwen3": "qwen2",
    "qwen3-yarn": "qwen2",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gemma3-images": "gemma",
    "smollm3": "llama-bpe",
    "smollm3-yarn": "llama-bpe",
    "phi3": "phi-3",
    "phi3-long": "phi-3",
}
# Caps that matter for such small logits, and a local rotation unlike the default.
MORE: dict[str, dict[str, Any]] = {"gemma2": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}}
WHOLE = [family for family in families.FAMILIES if not family.endswith("-window")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a family's model, its folder and its GGUF in f32; each is made once."""
    kept: dict[str, tuple[Any, Path, Path]] = {}

    def make(family: str) -> tuple[Any, Path, Path]:
        if family not in kept:
            folder = tmp_path_factory.mktemp(family)
            model = families.make(family, vocab_size=768, **MORE.get(family, {}))
            src = families.save(model, folder / "model")
            vocabularies.write_tokenizer(src, KINDS[family])
            done = convert_expert(src, folder / "f32.gguf", "f32")
            assert done.parity is not None and done.parity.max_kl < 1e-5
            assert len(done.notices) == (family in ("mistral-window", "qwen2-window"))
            kept[family] = model, src, folder / "f32.gguf"
        return kept[family]

    return make


@pytest.mark.parametrize("family", WHOLE)
def test_the_logits_are_those_of_transformers(family: str, made: Any) -> None:
    model, _, path = made(family)
    expected = families.logits(model, TOKENS)
    assert expected.std(axis=1).min() > 0.3  # else nothing would be proved
    assert kl(expected, llamacpp.logits(path, None, TOKENS)).max() < 1e-6


@pytest.mark.parametrize("family", WHOLE)
def test_the_converters_read_what_they_wrote(family: str, made: Any) -> None:
    _, src, path = made(family)
    original, again = open_checkpoint(src), open_checkpoint(path)
    for name in original.config.shapes():
        assert np.array_equal(original.tensor(name), again.tensor(name)), name
    for layer in range(original.config.layers):
        for a, b in zip(original.config.rotary(100, layer), again.config.rotary(100, layer), strict=True):
            assert np.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("family", WHOLE)
def test_token_by_token_is_the_same(family: str, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, path = made(family)
    assert kl(families.logits(model, TOKENS), in_steps(path, None, len(TOKENS), monkeypatch)).max() < 1e-6


def in_steps(path: Path, adapter: Path | None, length: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The logits of the first tokens through the engine's own source: some at once, more after a rewind that goes
    back by most of a window, the second half one by one.
    """
    start = 2 * length // 5
    with LlamaModelIn32(path, adapter, monkeypatch) as source:
        rows = [source.extend([Feed(0, TOKENS[:start], start)])[0].logits.copy()]
        source.extend([Feed(0, TOKENS[: start // 2], start // 2)])
        source.rewind(0, start)
        at = start
        for size in (1, 2, 1, 6, *[1] * (length - start - 10)):
            rows.append(source.extend([Feed(0, TOKENS[at : at + size], size)])[0].logits.copy())
            at += size
    assert at == length
    return np.concatenate(rows)


class LlamaModelIn32:
    """The engine's source with a cache in float32 and without flash attention, as the converters' checks have it."""

    def __init__(self, path: Path, adapter: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        import llama_cpp

        default = llama_cpp.llama_context_default_params

        def precise() -> Any:
            parameters = default()
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            return parameters

        monkeypatch.setattr(llama_cpp, "llama_context_default_params", precise)
        self._model = LlamaModel(path)
        self._adapter = None if adapter is None else self._model.load_adapter(adapter)

    def __enter__(self) -> LlamaSource:
        self._source = LlamaSource(self._model, context=256, adapter=self._adapter, max_rows=128, kv_type="f32")
        return self._source

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._model.close()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_adapters_of_every_family(family: str, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA of PEFT on all linear layers, with ranks of their own for some, against PEFT in torch: at once and in
    steps, to the end of the window where llama.cpp does not keep it.
    """
    import peft
    import torch

    model, src, path = made(family)
    config = type(model.config).from_pretrained(src)
    fresh = type(model).from_pretrained(src, config=config).float()
    # llama.cpp looks GELU up in half precision, which is most of what differs from torch and more with every update.
    where = ".*language_model.*self_attn.*_proj" if family == "gemma3-images" else "all-linear"
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=where, rank_pattern={"o_proj": 2}, use_rslora=True)
    tuned = peft.get_peft_model(fresh, settings).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "peft")
    adapter = tmp_path / "a.gguf"
    parity = convert_adapter(tmp_path / "peft", path, adapter, "f32")
    length = len(TOKENS) if family in WHOLE else 24
    expected = families.logits(tuned, TOKENS[:length])
    assert kl(expected, llamacpp.logits(path, None, TOKENS[:length])).mean() > 0.01  # the adapter matters
    assert kl(expected, llamacpp.logits(path, adapter, TOKENS[:length])).max() < 1e-6
    assert kl(expected, in_steps(path, adapter, length, monkeypatch)).max() < 1e-6
    assert parity.max_kl < 1e-5


def test_a_window_that_llama_cpp_ignores_ends_the_context(made: Any) -> None:
    model, _, path = made("mistral-window")
    assert gguf.GGUFReader(path).fields["llama.context_length"].contents() == 24
    expected, found = families.logits(model, TOKENS), llamacpp.logits(path, None, TOKENS)
    assert kl(expected[:24], found[:24]).max() < 1e-6
    assert kl(expected[40:], found[40:]).max() > 0.01  # what the notice is about


def test_phi3_with_a_window_ends_there(tmp_path: Path) -> None:
    src = families.save(families.make("phi3", vocab_size=768, sliding_window=32), tmp_path / "model")
    vocabularies.write_tokenizer(src, "phi-3")
    done = convert_expert(src, tmp_path / "x.gguf", "f32")
    assert "32 tokens" in done.notices[0] and done.parity is not None and done.parity.tokens == 32
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["phi3.context_length"].contents() == 32


def test_texts_beyond_the_trained_length_of_longrope(made: Any) -> None:
    """Both take the other factors for a text of more than 256 tokens."""
    model, _, path = made("phi3-long")
    tokens = np.random.default_rng(6).integers(3, 320, 300).tolist()
    assert kl(families.logits(model, tokens), llamacpp.logits(path, None, tokens)).max() < 1e-6


@pytest.mark.parametrize("quant, limit", [("f16", 1e-4), ("bf16", 1e-2), ("q8_0", 0.05)])
def test_half_precision_and_eight_bits_are_close(quant: str, limit: float, made: Any, tmp_path: Path) -> None:
    _, src, _ = made("qwen3")
    parity = convert_expert(src, tmp_path / "x.gguf", quant).parity
    assert parity is not None and 0 < parity.mean_kl < limit


@pytest.mark.parametrize(
    "family, change, match",
    [
        ("gemma2", {"attn_logit_softcapping": None}, "caps scores at 0"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "attention_scale"),
        ("gemma3", {"final_logit_softcapping": 9.0}, "logits at 9"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "unrotated"),
        ("qwen2", {"rope_parameters": families._LLAMA3}, "rope scaling"),
    ],
)
def test_what_llama_cpp_would_run_otherwise(family: str, change: dict[str, Any], match: str, tmp_path: Path) -> None:
    src = families.save(families.make(family, vocab_size=768, **change), tmp_path / "model")
    vocabularies.write_tokenizer(src, KINDS[family])
    with pytest.raises(ModelError, match=match):
        convert_expert(src, tmp_path / "x.gguf", "f32")
    assert not (tmp_path / "x.gguf").exists()


def test_gemma3_with_other_windows_is_refused(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    src = families.save(families.make("gemma3", vocab_size=768, layer_types=kinds), tmp_path / "model")
    vocabularies.write_tokenizer(src, "gemma")
    with pytest.raises(ModelError, match="windows"):
        convert_expert(src, tmp_path / "x.gguf", "f32")


def test_a_local_rotation_of_its_own(tmp_path: Path) -> None:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    }
    model = families.make("gemma3", vocab_size=768, rope_parameters=rope)
    src = families.save(model, tmp_path / "model")
    vocabularies.write_tokenizer(src, "gemma")
    convert_expert(src, tmp_path / "x.gguf", "f32")
    assert kl(families.logits(model, TOKENS), llamacpp.logits(tmp_path / "x.gguf", None, TOKENS)).max() < 1e-6
