"""Standard errors by hand, intervals against the normal approximation and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from frcli.evaluation.significance import paired, standard_error


def test_the_standard_error_is_that_of_the_mean() -> None:
    assert standard_error([0, 0, 1, 1]) == pytest.approx(math.sqrt(1 / 3) / 2)
    assert standard_error([0.25, 0.25]) == 0
    assert math.isnan(standard_error([1]))


def test_the_interval_is_the_normal_one_for_many_items() -> None:
    values = np.random.default_rng(1).normal(0.1, 0.5, 2000)
    mean, low, high = paired([values.tolist()], seed=0)
    half = 1.96 * standard_error(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_tasks_weigh_the_same_whatever_their_size() -> None:
    mean, low, high = paired([[1.0] * 10, [0.0] * 1000], seed=0)
    assert (mean, low, high) == (0.5, 0.5, 0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random, truth, held = np.random.default_rng(2), 0.2, 0
    for seed in range(100):
        two = [random.binomial(1, 0.4, 60) - random.binomial(1, 0.2, 60) for _ in range(2)]
        _, low, high = paired([each.tolist() for each in two], seed)
        held += low <= truth <= high
    assert 88 <= held <= 100  # 95 expected; 87 or fewer has a probability of less than .002


def test_the_seed_decides() -> None:
    values = [[0.0, 1.0, 1.0, -1.0, 0.0, 1.0]]
    assert paired(values, 3) == paired(values, 3)


def test_sizes_make_a_ratio_of_sums() -> None:
    mean, low, high = paired([[2.0, 6.0], [1.0]], 0, [[1, 3], [4]])
    assert mean == pytest.approx((8 / 4 + 1 / 4) / 2)
    assert (low, high) == pytest.approx((mean, mean))  # every draw has 2 a token in the first task
    mean, low, high = paired([[2.0, 9.0]], 0, [[1, 3]])
    assert (mean, low, high) == pytest.approx((11 / 4, 2, 3))
