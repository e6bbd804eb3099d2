"""QLoRA and DPO on the real model: the loss falls, the parts of a change add up, preferences are learnt."""

from pathlib import Path

import few_general_tasks
import pytest

import harness

ROOT = Path(__file__).parents[2]

EXPERIMENT = f"""
name: methods
target: {ROOT}/suites/support.yaml
suites: [general.yaml]
candidates:
  qlora: {{method: qlora, params: {{learning_rate: 1.0e-3, max_steps: 6}}}}
  dpo: {{method: dpo, init_from: qlora, params: {{learning_rate: 2.0e-4, max_steps: 6}}}}
"""
TEXTS = {"prose_text": 8, "code_text": 8, "chat_text": 8}
FEW = ["target.data.limits={train: 48, validation: 8, test: 4}"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    few_general_tasks.write(folder, TEXTS)
    (folder / "harness.yaml").write_text(EXPERIMENT)
    return harness.compare(folder / "harness.yaml", FEW)


def facts(report, name):
    return next(f for f in report.facts if f.name == name)


@pytest.mark.slow
def test_the_loss_of_qlora_falls(report):
    losses = [loss for _, loss in facts(report, "qlora").training.loss]
    assert min(losses[3:]) < 0.8 * losses[0]


@pytest.mark.slow
def test_quantisation_alone_costs_bits_on_held_out_text(report):
    quantisation = report.steps["qlora"][0]
    deltas = {c.task: c.delta for c in quantisation.tasks if c.metric == "bits_per_byte"}
    assert deltas.keys() == TEXTS.keys()
    assert min(deltas.values()) > 0


@pytest.mark.slow
def test_preferences_are_learnt_from_ln_2_on(report):
    training = facts(report, "dpo").training
    assert training.loss[0][1] == pytest.approx(0.6931, abs=0.02)  # bf16 rounds the two passes apart
    assert training.reward_margin[-1][1] > 0.05


@pytest.mark.slow
def test_dpo_is_compared_with_the_run_it_starts_from(report):
    assert [(s.what, s.base) for s in report.steps["dpo"]] == [
        ("quantisation", "base"),
        ("training", "NF4 base"),
        ("training on pairs", "qlora"),
    ]
