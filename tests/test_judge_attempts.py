"""Grades that cannot be read are asked for again, as often as the rubric says; grades from before anchors are named."""

import pytest
import tiny_experiment
from test_judge_drift import LATER, reply
from test_judges import JUDGE, RUBRIC, Grader, N, desk, number  # noqa: F401 (the fixture)

from harness import config, release
from harness.errors import IncompatibleRuns
from harness.experiment import Scope, prepare_session
from harness.progress import SilentProgress
from harness.release.stored import refuse_regraded

pytestmark = pytest.mark.usefixtures("own_cache")

PRICES = "usd_per_million_tokens: {input: 90000, output: 100000}\n"  # a USD for each request


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
def test_attempts_that_are_added_later_ask_about_unreadable_grades_alone(desk):  # noqa: F811
    d = desk(judge=Mumbler(silent=1))
    found = d.compare()
    thirds = sum(i % 3 == 0 for i in range(N)) + 1  # of test, and of two validation items
    assert sorted(list_unread(d)) == [i for i in range(N) if i % 3 == 0]
    assert any("attempts: 2 in the rubric asks about them again" in note for note in found.notes)
    n_asked, n_answered = len(d.judge.asked), len(d.candidates.asked)
    d.rubric(RUBRIC + "attempts: 2\n" + JUDGE.format(url=d.judge.url, timeout=5))
    d.compare()
    assert len(d.judge.asked) - n_asked == 2 * thirds
    assert len(d.candidates.asked) == n_answered
    assert list_unread(d) == []
    n_asked = len(d.judge.asked)
    d.compare()
    assert len(d.judge.asked) == n_asked
    (book,) = d.grades()
    assert sum(grade.value is None for grade in book.values()) == 2 * thirds, "what it said first is kept"


@pytest.mark.e2e
def test_an_answer_is_asked_about_until_its_grade_can_be_read_and_no_more(desk):  # noqa: F811
    d = desk(judge=Mumbler(silent=2), rubric=RUBRIC + "attempts: 4\n")
    d.compare()
    assert set(d.judge.model.times.values()) == {1, 3}
    assert list_unread(d) == []


@pytest.mark.e2e
def test_a_grade_that_no_attempt_makes_readable_fails_as_before(desk):  # noqa: F811
    d = desk(judge=Mumbler(silent=9), rubric=RUBRIC + "attempts: 2\n")
    d.compare()
    assert set(d.judge.model.times.values()) == {1, 2}
    assert len(list_unread(d)) == N // 3
    n_asked = len(d.judge.asked)
    d.compare()
    assert len(d.judge.asked) == n_asked


@pytest.mark.e2e
def test_a_judge_that_ended_midway_is_asked_no_more_often_than_the_rubric_says(desk):  # noqa: F811
    d = desk(judge=Mumbler(silent=9), rubric=RUBRIC + "attempts: 3\nmax_cost: 40\n" + PRICES)
    assert {f.state for f in d.compare().facts} == {"failed"}
    d.rubric(RUBRIC + "attempts: 3\n" + PRICES + JUDGE.format(url=d.judge.url, timeout=5))
    assert {f.state for f in d.compare().facts} == {"done"}
    assert max(d.judge.model.times.values()) == 3


@pytest.mark.e2e
def test_a_run_whose_unreadable_grades_are_to_be_asked_again_is_refused_by_the_gate_until_they_are(desk):  # noqa: F811
    d = desk(judge=Mumbler(silent=1))
    d.compare()
    d.rubric(RUBRIC + "attempts: 2\n" + JUDGE.format(url=d.judge.url, timeout=5))
    loaded = config.load(d.path)
    stored = release.load_study(loaded)
    run = tiny_experiment.runs_of(d.path)["plain"]
    with pytest.raises(IncompatibleRuns, match="next: harness compare"):
        refuse_regraded(stored, run)
    d.compare()
    refuse_regraded(stored, tiny_experiment.runs_of(d.path)["plain"])
    session = prepare_session(loaded, Scope(), SilentProgress())
    assert release.rescore_run(session, tiny_experiment.runs_of(d.path)["plain"]).scores["replies"]


@pytest.mark.e2e
def test_grades_from_before_there_were_anchors_are_said_to_be_unchecked(desk):  # noqa: F811
    d = desk(reply, judge=Grader(lambda q, a: "3"))
    assert not any("unchecked" in note for note in d.compare().notes)
    d.rubric("criteria: The reply helps.\n" + JUDGE.format(url=d.judge.url, timeout=5))
    found = d.compare(LATER)
    said = next(note for note in found.notes if "unchecked" in note)
    assert f"; {2 * (N + 2)} of its grades are older than its anchors, and unchecked" in said


@pytest.mark.e2e
def test_a_book_that_began_with_its_anchors_says_nothing_of_that(desk):  # noqa: F811
    d = desk(reply, judge=Grader(lambda q, a: "3"), rubric="criteria: The reply helps.\n")
    d.compare()
    assert not any("unchecked" in note for note in d.compare(LATER).notes)
