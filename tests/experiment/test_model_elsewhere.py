"""Bases and models from elsewhere: each is judged against its own base or refused."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from fake_rows import EXACT, LOWER, rows
from tiny_experiment import fact_of, runs_of

from harness import report, store
from harness.errors import UserError
from harness.experiment import compare, refuse_many
from harness.experiment.run_remarks import _note_unswept
from harness.experiment.trials import mean_score
from harness.models.hub import resolve
from harness.spec import Recipe
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")


def candidates(folder, more=""):
    return f"  prompt: {{method: base}}\n  theirs: {{method: model, path: {folder}}}\n{more}"


@pytest.fixture(scope="module")
def both_folders(tiny, tmp_path_factory):
    from transformers import AutoTokenizer

    tuned_model = tiny_model.train_adapter(tiny)
    adapter, merged = (tmp_path_factory.mktemp(name) for name in ("adapter", "merged"))
    tuned_model.save_pretrained(adapter)
    tuned_model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(merged)
    return adapter, merged


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, both_folders, tmp_path_factory):
    adapter, merged = both_folders
    adapter_candidate = f"  adapted: {{method: adapter, path: {adapter}}}\n"
    path = tiny_experiment.write(tmp_path_factory.mktemp("both"), tiny, candidates(merged, adapter_candidate))
    return path, tiny_experiment.run(path)


def nats(path, name):
    rows = store.read_rows(Store(path.parent / "runs"), runs_of(path)[name].rows["prose/test"])
    return [row.gold_logprob for row in rows]


def test_a_merged_adapter_is_a_fine_tune_with_the_log_likelihoods_of_the_adapter(file_and_report):
    path, result = file_and_report
    assert nats(path, "theirs") == pytest.approx(nats(path, "adapted"), abs=1e-4)
    assert nats(path, "theirs") != pytest.approx(nats(path, "prompt"), abs=1e-2)
    runs = runs_of(path)
    assert runs["theirs"].base_digest == runs["prompt"].weights_digest != runs["theirs"].weights_digest
    assert fact_of(result, "theirs").trained
    assert fact_of(result, "theirs").training_cost_usd == 0
    assert fact_of(result, "theirs").vs_untrained is not None, "it is none of the untrained"


@pytest.mark.e2e
def test_a_model_with_more_tokens_than_the_base_answers_all_items(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<tool>"])
    model.resize_token_embeddings(len(tokenizer))
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "grown")
    path = tiny_experiment.write(tmp_path / "work", tiny, candidates("../grown"))
    result = tiny_experiment.run(path, "suites=[]", candidates=("theirs",))
    assert (fact_of(result, "theirs").state, fact_of(result, "theirs").error) == ("done", "")


def refusal(folder, model, candidates, **options):
    path = tiny_experiment.write(folder, model, candidates, **options)
    with pytest.raises(UserError) as caught:
        tiny_experiment.run(path)
    assert not (folder / "runs").exists()
    return str(caught.value)


def test_a_model_without_a_tokenizer_is_refused_with_the_line_that_saves_one(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "bare")
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template*"), *folder.glob("special*")]:
        file.unlink()
    problem = refusal(tmp_path / "work", tiny, candidates(folder))
    assert "without a tokenizer" in problem
    assert f".save_pretrained('{folder}')" in problem


def test_a_pickled_base_is_refused_with_the_lines_that_save_it_again(tiny, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    problem = refusal(tmp_path / "work", folder, candidates(tiny))
    assert f"base_model {folder}: found {folder} with pickled weights, which can run code" in problem
    exec(problem.partition("where you trust them: ")[2])
    assert resolve(str(folder)).n_parameters == resolve(str(tiny)).n_parameters


def test_other_weights_as_base_model_are_refused_until_it_is_said_what_they_are(tiny, both_folders, tmp_path):
    other_candidate = f"  other: {{method: base, base_model: {both_folders[1]}}}\n"
    problem = refusal(tmp_path / "work", tiny, candidates(both_folders[1], other_candidate))
    assert "other weights of the architecture" in problem
    assert "role: baseline" in problem


CANDIDATES = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.05}}
  qlora: {method: qlora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.05}}
  plain: {weights_of: qlora, serve_on: bf16}
  dpo: {method: dpo, init_from: lora, params: {learning_rate: 0.05}}
  full: {method: full, params: {num_train_epochs: 1, learning_rate: 0.01}}
  other: {method: base, base_model: ./other, role: baseline}
  theirs: {method: lora, base_model: ./other, params: {r: 2, num_train_epochs: 1, learning_rate: 0.05}}
  swept: {method: lora, params: {r: 2, num_train_epochs: 1}, sweep: {learning_rate: [1.0e-5, 0.05]}}
"""


@pytest.fixture(scope="module")
def bases_report(tiny, own_cache, tmp_path_factory):
    """Experiment with every source of weights: its file and its report."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_model.build(folder / "other", seed=5)
    path = tiny_experiment.write(folder, tiny, CANDIDATES, pairs=tiny_methods.pair_rows(slice(0, 5)))
    return path, tiny_experiment.run(path)


def change(comparisons, task):
    primary = ("accuracy", "contains", "bits_per_byte")
    return next(row.delta for row in comparisons if row.task == task and row.metric in primary)


@pytest.mark.e2e
def test_every_candidate_is_done_and_a_second_compare_computes_nothing(bases_report):
    assert {(fact.name, fact.state, fact.error) for fact in bases_report[1].facts} == {
        (name, "done", "") for name in ("prompt lora qlora plain dpo full other theirs swept").split()
    }
    path, result = bases_report
    times_before = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*.parquet")}
    first_json, second_json = (report.to_json(r) for r in (result, tiny_experiment.run(path)))
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*.parquet")} == times_before
    assert {k for k in first_json if first_json[k] != second_json[k]} <= {"header"}


@pytest.mark.e2e
def test_qlora_and_its_adapter_on_the_plain_base_are_two_candidates_of_one_training(bases_report):
    runs = runs_of(bases_report[0])
    assert runs["qlora"].training.fit_key == runs["plain"].training.fit_key
    assert runs["qlora"].weights_digest != runs["plain"].weights_digest
    assert runs["qlora"].base_digest == runs["plain"].base_digest == runs["prompt"].weights_digest
    assert runs["qlora"].served_digest not in ("", runs["qlora"].base_digest)
    assert runs["plain"].served_digest == ""


@pytest.mark.e2e
def test_the_change_of_qlora_is_split_and_the_parts_add_up_to_what_the_gate_sees(bases_report):
    result = bases_report[1]
    quantisation, training = result.steps["qlora"]
    assert (quantisation.what, training.what) == ("quantisation", "training")
    for task in ("sums", "facts", "prose"):
        total_change = change(result.comparisons["qlora"], task)
        assert change(quantisation.tasks, task) + change(training.tasks, task) == pytest.approx(total_change)
    assert change(quantisation.tasks, "prose") != 0
    step_sum = quantisation.macro.score + training.macro.score if quantisation.macro else None
    assert step_sum == pytest.approx(fact_of(result, "qlora").verdict.macro.score)
    assert "plain" not in result.steps


@pytest.mark.e2e
def test_each_is_measured_against_its_own_base_and_what_it_starts_from(bases_report):
    path, result = bases_report
    (step,) = result.steps["dpo"]
    assert (step.new, step.base, step.what) == ("dpo", "lora", "training on pairs")
    scores = [fact_of(result, name).target.score for name in ("dpo", "lora")]
    assert step.target.delta == pytest.approx(scores[0] - scores[1])
    runs = runs_of(path)
    assert runs["dpo"].training.init_wall_s == runs["lora"].training.wall_s
    assert fact_of(result, "dpo").n_train == 30 + 24  # a fifth of the pairs is held out
    assert runs["theirs"].base_digest == runs["other"].weights_digest != runs["prompt"].weights_digest
    comparison = next(c for c in result.comparisons["theirs"] if c.metric == "bits_per_byte")
    rows = store.read_rows(Store(path.parent / "runs"), runs["other"].rows["prose/test"])
    nats = sum(-row.gold_logprob for row in rows)
    bits_per_byte = nats / sum(row.gold_bytes for row in rows) / math.log(2)
    assert comparison.base == pytest.approx(bits_per_byte, rel=1e-6)
    assert fact_of(result, "other").trained is False
    assert f"theirs: made from {path.parent / 'other'}, and measured against that" in result.notes


@pytest.mark.e2e
def test_the_best_trial_on_validation_is_the_candidate_and_the_report_says_which_rates_were_not_swept(
    bases_report,
):
    path, result = bases_report
    training = runs_of(path)["swept"].training
    trials = training.sweep
    assert all(len(trial.loss) > 1 for trial in trials), "the curves of all trials are kept"
    assert [t.params["learning_rate"] for t in trials] == [1e-5, 0.05]
    ranks = [(t.validation, -t.best_validation_loss) for t in trials]
    assert [t.chosen for t in trials] == [rank == max(ranks) for rank in ranks]
    assert training.wall_s == pytest.approx(sum(t.wall_s for t in trials), abs=0.01)
    assert "## Sweep: swept" in report.markdown(report.experiment_document(result))
    unswept_note = next(note for note in bases_report[1].notes if note.startswith("learning rate not swept"))
    unswept_names = unswept_note.removeprefix("learning rate not swept: ").partition(";")[0].split(", ")
    assert sorted(unswept_names) == ["dpo", "full", "qlora", "theirs"]


def test_a_training_at_another_familys_rate_is_no_sweep():
    def recipe(family, rate):
        return Recipe(method="peft", params={"peft_type": family, "learning_rate": rate})

    recipes = {"vera": recipe("VERA", 0.01), "ia3": recipe("IA3", 0.1), "lower": recipe("IA3", 0.05)}
    study = SimpleNamespace(experiment=SimpleNamespace(candidates=recipes))
    training = SimpleNamespace(loss=((1, 2.0),))
    runs = [SimpleNamespace(candidate=n, base_digest="", method="peft", training=training) for n in recipes]
    assert [*_note_unswept(study, runs)] == ["learning rate not swept: vera; another one may do better"]


def test_answers_that_failed_score_worst_in_a_trial():
    half_right = [1.0, 0.0, 1.0, 0.0]
    assert mean_score(EXACT, rows(half_right)) == pytest.approx(0.5)
    assert mean_score(EXACT, rows([1.0, None, 1.0, None])) == pytest.approx(0.5), "it was 1.0"
    assert mean_score(EXACT, rows([None] * 3)) == 0.0
    assert mean_score(LOWER, rows([0.0, None], LOWER)) == pytest.approx(0.5), "1 is the worst error rate"


def test_more_than_64_candidates_need_a_yes(tiny, own_cache, tmp_path):
    from harness import config

    rates = ", ".join(f"{n}.0e-5" for n in range(1, 66))
    grid = f"  lora: {{method: lora, params: {{learning_rate: [{rates}]}}}}\n"
    path = tiny_experiment.write(tmp_path, tiny, grid)
    with pytest.raises(UserError, match=r"65 candidates; expected at most 64.*--yes"):
        compare(path)
    refuse_many(config.load(path), yes=True)
    refuse_many(config.load(path, candidates=["lora[learning_rate=1e-05]"]), yes=False)


BROKEN = """\
  prompt: {method: base}
  bag: {method: classifier}
  other: {method: base, base_model: ./broken, role: baseline}
  theirs: {method: lora, base_model: ./broken, params: {r: 2, num_train_epochs: 1}}
"""


@pytest.mark.e2e
def test_a_base_that_cannot_be_loaded_ends_what_is_made_of_it_and_nothing_else(tiny, own_cache, tmp_path):
    config_file = tiny_model.build(tmp_path / "broken", seed=6) / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"model_type": "not_yet_made"}))
    result = tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, BROKEN))
    expected = {"prompt": "done", "bag": "done", "other": "failed", "theirs": "failed"}
    assert {fact.name: fact.state for fact in result.facts} == expected
    errors = {fact.error for fact in result.facts if fact.state == "failed"}
    assert len(errors) == 1
    assert "not_yet_made" in errors.pop()
