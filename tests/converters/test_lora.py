from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny

from converters.checkpoint import open_checkpoint
from converters.lora import Lora, merge, read_peft
from frcli.errors import ModelError

Q1 = "model.layers.1.self_attn.q_proj"
UP0 = "model.layers.0.mlp.up_proj"


def test_reads_what_was_written(peft: Path) -> None:
    updates = read_peft(peft)
    expected = tiny.lora()
    assert set(updates) == set(expected)
    assert list(updates)[0].startswith("model.layers.0.") and list(updates)[-1].startswith("model.layers.1.")
    for name, (a, b) in expected.items():
        np.testing.assert_array_equal(updates[name].a, a)
        np.testing.assert_array_equal(updates[name].b, b)
        assert updates[name].scale == 2.0


@pytest.mark.parametrize(
    ("settings", "query", "other"),
    [
        ({"use_rslora": True}, 8 / math.sqrt(4), 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 2.0}}, 0.5, 2.0),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3.0}}, 0.75, 2.0),
        ({"alpha_pattern": {r"model\.layers\.\d+\.mlp.*": 1.0}}, 2.0, 0.25),
        ({"alpha_pattern": {"proj": 1.0}}, 2.0, 2.0),  # no dotted tail is "proj" alone
    ],
)
def test_scales(settings: dict[str, object], query: float, other: float, tmp_path: Path) -> None:
    updates = read_peft(tiny.write_peft(tmp_path, **settings))
    assert updates[Q1].scale == pytest.approx(query)
    assert updates[UP0].scale == pytest.approx(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 5}, "rank 4 for"),
        ({"rank_pattern": {"q_proj": 8}}, "rank 4 for .*q_proj"),
        ({"r": None}, "no usable r"),
        ({"r": 10**400}, "no usable r|has r="),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"kasa_config": {"beta": 1e-4}}, "also changes the base"),
    ],
)
def test_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_peft(tiny.write_peft(tmp_path, **settings))


def test_refused_files(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    with pytest.raises(ModelError, match="no adapter folder"):
        read_peft(tmp_path / "absent")
    folder = tiny.write_peft(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    lonely = dict(tensors)
    del lonely[f"base_model.model.{Q1}.lora_B.weight"]
    save_file(lonely, file)
    with pytest.raises(ModelError, match="no matching lora_A and lora_B"):
        read_peft(folder)
    save_file(tensors | {"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(ModelError, match="not a LoRA matrix"):
        read_peft(folder)
    seeing = {name.replace("model.layers", "model.vision_tower.layers"): tensor for name, tensor in tensors.items()}
    save_file(seeing, file)
    with pytest.raises(ModelError, match="not of the language model"):
        read_peft(folder)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match="adapter_model"):
        read_peft(folder)
    file.unlink()
    with pytest.raises(ModelError, match="adapter_model"):
        read_peft(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"pickle file adapter_model\.bin, which can run any code.*save it as safetensors"
    ):
        read_peft(folder)


def test_merge_adds_scale_b_a(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    a, b = tiny.lora()[Q1]
    merged = merge(checkpoint, {Q1: Lora(a.astype(np.float16), b, -0.5)})
    expected = tiny.weights()[f"{Q1}.weight"] - 0.5 * b @ a
    np.testing.assert_allclose(merged.tensor(f"{Q1}.weight"), expected, atol=2e-3)
    np.testing.assert_array_equal(merged.tensor(f"{UP0}.weight"), checkpoint.tensor(f"{UP0}.weight"))


def test_an_update_of_the_head_unties_it(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    vocab, hidden = checkpoint.config.vocab, checkpoint.config.hidden
    a, b = np.ones((1, hidden), np.float32), np.ones((vocab, 1), np.float32)
    merged = merge(checkpoint, {"lm_head": Lora(a, b, 3.0)})
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    assert not merged.config.tied
    np.testing.assert_array_equal(merged.tensor("model.embed_tokens.weight"), embedding)
    np.testing.assert_allclose(merged.tensor("lm_head.weight"), embedding + 3)


@pytest.mark.parametrize("module", ["model.layers.2.mlp.up_proj", "model.norm", "model.embed_tokens", "nowhere"])
def test_an_update_without_a_place(module: str, base: Path) -> None:
    update = Lora(np.zeros((1, 64), np.float32), np.zeros((96, 1), np.float32), 1.0)
    with pytest.raises(ModelError, match=f"update of {module} has no linear layer"):
        merge(open_checkpoint(base), {module: update})


def test_an_update_of_another_size(base: Path) -> None:
    update = Lora(np.zeros((1, 32), np.float32), np.zeros((96, 1), np.float32), 1.0)
    with pytest.raises(ModelError, match=r"\[96, 32\].*\[96, 64\]"):
        merge(open_checkpoint(base), {UP0: update})
