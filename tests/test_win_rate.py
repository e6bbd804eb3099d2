"""A win rate as the gate's goal: by people, by a judge whom people correct, and by nobody."""

import re
from dataclasses import replace

import fake_rows
import numpy as np
import pytest
import tiny_experiment
from openai_server import Fault, Rule, serve_model

from harness import config, release, store
from harness.comparison import Estimate
from harness.comparison.human_preferences import AnswerPairs, wins_by_judge, wins_by_people
from harness.errors import UserError
from harness.experiment import Scope, prepare_session
from harness.experiment.analysis.study import study_session
from harness.experiment.analysis.target_facts import judge_pairs, open_where_failed, wins_of
from harness.experiment.runs.stored_rows import Reader
from harness.gating import TargetFacts
from harness.gating.significance import target_p
from harness.gating.target_rules import target_rule
from harness.progress import SilentProgress
from harness.records import Rating
from harness.spec import GatePolicy, TargetPolicy
from harness.stats import wilson, win_rate

pytestmark = pytest.mark.usefixtures("own_cache")

ITEMS = [f"item-{i:03}" for i in range(200)]
PAIRS = AnswerPairs({item: item for item in ITEMS}, {})
GOAL = GatePolicy(target=TargetPolicy(win_rate=0.55, by="judge:./better.yaml"))


def judge_wins(wins):
    return target_rule(TargetFacts(Estimate(0.5, 0.4, 0.6, 200), None, wins=wins), GOAL)


def test_people_alone_give_wilsons_interval_and_equal_answers_are_ties():
    votes = {item: float(i % 4 > 0) for i, item in enumerate(ITEMS[:80])}
    found = wins_by_people("prompt", PAIRS, votes)
    own = win_rate(60, 20)
    assert found.rate[:4] == pytest.approx((own.rate, own.low, own.high, 200), abs=5e-4)
    assert found.rate.low < own.low  # some of other items may be equal
    half_equal = wins_by_people(
        "prompt", AnswerPairs(PAIRS.clusters, {f"same-{i}": f"same-{i}" for i in range(200)}), votes
    )
    assert half_equal.rate.score == pytest.approx(0.5 + (own.rate - 0.5) / 2)
    assert half_equal.rate.low < 0.5 + (own.low - 0.5) / 2  # which answers are equal is chance too
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
    most = wilson(0, 200 / alike).high
    assert by_people[:3] == pytest.approx((0.5, 0.5 - most / 2, 0.5 + most / 2))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("n", "n_clusters", "differ", "win"),
    [
        *((500, 500, 0.3, 0.95), (200, 200, 1.0, 0.55), (400, 40, 1.0, 0.55)),
        *((20, 20, 0.05, 0.95), (200, 200, 0.02, 0.95), (400, 40, 0.5, 0.9)),
    ],
)
def test_the_interval_of_a_win_rate_holds_the_truth_as_often_as_it_says(n, n_clusters, differ, win):
    rng = np.random.default_rng(3)
    truth = 0.5 + differ * (win - 0.5)
    held = {"people": 0, "judge": 0}
    for _ in range(200):
        pairs, votes = draw_pairs(rng, n, n_clusters, differ, win)
        for name, wins in (
            ("people", wins_by_people("prompt", pairs, votes)),
            ("judge", wins_by_judge("prompt", "judge:better", pairs, votes, votes)),
        ):
            held[name] += wins.rate.low <= truth <= wins.rate.high
    assert min(held.values()) >= 200 * 0.95 - 3 * (200 * 0.95 * 0.05) ** 0.5, held


def test_an_item_goes_to_the_side_that_most_of_its_raters_prefer():
    votes = dict.fromkeys(ITEMS, 2 / 3)
    assert wins_by_people("prompt", PAIRS, votes).rate.score == 1.0
    assert wins_by_judge("prompt", "judge:better", PAIRS, dict.fromkeys(ITEMS, 1.0), votes).rate.score == 1.0


def test_a_judge_that_always_prefers_the_new_answer_is_corrected_by_people():
    won = dict.fromkeys(ITEMS, 1.0)
    votes = {item: float(i % 2) for i, item in enumerate(ITEMS[:120])}
    found = wins_by_judge("prompt", "judge:better", PAIRS, won, votes)
    assert (found.uncorrected, found.corrected, found.missing) == (1.0, True, 0)
    assert found.rate.low < 0.5 < found.rate.high
    assert judge_wins(found).outcome != "pass"


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
    assert "graded no pairs yet" in judge_wins(unjudged).sentence


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


def test_fewer_ratings_of_people_than_the_decision_needs_pass_no_gate():
    few = wins_by_people("prompt", PAIRS, dict.fromkeys(ITEMS[:7], 1.0))
    assert few.rate.low > 0.55
    rule = judge_wins(few)
    assert rule.outcome == "inconclusive"
    assert "rests on 7 ratings of people; it takes 3 more ratings" in rule.sentence
    assert judge_wins(wins_by_people("prompt", PAIRS, dict.fromkeys(ITEMS[:10], 1.0))).outcome == "pass"


def test_a_judges_score_that_needs_labels_does_not_hold_up_a_win_rate_by_people():
    wins = wins_by_people("prompt", PAIRS, dict.fromkeys(ITEMS, 1.0))
    facts = TargetFacts(Estimate(0.5, 0.4, 0.6, 200), None, labels_missing=100, wins=wins)
    assert target_rule(facts, GatePolicy(target=TargetPolicy(win_rate=0.55))).outcome == "pass"
    both = GatePolicy(target=TargetPolicy(win_rate=0.55, min=0.2))
    assert target_rule(facts, both).outcome == "inconclusive"


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
        store.save_rating(
            at,
            Rating(
                rating_id=f"r{i}",
                rater="ann",
                created="2026-01-01T00:00:00+00:00",
                task="letters",
                split="test",
                example_id=item,
                run_a=runs["base"].run_id,
                run_b=runs["mine"].run_id,
                rows_a=rows["base"],
                rows_b=rows["mine"],
                left="a",
                choice=choice_of(i),
                seconds=1.0,
            ),
        )


@pytest.mark.e2e
def test_a_judge_compares_with_the_best_untrained_candidate_in_both_orders_and_once(desk):
    path, judge = desk
    wins, rule = rule_of(tiny_experiment.run(path))
    n = len(wins_items(path))
    assert n == 12
    assert len([body for _, body in judge.asked]) >= 2 * n  # and the anchors again
    assert (wins.over, wins.by, wins.n_ratings, wins.missing) == ("base", "judge:better", 0, n)
    assert rule.outcome == "inconclusive"
    assert f"{n} more ratings" in rule.sentence
    asked = len(judge.asked)
    allowed, rule = rule_of(tiny_experiment.run(path, "gate.uncalibrated_judge=allow"))
    assert len(judge.asked) == asked
    assert allowed.missing == 0
    assert "(not corrected)" in rule.sentence


def wins_items(path):
    runs, at = tiny_experiment.runs_of(path), store.Store(path.parent / "runs")
    return store.list_differing_items(at, *(runs[name].rows["letters/test"] for name in ("base", "mine")))


@pytest.mark.e2e
def test_people_correct_the_judge_and_the_stored_gate_says_the_same(desk):
    path, _ = desk
    tiny_experiment.run(path)
    rate(path, lambda i: "a")  # people prefer the base's answers, and the judge the longer ones
    wins, rule = rule_of(tiny_experiment.run(path))
    n = len(wins_items(path))
    assert wins.n_ratings == n
    assert wins.missing == 0
    assert wins.uncorrected == 1.0
    assert wins.rate.score == pytest.approx(0.0)
    (stored,) = release.gate_stored(path, "mine")
    assert next(r for r in stored.verdict.rules if r.name == "target").sentence == rule.sentence


@pytest.mark.e2e
def test_a_judge_that_fails_costs_the_win_rate_alone(desk):
    path, judge = desk
    judge.faults.extend([Fault()] * 100)
    report = tiny_experiment.run(path)
    assert any("not all pairs could be judged" in note for note in report.notes)
    wins, rule = rule_of(report)
    assert wins.rate is None
    assert rule.outcome == "inconclusive"
    judge.faults.clear()
    assert rule_of(tiny_experiment.run(path))[0].rate is not None


@pytest.mark.e2e
def test_preferences_that_cannot_be_read_are_counted_and_favour_neither_answer(desk):
    path, judge = desk
    judge.model = Rule(
        lambda messages: "cannot say" if "receipt" in str(messages) else prefer_longer(messages)
    )
    within, beyond = (
        tiny_experiment.run(path, "gate.uncalibrated_judge=allow", f"gate.max_errors={most}")
        for most in (0.3, 0.2)
    )
    wins, _ = rule_of(within)
    assert wins.rate.low > 0
    assert wins.rate.score == pytest.approx((9 + 3 * 0.5) / 12)  # three of twelve items ask about a receipt
    (note,) = (note for note in within.notes if note.startswith("judge:better:"))
    assert "24 comparisons made by tiny" in note
    assert "6 of these preferences could not be read and make their items half a win" in note
    assert "the answer shown first won 50.0 % of comparisons" in note
    wins, rule = rule_of(beyond)
    assert (wins.rate.low, wins.rate.high) == (0, 1)
    assert rule.outcome == "inconclusive"
    assert any("beyond 20.0 % of items (gate.max_errors)" in note for note in beyond.notes)


@pytest.mark.e2e
def test_the_trial_of_a_rescue_is_judged_on_the_spot_beside_its_reference(desk):
    path, judge = desk
    tiny_experiment.run(path, "gate={}")
    assert judge.asked == []
    session = prepare_session(config.load(path), Scope(), SilentProgress())
    runs = tiny_experiment.runs_of(path)
    reader = Reader(session)
    assert judge_pairs(session, reader, [runs["mine"]], runs["base"]) == []
    found = wins_of(study_session(session, reader), runs["mine"], runs["base"])
    assert len(judge.asked) >= 2 * len(wins_items(path))
    wins, _ = rule_of(tiny_experiment.run(path))
    assert found == wins


@pytest.mark.parametrize(("n_failed", "ends"), [(1, (0.6, 0.8)), (2, (0.0, 1.0))])
def test_a_base_that_failed_on_more_than_max_errors_leaves_the_win_rate_open(n_failed, ends):
    status = ["error"] * n_failed + ["ok"] * (100 - n_failed)
    base = [replace(row, status=of) for row, of in zip(fake_rows.rows([1.0] * 100), status, strict=True)]
    wins = wins_by_people("base", PAIRS, {ITEMS[0]: 1.0})._replace(rate=Estimate(0.7, 0.6, 0.8, 100))
    assert open_where_failed(wins, base, 0.01).rate[1:3] == ends


@pytest.mark.e2e
def test_people_alone_decide_where_no_judge_is_named(desk):
    path, judge = desk
    by_people = "gate.target.by=people"
    _, rule = rule_of(tiny_experiment.run(path, by_people))
    assert "there are no ratings of the answers against those of base" in rule.sentence
    assert not judge.asked
    rate(path, lambda i: "b")
    wins, rule = rule_of(tiny_experiment.run(path, by_people))
    assert wins.rate.score > 0.5
    assert "by people" in rule.sentence


def test_what_cannot_compare_answers_is_refused_with_its_place(desk):
    path, _ = desk
    (path.parent / "alone.yaml").write_text("criteria: It helps.\njudge: smollm2-135m\n")
    for by, said in (
        ("judge:./alone.yaml", "judge:alone, whose mode is grade"),
        ("judge:./absent.yaml", "absent.yaml"),
        ("nobody", "write by: people or by: judge:./FILE.yaml"),
    ):
        with pytest.raises(UserError, match=said):
            config.load(path, [f"gate.target.by={by}"])
    (path.parent / "far.yaml").write_text(
        "criteria: It helps.\nmode: pairwise\njudge: {base_url: https://host.example/v1, model: m}\n"
    )
    with pytest.raises(UserError, match="an external server"):
        config.load(path, ["gate.target.by=judge:./far.yaml", "decide.needs=[sensitive_data]"])
