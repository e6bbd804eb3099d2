"""Local judges: a candidate of an experiment, or a model that judges sixty rows by the command line."""

import csv
import json
import math

import pytest
import tiny_experiment
import tiny_methods
import tiny_model

from harness import store
from harness.config.rubrics import read_rubric
from harness.errors import UserError
from harness.evaluation.judges import judge_messages
from harness.experiment import compare
from harness.experiment.candidate_weights import ensure_weights
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.records import Example
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

LORA = "{method: lora, params: {r: 2, max_steps: 4, learning_rate: 0.05, max_length: 200}}"
HARNESS = """\
name: {name}
base_model: {model}
precision: fp32
device: cpu
target:
  name: replies
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  metrics: [{metrics}]
  max_new_tokens: 4
  truncated_scores: true
candidates:
  prompt: prompt
  lora: {lora}
{more}"""


def write(folder, model, metrics="'judge:./helpful.yaml'", *, judge="", more=""):
    folder.mkdir(exist_ok=True)
    tiny_experiment.write_splits(
        folder, (6, 2, 4), lambda name, i: {"prompt": f"{name} parcel {i}", "reference": "late"}
    )
    path = folder / "harness.yaml"
    path.write_text(HARNESS.format(name=folder.name, model=model, metrics=metrics, lora=LORA, more=more))
    (folder / "helpful.yaml").write_text(f"criteria: It helps.\nscale: yes/no\njudge: {judge}\n")
    return path


def grades(path):
    run_store = Store(path.parent / "runs")
    return {book: store.list_grades(run_store, book) for book in store.read_identities(run_store)}


@pytest.fixture(scope="module")
def grader(wide_model, tmp_path_factory):
    """An experiment whose fine-tune will judge: its path and a function that trains the weights."""
    path = write(tmp_path_factory.mktemp("grader") / "grader", wide_model, "exact_match", judge=wide_model)

    def train():
        session = tiny_experiment.session(path)
        return ensure_weights(session, session.candidates["lora"], 0)

    return path, train


@pytest.mark.e2e
def test_an_own_candidate_is_trained_before_it_judges_and_is_said_to_grade_itself(wide_model, tmp_path):
    path = write(tmp_path / "desk", wide_model, judge="{candidate: lora}")
    report = compare(path)
    run = tiny_experiment.runs_of(path)["lora"]
    ((book, book_grades),) = grades(path).items()
    judge = store.read_identities(Store(path.parent / "runs"))[book]["judge"]
    assert (judge["candidate"], judge["weights"]) == ("lora", run.weights_digest)
    assert {fact.state for fact in report.facts} == {"done"}
    assert all(0 < grade.value < 1 for grade in book_grades)
    (note,) = [text for text in report.notes if "answers of its own weights" in text]
    assert f"lora (weights {run.weights_digest[:8]}) grades answers of its own weights (lora)" in note
    compare(path)
    assert grades(path) == {book: book_grades}


@pytest.mark.e2e
def test_a_candidate_of_another_experiment_judges_by_its_adapter_once_trained(grader, wide_model, tmp_path):
    file, train = grader
    path = write(tmp_path / "desk", wide_model, judge=f"{{candidate: lora, experiment: {file}}}")
    if not any((file.parent / "runs" / "weights").glob("*/fit.json")):
        with pytest.raises(UserError, match=rf"is not trained yet.*harness train lora -c {file}"):
            compare(path)
        assert not (path.parent / "runs").exists()
    weights = train()
    compare(path)
    row = store.read_rows(
        Store(path.parent / "runs"), tiny_experiment.runs_of(path)["prompt"].rows["replies/test"]
    )[0]
    rubric, host = (
        read_rubric(path.parent / "helpful.yaml"),
        ModelHost(resolve(str(wide_model)), tiny_methods.CPU),
    )
    messages = judge_messages(rubric, Example("", ({"role": "user", "content": row.prompt},)), row.text)

    def p_yes(candidate):
        encoded = [candidate.encode(messages, word) for word in ("no", "yes")]
        no_score, yes_score = candidate.loglikelihood([(pair.context, pair.continuation) for pair in encoded])
        return 1 / (1 + math.exp(no_score.logprob - yes_score.logprob))

    with host.use_adapter(weights.folder / "adapter", weights.digest) as tuned:
        assert row.parts["judge:helpful"][0] == pytest.approx(p_yes(tuned), abs=1e-5)
    assert abs(row.parts["judge:helpful"][0] - p_yes(host.base)) > 1e-3


MORE = """\
  bag: {method: classifier}
  swept: {method: lora, params: {r: 2, max_steps: 1}, sweep: {learning_rate: [0.1, 0.01]}}
  far: {method: endpoint, params: {base_url: http://127.0.0.1:9, model: big, protocol: chat}}
"""


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("{candidate: lroa}", r"unknown 'lroa'; expected a candidate of this experiment.*'lora'"),
        ("{candidate: bag}", "bag, whose method classifier makes no language model"),
        ("{candidate: swept}", "a sweep or search of swept, which would hang on its own grades"),
        ("{candidate: far}", r"far, an endpoint; expected a candidate whose weights are here.*base_url"),
        ("{candidate: lora, seed: 1}", r"helpful.yaml:3: found unknown key 'seed'"),
        ("{candidate: lora, experiment: ../no/harness.yaml}", r"helpful.yaml:3: found no folder"),
    ],
)
def test_a_candidate_that_cannot_judge_is_refused_with_the_next_step(wide_model, tmp_path, judge, said):
    path = write(tmp_path / "desk", wide_model, judge=judge, more=MORE)
    with pytest.raises(UserError, match=said):
        tiny_experiment.session(path)
    assert not (path.parent / "runs").exists()


RUNS_HERE = (
    tiny_experiment.DESK
    + """\
  name: replies
  data: {{all: ./replies.jsonl}}
  metrics: [judge:./helpful.yaml, rouge]
  max_new_tokens: 8
  truncated_scores: true
candidates:
  prompt: {{method: base}}
  kind: {{method: base, system: Be kind.}}
"""
)
HERE_RUBRIC = "criteria: The reply answers what was asked.\nscale: {{min: 1, max: 5}}\njudge: {judge}\n"


@pytest.fixture
def desk(tmp_path, tiny):
    """Folder with sixty rows and two files; the judge is the tiny model with a longer context."""
    judge = tiny_model.copy(tiny, tmp_path / "judge", max_position_embeddings=4096)
    rows = [{"prompt": f"Where is parcel {i}{i}?", "reference": f"Parcel {i}{i} is late."} for i in range(60)]
    tiny_experiment.rows(tmp_path / "replies.jsonl", rows)
    (tmp_path / "harness.yaml").write_text(RUNS_HERE.format(model=tiny))
    (tmp_path / "helpful.yaml").write_text(HERE_RUBRIC.format(judge=judge))
    return tmp_path


@pytest.mark.e2e
def test_rows_are_judged_here_labelled_and_decided_on(harness, desk):
    output = " ".join(harness("compare", "--verbose", cwd=desk, check=0).stdout.split())
    assert "answers graded by judge" in output
    assert "could not be read" not in output
    assert "judge:helpful is graded by a judge" in output
    harness("rate", "export", "labels.csv", "--candidates", "prompt,kind", cwd=desk)
    with (desk / "labels.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = [{**row, "label": "3"} for row in csv.DictReader(lines)]
    with (desk / "labels.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    import_result = harness("rate", "import", "labels.csv", "--rater", "ann", "--scale", "1,5", cwd=desk)
    assert f"{len(rows)} labels for judge:helpful by ann" in import_result.stdout
    decision = harness("decide", cwd=desk, check=0)
    assert "is graded by a judge" not in decision.stdout
    facts = json.loads(harness("report", "--json", cwd=desk, check=0).stdout)["facts"]
    assert [fact["target"]["score"] for fact in facts] == pytest.approx([0.5, 0.5]), (
        "people's 3 of 1 to 5 corrects the judge"
    )
