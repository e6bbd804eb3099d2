"""The gate's printed chances and its interim analyses hold on answers of real models."""

import pytest

from reports.studies import looks_on_real_items
from reports.studies.real_items import study

pytestmark = pytest.mark.weekly


@pytest.fixture(scope="module")
def rates():
    return study()


def test_at_least_two_thousand_pairs_were_tried(rates):
    assert sum(r.n_pairs for r in rates) >= 2000


def test_the_printed_chances_are_within_three_points_of_what_the_gate_does(rates):
    assert {(r.what, r.delta): round(100 * (r.done - r.printed), 1) for r in rates} == pytest.approx(
        {(r.what, r.delta): 0.0 for r in rates}, abs=3.0
    )


def test_stopping_at_looks_errs_no_more_often_and_takes_fewer_items():
    lines = {line.delta: line for line in looks_on_real_items.study(n_pairs=60, n_draws=8)}
    at_margin = lines[-0.02]
    assert at_margin.passes_looks <= 0.05 + 0.03
    assert at_margin.fails_looks <= 0.05 + 0.03
    assert lines[0.0].passes_looks == pytest.approx(lines[0.0].passes_full, abs=0.05)
    assert all(line.n_looks < line.n_full for line in lines.values())
    assert lines[0.0].passes_whole >= lines[0.0].passes_full
