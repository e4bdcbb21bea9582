from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import random_llama
import tiny
from gguf.quants import dequantize
from onnx import numpy_helper

from converters.checkpoint import open_checkpoint
from converters.decoder import DecoderConfig
from converters.router import convert_router
from frcli.errors import OutputError
from frcli.sources.llama import LlamaModel, LlamaSource
from frcli.sources.onnx import OnnxRouter
from frcli.sources.source import Feed

SHAPE = tiny.TinyShape(hidden=256, intermediate=96, tied=False, vocabulary=tiny.TinyVocabulary(padding=300))
EXPERTS = ("a", "b", "c", "d")


def config(shape: tiny.TinyShape) -> DecoderConfig:
    return DecoderConfig(
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate,
        vocab=shape.vocab,
        rms_eps=shape.rms_eps,
        rope_theta=shape.rope_theta,
        rope_factors=(1.0,) * (shape.head_dim // 2),
        tied=shape.tied,
        context=shape.context,
    )


def storage(path: Path) -> dict[str, tuple[str, list[int]]]:
    return {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist())
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name != "rope_freqs.weight"
    }


@pytest.mark.parametrize("tied", [False, True])
def test_the_expert_is_stored_as_llama_quantize_stores_q4_0(tmp_path: Path, tied: bool) -> None:
    import llama_cpp

    shape = replace(SHAPE, tied=tied)
    float32 = tiny.write_gguf(tmp_path / "float32.gguf", shape)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, 1
    quantized = tmp_path / "quantized.gguf"
    assert not llama_cpp.llama_model_quantize(str(float32).encode(), str(quantized).encode(), ctypes.byref(parameters))

    ours = tmp_path / "ours.gguf"
    random_llama.write_expert(ours, config(shape), seed=0)
    assert storage(ours) == storage(quantized)
    assert random_llama.expert_bytes(config(shape)) == sum(int(t.n_bytes) for t in gguf.GGUFReader(ours).tensors)


def test_the_expert_is_a_sane_model_of_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "expert.gguf"
    random_llama.write_expert(path, config(SHAPE), seed=0)
    checkpoint = open_checkpoint(path)
    assert replace(checkpoint.config, rms_eps=SHAPE.rms_eps) == config(SHAPE)  # the file holds it as float32
    for name, shape in config(SHAPE).shapes().items():
        weights = checkpoint.tensor(name)
        if len(shape) == 2:
            assert weights.std() * shape[1] ** 0.5 == pytest.approx(1, abs=0.1)
            assert abs(weights.mean()) < 0.1 * weights.std()
            assert abs(weights.mean(axis=1)).max() < 0.5 * weights.std()
    queries = [checkpoint.tensor(f"model.layers.{layer}.self_attn.q_proj.weight") for layer in range(2)]
    assert abs(np.corrcoef(queries[0].ravel(), queries[1].ravel())[0, 1]) < 0.05

    model = LlamaModel(path)
    assert model.n_vocab == SHAPE.vocab
    assert len(set(model.texts())) == SHAPE.vocab
    source = LlamaSource(model, context=64, max_rows=4)
    (rows,) = source.extend([Feed(0, [300, 301, 302, 303], rows=4)])
    assert np.isfinite(rows.logits).all()
    # Rows of one model on other texts: neither equal nor of another scale.
    assert 0.3 < rows.logits.std() < 3
    assert not np.allclose(rows.logits[0], rows.logits[3])
    source.close()
    model.close()


def test_the_router_is_the_graph_that_the_converter_makes(tmp_path: Path) -> None:
    shape = replace(SHAPE, tied=True)
    base = tiny.write_gguf(tmp_path / "base.gguf", shape)
    trained = tiny.write_trained(tmp_path / "trained.safetensors", shape, EXPERTS, prompt_head=False)
    converted, ours = tmp_path / "converted.onnx", tmp_path / "ours.onnx"
    convert_router(base, converted, trained, EXPERTS, "int4", context=64, verify=False)
    random_llama.write_router(ours, replace(config(shape), context=64), EXPERTS, seed=0)
    theirs, model = onnx.load(converted), onnx.load(ours)

    def described(graph: Any) -> tuple[list[Any], dict[str, Any], list[Any]]:
        nodes = [
            (n.op_type, n.domain, list(n.input), list(n.output), [str(a) for a in n.attribute]) for n in graph.node
        ]
        stored = {i.name: (list(i.dims), i.data_type) for i in graph.initializer}
        return nodes, stored, [str(value) for value in (*graph.input, *graph.output)]

    assert described(model.graph) == described(theirs.graph)
    kept = {p.key for p in theirs.metadata_props}
    assert {p.key for p in model.metadata_props} == kept

    matrices = [i for i in model.graph.initializer if i.name.endswith((".packed", ".scales", ".zeros"))]
    total = sum(numpy_helper.to_array(matrix).nbytes for matrix in matrices)
    assert random_llama.router_bytes(config(shape)) == total


def test_the_router_is_a_sane_model(tmp_path: Path) -> None:
    path = tmp_path / "router.onnx"
    random_llama.write_router(path, replace(config(SHAPE), context=64), EXPERTS, seed=0)
    router = OnnxRouter(path, context=64)
    (rows,) = router.extend([Feed(0, [300, 301, 302, 303], rows=4)])
    assert rows.logits.shape == (4, SHAPE.vocab) and rows.weights is not None and rows.weights.shape == (4, 4)
    assert np.isfinite(rows.logits).all() and np.isfinite(rows.weights).all()
    assert 0.3 < rows.logits.std() < 3
    assert not np.allclose(rows.logits[0], rows.logits[3])
    router.close()


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K"])
def test_blocks_have_the_variance_of_their_columns(kind: str) -> None:
    for columns in (256, 4096):
        drawn = random_llama._draw(np.random.default_rng(0), (64, columns), kind)
        weights = dequantize(drawn, gguf.GGMLQuantizationType[kind])
        assert weights.shape == (64, columns)
        assert weights.std() == pytest.approx(columns**-0.5, rel=0.1)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "expert.gguf"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        random_llama.write_expert(path, config(SHAPE), seed=0)
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["expert.gguf"]
