"""Grades of a judge behind an endpoint, weighted by the log-probabilities that its server gives."""

from math import log

import numpy as np
import pytest
from test_judge_drift import reply
from test_judges import JUDGE, RUBRIC, Grader, N, desk, number  # noqa: F401 (the fixture)

from harness.config.rubrics import Rubric, read_rubric
from harness.errors import UserError
from harness.evaluation.grading import likelihood_weights, mean_grade, token_weights

pytestmark = pytest.mark.usefixtures("own_cache")

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
    d.rubric(RUBRIC + JUDGE.format(url=d.judge.url, timeout=5))
    assert {f.state for f in d.compare().facts} == {"done"}


@pytest.mark.e2e
def test_a_mean_that_moves_within_its_grade_is_no_drift_and_one_beyond_is(desk):  # noqa: F811
    def tokens(p):
        return ({"4": log(p), "2": log(1 - p)},)

    weigher = Weigher(tokens(0.80))
    d = desk(reply, judge=weigher, rubric="criteria: The reply helps.\nlogprobs: true\n")
    d.compare()
    weigher.tokens = tokens(0.81)
    later = "candidates.later={weights_of: plain, system: Be brief.}"
    assert {f.state for f in d.compare(later).facts} == {"done"}
    weigher.tokens = tokens(0.2)
    last = "candidates.last={weights_of: plain, system: Be very brief.}"
    failed = {f.name: f for f in d.compare(last).facts}["last"]
    assert failed.state == "failed"
    assert "grades otherwise than before" in failed.error


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
    weights = likelihood_weights(np.log(shares) - 7)
    assert weights == pytest.approx(shares)
    assert 1 + 4 * mean_grade(rubric, weights, "") == pytest.approx(shares @ [1, 2, 3, 4, 5])
    pair = Rubric(criteria="x", judge="any", mode="pairwise")
    tokens = token_weights(pair, [("A", log(0.6)), ("t", log(0.3)), ("B", log(0.1)), ("!", -20.0)])
    assert tokens == pytest.approx([0.1, 0.3, 0.6])
    assert mean_grade(pair, tokens, "first") == pytest.approx(0.75)
    assert mean_grade(pair, tokens, "second") == pytest.approx(0.25)
    assert token_weights(rubric, [("six", 0.0)]) is None
