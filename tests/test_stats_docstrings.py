"""Every public statistic says where it comes from, when not to use it and what it refuses."""

import inspect
import re

import pytest

from harness import stats

FUNCTIONS = {name: f for name, f in vars(stats).items() if inspect.isfunction(f)}
QUANTILES = {"t_quantile", "z_quantile"}  # nobody has to be warned of them
REFUSES_NOTHING = {
    "krippendorff_alpha",
    "log_mean_wealth",
    "unique_share",
    "commonest",
}  # whatever they are given


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_statistic_names_its_source(name):
    assert re.search(r"\nSource: \S", inspect.getdoc(FUNCTIONS[name]))


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - QUANTILES))
def test_a_statistic_says_when_not_to_use_it(name):
    assert re.search(r"\bNot\b|\bnot\s+(for|below|where)\b", inspect.getdoc(FUNCTIONS[name]))


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - REFUSES_NOTHING))
def test_a_statistic_says_what_it_refuses(name):
    assert "\nRaises:\n    ValueError: " in inspect.getdoc(FUNCTIONS[name])
