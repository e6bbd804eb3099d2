"""Facts that change: candidates answer them as they are and with the new documents; what a refresh takes is said."""

import json
import re
from dataclasses import replace

import pytest
import tiny_experiment
from openai_server import Rule, serve_model
from test_data_augment import WORDS

from harness.config import load
from harness.errors import Unscored, UserError
from harness.experiment import Scope, estimate_seconds, prepare_session
from harness.experiment.analysis.changed_scores import calls_right
from harness.experiment.preparation.planned_work import estimate_work
from harness.metrics import load_metrics
from harness.progress import SilentProgress
from harness.records import Example
from harness.report import experiment_document, markdown, read, to_json
from harness.spec import Task

pytestmark = pytest.mark.usefixtures("own_cache")

OLD = {name: str(11 + i) for i, name in enumerate(WORDS)}
NEW = {**OLD, **{name: str(61 + i) for i, name in enumerate(WORDS[4:])}}
CHANGES = "changes: {test: changed.jsonl, documents: new.jsonl}, "
CANDIDATES = """\
  prompt: {{method: base}}
  memory: {{method: endpoint, params: {endpoint}}}
  reader: {{method: endpoint, params: {endpoint}, prompting: {{rag: {{top_k: 1}}}}}}
  lora: {{method: lora, params: {{r: 2, max_steps: 1, max_length: 250}}}}
"""


def items(answers, names):
    return [{"id": name, "prompt": f"Which number has {name}?", "reference": answers[name]} for name in names]


def documents(answers):
    return [{"id": name, "text": f"The number of {name} is {answers[name]}."} for name in WORDS]


def answer(messages):
    """Read the number from the passages where there are some, else say what was true before."""
    said = messages[-1]["content"]
    name = re.search(r"has (\w+)\?", said)[1]
    found = re.search(rf"number of {name} is (\d+)", said)
    return found[1] if found else OLD[name]


def write(folder, tiny, url, *, changes=CHANGES, changed=None, extra=""):
    endpoint = f"{{base_url: '{url}', model: tiny, protocol: chat}}"
    path = tiny_experiment.write(folder, tiny, CANDIDATES.format(endpoint=endpoint), extra=extra)
    data = f"{{{changes}train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: old.jsonl}}"
    target = f"name: numbers\ntasks:\n  - name: numbers\n    data: {data}\n    metrics: [exact_match]\n    max_new_tokens: 4\n"
    (folder / "suites" / "letters.yaml").write_text(target)
    rows = {
        "train": items(OLD, WORDS[:4]),
        "validation": items(OLD, WORDS[4:6]),
        "test": items(OLD, WORDS[6:]),
        "old": documents(OLD),
        "new": documents(NEW),
        "changed": items(NEW, WORDS[6:]) if changed is None else changed,
    }
    for name, of in rows.items():
        tiny_experiment.rows(folder / "suites" / f"{name}.jsonl", of)
    return path


@pytest.fixture(scope="module")
def file_and_calls(tiny, own_cache, tmp_path_factory):
    """Compare without changes, then with them, then again; count what the endpoint was asked."""
    folder = tmp_path_factory.mktemp("changes")
    with serve_model(Rule(answer)) as server:
        asked = []
        for changes in ("", CHANGES, CHANGES):
            path = write(
                folder, tiny, server.url, changes=changes, extra="decide: {needs: [changing_facts]}\n"
            )
            report = tiny_experiment.run(path, "suites=[]")
            runs = tiny_experiment.runs_of(path)
            asked.append((len(server.asked), report, runs))
    return path, asked


def changes_of(compared):
    return {f.name: f.changes for f in compared[1][1][1].facts}


def test_who_retrieves_answers_changed_items_with_the_old_documents_and_with_the_new(file_and_calls):
    found = changes_of(file_and_calls)["reader"]
    assert (found.n, found.before.score, found.after.score) == (6, 0.0, 1.0)
    assert (found.change.delta, found.change.n) == (1.0, 6)
    assert (found.n_known, found.outdated_before, found.outdated_after) == (6, 6, 0)
    assert found.index_s > 0
    assert found.index_cost_usd > 0


def test_who_retrieves_nothing_answers_as_it_is_and_still_says_what_was_right_before(file_and_calls):
    found = changes_of(file_and_calls)["memory"]
    assert (found.before.score, found.after, found.change, found.index_s) == (0.0, None, None, None)
    assert (found.outdated, found.n_known) == (6, 6)


def test_every_candidate_is_compared_with_the_best_untrained_on_the_changed_items(file_and_calls):
    found = changes_of(file_and_calls)
    best = next(name for name, of in found.items() if of.vs_untrained is None)
    assert best == "prompt"
    assert found["reader"].vs_untrained.delta == 1.0


def test_an_answer_that_the_metric_cannot_score_is_not_outdated():
    def score(output, example):
        if output.text == "slow":
            raise Unscored("it takes too long")
        return (1.0,)

    task = Task(name="t", data={"test": "t.jsonl"}, metrics=["exact_match"])
    metric = replace(load_metrics(task)["exact_match"], score=score)
    item = Example("t/1", (), ("old",))
    assert [calls_right(metric, answer, item) for answer in ("slow", "old")] == [False, True]


def test_retraining_takes_what_the_stored_training_took(file_and_calls):
    (lora,) = [f for f in file_and_calls[1][1][1].facts if f.name == "lora"]
    assert lora.changes.after is None
    row = next(
        r
        for r in markdown(experiment_document(file_and_calls[1][1][1])).splitlines()
        if r.startswith("| lora | ") and "USD" in r
    )
    assert lora.training.total_s > 0
    assert re.search(r"\| – \| [\d.]+ m?s, (&lt;)?[\d.]+ USD \|$", row)


def test_answers_to_the_other_items_are_not_asked_again_and_a_second_call_asks_nothing(file_and_calls):
    (before, _, plain), (after, _, with_changes), (again, _, _) = file_and_calls[1]
    assert again == after
    for name in ("prompt", "memory", "reader", "lora"):
        assert plain[name].rows.items() <= with_changes[name].rows.items()
        assert plain[name].weights_digest == with_changes[name].weights_digest
    timed = 12  # single requests and a batch, which are timed anew
    assert 18 <= after - before <= 18 + 4 * timed


def test_the_report_and_its_json_hold_the_table_and_the_decision_says_what_was_measured(
    file_and_calls, tmp_path
):
    report = file_and_calls[1][1][1]
    text = markdown(experiment_document(report))
    assert "Facts that change" in text
    assert re.search(r"\| reader \| 100.*\| 0\.0 .*\| 100.*\| \+100", text)
    (said,) = [line for line in text.splitlines() if "Measured (changing facts)" in line]
    assert "on 6 changed items" in said
    assert "memory 0.0" in said
    assert "the outdated answer to 6 of 6" in said
    assert "reader 0.0" in said
    (tmp_path / "numbers.json").write_text(json.dumps(to_json(report)))
    assert {f.name: f.changes for f in read(tmp_path / "numbers.json").facts} == changes_of(file_and_calls)


def session_of(path, **scope):
    return prepare_session(load(path, ["suites=[]"]), Scope(**scope), SilentProgress())


def test_what_changed_items_take_is_planned(tiny, tmp_path):
    read_tokens = []
    for changes in ("", CHANGES):
        session = session_of(write(tmp_path, tiny, "http://127.0.0.1:9/v1", changes=changes))
        work = estimate_work(session, ["reader"])["reader"]
        read_tokens.append(work.generated)
        assert estimate_seconds(session, {"reader": work}) == {}
    assert read_tokens == [4 * (2 + 6), 4 * (2 + 6 + 6 + 6)]


@pytest.mark.parametrize(
    ("changed", "changes", "said"),
    [
        (items(OLD, WORDS[6:8]), CHANGES, "changed.jsonl:1: found '17', which"),
        (items(OLD, WORDS[:1]), CHANGES, "an item whose right answer is another now"),
        (items(OLD, WORDS[4:5]), CHANGES, "suites/validation.jsonl:1 answers too"),
        ([{"id": "x", "prompt": "Which?"}], CHANGES, "reference"),
        (None, "changes: {documents: new.jsonl}, ", "test"),
        (None, "changes: {test: absent.jsonl}, ", "absent.jsonl"),
        (None, "changes: {test: changed.jsonl, documents: absent.jsonl}, ", "absent.jsonl"),
    ],
)
def test_changes_that_cannot_be_used_are_refused(tiny, tmp_path, changed, changes, said):
    with pytest.raises(UserError) as error:
        session_of(write(tmp_path, tiny, "http://127.0.0.1:9/v1", changed=changed, changes=changes))
    assert said in str(error.value)


def test_new_documents_without_old_ones_and_changes_of_a_suite_are_refused(tiny, tmp_path):
    path = write(tmp_path, tiny, "http://127.0.0.1:9/v1")
    target, general = tmp_path / "suites" / "letters.yaml", tmp_path / "suites" / "general.yaml"
    target.write_text(target.read_text().replace(", documents: old.jsonl}", "}"))
    general.write_text(
        general.read_text().replace(
            "test: general/facts.jsonl", "test: general/facts.jsonl, changes: {test: changed.jsonl}"
        )
    )
    with pytest.raises(UserError) as error:
        load(path)
    assert "new documents, and none before" in str(error.value)
    assert "changes of the task facts, which is not the target" in str(error.value)


def test_what_was_right_before_stands_in_a_row_or_in_the_row_that_asks_the_same(tiny, tmp_path):
    changed = [
        *items(NEW, WORDS[6:7]),
        {"id": "own", "prompt": "Which number has nobody?", "reference": "5", "outdated": ["4", "3"]},
        {"id": "unknown", "prompt": "Which number has somebody?", "reference": "5"},
        {"id": "empty", "prompt": "Which number has everybody?", "reference": "5", "outdated": " "},
    ]
    session = session_of(write(tmp_path, tiny, "http://127.0.0.1:9/v1", changed=changed))
    assert session.changed.outdated == {"grove": ("17",), "own": ("4", "3")}
    assert len(session.changed.items) == 4


def test_a_candidate_that_trains_on_changed_items_is_refused(tiny, tmp_path):
    new = {"id": "mango", "prompt": "Which number has mango?", "reference": "99"}
    path = write(tmp_path, tiny, "http://127.0.0.1:9/v1", changed=[*items(NEW, WORDS[6:]), new])
    tiny_experiment.rows(tmp_path / "fresh.jsonl", [*items(OLD, ["amber"]), new])
    fresh = "  fresh: {method: lora, train: fresh.jsonl}\n"
    path.write_text(path.read_text().replace("candidates:\n", f"candidates:\n{fresh}"))
    with pytest.raises(UserError) as error:
        session_of(path)
    assert re.search(r"changed\.jsonl:7: found '99', which \S*fresh\.jsonl:2 answers too", str(error.value))
    assert "remove it from the training rows" in str(error.value)
