"""Worlds whose truth is known: rows through the real store, gate and decision come to the right answer."""

import pytest
import worlds
from worlds import Sizes, Truth

from harness import release
from harness.cli.compute import exit_code


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Remember nothing of these models where others look: their engine is a rule."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path_factory.getbasetemp() / "worlds-cache"))


def answers(zero_shot, few_shot, rag, tuned, of="behaviour"):
    """Say what share of one slice each way of asking gets right, in percent."""
    return {"zero_shot": {of: zero_shot}, "few_shot": {of: few_shot}, "rag": {of: rag}, "tuned": {of: tuned}}


FORMAT = answers(20, 40, 20, 90)


def said(report, words):
    (found,) = [reason for reason in report.decision.reasons if words in reason]
    return found


def verdict(report, name="lora"):
    return next(f.verdict for f in report.facts if f.name == name)


def test_where_only_facts_are_missing_retrieval_is_shipped(tmp_path):
    truth = Truth(answers(10, 12, 85, 15, of="knowledge"), lost=1, gained=1)
    report = worlds.report(tmp_path, truth)
    assert (report.decision.action, report.decision.candidate) == ("rag", "rag")
    assert said(report, "retrieval mends that") == "The prompt fails on facts, and retrieval mends that."


def test_where_only_the_format_is_missing_and_data_suffice_the_fine_tune_is_shipped(tmp_path):
    report = worlds.report(tmp_path, Truth(FORMAT, lost=1, gained=1))
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")
    assert "The prompt fails on behaviour (format, style, labels), and fine-tuning mends that." in (
        report.decision.reasons
    )
    assert verdict(report).outcome == "pass"
    assert "120 training examples: 100 to 1,000 suit parameter-efficient tuning" in said(
        report, "training ex"
    )


def test_where_nothing_gains_the_prompt_is_shipped(tmp_path):
    report = worlds.report(tmp_path, Truth(answers(80, 80, 80, 80), lost=1, gained=1))
    assert (report.decision.action, report.decision.candidate) == ("prompt", "prompt")
    assert "no fine-tune is needed" in report.decision.sentence


def test_a_fine_tune_that_collapses_elsewhere_is_blocked_whatever_it_gains(tmp_path):
    report = worlds.report(tmp_path, Truth(FORMAT, lost=50))
    assert (report.decision.action, report.decision.candidate) == ("few-shot", "fixed")
    assert verdict(report).outcome == "fail"
    assert "but fails the gate" in report.decision.sentence
    (judged,) = release.gate(tmp_path / "harness.yaml", "lora")
    assert release.exit_code([judged]) == 3


def test_too_few_items_leave_it_undecided_and_the_number_named_would_do(tmp_path):
    truth = Truth(FORMAT, lost=5, gained=5)
    few = worlds.report(tmp_path / "few", truth, Sizes(general=100))
    assert few.decision.action == "undecided"
    assert verdict(few).outcome == "inconclusive"
    needed = verdict(few).items_needed
    assert f"{needed:,} more items would settle it" in few.decision.sentence
    # A disagreement of 10 % and no true loss take (z.95 + z.8)² d / m² = 1,546 items; so few make Tango careful.
    assert 400 + needed == pytest.approx(1546, rel=0.25)
    more = worlds.report(tmp_path / "more", truth, Sizes(general=-(-(400 + needed) // 400) * 100))
    assert (verdict(more).outcome, more.decision.action) == ("pass", "fine-tune")


def test_at_a_tiny_volume_the_prompt_is_shipped_though_the_fine_tune_is_better(tmp_path):
    truth = Truth(answers(70, 70, 70, 90), lost=1, gained=1)
    rare = ["decide.requests_per_month=10", "decide.label_cost_usd=0.5"]
    report = worlds.report(tmp_path / "rare", truth, overrides=rare)
    assert (report.decision.action, report.decision.candidate) == ("prompt", "prompt")
    assert verdict(report).outcome == "pass"
    often = [rare[1]]
    assert worlds.report(tmp_path / "often", truth, overrides=often).decision.candidate == "lora"


def test_a_second_look_at_a_world_computes_nothing_and_says_the_same(tmp_path):
    from harness import experiment

    truth = Truth(FORMAT, lost=1, gained=1)
    first = worlds.report(tmp_path, truth)
    bench, loaded = worlds.opened(tmp_path / "harness.yaml", truth)
    again = experiment.stored(bench, loaded.selected)
    assert again.decision == first.decision
    assert exit_code(again, bench.experiment.gate, by_verdict=True) == 0
