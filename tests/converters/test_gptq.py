from __future__ import annotations

import numpy as np
import pytest

from converters.gptq import DAMPING, Hessian, quantize_calibrated
from converters.quantize import Quantized, _unpack, quantize

Array = np.ndarray


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, True)])
@pytest.mark.parametrize("columns", [96, 80])
def test_is_the_procedure_of_the_paper(columns: int, bits: int, symmetric: bool) -> None:
    """Column by column with the inverse of what is left of the Hessian, in float64, on the same scales and zeros."""
    weights, inputs = _problem(columns)
    got = quantize_calibrated(weights, Hessian(inputs), bits, symmetric)
    np.testing.assert_array_equal(_levels(got), _paper(weights, inputs, got))


def test_output_error_is_less_than_that_of_rounding() -> None:
    weights, inputs = _problem(160, rows=48)
    plain, better = quantize(weights), quantize_calibrated(weights, Hessian(inputs))
    assert _output_error(weights, better, inputs) < 0.5 * _output_error(weights, plain, inputs)
    assert ((weights - better.dequantize()) ** 2).sum() > ((weights - plain.dequantize()) ** 2).sum()


def test_error_left_is_what_the_factors_say() -> None:
    """With H = (U + I) D (U + I)^T, the error (w - q) H (w - q)^T is sum_j D_jj ((w - q)(U + I))_j^2."""
    weights, inputs = _problem(64)
    hessian = Hessian(inputs)
    np.testing.assert_array_equal(np.tril(hessian.feedback, -1), 0)
    np.testing.assert_array_equal(np.diagonal(hessian.feedback), 1)
    product = inputs.T.astype(np.float64) @ inputs
    product += DAMPING * np.diagonal(product).mean() * np.eye(64)
    error = (weights - quantize_calibrated(weights, hessian).dequantize()).astype(np.float64)
    left = (np.square(error @ hessian.feedback) * hessian.importance).sum()
    assert left == pytest.approx(np.trace(error @ product @ error.T), rel=1e-4)


def test_aim_is_that_of_least_squares() -> None:
    """The V of least |V X - Y|^2 + damping |V - W|^2, solved as one stack of equations in float64."""
    weights, inputs = _problem(80)
    source = inputs + 0.3 * np.random.default_rng(1).standard_normal(inputs.shape).astype(np.float32)
    hessian = Hessian(inputs)
    got = hessian.aim(weights, source)
    damping = DAMPING * np.square(inputs, dtype=np.float64).sum() / 80
    equations = np.concatenate([inputs, np.sqrt(damping) * np.eye(80)])
    wanted = np.concatenate([source @ weights.T, np.sqrt(damping) * weights.T])
    expected = np.linalg.lstsq(equations, wanted, rcond=None)[0].T
    assert np.abs(expected - weights).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_unrelated_inputs_give_rounding_to_nearest(symmetric: bool) -> None:
    """Nothing is to be made up for: scales and zeros are those of the plain search, levels the nearest on that grid."""
    weights, _ = _problem(96)
    plain = quantize(weights, symmetric=symmetric)
    for inputs in (3 * np.eye(96, dtype=np.float32), np.zeros((5, 96), dtype=np.float32)):
        got = quantize_calibrated(weights, Hessian(inputs), symmetric=symmetric)
        np.testing.assert_array_equal(got.scales, plain.scales)
        np.testing.assert_array_equal(got.zeros, plain.zeros)
        nearest = _nearest(weights, np.repeat(got.scales, 32, axis=1), np.repeat(_zeros(got), 32, axis=1), 4)
        np.testing.assert_array_equal(_levels(got), nearest)


def test_columns_that_no_input_uses() -> None:
    """They are rounded by themselves, and leave the others alone."""
    weights, inputs = _problem(64)
    inputs[:, 32:] = 0
    got, plain = quantize_calibrated(weights, Hessian(inputs)), quantize(weights)
    np.testing.assert_array_equal(got.scales[:, 1], plain.scales[:, 1])
    weights[:, 32:] = 7 - weights[:, 32:]
    other = quantize_calibrated(weights, Hessian(inputs))
    np.testing.assert_array_equal(other.packed[:, 0], got.packed[:, 0])


def test_same_problem_gives_the_same_bytes() -> None:
    weights, inputs = _problem(128, rows=77)
    first, second = (quantize_calibrated(weights, Hessian(inputs)) for _ in range(2))
    np.testing.assert_array_equal(first.packed, second.packed)
    np.testing.assert_array_equal(first.scales, second.scales)
    np.testing.assert_array_equal(first.zeros, second.zeros)


def test_refuses_other_columns() -> None:
    weights, inputs = _problem(64)
    with pytest.raises(ValueError, match="64 columns does not go with a Hessian of 32"):
        quantize_calibrated(weights, Hessian(inputs[:, :32]))


def _problem(columns: int, rows: int = 24) -> tuple[Array, Array]:
    """Weights, and inputs of which most lie in a few directions, as hidden states do."""
    random = np.random.default_rng(columns)
    weights = random.standard_normal((rows, columns))
    inputs = random.standard_normal((300, 12)) @ random.standard_normal((12, columns))
    inputs += 0.5 * random.standard_normal((300, columns))
    return weights.astype(np.float32), inputs.astype(np.float32)


def _paper(weights: Array, inputs: Array, grid: Quantized) -> Array:
    """The levels that equations 2 and 3 of the paper lead to."""
    left = weights.astype(np.float64)
    columns = left.shape[1]
    hessian = 2 * inputs.T.astype(np.float64) @ inputs
    hessian += DAMPING * np.diagonal(hessian).mean() * np.eye(columns)
    zeros, levels = _zeros(grid), np.empty(left.shape, dtype=np.int64)
    for column in range(columns):
        scale, zero = grid.scales[:, column // 32].astype(np.float64), zeros[:, column // 32]
        levels[:, column] = _nearest(left[:, column], scale, zero, grid.bits)
        inverse = np.linalg.inv(hessian[column:, column:])
        error = (left[:, column] - scale * (levels[:, column] - zero)) / inverse[0, 0]
        left[:, column:] -= np.outer(error, inverse[0])
    return levels


def _nearest(values: Array, scales: Array, zeros: Array, bits: int) -> Array:
    return np.clip(np.rint(values / scales) + zeros, 0, 2**bits - 1).astype(np.int64)


def _levels(matrix: Quantized) -> Array:
    levels = _unpack(matrix.packed, matrix.bits)
    return levels.reshape(len(levels), -1)[:, : matrix.columns].astype(np.int64)


def _zeros(matrix: Quantized) -> Array:
    if matrix.zeros is None:
        return np.full(matrix.scales.shape, 1 << (matrix.bits - 1))
    return _unpack(matrix.zeros, matrix.bits)[:, : matrix.scales.shape[1]].astype(np.int64)


def _output_error(weights: Array, matrix: Quantized, inputs: Array) -> float:
    return float((((weights - matrix.dequantize()) @ inputs.T) ** 2).sum())
