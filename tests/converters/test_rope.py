"""Scaled rotations: numbers worked by hand, and what configurations say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from converters.checkpoint import open_checkpoint
from converters.gguf_file import hyperparameters
from converters.hugging import read_config
from converters.rope import from_gguf, yarn_factors, yarn_scale
from frcli.errors import ModelError

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def test_yarn_by_hand() -> None:
    """Qwen2.5 from 32,768 to 131,072 positions.

    128 ln(32768 / (2 pi 32)) / (2 ln 10^6) is 23.6 and 128 ln(32768 / (2 pi)) / (2 ln 10^6) is 39.7, so pairs up to 23
    keep their frequency, those from 40 turn four times slower, and pair 30 is 7/17 of the way.
    """
    factors = yarn_factors(1e6, 128, 4.0, 32768)
    assert set(factors[:24]) == {1.0} and set(factors[40:]) == {4.0} and len(factors) == 64
    assert factors[30] == pytest.approx(1 / (7 / 17 / 4 + 10 / 17))
    assert yarn_scale(4.0) == pytest.approx(1 + 0.1 * 1.3862944)
    assert yarn_scale(1.0) == 1.0


def test_yarn_with_ramps_of_its_own() -> None:
    """Pairs that turn 8 and 2 times in 4096 positions: 16 ln(4096 / (2 pi 8)) / (2 ln 10^4) is 3.82, of 2 5.03."""
    between = yarn_factors(1e4, 16, 2.0, 4096, fast=8.0, slow=2.0, whole=False)
    first, last = (16 * np.log(4096 / (2 * np.pi * turns)) / (2 * np.log(1e4)) for turns in (8, 2))
    assert first == pytest.approx(3.82, abs=0.01) and last == pytest.approx(5.03, abs=0.01)
    assert between[3] == 1.0 and between[6] == 2.0
    assert between[4] == pytest.approx(1 / (1 - (4 - first) / (last - first) / 2))
    assert yarn_factors(1e4, 16, 2.0, 4096, fast=8.0, slow=2.0)[4] == pytest.approx(1 / (1 - 1 / 3 / 2))


def test_the_context_of_yarn(tmp_path: Path) -> None:
    """Whether or not config.json counts what the scaling adds."""
    folder = tiny.write_safetensors(tmp_path)
    for said, expected in ((64, 256), (256, 256), (300, 300)):
        _edit(folder / "config.json", max_position_embeddings=said, rope_scaling=YARN)
        config = read_config(folder)
        assert (config.context, config.yarn_factor, config.yarn_context) == (expected, 4.0, 64)
        assert config.rope_scale == pytest.approx(yarn_scale(4.0))
    _edit(folder / "config.json", rope_scaling=YARN | {"mscale": 2.0, "mscale_all_dim": 1.0})
    assert read_config(folder).rope_scale == pytest.approx((1 + 0.2 * np.log(4)) / (1 + 0.1 * np.log(4)))
    _edit(folder / "config.json", rope_scaling=YARN | {"attention_factor": 1.5})
    assert read_config(folder).rope_scale == 1.5


@pytest.mark.parametrize("change", [{"truncate": False}, {"beta_fast": 16}])
def test_ramps_that_llama_cpp_does_not_have(change: dict[str, object], tmp_path: Path) -> None:
    folder = tiny.write_safetensors(tmp_path)
    _edit(folder / "config.json", rope_scaling=YARN | {"original_max_position_embeddings": 4096} | change)
    with pytest.raises(ModelError, match="other ramps than llama"):
        hyperparameters(folder, read_config(folder))


def test_what_a_gguf_says_of_yarn() -> None:
    own = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.freq_base": 1e6, "context_length": 131072}
    own |= {"rope.scaling.original_context_length": 32768, "rope.scaling.attn_factor": 1.2}
    fields = from_gguf(Path("x.gguf"), own, {}, 128)
    assert fields["rope_factors"] == yarn_factors(1e6, 128, 4.0, 32768)
    assert fields["rope_scale"] == pytest.approx(1.2 * yarn_scale(4.0)) and fields["context"] == 131072
    with pytest.raises(ModelError, match="yarn_beta_fast"):
        from_gguf(Path("x.gguf"), own | {"rope.scaling.yarn_beta_fast": 16.0}, {}, 128)


def test_a_gemma3_that_sees_images(tmp_path: Path) -> None:
    """The config.json of the 4B model, which says little: the rest is as transformers takes it."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    config = read_config(tmp_path)
    assert (config.hidden, config.heads, config.kv_heads, config.head_dim) == (2560, 8, 4, 256)
    assert (config.vocab, config.context, config.query_scale, config.tied) == (262208, 131072, 1 / 16, True)
    assert config.windows[:6] == (1024,) * 5 + (0,) and len(config.windows) == 34
    assert config.frequencies(0)[1] == pytest.approx(1e4 ** (-1 / 128))
    assert config.frequencies(5)[1] == pytest.approx(1e6 ** (-1 / 128) / 8)


def test_llama3_scaling_of_the_rotation(tmp_path: Path) -> None:
    """Frequencies of long waves are divided by 8, those of short waves are kept, as their wavelengths say."""
    folder = tiny.write_safetensors(tmp_path)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    _edit(folder / "config.json", rope_scaling=scaling | {"original_max_position_embeddings": 8192})
    factors = np.array(open_checkpoint(folder).config.rope_factors)
    wavelengths = 2 * np.pi * 10000.0 ** (np.arange(0, 16, 2) / 16)
    assert (factors[wavelengths < 8192 / 4] == 1).all()
    assert (factors[wavelengths > 8192 / 1] == 8).all()
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    smooth = (8192 / wavelengths[between] - 1) / 3
    np.testing.assert_allclose(1 / factors[between], (1 - smooth) / 8 + smooth)
    assert between.any()

    _edit(folder / "config.json", rope_scaling={"type": "linear", "factor": 4.0})
    assert set(open_checkpoint(folder).config.rope_factors) == {4.0}
    cos, sin = open_checkpoint(folder).config.rotary(3)
    np.testing.assert_allclose(cos[2, 1], np.cos(2 * 10000.0 ** (-1 / 8) / 4), rtol=1e-6)
    np.testing.assert_allclose(sin[2, 1], np.sin(2 * 10000.0 ** (-1 / 8) / 4), rtol=1e-6)


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
