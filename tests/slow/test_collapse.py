"""A fine-tune that collapses chat: multiple choice cannot see the collapse, the gate must."""

import collapsing
import pytest

pytestmark = pytest.mark.slow

POINT_THRESHOLD = 0.05  # "fail when the mean of the multiple-choice tasks falls by more than 5 points"


def test_the_gate_does_not_pass_a_fine_tune_that_collapses_chat_which_choices_alone_would_not_show(tmp_path):
    report = collapsing.run(tmp_path, collapsing.LEAST)[1]
    lora = next(f for f in report.facts if f.name == "lora")
    assert lora.verdict.outcome == "fail"
    assert report.decision.candidate != "lora"
    chat = next(c for c in report.comparisons["lora"] if c.task == "chat_facts" and c.metric == "contains")
    assert len(chat.lost) > 10
    assert all(isinstance(name, str) and name for name in chat.lost)
    choice = {"world_facts", "reading", "grammar", "arithmetic"}
    deltas = [c.delta for c in report.comparisons["lora"] if c.task in choice and c.metric == "accuracy"]
    assert len(deltas) == len(choice)
    assert sum(deltas) / len(deltas) > -POINT_THRESHOLD, "a threshold on these would have passed it"
