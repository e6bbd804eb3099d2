"""A fine-tune that collapses chat: what multiple choice cannot see, the gate must."""

from pathlib import Path

import pytest

import harness.experiment as experiment

ROOT = Path(__file__).parents[2]
POINT_THRESHOLD = 0.05  # "fail when the mean of the multiple-choice tasks falls by more than 5 points"

EXPERIMENT = f"""
name: collapse
target: {ROOT}/suites/support.yaml
suites: [{ROOT}/suites/general.yaml]
candidates:
  prompt: {{method: base, prompting: zero_shot}}
  lora: {{method: lora, params: {{learning_rate: 3.0e-3, num_train_epochs: 2}}}}
"""

# Half of each task and of the training rows keeps the test short; the gate's margins stay as they are.
SMALLER = [
    "target.data.limits={train: 160, validation: 16, test: 32}",
    *(f"suites.general.tasks.{t}.limit=128" for t in ("world_facts", "reading", "grammar", "arithmetic")),
    *(
        f"suites.general.tasks.{t}.limit=64"
        for t in ("chat_facts", "instructions", "arithmetic_words", "translation")
    ),
    *(f"suites.general.tasks.{t}.limit=16" for t in ("prose_text", "code_text", "chat_text")),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collapse")
    (folder / "harness.yaml").write_text(EXPERIMENT)
    return experiment.compare(folder / "harness.yaml", SMALLER)


@pytest.fixture
def lora(report):
    return next(f for f in report.facts if f.name == "lora")


@pytest.mark.slow
def test_the_gate_does_not_pass_a_fine_tune_that_collapses_chat(lora):
    assert lora.verdict.outcome == "fail"


@pytest.mark.slow
def test_a_point_threshold_on_multiple_choice_would_have_passed_it(report):
    choice = {"world_facts", "reading", "grammar", "arithmetic"}
    deltas = [c.delta for c in report.comparisons["lora"] if c.task in choice and c.metric == "accuracy"]
    assert len(deltas) == len(choice)
    assert sum(deltas) / len(deltas) > -POINT_THRESHOLD


@pytest.mark.slow
def test_the_lost_chat_items_are_named(report):
    chat = next(c for c in report.comparisons["lora"] if c.task == "chat_facts" and c.metric == "contains")
    assert len(chat.lost) > 10
    assert all(isinstance(name, str) and name for name in chat.lost)


@pytest.mark.slow
def test_a_collapsed_fine_tune_is_not_recommended(report):
    assert report.decision.candidate != "lora"
