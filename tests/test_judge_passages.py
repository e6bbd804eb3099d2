"""A judge of groundedness is shown what was retrieved for an answer, where the rubric says so, and nothing else of it."""

import re

import pytest
import tiny_experiment
from openai_server import Rule, ServerAnswer, serve_model

from harness import config, store
from harness.config.rubrics import Rubric
from harness.evaluation.grade_costs import plan_grades
from harness.evaluation.judges import answer_key, judge_messages
from harness.experiment import Scope, compare, prepare_session
from harness.progress import SilentProgress
from harness.records import Example
from harness.store import Store

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


HARNESS = (
    tiny_experiment.DESK
    + """\
  name: replies
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: documents.jsonl}}
  metrics: [judge:./grounded.yaml]
candidates:
  closed: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
  rag: {{weights_of: closed, prompting: {{rag: {{top_k: 1, mark: number}}}}}}
"""
)
GROUNDED = """\
criteria: Every sentence rests on the passages; without passages, none does.
scale: yes/no
passages: true
anchors: 4
usd_per_million_tokens: {{input: 1, output: 1}}
judge: {{base_url: {url}, model: tiny, max_retries: 0}}
"""


class Reader:
    """A judge that says yes where the passages hold the answer."""

    def chat(self, messages, body):
        texts = dict(re.findall(r"<(\w+) \w+>\n(.*?)\n</\1 ", messages[-1]["content"], re.DOTALL))
        return ServerAnswer("yes" if texts["answer"] in texts.get("passages", "") else "no")


@pytest.mark.e2e
def test_an_answer_is_grounded_by_the_passages_of_the_candidate_that_gave_it(tmp_path, tiny, own_cache):
    """All answers are the same; of odd items the document holds another price."""
    prices = [{"id": f"d{i}", "text": f"Lamp model{i} costs {40 + i + i % 2} euros."} for i in range(8)]
    tiny_experiment.rows(tmp_path / "documents.jsonl", prices)
    for name, n in (("train", 2), ("validation", 2), ("test", 8)):
        rows = [
            {
                "id": f"{name}-{i}",
                "prompt": f"{name}: price of lamp model{i}?",
                "reference": f"{40 + i} euros",
            }
            for i in range(n)
        ]
        tiny_experiment.rows(tmp_path / f"{name}.jsonl", rows)

    def answer(messages):
        return f"{40 + int(messages[-1]['content'].rpartition('model')[2].removesuffix('?'))} euros"

    path = tmp_path / "harness.yaml"
    with serve_model(Rule(answer)) as answering, serve_model(Reader()) as judging:
        path.write_text(HARNESS.format(model=tiny, url=answering.url))
        (tmp_path / "grounded.yaml").write_text(GROUNDED.format(url=judging.url))
        session = prepare_session(config.load(path), Scope(dry_run=True), SilentProgress())
        (planned,) = plan_grades(session, ("closed", "rag"))
        compare(path)
    runs = tiny_experiment.runs_of(path)
    found = {
        name: [row.parts["judge:grounded"][0] for row in store.read_rows(at, run.rows["replies/test"])]
        for at in [Store(tmp_path / "runs")]
        for name, run in runs.items()
    }
    assert found["closed"] == [0.0] * 8
    assert sorted(found["rag"]) == [0.0] * 4 + [1.0] * 4
    (book,) = store.read_identities(Store(tmp_path / "runs"))
    anchors = store.read_anchors(Store(tmp_path / "runs"), book)
    assert len(anchors) == 4
    rows = store.read_rows(Store(tmp_path / "runs"), runs["rag"].rows["replies/test"])
    assert all(row.prompt.startswith("Context:\n[1] Lamp model") for row in rows)
    asked = [body["messages"][-1]["content"] for _, body in judging.asked]
    assert planned.grades >= len(asked)
    assert planned.read >= sum(len(text) for text in asked) / 5, "the passages are counted in the plan"
