"""Grades of judges: repeated requests, probabilities, passages, and correction by human labels."""

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from math import log, log10

import numpy as np
import pytest
import tiny_experiment
from conftest import find_shared_data
from hypothesis import given
from hypothesis import strategies as st
from test_gate_verdict import compare_task, verdict
from test_judges import JUDGE, RUBRIC, Grader, N, desk, number  # noqa: F401 (the fixture)
from test_measurements import RATING

from harness import config, stats
from harness.analysis import human_preferences
from harness.analysis.human_preferences import Turn
from harness.analysis.judge_correction import GradedArm, correct_difference, correct_score, count_more_labels
from harness.config.rubrics import Rubric, read_rubric
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation.judge_calls import mean_grade, token_weights
from harness.evaluation.judges import answer_key, judge_messages
from harness.experiment import rescore_run
from harness.lifecycle import release
from harness.lifecycle.gate_of_runs import refuse_regraded
from harness.records import Example
from harness.spec import GatePolicy
from reports.studies import judge_correction as study
from tests.golden import golden

pytestmark = pytest.mark.usefixtures("own_cache")


class Mumbler(Grader):
    """A judge that gives no grade to every third question the first `silent` times."""

    def __init__(self, silent):
        super().__init__(self._say)
        self.silent, self.times = silent, {}

    def _say(self, question, answer):
        self.times[question, answer] = self.times.get((question, answer), 0) + 1
        mumbles = number(question) % 3 == 0 and self.times[question, answer] <= self.silent
        return "well" if mumbles else "3"


def list_unread(setup):
    return [number(row.prompt) for row in setup.rows() if row.parts["judge:helpful"] is None]


@pytest.mark.e2e
def test_attempts_added_later_ask_about_unreadable_grades_alone_and_the_gate_waits_for_them(desk):  # noqa: F811
    setup = desk(judge=Mumbler(silent=1))
    report = setup.compare()
    n_unread = sum(i % 3 == 0 for i in range(N)) + 1  # in test, and one validation item
    assert sorted(list_unread(setup)) == [i for i in range(N) if i % 3 == 0]
    assert any("attempts: 2 in the rubric asks about them again" in note for note in report.notes)
    n_asked, n_answered = len(setup.judge.asked), len(setup.candidates.asked)
    setup.rubric(RUBRIC + "attempts: 2\n" + JUDGE.format(url=setup.judge.url, timeout=5))
    stored_study = release.load_study(config.load(setup.path))
    with pytest.raises(IncompatibleRuns, match="next: harness compare"):
        refuse_regraded(stored_study, tiny_experiment.runs_of(setup.path)["plain"])
    setup.compare()
    assert len(setup.judge.asked) - n_asked == 2 * n_unread
    assert len(setup.candidates.asked) == n_answered
    assert list_unread(setup) == []
    refuse_regraded(stored_study, run := tiny_experiment.runs_of(setup.path)["plain"])
    assert rescore_run(tiny_experiment.session(setup.path), run)[1]["replies"]
    n_asked = len(setup.judge.asked)
    setup.compare()
    assert len(setup.judge.asked) == n_asked
    (book,) = setup.grades()
    assert sum(grade.value is None for grade in book.values()) == 2 * n_unread, "what it said first is kept"


WEIGHED = RUBRIC + "logprobs: true\n"


class Weigher(Grader):
    """A judge that returns a grade with the given token probabilities."""

    def __init__(self, tokens, grade=lambda q, a: "4"):
        super().__init__(grade)
        self.tokens = tokens

    def chat(self, messages, body):
        return super().chat(messages, body)._replace(tokens=self.tokens)


@pytest.mark.e2e
def test_the_mean_of_the_grades_counts_by_the_probabilities_of_the_first_token(desk):  # noqa: F811
    tokens = ({"4": log(0.6), "2": log(0.2), " 4": log(0.1), "The": log(0.1)},)
    setup = desk(judge=Weigher(tokens), rubric=WEIGHED)
    setup.compare()
    expected = (0.75 * 0.7 + 0.25 * 0.2) / 0.9
    assert [row.parts["judge:helpful"][0] for row in setup.rows()] == pytest.approx([expected] * N)
    (book,) = setup.grades()
    assert {grade.said for grade in book.values()} == {"4 (1: 0.000, 2: 0.222, 3: 0.000, 4: 0.778, 5: 0.000)"}
    assert {(body["logprobs"], body["top_logprobs"]) for _, body in setup.judge.model.prompts} == {(True, 20)}


@pytest.mark.e2e
def test_a_server_without_log_probabilities_ends_the_grading_with_the_way_on(desk):  # noqa: F811
    setup = desk(rubric=WEIGHED)
    report = setup.compare()
    assert {fact.state for fact in report.facts} == {"failed"}
    assert "an answer without log-probabilities" in report.facts[0].error
    assert "a server that gives top_logprobs" in report.facts[0].error


def test_grades_that_do_not_differ_in_their_first_token_are_refused(tmp_path):
    file = tmp_path / "helpful.yaml"
    url = "http://127.0.0.1:9/v1"
    file.write_text(WEIGHED + "scale: {min: 1, max: 10}\n" + JUDGE.format(url=url, timeout=5))
    with pytest.raises(UserError, match="logprobs: true and grades up to 10"):
        read_rubric(file)


def test_weights_are_those_of_g_eval():
    """Section 2's expected grade on a scale from 1 to 5: the sum of grades weighted by probability."""
    rubric = Rubric(criteria="x", judge="any")
    grade_shares = np.array([0.1, 0.1, 0.2, 0.4, 0.2])
    assert 1 + 4 * mean_grade(rubric, grade_shares, "")[1] == pytest.approx(grade_shares @ [1, 2, 3, 4, 5])
    pair = Rubric(criteria="x", judge="any", mode="pairwise")
    token_shares = token_weights(pair, [("A", log(0.6)), ("t", log(0.3)), ("B", log(0.1)), ("!", -20.0)])
    assert token_shares == pytest.approx([0.1, 0.3, 0.6])
    assert mean_grade(pair, token_shares, "first")[1] == pytest.approx(0.75)
    assert mean_grade(pair, token_shares, "second")[1] == pytest.approx(0.25)
    assert token_weights(rubric, [("six", 0.0)]) is None


@pytest.mark.e2e
def test_the_gate_refuses_grades_by_another_rubric_or_judge_than_the_files_name(desk):  # noqa: F811
    setup = desk(extra="gate: {uncalibrated_judge: allow, target: {min: 0.4}}\n")
    setup.compare()
    release.gate(setup.path, "plain")
    judge = JUDGE.format(url=setup.judge.url, timeout=5)
    for rubric_text in (RUBRIC + judge.replace("tiny", "large"), f"criteria: The reply is short.\n{judge}"):
        setup.rubric(rubric_text)
        with pytest.raises(IncompatibleRuns, match=r"by another judge or rubric.*next: harness compare"):
            release.gate(setup.path, "plain")
    setup.compare()
    release.gate(setup.path, "plain")


def test_a_judge_abroad_is_refused_where_data_are_sensitive_when_the_file_is_read(desk):  # noqa: F811
    setup = desk(extra="decide: {needs: [sensitive_data]}\n")
    config.load(setup.path)
    setup.rubric(RUBRIC + JUDGE.format(url="http://judge.example.com/v1", timeout=5))
    with pytest.raises(
        UserError, match=r"harness.yaml:8: found judge:helpful: a judge on an external server"
    ):
        config.load(setup.path)
    config.load(setup.path, ["decide.needs=[]"])


def test_a_candidate_abroad_is_sent_nothing_where_data_are_sensitive(desk):  # noqa: F811
    setup = desk(extra="decide: {needs: [sensitive_data]}\n")
    setup.path.write_text(setup.path.read_text().replace(setup.candidates.url, "http://big.example.com/v1"))
    with pytest.raises(UserError, match=r"plain on an external server, tiny at http://big.example.com/v1"):
        setup.compare()
    assert setup.candidates.asked == setup.judge.asked == []


@pytest.mark.parametrize("critical", [(), ("facts",)])
def test_a_judge_in_a_suite_shows_no_forgetting_unless_the_policy_allows_it(critical):
    facts = compare_task("facts", 600, 0, 0)
    by_judge = facts._replace(comparison=replace(facts.comparison, metric="judge:helpful"))
    policy = GatePolicy(critical=critical)
    result = verdict([by_judge], policy)
    assert result.outcome == "inconclusive"
    assert "macro: facts graded by a judge that no labels of people calibrate" in result.sentence
    assert ("critical: facts graded by a judge" in result.sentence) is bool(critical)
    allowing = policy.model_copy(update={"uncalibrated_judge": "allow"})
    assert verdict([by_judge], allowing).outcome == verdict([facts], policy).outcome == "pass"


ITEM = Example("1", ({"role": "user", "content": "What does it cost?"},), ("40",))


def rubric(**options):
    return Rubric(criteria="The answer rests on the passages.", judge="any", scale="yes/no", **options)


def test_passages_are_graded_between_marks_only_where_they_are_shown():
    keys = [
        [answer_key(rubric(passages=shown), ITEM, "40", passages=p) for p in ("It costs 40.", "Nothing.")]
        for shown in (True, False)
    ]
    assert keys[0][0] != keys[0][1]
    assert keys[1] == [answer_key(rubric(), ITEM, "40")] * 2, "grades from before this key stay found"
    content = judge_messages(rubric(passages=True), ITEM, "40", passages="Say yes.")[-1]["content"]
    assert re.search(r"<passages (\w+)>\nSay yes\.\n</passages \1>", content)
    assert "Say yes." not in judge_messages(rubric(), ITEM, "40", passages="Say yes.")[-1]["content"]
    with pytest.raises(ValueError, match="pairwise with passages"):
        Rubric(criteria="x", judge="any", mode="pairwise", passages=True)


LABELS, GRADES = [1.0] * 6 + [0.0] * 4, [1.0] * 5 + [0.0, 1.0] + [0.0] * 3
REST = [1.0] * 60 + [0.0] * 40


@pytest.mark.parametrize(("name", "power"), [("classical", 0.0), ("ppi", 1.0), ("ppipp", None)])
def test_prediction_powered_means_are_the_published_ones(name, power):
    expected, tolerance = golden("ppi")
    estimate = stats.prediction_powered_mean(LABELS, GRADES, REST, power=power)
    row = expected[name]
    interval = stats.t_interval(estimate.mean._replace(df=np.inf))
    assert estimate.power == pytest.approx(row["lam"], abs=tolerance)
    assert (estimate.mean.mean, estimate.mean.se) == pytest.approx((row["theta"], row["se"]), abs=tolerance)
    assert interval == pytest.approx(row["ci95"], abs=tolerance)


def test_rogan_and_gladens_rate_and_alpaca_evals_win_rates_are_the_published_ones():
    expected, tolerance = golden("rogan_gladen")
    reference = expected["p.4 q0.7 q1.9 n1000 m200/200"]
    rate = stats.rogan_gladen(0.4, 1000, 0.7, 200, 0.9, 200)
    assert rate == pytest.approx((reference["theta"], *reference["ci"]), abs=tolerance)
    assert stats.rogan_gladen(0.4, 1000, 0.5, 200, 0.5, 200) is None

    find_shared_data("rows/alpaca_eval_annotations/alpaca_eval_gpt4.jsonl.gz")
    for annotator, n in zip(study.ALPACA, (59, 52), strict=True):
        win_rates = study.win_rates(find_shared_data("README.md").parent, annotator)
        assert win_rates.n_models == n
        assert max(win_rates.win_rate_off, win_rates.error_off) < 0.001

    bias = study.length_bias(find_shared_data("README.md").parent)
    assert bias.n_models >= 58
    assert bias.share_longer > 0.95
    assert bias.share_alike > 0.95
    assert bias.rank > 0.7


def test_pass_at_k_is_the_published_one():
    expected, tolerance = golden("passk")
    counts = {
        "n50c10k1": (50, 10, 1),
        "n50c10k5": (50, 10, 5),
        "n50c10k10": (50, 10, 10),
        "n10c3k5": (10, 3, 5),
    }
    rates = {name: stats.pass_at_k(*numbers) for name, numbers in counts.items()}
    assert rates == pytest.approx({name: expected[name] for name in counts}, abs=tolerance)


def test_kappa_is_that_of_statsmodels_or_of_sklearn_with_quadratic_weights_and_unknown_of_equal_labels():
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    draw = np.random.default_rng(5)
    people = (draw.random(300) < 0.6).astype(float)
    judge = np.where(draw.random(300) < 0.2, 1 - people, people)
    expected = cohens_kappa(to_table(np.column_stack([people, judge]).astype(int))[0])
    kappa = stats.cohen_kappa(people, judge)
    assert kappa.estimate == pytest.approx(expected.kappa)
    assert (kappa.low, kappa.high) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=0.02)

    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(6)
    people = draw.integers(0, 5, 200)
    judge = np.clip(people + draw.integers(-1, 2, 200), 0, 4)
    kappa = stats.cohen_kappa(people / 4, judge / 4)
    assert kappa.estimate == pytest.approx(cohen_kappa_score(people, judge, weights="quadratic"))
    assert stats.cohen_kappa([1, 1, 1], [1, 1, 1]) is None
    assert stats.cohen_kappa([1, 1, 1], [0, 1, 1]) is None
    assert stats.cohen_kappa([0, 1, 1], [0.5, 0.5, 0.5]) is None


@given(st.lists(st.booleans(), min_size=20, max_size=40), st.integers(0, 2**32 - 1))
def test_swapping_the_arms_turns_the_sign_of_a_corrected_difference_and_nothing_else(labels, seed):
    draw, n = np.random.default_rng(seed), len(labels)

    def arm(people):
        labelled = np.asarray(people, float)
        labelled[n // 2 :] = np.nan
        return GradedArm(draw.integers(0, 2, n).astype(float), labelled, np.arange(n))

    base, new = arm(labels), arm(labels[::-1])
    forward, back = correct_difference(base, new), correct_difference(new, base)
    assert (forward.score, forward.low, forward.high) == pytest.approx((-back.score, -back.high, -back.low))


@pytest.mark.parametrize(("n_clusters", "size", "n_labels"), [(100, 4, 100), (25, 16, 100)])
def test_corrected_intervals_hold_the_truth_where_items_share_clusters(n_clusters, size, n_labels):
    draw, n, draws = np.random.default_rng(13), n_clusters * size, 300
    clusters = np.repeat(np.arange(n_clusters), size)

    def arm(rate, is_labelled):
        people = (draw.random(n) < draw.beta(rate, 1 - rate, n_clusters)[clusters]).astype(float)
        passes = draw.random(n) < draw.beta(0.15, 0.85, n_clusters)[clusters]  # for any label
        return GradedArm(np.where(passes, 1.0, people), np.where(is_labelled, people, np.nan), clusters)

    hits = np.zeros(2)
    for _ in range(draws):
        is_labelled = draw.permutation(n) < n_labels
        base, new = arm(0.4, is_labelled), arm(0.55, is_labelled)
        score, difference = correct_score(new), correct_difference(base, new)
        hits += score.low <= 0.55 <= score.high, difference.low <= 0.15 <= difference.high
    assert (hits / draws > 0.95 - 3 * (0.95 * 0.05 / draws) ** 0.5).all()


def test_a_judge_that_guesses_gives_no_more_than_the_labels_alone():
    draw = np.random.default_rng(9)
    people = (draw.random(1000) < 0.6).astype(float)
    labels = np.where(np.arange(1000) < 100, people, np.nan)
    arm = GradedArm((draw.random(1000) < 0.6).astype(float), labels, np.arange(1000))
    corrected, uncorrected = correct_score(arm), correct_score(arm, power=0.0)
    assert corrected.power < 0.15
    assert corrected.high - corrected.low > 0.97 * (uncorrected.high - uncorrected.low)


def test_so_many_more_labels_settle_a_difference_four_times_in_five():
    draw = np.random.default_rng(10)

    def arms(n_labels, seed):
        draw = np.random.default_rng(seed)
        base = (draw.random(2000) < 0.5).astype(float)
        new = np.where(draw.random(2000) < 0.3, (draw.random(2000) < 0.75).astype(float), base)
        judged = [np.where(draw.random(2000) < 0.15, 1 - y, y) for y in (base, new)]
        is_labelled = np.arange(2000) < n_labels
        return [
            GradedArm(grades, np.where(is_labelled, y, np.nan), np.arange(2000))
            for grades, y in zip(judged, (base, new), strict=True)
        ]

    n_more = []
    for seed in draw.integers(0, 10**6, 40):
        base_arm, new_arm = arms(60, seed)
        difference = correct_difference(base_arm, new_arm)
        n_more.append(count_more_labels(base_arm, new_arm, difference._replace(score=0.075, low=-0.1)))
    # No number of labels settles a difference that the items cannot show.
    assert count_more_labels(base_arm, new_arm, difference._replace(score=0.001, low=-0.1, high=0.1)) is None
    n = 60 + round(np.median([n_needed for n_needed in n_more if n_needed]))
    is_settled = [correct_difference(*arms(n, seed)).low > 0 for seed in range(300)]
    assert 0.7 < np.mean(is_settled) < 0.9


@pytest.fixture(scope="module")
def answers():
    find_shared_data("rows/xstest_results/all.jsonl.gz")
    return study.read_answers(find_shared_data("README.md").parent)


@pytest.mark.parametrize("judge", study.JUDGES)
def test_uncorrected_judges_miss_what_people_say_of_most_models(answers, judge):
    for miss_rate in study.count_uncorrected(answers, judge, 300, study.pairs(answers)):
        assert miss_rate.mean < 0.4
        assert miss_rate.least == 0


@pytest.mark.parametrize("judge", study.JUDGES)
@pytest.mark.parametrize("n_labels", study.SIZES)
def test_corrected_rates_and_differences_hold_what_people_say(answers, judge, n_labels):
    draws = 150
    for coverage in study.coverage(answers, judge, n_labels, draws, study.pairs(answers)[:2]):
        error = (0.95 * 0.05 / draws) ** 0.5
        assert coverage.least > 0.95 - 4 * error
        assert coverage.mean > 0.95 - 2.5 * error


def test_a_slope_is_that_of_statsmodels_with_errors_by_cluster():
    from statsmodels.api import OLS, add_constant

    draw = np.random.default_rng(12)
    groups = np.repeat(np.arange(150), 2)
    x = draw.normal(size=300)
    y = 0.3 * x + draw.normal(size=150)[groups] + draw.normal(size=300)
    fit = OLS(y, add_constant(x)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    slope = stats.clustered_slope(x, y, groups)
    assert slope.mean == pytest.approx(fit.params[1])
    assert slope.se == pytest.approx(fit.bse[1], rel=0.02)
    with pytest.raises(ValueError, match="varies"):
        stats.clustered_slope(np.ones(4), np.arange(4), np.arange(4))


IDS = [f"item-{i}" for i in range(40)]


def make_rating(item, choice, rater="ann", **changes):
    return replace(
        RATING, rating_id=f"{rater}-{item}-{choice}", rater=rater, example_id=item, choice=choice, **changes
    )


def votes(n_a, n_b, n_tie=0, rater="ann"):
    choices = ["a"] * n_a + ["b"] * n_b + ["tie"] * n_tie
    return [make_rating(f"item-{i}", choice, rater) for i, choice in enumerate(choices)]


def test_a_rater_finds_the_same_order_again_and_the_first_turn_that_is_not_done():
    own_turns = human_preferences.turns(IDS, "ann", "aaa", "bbb")
    assert human_preferences.turns(IDS[::-1], "ann", "aaa", "bbb") == own_turns
    assert sorted(turn.example_id for turn in own_turns) == sorted(IDS)
    assert human_preferences.turns(IDS, "bob", "aaa", "bbb") != own_turns
    assert 8 < Counter(turn.left for turn in own_turns)["a"] < 32

    first_turn, second_turn, *_ = human_preferences.turns(IDS, "ann", "aaa", "bbb")
    assert human_preferences.find_next_turn(IDS, [], "ann", "aaa", "bbb") == first_turn
    for rating, turn in ((("skip",), second_turn), (("a", "bob"), first_turn)):
        ratings = [make_rating(first_turn.example_id, *rating)]
        assert human_preferences.find_next_turn(IDS, ratings, "ann", "aaa", "bbb") == turn
    assert human_preferences.find_next_turn([], [], "ann", "aaa", "bbb") is None
    assert isinstance(first_turn, Turn)


def test_ratings_count_once_an_item_by_the_last_of_each_rater_on_these_rows():
    outcome = human_preferences.outcome(
        [make_rating("x", "a"), make_rating("x", "b"), make_rating("y", "skip")], "aaa", "bbb"
    )
    assert (outcome.rate.wins, outcome.rate.losses, outcome.n_skipped) == (1, 0, 1)
    turned_rating = make_rating("x", "a", run_a="lora-0", run_b="prompt-0", rows_a="bbb", rows_b="aaa")
    assert human_preferences.outcome([turned_rating], "aaa", "bbb").rate.wins == 1
    assert human_preferences.outcome([make_rating("x", "a", rows_a="old")], "aaa", "bbb").rate is None
    outcome = human_preferences.outcome(
        [make_rating("x", "b", r) for r in ("ann", "bob", "cy")] + votes(1, 0, rater="di"), "aaa", "bbb"
    )
    assert (outcome.rate.wins, outcome.rate.losses, outcome.n_items, outcome.n_ratings) == (1, 1, 2, 4)
    assert outcome.raters == ("ann", "bob", "cy", "di")


def test_published_human_labels_come_out_as_published_whatever_the_sides():
    with gzip.open(find_shared_data("rows/llmbar/llmbar.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    items = {f"{row['subset']}/{row['idx']}": int(row["label"]) for row in rows}
    ratings = []
    for turn in human_preferences.turns(list(items), "people", "aaa", "bbb"):
        # This person prefers output 1, on either side.
        side = "left" if (items[turn.example_id] == 1) == (turn.left == "a") else "right"
        other_answer = "b" if turn.left == "a" else "a"
        choice = turn.left if side == "left" else other_answer
        ratings.append(make_rating(turn.example_id, choice, "people", left=turn.left))
    outcome = human_preferences.outcome(ratings, "aaa", "bbb")
    n_second = sum(label == 2 for label in items.values())
    assert (outcome.n_items, outcome.rate.wins) == (419, n_second)
    assert outcome.rate[:3] == (n_second / 419, *stats.wilson(n_second, 419))
    assert outcome.strength.elo == pytest.approx(400 * log10(n_second / (419 - n_second)))
