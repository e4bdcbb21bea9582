from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from converters.calibration import calibrated
from converters.checkpoint import open_checkpoint
from converters.decoder import ALL_ROWS, EMBEDDING, FINAL_NORM, Array, Checkpoint
from converters.forward import rms_norm, run_layer
from converters.gptq import Hessian, quantize_calibrated
from converters.lora import merge
from converters.parity import kl
from converters.quantize import Quantized
from converters.reference import hidden_states, logits
from converters.router import convert_router
from converters.session import run_text
from converters.trained import read_trained
from converters.weights import PRECISIONS, Weights, linears, rounded, stacked
from frcli.errors import BundleError

INT4 = PRECISIONS["int4"]
# Words of a small part of the vocabulary, so that the hidden states lie in few directions, as those of texts do.
IDS = np.random.default_rng(11).integers(40, 60, (9, 96)).astype(np.int32)
TEXTS, UNSEEN = IDS[:8], IDS[8].tolist()


@pytest.mark.parametrize("which", ["base", "untied"])
def test_calibrated_weights_are_closer_to_the_source(which: str, request: pytest.FixtureRequest) -> None:
    """Measured by the reference, on a text of the same kind that was not among those for calibration."""
    checkpoint = open_checkpoint(request.getfixturevalue(which))
    source = logits(checkpoint, UNSEEN)
    plain = kl(source, logits(_with(checkpoint, rounded(checkpoint, INT4)), UNSEEN)).mean()
    better = kl(source, logits(_with(checkpoint, calibrated(checkpoint, INT4, TEXTS)), UNSEEN)).mean()
    assert better < 0.6 * plain


@pytest.mark.parametrize("which", ["base", "untied"])
def test_many_texts_in_single_precision_are_what_the_reference_says(which: str, request: pytest.FixtureRequest) -> None:
    checkpoint = open_checkpoint(request.getfixturevalue(which))
    state = checkpoint.tensor(EMBEDDING)[TEXTS]
    for layer in range(checkpoint.config.layers):
        state = run_layer(checkpoint, layer, state, lambda modules, inputs: inputs @ stacked(checkpoint, modules).T)
    got = rms_norm(state, checkpoint.tensor(FINAL_NORM), checkpoint.config.rms_eps)
    for row, text in zip(got, TEXTS.tolist(), strict=True):
        np.testing.assert_allclose(row, hidden_states(checkpoint, text), atol=1e-4)


def test_matrices_are_quantized_for_what_reaches_them_behind_the_quantized_ones(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    weights = calibrated(checkpoint, INT4, TEXTS)

    def check(modules: tuple[str, ...], inputs: Array) -> Array:
        matrix, got = stacked(checkpoint, modules), weights(modules)
        assert isinstance(got, Quantized)
        source, behind = (part.reshape(-1, part.shape[-1]) for part in np.split(inputs, 2))
        hessian = Hessian(behind)
        expected = quantize_calibrated(hessian.aim(matrix, source), hessian)
        np.testing.assert_array_equal(got.packed, expected.packed)
        np.testing.assert_array_equal(got.scales, expected.scales)
        outputs = np.concatenate([source @ matrix.T, behind @ got.dequantize().T])
        return outputs.reshape(*inputs.shape[:-1], len(matrix))

    table = weights(["model.embed_tokens"])
    assert isinstance(table, Quantized) and table.bits == 8
    state = np.concatenate([checkpoint.tensor(EMBEDDING)[TEXTS], table.dequantize()[TEXTS]])
    for layer in range(checkpoint.config.layers):
        state = run_layer(checkpoint, layer, state, check)


def test_router_is_calibrated_end_to_end(base: Path, tmp_path: Path) -> None:
    with_texts = tiny.write_trained(tmp_path / "with.safetensors", calibration=TEXTS)
    without = tiny.write_trained(tmp_path / "without.safetensors")
    source = logits(merge(open_checkpoint(base), read_trained(without).delta), UNSEEN)
    loss = []
    for name, trained in (("plain", without), ("better", with_texts)):
        path = tiny.write_router(tmp_path / f"{name}.onnx", base, trained, precision="int4")
        loss.append(kl(source, run_text(path, UNSEEN)["logits"]).mean())
    assert loss[1] < 0.6 * loss[0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_other_precisions_are_not_calibrated(precision: str, base: Path, tmp_path: Path) -> None:
    with_texts = tiny.write_trained(tmp_path / "with.safetensors", calibration=TEXTS)
    without = tiny.write_trained(tmp_path / "without.safetensors")
    got = [
        run_text(tiny.write_router(tmp_path / f"{trained.stem}.onnx", base, trained, precision=precision), UNSEEN)
        for trained in (with_texts, without)
    ]
    np.testing.assert_array_equal(got[0]["logits"], got[1]["logits"])


def test_two_builds_give_the_same_bytes(base: Path, tmp_path: Path) -> None:
    trained = tiny.write_trained(tmp_path / "router.safetensors", calibration=TEXTS)
    first, second = (
        tiny.write_router(tmp_path / name, base, trained, precision="int4").read_bytes() for name in ("a", "b")
    )
    assert first == second


def test_parity_is_checked(base: Path, tmp_path: Path) -> None:
    trained = tiny.write_trained(tmp_path / "router.safetensors", calibration=TEXTS)
    got = convert_router(base, tmp_path / "r.onnx", trained, context=256)
    assert got is not None and got.mean_kl < 0.5


def test_tokens_that_the_base_does_not_have(base: Path, tmp_path: Path) -> None:
    vocab = tiny.TinyShape().vocab
    trained = tiny.write_trained(tmp_path / "router.safetensors", calibration=np.full((1, 4), vocab, np.int32))
    with pytest.raises(BundleError, match=f"the token {vocab}, and .* has {vocab}"):
        tiny.write_router(tmp_path / "r.onnx", base, trained, precision="int4")


def _with(checkpoint: Checkpoint, weights: Weights) -> Checkpoint:
    """The checkpoint with the matrices of ``weights``, each taken out of the stack that it is in."""
    stacks = [*linears(0), *linears(1), *linears(2)]
    shapes = checkpoint.config.shapes()

    def read(name: str, part: slice = ALL_ROWS) -> Array:
        if len(shapes[name]) == 1:
            return checkpoint.tensor(name)
        module = name.removesuffix(".weight")
        stack = next((stack for stack in stacks if module in stack), (module,))
        matrix = weights(stack)
        assert isinstance(matrix, Quantized)
        rows = [shapes[f"{each}.weight"][0] for each in stack]
        first = sum(rows[: stack.index(module)])
        return matrix.dequantize()[first : first + shapes[name][0]][part]

    return replace(checkpoint, read=read)
