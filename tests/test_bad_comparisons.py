"""Comparisons that can show nothing say so: no false certainty, no standard error of 0, a clear message each."""

import json

import lmeval_folder
import numpy as np
import pytest
from fake_rows import EXACT, flips, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import comparison, config, gating, release
from harness.errors import IncompatibleRuns, UserError
from harness.experiment import load_study
from harness.gating import TaskComparison
from harness.gating.rules import apply_rules
from harness.release import candidate_runs
from harness.spec import GatePolicy, Task, TaskData


def judge_arms(base, new, cluster_size=1):
    """Judge one task on rows of two arms by the default policy."""
    arms = [rows(np.asarray(arm, float), cluster_size=cluster_size) for arm in (base, new)]
    compared = comparison.compare_rows(EXACT, *arms)
    task = TaskComparison(Task(name="task", data=TaskData()), "capability", compared, True, "")
    return compared, apply_rules([task], GatePolicy(), validity=None, target=None, identical=False)


def folders(tmp_path, base, new):
    return tuple(
        lmeval_folder.write(tmp_path / name, {"arc": arm}) for name, arm in (("base", base), ("tuned", new))
    )


def test_no_item_or_one_cluster_decides_nothing_whatever_its_scores():
    with pytest.raises(IncompatibleRuns, match="found no item that both runs scored"):
        comparison.compare_rows(EXACT, [], [])
    with pytest.raises(IncompatibleRuns, match="found no item"):
        comparison.estimate(EXACT, [])
    compared, verdict = judge_arms(*flips(100, 0, 0), cluster_size=100)
    assert compared.n_clusters == 1
    assert compared.high - compared.low > 1
    assert verdict.outcome == "inconclusive"
    compared, verdict = judge_arms([0.8] * 20, [0.7] * 20, cluster_size=20)
    assert compared.se > 0
    assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_all_ties_have_a_width_and_do_not_pass_by_it(score):
    compared, verdict = judge_arms([score] * 10, [score] * 10)
    assert compared.delta == 0
    assert compared.se > 0.05
    assert verdict.outcome == "inconclusive"


def test_the_loss_of_all_of_three_items_is_no_pass_of_each():
    """It was: among eight tasks three items are too few for Holm to show anything."""
    tasks = [("small", *flips(3, 0, 3)), *((f"t{i}", *flips(400, 3, 3)) for i in range(7))]
    compared = [
        TaskComparison(
            Task(name=name, data=TaskData()),
            "capability",
            comparison.compare_rows(EXACT, rows(base, task=name), rows(new, task=name)),
            True,
            "",
        )
        for name, base, new in tasks
    ]
    verdict = apply_rules(compared, GatePolicy(), validity=None, target=None, identical=False)
    each = next(rule for rule in verdict.rules if rule.name == "each")
    assert (each.outcome, each.numbers["doubtful"]) == ("inconclusive", ["small"])
    assert each.sentence.startswith("each: too few items to tell: small fell 100.0 points")


graded = st.sampled_from([0.0, 0.25, 0.5, 1.0])
chances = st.sampled_from([0.0, 0.25, 0.5])
arm_pairs = st.lists(st.tuples(graded, graded), min_size=1, max_size=12)
margins = st.sampled_from([0.02, 0.5, 0.95, "10%", "50%"])


@pytest.mark.e2e
@settings(max_examples=150)
@given(st.lists(st.tuples(arm_pairs, st.integers(1, 12), chances), min_size=1, max_size=3), margins, margins)
def test_whatever_the_scores_there_is_a_verdict_in_numbers(tasks, macro, each):
    compared = []
    for at, (pairs, cluster_size, chance) in enumerate(tasks):
        base, new = (rows(arm, task=f"t{at}", cluster_size=cluster_size) for arm in zip(*pairs, strict=True))
        task = Task(name=f"t{at}", data=TaskData(), chance=chance)
        found = comparison.compare_rows(EXACT, base, new)
        assert found.se > 0
        compared.append(TaskComparison(task, "capability", found, *gating.admit(task, EXACT, base)))
    policy = GatePolicy(macro=macro, each=each, critical=("t0",))
    verdict = apply_rules(compared, policy, validity=None, target=None, identical=False)
    assert all(0 <= missed.probability <= 1 for missed in verdict.missed)
    assert "nan" not in verdict.sentence
    if not any(t.base_rows_admitted for t in compared):
        assert verdict.outcome != "pass"


def test_a_score_that_is_no_number_is_refused_with_its_item(tmp_path):
    old, new = folders(tmp_path, [1] * 5, [1, 1, float("nan"), 1, 1])
    with pytest.raises(UserError, match=r"1 of 5 items without a number as acc \(doc_id 2\)"):
        release.gate_folders(old, new, GatePolicy())
    file = next(new.rglob("samples_*"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2]["acc"], lines[4]["acc"] = 1.0, None
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="doc_id 4"):
        release.gate_folders(old, new, GatePolicy())


def test_a_metric_that_is_no_rate_decides_nothing_in_points(tmp_path):
    """BLEU counts to 100: three of its points are no three hundred percentage points."""
    old, new = folders(tmp_path, [31.5] * 5, [28.5] * 5)
    with pytest.raises(UserError, match=r"not rates in \[0, 1\] \(acc, acc_norm\).*leave the task out"):
        release.gate_folders(old, new, GatePolicy())
    for file in tmp_path.rglob("samples_*"):
        lines = [{**json.loads(line), "acc_norm": 1.0} for line in file.read_text().splitlines()]
        file.write_text("\n".join(map(json.dumps, lines)))
    (task,) = release.gate_folders(old, new, GatePolicy()).tasks
    assert task.comparison.metric == "acc_norm"


@pytest.mark.parametrize("margin", ["10%", "0.5%", "5 %", "09.5%", "99%"])
def test_a_margin_may_be_any_share_between(folder, margin):
    assert config.load(folder / "harness.yaml", [f"gate.macro={margin}"]).experiment.gate.macro == margin


def test_a_seed_that_was_not_trained_is_missed_by_the_gate(finished_run):
    stored = load_study(config.load(finished_run[0] / "harness.yaml", ["seeds=[0, 1, 2]"]))
    with pytest.raises(IncompatibleRuns, match=r"no finished run of seed 1, 2; .*next: harness compare"):
        candidate_runs(stored, "lora")
    assert [run.seed for run in candidate_runs(stored, "prompt")] == [0]
