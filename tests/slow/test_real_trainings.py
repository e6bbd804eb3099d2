"""Methods and regularizers that no other test trains on the embedded model: each runs, reopens and answers.

Every training keeps its row in `reports/real_trainings.md`. Two nights evaluate such a fine-tune again.
"""

import itertools
import json
import math
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import few_general_tasks
import pytest
import real_trainings_page
import tiny_experiment
import tracked_runs

import harness
from harness import store
from harness.data.row_traits import RULES
from harness.models import hub
from reports.studies import rlhf
from tests import ten_kinds

pytestmark = pytest.mark.weekly

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "reports" / "real_trainings.json"
OF_STEP = "per_device_train_batch_size: 4, warmup_steps: 0"
LOOP = f"max_steps: 4, {OF_STEP}"
DRAWN = f"max_steps: 2, {OF_STEP}, r: 8, num_generations: 4, max_completion_length: 12, learning_rate: 1.0e-4"
TRAININGS = {
    "spectrum": f"{{method: spectrum, params: {{share: 0.1, {LOOP}}}}}",
    "bottleneck": f"{{method: bottleneck, track: {{points: 2, items: 4}}, params: {{{LOOP}}}}}",
    "grpo": f"{{method: grpo, reward: chrf, params: {{{DRAWN}}}}}",
    "rloo": f"{{method: rloo, reward: chrf, params: {{{DRAWN}}}}}",
    "kto": f"{{method: kto, params: {{r: 8, learning_rate: 1.0e-4, {LOOP}}}}}",
    "embedding": "{method: embedding}",
    "ewc": f"{{method: lora, params: {{r: 8, {LOOP}}}, "
    "regularize: {ewc: {strength: 10, rows: 8, data: general.jsonl}}}",
    "sam": f"{{method: lora, params: {{r: 8, {LOOP}}}, regularize: {{sam: {{rho: 0.05}}}}}}",
}
WITHOUT_LOSS = ("embedding",)  # fitted by scikit-learn
N_TEST = 8

TARGET = """\
name: desk
tasks:
  - name: desk
    data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl, pairs: pairs.jsonl}
    metrics: [token_f1, exact_match]
    system: "Sort messages by what is unsolved: 'queue: returns, delivery, billing or repairs | tone: calm or upset'."
    max_new_tokens: 12
"""
EXPERIMENT = """\
name: trainings
precision: fp32
device: cpu
target: desk.yaml
suites: [general.yaml]
report_to: [tensorboard, mlflow, wandb]
candidates:
  prompt: {{method: base}}
  own: {own}
"""


def write(folder: Path, candidate: str, **n_rows: int | None) -> Path:
    for split, n in ({"train": 16, "validation": 4, "test": N_TEST} | n_rows).items():
        behaviour_rows = (row for row in read(split) if row["slice"] == "behaviour")
        tiny_experiment.rows(folder / f"{split}.jsonl", [*itertools.islice(behaviour_rows, n)])
    tiny_experiment.rows(folder / "pairs.jsonl", read("pairs")[:16])
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima"}
    general = [
        {"prompt": f"What is the capital of {country}?", "reference": f"The capital of {country} is {city}."}
        for country, city in capitals.items()
    ]
    tiny_experiment.rows(folder / "general.jsonl", general)
    few_general_tasks.write(folder, {"prose_text": 2})
    (folder / "desk.yaml").write_text(TARGET)
    (folder / "harness.yaml").write_text(EXPERIMENT.format(own=candidate))
    return folder / "harness.yaml"


def read(split: str) -> list[dict]:
    lines = (ROOT / "suites" / "support" / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def facts(report):
    return {fact.name: fact for fact in report.facts}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_on_the_embedded_model_is_tracked_opened_again_and_answers(
    name, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path, start = write(tmp_path, TRAININGS[name]), time.perf_counter()
    first = facts(harness.compare(path, ["target.data.limits={test: 4}"]))["own"]
    assert first.state == "done", first.error
    training = first.training
    loss = [value for _, value in training.loss]
    assert all(map(math.isfinite, loss))
    assert bool(loss) == (name not in WITHOUT_LOSS)
    if loss:
        assert f"max_steps: {training.n_steps}" in TRAININGS[name]
        assert training.n_trainable > 0
    if "reward: " in TRAININGS[name]:
        assert min(share for _, share in training.equal_rewards) < 1, (
            "no prompt whose answers differ in reward"
        )

    run_id = f"own-0-{training.fit_key[:8]}"
    tracked = (tmp_path / "reports" / "trackers", "trainings", run_id)
    weights = tmp_path / "runs" / "weights" / training.fit_key
    if loss:
        tracked_runs.check_live(*tracked, training, weights / "fit.json")

    compared = facts(harness.compare(path))  # on more items, by the weights that lie in the folder
    again, base = compared["own"], compared["prompt"]
    if loss:
        assert command("report", "-c", path)[0] == 0  # sends the scores
        tracked_runs.check_sent(*tracked, "token_f1", again, weights)
    (run,) = [run for run in store.list_runs(store.Store(tmp_path / "runs")) if run.run_id == again.run_id]
    answers = store.read_rows(store.Store(tmp_path / "runs"), run.rows["desk/test"])
    assert again.training.fit_key == training.fit_key
    assert again.training.wall_s == training.wall_s
    assert (again.target.n, len(answers)) == (N_TEST, N_TEST)
    assert all(0 <= score <= 1 for score in (again.target.score, base.target.score))
    row = {
        "n_rows": training.n_pairs or training.others.get("n_examples") or 16, "n_steps": training.n_steps,
        "n_trainable": training.n_trainable, "loss": loss,
        "validation_loss": [value for _, value in training.validation_loss], "training_s": training.wall_s,
        "all_s": round(time.perf_counter() - start), "metric": "token_f1", "n_test": N_TEST,
        "score": again.target.score, "base_score": base.target.score, "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": run.provenance["device"],
    }  # fmt: skip
    real_trainings_page.keep(name, row, PAGE)


def keep_examples(folder: Path, name: str, kept_as: str) -> None:
    """Keep a report in the folder that HARNESS_EXAMPLES names, without the path of the test's folder."""
    if kept_folder := os.environ.get("HARNESS_EXAMPLES"):
        for suffix in (".md", ".json"):
            text = (folder / "reports" / f"{name}{suffix}").read_text("utf-8")
            (Path(kept_folder) / f"{kept_as}{suffix}").write_text(text.replace(f"{folder}/", ""), "utf-8")


def test_a_sweep_of_rates_says_which_falls_fastest_and_which_overfits(tmp_path, command, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    rates = "sweep: {learning_rate: [3.0e-4, 5.0e-3]}"
    path = write(tmp_path, f"{{method: lora, {rates}, params: {{r: 8, num_train_epochs: 8, {OF_STEP}}}}}")
    assert command("compare", "-c", path, "target.data.limits={test: 4}")[0] in (0, 1)
    page = (tmp_path / "reports" / "trainings.md").read_text("utf-8").partition("## Training\n")[2]
    keep_examples(tmp_path, "trainings", "sweep")
    assert re.search(r"own: By step \d+ training loss fell fastest with learning_rate 0\.005,", page), page
    assert re.search(r"own overfits after step \d+: .*more rows.* a lower r and lora_alpha", page), page
    assert re.search(r"best without overfitting is learning_rate 0\.0003, .*; 1 of 2 overfit\.", page), page


def test_edge_cases_that_data_check_finds_in_test_are_slices_of_the_comparison(tmp_path, command):
    own = f"{{method: lora, params: {{r: 8, learning_rate: 1.0e-3, {OF_STEP}}}}}"
    path, test = write(tmp_path, own, train=96, test=80), tmp_path / "test.jsonl"
    path.write_text(path.read_text().replace("name: trainings", "name: edge_cases"))
    rows = [json.loads(line) for line in test.read_text("utf-8").splitlines()]
    for i, thing in enumerate(ten_kinds.THINGS):
        asked = {"id": f"e{i}", "cluster": f"e{i}", "prompt": f"The page of my {thing} says error 50{i}."}
        rows.append(rows[0] | asked | {"reference": "queue: repairs | tone: calm"})
    tiny_experiment.rows(test, rows)
    checked = command("data", "check", tmp_path / "train.jsonl", "--test", test, "--json", check=0)
    found = [f for f in json.loads(checked.stdout)["findings"] if f["check"] == "edge_cases"]
    texts = [f"{f['title']} {f['count']} of {f['of']} {f['example']}" for f in found]
    n_test = {re.search("edge: [a-z ]+", text)[0]: re.search(r"(\d+) of 88\b", text)[1] for text in texts}
    assert {*n_test} == {*RULES}
    assert any("no training row is of a case that test has: edge: error handling" in text for text in texts)
    assert command("compare", "-c", path, "report_to=[]")[0] in (0, 1)
    keep_examples(tmp_path, "edge_cases", "edge_cases")
    page = (tmp_path / "reports" / "edge_cases.md").read_text("utf-8")
    assert all(f"{case} (n = {n})" in page for case, n in n_test.items()), page


TAUGHT = """\
name: taught
precision: fp32
device: cpu
base_model: ./small
target: desk.yaml
suites: [general.yaml]
candidates:
  large: {method: lora, base_model: smollm2-135m, params: &params {r: 16, learning_rate: 1.0e-3, num_train_epochs: 2}}
  prompt: prompt
  taught: {method: lora, train: taught.jsonl, params: *params}
decide: {needs: [cheaper_than_a_larger_model]}
"""


def test_a_smaller_base_learns_the_embedded_models_answers_and_the_decision_compares_their_prices(
    tmp_path, command
):
    """The smaller base is the embedded model without every third layer."""
    import torch
    import transformers

    embedded = hub.resolve("smollm2-135m").path
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded)
    kept = [layer for i, layer in enumerate(model.model.layers) if i % 3 != 1]
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(kept), len(kept)
    model.save_pretrained(tmp_path / "small")
    transformers.AutoTokenizer.from_pretrained(embedded).save_pretrained(tmp_path / "small")
    path = write(tmp_path, "prompt", train=96, validation=12, test=48)
    path.write_text(re.sub("  taught: .*\n", "", TAUGHT))
    command("data", "distill", "large", "-c", path, "--out", tmp_path / "taught.jsonl", check=0)
    path.write_text(TAUGHT)
    assert command("compare", "-c", path)[0] in (0, 1)
    keep_examples(tmp_path, "taught", "taught")
    page = (tmp_path / "reports" / "taught.md").read_text("utf-8")
    assert re.search(
        r"Measured \(cheaper than a larger model\): large, the larger model, reaches \S+ .* and taught \S+ .*"
        r"; 1,000 requests cost [\d.]+ and [\d.]+ USD; its teacher and its training cost [\d.]+ and",
        page,
    ), page


def test_the_reward_of_served_answers_rises_beyond_its_noise_on_validation(tmp_path, harness):
    rlhf.write_experiment(tmp_path)
    judge = harness("train", "judge", cwd=tmp_path, check=0).stderr
    (low,) = re.findall(r"rates the chosen answer higher in [\d.]+ \[(\d+), \d+\] % of", judge)
    assert int(low) > 50, judge
    for name in ("grpo-f1", "rloo-f1"):
        message = harness(
            "train", name, f"candidates.{name}.params.max_steps=12", cwd=tmp_path, check=0
        ).stderr
        assert re.search(rf"{name}: reward on 52 validation prompts .* training, \+0\.\d+ \[\+", message), (
            message
        )


def test_the_second_of_two_nights_compares_with_the_same_reference_and_adds_to_the_trend(tmp_path, command):
    path = write(tmp_path, f"{{method: lora, params: {{r: 8, {LOOP}}}}}")
    path.write_text(path.read_text() + "nightly: {candidates: [own], items: 3, anchors: 1}\n")
    few_general_tasks.write(tmp_path, {"chat_facts": 8})
    assert command("compare", "-c", path, "report_to=[]")[0] in (0, 1)
    series = []
    for night in ("2026-03-01", "2026-03-02"):
        result = command("nightly", "run", "-c", path, "report_to=[]", "--night", night, "--json", check=0)
        night_report = json.loads(result.stdout)
        (line,) = night_report["lines"]
        assert (night_report["night"], line["verdict"], {*line["anchors"].values()}) == (night, "ok", {0})
        series.append({key: (e["n_nights"], e["n"], e["delta"]) for key, e in line["series"].items()})
        assert f"in {len(series)} night" in line["sentence"]
    for key in ("target", "general"):
        n_nights, n, delta = series[1][key]
        assert (n_nights, delta) == (2, 0)
        assert n > series[0][key][1] > 0, "the second night asks other items"
