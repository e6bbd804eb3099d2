"""A whole model made elsewhere is judged against the experiment's base, and refused where it cannot stand in its place."""

import shutil

import pytest
import tiny_experiment
import tiny_model
from tiny_experiment import runs_of

from harness import store
from harness.errors import UserError
from harness.models.hub import resolve
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")


def candidates(folder, more=""):
    return f"  prompt: {{method: base}}\n  theirs: {{method: model, path: {folder}}}\n{more}"


@pytest.fixture(scope="module")
def both_folders(tiny, tmp_path_factory):
    from transformers import AutoTokenizer

    tuned = tiny_model.train_adapter(tiny)
    adapter, whole = (tmp_path_factory.mktemp(name) for name in ("adapter", "merged"))
    tuned.save_pretrained(adapter)
    tuned.merge_and_unload().save_pretrained(whole)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(whole)
    return adapter, whole


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, both_folders, tmp_path_factory):
    adapter, whole = both_folders
    more = f"  adapted: {{method: adapter, path: {adapter}}}\n"
    path = tiny_experiment.write(tmp_path_factory.mktemp("both"), tiny, candidates(whole, more))
    return path, tiny_experiment.run(path)


def fact(found, name):
    return next(f for f in found.facts if f.name == name)


def nats(path, name):
    rows = store.read_rows(Store(path.parent / "runs"), runs_of(path)[name].rows["prose/test"])
    return [row.gold_logprob for row in rows]


def test_a_merged_adapter_is_a_fine_tune_with_the_log_likelihoods_of_the_adapter(file_and_report):
    path, _ = file_and_report
    assert nats(path, "theirs") == pytest.approx(nats(path, "adapted"), abs=1e-4)
    assert nats(path, "theirs") != pytest.approx(nats(path, "prompt"), abs=1e-2)
    path, found = file_and_report
    runs = runs_of(path)
    assert runs["theirs"].base_digest == runs["prompt"].weights_digest != runs["theirs"].weights_digest
    assert fact(found, "theirs").trained
    assert fact(found, "theirs").training_cost_usd == 0
    assert fact(found, "theirs").vs_untrained is not None, "it is none of the untrained"


@pytest.mark.e2e
def test_a_copy_of_the_base_is_judged_by_test_and_never_by_identity(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    path = tiny_experiment.write(tmp_path / "work", tiny, candidates(tmp_path / "copy"))
    found = tiny_experiment.run(path)
    assert {c.estimator for c in found.comparisons["theirs"]} & {"identical"} == set()
    assert {c.delta for c in found.comparisons["theirs"]} == {0.0}


@pytest.mark.e2e
def test_a_model_made_elsewhere_that_forgot_is_stopped_by_the_gate(tiny, tmp_path):
    other = tiny_model.build(tmp_path / "other", seed=5)
    path = tiny_experiment.write(tmp_path / "work", tiny, candidates(other))
    sums = [sum_of(n) for n in range(60)]
    tiny_experiment.rows(tmp_path / "work/suites/general/sums.jsonl", sums)
    tiny_experiment.run(path, candidates=("prompt",))
    answers = store.read_rows(Store(path.parent / "runs"), runs_of(path)["prompt"].rows["sums/test"])
    known = {row.example_id: row.text for row in answers}
    right = [row | {"reference": known[row["id"]]} for row in sums]  # what the base says is what it knows
    tiny_experiment.rows(tmp_path / "work/suites/general/sums.jsonl", right)
    verdict = fact(tiny_experiment.run(path), "theirs").verdict
    assert verdict.outcome == "fail"
    assert verdict.macro.score < -0.3


def sum_of(n):
    choices = [str(n + 1), str(n + 2), str(n + 3)]
    return {"id": f"s-{n}", "prompt": f"One and {n} make", "reference": choices[0], "choices": choices}


@pytest.mark.e2e
def test_a_model_with_more_tokens_than_the_base_answers_all_items(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<tool>"])
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "grown")
    found = tiny_experiment.run(tiny_experiment.write(tmp_path / "work", tiny, candidates("../grown")))
    assert (fact(found, "theirs").state, fact(found, "theirs").error) == ("done", "")


def refusal(tiny, tmp_path, folder, more=""):
    path = tiny_experiment.write(tmp_path / "work", tiny, candidates(folder, more))
    with pytest.raises(UserError) as caught:
        tiny_experiment.run(path)
    assert not (tmp_path / "work" / "runs").exists()
    return str(caught.value)


def test_a_model_without_a_tokenizer_is_refused_with_the_line_that_saves_one(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "bare")
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template*"), *folder.glob("special*")]:
        file.unlink()
    said = refusal(tiny, tmp_path, folder)
    assert "without a tokenizer" in said
    assert f".save_pretrained('{folder}')" in said


def test_a_pickled_base_is_refused_with_the_lines_that_save_it_again(tiny, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    said = refusal(folder, tmp_path, tiny)
    assert f"base_model {folder}: found {folder} with pickled weights, which can run code" in said
    exec(said.partition("where you trust them: ")[2])
    assert resolve(str(folder)).n_parameters == resolve(str(tiny)).n_parameters


def test_other_weights_as_base_model_are_refused_until_it_is_said_what_they_are(tiny, both_folders, tmp_path):
    more = f"  other: {{method: base, base_model: {both_folders[1]}}}\n"
    said = refusal(tiny, tmp_path, both_folders[1], more)
    assert "other weights of the architecture" in said
    assert "role: baseline" in said
