"""lm-eval's tasks by the harness and by lm-eval itself, and our engine in lm-eval's evaluator (tiny model)."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import numpy as np
import pytest
import tiny_experiment
import tiny_hub
import tiny_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from harness import cli, config
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation.lm_eval import bridge, requests, tasks
from harness.evaluation.lm_eval import requests as scores
from harness.evaluation.lm_eval.harness_model import HarnessLM
from harness.experiment import standalone
from harness.lifecycle.release import gate_folders
from harness.models.devices import load_base
from harness.models.hardware import Machine
from harness.models.hf import HFCandidate
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.spec import GatePolicy, Task

pytestmark = pytest.mark.usefixtures("own_cache")


ROOT = Path(__file__).parents[2]
FOLDERS = {
    "arc_easy": "arc", "winogrande": "winogrande", "blimp_causative": "blimp",
    "lambada_openai": "lambada", "gsm8k": "gsm8k", "wikitext": "wikitext",
}  # fmt: skip
TASKS = list(FOLDERS)
HOME = Path(lm_eval.__file__).parent / "tasks"
FP32 = Machine("cpu", "CPU", "fp32", 100.0)


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory):
    """Write the documents once and point all tests to them."""
    folder = tiny_hub.write(tmp_path_factory.mktemp("hub"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_DATASETS_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """Copy of the tiny model with room for 256 generated tokens after a prompt."""
    return tiny_model.copy(tiny, tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=700)


def prepare(model, names, runs, limit=None, shots=None):
    task_specs = standalone.tasks_of(names, limit, shots)
    return standalone.prepare_model(str(model), task_specs, runs, SilentProgress(), precision="fp32")


@pytest.fixture(scope="module")
def our_results(model, tmp_path_factory):
    """Evaluate every task with one shot, unless the task fixes another number."""
    return standalone.evaluate(prepare(model, TASKS, tmp_path_factory.mktemp("ours") / "runs", shots=1))


def ask_lm_eval(model, hub, tasks, **options):
    """Evaluate a model on some tasks by lm-eval, from loading to scoring."""
    manager = TaskManager(include_defaults=False, include_path=[HOME / FOLDERS[task] for task in tasks])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)  # lm-eval finds a folder here instead of a name on the hub
        return lm_eval.simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, num_fewshot=1, bootstrap_iters=0, **options
        )


@pytest.fixture(scope="module")
def hf_lm(model):
    return HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def their_results(hf_lm, hub):
    return ask_lm_eval(hf_lm, hub, TASKS)


def map_by_document(rows):
    return {int(row.example_id.partition("-")[0]): row for row in rows}


@pytest.mark.e2e
@pytest.mark.parametrize("task", TASKS)
def test_every_answer_and_score_is_that_of_lm_eval_itself(our_results, their_results, task):
    rows = map_by_document(our_results.rows[task])
    samples = their_results["samples"][task]
    for sample in samples:
        row = rows[sample["doc_id"]]
        assert row.example_id.endswith(sample["doc_hash"][:12])
        for metric in sample["metrics"]:
            name = metric if metric in row.parts else f"{metric},{sample['filter']}"
            assert row.parts[name] == pytest.approx(np.atleast_1d(sample[metric]), abs=2e-3)
    assert len(rows) == 6
    results = {k: v for k, v in their_results["results"][task].items() if "," in k and "stderr" not in k}
    our_scores = {score.metric: score.estimate.score for score in our_results.scores if score.task == task}
    assert {k.removesuffix(",none"): pytest.approx(v, rel=1e-3) for k, v in results.items()} == our_scores


@pytest.mark.e2e
def test_generated_texts_and_shots_are_those_of_lm_eval_itself(our_results, their_results):
    rows = map_by_document(our_results.rows["gsm8k"])
    samples = [s for s in their_results["samples"]["gsm8k"] if s["filter"] == "strict-match"]
    assert {s["doc_id"]: s["resps"][0][0] for s in samples} == {i: r.text for i, r in rows.items()}
    assert {s["doc_id"]: s["arguments"][0][0] for s in samples} == {i: r.prompt for i, r in rows.items()}
    shots = {s.task: s.num_fewshot for s in our_results.scores}
    assert shots == dict.fromkeys(TASKS, 1) | {"blimp_causative": 0}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds_bos"])
def encoders(request, tiny, tmp_path_factory):
    """Our candidate and lm-eval's model on one tokenizer, which may add a BOS token."""
    folder = tiny
    if request.param:
        folder = tiny_model.build(tmp_path_factory.mktemp("bos"), adds_bos=True)
    base, tokenizer = load_base(resolve(str(folder)), FP32)
    return HFCandidate(base, tokenizer, "w", "packed"), HFLM(pretrained=base, tokenizer=tokenizer)


PART = st.text(st.sampled_from("aeb \n\t.Zé"), max_size=6)
TEXT = st.tuples(PART, st.sampled_from("aeb.Zé"), PART).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(context="Where is my par", continuation="cel")
@given(context=TEXT, continuation=TEXT)
def test_a_pair_becomes_the_token_ids_of_lm_eval_and_is_flagged_where_they_merge_its_texts(
    encoders, context, continuation
):
    ours, theirs = encoders
    pair = SimpleNamespace(request_type="loglikelihood", args=(context, continuation))
    encoded = requests.encode_requests(ours, [pair])[0]
    assert (list(encoded.context), list(encoded.continuation)) == theirs._encode_pair(context, continuation)
    context_ids, all_ids = theirs.tok_encode(context.rstrip()), theirs.tok_encode(context + continuation)
    assert encoded.merged == (all_ids[: len(context_ids)] != context_ids)
    text = ours.tokenizer.decode((*encoded.context, *encoded.continuation), skip_special_tokens=True)
    assert encoded.merged or text == context + continuation


@given(ids=st.lists(st.integers(1, 9), min_size=1, max_size=40), length=st.integers(2, 12))
def test_a_long_text_is_cut_into_the_windows_of_lm_eval(ids, length):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    windows = [(list(w.context), list(w.continuation)) for w in requests.windows(ids, 0, length)]
    assert windows == [*map(make_disjoint_window, get_rolling_token_windows(ids, 0, length, 1))]


LOGPROB, SIZE = st.floats(-20, 0), st.integers(1, 30)
LABELS = st.tuples(st.integers(0, 1), st.integers(0, 1))
VALUES = {
    "mean": st.floats(0, 1), "perplexity": LOGPROB, "weighted_perplexity": st.tuples(LOGPROB, SIZE),
    "bits_per_byte": st.tuples(LOGPROB, SIZE), "f1": LABELS, "matthews_corrcoef": LABELS,
    "brier_score": st.tuples(st.integers(0, 2), st.just((0.2, 0.5, 0.3))),
}  # fmt: skip


@pytest.mark.parametrize("aggregation", VALUES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_aggregate_gives_what_that_of_lm_eval_gives(aggregation, data):
    from lm_eval.api.registry import get_aggregation

    values = data.draw(st.lists(VALUES[aggregation], min_size=2, max_size=8))
    score = scores.Score("x", "x", "none", aggregation, True)
    parts = np.array([scores.parts_of(score, v) for v in values])
    expected = float(get_aggregation(aggregation)(values))
    assert scores.metric_of(score).aggregate(parts, np.ones(len(values))) == pytest.approx(expected, abs=1e-9)


def test_a_group_is_one_task(model, tmp_path):
    evaluation = standalone.evaluate(prepare(model, ["ai2_arc"], tmp_path / "runs"))
    acc = {score.part: score.estimate for score in evaluation.scores if score.metric == "acc"}
    assert {part: estimate.n for part, estimate in acc.items()} == {"": 10, "arc_challenge": 4, "arc_easy": 6}
    pooled = (4 * acc["arc_challenge"].score + 6 * acc["arc_easy"].score) / 10
    assert acc[""].score == pytest.approx(pooled)
    assert list(standalone.to_json(evaluation)["results"]) == ["ai2_arc", "arc_challenge", "arc_easy"]


def load_tasks(*names, **keys):
    task_specs = [Task.model_validate({"lm_eval": name, **keys}) for name in names]
    return bridge.load(task_specs, tasks.datasets_folder(None))


def test_all_problems_of_all_tasks_are_said_at_once():
    with pytest.raises(UserError) as error:
        load_tasks("arc_easi", "winogrand")
    expected = ["did you mean 'arc_easy'?", "did you mean 'winogrande'?"]
    assert [problem.next_step.partition(";")[0] for problem in error.value.problems] == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mmlu", "mmlu_.*: .*BuilderConfig .* not found"),
        ("piqa", "no copy in .* and the hub did not give baber/piqa"),
        ("gsm8k", "several scores that could decide: 'exact_match,strict-match', 'exact_match,flexible-ext"),
        ("ifeval", "without the nltk data punkt_tab"),
    ],
)
def test_what_keeps_a_task_from_being_asked_is_said(name, said):
    with pytest.raises(UserError, match=said):
        load_tasks(name)


SUITE = """\
name: catalogue
role: capability
tasks:
  - blimp_causative
  - {lm_eval: arc_easy, limit: 4, chance: 0.1, margin: 0.1}
"""


def write_experiment(folder, tiny, suite=SUITE):
    path = tiny_experiment.write(folder, tiny, "  prompt: {method: base}\n")
    (folder / "suites" / "general.yaml").write_text(suite)
    return path


@pytest.mark.e2e
def test_a_suite_names_tasks_of_lm_eval_and_compare_asks_them(tmp_path, tiny):
    report = tiny_experiment.run(write_experiment(tmp_path, tiny))
    (facts,) = report.facts
    assert facts.state == "done"
    assert facts.verdict.outcome in ("pass", "inconclusive")
    assert not {"blimp_causative", "arc_easy"} - set(report.not_admitted) or facts.verdict.macro


def test_a_training_row_that_a_document_repeats_is_refused(tmp_path, tiny):
    path = write_experiment(tmp_path, tiny)
    rows = tmp_path / "suites" / "letters" / "train.jsonl"
    question = tiny_hub.minimal_pairs(1)[0]["sentence_good"].upper()
    rows.write_text(rows.read_text() + json.dumps({"prompt": question, "reference": "late"}) + "\n")
    with pytest.raises(UserError, match=r"the question of blimp_causative item 0-.* too"):
        tiny_experiment.run(path)


def test_the_standard_suite_is_read_offline_and_lm_eval_knows_its_tasks():
    suite = next(s for s in config.read_suites(ROOT / "suites") if s.name == "standard")
    known_tasks = tasks.names()
    assert {task.lm_eval for task in suite.tasks} <= set(known_tasks)
    assert len(suite.tasks) == 12
    assert all(task.margin for task in suite.tasks)


def load_changed(name, hub, overrides, *, trusted=False):
    (member,) = tasks.members(name, "t")
    return tasks.load(member._replace(overrides=overrides), None, hub, trusted=trusted, where="task t")


def test_a_data_set_with_code_of_its_own_or_sampled_answers_is_refused(hub):
    with_code = {"dataset_kwargs": {"trust_remote_code": True}}
    with pytest.raises(UserError, match="write trust_remote_code: true"):
        load_changed("arc_easy", hub, with_code)
    assert load_changed("arc_easy", hub, with_code, trusted=True).task_name == "arc_easy"
    with_sampling = {"generation_kwargs": {"do_sample": True, "temperature": 0.7, "until": ["Q"]}}
    with pytest.raises(UserError, match="whose answers are sampled"):
        load_changed("gsm8k", hub, with_sampling)


def test_a_changed_copy_of_a_data_set_is_read_anew(hub, tmp_path):
    shutil.copytree(hub, tmp_path / "hub")
    (test_file,) = (tmp_path / "hub" / "allenai" / "ai2_arc" / "ARC-Easy").glob("test*")
    first_line, *_ = test_file.read_text().splitlines(keepends=True)
    n_documents = len(load_changed("arc_easy", hub, {}).eval_docs)
    test_file.write_text(first_line)
    changed = load_changed("arc_easy", tmp_path / "hub", {})
    assert len(changed.eval_docs) == 1 < n_documents
    assert str(tmp_path) not in tasks.definition(changed)
    assert tasks.definition(changed) == tasks.definition(load_changed("arc_easy", hub, {}))


def test_a_metric_that_is_no_sum_over_items_is_left_out_and_said(hub):
    metrics = [{"metric": "acc", "aggregation": "median", "higher_is_better": True}, {"metric": "acc_norm"}]
    kept_scores, left_out = scores.scores_of(load_changed("arc_easy", hub, {"metric_list": metrics}))
    assert [score.name for score in kept_scores] == ["acc_norm"]
    assert "acc is left out: lm-eval aggregates it by median" in left_out[0]


def run_cli(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.mark.e2e
def test_eval_prints_a_table_and_writes_results_and_samples(model, tmp_path):
    out_folder, runs = tmp_path / "out", tmp_path / "runs"
    result = run_cli(
        "eval", model, "-t", "blimp_causative,lambada_openai", "-L", 3, "-o", out_folder, "-s", "--runs", runs
    )
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:3] for line in lines if line[0] == "blimp_causative"] == [["blimp_causative", "0", "acc"]]
    results = json.loads((out_folder / "results.json").read_text())["results"]
    expected = {"blimp_causative": ["acc"], "lambada_openai": ["acc", "perplexity"]}
    assert {task: sorted(metrics) for task, metrics in results.items()} == expected
    rows = (out_folder / "samples_blimp_causative.jsonl").read_text().splitlines()
    assert [json.loads(row)["task"] for row in rows] == ["blimp_causative"] * 3


@pytest.fixture(scope="module")
def log_folder(our_results, tmp_path_factory):
    """Write the results with every item's row."""
    folder = tmp_path_factory.mktemp("written")
    standalone.write(our_results, folder, log_samples=True)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("task", TASKS)
def test_written_samples_are_those_that_lm_eval_logs(log_folder, their_results, task):
    known_samples = {(s["doc_id"], s["filter"]): s for s in their_results["samples"][task]}
    lines = [json.loads(line) for line in (log_folder / f"samples_{task}.jsonl").read_text().splitlines()]
    assert {(line["doc_id"], line["filter"]) for line in lines} == known_samples.keys()
    for line in lines:
        sample = known_samples[line["doc_id"], line["filter"]]
        equal_keys = ("target", "metrics", "doc_hash", "prompt_hash", "target_hash")
        assert {key: line[key] for key in equal_keys} == {key: sample[key] for key in equal_keys}
        arguments = [list(request.values()) for request in line["arguments"].values()]
        assert arguments == json.loads(json.dumps(sample["arguments"], default=str))


@pytest.mark.e2e
def test_the_gate_reads_what_eval_wrote_and_refuses_a_copy_of_it_and_another_precision(log_folder, tmp_path):
    rates = shutil.ignore_patterns("*wikitext*")  # which has no rate for the gate to judge
    base, new = (shutil.copytree(log_folder, tmp_path / name, ignore=rates) for name in ("base", "new"))
    n = 6 * len(TASKS[:-1])
    with pytest.raises(UserError, match=f"the answers of --base .* again, the same in all of {n} items"):
        gate_folders(base, new, GatePolicy())
    results = json.loads((new / "results.json").read_text())
    (new / "results.json").write_text(json.dumps({**results, "precision": "bf16"}))
    with pytest.raises(IncompatibleRuns, match="differ in precision: 'fp32' and 'bf16'"):
        gate_folders(base, new, GatePolicy())


@pytest.mark.e2e
def test_a_candidates_name_means_its_weights_in_the_precision_that_is_named(tmp_path, tiny):
    path = write_experiment(tmp_path, tiny)
    result = run_cli("eval", "prompt", "-t", "blimp_causative", "-c", path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "prompt"
    assert (tmp_path / "runs" / "rows").is_dir()
    words = ("-t", "blimp_causative", "-c", path, "--json", "--precision", "bf16")
    assert json.loads(run_cli("eval", "prompt", *words).stdout)["precision"] == "bf16"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-L", "3"], "found --limit without --tasks"),
        (["-t", "arc_easy", "-s"], "found --log-samples without a folder"),
        (["a.b=1", "-t", "arc_easy"], "found a.b=1, and a model that is not a candidate"),
        (["--engine", "vllm"], "found --engine without --tasks"),
    ],
)
def test_what_eval_cannot_do_is_said(tmp_path, words, said):
    result = run_cli("eval", "smollm2-135m", *words, "-c", tmp_path / "harness.yaml")
    assert said in str(result.exception)


@pytest.fixture(scope="module")
def harness_lm(model, own_cache):
    return HarnessLM(str(model), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def both_samples(harness_lm, hub, their_results):
    names = ["arc_easy", "wikitext", "gsm8k"]
    return [ask_lm_eval(harness_lm, hub, names)["samples"], their_results["samples"]]


def likelihoods(samples):
    """Return every log-likelihood of a task's samples and whether its text was the greedy one."""
    responses = [r if isinstance(r, tuple) else (r, False) for s in samples for r in s["filtered_resps"]]
    return np.array([logprob for logprob, _ in responses]), [greedy for _, greedy in responses]


@pytest.mark.e2e
@pytest.mark.parametrize("task", ["arc_easy", "wikitext"])
def test_every_likelihood_is_that_of_lm_evals_own_model(both_samples, task):
    (ours, greedy), (expected, expected_greedy) = (likelihoods(samples[task]) for samples in both_samples)
    assert ours == pytest.approx(expected, abs=1e-3)
    assert greedy == expected_greedy
    assert len(ours) >= 2


@pytest.mark.e2e
def test_every_generated_text_is_that_of_lm_evals_own_model(both_samples):
    our_texts, expected = ([sample["resps"] for sample in samples["gsm8k"]] for samples in both_samples)
    assert our_texts == expected
    assert any(text for ((text,),) in our_texts)
