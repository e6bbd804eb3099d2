"""A power law with a floor is found again, from one curve and from many at once."""

import numpy as np
import pytest
from golden import golden

from harness.stats import fit_power_law

SIZES = [50, 100, 200, 400, 800]
EQUAL = [1.0] * 5


def test_the_constructed_curve_is_recovered_and_scipy_finds_the_same():
    expected, _ = golden("powerlaw_recover")
    fit = fit_power_law(expected["D"], expected["err"], EQUAL)
    found = [float(part[0]) for part in fit]
    assert found == pytest.approx(expected["abc"], rel=1e-5)
    assert fit.at(6400)[0] == pytest.approx(expected["pred_6400"], abs=1e-6)
    from scipy.optimize import curve_fit

    errors = np.array([0.52, 0.40, 0.33, 0.27, 0.24])
    weights = np.array([1.0, 2.0, 2.0, 3.0, 4.0])
    theirs, _ = curve_fit(
        lambda n, e, b, c: e + b * n**-c, np.array(SIZES, float), errors, (0.1, 2, 0.5), sigma=weights**-0.5
    )
    ours = fit_power_law(SIZES, errors, weights)
    assert [float(part[0]) for part in ours] == pytest.approx(list(theirs), rel=1e-3)


def test_many_curves_are_fitted_as_if_each_were_alone_with_no_floor_below_zero():
    errors = np.random.default_rng(0).uniform(0.1, 0.9, (7, 5))
    together = fit_power_law(SIZES, errors, EQUAL)
    for row, *found in zip(errors, *together, strict=True):
        assert found == pytest.approx([float(part[0]) for part in fit_power_law(SIZES, row, EQUAL)])
    n = np.array(SIZES, float)
    fit = fit_power_law(n, 1.2 - 0.16 * np.log(n), EQUAL)
    assert fit.floor[0] >= 0


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ([1, 2, 3], [1.0] * 3),
        ([1, 2, 3, 3], [1.0] * 4),
        ([0, 1, 2, 3], [1.0] * 4),
        ([1, 2, 3, 4], [1, 1, 1, 0]),
    ],
)
def test_sizes_that_fit_nothing_are_refused(sizes, weights):
    with pytest.raises(ValueError, match="sizes"):
        fit_power_law(sizes, [0.5] * len(sizes), weights)
