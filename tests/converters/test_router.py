from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

from converters.checkpoint import fingerprint, open_checkpoint
from converters.decoder import ALL_ROWS, Array, Checkpoint
from converters.lora import merge
from converters.parity import kl
from converters.quantize import quantize
from converters.reference import hidden_states, logits
from converters.router import convert_router
from converters.session import RouterSession, run_text
from converters.trained import read_trained
from converters.weights import PRECISIONS
from frcli.checks.onnx import weight_files
from frcli.errors import BundleError, FrcliError, ModelError, OutputError, UsageError

TOKENS = np.random.default_rng(7).integers(3, 290, 150).tolist()


@pytest.fixture(scope="module")
def router(base: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The router in float32."""
    return tiny.write_router(tmp_path_factory.mktemp("router") / "router.onnx", base, trained)


@pytest.fixture(scope="module")
def expected(base: Path, trained: Path) -> tuple[Array, Array]:
    """Logits and routing weights of the reference for ``TOKENS``."""
    part = read_trained(trained)
    checkpoint = merge(open_checkpoint(base), part.delta)
    return logits(checkpoint, TOKENS), hidden_states(checkpoint, TOKENS) @ part.routing.T


def test_float32_agrees_with_the_reference(router: Path, expected: tuple[Array, Array]) -> None:
    got = run_text(router, TOKENS)
    assert got["logits"].shape == (150, tiny.TinyShape().vocab)
    assert got["routing"].shape == (150, 2)
    assert kl(expected[0], got["logits"]).max() < 1e-6
    np.testing.assert_allclose(got["logits"], expected[0], atol=2e-3)
    np.testing.assert_allclose(got["routing"], expected[1], atol=2e-3)


def test_untied_head_and_plain_model(untied: Path, tmp_path: Path) -> None:
    path = tiny.write_router(tmp_path / "plain.onnx", untied)
    got = run_text(path, TOKENS)
    assert list(got) == ["logits"]
    assert kl(logits(open_checkpoint(untied), TOKENS), got["logits"]).max() < 1e-6


@pytest.mark.parametrize("block", [1, 5, 150])
def test_incremental_is_from_scratch(router: Path, expected: tuple[Array, Array], block: int) -> None:
    got = run_text(router, TOKENS, block)
    np.testing.assert_allclose(got["logits"], expected[0], atol=2e-3)


def test_rewound_cache_is_exact(router: Path) -> None:
    session = RouterSession(router, 64)
    session.run([TOKENS[:30]], [0], [])
    first = session.run([TOKENS[30:34]], [30], range(4))
    session.run([TOKENS[50:60]], [34], [9])
    session.run([TOKENS[90:97]], [20], [0])  # overwrites positions 20 to 26
    session.run([TOKENS[20:30]], [20], [0])
    again = session.run([TOKENS[30:34]], [30], range(4))
    for name in ("logits", "routing"):
        np.testing.assert_allclose(again[name], first[name], atol=2e-5)
    once_more = session.run([TOKENS[30:34]], [30], range(4))
    np.testing.assert_array_equal(once_more["logits"], again["logits"])


def test_two_ragged_sequences(router: Path) -> None:
    """Prompts of 11 and 4 tokens in one call, then single tokens behind pasts of different lengths."""
    texts = [TOKENS[:13], TOKENS[40:46]]
    alone = [run_text(router, text, block=64) for text in texts]
    session = RouterSession(router, 64, batch=2)
    past = [0, 0]
    for sizes in ((11, 4), (1, 1), (1, 1)):
        parts = [text[start : start + size] for text, start, size in zip(texts, past, sizes, strict=True)]
        got = session.run(parts, past, [sizes[0] - 1, max(sizes) + sizes[1] - 1])
        past = [start + size for start, size in zip(past, sizes, strict=True)]
        for index in range(2):
            for name in ("logits", "routing"):
                np.testing.assert_allclose(got[name][index], alone[index][name][past[index] - 1], atol=2e-4)
    assert past == [13, 6]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_no_rows(precision: str, base: Path, trained: Path, tmp_path: Path) -> None:
    path = tiny.write_router(tmp_path / "r.onnx", base, trained, precision=precision)
    session = RouterSession(path, 64)
    got = session.run([TOKENS[:9]], [0], [])
    assert got["logits"].shape == (0, tiny.TinyShape().vocab)
    assert got["routing"].shape == (0, 2)
    after = session.run([TOKENS[9:10]], [9], [0])["logits"]
    np.testing.assert_allclose(after[0], run_text(path, TOKENS[:10])["logits"][9], atol=0.2)


@pytest.mark.parametrize("which", ["base", "untied"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantized_is_the_dequantized_model(
    which: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What remains beside the weights is the 8-bit rounding of activations, far below what the weights cost."""
    base: Path = request.getfixturevalue(which)
    checkpoint = open_checkpoint(base)
    got = run_text(tiny.write_router(tmp_path / "r.onnx", base, precision=precision), TOKENS)["logits"]
    from_rounded = kl(logits(_rounded(checkpoint, precision), TOKENS), got).mean()
    from_source = kl(logits(checkpoint, TOKENS), got).mean()
    assert from_rounded < 0.01
    if precision == "int8":
        assert from_source < 0.01
    else:
        assert from_rounded < from_source / 4
        assert from_source < 0.5


def test_metadata_and_shared_table(base: Path, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.onnx"
    convert_router(base, path, trained, ["general", "math"], "int4", 128, "ab" * 32, verify=False)
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.pop("frcli.source") == json.dumps({"base": fingerprint(base), "trained": fingerprint(trained)})
    assert metadata == {
        "frcli.format": "1",
        "frcli.experts": '["general", "math"]',
        "frcli.vocabulary": "ab" * 32,
        "frcli.context": "128",
        "frcli.precision": "int4",
        "frcli.target": "cpu",
        "frcli.layers": "2",
        "frcli.kv_heads": "2",
        "frcli.head_dim": "16",
    }
    tables = [tensor.name for tensor in model.graph.initializer if tensor.dims[:1] == [tiny.TinyShape().vocab]]
    assert tables == ["embedding.packed", "embedding.scales"]
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert dims["cos"] == [128, 8]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes["input_ids"] == ["batch", "tokens"]
    assert shapes["rows"] == ["n"]
    assert shapes["seqlens_k"] == ["batch"]
    assert shapes["total_sequence_length"] == []
    assert shapes["past_value.1"] == shapes["present_key.0"] == ["batch", 2, "max_length", 16]
    assert shapes["routing"] == ["n", 2]


def test_gamma_is_in_the_metadata_where_the_trained_part_has_it(base: Path, trained: Path, tmp_path: Path) -> None:
    tuned = tiny.write_trained(tmp_path / "tuned.safetensors", gamma=0.5)
    for part, said in ((tuned, "0.5"), (trained, None), (None, None)):
        out = tmp_path / "r.onnx"
        convert_router(base, out, part, precision="fp32", context=64, force=True, verify=False)
        metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
        assert metadata.get("frcli.gamma") == said


def test_safetensors_and_gguf_give_the_same_router(base: Path, tmp_path: Path) -> None:
    folder = tiny.write_safetensors(tmp_path / "model")
    first = run_text(tiny.write_router(tmp_path / "a.onnx", base), TOKENS[:40])
    second = run_text(tiny.write_router(tmp_path / "b.onnx", folder), TOKENS[:40])
    np.testing.assert_array_equal(first["logits"], second["logits"])


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-6), ("int8", 0.02), ("int4", 0.5)])
def test_returns_parity(precision: str, limit: float, base: Path, tmp_path: Path) -> None:
    gated = tiny.write_trained(tmp_path / "gated.safetensors", gate_bias=-0.5)
    got = convert_router(base, tmp_path / "r.onnx", gated, precision=precision, context=256)
    assert got is not None
    assert got.mean_kl < limit and got.top1 > 0.5 and got.tokens == 256
    assert got.routing_kl is not None and got.routing_kl < limit
    assert got.prompt_kl is not None and got.prompt_kl < limit
    assert got.gate_distance is not None and got.gate_distance < limit


def test_large_models_keep_weights_beside(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.write_router(tmp_path / "whole.onnx", base)
    monkeypatch.chdir(tmp_path)  # a name without a folder, and the old result's parts where onnx might look for its own
    split = Path("split.onnx")
    for _ in range(2):
        parity = convert_router(base, split, precision="fp32", context=256, largest=1000, force=True)
        assert parity is not None and parity.mean_kl < 1e-6
    (part,) = weight_files(split)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["split.onnx", part.name, "whole.onnx"])
    assert part.name == f"split.onnx.{hashlib.sha256(part.read_bytes()).hexdigest()[:16]}.data"
    assert split.stat().st_size < 50_000 < whole.stat().st_size
    first, second = run_text(whole, TOKENS[:20]), run_text(split, TOKENS[:20])
    np.testing.assert_array_equal(first["logits"], second["logits"])
    tiny.write_gguf(tmp_path / "base.gguf", seed=1)
    convert_router(tmp_path / "base.gguf", split, precision="fp32", context=256, largest=1000, force=True)
    assert not part.exists() and weight_files(split)  # other weights have another name


@pytest.mark.parametrize(("head", "limit"), [("fp32", 0.02), ("fp16", 0.02), ("int8", 0.03), ("int4", 0.5)])
def test_embedding_and_head_in_a_precision_of_their_own(head: str, limit: float, base: Path, tmp_path: Path) -> None:
    got = convert_router(base, tmp_path / "r.onnx", precision="int8", head=head, context=256)
    assert got is not None and got.mean_kl < limit
    tables = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "r.onnx").graph.initializer}
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
    assert tables["embedding.weight" if head in kinds else "embedding.packed"] == kinds.get(
        head, onnx.TensorProto.UINT8
    )


def test_half_precision_halves_the_file(base: Path, trained: Path, tmp_path: Path) -> None:
    whole = tiny.write_router(tmp_path / "whole.onnx", base, trained)
    half = tiny.write_router(tmp_path / "half.onnx", base, trained, precision="fp16")
    assert half.stat().st_size < 0.65 * whole.stat().st_size
    assert kl(run_text(whole, TOKENS)["logits"], run_text(half, TOKENS)["logits"]).max() < 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_graph_for_a_gpu_computes_in_float16(precision: str, base: Path, trained: Path, tmp_path: Path) -> None:
    """It runs on the processor, too, which is where its numbers are looked at."""
    got = convert_router(base, tmp_path / "gpu.onnx", trained, precision=precision, context=256, target="cuda")
    assert got is not None and got.mean_kl < (0.5 if precision == "int4" else 0.02)
    kinds = {each.name: each.type.tensor_type.elem_type for each in onnx.load(tmp_path / "gpu.onnx").graph.input}
    assert kinds["past_key.0"] == onnx.TensorProto.FLOAT16
    outputs = run_text(tmp_path / "gpu.onnx", TOKENS[:20])
    assert {value.dtype.name for value in outputs.values()} == {"float32"}


def test_the_first_layers_alone(base: Path, tmp_path: Path) -> None:
    convert_router(base, tmp_path / "r.onnx", precision="fp32", context=256, layers=1)
    one = logits(open_checkpoint(base).keeping([0]), TOKENS)
    assert kl(one, run_text(tmp_path / "r.onnx", TOKENS)["logits"]).max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"head": "int2"}, UsageError, "int2"),
        ({"target": "tpu"}, UsageError, "tpu"),
        ({"layers": 3}, ModelError, "has 2 layers"),
        ({"precision": "int3"}, UsageError, "int3"),
        ({"context": 0}, UsageError, "context of 0"),
        ({"context": 10_000}, UsageError, "1 to 512"),
        ({"experts": ["math", "general"]}, BundleError, "general, math, not to math, general"),
        ({"experts": ["general", "math"], "trained": None}, UsageError, "no trained router"),
        ({"trained": Path("absent.safetensors")}, ModelError, "absent"),
        ({"base": Path("absent.gguf")}, ModelError, "absent"),
    ],
)
def test_refused(
    arguments: dict[str, object], error: type[FrcliError], message: str, base: Path, trained: Path, tmp_path: Path
) -> None:
    given = {"base": base, "trained": trained, "precision": "fp32", "context": 64} | arguments
    with pytest.raises(error, match=message):
        convert_router(out=tmp_path / "r.onnx", **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_refuses_parts_that_do_not_belong_together(base: Path, tmp_path: Path) -> None:
    other = tiny.write_trained(tmp_path / "other.safetensors", base_sha256="cd" * 32)
    with pytest.raises(BundleError, match="trained on a base with sha256 cdcdcdcdcdcd"):
        tiny.write_router(tmp_path / "r.onnx", base, other)
    small = tiny.write_trained(tmp_path / "small.safetensors", tiny.TinyShape(hidden=32, heads=2))
    with pytest.raises(BundleError, match="reads 32 numbers"):
        tiny.write_router(tmp_path / "r.onnx", base, small)
    fits = tiny.write_trained(tmp_path / "fits.safetensors", base_sha256=fingerprint(base))
    assert tiny.write_router(tmp_path / "r.onnx", base, fits).is_file()


def test_existing_router(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        tiny.write_router(path, base)
    assert path.read_bytes() == b"precious"
    convert_router(base, path, precision="fp32", context=64, force=True)
    assert path.stat().st_size > 1000


def test_a_result_that_disagrees_is_not_kept(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.reference.hidden_states", lambda source, tokens: np.zeros((64, 64), np.float32))
    with pytest.raises(ModelError, match="does not agree"):
        convert_router(base, tmp_path / "r.onnx", precision="fp32", context=64)
    assert not list(tmp_path.iterdir())


def _rounded(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint with its matrices replaced by what the precision makes of them."""
    precision = PRECISIONS[name]

    def read(name: str, rows: slice = ALL_ROWS) -> Array:
        tensor = checkpoint.tensor(name)[rows]
        if tensor.ndim == 1:
            return tensor
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            return quantize(tensor, precision.table_bits, precision.table_symmetric).dequantize()
        return quantize(tensor, precision.bits, precision.symmetric).dequantize()

    return replace(checkpoint, read=read)
