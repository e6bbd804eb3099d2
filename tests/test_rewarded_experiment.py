"""Reward models in harness.yaml: made for those that name them, in no comparison, and refused where they do not fit."""

from statistics import fmean

import pytest
import tiny_experiment
import tiny_methods
import tiny_model

from harness import store
from harness.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")

CANDIDATES = """\
  prompt: {method: base}
  judge: {method: reward, params: {r: 2, learning_rate: 0.01, max_length: 200}}
  grpo:
    method: grpo
    reward: judge
    params: {r: 2, learning_rate: 0.01, max_steps: 1, max_completion_length: 4, max_length: 200}
"""


def write_experiment(folder, tiny, candidates=CANDIDATES):
    return tiny_experiment.write(folder, tiny, candidates, pairs=tiny_methods.pair_rows(slice(0, 4)))


@pytest.mark.e2e
def test_a_reward_model_is_made_first_and_stands_in_no_comparison(tiny, tmp_path):
    report = tiny_experiment.run(write_experiment(tmp_path, tiny))
    assert {facts.name for facts in report.facts} == {"prompt", "grpo"}
    training = tiny_experiment.runs_of(tmp_path / "harness.yaml")["grpo"].training
    assert 0 <= training.reward_model_accuracy <= 1
    assert len(training.stands_on) == 1
    assert training.init_wall_s > 0
    assert len(training.reward) == len(training.kl) == 1


def test_a_reward_model_of_another_tokenizer_or_a_metric_of_more_than_an_answer_is_refused(tiny, tmp_path):
    other = tiny_model.build(tmp_path / "other", adds_bos=True)
    candidates = CANDIDATES.replace("{method: reward, ", f"{{method: reward, base_model: {other}, ")
    with pytest.raises(UserError, match=r"judge, a reward model on .*other, whose tokenizer is another"):
        tiny_experiment.run(write_experiment(tmp_path, tiny, candidates))
    assert not list((tmp_path / "runs").glob("weights/*"))
    candidates = CANDIDATES.replace("reward: judge", "reward: bits_per_byte")
    with pytest.raises(UserError, match="needs more than the text of an answer"):
        tiny_experiment.run(write_experiment(tmp_path, tiny, candidates))


BRIEF = """\
from harness.metrics import mean_metric


def metric(task):
    return mean_metric("brief", _length, higher_is_better=False, bounds=(0.0, float("inf")))


def _length(output, example):
    return float(len(output.text))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_metric_of_a_file_that_is_better_when_low_falls_while_it_rewards(tiny, tmp_path, method):
    (tmp_path / "brief.py").write_text(BRIEF)
    params = (
        "{r: 4, learning_rate: 0.05, lr_scheduler_type: constant, warmup_steps: 0, num_train_epochs: 8, "
        "per_device_train_batch_size: 24, max_completion_length: 6, beta: 0.001, max_length: 200}"
    )
    path = tiny_experiment.write(
        tmp_path,
        tiny,
        f"  prompt: {{method: base}}\n  brief: {{method: {method}, reward: ./brief.py, params: {params}}}\n",
    )
    suite = tmp_path / "suites" / "letters.yaml"
    suite.write_text(suite.read_text().replace("macro_f1]", "../brief.py]"))
    tiny_experiment.run(path)
    runs = tiny_experiment.runs_of(path)
    rewards = [reward for _, reward in runs["brief"].training.reward]
    assert max(rewards) <= 0  # of lengths, with the sign turned
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 1
    kept = store.Store(tmp_path / "runs")
    answers = {name: store.read_rows(kept, run.rows["letters/test"]) for name, run in runs.items()}
    lengths = {name: fmean(len(row.text) for row in rows) for name, rows in answers.items()}
    assert lengths["brief"] < lengths["prompt"]
