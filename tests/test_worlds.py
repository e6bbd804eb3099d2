"""Worlds whose truth is known: rows through the real store, gate and decision come to the right answer."""

from dataclasses import replace

import pytest
import worlds
from worlds import Sizes, Truth

from harness import experiment, release
from harness.cli.compare import exit_code
from harness.errors import UserError
from harness.experiment import refuse_curve
from harness.report import experiment_document, markdown
from harness.spec import GatePolicy

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("module_cache")]


def answers(zero_shot, few_shot, rag, tuned, of="behaviour"):
    return {"zero_shot": {of: zero_shot}, "few_shot": {of: few_shot}, "rag": {of: rag}, "tuned": {of: tuned}}


FORMAT = answers(20, 40, 20, 90)


def find_reason(report, words):
    (found,) = [reason for reason in report.decision.reasons if words in reason]
    return found


def verdict(report, name="lora"):
    return next(f.verdict for f in report.facts if f.name == name)


def test_where_only_facts_are_missing_retrieval_is_shipped(tmp_path):
    truth = Truth(answers(10, 12, 85, 15, of="knowledge"), lost=1, gained=1)
    report = worlds.report(tmp_path, truth)
    assert (report.decision.action, report.decision.candidate) == ("rag", "rag")
    assert (
        find_reason(report, "retrieval fixes that") == "The prompt fails on facts, and retrieval fixes that."
    )


def test_where_only_the_format_is_missing_and_data_suffice_the_fine_tune_is_shipped(tmp_path):
    report = worlds.report(tmp_path, Truth(FORMAT, lost=1, gained=1))
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")
    assert "The prompt fails on behaviour (format, style, labels), and fine-tuning fixes that." in (
        report.decision.reasons
    )
    assert verdict(report).outcome == "pass"
    assert "120 training examples: enough for LoRA and the like" in find_reason(report, "training ex")


def test_a_fine_tune_that_collapses_elsewhere_is_blocked_whatever_it_gains(tmp_path):
    report = worlds.report(tmp_path, Truth(FORMAT, lost=50))
    assert (report.decision.action, report.decision.candidate) == ("few-shot", "fixed")
    assert verdict(report).outcome == "fail"
    assert "but fails the gate" in report.decision.sentence
    (judged,) = release.gate(tmp_path / "harness.yaml", "lora")
    assert release.combine_exit_codes([judged]) == 3


def test_too_few_items_leave_it_undecided_and_the_number_named_would_do(tmp_path):
    truth = Truth(FORMAT, lost=5, gained=5)
    few = worlds.report(tmp_path / "few", truth, Sizes(general=100))
    assert few.decision.action == "undecided"
    assert verdict(few).outcome == "inconclusive"
    needed = verdict(few).items_needed
    assert f"{needed:,} more items would settle it" in few.decision.sentence
    # A disagreement of 10 % and no true loss take (z.95 + z.8)² d / m² = 1,546 items.
    assert 400 + needed == pytest.approx(1546, rel=0.1)
    more = worlds.report(tmp_path / "more", truth, Sizes(general=-(-(400 + needed) // 400) * 100))
    assert (verdict(more).outcome, more.decision.action) == ("pass", "fine-tune")


def test_at_a_tiny_volume_the_prompt_is_shipped_though_the_fine_tune_is_better(tmp_path):
    truth = Truth(answers(70, 70, 70, 90), lost=1, gained=1)
    rare = ["decide.requests_per_month=10", "decide.label_cost_usd=0.5"]
    report = worlds.report(tmp_path, truth, overrides=rare)
    assert (report.decision.action, report.decision.candidate) == ("prompt", "prompt")
    assert verdict(report).outcome == "pass"
    assert worlds.report_world(tmp_path, truth, ["decide.label_cost_usd=0.5"]).decision.candidate == "lora"


def test_who_answers_too_few_requests_a_second_is_left_out_before_the_choice(tmp_path):
    # Two shots take the oracle 0.60 s an answer, a prompt 0.30 s, the fine-tune 0.20 s, retrieval 0.90 s.
    truth = Truth(answers(20, 90, 20, 70), lost=1, gained=1)
    anyhow = worlds.report(tmp_path, truth)
    assert anyhow.decision.candidate == "fixed"
    report = worlds.report_world(tmp_path, truth, ["decide.min_requests_per_s=2"])
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")
    assert find_reason(report, "Left out before").startswith(
        "Left out before the choice: fixed (it answers 1.67 requests a second, and the budget is 2)"
    )
    by_name = {f.name: f for f in report.facts}
    assert by_name["lora"].vs_untrained.delta == pytest.approx(0.5)  # over the prompt, not over fixed
    assert not by_name["lora"].over_budget
    asked = ["decide.min_requests_per_s=2", "gate.target.gain=0.02"]
    compared = verdict(worlds.report_world(tmp_path, truth, asked))
    (judged,) = release.gate(tmp_path / "harness.yaml", "lora", asked)
    assert (judged.verdict.outcome, judged.verdict.sentence) == (compared.outcome, compared.sentence)
    assert compared.outcome == "pass"
    alone = worlds.report_world(tmp_path, truth, ["decide.min_requests_per_s=4"])
    assert alone.decision.candidate == "lora"
    assert "no untrained candidate keeps the budget" in alone.decision.sentence
    nobody = worlds.report_world(tmp_path, truth, ["decide.min_requests_per_s=10"])
    assert (nobody.decision.action, nobody.decision.candidate) == ("undecided", None)


def test_few_examples_keep_the_prompt_until_three_seeds_show_the_gain(tmp_path):
    truth, few = Truth(FORMAT, lost=1, gained=1), Sizes(train=60)
    report = worlds.report(tmp_path, truth, few)
    assert (report.decision.action, report.decision.candidate) == ("few-shot", "fixed")
    assert "60 training examples and 1 seed are too few to rely on that" in report.decision.sentence
    session, loaded = worlds.open_world(tmp_path / "harness.yaml", truth, ["seeds=[0, 1, 2]"])
    for seed in (1, 2):
        worlds.write_training(session, session.candidates["lora"], seed)
    report = experiment.run_all(session, loaded)
    assert (report.decision.action, report.decision.candidate) == ("fine-tune", "lora")


def test_a_harness_that_drifted_is_called_so_and_no_candidate_is_blamed(tmp_path):
    truth = Truth(FORMAT, lost=1, gained=1)
    before = worlds.report(tmp_path, truth, candidates=["prompt"])
    assert verdict(before, "prompt").outcome == "pass"
    # From now on everybody answers ten points less of the general items, the base as well.
    report = worlds.continue_world(tmp_path, replace(truth, general=60))
    assert verdict(report).outcome == "harness-drift"
    assert verdict(report).macro.score < -0.08  # what would else have been called forgetting
    assert (report.decision.action, report.decision.candidate) == ("undecided", None)
    assert "the harness drifted while" in report.decision.sentence
    assert exit_code(report, GatePolicy(on_inconclusive="pass"), by_verdict=True) == 4
    judged = release.gate(tmp_path / "harness.yaml", "lora", ["gate.on_inconclusive=pass"])
    assert judged[0].verdict == verdict(report)
    assert release.combine_exit_codes(judged) == 4


# The learning curve


def test_the_curve_of_a_fine_tune_is_measured_on_nested_parts_and_looks_ahead(tmp_path):
    # The error is 0.05 + 3 / √n, to whole percents: .82, .60, .44, .32 at 15, 30, 60 and 120 rows.
    truth = Truth(answers(20, 25, 20, 68), lost=1, gained=1, tuned_at={15: 18, 30: 40, 60: 56})
    report = worlds.report(tmp_path, truth, Sizes(test=1000), learning_curve=True)
    curve = report.curve
    assert [p.n_train for p in curve.points] == [15, 30, 60, 120]
    assert [round(p.score.score, 2) for p in curve.points] == [0.18, 0.40, 0.56, 0.68]
    assert [a.n_train for a in curve.ahead] == [240, 480]
    for ahead, true in zip(curve.ahead, (0.08, 0.137), strict=True):
        assert ahead.gain.low < true < ahead.gain.high
        assert ahead.gain.score == pytest.approx(true, abs=0.03)
    assert "18.0 with 15, 40.0 with 30, 56.0 with 60, 68.0 with 120" in find_reason(
        report, "Learning curve of lora"
    )
    assert find_reason(report, "Next best spend: 120 more training rows.")
    # The items show a gain of 43 points beyond doubt: more of them are worth nothing, 8 points more are.
    assert report.decision.arithmetic["more_training_rows_bring_points"] == pytest.approx(8, abs=3)
    dear = worlds.report_world(tmp_path, truth, ["decide.label_cost_usd=5000"])
    assert find_reason(dear, "Next best spend: none, choose now.")
    assert "## Learning curve: lora" in markdown(experiment_document(report))


def test_a_stored_curve_is_found_again_and_a_flat_one_promises_nothing(tmp_path):
    truth = Truth(answers(20, 25, 20, 60), lost=1, gained=1)
    first = worlds.report(tmp_path, truth, learning_curve=True)
    assert all(a.gain.low <= 0 <= a.gain.high for a in first.curve.ahead)
    assert worlds.report_world(tmp_path, truth).curve == first.curve


def test_more_data_are_advised_only_where_the_gain_ahead_is_worth_the_labels(tmp_path):
    truth = Truth(answers(20, 60, 20, 60), lost=1, gained=1, tuned_at={15: 8, 30: 28, 60: 46})
    cheap = ["decide.label_cost_usd=0.1"]
    report = worlds.report(tmp_path, truth, Sizes(test=400), overrides=cheap, learning_curve=True)
    assert (report.decision.action, report.decision.candidate) == ("collect more data", None)
    assert "with 240 training rows it would gain about" in report.decision.sentence
    dear = ["decide.label_cost_usd=5", "decide.requests_per_month=10"]
    assert worlds.report_world(tmp_path, truth, dear).decision.action == "few-shot"


def test_a_curve_of_too_few_rows_or_without_a_fine_tune_is_refused_before_anything_runs(tmp_path):
    truth = Truth(FORMAT)
    with pytest.raises(UserError, match="40 training rows; expected at least 64"):
        worlds.report(tmp_path / "few", truth, Sizes(train=40), learning_curve=True)
    session, _ = worlds.open_world(worlds.write(tmp_path / "none", truth, Sizes()), truth)
    with pytest.raises(UserError, match="no fine-tune among the candidates"):
        refuse_curve(session, ["prompt", "rag"])
