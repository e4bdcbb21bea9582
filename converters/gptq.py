"""Block quantization that lets the columns of a matrix make up for each other's rounding errors, as GPTQ does.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) quantizes W so that the squared error of its outputs on the inputs X
[columns, n] is small, ||W X - Q X||^2. For every row of W that error is (w - q) H (w - q)^T / 2 with the Hessian
H = 2 X X^T. Columns are rounded from the left to the right, and after column j the error spreads over the columns F
that are still to be rounded (the paper's equations 2 and 3):

    w_F <- w_F - (w_j - q_j) / [H_F^-1]_jj (H_F^-1)_j,:

which is the least-squares answer to q_j, so that the next column is rounded from what is best by then. The paper takes
all the factors from one Cholesky decomposition of H^-1. This module takes them from one of H, without any inverse: with
H = (U + I) D (U + I)^T, U strictly upper triangular and D diagonal, the value that column j is rounded from is

    t_j = w_j + sum_{k < j} (w_k - q_k) U_kj

and the error left in the end is sum_j D_jj (t_j - q_j)^2 / 2. That this is GPTQ is theorem 6 of Chee et al. 2023 (QuIP,
arXiv 2307.13304). So D weighs the columns of a block against each other in the search for its scale and zero point.

The inputs X of a layer behind quantized layers are not those X' that the source's layer gets. What Q should meet is
therefore W X', not W X (Li et al. 2025, GPTAQ, arXiv 2504.02692). With a damping that holds Q to W,

    ||Q X - W X'||^2 + damping ||Q - W||^2 = (Q - V) H (Q - V)^T / 2 + constant,    V = W + 2 W (X' - X) X^T H^-1

so that the procedure above is applied to V in place of W.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.quantize import BLOCK, Quantized, from_levels, search

Array = NDArray[np.float32]

# Added to the diagonal of the Hessian, as a share of its mean: inputs that the texts never have shall not be worth
# nothing.
DAMPING = 0.01


class Hessian:
    """The Hessian of the output error of linear layers that read the inputs ``inputs``, float32 [n, columns].

    ``matrix`` is H / 2 in float64, with ``damping`` times the mean of the diagonal added to the diagonal. Its factors
    are ``feedback`` (U + I above, float32 [columns, columns]) and ``importance`` (the diagonal of D, float32
    [columns]), both padded to whole blocks.
    """

    def __init__(self, inputs: Array, damping: float = DAMPING) -> None:
        columns = inputs.shape[1]
        padded = -(-columns // BLOCK) * BLOCK
        hessian = np.zeros((padded, padded))
        hessian[:columns, :columns] = inputs.T @ inputs
        mean = np.trace(hessian) / columns
        hessian[np.diag_indices(padded)] += damping * mean if mean > 0 else 1.0
        # numpy has lower triangular factors only: those of the matrix turned round are the upper ones of this.
        factor = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
        diagonal = np.diagonal(factor)
        self.inputs, self.matrix, self.columns = inputs, hessian[:columns, :columns], columns
        self.feedback = (factor / diagonal).astype(np.float32)
        self.importance = np.square(diagonal).astype(np.float32)

    def aim(self, weights: Array, source: Array) -> Array:
        """Return the weights, float32 [rows, columns], that the quantized ones should come close to (V above).

        ``source`` float32 [n, columns] are the inputs that the layer has in the source, X'^T above.
        """
        drift = self.inputs.T @ (source - self.inputs)
        change = np.linalg.solve(self.matrix, (drift @ weights.T).astype(np.float64))
        return np.asarray(weights + change.T, dtype=np.float32)


def quantize_calibrated(weights: Array, hessian: Hessian, bits: int = 4, symmetric: bool = False) -> Quantized:
    """Return the quantized matrix, float32 [rows, columns] -> 4 or 8 bits, with errors fed forward as above.

    Scale and zero point of a block are searched like :func:`converters.quantize.quantize` does when its first column is
    reached, from the values that its columns have by then. Raises ``ValueError`` if the Hessian has other columns.
    """
    rows, columns = weights.shape
    if columns != hessian.columns:
        raise ValueError(f"a matrix of {columns} columns does not go with a Hessian of {hessian.columns}")
    blocks = len(hessian.importance) // BLOCK
    levels = np.empty((rows, blocks, BLOCK), dtype=np.uint8)
    scales = np.empty((rows, blocks), dtype=np.float32)
    zeros = np.empty((rows, blocks), dtype=np.uint8)

    # Columns are the rows here, so that each is contiguous.
    wanted = np.pad(weights.T, ((0, blocks * BLOCK - columns), (0, 0)))
    error = np.empty_like(wanted)
    for block in range(blocks):
        first, end = block * BLOCK, (block + 1) * BLOCK
        target = wanted[first:end] + hessian.feedback[:first, first:end].T @ error[:first]
        importance = hessian.importance[first:end]
        _, scale, zero = search(np.ascontiguousarray(target.T), bits, symmetric, importance / importance.max())
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        lowest = -zero.astype(np.float32)
        # In one thread: with many small steps, two would wait for each other's turn with the interpreter.
        for column in range(BLOCK):
            at = first + column
            level = np.clip(np.rint(target[column] * inverse), lowest, lowest + ((1 << bits) - 1))
            levels[:, block, column] = level - lowest
            error[at] = wanted[at] - level * scale
            target[column + 1 :] += hessian.feedback[at, at + 1 : end, None] * error[at]
        scales[:, block], zeros[:, block] = scale, zero
    return from_levels(bits, columns, levels, scales, None if symmetric else zeros)
