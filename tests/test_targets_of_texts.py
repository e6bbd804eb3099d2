"""A target of whole texts, read alone: what judges models on it, and what it has no use for."""

import pytest
from tiny_experiment import rows

from harness import config
from harness.errors import UserError
from harness.experiment import Scope, compare, prepare_session
from harness.progress import Silent

HARNESS = """\
name: texts
base_model: {model}
precision: fp32
suites: []
target: {{name: prose, kind: bits_per_byte, data: {data}, metrics: [bits_per_byte]}}
candidates:
"""


def experiment(folder, model, candidates, data="{train: train.jsonl, test: test.jsonl}"):
    for name in ("train", "validation", "test"):
        rows(folder / f"{name}.jsonl", [{"text": f"The sea of {name} {i} is deep."} for i in range(8)])
    path = folder / "harness.yaml"
    path.write_text(HARNESS.format(model=model, data=data) + candidates)
    return path


def test_a_model_is_measured_on_texts_from_load_to_report(tiny, tmp_path):
    report = compare(experiment(tmp_path, tiny, "  prompt: {method: base}\n"))
    (fact,) = report.facts
    assert (fact.state, fact.error) == ("done", "")
    assert fact.target.score > 0


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        ("{method: lora}", "method: lora"),
        ("{method: classifier}", "method: classifier"),
        ("{prompting: few_shot}", "prompting"),
        ("{answer: rank}", "answer: rank"),
    ],
)
def test_what_needs_prompts_or_answers_is_refused_on_texts(tiny, tmp_path, recipe, found):
    path = experiment(tmp_path, tiny, f"  one: {recipe}\n")
    with pytest.raises(UserError) as refusal:
        prepare_session(config.load(path), Scope(dry_run=True), Silent())
    (problem,) = refusal.value.problems
    assert problem.where == "candidate one"
    assert problem.found == f"{found}, and kind: bits_per_byte of prose, whose texts are read alone"


def test_a_target_without_training_rows_is_measured_where_nobody_trains(tiny, tmp_path):
    path = experiment(
        tmp_path, tiny, "  prompt: {method: base}\n", "{validation: validation.jsonl, test: test.jsonl}"
    )
    assert compare(path).facts[0].state == "done"


def test_a_target_of_test_rows_alone_is_refused_since_candidates_are_chosen_on_others(tiny, tmp_path):
    path = experiment(tmp_path, tiny, "  prompt: {method: base}\n", "{test: test.jsonl}")
    with pytest.raises(UserError) as refusal:
        prepare_session(config.load(path), Scope(dry_run=True), Silent())
    (problem,) = refusal.value.problems
    assert problem.found == "no data.validation and no data.train"
