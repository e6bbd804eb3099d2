"""What more items are worth: the design's figures, a second source, and what always holds."""

import numpy as np
import pytest
from hypothesis import strategies as st

from harness import stats

means, sds = st.floats(-5, 5), st.floats(0, 5)


def test_perfect_information_is_worth_what_the_design_and_a_simulation_say():
    assert stats.perfect_information(1, 2) == pytest.approx(0.3956, abs=5e-5)
    truth = np.random.default_rng(0).normal(1, 2, 2_000_000)
    simulated = np.maximum(truth, 0).mean() - max(truth.mean(), 0)
    assert stats.perfect_information(1, 2) == pytest.approx(simulated, abs=0.003)


@pytest.mark.parametrize(("n", "worth"), [(100, 0.1006), (500, 0.2700), (2000, 0.3556)])
def test_a_samples_worth_is_what_the_design_says(n, worth):
    assert stats.sample_information(1, 2, 31.62, n) == pytest.approx(worth, abs=5e-5)


def test_certainty_is_worth_nothing_and_bad_numbers_are_refused():
    assert stats.perfect_information(3, 0) == stats.sample_information(3, 0, 1, 10) == 0
    with pytest.raises(ValueError, match="sd >= 0"):
        stats.perfect_information(1, -1)
    with pytest.raises(ValueError, match="n > 0"):
        stats.sample_information(1, 1, 1, 0)
