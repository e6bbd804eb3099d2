"""Rows that a teacher labels or rewrites, and preference pairs of answers: contents, costs and refusals."""

import json
import os

import pytest
import tiny_experiment
import tiny_methods
from checked_rows import list_cases
from openai_server import Fault, Rule, ServerAnswer, serve_model

from harness.data.edit.row_files import payments_for, total_usd
from harness.data.edit.save import save
from harness.errors import CandidateFailed, UserError
from harness.experiment import written_rows
from harness.experiment.written_rows import Distillation, make_pairs, open_ranking, prepare_distillation

pytestmark = pytest.mark.usefixtures("own_cache")


class UsageTeacher(Rule):
    """A teacher that reports the tokens it read and wrote: 100 and 10."""

    def chat(self, messages, body):
        return ServerAnswer(self._answer(messages), n_prompt=100, n_new=10)


def says(messages):
    """Label a letter by its word; for a rewriting, give the old answer with a reason."""
    text = messages[-1]["content"]
    if "\nAnswer:\n" in text:
        return f"{text.rpartition('Answer:')[2].strip()}, because of the word"
    return "Money." if any(word in text for word in tiny_experiment.MONEY) else "late"


def write(folder, tiny, url, *, prices="usd_per_million_tokens: {input: 1000, output: 5000}", candidates=""):
    teacher = f"{{base_url: {url}, model: tiny, protocol: chat, max_retries: 0, num_concurrent: 2, {prices}}}"
    large = f"  large: {{method: endpoint, role: baseline, params: {teacher}}}\n"
    untrained = "  prompt: {method: base}\n  bag: {method: classifier}\n"
    return tiny_experiment.write(folder, tiny, f"{large}{untrained}{candidates}")


@pytest.fixture
def server():
    with serve_model(UsageTeacher(says)) as running:
        yield running


def rows_of(result):
    return [outcome.row.fields for outcome in result.outcomes if outcome.row]


def distill(session, teacher="large", **settings):
    return prepare_distillation(session, teacher, Distillation(**settings), "a.jsonl").send()


def test_a_teacher_labels_the_training_rows_with_the_tasks_own_labels_and_is_asked_and_paid_once(
    server, tiny, tmp_path
):
    session = tiny_experiment.session(write(tmp_path, tiny, server.url))
    first, again = (distill(session, n_rows=4) for _ in range(2))
    assert (len(server.asked), rows_of(again), again.spent) == (4, rows_of(first), first.spent)
    examples = {e.id: e for e in session.target.items.train}
    plan = prepare_distillation(session, "large", Distillation(), "a.jsonl").plan
    assert (plan.requests, plan.known) == (len(examples), 4)
    result = distill(session)
    rows = rows_of(result)
    assert len(server.asked) == len(examples)
    assert [row["id"] for row in rows] == list(examples)
    assert all(row["prompt"] == examples[row["id"]].prompt for row in rows)
    assert {row["reference"] for row in rows} == {"late", "money"}
    right = sum(row["reference"] == examples[row["id"]].references[0] for row in rows)
    assert f"the rows' own: {100 * right / len(rows):.1f} over all rows" in result.notes[-2]
    assert result.spent.cost_usd == pytest.approx(len(rows) * (100 * 1000 + 10 * 5000) / 1e6)


def test_a_server_that_dies_midway_loses_no_answer(server, tiny, tmp_path):
    session = tiny_experiment.session(write(tmp_path, tiny, server.url))
    n = len(session.target.items.train)

    def dies(messages):
        if len(server.asked) == 5:
            server.faults.extend([Fault()] * n)
        return says(messages)

    server.model = UsageTeacher(dies)
    with pytest.raises(CandidateFailed, match="status 500"):
        distill(session)
    n_answered = len(server.asked)
    assert n_answered < n
    server.faults.clear()
    server.model = UsageTeacher(says)
    assert len(rows_of(distill(session))) == n
    assert len(server.asked) == n


def test_a_budget_ends_the_asking_and_keeps_what_was_answered(server, tiny, tmp_path):
    one_at_a_time = "candidates.large.params.num_concurrent=1"  # all prompts cost the same here
    session = tiny_experiment.session(write(tmp_path, tiny, server.url), one_at_a_time)
    message = r"6 answers have cost 0\.9\d* USD, the next may cost .* and --max-cost is 1"
    with pytest.raises(CandidateFailed, match=message):
        distill(session, max_cost=1.0)
    assert len(server.asked) == 6  # a seventh would have made it 1.05 USD
    distill(session, max_cost=100.0)
    assert len(server.asked) == len(session.target.items.train)


def test_a_budget_needs_prices(server, tiny, tmp_path):
    session = tiny_experiment.session(write(tmp_path, tiny, server.url, prices=""))
    with pytest.raises(UserError, match="an endpoint without prices"):
        distill(session, max_cost=1.0)
    assert not server.asked
    assert distill(session, n_rows=2).spent.cost_usd is None


def test_an_instruction_rewrites_the_rows_own_answers(server, tiny, tmp_path):
    session = tiny_experiment.session(
        write(tmp_path, tiny, server.url), "target.labels=[]", "target.metrics=[exact_match]"
    )
    result = distill(session, rewrite="Add a reason.", n_rows=3)
    answers = {e.id: e.references[0] for e in session.target.items.train}
    expected = [f"{answers[row['id']]}, because of the word" for row in rows_of(result)]
    assert [row["reference"] for row in rows_of(result)] == expected
    assert "Add a reason." in server.asked[0][1]["messages"][-1]["content"]
    assert not any("the rows' own" in note for note in result.notes)


def test_only_answers_that_score_enough_are_kept_and_what_is_no_label_makes_no_row(server, tiny, tmp_path):
    replies = ["late"]
    server.model = UsageTeacher(lambda messages: replies[0])
    session = tiny_experiment.session(write(tmp_path, tiny, server.url))
    data = distill(session, min_score=1.0)
    gold = {e.id: e.references[0] for e in session.target.items.train}
    assert [row["id"] for row in rows_of(data)] == [ident for ident, label in gold.items() if label == "late"]
    replies[0] = "I cannot say"
    with pytest.raises(UserError, match="and none gives a row: an answer that is not a label of the task"):
        distill(session, n_rows=2, temperature=0.5)


def test_a_file_of_prompts_is_labelled_and_one_that_asks_a_test_item_is_refused(server, tiny, tmp_path):
    session = tiny_experiment.session(write(tmp_path, tiny, server.url))
    file = tmp_path / "prompts.jsonl"
    marks = {"source": "augmented", "augmented_from": "The invoice of May?"}
    courier = {"prompt": "When does the courier come?", **marks}
    tiny_experiment.rows(file, [{"prompt": "The invoice of May?"}, courier])
    result = distill(session, prompts=str(file))
    assert [row["reference"] for row in rows_of(result)] == ["money", "late"]
    assert [row.get("augmented_from") for row in rows_of(result)] == [None, marks["augmented_from"]]
    n = len(server.asked)
    tested = session.target.items.test[0].prompt
    tiny_experiment.rows(file, [{"prompt": "The invoice of June?"}, {"prompt": tested.upper()}])
    with pytest.raises(UserError, match=r"prompts\.jsonl:2"):
        distill(session, prompts=str(file))
    assert len(server.asked) == n  # refused before anything is asked and paid


def test_a_local_model_teaches_too_and_its_time_is_priced(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    session = tiny_experiment.session(
        path, "target.labels=[]", "target.metrics=[exact_match]", "target.truncated_scores=true",
        "decide.device_hour_usd=3600",
    )  # fmt: skip
    first, second = (distill(session, "prompt", n_rows=3, temperature=1.0) for _ in range(2))
    assert first.spent.cost_usd == pytest.approx(first.spent.compute_s)
    assert first.spent.cost_usd > 0
    assert rows_of(second) == rows_of(first)


@pytest.mark.e2e
def test_the_command_writes_rows_that_train_a_candidate_whose_break_even_holds_the_cost(
    server, tiny, tmp_path, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    params = "params: {r: 2, num_train_epochs: 1, max_steps: 1, max_length: 200}"
    taught = f"  own: {{method: lora, {params}}}\n  taught: {{method: lora, train: unique.jsonl, {params}}}\n"
    taught += f"  both: {{method: lora, train: [taught.jsonl, unique.jsonl], {params}}}\n"
    path = write(tmp_path, tiny, server.url, candidates=f"{taught}  rag: {{weights_of: taught}}\n")
    for needed in ((), ("--candidates", "rag")):  # a file that a candidate trains on is still to be made
        code, _, error = command("compare", *needed, "--dry-run")
        assert (code, "expected rows to train on" in error) == (2, True), error
    code, output, error = command("data", "distill", "large", "--dry-run", "--json")
    plan = json.loads(output)
    assert (code, plan["known"], server.asked) == (0, 0, []), error
    assert plan["cost_usd"] > 0
    code, output, error = command("data", "distill", "large", "--out", "taught.jsonl")
    assert (code, error.splitlines()[-1]) == (0, "next: harness compare"), error
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

    report = tiny_experiment.run(path, "suites=[]", candidates=("prompt", "own", "taught"))
    paid = {facts.name: facts.rows_cost_usd for facts in report.facts}
    assert paid == {"prompt": 0.0, "own": 0.0, "taught": pytest.approx(manifest["cost_usd"])}
    facts = {fact.name: (fact.n_train, fact.n_taught) for fact in report.facts}
    assert facts["own"][1] == 0
    assert facts["taught"][0] == facts["taught"][1] > 0  # their labels cost what the teacher was paid


@pytest.mark.parametrize(("words", "said"), list_cases("refused_commands.txt", "distill"))
def test_what_cannot_be_asked_is_refused(words, said, server, tiny, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny, server.url)
    tiny_experiment.rows(tmp_path / "p.jsonl", [{"prompt": "Where?"}])
    code, _, error = command("data", "distill", *words.split())
    assert (code, server.asked) == (2, [])
    assert said in error


CANDIDATES = """\
  prompt: {method: base}
  bag: {method: classifier}
  model: {method: reward, params: {r: 2, max_steps: 1, max_length: 200}}
  dpo: {method: dpo, train: made.jsonl}
"""
BY_LENGTH = "def reward(prompts, completions, references):\n    return [len(text) for text in completions]\n"


def open_pairs(folder, tiny, *overrides, candidates=CANDIDATES):
    path = tiny_experiment.write(folder, tiny, candidates)
    target = folder / "suites" / "letters.yaml"
    target.write_text(
        target.read_text().replace("data: {", "truncated_scores: true\n    data: {pairs: pairs.jsonl, ")
    )
    tiny_experiment.rows(folder / "suites" / "pairs.jsonl", tiny_methods.pair_rows(slice(0, 4)))
    tiny_experiment.rows(folder / "made.jsonl", tiny_methods.pair_rows(slice(0, 1)))
    (folder / "by_length.py").write_text(BY_LENGTH)
    return tiny_experiment.session(path, *overrides)


@pytest.fixture(scope="module")
def session(tiny, tmp_path_factory):
    return open_pairs(tmp_path_factory.mktemp("pairs"), tiny)


def pairs_by_length(session, name="prompt", **changes):
    """Make pairs whose longer answer is the better one."""
    mine = str(session.store.folder.parent / "by_length.py")
    drawing = {"samples": 3, "temperature": 1.5, "n_prompts": 6, "rank": mine} | changes
    return make_pairs(session, name, written_rows.Drawing(**drawing), "made.jsonl")


@pytest.fixture(scope="module")
def pairs_result(session):
    return pairs_by_length(session)


def test_the_best_and_the_worst_answer_of_a_prompt_make_a_pair(session, pairs_result):
    rows = rows_of(pairs_result)
    assert len(pairs_result.outcomes) == 6
    assert rows
    prompts = {e.id: e.prompt for e in session.target.items.train}
    for row in rows:
        assert row["prompt"] == prompts[row["id"]]
        assert (row["chosen_score"], row["rejected_score"]) == (len(row["chosen"]), len(row["rejected"]))
        assert row["chosen_score"] > row["rejected_score"]


def test_answers_depend_on_the_seed_alone(session, pairs_result):
    rows = rows_of(pairs_result)
    assert rows_of(pairs_by_length(session)) == rows
    first_rows = rows_of(pairs_by_length(session, n_prompts=3))
    assert first_rows
    assert all(row in rows for row in first_rows)
    assert rows_of(pairs_by_length(session, seed=1)) != rows


def test_the_manifest_says_what_the_pairs_depend_on_and_a_pair_method_reads_them(
    session, pairs_result, tiny, tmp_path
):
    manifest = save(pairs_result.edit, pairs_result.outcomes, tmp_path / "written.jsonl").manifest
    params = manifest["parameters"]
    assert manifest["command"] == "harness pairs make"
    assert (params["candidate"], params["weights"]) == ("prompt", session.source.weights_digest)
    assert (params["samples"], params["temperature"], params["seed"]) == (3, 1.5, 0)
    assert params["rank"].keys() == {"metric", "version"}
    assert params["leak_check"]["contaminated"] == 0
    assert params["leak_check"]["evaluated"] > 12
    assert [entry["file"].rpartition("/")[2] for entry in manifest["inputs"]] == ["train.jsonl"]
    assert manifest["counts"]["read"] == 6
    path = tiny_experiment.write(tmp_path, tiny, "  dpo: {method: dpo, train: written.jsonl}\n")
    (training,) = tiny_experiment.session(path).training.values()
    expected = [row["chosen"] for row in rows_of(pairs_result)]
    assert [pair.references[0] for pair in training.items.pairs] == expected


def test_a_tie_makes_no_pair_and_is_said(session):
    result = pairs_by_length(session, gap=2.0)
    reasons = [outcome.change.reason for outcome in result.outcomes if outcome.change]
    assert "no pair: a tie" in reasons
    assert all(row["chosen_score"] - row["rejected_score"] > 2 for row in rows_of(result))
    with pytest.raises(UserError, match=r"6 prompts, and none gives a pair: a tie \(6\)"):
        pairs_by_length(session, gap=1e6)


@pytest.mark.e2e
def test_a_reward_model_ranks_as_it_was_trained_to_read(session):
    ranking = open_ranking(session, "model")
    examples = session.target.items.train[:3]
    scores = ranking.score(examples, ["late", "money", "late parcel"])
    assert ranking.by["reward"] == "model"
    alone = [
        ranking.score([e], [a])[0] for e, a in zip(examples, ["late", "money", "late parcel"], strict=True)
    ]
    assert scores == pytest.approx(alone, abs=1e-4)  # padding changes nothing
    assert len(set(scores)) == 3


def test_a_judge_of_the_target_ranks(tiny, tmp_path):
    (tmp_path / "helpful.yaml").write_text("criteria: It helps.\nanchors: 0\n")
    with serve_model(Rule(lambda messages: "5" if "\nright\n" in messages[-1]["content"] else "1")) as server:
        with (tmp_path / "helpful.yaml").open("a") as file:
            file.write(f"judge: {{base_url: {server.url}, model: tiny, max_retries: 0}}\n")
        metrics = f"target.metrics=[exact_match, 'judge:{tmp_path / 'helpful.yaml'}']"
        judged = open_pairs(tmp_path, tiny, metrics)
        ranking = open_ranking(judged, "judge:helpful")
        (example, *_) = judged.target.items.train
        assert ranking.score([example, example], ["right", "wrong"]) == [1.0, 0.0]
        assert ranking.by["judge"] == "judge:helpful"


PRICED = "usd_per_million_tokens: {input: 0, output: 1000000}"  # 1 USD per answer of one token


class SeedServer:
    """A server that draws one of five answers by the seed of a request, and grades each by its number."""

    def chat(self, messages, body):
        prompt = messages[-1]["content"]
        if "<answer" in prompt:
            return ServerAnswer(str(1 + int(prompt.rsplit("answer number ", 1)[1][0])))
        return ServerAnswer(f"answer number {body['seed'] % 5}")


@pytest.fixture
def session_and_server(tiny, tmp_path):
    with serve_model(SeedServer()) as server:
        at = f"base_url: {server.url}, model: tiny, max_retries: 0, num_concurrent: 1"
        (tmp_path / "helpful.yaml").write_text(
            f"criteria: It helps.\nanchors: 2\njudge: {{{at}}}\n{PRICED}\n"
        )
        far = f"  far: {{method: endpoint, params: {{{at}, protocol: chat, {PRICED}}}}}\n"
        metrics = f"target.metrics=[exact_match, 'judge:{tmp_path / 'helpful.yaml'}']"
        yield open_pairs(tmp_path, tiny, metrics, candidates=CANDIDATES + far), server


def draw_by_judge(**changes):
    return written_rows.Drawing(samples=3, n_prompts=4, rank="judge:helpful", **changes)


def test_a_making_that_cost_what_is_allowed_goes_on_and_asks_nothing_twice(session_and_server):
    session, server = session_and_server
    with pytest.raises(CandidateFailed, match=r"answers have cost .* and --max-cost is 10"):
        make_pairs(session, "far", draw_by_judge(max_cost=10), "made.jsonl")
    n_drawn = len(server.asked)
    assert n_drawn <= 10
    with pytest.raises(CandidateFailed, match=r"grades have cost .* and --max-cost is"):
        make_pairs(session, "far", draw_by_judge(max_cost=33), "made.jsonl")
    assert 12 < len(server.asked) <= 33
    result = make_pairs(session, "far", draw_by_judge(), "made.jsonl")
    whole = len(server.asked)
    assert whole == result.spent.cost_usd + result.edit.parameters["paid"]["ranking_usd"] + 2, (
        "two anchors were asked about again"
    )
    again = make_pairs(session, "far", draw_by_judge(), "made.jsonl")
    assert (len(server.asked), rows_of(again)) == (whole, rows_of(result))


@pytest.mark.parametrize(
    ("name", "rank", "said"),
    [
        ("prompt", "exact_mach", "did you mean 'exact_match'"),
        ("prompt", "bag", "whose method classifier makes no reward model"),
        ("prompt", "judge:absent", "unknown 'judge:absent'"),
        ("bag", "", "the method classifier, which generates no text"),
        ("model", "", "whose weights answer nothing"),
    ],
)
def test_what_cannot_draw_or_rank_is_refused(session, name, rank, said):
    with pytest.raises(UserError, match=said):
        pairs_by_length(session, name, rank=rank)


def test_the_next_step_names_the_file_of_pairs_as_the_experiments_file_does_and_none_is_written_over(
    session, tmp_path, command
):
    folder = session.store.folder.parent
    config_path = os.path.relpath(folder / "harness.yaml", tmp_path)
    config = ["-c", config_path, "--samples", "2", "--rows", "4", "--temperature", "1.5"]
    config += ["--rank", str(folder / "by_length.py")]
    path = tmp_path / "new.jsonl"
    code, output, step = command("pairs", "make", "prompt", *config, "--out", "new.jsonl")
    assert code == 0
    assert "4 read" in output
    train_path = step.partition("next: train: ")[2].split(" on a candidate")[0]
    assert (folder / train_path).resolve() == path.resolve()
    before = path.read_bytes()
    assert all(json.loads(line)["chosen"] for line in before.splitlines())
    code, _, error = command("pairs", "make", "prompt", *config, "--out", str(path))
    assert (code, path.read_bytes()) == (2, before)
    assert "a file that is there already" in error
    assert command("pairs", "make", "prompt", *config)[0] == 2
    assert "expected 0.01 to 2" in command("pairs", "make", "prompt", *config, "--temperature", "0")[2]
