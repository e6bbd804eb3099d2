"""A user's own labelled data, without code: Banking77 cut to twelve intents."""

import pytest

import harness.experiment as experiment
from harness.errors import UserError
from tests.conftest import find_shared_data

EXPERIMENT = """
name: banking77
target:
  name: banking77
  data: {{train: {train}, test: {test}, limits: {{train: 360, validation: 36, test: 144}}, unknown_labels: drop}}
  fields: {{prompt: "{{text}}", reference: "{{label}}"}}
  labels: [card_acceptance, pin_blocked, atm_support, change_pin, compromised_card, lost_or_stolen_card,
           exchange_rate, top_up_limits, age_limit, country_support, passcode_forgotten, terminate_account]
  max_new_tokens: 12
candidates:
  prompt: {{method: base, prompting: zero_shot}}
  fixed: {{method: base, prompting: {{few_shot: {{select: fixed, shots: 12}}}}}}
  knn: {{method: base, prompting: {{few_shot: {{select: knn, shots: 8}}}}}}
  ranked: {{method: base, prompting: {{few_shot: {{select: knn, shots: 8}}}}, answer: rank}}
  bag: {{method: classifier}}
  lora: {{method: lora, params: {{learning_rate: 1.0e-3, num_train_epochs: 2}}}}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("banking77") / "harness.yaml"
    train, test = (
        find_shared_data("rows/banking77/train.jsonl.gz"),
        find_shared_data("rows/banking77/test.jsonl"),
    )
    path.write_text(EXPERIMENT.format(train=train, test=test))
    return path


@pytest.fixture(scope="module")
def report(path):
    return experiment.compare(path, ["target.data.contamination=drop"])


@pytest.fixture
def scores(report):
    return {f.name: f.target.score for f in report.facts if f.target}


@pytest.mark.weekly
def test_rows_that_are_also_in_test_are_refused_by_name(path):
    with pytest.raises(UserError, match=r"train\.jsonl\.gz:\d+"):
        experiment.compare(path)


@pytest.mark.weekly
def test_rows_that_are_left_out_are_said_with_the_reason(report):
    notes = "\n".join(report.notes)
    assert "dropped, evaluated too" in notes
    assert "dropped, label not among the 12" in notes


@pytest.mark.weekly
def test_every_candidate_has_a_score_on_the_same_items(report):
    assert {f.target.n for f in report.facts} == {144}


@pytest.mark.weekly
def test_lora_learns_the_labels(scores):
    assert scores["lora"] >= 0.75


@pytest.mark.weekly
def test_nearest_neighbour_shots_beat_the_plain_prompt(scores):
    assert scores["knn"] > scores["prompt"] + 0.2


@pytest.mark.weekly
def test_no_fine_tune_is_recommended_where_a_plain_classifier_is_as_good(report, scores):
    assert scores["bag"] >= scores["lora"] - 0.05
    assert report.decision.action == "classifier"
    assert report.decision.candidate == "bag"
