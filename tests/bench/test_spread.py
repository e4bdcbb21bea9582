"""Medians, spreads and ratios by hand."""

from __future__ import annotations

from frcli.bench.spread import Spread, ratio, significant, spread


def test_the_median_with_the_lowest_and_the_highest() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(2.5, 1.0, 4.0, 4)


def test_what_was_not_measured_does_not_count() -> None:
    assert spread([None, 5.0, None]) == Spread(5.0, 5.0, 5.0, 1)
    assert spread([None]) is None
    assert spread([]) is None


def test_a_ratio_is_taken_within_each_repetition() -> None:
    # The machine became half as fast after the first repetition: the medians' ratio would be 1.5, this one is 2.
    assert ratio([8.0, 4.0, 3.0], [4.0, 2.0, 2.0]) == Spread(2.0, 1.5, 2.0, 3)


def test_a_repetition_that_lacks_a_number_is_left_out() -> None:
    assert ratio([8.0, None, 3.0], [4.0, 2.0, 0.0]) == Spread(2.0, 2.0, 2.0, 1)
    assert ratio([None], [1.0]) is None
    assert ratio([], []) is None


def test_json_has_six_digits() -> None:
    assert significant(1234567.0) == 1234570.0
    assert spread([1 / 3, 2 / 3, 1.0]).plain() == {  # type: ignore[union-attr]
        "median": 0.666667,
        "low": 0.333333,
        "high": 1.0,
        "repetitions": 3,
    }
