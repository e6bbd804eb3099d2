"""Grades of judges: asked again, by probabilities, on passages, corrected by people's labels."""

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
from test_gating import compare_task, verdict
from test_judges import JUDGE, RUBRIC, Grader, N, desk, number  # noqa: F401 (the fixture)
from test_measurements import RATING

from harness import config, stats
from harness.analysis import human_preferences
from harness.analysis.human_preferences import Turn
from harness.analysis.judge_correction import GradedArm, correct_difference, correct_score, count_more_labels
from harness.config.rubrics import Rubric, read_rubric
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation.grading import mean_grade, token_weights
from harness.evaluation.judges import answer_key, judge_messages
from harness.experiment import rescore_run
from harness.lifecycle import release
from harness.lifecycle.gates import refuse_regraded
from harness.records import Example
from harness.spec import GatePolicy
from reports.studies import judge_correction as study
from tests.golden import golden

pytestmark = pytest.mark.usefixtures("own_cache")


class Mumbler(Grader):
    """A judge that says no grade of every third question, the first `silent` times that it is asked about it."""

    def __init__(self, silent):
        super().__init__(self._say)
        self.silent, self.times = silent, {}

    def _say(self, question, answer):
        self.times[question, answer] = self.times.get((question, answer), 0) + 1
        mumbles = number(question) % 3 == 0 and self.times[question, answer] <= self.silent
        return "well" if mumbles else "3"


def list_unread(d):
    return [number(row.prompt) for row in d.rows() if row.parts["judge:helpful"] is None]


@pytest.mark.e2e
def test_attempts_added_later_ask_about_unreadable_grades_alone_and_the_gate_waits_for_them(desk):  # noqa: F811
    d = desk(judge=Mumbler(silent=1))
    found = d.compare()
    thirds = sum(i % 3 == 0 for i in range(N)) + 1  # of test, and of two validation items
    assert sorted(list_unread(d)) == [i for i in range(N) if i % 3 == 0]
    assert any("attempts: 2 in the rubric asks about them again" in note for note in found.notes)
    n_asked, n_answered = len(d.judge.asked), len(d.candidates.asked)
    d.rubric(RUBRIC + "attempts: 2\n" + JUDGE.format(url=d.judge.url, timeout=5))
    stored = release.load_study(config.load(d.path))
    with pytest.raises(IncompatibleRuns, match="next: harness compare"):
        refuse_regraded(stored, tiny_experiment.runs_of(d.path)["plain"])
    d.compare()
    assert len(d.judge.asked) - n_asked == 2 * thirds
    assert len(d.candidates.asked) == n_answered
    assert list_unread(d) == []
    refuse_regraded(stored, run := tiny_experiment.runs_of(d.path)["plain"])
    assert rescore_run(tiny_experiment.session(d.path), run)[1]["replies"]
    n_asked = len(d.judge.asked)
    d.compare()
    assert len(d.judge.asked) == n_asked
    (book,) = d.grades()
    assert sum(grade.value is None for grade in book.values()) == 2 * thirds, "what it said first is kept"


WEIGHED = RUBRIC + "logprobs: true\n"


class Weigher(Grader):
    """A judge that says the likelier of two grades and gives the probabilities of both."""

    def __init__(self, tokens, grade=lambda q, a: "4"):
        super().__init__(grade)
        self.tokens = tokens

    def chat(self, messages, body):
        return super().chat(messages, body)._replace(tokens=self.tokens)


@pytest.mark.e2e
def test_the_mean_of_the_grades_counts_by_the_probabilities_of_the_first_token(desk):  # noqa: F811
    tokens = ({"4": log(0.6), "2": log(0.2), " 4": log(0.1), "The": log(0.1)},)
    d = desk(judge=Weigher(tokens), rubric=WEIGHED)
    d.compare()
    wanted = (0.75 * 0.7 + 0.25 * 0.2) / 0.9
    assert [row.parts["judge:helpful"][0] for row in d.rows()] == pytest.approx([wanted] * N)
    (kept,) = d.grades()
    assert {g.said for g in kept.values()} == {"4 (1: 0.000, 2: 0.222, 3: 0.000, 4: 0.778, 5: 0.000)"}
    assert {(body["logprobs"], body["top_logprobs"]) for _, body in d.judge.model.prompts} == {(True, 20)}


@pytest.mark.e2e
def test_a_server_without_log_probabilities_ends_the_grading_with_the_way_on(desk):  # noqa: F811
    d = desk(rubric=WEIGHED)
    found = d.compare()
    assert {f.state for f in found.facts} == {"failed"}
    assert "an answer without log-probabilities" in found.facts[0].error
    assert "a server that gives top_logprobs" in found.facts[0].error


def test_grades_that_do_not_differ_in_their_first_token_are_refused(tmp_path):
    file = tmp_path / "helpful.yaml"
    url = "http://127.0.0.1:9/v1"
    file.write_text(WEIGHED + "scale: {min: 1, max: 10}\n" + JUDGE.format(url=url, timeout=5))
    with pytest.raises(UserError, match="logprobs: true and grades up to 10"):
        read_rubric(file)


def test_weights_are_those_of_g_eval():
    """The expected grade of section 2: the sum of grades by their probabilities, on a scale from 1 to 5."""
    rubric = Rubric(criteria="x", judge="any")
    shares = np.array([0.1, 0.1, 0.2, 0.4, 0.2])
    assert 1 + 4 * mean_grade(rubric, shares, "")[1] == pytest.approx(shares @ [1, 2, 3, 4, 5])
    pair = Rubric(criteria="x", judge="any", mode="pairwise")
    tokens = token_weights(pair, [("A", log(0.6)), ("t", log(0.3)), ("B", log(0.1)), ("!", -20.0)])
    assert tokens == pytest.approx([0.1, 0.3, 0.6])
    assert mean_grade(pair, tokens, "first")[1] == pytest.approx(0.75)
    assert mean_grade(pair, tokens, "second")[1] == pytest.approx(0.25)
    assert token_weights(rubric, [("six", 0.0)]) is None


@pytest.mark.e2e
def test_the_gate_refuses_grades_by_another_rubric_or_judge_than_the_files_name(desk):  # noqa: F811
    d = desk(extra="gate: {uncalibrated_judge: allow, target: {min: 0.4}}\n")
    d.compare()
    release.gate(d.path, "plain")
    judge = JUDGE.format(url=d.judge.url, timeout=5)
    for other in (RUBRIC + judge.replace("tiny", "large"), f"criteria: The reply is short.\n{judge}"):
        d.rubric(other)
        with pytest.raises(IncompatibleRuns, match=r"by another judge or rubric.*next: harness compare"):
            release.gate(d.path, "plain")
    d.compare()
    release.gate(d.path, "plain")


ABROAD = "http://judge.example.com/v1"


def test_a_judge_abroad_is_refused_where_data_are_sensitive_when_the_file_is_read(desk):  # noqa: F811
    d = desk(extra="decide: {needs: [sensitive_data]}\n")
    config.load(d.path)
    d.rubric(RUBRIC + JUDGE.format(url=ABROAD, timeout=5))
    with pytest.raises(
        UserError, match=r"harness.yaml:8: found judge:helpful: a judge on an external server"
    ):
        config.load(d.path)
    config.load(d.path, ["decide.needs=[]"])


def test_a_candidate_abroad_is_sent_nothing_where_data_are_sensitive(desk):  # noqa: F811
    d = desk(extra="decide: {needs: [sensitive_data]}\n")
    d.path.write_text(d.path.read_text().replace(d.candidates.url, "http://big.example.com/v1"))
    with pytest.raises(UserError, match=r"plain on an external server, tiny at http://big.example.com/v1"):
        d.compare()
    assert d.candidates.asked == d.judge.asked == []


@pytest.mark.parametrize("critical", [(), ("facts",)])
def test_a_judge_in_a_suite_shows_no_forgetting_unless_the_policy_allows_it(critical):
    facts = compare_task("facts", 600, 0, 0)
    by_judge = facts._replace(comparison=replace(facts.comparison, metric="judge:helpful"))
    policy = GatePolicy(critical=critical)
    found = verdict([by_judge], policy)
    assert found.outcome == "inconclusive"
    assert "macro: facts graded by a judge that no labels of people calibrate" in found.sentence
    assert ("critical: facts graded by a judge" in found.sentence) is bool(critical)
    allowed = policy.model_copy(update={"uncalibrated_judge": "allow"})
    assert verdict([by_judge], allowed).outcome == verdict([facts], policy).outcome == "pass"


ITEM = Example("1", ({"role": "user", "content": "What does it cost?"},), ("40",))


def rubric(**given):
    return Rubric(criteria="The answer rests on the passages.", judge="any", scale="yes/no", **given)


def test_passages_are_graded_between_marks_only_where_they_are_shown():
    keys = [
        [answer_key(rubric(passages=shown), ITEM, "40", passages=of) for of in ("It costs 40.", "Nothing.")]
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
    found = stats.prediction_powered_mean(LABELS, GRADES, REST, power=power)
    wanted = expected[name]
    normal = stats.t_interval(found.mean._replace(df=np.inf))
    assert found.power == pytest.approx(wanted["lam"], abs=tolerance)
    assert (found.mean.mean, found.mean.se) == pytest.approx((wanted["theta"], wanted["se"]), abs=tolerance)
    assert normal == pytest.approx(wanted["ci95"], abs=tolerance)


def test_rogan_and_gladens_rate_and_alpaca_evals_win_rates_are_the_published_ones():
    expected, tolerance = golden("rogan_gladen")
    wanted = expected["p.4 q0.7 q1.9 n1000 m200/200"]
    found = stats.rogan_gladen(0.4, 1000, 0.7, 200, 0.9, 200)
    assert found == pytest.approx((wanted["theta"], *wanted["ci"]), abs=tolerance)
    assert stats.rogan_gladen(0.4, 1000, 0.5, 200, 0.5, 200) is None

    find_shared_data("rows/alpaca_eval_annotations/alpaca_eval_gpt4.jsonl.gz")
    for annotator, n in zip(study.ALPACA, (59, 52), strict=True):
        found = study.win_rates(find_shared_data("README.md").parent, annotator)
        assert found.n_models == n
        assert max(found.win_rate_off, found.error_off) < 0.001

    found = study.length_bias(find_shared_data("README.md").parent)
    assert found.n_models >= 58
    assert found.share_longer > 0.95
    assert found.share_alike > 0.95
    assert found.rank > 0.7


def test_pass_at_k_is_the_published_one():
    expected, tolerance = golden("passk")
    counts = {
        "n50c10k1": (50, 10, 1),
        "n50c10k5": (50, 10, 5),
        "n50c10k10": (50, 10, 10),
        "n10c3k5": (10, 3, 5),
    }
    found = {name: stats.pass_at_k(*of) for name, of in counts.items()}
    assert found == pytest.approx({name: expected[name] for name in counts}, abs=tolerance)


def test_kappa_is_that_of_statsmodels_or_of_sklearn_with_quadratic_weights_and_unknown_of_equal_labels():
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    draw = np.random.default_rng(5)
    people = (draw.random(300) < 0.6).astype(float)
    judge = np.where(draw.random(300) < 0.2, 1 - people, people)
    expected = cohens_kappa(to_table(np.column_stack([people, judge]).astype(int))[0])
    found = stats.cohen_kappa(people, judge)
    assert found.estimate == pytest.approx(expected.kappa)
    assert (found.low, found.high) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=0.02)

    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(6)
    people = draw.integers(0, 5, 200)
    judge = np.clip(people + draw.integers(-1, 2, 200), 0, 4)
    found = stats.cohen_kappa(people / 4, judge / 4)
    assert found.estimate == pytest.approx(cohen_kappa_score(people, judge, weights="quadratic"))
    assert stats.cohen_kappa([1, 1, 1], [1, 1, 1]) is None
    assert stats.cohen_kappa([1, 1, 1], [0, 1, 1]) is None
    assert stats.cohen_kappa([0, 1, 1], [0.5, 0.5, 0.5]) is None


@given(st.lists(st.booleans(), min_size=20, max_size=40), st.integers(0, 2**32 - 1))
def test_swapping_the_arms_turns_the_sign_of_a_corrected_difference_and_nothing_else(labels, seed):
    draw, n = np.random.default_rng(seed), len(labels)

    def arm(people):
        of = np.asarray(people, float)
        of[n // 2 :] = np.nan
        return GradedArm(draw.integers(0, 2, n).astype(float), of, np.arange(n))

    base, new = arm(labels), arm(labels[::-1])
    there, back = correct_difference(base, new), correct_difference(new, base)
    assert (there.score, there.low, there.high) == pytest.approx((-back.score, -back.high, -back.low))


@pytest.mark.parametrize(("n_clusters", "size", "n_labels"), [(100, 4, 100), (25, 16, 100)])
def test_corrected_intervals_hold_the_truth_where_items_share_clusters(n_clusters, size, n_labels):
    draw, n, draws = np.random.default_rng(13), n_clusters * size, 300
    clusters = np.repeat(np.arange(n_clusters), size)

    def arm(rate, has):
        people = (draw.random(n) < draw.beta(rate, 1 - rate, n_clusters)[clusters]).astype(float)
        passes = draw.random(n) < draw.beta(0.15, 0.85, n_clusters)[clusters]  # whatever people say
        return GradedArm(np.where(passes, 1.0, people), np.where(has, people, np.nan), clusters)

    hits = np.zeros(2)
    for _ in range(draws):
        has = draw.permutation(n) < n_labels
        base, new = arm(0.4, has), arm(0.55, has)
        score, change = correct_score(new), correct_difference(base, new)
        hits += score.low <= 0.55 <= score.high, change.low <= 0.15 <= change.high
    assert (hits / draws > 0.95 - 3 * (0.95 * 0.05 / draws) ** 0.5).all()


def test_a_judge_that_guesses_gives_no_more_than_the_labels_alone():
    draw = np.random.default_rng(9)
    people = (draw.random(1000) < 0.6).astype(float)
    labels = np.where(np.arange(1000) < 100, people, np.nan)
    arm = GradedArm((draw.random(1000) < 0.6).astype(float), labels, np.arange(1000))
    corrected, alone = correct_score(arm), correct_score(arm, power=0.0)
    assert corrected.power < 0.15
    assert corrected.high - corrected.low > 0.97 * (alone.high - alone.low)


def test_so_many_more_labels_settle_a_difference_four_times_in_five():
    draw = np.random.default_rng(10)

    def arms(n_labels, seed):
        draw = np.random.default_rng(seed)
        base = (draw.random(2000) < 0.5).astype(float)
        new = np.where(draw.random(2000) < 0.3, (draw.random(2000) < 0.75).astype(float), base)
        judged = [np.where(draw.random(2000) < 0.15, 1 - y, y) for y in (base, new)]
        has = np.arange(2000) < n_labels
        return [
            GradedArm(f, np.where(has, y, np.nan), np.arange(2000))
            for f, y in zip(judged, (base, new), strict=True)
        ]

    asked = []
    for seed in draw.integers(0, 10**6, 40):
        old, now = arms(60, seed)
        found = correct_difference(old, now)
        asked.append(count_more_labels(old, now, found._replace(score=0.075, low=-0.1)))
    # No number of labels settles a difference that the items cannot show.
    assert count_more_labels(old, now, found._replace(score=0.001, low=-0.1, high=0.1)) is None
    n = 60 + round(np.median([a for a in asked if a]))
    settled = [correct_difference(*arms(n, seed)).low > 0 for seed in range(300)]
    assert 0.7 < np.mean(settled) < 0.9


@pytest.fixture(scope="module")
def answers():
    find_shared_data("rows/xstest_results/all.jsonl.gz")
    return study.read_answers(find_shared_data("README.md").parent)


@pytest.mark.parametrize("judge", study.JUDGES)
def test_uncorrected_judges_miss_what_people_say_of_most_models(answers, judge):
    for missed in study.count_uncorrected(answers, judge, 300, study.pairs(answers)):
        assert missed.mean < 0.4
        assert missed.least == 0


@pytest.mark.parametrize("judge", study.JUDGES)
@pytest.mark.parametrize("n_labels", study.SIZES)
def test_corrected_rates_and_differences_hold_what_people_say(answers, judge, n_labels):
    draws = 150
    for found in study.coverage(answers, judge, n_labels, draws, study.pairs(answers)[:2]):
        error = (0.95 * 0.05 / draws) ** 0.5
        assert found.least > 0.95 - 4 * error
        assert found.mean > 0.95 - 2.5 * error


def test_a_slope_is_that_of_statsmodels_with_errors_by_cluster():
    from statsmodels.api import OLS, add_constant

    draw = np.random.default_rng(12)
    groups = np.repeat(np.arange(150), 2)
    x = draw.normal(size=300)
    y = 0.3 * x + draw.normal(size=150)[groups] + draw.normal(size=300)
    fit = OLS(y, add_constant(x)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    found = stats.clustered_slope(x, y, groups)
    assert found.mean == pytest.approx(fit.params[1])
    assert found.se == pytest.approx(fit.bse[1], rel=0.02)
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
    mine = human_preferences.turns(IDS, "ann", "aaa", "bbb")
    assert human_preferences.turns(IDS[::-1], "ann", "aaa", "bbb") == mine
    assert sorted(turn.example_id for turn in mine) == sorted(IDS)
    assert human_preferences.turns(IDS, "bob", "aaa", "bbb") != mine
    assert 8 < Counter(turn.left for turn in mine)["a"] < 32

    first, second, *_ = human_preferences.turns(IDS, "ann", "aaa", "bbb")
    assert human_preferences.find_next_turn(IDS, [], "ann", "aaa", "bbb") == first
    for rating, turn in ((("skip",), second), (("a", "bob"), first)):
        rated = [make_rating(first.example_id, *rating)]
        assert human_preferences.find_next_turn(IDS, rated, "ann", "aaa", "bbb") == turn
    assert human_preferences.find_next_turn([], [], "ann", "aaa", "bbb") is None
    assert isinstance(first, Turn)


def test_ratings_count_once_an_item_by_the_last_of_each_rater_on_these_rows():
    found = human_preferences.outcome(
        [make_rating("x", "a"), make_rating("x", "b"), make_rating("y", "skip")], "aaa", "bbb"
    )
    assert (found.rate.wins, found.rate.losses, found.n_skipped) == (1, 0, 1)
    turned = make_rating("x", "a", run_a="lora-0", run_b="prompt-0", rows_a="bbb", rows_b="aaa")
    assert human_preferences.outcome([turned], "aaa", "bbb").rate.wins == 1
    assert human_preferences.outcome([make_rating("x", "a", rows_a="old")], "aaa", "bbb").rate is None
    found = human_preferences.outcome(
        [make_rating("x", "b", r) for r in ("ann", "bob", "cy")] + votes(1, 0, rater="di"), "aaa", "bbb"
    )
    assert (found.rate.wins, found.rate.losses, found.n_items, found.n_ratings) == (1, 1, 2, 4)
    assert found.raters == ("ann", "bob", "cy", "di")


def test_published_human_labels_come_out_as_published_whatever_the_sides():
    with gzip.open(find_shared_data("rows/llmbar/llmbar.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    items = {f"{row['subset']}/{row['idx']}": int(row["label"]) for row in rows}
    given = []
    for turn in human_preferences.turns(list(items), "people", "aaa", "bbb"):
        # This person prefers output 1, on either side.
        side = "left" if (items[turn.example_id] == 1) == (turn.left == "a") else "right"
        other = "b" if turn.left == "a" else "a"
        choice = turn.left if side == "left" else other
        given.append(make_rating(turn.example_id, choice, "people", left=turn.left))
    found = human_preferences.outcome(given, "aaa", "bbb")
    n_second = sum(label == 2 for label in items.values())
    assert (found.n_items, found.rate.wins) == (419, n_second)
    assert found.rate[:3] == (n_second / 419, *stats.wilson(n_second, 419))
    assert found.strength.elo == pytest.approx(400 * log10(n_second / (419 - n_second)))
