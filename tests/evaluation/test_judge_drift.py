"""Anchors detect a changed judge before it grades more, in comparisons and nightly runs."""

import re
from dataclasses import replace
from datetime import date
from math import comb

import pytest
from nights import line_of
from openai_server import Rule
from test_judges import JUDGE, Grader, N, desk, number  # noqa: F401 (the fixture)
from tiny_experiment import fact_of

from harness import config, store
from harness.analysis.people_labels import answer_digest
from harness.config.rubrics import digest_question
from harness.evaluation.judge_calls import ALPHA, is_drift, n_repeats
from harness.formatting import usd
from harness.lifecycle.nightly import run_night
from harness.records import AnchorCheck, AnswerLabel, Grade, LabelSet

pytestmark = pytest.mark.usefixtures("own_cache")


RUBRIC = "criteria: The reply helps.\n"
LATER = "candidates.later={weights_of: plain, system: Be brief.}"


def grade_strictly(question, answer):
    return str(1 + number(question) % 3)


def milder(question, answer):
    return str(2 + int(grade_strictly(question, answer)))


def reply(messages):
    """Include the system message in the answer, so that each candidate has its own answers."""
    return " ".join(message["content"] for message in messages)


@pytest.mark.e2e
def test_anchors_are_asked_and_paid_when_a_book_begins_and_before_each_candidate_with_new_answers(desk):  # noqa: F811
    prices = "usd_per_million_tokens: {input: 90000, output: 100000}\n"
    d = desk(reply, Grader(grade_strictly), rubric=RUBRIC + prices)
    notes = d.compare().notes
    assert len(d.judge.asked) == 2 * (N + 2) + 2 * 20
    grades = [g for book in d.grades() for g in book.values()]
    (book,) = (d.folder / "runs" / "grades").iterdir()
    rechecked = [g for check in store.read_rechecks(d.store, book.name, AnchorCheck) for g in check.grades]
    assert len(rechecked) == 2 * 20
    cost = sum(0.09 * g.n_prompt_tokens + 0.1 * g.n_output_tokens for g in (*grades, *rechecked))
    assert any(f"for {usd(cost)} USD" in note for note in notes), (cost, notes)
    d.compare()
    assert len(d.judge.asked) == 2 * (N + 2) + 2 * 20, "nothing new to grade, nothing to check"
    report = d.compare(LATER)
    assert fact_of(report, "later").state == "done"
    assert len(d.judge.asked) == 3 * (N + 2) + 3 * 20
    assert any("of 20 answers graded again 0 got another grade" in note for note in report.notes)
    assert not any("unchecked" in note for note in report.notes)


@pytest.mark.e2e
def test_a_judge_that_became_milder_grades_no_later_candidate_until_the_rubric_names_its_version(desk):  # noqa: F811
    d = desk(reply, Grader(grade_strictly), rubric=RUBRIC)
    target_before = fact_of(d.compare(), "plain").target
    d.judge.model = Grader(milder)
    n_graded = sum(map(len, d.grades()))
    report = d.compare(LATER)
    later_fact = fact_of(report, "later")
    assert later_fact.state == "failed"
    assert "of 20 answers that it had graded 20 got another grade (mean" in later_fact.error
    assert "another version: in the rubric" in later_fact.error
    assert sum(map(len, d.grades())) == n_graded, "nothing new was graded"
    assert fact_of(report, "plain").target == target_before
    d.rubric(RUBRIC + "version: milder\n" + JUDGE.format(url=d.judge.url, timeout=5))
    new_report = d.compare(LATER)
    assert {f.name: f.state for f in new_report.facts} == dict.fromkeys(("plain", "other", "later"), "done")
    assert fact_of(new_report, "plain").target.score == pytest.approx(target_before.score + 0.5)


def check(n, n_moved, drifted=False):
    grade = Grade("k", "t", "e", "o", "ok", 1.0, "5")
    return AnchorCheck((grade,) * n, n_moved, 0.5, 0.5, drifted)


def test_a_first_check_finds_no_drift_and_a_later_one_by_what_moved_before():
    assert not is_drift(20, 20, [])
    assert is_drift(7, 20, [check(20, 0)])
    assert not is_drift(6, 20, [check(20, 0)])
    assert not is_drift(7, 20, [check(20, 3)])
    assert is_drift(4, 20, [check(20, 0)] * 5), "more checks know the judge better"
    assert not is_drift(7, 20, [check(20, 20, drifted=True)]), "a check with drift is no measure of calm"
    assert n_repeats(check(20, 0), [], 20) == 1, "a book without a check: how often does it waver?"
    assert n_repeats(check(4, 0), [check(4, 0)], 20) == 0, "nothing moved"
    assert n_repeats(check(4, 4), [check(4, 0)], 20) == 1
    assert n_repeats(check(2, 1), [check(2, 0)], 20) == 6
    assert n_repeats(check(1, 1), [check(1, 0)], 20) == 0, "twenty are not enough"
    assert n_repeats(check(20, 9), [check(20, 3)], 20) == 0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5])
def test_an_unchanged_judge_is_suspected_no_more_often_than_stated(rate):
    """Compute the exact chance of an alarm over both checks from the binomial distribution."""
    p_of_count = [comb(20, k) * rate**k * (1 - rate) ** (20 - k) for k in range(21)]
    alarms = [(a, b) for a in range(21) for b in range(21) if is_drift(b, 20, [check(20, a)])]
    assert 0 < sum(p_of_count[a] * p_of_count[b] for a, b in alarms) <= ALPHA


NIGHTLY = "nightly: {candidates: [plain], items: 10, anchors: 5}\n"


def reply_shorter(messages):
    return reply(messages)[:5]


@pytest.fixture
def judged_desk(desk):  # noqa: F811
    """Compare once with a judge, so that nights have a reference."""
    by_length = Grader(lambda question, answer: "5" if len(answer) > 12 else "1")
    setup = desk(reply, judge=by_length, rubric=RUBRIC, extra=NIGHTLY)
    setup.compare()
    return setup


def run_on(setup, day=1):
    return run_night(setup.path, night=date(2026, 3, day))


def watch(setup, name="plain", day=1):
    """Run a night; returns its line about a candidate."""
    return line_of(run_on(setup, day), name)


def test_a_night_of_unchanged_answers_asks_no_judge_and_says_nothing_of_labels(judged_desk):
    n_asked = len(judged_desk.judge.asked)
    night = run_on(judged_desk)
    assert night.verdict == "ok"
    assert "label" not in line_of(night, "plain").sentence
    assert len(judged_desk.judge.asked) == n_asked


def test_new_answers_are_graded_once_uncorrected_and_what_got_worse_is_named(judged_desk):
    n_asked = len(judged_desk.judge.asked)
    judged_desk.candidates.model = Rule(reply_shorter)
    line = watch(judged_desk)
    assert line.verdict in ("suspect", "regression")
    assert line.lost
    assert "grades it, uncorrected: 15 of the 15 answers that differ from the reference" in line.sentence
    assert {answer for _, answer in judged_desk.judge.model.seen[-10:]} == {"test "}
    n_new = len(judged_desk.judge.asked) - n_asked - 20
    assert 10 <= n_new <= 15
    run_on(judged_desk)
    assert len(judged_desk.judge.asked) - n_asked - 20 == n_new, "the same night asks nothing again"


def label(setup, rows, value):
    """Store a label of every answer, as `harness rate import` does."""
    task = config.load(setup.path).experiment.target
    metric = task.primary_metric
    labels = tuple(AnswerLabel(answer_digest(metric, row), row.example_id, value(row)) for row in rows)
    label_set = LabelSet(
        "", "2026-03-01", task.name, "test", metric, "ann", labels, digest_question(task, metric)
    )
    store.save_labels(setup.store, replace(label_set, id=f"labels-{len(labels)}-{labels[0].answer}"))


def test_labels_of_the_reference_alone_are_shown_and_correct_no_new_answer(judged_desk):
    label(judged_desk, judged_desk.rows(), lambda row: float(row.position % 2))
    judged_desk.candidates.model = Rule(reply_shorter)
    sentence = watch(judged_desk).sentence
    assert "15 of the 15 answers that differ from the reference have no label from people" in sentence
    assert watch(judged_desk).sentence == sentence, "as it was stored"


def test_labels_of_tonights_answers_correct_the_change_as_compare_does(judged_desk):
    label(judged_desk, judged_desk.rows(), lambda row: 0.0)
    tonight_rows = [replace(row, text="test ") for row in judged_desk.rows()]
    label(judged_desk, tonight_rows, lambda row: float(row.position % 4 > 0))
    judged_desk.candidates.model = Rule(reply_shorter)
    text = watch(judged_desk).sentence
    assert re.search(r"labels correct tonight's −100.0 pp of judge:helpful to \+[678]\d\.\d \[", text), text


def test_a_judge_that_changed_grades_nothing_that_night_and_is_named(judged_desk):
    judged_desk.candidates.model, judged_desk.judge.model = Rule(reply_shorter), Grader(milder)
    n_asked = len(judged_desk.judge.asked)
    night = run_on(judged_desk)
    assert len(judged_desk.judge.asked) - n_asked == 20, "the anchors, once"
    assert line_of(night, "plain").verdict not in ("ok", "regression")
    assert "got another grade" in line_of(night, "plain").sentence
    assert night.exit_code != 0
    assert {answer for _, answer in judged_desk.judge.model.seen}.isdisjoint({"test "})
