"""A real local model as a judge, on fewer pairs than in its stored page."""

import json

import pytest
import tiny_experiment

from harness import store
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


def test_rows_are_graded_once_people_have_labelled_answers_that_the_judge_graded(tmp_path, command):
    rows = study.read_instructions(find_shared_data("rows").parent, 42, summaries=False)
    for name, start, end in (("test", 0, 6), ("validation", 6, 8), ("train", 8, 12), ("more", 12, 42)):
        tiny_experiment.rows(tmp_path / f"{name}.jsonl", rows[start:end])
    (tmp_path / "helpful.yaml").write_text(study.HELPFUL)
    path = tmp_path / "harness.yaml"
    path.write_text(study.COMPARISON.format(name="helpful"))
    command("compare", "-c", path, "--candidates", "prompt")
    check = ("data", "check", tmp_path / "more.jsonl", "--judge", path, "--json")
    assert "people's labels of 0 answers that judge:helpful graded" in command(*check, check=2).stderr
    labels = {row["prompt"]: len(row["prompt"]) % 2 for row in rows}
    study.label(path, tmp_path / "labels.csv", "prompt", labels, 6)
    findings = [json.loads(command(*check, check=0).stdout)["findings"] for _ in range(2)]
    (quality,) = (f for f in findings[0] if f["check"] == "quality")
    assert (quality["of"], findings[1]) == (30, findings[0])
    runs = store.Store(tmp_path / "runs")
    grades = [g for book in store.read_identities(runs) for g in store.list_grades(runs, book)]
    assert sum(g.example_id.startswith("row ") and 0 <= g.value <= 1 for g in grades) == 30
