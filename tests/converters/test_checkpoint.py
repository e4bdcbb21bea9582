from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import tiny

from converters.checkpoint import fingerprint, open_checkpoint
from converters.gguf_model import deinterleave, gguf_name, interleave
from frcli.errors import ModelError


def test_interleaving_by_hand() -> None:
    """Two heads of four rows: llama.cpp wants row i beside row i + 2 of the same head."""
    rows = np.arange(8)[:, None]
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_array_equal(deinterleave(interleave(rows, 2), 2), rows)
    matrix = np.random.default_rng(0).standard_normal((48, 5))
    np.testing.assert_array_equal(deinterleave(interleave(matrix, 3), 3), matrix)
    np.testing.assert_array_equal(interleave(matrix, 3), tiny._llama_rows(matrix, 3))


def test_gguf_and_safetensors_hold_the_same_tensors(base: Path, tmp_path: Path) -> None:
    folder, shards = tiny.write_safetensors(tmp_path / "one"), tiny.write_safetensors(tmp_path / "many", shards=3)
    expected = tiny.weights()
    for path in (base, folder, shards):
        checkpoint = open_checkpoint(path)
        assert set(checkpoint.config.shapes()) == set(expected)
        for name, tensor in expected.items():
            got = checkpoint.tensor(name)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, tensor, err_msg=f"{path} {name}")
    assert open_checkpoint(folder).config == open_checkpoint(shards).config
    assert open_checkpoint(base).config.rms_eps == pytest.approx(1e-5)
    np.testing.assert_array_equal(open_checkpoint(base).tensor("lm_head.weight"), expected["model.embed_tokens.weight"])


@pytest.mark.parametrize(("kind", "step"), [("F16", 1 / 2048), ("Q8_0", 1 / 127), ("Q4_1", 1 / 15), ("Q5_0", 1 / 16)])
def test_quantized_ggufs(kind: str, step: float, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.write_gguf(tmp_path / "q.gguf", quantization=kind))
    for name, tensor in tiny.weights().items():
        span = np.abs(tensor).max()
        assert np.abs(checkpoint.tensor(name) - tensor).max() <= 2 * step * span, name


def test_bfloat16(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.write_safetensors(tmp_path, dtype=ml_dtypes.bfloat16))
    tensor = tiny.weights()["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_allclose(checkpoint.tensor("model.layers.1.mlp.up_proj.weight"), tensor, rtol=1 / 256)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.4, 0.9, 0.999])
def test_truncated_gguf(share: float, base: Path, tmp_path: Path) -> None:
    whole = base.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match="cut.gguf"):
        checkpoint = open_checkpoint(cut)
        for name in checkpoint.config.shapes():
            checkpoint.tensor(name)


def test_garbage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "noise.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + np.random.default_rng(0).bytes(4000))
    with pytest.raises(ModelError, match=r"noise\.gguf"):
        open_checkpoint(file)
    with pytest.raises(ModelError, match="no model at"):
        open_checkpoint(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": "many"}, "makes no sense"),
        ({"hidden_size": 1 << 64}, "makes no sense"),
        ({"num_hidden_layers": 3}, "lacks the tensor model.layers.2"),
        ({"num_hidden_layers": 1}, "models of the family llama do not have"),
        ({"intermediate_size": 128}, "where its configuration says"),
        ({"num_key_value_heads": 3}, "do not fit together"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "lacks original_max_position_embeddings"),
        ({"tie_word_embeddings": False}, "lacks the tensor lm_head"),
        ({"rms_norm_eps": None}, "makes no sense"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "makes no sense"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "makes no sense"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1 << 40}}, "sense"),
    ],
)
def test_refused_configurations(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = tiny.write_safetensors(tmp_path)
    _edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder)


def test_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    folder = tiny.write_safetensors(tmp_path / "m", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(ModelError, match="00002-of-00002"):
        open_checkpoint(folder)
    shard.unlink()
    with pytest.raises(ModelError, match="00002-of-00002"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        open_checkpoint(folder)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny.write_safetensors(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight that are not finite"):
        open_checkpoint(folder).tensor("model.norm.weight")


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("gpt2", [], "'gpt2'"),
        ("llama", [("llama.expert_count", 8), ("llama.expert_used_count", 2)], "mixture of experts"),
        ("llama", [("split.count", 2)], "split GGUF"),
        ("llama", [], "lacks"),
    ],
)
def test_refused_ggufs(architecture: str, fields: list[tuple[str, int]], message: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", architecture)
    for each in fields:
        writer.add_uint32(*each)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path / "other.gguf")


def test_names() -> None:
    assert gguf_name("model.layers.12.self_attn.o_proj") == "blk.12.attn_output"
    assert gguf_name("model.layers.0.mlp.gate_proj") == "blk.0.ffn_gate"
    assert gguf_name("lm_head") == "output"
    assert gguf_name("model.layers.0.mlp.nothing") is None
    assert gguf_name("model.layers.1.pre_feedforward_layernorm", "gemma2") == "blk.1.ffn_norm"
    assert gguf_name("model.layers.1.post_attention_layernorm") == "blk.1.ffn_norm"
    assert gguf_name("visual.proj") is None
    assert gguf_name("model.layers.01.mlp.gate_proj") is None
    assert gguf_name("model.layers.1") is None


def test_the_names_of_many_layers_take_no_memory_to_speak_of() -> None:
    """A small file that said it had 255 layers took 700 MiB."""
    tracemalloc.start()
    try:
        names = {gguf_name(f"model.layers.{layer}.mlp.up_proj", "qwen2") for layer in range(255)}
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()
    assert len(names) == 255 and "blk.254.ffn_up" in names


def test_fingerprint_changes_with_the_weights(base: Path, tmp_path: Path) -> None:
    import hashlib

    assert fingerprint(base) == hashlib.sha256(base.read_bytes()).hexdigest()
    first, again, other = (tiny.write_safetensors(tmp_path / str(n), seed=n // 2) for n in range(3))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_some_layers_are_kept_and_numbered_anew(tmp_path: Path) -> None:
    whole = open_checkpoint(tiny.write_gguf(tmp_path / "deep.gguf", tiny.TinyShape(layers=4)))
    part = whole.keeping([1, 3])
    assert part.config.layers == 2
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(part.tensor(name.format(0)), whole.tensor(name.format(1)))
    np.testing.assert_array_equal(part.tensor(name.format(1)), whole.tensor(name.format(3)))
    np.testing.assert_array_equal(part.tensor("model.norm.weight"), whole.tensor("model.norm.weight"))
    for bad in ([], [1, 0], [0, 4], [-1], [2, 2]):
        with pytest.raises(ModelError, match="cannot be kept"):
            whole.keeping(bad)
