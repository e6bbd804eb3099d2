"""The part of an experiment that is run: limits lower what is declared, whichever are given."""

import pytest
import tiny_experiment

from harness.config import load
from harness.experiment.preparation.scope import SMOKE_ITEMS, SMOKE_LIMITS, Scope, narrow


@pytest.fixture
def experiment(tiny, tmp_path):
    return load(tiny_experiment.write(tmp_path, tiny)).experiment


def limits_of(experiment):
    return experiment.target.data.limits


def test_a_quick_run_and_a_limit_take_the_fewest_items_of_both(experiment):
    found = narrow(experiment, Scope(limit=4, quick=True))
    assert limits_of(found).test == 4
    assert limits_of(found).train == SMOKE_LIMITS.train
    assert {task.limit for suite in found.suites for task in suite.tasks} == {4}
    found = narrow(experiment, Scope(limit=1000, quick=True))
    assert limits_of(found) == SMOKE_LIMITS
    assert {task.limit for suite in found.suites for task in suite.tasks} == {SMOKE_ITEMS}
    data = experiment.target.data.model_copy(update={"limits": SMOKE_LIMITS.model_copy(update={"train": 8})})
    few = experiment.model_copy(update={"target": experiment.target.model_copy(update={"data": data})})
    assert limits_of(narrow(few, Scope(quick=True))).train == 8
