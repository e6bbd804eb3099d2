"""Nights of a task that a judge decides: new answers are graded, by a judge that grades as it did."""

from datetime import date

import pytest
from openai_server import Fault, Rule
from test_judge_drift import milder, reply
from test_judges import Grader, desk  # noqa: F401 (the fixture)

from harness.nightly import run_night

pytestmark = pytest.mark.usefixtures("own_cache")

RUBRIC = "criteria: The reply helps.\n"
NIGHTLY = "nightly: {candidates: [plain], items: 10, anchors: 5}\n"


def by_length(question, answer):
    return "5" if len(answer) > 12 else "1"


def on(day):
    return date(2026, 3, day)


def shorter(messages):
    return reply(messages)[:5]


@pytest.fixture
def watched(desk):  # noqa: F811
    """Compare once by a judge that decides, so that nights have a reference."""
    d = desk(reply, judge=Grader(by_length), rubric=RUBRIC, extra=NIGHTLY)
    d.compare()
    return d


def line_of(report, name):
    return next(one for one in report.lines if one.name == name)


def test_answers_as_in_the_reference_are_graded_by_the_grades_there_are(watched):
    n_asked = len(watched.judge.asked)
    quiet = run_night(watched.path, night=on(1))
    assert quiet.verdict == "ok"
    assert len(watched.judge.asked) - n_asked == 20, "the anchors alone"


def test_new_answers_are_graded_once_and_what_got_worse_is_named(watched):
    n_asked = len(watched.judge.asked)
    watched.candidates.model = Rule(shorter)
    found = run_night(watched.path, night=on(1))
    line = line_of(found, "plain")
    assert line.verdict in ("suspect", "regression")
    assert line.lost
    assert {answer for _, answer in watched.judge.model.seen[-10:]} == {"test "}
    n_new = len(watched.judge.asked) - n_asked - 20
    assert 10 <= n_new <= 15
    run_night(watched.path, night=on(1))
    assert len(watched.judge.asked) - n_asked - 20 == n_new, "the same night asks nothing again"


def test_a_judge_that_changed_grades_nothing_that_night_and_is_named(watched):
    watched.candidates.model, watched.judge.model = Rule(shorter), Grader(milder)
    found = run_night(watched.path, night=on(1))
    assert line_of(found, "plain").verdict not in ("ok", "regression")
    assert "got another grade" in line_of(found, "plain").sentence
    assert found.exit_code != 0
    assert {answer for _, answer in watched.judge.model.seen}.isdisjoint({"test "})


def test_a_judge_that_dies_at_night_fails_what_it_would_grade_and_the_next_night_goes_on(watched):
    watched.candidates.model = Rule(shorter)
    watched.judge.faults = [Fault(500)] * 200
    found = run_night(watched.path, night=on(1))
    assert "judge:helpful" in line_of(found, "plain").sentence
    watched.judge.faults = []
    assert line_of(run_night(watched.path, night=on(2)), "plain").verdict in ("suspect", "regression")
