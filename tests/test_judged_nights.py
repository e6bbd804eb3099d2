"""Nights of a task that a judge decides: new answers are graded, by a judge that grades as it did."""

import re
from dataclasses import replace
from datetime import date

import pytest
from openai_server import Fault, Rule
from test_judge_drift import milder, reply
from test_judges import Grader, desk  # noqa: F401 (the fixture)

from harness import config, store
from harness.comparison.labelled_answers import answer_digest
from harness.config.rubrics import digest_question
from harness.nightly import run_night
from harness.records import AnswerLabel, LabelSet

pytestmark = pytest.mark.usefixtures("own_cache")

RUBRIC = "criteria: The reply helps.\n"
NIGHTLY = "nightly: {candidates: [plain], items: 10, anchors: 5}\n"


def grade_by_length(question, answer):
    return "5" if len(answer) > 12 else "1"


def make_date(day):
    return date(2026, 3, day)


def reply_shorter(messages):
    return reply(messages)[:5]


@pytest.fixture
def judged_desk(desk):  # noqa: F811
    """Compare once by a judge that decides, so that nights have a reference."""
    d = desk(reply, judge=Grader(grade_by_length), rubric=RUBRIC, extra=NIGHTLY)
    d.compare()
    return d


def line_of(report, name):
    return next(one for one in report.lines if one.name == name)


def test_answers_as_in_the_reference_are_graded_by_the_grades_there_are(judged_desk):
    n_asked = len(judged_desk.judge.asked)
    quiet = run_night(judged_desk.path, night=make_date(1))
    assert quiet.verdict == "ok"
    assert len(judged_desk.judge.asked) - n_asked == 20, "the anchors alone"


def test_new_answers_are_graded_once_and_what_got_worse_is_named(judged_desk):
    n_asked = len(judged_desk.judge.asked)
    judged_desk.candidates.model = Rule(reply_shorter)
    line = line_of(run_night(judged_desk.path, night=make_date(1)), "plain")
    assert line.verdict in ("suspect", "regression")
    assert line.lost
    assert {answer for _, answer in judged_desk.judge.model.seen[-10:]} == {"test "}
    n_new = len(judged_desk.judge.asked) - n_asked - 20
    assert 10 <= n_new <= 15
    run_night(judged_desk.path, night=make_date(1))
    assert len(judged_desk.judge.asked) - n_asked - 20 == n_new, "the same night asks nothing again"


def label(watched, rows, value):
    """Store a label of every answer, as `harness rate import` does."""
    task = config.load(watched.path).experiment.target
    metric = task.primary_metric
    labels = tuple(AnswerLabel(answer_digest(metric, row), row.example_id, value(row)) for row in rows)
    given = LabelSet(
        "", "2026-03-01", task.name, "test", metric, "ann", labels, digest_question(task, metric)
    )
    store.save_labels(watched.store, replace(given, id=f"labels-{len(labels)}-{labels[0].answer}"))


def make_new_answers(watched):
    """Return the rows that a night answered, with the prompts of the reference."""
    stored = {row.example_id: row for row in watched.rows()}
    return [replace(row, text="test ") for row in stored.values()]


def test_without_labels_a_night_says_that_nothing_corrects_what_the_judge_graded(judged_desk):
    judged_desk.candidates.model = Rule(reply_shorter)
    said = line_of(run_night(judged_desk.path, night=make_date(1)), "plain").sentence
    assert "judge:helpful grades it, uncorrected: 30 answers of the reference lack people's labels" in said


def test_labels_of_the_reference_alone_are_shown_and_correct_no_new_answer(judged_desk):
    label(judged_desk, judged_desk.rows(), lambda row: float(row.position % 2))
    judged_desk.candidates.model = Rule(reply_shorter)
    said = line_of(run_night(judged_desk.path, night=make_date(1)), "plain").sentence
    assert "15 of the 15 answers that differ from the reference have no label from people" in said
    assert "correct its score of the reference from 100.0 to 50.0 [" in said
    assert line_of(run_night(judged_desk.path, night=make_date(1)), "plain").sentence == said, (
        "as it was stored"
    )


def test_labels_of_tonights_answers_correct_the_change_as_compare_does(judged_desk):
    label(judged_desk, judged_desk.rows(), lambda row: 0.0)
    label(judged_desk, make_new_answers(judged_desk), lambda row: float(row.position % 4 > 0))
    judged_desk.candidates.model = Rule(reply_shorter)
    said = line_of(run_night(judged_desk.path, night=make_date(1)), "plain").sentence
    assert re.search(r"labels correct tonight's −100.0 pp of judge:helpful to \+[678]\d\.\d \[", said), said


def test_a_night_in_which_no_answer_changed_says_nothing_of_labels(judged_desk):
    assert "label" not in line_of(run_night(judged_desk.path, night=make_date(1)), "plain").sentence


def test_a_judge_that_changed_grades_nothing_that_night_and_is_named(judged_desk):
    judged_desk.candidates.model, judged_desk.judge.model = Rule(reply_shorter), Grader(milder)
    n_asked = len(judged_desk.judge.asked)
    found = run_night(judged_desk.path, night=make_date(1))
    assert len(judged_desk.judge.asked) - n_asked == 20, "the anchors, once"
    assert any(line.name.startswith("judge:helpful by") for line in found.lines)
    assert line_of(found, "plain").verdict not in ("ok", "regression")
    assert "got another grade" in line_of(found, "plain").sentence
    assert found.exit_code != 0
    assert {answer for _, answer in judged_desk.judge.model.seen}.isdisjoint({"test "})


def test_a_judge_that_dies_at_night_fails_what_it_would_grade_and_the_next_night_goes_on(judged_desk):
    judged_desk.candidates.model = Rule(reply_shorter)
    judged_desk.judge.faults = [Fault(500)] * 200
    found = run_night(judged_desk.path, night=make_date(1))
    assert "judge:helpful" in line_of(found, "plain").sentence
    judged_desk.judge.faults = []
    assert line_of(run_night(judged_desk.path, night=make_date(2)), "plain").verdict in (
        "suspect",
        "regression",
    )
