"""Intervals against numbers computed by hand and by scipy.stats."""

import math

import pytest
import scipy.stats

from bnlab.reports.estimates import Estimate, difference, mean_estimate, slope, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3.7, 17, 1000])
def test_the_quantile_is_scipys(degrees: float) -> None:
    assert t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-12)


def test_the_quantile_of_a_table() -> None:
    assert t_quantile(2) == pytest.approx(4.302653, abs=1e-6)
    assert t_quantile(math.inf) == pytest.approx(1.959964, abs=1e-6)


def test_a_mean_of_three_by_hand() -> None:
    found = mean_estimate([98.0, 98.2, 98.7])
    # mean 98.3, deviations −0.3, −0.1, 0.4: s² = 0.26 / 2 = 0.13; t(2) · √(0.13 / 3) = 4.3026527 · 0.2081666
    assert found.value == pytest.approx(98.3)
    assert found.half_width == pytest.approx(0.895669, abs=1e-6)
    assert (found.n, found.basis) == (3, "seeds")
    assert (found.low, found.high) == pytest.approx((97.404331, 99.195669), abs=1e-6)


def test_one_value_has_no_interval() -> None:
    found = mean_estimate([98.0])
    assert found == Estimate(98.0, None, 1, "none")
    assert found.low == found.high == 98.0


def test_a_difference_is_welchs() -> None:
    first, second = [97.0, 97.4, 97.1], [98.0, 98.2, 98.7, 98.5]
    found = difference(first, second)
    interval = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert (found.n, found.basis) == (3, "seeds")


def test_a_difference_of_one_run_each_has_the_test_sets_noise() -> None:
    found = difference([0.5], [0.6], (10_000, 5_000))
    # √(0.25 / 10000 + 0.24 / 5000) = 0.00854400; · 1.959964
    assert found.value == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0.0167459, abs=1e-7)
    assert (found.n, found.basis) == (1, "test images")


def test_nothing_is_known_of_one_run_each_without_test_sets() -> None:
    assert difference([1.0], [2.0]) == Estimate(1.0, None, 1, "none")
    assert difference([1.0], [2.0], (0, 100)) == Estimate(1.0, None, 1, "none")
    assert difference([1.0, 1.2], [2.0]).half_width is None


def test_runs_that_agree_to_the_last_digit_differ_by_exactly_so_much() -> None:
    assert difference([0.1135] * 3, [0.25] * 3) == Estimate(0.25 - 0.1135, 0.0, 3)
    one_sided = difference([0.1] * 3, [0.5, 0.6, 0.7])
    assert one_sided.half_width == pytest.approx(t_quantile(2) * math.sqrt(0.01 / 3))


def test_a_slope_is_scipys() -> None:
    x, y = [5.0, 6, 7, 8, 9, 10, 10], [98.4, 98.3, 98.4, 98.1, 98.0, 97.6, 97.9]
    found, expected = slope(x, y), scipy.stats.linregress(x, y)
    assert found is not None
    assert found.value == pytest.approx(expected.slope, rel=1e-12)
    assert found.half_width == pytest.approx(t_quantile(5) * expected.stderr, rel=1e-12)


def test_two_points_have_no_slope_to_speak_of() -> None:
    assert slope([1.0, 2.0], [1.0, 2.0]) is None
    assert slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
