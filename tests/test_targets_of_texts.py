"""A target of whole texts, read alone: how models are held to it, what trains on it, what it has no use for."""

import pytest
from tiny_experiment import rows

from harness import config
from harness.errors import UserError
from harness.experiment import Scope, compare, prepare_session
from harness.progress import SilentProgress

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


LORA = "  lora: {method: lora, params: {r: 4, learning_rate: 1.0e-2, num_train_epochs: 4}}\n"


@pytest.mark.e2e
def test_a_fine_tune_on_texts_is_held_to_its_base_in_bits_per_byte(tiny, tmp_path):
    report = compare(experiment(tmp_path, tiny, "  prompt: {method: base}\n" + LORA))
    prompt, lora = report.facts
    assert (prompt.state, lora.state) == ("done", "done")
    assert 0 < lora.target.score < prompt.target.score


@pytest.mark.parametrize(
    ("recipe", "found"), [("{prompting: few_shot}", "prompting"), ("{answer: rank}", "answer: rank")]
)
def test_what_changes_a_prompt_is_refused_on_texts(tiny, tmp_path, recipe, found):
    path = experiment(tmp_path, tiny, f"  one: {recipe}\n")
    with pytest.raises(UserError) as refusal:
        prepare_session(config.load(path), Scope(dry_run=True), SilentProgress())
    (problem,) = refusal.value.problems
    (line,) = (n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("  one:"))
    assert problem.where.endswith(f"harness.yaml:{line}: candidate one")
    assert problem.found == f"{found}, and kind: bits_per_byte of prose, whose texts are read alone"


def test_a_target_without_training_rows_is_measured_where_nobody_trains(tiny, tmp_path):
    path = experiment(
        tmp_path, tiny, "  prompt: {method: base}\n", "{validation: validation.jsonl, test: test.jsonl}"
    )
    assert compare(path).facts[0].state == "done"
