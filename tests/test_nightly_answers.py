"""Nights count every answer to an item: all that were drawn, and all that are accepted as right."""

import pytest
import tiny_experiment
from openai_server import Rule, ServerAnswer
from test_judge_drift import grade_by_length, line_of, make_date
from test_judges import Grader, desk, reply  # noqa: F401 (desk is the fixture)

from harness.lifecycle.nightly import run_night
from harness.records import digest

pytestmark = pytest.mark.usefixtures("own_cache")

RUBRIC = "criteria: The reply helps.\nanchors: 0\n"


class TemperatureModel:
    """Answers at a temperature: briefly or at length, as the seed of the request says."""

    def chat(self, messages, body):
        full = f"{reply(messages)}, in so many words"
        return ServerAnswer(full if digest([messages, body.get("seed")]) < "8" else "yes")


@pytest.mark.e2e
def test_a_night_holds_all_answers_that_were_drawn_to_those_of_the_reference(desk):  # noqa: F811
    drawn = "  drawn: {weights_of: plain, decoding: {temperature: 1.0, samples: 4}}\n"
    watching = "nightly: {candidates: [drawn], items: 20, anchors: 5}\n"
    d = desk(judge=Grader(grade_by_length), rubric=RUBRIC, extra=drawn + watching)
    d.candidates.model = TemperatureModel()
    d.compare()
    assert {0.25, 0.5, 0.75} & {row.parts["judge:helpful"][0] for row in d.rows("drawn")}
    quiet = line_of(run_night(d.path, night=make_date(1)), "drawn")
    assert (quiet.verdict, quiet.lost) == ("ok", ())
    assert "(0 better, 0 worse" in quiet.sentence


@pytest.mark.e2e
def test_a_night_takes_any_of_several_right_answers_for_right(desk):  # noqa: F811
    d = desk(extra="nightly: {candidates: [plain], items: 20, anchors: 5}\n")
    d.path.write_text(d.path.read_text().replace("judge:./helpful.yaml, token_f1", "exact_match"))
    rows = [
        {"id": f"test-{i}", "prompt": f"test question {i}", "references": ["never said", f"{i}", f"No. {i}"]}
        for i in range(30)
    ]
    tiny_experiment.rows(d.folder / "test.jsonl", rows)
    d.candidates.model = Rule(lambda messages: messages[-1]["content"].rsplit(" ", 1)[-1])
    assert d.compare().facts[0].target.score == 1.0
    d.candidates.model = Rule(lambda messages: f"No. {messages[-1]['content'].rsplit(' ', 1)[-1]}")
    assert "(0 better, 0 worse" in line_of(run_night(d.path, night=make_date(1)), "plain").sentence
    d.candidates.model = Rule(lambda messages: "neither")
    worse = line_of(run_night(d.path, night=make_date(2)), "plain")
    assert worse.verdict in ("suspect", "regression")
    assert worse.lost
