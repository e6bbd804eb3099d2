"""What a judge may not do: decide by other grades than the files name, unseen costs, or what leaves the machine."""

from dataclasses import replace

import pytest
from test_gating import compare_task, verdict
from test_judges import JUDGE, RUBRIC, Grader, desk  # noqa: F401 (the fixture)

from harness import config, release
from harness.errors import IncompatibleRuns, UserError
from harness.spec import GatePolicy

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.e2e
def test_the_gate_refuses_grades_by_another_rubric_or_judge_than_the_files_name(desk):  # noqa: F811
    d = desk(extra="gate: {uncalibrated_judge: allow, target: {min: 0.4}}\n")
    d.compare()
    release.gate_stored(d.path, "plain")
    judge = JUDGE.format(url=d.judge.url, timeout=5)
    for other in (RUBRIC + judge.replace("tiny", "large"), f"criteria: The reply is short.\n{judge}"):
        d.rubric(other)
        with pytest.raises(IncompatibleRuns, match=r"by another judge or rubric.*next: harness compare"):
            release.gate_stored(d.path, "plain")
    d.compare()
    release.gate_stored(d.path, "plain")


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


class NoUsageGrader(Grader):
    """A judge on a server that sends no usage."""

    def chat(self, messages, body):
        return super().chat(messages, body)._replace(n_prompt=None)


@pytest.mark.e2e
def test_a_server_that_counts_no_tokens_has_no_known_cost_and_no_limit_of_it(desk):  # noqa: F811
    prices = RUBRIC + "usd_per_million_tokens: {input: 90000, output: 100000}\n"
    d = desk(judge=NoUsageGrader(), rubric=prices + "max_cost: 50\n")
    said = d.compare().facts[0].error
    assert "grades without usage, so what they cost is unknown, and max_cost is 50" in said
    assert len(d.judge.asked) == 1
    d.rubric(prices + JUDGE.format(url=d.judge.url, timeout=5))
    (remark,) = (note for note in d.compare().notes if "graded by" in note)
    assert "at an unknown cost, the server sends no usage" in remark


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
