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


@pytest.mark.slow
def test_qlora_learns_on_bits_that_cost_and_preferences_are_learnt_from_it(tmp_path):
    few_general_tasks.write(tmp_path, TEXTS)
    (tmp_path / "harness.yaml").write_text(EXPERIMENT)
    report = harness.compare(tmp_path / "harness.yaml", FEW)
    qlora, dpo = (next(f for f in report.facts if f.name == name).training for name in ("qlora", "dpo"))
    losses = [loss for _, loss in qlora.loss]
    assert min(losses[3:]) < 0.8 * losses[0]
    quantisation = report.steps["qlora"][0]
    deltas = {c.task: c.delta for c in quantisation.tasks if c.metric == "bits_per_byte"}
    assert deltas.keys() == TEXTS.keys()
    assert min(deltas.values()) > 0, "quantisation alone costs bits on held-out text"
    assert dpo.loss[0][1] == pytest.approx(0.6931, abs=0.02)  # ln 2; in bf16 the two passes round differently
    assert dpo.reward_margin[-1][1] > 0.05
    assert [(s.what, s.base) for s in report.steps["dpo"]] == [
        ("quantisation", "base"),
        ("training", "NF4 base"),
        ("training on pairs", "qlora"),
    ]
