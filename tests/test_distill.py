"""Rows that a teacher labels or rewrites: what is written, what is kept, what it costs, and what is refused."""

import json

import pytest
import tiny_experiment
from openai_server import Fault, Rule, ServerAnswer, serve_model

from harness.data.edit.row_files import payments_for, total_usd
from harness.errors import CandidateFailed, UserError
from harness.experiment.distilled_rows import Distillation, distill_rows, plan_distillation

pytestmark = pytest.mark.usefixtures("own_cache")

PRICES = "usd_per_million_tokens: {input: 1000, output: 5000}"


class UsageTeacher(Rule):
    """A teacher that says how many tokens it read and wrote: 100 and 10."""

    def chat(self, messages, body):
        return ServerAnswer(self._answer(messages), n_prompt=100, n_new=10)


def says(messages):
    """Label a letter by its word; of a rewriting say the old answer with a reason."""
    text = messages[-1]["content"]
    if "\nAnswer:\n" in text:
        return f"{text.rpartition('Answer:')[2].strip()}, because of the word"
    return "Money." if any(word in text for word in tiny_experiment.MONEY) else "late"


def write(folder, tiny, url, *, prices=PRICES, candidates=""):
    teacher = f"{{base_url: {url}, model: tiny, protocol: chat, max_retries: 0, num_concurrent: 2, {prices}}}"
    return tiny_experiment.write(
        folder,
        tiny,
        f"  large: {{method: endpoint, role: baseline, params: {teacher}}}\n  prompt: {{method: base}}\n  bag: {{method: classifier}}\n{candidates}",
    )


def session_of(path, *overrides):
    return tiny_experiment.session(path, *overrides)


@pytest.fixture
def server():
    with serve_model(UsageTeacher(says)) as running:
        yield running


def rows_of(made):
    return [outcome.row.fields for outcome in made.outcomes if outcome.row]


def test_a_teacher_labels_the_training_rows_with_the_tasks_own_labels(server, tiny, tmp_path):
    session = session_of(write(tmp_path, tiny, server.url))
    made = distill_rows(session, "large", Distillation(), "taught.jsonl")
    own = {e.id: e for e in session.target.items.train}
    rows = rows_of(made)
    assert [row["id"] for row in rows] == list(own)
    assert all(row["prompt"] == own[row["id"]].prompt for row in rows)
    assert {row["reference"] for row in rows} == {"late", "money"}
    right = sum(row["reference"] == own[row["id"]].references[0] for row in rows)
    assert made.agreement == pytest.approx(right / len(rows))
    assert made.spent.cost_usd == pytest.approx(len(rows) * (100 * 1000 + 10 * 5000) / 1e6)


def test_what_the_teacher_answered_is_asked_and_paid_once(server, tiny, tmp_path):
    session = session_of(write(tmp_path, tiny, server.url))
    first = distill_rows(session, "large", Distillation(n_rows=4), "a.jsonl")
    n = len(server.asked)
    assert n == 4
    again = distill_rows(session, "large", Distillation(n_rows=4), "b.jsonl")
    assert (len(server.asked), rows_of(again), again.spent) == (n, rows_of(first), first.spent)
    plan = plan_distillation(session, "large", Distillation())
    assert (plan.requests, plan.known) == (len(session.target.items.train), 4)
    distill_rows(session, "large", Distillation(), "c.jsonl")
    assert len(server.asked) == len(session.target.items.train)


def test_a_server_that_dies_midway_loses_no_answer(server, tiny, tmp_path):
    session = session_of(write(tmp_path, tiny, server.url))
    n = len(session.target.items.train)

    def dies(messages):
        if len(server.asked) == 5:
            server.faults.extend([Fault()] * n)
        return says(messages)

    server.model = UsageTeacher(dies)
    with pytest.raises(CandidateFailed, match="status 500"):
        distill_rows(session, "large", Distillation(), "a.jsonl")
    answered = len(server.asked)
    assert answered < n
    server.faults.clear()
    server.model = UsageTeacher(says)
    assert len(rows_of(distill_rows(session, "large", Distillation(), "a.jsonl"))) == n
    assert len(server.asked) == n


def test_a_budget_ends_the_asking_and_keeps_what_was_answered(server, tiny, tmp_path):
    one_at_a_time = "candidates.large.params.num_concurrent=1"  # prompts of unlike length cost the same here
    session = session_of(write(tmp_path, tiny, server.url), one_at_a_time)
    said = r"6 answers have cost 0\.9\d* USD, the next may cost .* and --max-cost is 1"
    with pytest.raises(CandidateFailed, match=said):
        distill_rows(session, "large", Distillation(max_cost=1.0), "a.jsonl")
    assert len(server.asked) == 6  # a seventh would have made it 1.05 USD
    distill_rows(session, "large", Distillation(max_cost=100.0), "a.jsonl")
    assert len(server.asked) == len(session.target.items.train)


def test_a_budget_needs_prices(server, tiny, tmp_path):
    session = session_of(write(tmp_path, tiny, server.url, prices=""))
    with pytest.raises(UserError, match="an endpoint without prices"):
        distill_rows(session, "large", Distillation(max_cost=1.0), "a.jsonl")
    assert not server.asked
    assert distill_rows(session, "large", Distillation(n_rows=2), "a.jsonl").spent.cost_usd is None


def test_an_instruction_rewrites_the_rows_own_answers(server, tiny, tmp_path):
    session = session_of(
        write(tmp_path, tiny, server.url), "target.labels=[]", "target.metrics=[exact_match]"
    )
    asked = Distillation(rewrite="Add a reason.", n_rows=3)
    made = distill_rows(session, "large", asked, "a.jsonl")
    own = {e.id: e.references[0] for e in session.target.items.train}
    assert [r["reference"] for r in rows_of(made)] == [
        f"{own[r['id']]}, because of the word" for r in rows_of(made)
    ]
    assert "Add a reason." in server.asked[0][1]["messages"][-1]["content"]
    assert made.agreement is None


def test_a_teacher_that_rewrites_is_shown_all_turns_of_a_conversation(server, tiny, tmp_path):
    path = write(tmp_path, tiny, server.url)
    turns = [("user", "My number is 7."), ("assistant", "Noted."), ("user", "Even or odd?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [{"id": "one", "messages": messages, "reference": "odd"}]
    tiny_experiment.rows(tmp_path / "suites" / "letters" / "train.jsonl", rows)
    session = session_of(path, "target.labels=[]", "target.metrics=[exact_match]")
    distill_rows(session, "large", Distillation(rewrite="Be kind."), "a.jsonl")
    said = server.asked[0][1]["messages"][-1]["content"]
    assert "user: My number is 7.\nassistant: Noted.\nuser: Even or odd?" in said


def test_only_answers_that_score_enough_are_kept(server, tiny, tmp_path):
    server.model = UsageTeacher(lambda messages: "late")
    session = session_of(write(tmp_path, tiny, server.url))
    made = distill_rows(session, "large", Distillation(min_score=1.0), "a.jsonl")
    own = {e.id: e.references[0] for e in session.target.items.train}
    assert [row["id"] for row in rows_of(made)] == [ident for ident, label in own.items() if label == "late"]


def test_an_answer_that_is_no_label_makes_no_row(server, tiny, tmp_path):
    server.model = UsageTeacher(lambda messages: "I cannot say")
    session = session_of(write(tmp_path, tiny, server.url))
    with pytest.raises(UserError, match="and none gives a row: an answer that is not a label of the task"):
        distill_rows(session, "large", Distillation(n_rows=2), "a.jsonl")


def test_a_file_of_prompts_is_labelled_and_one_that_asks_a_test_item_is_refused(server, tiny, tmp_path):
    session = session_of(write(tmp_path, tiny, server.url))
    file = tmp_path / "prompts.jsonl"
    tiny_experiment.rows(file, [{"prompt": "The invoice of May?"}, {"prompt": "When does the courier come?"}])
    made = distill_rows(session, "large", Distillation(prompts=str(file)), "a.jsonl")
    assert [row["reference"] for row in rows_of(made)] == ["money", "late"]
    n = len(server.asked)
    tested = session.target.items.test[0].prompt
    tiny_experiment.rows(file, [{"prompt": "The invoice of June?"}, {"prompt": tested.upper()}])
    with pytest.raises(UserError, match=r"prompts\.jsonl:2"):
        distill_rows(session, "large", Distillation(prompts=str(file)), "a.jsonl")
    assert len(server.asked) == n  # nothing is asked, and paid, before


def test_rows_keep_the_columns_that_the_task_names(server, tiny, tmp_path):
    path = write(tmp_path, tiny, server.url)
    folder = tmp_path / "suites" / "letters"
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        renamed = [
            {
                "id": r["id"],
                "cluster": r["cluster"],
                "text": r["prompt"],
                "label": r["reference"],
                "from": "x",
            }
            for r in rows
        ]
        tiny_experiment.rows(file, renamed)
    session = session_of(path, "target.fields={prompt: '{text}', reference: '{label}'}")
    (row,) = rows_of(distill_rows(session, "large", Distillation(n_rows=1), "a.jsonl"))
    assert row.keys() == {"id", "text", "label", "from", "cluster"}
    assert row["label"] in ("late", "money")


def test_a_local_model_teaches_too_and_its_time_is_priced(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    session = session_of(
        path,
        "target.labels=[]",
        "target.metrics=[exact_match]",
        "target.truncated_scores=true",
        "decide.device_hour_usd=3600",
    )
    made = distill_rows(session, "prompt", Distillation(n_rows=3, temperature=1.0), "a.jsonl")
    assert made.spent.cost_usd == pytest.approx(made.spent.compute_s)
    assert made.spent.cost_usd > 0
    again = distill_rows(session, "prompt", Distillation(n_rows=3, temperature=1.0), "a.jsonl")
    assert rows_of(again) == rows_of(made)


@pytest.mark.e2e
def test_the_command_writes_rows_that_train_a_candidate_whose_break_even_holds_the_cost(
    server, tiny, tmp_path, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, tiny, server.url)
    code, said, _ = command("data", "distill", "large", "--dry-run", "--json")
    plan = json.loads(said)
    assert (code, plan["known"], server.asked) == (0, 0, [])
    assert plan["cost_usd"] > 0
    code, said, error = command("data", "distill", "large", "--out", "taught.jsonl")
    assert code == 0, error
    manifest = json.loads((tmp_path / "taught.jsonl.manifest.json").read_text())
    n = manifest["counts"]["written"]
    assert manifest["command"] == "harness data distill"
    assert manifest["parameters"]["teacher"] == "large"
    assert manifest["parameters"]["leak_check"]["contaminated"] == 0
    assert manifest["cost_usd"] == pytest.approx(n * 0.15)
    assert command("data", "dedup", "taught.jsonl", "--out", "unique.jsonl")[0] == 0
    assert total_usd(payments_for("unique.jsonl")) == manifest["cost_usd"]
    assert total_usd([*payments_for("unique.jsonl"), *payments_for("taught.jsonl")]) == manifest["cost_usd"]
    assert command("data", "distill", "large", "--out", "taught.jsonl")[0] == 2

    params = "params: {r: 2, num_train_epochs: 1, max_steps: 1, max_length: 200}"
    taught = f"  own: {{method: lora, {params}}}\n  taught: {{method: lora, train: unique.jsonl, {params}}}\n"
    taught += f"  both: {{method: lora, train: [taught.jsonl, unique.jsonl], {params}}}\n"
    write(tmp_path, tiny, server.url, candidates=taught)
    report = tiny_experiment.run(path, "suites=[]", candidates=("prompt", "own", "taught"))
    paid = {facts.name: facts.rows_cost_usd for facts in report.facts}
    assert paid == {"prompt": 0.0, "own": 0.0, "taught": pytest.approx(manifest["cost_usd"])}
    facts = {one.name: (one.n_train, one.n_taught) for one in report.facts}
    assert facts["own"][1] == 0
    assert facts["taught"][0] == facts["taught"][1] > 0  # whose labels cost what the teacher did


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bag", "--out", "a.jsonl"), "the method classifier, which generates no text"),
        (("large",), "no --out"),
        (("large", "--out", "a.jsonl", "--top-p", "0"), "above 0 and at most 1"),
        (
            ("large", "--out", "a.jsonl", "--prompts", "p.jsonl", "--rewrite", "short"),
            "whose own answers are not read",
        ),
        (("larg", "--out", "a.jsonl"), "did you mean 'large'"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, said, server, tiny, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny, server.url)
    tiny_experiment.rows(tmp_path / "p.jsonl", [{"prompt": "Where?"}])
    code, _, error = command("data", "distill", *arguments)
    assert (code, server.asked) == (2, [])
    assert said in error
