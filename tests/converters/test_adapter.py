from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

from converters.adapter import convert_adapter
from converters.checkpoint import open_checkpoint
from converters.parity import check_window, kl
from converters.reference import logits
from frcli.errors import ModelError, OutputError, UsageError

Q0 = "blk.0.attn_q.weight"


def test_float16_is_close_and_is_the_default(base: Path, peft: Path, tmp_path: Path) -> None:
    got = convert_adapter(peft, base, tmp_path / "a.gguf")
    assert got.mean_kl < 1e-3 and got.top1 > 0.98 and got.tokens > 100
    assert _read(tmp_path / "a.gguf")[1][Q0 + ".lora_a"].dtype == np.float16


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3.0, "layers.1.mlp.up_proj": -1.0}},
        {"modules": ("self_attn.q_proj", "self_attn.k_proj")},
    ],
)
def test_float32_is_exact(settings: dict[str, object], base: Path, tmp_path: Path) -> None:
    peft = tiny.write_peft(tmp_path / "peft", **settings)
    got = convert_adapter(peft, base, tmp_path / "a.gguf", "f32")
    assert got.mean_kl < 1e-7
    assert got.top1 > 0.99


def test_the_adapter_matters(base: Path, peft: Path) -> None:
    """Without its adapter the model is far from the source, so that the agreement above is the adapter's doing."""
    from converters.llamacpp import logits as llama_logits
    from converters.lora import merge, read_peft

    checkpoint = open_checkpoint(base)
    tokens = check_window(base, checkpoint.config.vocab, 60).tokens
    merged = logits(merge(checkpoint, read_peft(peft)), tokens)
    assert kl(merged, llama_logits(base, None, tokens)).mean() > 0.3


def test_contents(base: Path, peft: Path, tmp_path: Path) -> None:
    convert_adapter(peft, base, tmp_path / "a.gguf", "f32")
    fields, tensors = _read(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 8.0
    assert len(tensors) == 2 * 7 * 2
    a, b = tiny.lora()["model.layers.0.self_attn.q_proj"]
    np.testing.assert_array_equal(tensors[Q0 + ".lora_a"], a)
    # Head 0 of 16 rows: rows 0 and 8 turn together, then 1 and 9.
    np.testing.assert_array_equal(tensors[Q0 + ".lora_b"][:4], b[[0, 8, 1, 9]])
    a, b = tiny.lora()["model.layers.1.self_attn.v_proj"]
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight.lora_b"], b)


def test_different_scales_are_folded(base: Path, tmp_path: Path) -> None:
    peft = tiny.write_peft(tmp_path / "peft", alpha_pattern={"v_proj": 2.0})
    convert_adapter(peft, base, tmp_path / "a.gguf", "f32")
    fields, tensors = _read(tmp_path / "a.gguf")
    assert fields["adapter.lora.alpha"] == 0.0
    _, b = tiny.lora()["model.layers.0.self_attn.v_proj"]
    np.testing.assert_array_equal(tensors["blk.0.attn_v.weight.lora_b"], 0.5 * b)
    _, b = tiny.lora()["model.layers.0.mlp.down_proj"]
    np.testing.assert_array_equal(tensors["blk.0.ffn_down.weight.lora_b"], 2 * b)


def test_refused(base: Path, untied: Path, peft: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with pytest.raises(UsageError, match="f8"):
        convert_adapter(peft, base, out, "f8")
    with pytest.raises(UsageError, match="folder"):
        convert_adapter(peft, tmp_path, out)
    with pytest.raises(ModelError, match="is for a layer of shape"):
        convert_adapter(peft, untied, out)
    with pytest.raises(ModelError, match="DoRA"):
        convert_adapter(tiny.write_peft(tmp_path / "dora", use_dora=True), base, out)
    assert not out.exists()


def test_values_that_float16_cannot_hold(base: Path, tmp_path: Path) -> None:
    peft = tiny.write_peft(tmp_path / "peft", alpha=8e6, alpha_pattern={"q_proj": 1.0})
    with pytest.raises(ModelError, match="float16 cannot hold"):
        convert_adapter(peft, base, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_an_update_of_a_tied_head(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    peft = tiny.write_peft(tmp_path / "peft")
    file = peft / "adapter_model.safetensors"
    vocab = tiny.TinyShape().vocab
    head = {
        "base_model.model.lm_head.lora_A.weight": np.ones((4, 64), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((vocab, 4), np.float32),
    }
    save_file(load_file(file) | head, file)
    with pytest.raises(ModelError, match="no place for an update of lm_head"):
        convert_adapter(peft, base, tmp_path / "a.gguf")


def test_existing_adapter(base: Path, peft: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        convert_adapter(peft, base, out)
    assert out.read_bytes() == b"precious"
    convert_adapter(peft, base, out, force=True)
    assert out.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [out]


def _read(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}
