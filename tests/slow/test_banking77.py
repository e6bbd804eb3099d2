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


@pytest.mark.weekly
def test_rows_that_are_also_in_test_are_refused_by_name(path):
    with pytest.raises(UserError, match=r"train\.jsonl\.gz:\d+"):
        experiment.compare(path)


@pytest.mark.weekly
def test_a_plain_classifier_as_good_as_the_fine_tune_is_recommended(path):
    report = experiment.compare(path, ["target.data.contamination=drop"])
    notes = "\n".join(report.notes)
    assert "dropped, evaluated too" in notes
    assert "dropped, label not among the 12" in notes
    assert {f.target.n for f in report.facts} == {144}
    scores = {f.name: f.target.score for f in report.facts}
    assert scores["lora"] >= 0.75
    assert scores["knn"] > scores["prompt"] + 0.2
    assert scores["bag"] >= scores["lora"] - 0.05
    assert (report.decision.action, report.decision.candidate) == ("classifier", "bag")
