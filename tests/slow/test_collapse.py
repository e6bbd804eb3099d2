"""A fine-tune that collapses chat: what multiple choice cannot see, the gate must."""

import collapsing
import pytest

pytestmark = pytest.mark.slow

POINT_THRESHOLD = 0.05  # "fail when the mean of the multiple-choice tasks falls by more than 5 points"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return collapsing.run(tmp_path_factory.mktemp("collapse"), collapsing.LEAST)[1]


@pytest.fixture
def lora(report):
    return next(f for f in report.facts if f.name == "lora")


def test_the_gate_does_not_pass_a_fine_tune_that_collapses_chat(lora):
    assert lora.verdict.outcome == "fail"


def test_a_point_threshold_on_multiple_choice_would_have_passed_it(report):
    choice = {"world_facts", "reading", "grammar", "arithmetic"}
    deltas = [c.delta for c in report.comparisons["lora"] if c.task in choice and c.metric == "accuracy"]
    assert len(deltas) == len(choice)
    assert sum(deltas) / len(deltas) > -POINT_THRESHOLD


def test_the_lost_chat_items_are_named(report):
    chat = next(c for c in report.comparisons["lora"] if c.task == "chat_facts" and c.metric == "contains")
    assert len(chat.lost) > 10
    assert all(isinstance(name, str) and name for name in chat.lost)


def test_a_collapsed_fine_tune_is_not_recommended(report):
    assert report.decision.candidate != "lora"
