"""Corrections for several looks: the published list, a second source, and what always holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats import multitest

from harness import stats
from tests.golden import golden

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_benjamini_hochberg_adjusts_the_published_list_and_agrees_with_statsmodels():
    expected, tolerance = golden("multi")
    found = stats.benjamini_hochberg(expected["p"])
    assert found == pytest.approx(expected["bh"], abs=tolerance)
    assert sum(p < 0.05 for p in found) == expected["reject"]["bh"]
    p = [0.04, 0.001, 0.03, 0.2, 0.001]
    second = multitest.multipletests(p, method="fdr_bh")[1]
    assert stats.benjamini_hochberg(p) == pytest.approx(second, abs=1e-12)


@given(p_values)
def test_benjamini_hochberg_lies_between_the_raw_value_and_holms(p):
    found, strict = stats.benjamini_hochberg(p), stats.holm(p)
    assert all(raw - 1e-12 <= bh <= h + 1e-12 for raw, bh, h in zip(p, found, strict, strict=True))


@pytest.mark.parametrize("correct", [stats.holm, stats.benjamini_hochberg])
@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(correct, bad):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        correct([0.1, bad])
