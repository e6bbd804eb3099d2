"""The gate's printed chances hold on answers of real models, on items they were not worked out from."""

import pytest

from tests.real_items import study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rates():
    return study()


def test_at_least_two_thousand_pairs_were_tried(rates):
    assert sum(r.n_pairs for r in rates) >= 2000


def test_the_printed_chances_are_within_three_points_of_what_the_gate_does(rates):
    assert {(r.what, r.delta): round(100 * (r.done - r.printed), 1) for r in rates} == pytest.approx(
        {(r.what, r.delta): 0.0 for r in rates}, abs=3.0
    )
