"""A declared win rate as the goal: what it decides, what keeps it from deciding, and unchecked judges."""

from dataclasses import replace

import pytest
from fake_facts import alternatives, comparison, make_fine_tune, verdict

from harness.comparison import Estimate
from harness.comparison.human_preferences import Wins, preference_gain
from harness.comparison.judge_correction import JudgedPair, bias_of
from harness.decision import decide
from harness.report import ExperimentReport, experiment_document, markdown
from harness.report.terminal import terminal_html
from harness.spec import DecidePolicy, TargetPolicy

PEOPLE_RATED = Wins("knn", "people", Estimate(0.7, 0.62, 0.78, 200), 200)
JUDGED = Wins("knn", "judge:better", Estimate(0.9, 0.86, 0.94, 200), 20, 0.9, 80, corrected=False)


def make_decision(*facts, metric="token_f1", win_rate=0.6, **policy):
    given = {"closed_labels": True, "has_documents": False, "metric_name": metric}
    return decide([*alternatives(), *facts], DecidePolicy(**policy), win_rate=win_rate, **given)


def find_reason(decision, words):
    (found,) = [reason for reason in decision.reasons if words in reason]
    return found


def test_a_fine_tune_that_people_prefer_is_shipped_though_the_targets_metric_contradicts():
    decision = make_decision(make_fine_tune("lora", 0.40, -0.34, wins=PEOPLE_RATED))
    assert decision.sentence == (
        "Ship lora: 40.0 [35, 45] token_f1, +20.0 [+12, +28] points of win rate beyond 50 % over knn (the best"
        " that trains nothing), and the gate passes."
    )
    assert find_reason(decision, "The goal is a win rate of 60.0 %").endswith(
        "lora is preferred to knn on 70.0 [62, 78] % of items, by people on 200 pairs."
    )
    assert find_reason(decision, "contradicts") == (
        "By token_f1 it is −34.0 [−39, −29] points over the same candidate, a loss, which contradicts that: what"
        " decides is the win rate, as declared."
    )
    assert decision.arithmetic["gain_over_untrained"] == pytest.approx(0.2)
    assert decision.unit is not None
    assert "is worse" not in " ".join(decision.reasons)


def test_a_fine_tune_that_is_not_preferred_is_not_shipped_for_its_metric():
    even = PEOPLE_RATED._replace(rate=Estimate(0.5, 0.42, 0.58, 200))
    decision = make_decision(make_fine_tune("lora", 0.9, 0.16, wins=even))
    assert decision.candidate == "knn"
    assert "is not shown to help (0.0 [−8, +8] points of win rate" in decision.sentence
    assert "a gain, which the win rate does not show" in find_reason(decision, "By token_f1")


@pytest.mark.parametrize(
    ("wins", "why"),
    [
        (JUDGED, "judge:better compared the answers of lora against those of knn, and needs 80 more ratings"),
        (
            PEOPLE_RATED._replace(rate=None),
            "there are no ratings of the answers of lora against those of knn",
        ),
        (JUDGED._replace(rate=None, missing=0), "judge:better has not compared the answers of lora"),
        (
            PEOPLE_RATED._replace(over="fixed"),
            "there is no comparison of the answers of lora against those of knn",
        ),
        (None, "there is no comparison of the answers of lora"),
    ],
)
def test_a_win_rate_that_may_not_decide_leaves_the_decision_open(wins, why):
    open_gate = verdict("inconclusive")
    decision = make_decision(make_fine_tune("lora", 0.40, -0.34, wins=wins, verdict=open_gate))
    assert (decision.action, decision.candidate) == ("undecided", None)
    assert f"Undecided: the goal is a win rate, and {why}" in decision.sentence


def test_ratings_are_the_next_best_spend_where_a_judge_of_pairs_lacks_them():
    decision = make_decision(
        make_fine_tune("lora", 0.40, -0.34, wins=JUDGED, verdict=verdict("inconclusive"))
    )
    assert find_reason(decision, "Next best spend").startswith(
        "Next best spend: 80 more ratings of people, which"
    )
    assert decision.arithmetic["next_best_spend"] == "80 more ratings of people"


def test_the_win_rate_of_a_recipe_is_the_mean_over_its_seeds():
    rates = (0.6, 0.7, 0.8)
    seeds = [
        make_fine_tune(
            "lora",
            0.9,
            0.1,
            seed=i,
            run_id=f"lora-{i}",
            wins=PEOPLE_RATED._replace(rate=Estimate(r, r, r, 99)),
        )
        for i, r in enumerate(rates)
    ]
    found = make_decision(*seeds)
    assert found.arithmetic["gain_over_untrained"] == pytest.approx(0.2)
    assert find_reason(found, "The goal is").endswith(
        ": lora over 3 seeds is preferred to knn on 70.0 [45, 95] % of items, its checkpoint judged (seed 0) on"
        " 60.0 [60.0, 60.0] % of items, by people on 200 pairs."
    )
    # t with 2 degrees of freedom: 4.303 × 0.1 / √3 around 0.2
    assert found.arithmetic["gain_over_untrained_low"] == pytest.approx(0.2 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)


def test_a_gain_by_a_judge_that_no_labels_check_is_said_to_be_such_and_labels_are_the_next_spend():
    lora = make_fine_tune("lora", 0.10, -0.6, labels_missing=80)
    decision = make_decision(lora, metric="judge:helpful", win_rate=None)
    gain = next(reason for reason in decision.reasons if reason.startswith("lora: "))
    assert (
        "by a judge that too few labels of people check yet; what follows from that gain is as uncertain"
        in gain
    )
    assert find_reason(decision, "Next best spend").startswith(
        "Next best spend: 80 more labels of people, which"
    )
    assert "choose now" not in " ".join(decision.reasons)


def write_decision(wins, **changes):
    facts = [*alternatives(), make_fine_tune("lora", 0.40, -0.34, wins=wins)]
    goal = TargetPolicy(win_rate=0.6, by="judge:./better.yaml")
    given = {"closed_labels": True, "has_documents": False, "metric_name": "token_f1", "win_rate": 0.6}
    decision = decide(facts, DecidePolicy(), **given)
    return ExperimentReport(
        "desk", "base", "token_f1", tuple(facts), decision=decision, declared=goal, policy=DecidePolicy()
    )


def test_a_report_shows_win_rates_in_its_table_its_gain_and_on_the_terminal():
    report = write_decision(PEOPLE_RATED)
    assert "Win rates" in markdown(experiment_document(report))
    for text in (markdown(experiment_document(report)), terminal_html(report)):
        assert "70.0 [62, 78]" in text
        assert "preferred to knn on" in " ".join(text.split())
    table = next(s for s in experiment_document(report).sections if s.kind == "wins")
    assert table.rows == [["lora", "knn", "people", "70.0 [62, 78]", "–", "200", "60.0"]]
    open_ = next(s for s in experiment_document(write_decision(JUDGED)).sections if s.kind == "wins")
    assert open_.rows[0][3] == "90.0 [86, 94] (80 more ratings needed)"
    assert "a judge that too few ratings of people check yet" in markdown(
        experiment_document(write_decision(JUDGED))
    )


def test_the_terminal_calls_the_scores_of_an_unlabelled_judge_that_below_its_table():
    facts = tuple(alternatives())
    found = ExperimentReport("desk", "base", "judge:helpful", facts)
    assert "grades of a judge; too few answers have labels of people to correct them" in " ".join(
        terminal_html(found).split()
    )
    plain = ExperimentReport("desk", "base", "token_f1", facts)
    assert "labels of people" not in terminal_html(plain)


def test_the_next_step_draws_pairs_where_ratings_of_them_lack():
    text = markdown(experiment_document(write_decision(JUDGED)))
    assert "harness rate export pairs.csv --pairs" in text
    assert "--pairs" not in markdown(experiment_document(write_decision(PEOPLE_RATED)))
    second = make_fine_tune(
        "lora", 0.39, -0.3, seed=1, run_id="lora-1", wins=PEOPLE_RATED._replace(rate=None)
    )
    found = write_decision(PEOPLE_RATED)
    undecided = replace(found.decision, candidate=None)
    with_seed = replace(found, facts=(*found.facts, second), decision=undecided)
    assert "harness rate export pairs.csv --pairs" in markdown(experiment_document(with_seed))


def pairs(n, won, first, lengths, vote=lambda i: None):
    return {f"item-{i}": JudgedPair(won(i), first(i), lengths(i), f"item-{i}", vote(i)) for i in range(n)}


def test_a_judge_of_pairs_that_prefers_the_place_or_the_length_is_unmasked():
    by_place = bias_of(pairs(60, lambda i: 0.5, lambda i: 1.0, lambda i: (50, 50)))
    assert by_place.first.score == 1.0
    assert by_place.first.low > 0.9
    assert by_place.longer is None  # no lengths differ
    long_new = bias_of(
        pairs(
            80,
            lambda i: float(i % 2),
            lambda i: 0.5,
            lambda i: (50, 90 if i % 2 else 20),
            lambda i: i % 4 > 1,
        )
    )
    assert long_new.longer.score == 1.0
    # People prefer the new answer to half of the items whatever its length, and the judge the longer one.
    assert long_new.longer_beside_people.favour.score == pytest.approx(0.5)
    assert long_new.longer_beside_people.favour.low > 0.3
    assert long_new.longer_beside_people.is_length
    assert long_new.favour.score == pytest.approx(0.0)
    assert long_new.favour.low < 0 < long_new.favour.high


def test_a_report_says_what_a_judge_of_pairs_prefers():
    bias = bias_of(pairs(60, lambda i: 1.0, lambda i: 0.9, lambda i: (50, 90), lambda i: float(i % 2)))
    text = markdown(
        experiment_document(write_decision(JUDGED._replace(missing=0, corrected=True, bias=bias)))
    )
    for words in (
        "the answer shown first won 90.0",
        "the longer answer won 100.0",
        "it favours lora by +50.0",
        "it favours the longer answer by +50.0",
        "what else sets the two apart may be the cause as well",
    ):
        assert words in text


def test_a_few_ratings_of_people_leave_the_decision_open_and_are_the_next_spend():
    few = Wins("knn", "people", Estimate(1.0, 0.21, 1.0, 60), 1, unrated=59)
    decision = make_decision(make_fine_tune("lora", 0.9, 0.16, wins=few))
    assert decision.action == "undecided"
    assert (
        "people have rated 1 pair of the answers of lora against those of knn, and 9 more"
        in decision.sentence
    )
    assert find_reason(decision, "Next best spend").startswith(
        "Next best spend: 9 more ratings of people, which"
    )


def test_a_win_rate_of_which_too_much_is_unreadable_decides_nothing():
    unread = Wins("knn", "judge:better", Estimate(0.9, 0.0, 1.0, 60), 60, 0.9, is_open=True)
    assert (
        "too many items tell nothing"
        in make_decision(make_fine_tune("lora", 0.9, 0.16, wins=unread)).sentence
    )


def test_a_rate_at_the_border_is_as_sure_as_the_wider_side_of_its_interval():
    won = preference_gain(Wins("knn", "people", Estimate(1.0, 0.21, 1.0, 60), 1))
    assert won.se == pytest.approx(0.79 / 1.96, abs=0.001)


def test_a_gain_that_labels_correct_is_not_called_unchecked_for_a_candidate_that_lacks_them():
    facts = [
        *alternatives(),
        make_fine_tune("lora", 0.8, 0.06, vs_untrained=comparison(0.06, estimator="ppi")),
    ]
    given = {"closed_labels": True, "has_documents": False, "metric_name": "judge:helpful"}
    for lacking, is_said in (("prompt", False), ("lora", True)):
        marked = tuple(replace(f, labels_missing=9 * (f.name == lacking)) for f in facts)
        decision = decide(marked, DecidePolicy(), **given)
        made = ExperimentReport("desk", "base", "judge:helpful", marked, decision=decision)
        text = markdown(experiment_document(made))
        assert ("by a judge that too few labels of people check yet" in text) is is_said
