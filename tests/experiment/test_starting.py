"""`harness init` looks at rows, proposes a task, and writes a folder in which compare runs."""

import json
from functools import partial

import pytest
import tiny_experiment
import tiny_model
from conftest import refused
from proposals import HERE, propose, write_csv

from harness import config
from harness.analysis.significance import power_warnings
from harness.data import load_task
from harness.experiment import scaffold
from harness.experiment.scaffold import Request

LABELLED = [{"text": f"My {topic} {i}?", "label": topic} for i in range(20) for topic in ("card", "pin")]
WORDS = "the lamp is on the table and the hen is in the garden behind the old house"
FREE = [{"instruction": f"Say {i}.", "input": "", "output": f"{i} {WORDS} {i}"} for i in range(40)]
QUESTIONS = [
    {
        "title": f"Article_{a}",
        "context": f"Text {a} says {a}{i}.",
        "question": f"What {i} of {a}?",
        "answers": {"text": [f"{a}{i}"], "answer_start": [12]},
    }
    for a in range(10)
    for i in range(4)
]
PAIRS = [
    {"chosen": f"\n\nHuman: Who {i}?\n\nAssistant: Me.", "rejected": f"\n\nHuman: Who {i}?\n\nAssistant: No."}
    for i in range(40)
]
CHOICES = [
    {"question": f"What is {i} and 1?", "choices": [f"{i + n}" for n in (1, 0, 2, 3)], "answer": 0}
    for i in range(40)
]


@pytest.fixture
def propose_rows(tmp_path):
    """Return a maker of proposals from rows; other arguments are fields of the request."""
    return partial(propose, tmp_path)


def refuse(*args, **fields):
    return refused(propose, *args, **fields).problems


def list_problems(*args, **fields):
    return [problem.found for problem in refuse(*args, **fields)]


@pytest.mark.e2e
def test_so_few_rows_that_no_difference_can_be_shown_are_warned_of(propose_rows):
    few = propose_rows(FREE[:6])
    n = len(load_task(few.task, 0).test)
    assert 0 < n < 6
    assert [warning.partition(":")[0] for warning in few.warnings] == [f"only {n} items for test"]


def call_tools(n):
    call = {"type": "function", "function": {"name": "look_up", "arguments": json.dumps({"n": n})}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call] * (1 + n % 2)}
    return {"messages": [{"role": "user", "content": f"Find {n}."}, answer]}


def of_forty(make):
    return [make(i) for i in range(40)]


KINDS_OF_ROWS = {
    "labels": (LABELLED, "labels", ("exact_match", "macro_f1")),
    "preference": (PAIRS, "preference", ("token_f1", "exact_match")),
    "calls of tools": (of_forty(call_tools), "text", ("tool_call", "token_f1")),
    "answers in another script": (
        of_forty(lambda i: {"prompt": f"{i}?", "reference": f"これは長い答えです{i}"}), "text", ("chrf",),
    ),
}  # fmt: skip


@pytest.mark.e2e
@pytest.mark.parametrize(("content", "kind", "metrics"), KINDS_OF_ROWS.values(), ids=KINDS_OF_ROWS)
def test_the_task_follows_from_the_rows_and_what_is_written_loads_as_it(propose_rows, content, kind, metrics):
    proposal = propose_rows(content)
    assert (proposal.kind, proposal.task.metrics) == (kind, metrics)
    assert [name for name in proposal.candidates if name != "dpo"] == [
        *("prompt", "fixed", "knn"),
        *(("ranked", "classifier") if kind == "labels" else ()),
        "lora",
    ]
    loaded = config.load(scaffold.write(proposal)[0])
    assert loaded.experiment.target == proposal.task
    assert list(loaded.selected) == list(proposal.candidates)
    assert [suite.name for suite in loaded.experiment.suites] == ["general", "safety"]


@pytest.mark.e2e
def test_choices_are_ranked_and_labels_closed_named_and_given_room_for_a_sentence(propose_rows):
    task = propose_rows(CHOICES).task
    assert (task.kind, task.chance, task.system) == ("choice", 0.25, "Answer the question.")
    assert load_task(task, 0).test[0].choices
    content = [
        {"question": f"Is {i} even?", "choices": ["even", "odd"], "answer": ("even", "odd")[i % 2]}
        for i in range(40)
    ]
    assert propose_rows(content).task.labels == ("even", "odd")
    task = propose_rows(LABELLED).task
    assert (task.labels, task.max_new_tokens) == (("card", "pin"), 64)
    assert task.system == "Classify the text. Reply with one of these labels and nothing else: card, pin."


@pytest.mark.e2e
@pytest.mark.parametrize("mark", ["#### {}", "It is $\\boxed{{{}}}$."])
def test_answers_that_reason_are_scored_by_their_final_answer(propose_rows, mark):
    content = [{"question": f"{i} + 1?", "answer": f"Add 1.\n{mark.format(i + 1)}"} for i in range(40)]
    task = propose_rows(content).task
    assert task.metrics == ("final_answer", "token_f1")
    assert task.system.startswith("Think step by step")


@pytest.mark.e2e
def test_rows_of_one_customer_stay_together(propose_rows):
    content = [{**row, "customer_id": f"c{i // 4}"} for i, row in enumerate(LABELLED)]
    assert propose_rows(content).task.fields.cluster == "{customer_id}"


@pytest.mark.e2e
def test_the_contexts_of_questions_keep_them_together_and_become_documents_for_retrieval(propose_rows):
    proposal = propose_rows(QUESTIONS, kind="question")
    assert {"rag", "hybrid"} <= proposal.candidates.keys()
    assert proposal.task.data.documents == proposal.task.data.all
    assert "documents: 40 to retrieve from" in proposal.lines
    assert proposal.task.fields.cluster == "{title}"
    assert any(line.startswith("split by title:") for line in proposal.lines)


def thumbs(n, down):
    rows = [{"prompt": f"Question {i} of {WORDS}?", "completion": f"{WORDS} {i}"} for i in range(n)]
    return [{**row, "label": not down(i)} for i, row in enumerate(rows)]


@pytest.mark.e2e
def test_answers_with_thumbs_are_learned_from_both_ways_and_only_those_up_are_answers(propose_rows):
    proposal = propose_rows(thumbs(60, lambda i: i % 3 == 0))
    assert list(proposal.candidates) == ["prompt", "fixed", "knn", "lora", "kto"]
    assert proposal.candidates["kto"]["init_from"] == "lora"
    data = proposal.task.data
    assert (data.pairs, data.invalid_rows) == (data.all, "drop")
    items = load_task(proposal.task, 0)
    assert len(items.test) + len(items.validation) == 40
    assert {bool(pair.references) for pair in items.pairs} == {True, False}


@pytest.mark.e2e
def test_many_rows_are_drawn_from_and_a_few_unusable_left_out_as_is_said(propose_rows):
    proposal = propose_rows([{"prompt": f"{i}?", "reference": f"{WORDS} {i}"} for i in range(2700)])
    assert proposal.task.data.limits.test == 400
    assert any("drawn" in line for line in proposal.lines)

    proposal = propose_rows([*FREE, {**FREE[0], "output": ""}])
    assert proposal.task.data.invalid_rows == "drop"
    assert any("1 of 41 rows dropped, invalid" in line for line in proposal.lines)


@pytest.mark.e2e
@pytest.mark.parametrize("columns", [("Q", "A"), ("Query", "kind")])
def test_columns_are_guessed_by_name_or_by_how_much_they_vary(tmp_path, columns):
    lines = [columns, *((row["text"], "abcd"[i % 4]) for i, row in enumerate(LABELLED))]
    proposal = propose(tmp_path, write_csv(tmp_path, lines, "my rows.csv"))
    assert (proposal.task.fields.prompt, proposal.task.fields.reference) == tuple(f"{{{c}}}" for c in columns)
    assert (proposal.name, proposal.task.labels) == ("my-rows", ("a", "b", "c", "d"))


UNTITLED = {
    "'card', which 19 rows hold in that column,": [(r["text"].rstrip("?"), r["label"]) for r in LABELLED],
    "'1' and other data": [(f"{i}", f"Where is the {i}?", f"It is at {i}.") for i in range(1, 40)],
}


@pytest.mark.parametrize("found", UNTITLED)
def test_a_csv_without_a_header_is_refused(tmp_path, found):
    (problem,) = refuse(tmp_path, write_csv(tmp_path, UNTITLED[found]))
    assert problem.where.endswith("mine.csv:1")
    assert problem.found == f"{found} where names of columns belong"
    assert problem.next_step == "add a header line, or where it is one: --prompt COLUMN --reference COLUMN"


def test_a_line_above_the_header_is_refused_at_its_place(tmp_path):
    cells = [(i, row["text"], row["label"]) for i, row in enumerate(LABELLED)]
    content = [("Tickets of 2024", "", ""), ("id", "text", "label"), *cells]
    (problem,) = refuse(tmp_path, write_csv(tmp_path, content))
    assert problem.where.endswith("mine.csv:1")
    assert problem.found == "a first line that names 1 of 3 columns"
    assert problem.next_step.startswith("delete the lines above it")


def test_a_column_that_was_named_and_is_not_there_is_refused_once(tmp_path):
    (problem,) = refuse(tmp_path, LABELLED, prompt="{text}: {txet}")
    assert problem.where.endswith("mine.jsonl, --prompt")
    assert "did you mean" in problem.next_step


@pytest.mark.e2e
def test_columns_that_are_named_are_taken_and_numbered_ones_are_no_part_of_the_question(propose_rows):
    content = [{"a": f"Say {i}", "b": str(i), "c": "y"} for i in range(20)]
    task = propose_rows(content, prompt="a", reference="<{b}>").task
    assert (task.fields.prompt, task.fields.reference) == ("{a}", "<{b}>")

    content = [{"ID": i, "Subject": f"S {i}", "Body": f"B {i}", "Category": "ab"[i % 2]} for i in range(40)]
    fields = propose_rows(content).task.fields
    assert (fields.prompt, fields.reference) == ("{Subject}\n\n{Body}", "{Category}")


def test_all_problems_come_at_once_and_nothing_is_written(tmp_path):
    (tmp_path / "harness.yaml").write_text("mine")
    request = Request(tmp_path, str(tmp_path / "no.jsonl"), "smollm2", str(tmp_path / "none.jsonl"))
    caught = refused(scaffold.propose, request, HERE)
    assert [problem.found for problem in caught.problems] == [
        "no such file",
        "no such file",
        "a file that is there already",
        "no such folder or hub id",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["harness.yaml"]


@pytest.mark.e2e
def test_any_label_survives_the_yaml(propose_rows):
    labels = ("yes", "1", "a: b", "it's", "[x]", "null", "# x", "{text}")
    content = [{"prompt": f"What is {i}?", "reference": labels[i % 8]} for i in range(48)]
    loaded = config.load(scaffold.write(propose_rows(content, kind="labels"))[0])
    assert {*loaded.experiment.target.labels} == {*labels}


def test_compare_runs_on_what_was_written(propose_rows, tiny, own_cache):
    path = scaffold.write(propose_rows(LABELLED, base_model=str(tiny)))[0]
    report = tiny_experiment.run(
        path, "suites=[]", "device=cpu", "precision=fp32", candidates=("prompt", "classifier")
    )
    assert {fact.name: fact.state for fact in report.facts} == {"prompt": "done", "classifier": "done"}
    assert next(fact for fact in report.facts if fact.name == "classifier").target.score == 1.0


@pytest.mark.e2e
def test_few_rows_are_tested_in_folds_and_where_a_label_is_too_rare_for_it_this_is_said(propose_rows):
    rare = propose_rows([*LABELLED, {"text": "What now?", "label": "other"}])
    assert rare.task.data.folds is None
    assert any(line.startswith("few rows: folds: 5") and "'other'" in line for line in rare.lines)
    many = [{"text": f"My {i}?", "label": i % 2} for i in range(300)]
    assert propose_rows(many).task.data.folds is None
    proposal = propose_rows(LABELLED)
    assert config.load(scaffold.write(proposal)[0]).experiment.target.data.folds == 5
    assert any("32 rows to train on, 8 for validation; folds: 5" in line for line in proposal.lines)


@pytest.mark.e2e
def test_the_margins_are_those_that_the_items_of_the_suites_can_show(propose_rows):
    proposal = propose_rows(PAIRS)
    experiment = config.load(scaffold.write(proposal)[0]).experiment
    assert (experiment.gate.macro, experiment.gate.each, experiment.gate.safety) == (0.04, 0.1, 0.1)
    items = {task.name: len(load_task(task, 0).test) for suite in experiment.suites for task in suite.tasks}
    assert power_warnings(experiment.suites, items, experiment.gate, n_members=2) == ()
    assert any("that lost nothing, as one of 2, passes the average in 9" in line for line in proposal.lines)


def test_a_fine_tune_is_proposed_with_a_sweep_and_a_penalty_and_pairs_are_trained_on_from_it(propose_rows):
    assert propose_rows(PAIRS).candidates["dpo"]["init_from"] == "lora"
    lora = config.load(scaffold.write(propose_rows(FREE))[0]).experiment.candidates["lora"]
    assert len(lora.sweep["learning_rate"]) == 2
    assert lora.regularize == {"kl": {"rows": 144, "rows_per_step": 1}}


@pytest.mark.parametrize(("context", "n_shots"), [(1200, 1), (900, None)])
def test_no_more_shots_are_proposed_than_fit_the_context(propose_rows, tiny, tmp_path, context, n_shots):
    base = tiny_model.copy(tiny, tmp_path / "base", max_position_embeddings=context)
    long = [{"prompt": f"{i}: {WORDS * 12}", "reference": f"{WORDS} {i}"} for i in range(40)]
    candidates = propose_rows(long, base_model=str(base)).candidates
    fixed = candidates.get("fixed", {"prompting": {"few_shot": {"shots": None}}})
    assert (fixed["prompting"]["few_shot"]["shots"], "fixed" in candidates) == (n_shots, n_shots is not None)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("choice", "rows without choices of their own"), ("question", "rows without a context"), ("preference", "rows")],
)  # fmt: skip
def test_a_kind_that_the_rows_are_not_of_is_refused(tmp_path, kind, said):
    assert said in " ".join(list_problems(tmp_path, FREE, kind=kind))
