"""A real local model as a judge, on fewer pairs than in its stored page."""

import pytest

from harness.analysis.judge_correction import MIN_LABELS
from reports.studies import local_judge as study
from tests.conftest import find_shared_data

pytestmark = pytest.mark.weekly


def test_pairs_are_judged_in_both_orders_and_corrected_by_peoples_choices(tmp_path):
    pairs = study.read_pairs(find_shared_data("rows").parent, 16)
    (labels,) = study.judge_pairs(tmp_path, pairs, MIN_LABELS).labels
    grades = study.list_stored_grades(tmp_path, pairs)
    assert sorted((g["item"], g["order"]) for g in grades) == sorted(
        (study.pair_id(row), order) for row in pairs for order in ("first", "second")
    )
    assert labels.arms[0].n_labels == MIN_LABELS
    assert labels.arms[0].corrected is not None
    agreed = study.agreement(grades)
    assert 0 <= agreed.low <= agreed.share <= agreed.high <= 1
