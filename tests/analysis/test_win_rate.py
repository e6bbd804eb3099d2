"""A win rate as the gate's goal: by people, by a corrected or uncorrected judge; and its verdicts."""

import re
from dataclasses import replace

import fake_facts
import fake_rows
import numpy as np
import pytest
import tiny_experiment
from fake_facts import alternatives, find_reason, make_fine_tune, verdict
from openai_server import Fault, Rule, serve_model
from test_measurements import RATING

from harness import config, store
from harness.analysis.estimators import Estimate
from harness.analysis.gate_rules_on_answers import target_rule
from harness.analysis.human_preferences import AnswerPairs, Wins, wins_by_judge, wins_by_people
from harness.analysis.judge_correction import JudgedPair, bias_of
from harness.analysis.significance import target_p
from harness.analysis.verdict import TargetFacts
from harness.errors import UserError
from harness.experiment import judge_pairs, study_of_session
from harness.experiment.stored_rows import Reader
from harness.experiment.study import open_where_failed, wins_of
from harness.lifecycle import release
from harness.report import ExperimentReport, experiment_document, markdown
from harness.spec import DecidePolicy, GatePolicy, TargetPolicy
from harness.stats import wilson, win_rate

pytestmark = pytest.mark.usefixtures("own_cache")


ITEMS = [f"item-{i:03}" for i in range(200)]
PAIRS = AnswerPairs({item: item for item in ITEMS}, {})
GOAL = GatePolicy(target=TargetPolicy(win_rate=0.55, by="judge:./better.yaml"))


def judge_wins(wins):
    return target_rule(TargetFacts(Estimate(0.5, 0.4, 0.6, 200), None, wins=wins), GOAL)


def test_people_alone_give_wilsons_interval_and_equal_answers_are_ties():
    votes = {item: float(i % 4 > 0) for i, item in enumerate(ITEMS[:80])}
    wins = wins_by_people("prompt", PAIRS, votes)
    interval = win_rate(60, 20)
    assert wins.rate[:4] == pytest.approx((interval.rate, interval.low, interval.high, 200), abs=5e-4)
    assert wins.rate.low < interval.low  # other items may have equal answers
    half_equal = wins_by_people(
        "prompt", AnswerPairs(PAIRS.clusters, {f"same-{i}": f"same-{i}" for i in range(200)}), votes
    )
    assert half_equal.rate.score == pytest.approx(0.5 + (interval.rate - 0.5) / 2)
    assert half_equal.rate.low < 0.5 + (interval.low - 0.5) / 2  # which answers are equal varies by chance
    assert wins_by_people("prompt", PAIRS, {}).rate is None


def draw_pairs(rng, n, n_clusters, differ, win):
    """Draw pairs and votes; the items of a cluster differ, and are won, together."""
    n_of = n // n_clusters
    pairs, votes = AnswerPairs({}, {}), {}
    for c in range(n_clusters):
        differs, won = rng.random() < differ, float(rng.random() < win)
        for i in range(n_of):
            (pairs.clusters if differs else pairs.equal)[f"{c}-{i}"] = str(c)
            votes |= {f"{c}-{i}": won} if differs else {}
    return pairs, votes


@pytest.mark.parametrize("alike", [1, 200])
def test_where_no_answers_differ_some_of_other_items_may(alike):
    same = {f"item-{i}": f"{i // alike}" for i in range(200)}
    by_people = wins_by_people("prompt", AnswerPairs({}, same), {}).rate
    assert by_people == wins_by_judge("prompt", "judge:better", AnswerPairs({}, same), {}, {}).rate
    upper = wilson(0, 200 / alike).high
    assert by_people[:3] == pytest.approx((0.5, 0.5 - upper / 2, 0.5 + upper / 2))


@pytest.mark.e2e
@pytest.mark.parametrize(("n", "n_clusters", "differ", "win"), [(20, 20, 0.05, 0.95), (400, 40, 0.5, 0.9)])
def test_the_interval_of_a_win_rate_holds_the_truth_as_often_as_it_says(n, n_clusters, differ, win):
    rng = np.random.default_rng(3)
    truth = 0.5 + differ * (win - 0.5)
    covered = {"people": 0, "judge": 0}
    for _ in range(200):
        pairs, votes = draw_pairs(rng, n, n_clusters, differ, win)
        for name, wins in (
            ("people", wins_by_people("prompt", pairs, votes)),
            ("judge", wins_by_judge("prompt", "judge:better", pairs, votes, votes)),
        ):
            covered[name] += wins.rate.low <= truth <= wins.rate.high
    assert min(covered.values()) >= 200 * 0.95 - 3 * (200 * 0.95 * 0.05) ** 0.5, covered


def test_an_item_goes_to_what_most_raters_prefer_and_people_correct_a_judge_that_always_prefers_one():
    votes = dict.fromkeys(ITEMS, 2 / 3)
    assert wins_by_people("prompt", PAIRS, votes).rate.score == 1.0
    assert wins_by_judge("prompt", "judge:better", PAIRS, dict.fromkeys(ITEMS, 1.0), votes).rate.score == 1.0

    won = dict.fromkeys(ITEMS, 1.0)
    votes = {item: float(i % 2) for i, item in enumerate(ITEMS[:120])}
    wins = wins_by_judge("prompt", "judge:better", PAIRS, won, votes)
    assert (wins.uncorrected, wins.corrected, wins.missing) == (1.0, True, 0)
    assert wins.rate.low < 0.5 < wins.rate.high
    assert judge_wins(wins).outcome != "pass"


def test_too_few_ratings_leave_a_judges_rate_open_and_pairs_that_nobody_judged_too():
    won, votes = dict.fromkeys(ITEMS, 1.0), dict.fromkeys(ITEMS[:30], 1.0)
    open_ = wins_by_judge("prompt", "judge:better", PAIRS, won, votes)
    assert (open_.missing, open_.corrected) == (70, False)
    rule = judge_wins(open_)
    assert rule.outcome == "inconclusive"
    assert "70 more ratings of people" in rule.sentence
    assert judge_wins(open_._replace(missing=0)).outcome == "pass"  # as gate.uncalibrated_judge: allow
    assert "(not corrected)" in judge_wins(open_._replace(missing=0)).sentence
    unjudged = wins_by_judge("prompt", "judge:better", PAIRS, {}, votes)
    assert "judge:better has not compared these answers" in judge_wins(unjudged).sentence


@pytest.mark.parametrize(
    ("found", "outcome"),
    [((0.7, 0.6, 0.8), "pass"), ((0.6, 0.5, 0.7), "inconclusive"), ((0.4, 0.3, 0.5), "fail")],
)
def test_a_win_rate_passes_and_fails_by_its_whole_interval(found, outcome):
    wins = wins_by_people("prompt", PAIRS, dict.fromkeys(ITEMS[:10], 1.0))._replace(
        rate=Estimate(*found, 200)
    )
    facts = TargetFacts(Estimate(0.5, 0.4, 0.6, 200), None, wins=wins)
    assert target_rule(facts, GOAL).outcome == outcome
    assert (target_p(facts, GOAL.target) < 0.025) == (outcome == "pass")


def test_a_judges_score_that_needs_labels_does_not_hold_up_a_win_rate_by_people():
    wins = wins_by_people("prompt", PAIRS, dict.fromkeys(ITEMS, 1.0))
    facts = TargetFacts(Estimate(0.5, 0.4, 0.6, 200), None, labels_missing=100, wins=wins)
    assert target_rule(facts, GatePolicy(target=TargetPolicy(win_rate=0.55))).outcome == "pass"
    policy = GatePolicy(target=TargetPolicy(win_rate=0.55, min=0.2))
    refused = target_rule(facts, policy)
    assert refused.outcome == "inconclusive"
    assert "100 more labels" in refused.sentence


# ---- a whole experiment

RUBRIC = "criteria: The reply helps.\nmode: pairwise\njudge: {{base_url: {url}, model: tiny, max_retries: 0, num_concurrent: 1}}\n"
CANDIDATES = """\
  base: {{method: endpoint, role: baseline, params: {{base_url: {plain}, model: tiny, protocol: chat}}}}
  mine: {{method: endpoint, params: {{base_url: {tuned}, model: tiny, protocol: chat}}}}
gate: {{target: {{win_rate: 0.55, by: "judge:./better.yaml"}}}}
"""


def prefer_longer(messages):
    a, b = (
        re.search(rf"<{name} (\w+)>\n(.*?)\n</{name}", messages[-1]["content"], re.DOTALL)[2] for name in "AB"
    )
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


@pytest.fixture
def desk(tiny, tmp_path):
    plain = serve_model(Rule(lambda messages: "late"))
    tuned = serve_model(Rule(lambda messages: "money"))
    with plain as base, tuned as mine, serve_model(Rule(prefer_longer)) as judge:
        path = tiny_experiment.write(tmp_path, tiny, CANDIDATES.format(plain=base.url, tuned=mine.url))
        (tmp_path / "better.yaml").write_text(RUBRIC.format(url=judge.url))
        yield path, judge


def rule_of(report):
    (facts,) = (f for f in report.facts if f.name == "mine")
    return facts.wins, next(r for r in facts.verdict.rules if r.name == "target")


def rate(path, choice_of):
    runs, at = tiny_experiment.runs_of(path), store.Store(path.parent / "runs")
    rows = {name: runs[name].rows["letters/test"] for name in ("base", "mine")}
    for i, item in enumerate(store.list_differing_items(at, rows["base"], rows["mine"])):
        sides = {"run_a": runs["base"].run_id, "run_b": runs["mine"].run_id, "left": "a"}
        rated = {"task": "letters", "example_id": item, "rows_a": rows["base"], "rows_b": rows["mine"]}
        rating = replace(RATING, rating_id=f"r{i}", choice=choice_of(i), **rated, **sides)
        store.save_ratings(at, [rating])


@pytest.mark.e2e
def test_people_correct_the_judge_on_stored_pairs_or_decide_alone_and_the_gate_says_the_same(desk):
    path, judge = desk
    by_people = "gate.target.by=people"
    _, rule = rule_of(tiny_experiment.run(path, by_people))
    assert "there are no ratings of these answers against those of base" in rule.sentence
    assert not judge.asked
    wins, rule = rule_of(tiny_experiment.run(path))
    n = len(wins_items(path))
    assert n == 12
    assert len([body for _, body in judge.asked]) >= 2 * n  # and the anchors again
    assert (wins.over, wins.by, wins.n_ratings, wins.missing) == ("base", "judge:better", 0, n)
    assert rule.outcome == "inconclusive"
    assert f"{n} more ratings" in rule.sentence
    n_requests = len(judge.asked)
    allowed, rule = rule_of(tiny_experiment.run(path, "gate.uncalibrated_judge=allow"))
    assert len(judge.asked) == n_requests
    assert allowed.missing == 0
    assert "(not corrected)" in rule.sentence

    rate(path, lambda i: "a")  # people prefer the base's answers, and the judge the longer ones
    wins, rule = rule_of(tiny_experiment.run(path))
    n = len(wins_items(path))
    assert wins.n_ratings == n
    assert wins.missing == 0
    assert wins.uncorrected == 1.0
    assert wins.rate.score == pytest.approx(0.0)
    (stored,) = release.gate(path, "mine")
    assert next(r for r in stored.verdict.rules if r.name == "target").sentence == rule.sentence
    wins, rule = rule_of(tiny_experiment.run(path, by_people))
    assert wins.rate.score < 0.5
    assert "by people" in rule.sentence


def wins_items(path):
    runs, at = tiny_experiment.runs_of(path), store.Store(path.parent / "runs")
    return store.list_differing_items(at, *(runs[name].rows["letters/test"] for name in ("base", "mine")))


@pytest.mark.e2e
def test_a_judge_that_fails_costs_the_win_rate_alone_and_a_rescues_trial_is_judged_beside_its_reference(desk):
    path, judge = desk
    tiny_experiment.run(path, "gate={}")
    assert judge.asked == []
    judge.faults.extend([Fault()] * 100)
    report = tiny_experiment.run(path)
    assert any("not all pairs could be judged" in note for note in report.notes)
    wins, rule = rule_of(report)
    assert (wins.rate, rule.outcome) == (None, "inconclusive")
    judge.faults.clear()
    session = tiny_experiment.session(path)
    runs = tiny_experiment.runs_of(path)
    reader = Reader(session.store, session.tasks)
    assert judge_pairs(session, reader, [runs["mine"]], runs["base"]) == []
    trial_wins = wins_of(study_of_session(session, reader), runs["mine"], runs["base"])
    assert len(judge.asked) >= 2 * len(wins_items(path))
    wins, _ = rule_of(tiny_experiment.run(path))
    assert trial_wins == wins


@pytest.mark.parametrize(("n_failed", "ends"), [(1, (0.6, 0.8)), (2, (0.0, 1.0))])
def test_a_base_that_failed_on_more_than_max_errors_leaves_the_win_rate_open(n_failed, ends):
    status = ["error"] * n_failed + ["ok"] * (100 - n_failed)
    base = [replace(row, status=s) for row, s in zip(fake_rows.rows([1.0] * 100), status, strict=True)]
    wins = wins_by_people("base", PAIRS, {ITEMS[0]: 1.0})._replace(rate=Estimate(0.7, 0.6, 0.8, 100))
    assert open_where_failed(wins, base, 0.01).rate[1:3] == ends


def test_what_cannot_compare_answers_is_refused_with_its_place(desk):
    path, _ = desk
    (path.parent / "alone.yaml").write_text("criteria: It helps.\njudge: smollm2-135m\n")
    for by, expected in (
        ("judge:./alone.yaml", "judge:alone, whose mode is grade"),
        ("judge:./absent.yaml", "absent.yaml"),
        ("nobody", "write by: people or by: judge:./FILE.yaml"),
    ):
        with pytest.raises(UserError, match=expected):
            config.load(path, [f"gate.target.by={by}"])
    (path.parent / "far.yaml").write_text(
        "criteria: It helps.\nmode: pairwise\njudge: {base_url: https://host.example/v1, model: m}\n"
    )
    with pytest.raises(UserError, match="an external server"):
        config.load(path, ["gate.target.by=judge:./far.yaml", "decide.needs=[sensitive_data]"])


PEOPLE_RATED = Wins("knn", "people", Estimate(0.7, 0.62, 0.78, 200), 200)
JUDGED = Wins("knn", "judge:better", Estimate(0.9, 0.86, 0.94, 200), 20, 0.9, 80, corrected=False)


def make_decision(*facts, metric="token_f1", win_rate=0.6, **policy):
    all_facts, by = [*alternatives(), *facts], DecidePolicy(**policy)
    return fake_facts.make_decision(all_facts, by, metric=metric, win_rate=win_rate)


def test_a_fine_tune_that_people_prefer_is_shipped_though_the_targets_metric_contradicts():
    decision = make_decision(make_fine_tune("lora", 0.40, -0.34, wins=PEOPLE_RATED))
    assert decision.sentence == (
        "Ship lora: 40.0 [35, 45] token_f1, +20.0 [+12, +28] points of win rate beyond 50 % over knn (the best"
        " untrained), and the gate passes."
    )
    assert find_reason(decision, "The goal is a win rate of 60.0 %").endswith(
        "lora is preferred to knn on 70.0 [62, 78] % of items, by people on 200 pairs."
    )
    assert find_reason(decision, "contradicts") == (
        "By token_f1 it is −34.0 [−39, −29] points over the same candidate, which contradicts the win rate and"
        " decides nothing: the win rate does."
    )
    assert decision.arithmetic["gain_over_untrained"] == pytest.approx(0.2)
    assert decision.unit is not None
    assert "is worse" not in " ".join(decision.reasons)


def test_a_fine_tune_that_is_not_preferred_is_not_shipped_for_its_metric():
    even = PEOPLE_RATED._replace(rate=Estimate(0.5, 0.42, 0.58, 200))
    decision = make_decision(make_fine_tune("lora", 0.9, 0.16, wins=even))
    assert decision.candidate == "knn"
    assert "is not shown to help (0.0 [−8, +8] points of win rate" in decision.sentence
    assert "which decides nothing: the win rate does" in find_reason(decision, "By token_f1")


@pytest.mark.parametrize(
    ("wins", "why"),
    [
        (JUDGED, "judge:better compared the answers of lora against those of knn, and needs 80 more ratings"),
        (PEOPLE_RATED._replace(rate=None), "there are no ratings of the answers of lora against those of knn"),
        (None, "there is no comparison of the answers of lora"),
        (PEOPLE_RATED._replace(n_ratings=1, unrated=59), "people have rated 1 pair of the answers of lora"),
        (JUDGED._replace(missing=0, is_open=True), "too many items tell nothing"),
    ],
)  # fmt: skip
def test_a_win_rate_that_may_not_decide_leaves_the_decision_open(wins, why):
    open_gate = verdict("inconclusive")
    decision = make_decision(make_fine_tune("lora", 0.40, -0.34, wins=wins, verdict=open_gate))
    assert (decision.action, decision.candidate) == ("undecided", None)
    assert f"Undecided: the goal is a win rate, and {why}" in decision.sentence


def test_the_win_rate_of_a_recipe_is_the_mean_over_its_seeds():
    rates = (0.6, 0.7, 0.8)
    seeds = [
        make_fine_tune(
            "lora", 0.9, 0.1, seed=i, run_id=f"lora-{i}",
            wins=PEOPLE_RATED._replace(rate=Estimate(r, r, r, 99)),
        )
        for i, r in enumerate(rates)
    ]  # fmt: skip
    final = make_decision(*seeds)
    assert final.arithmetic["gain_over_untrained"] == pytest.approx(0.2)
    assert find_reason(final, "The goal is").endswith(
        ": lora over 3 seeds is preferred to knn on 70.0 [45, 95] % of items, its checkpoint judged (seed 0) on"
        " 60.0 [60.0, 60.0] % of items, by people on 200 pairs."
    )
    # t with 2 degrees of freedom: 4.303 × 0.1 / √3 around 0.2
    assert final.arithmetic["gain_over_untrained_low"] == pytest.approx(0.2 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)


def write_decision(wins, **changes):
    lora = make_fine_tune("lora", 0.40, -0.34, wins=wins)
    facts, decision = [*alternatives(), lora], make_decision(lora)
    goal = TargetPolicy(win_rate=0.6, by="judge:./better.yaml")
    return ExperimentReport(
        "desk", "base", "token_f1", tuple(facts), decision=decision, declared=goal, policy=DecidePolicy()
    )


def test_what_a_report_says_of_a_judges_win_rate_and_of_what_it_prefers():
    report = write_decision(PEOPLE_RATED)
    assert "Win rates" in markdown(experiment_document(report))
    for text in (markdown(experiment_document(report)), report._repr_html_()):
        assert "70.0 [62, 78]" in text
        assert "preferred to knn on" in " ".join(text.split())
    table = next(s for s in experiment_document(report).sections if s.kind == "wins")
    assert table.rows == [["lora", "knn", "people", "70.0 [62, 78]", "–", "200", "60.0"]]
    open_ = next(s for s in experiment_document(write_decision(JUDGED)).sections if s.kind == "wins")
    assert open_.rows[0][3] == "90.0 [86, 94] (80 more ratings needed)"
    assert "a judge that too few ratings of people check yet" in markdown(
        experiment_document(write_decision(JUDGED))
    )


def pairs(n, won, first, lengths, vote=lambda i: None):
    return {f"item-{i}": JudgedPair(won(i), first(i), lengths(i), f"item-{i}", vote(i)) for i in range(n)}


def test_a_judge_of_pairs_that_prefers_the_place_or_the_length_is_unmasked():
    by_place = bias_of(pairs(60, lambda i: 0.5, lambda i: 1.0, lambda i: (50, 50)))
    assert by_place.first.score == 1.0
    assert by_place.first.low > 0.9
    assert by_place.longer is None  # no lengths differ
    long_new = bias_of(
        pairs(
            80, lambda i: float(i % 2), lambda i: 0.5, lambda i: (50, 90 if i % 2 else 20),
            lambda i: i % 4 > 1,
        )
    )  # fmt: skip
    assert long_new.longer.score == 1.0
    # People prefer the new answer on half of the items regardless of length; the judge prefers the longer.
    assert long_new.longer_beside_people.favour.score == pytest.approx(0.5)
    assert long_new.longer_beside_people.favour.low > 0.3
    assert long_new.longer_beside_people.is_length
    assert long_new.favour.score == pytest.approx(0.0)
    assert long_new.favour.low < 0 < long_new.favour.high
