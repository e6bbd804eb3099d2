"""The model from PyPI, really unpacked: complete and only once; it answers, scores and writes rows.

A method is proposed for it, and a note says if its suite does not cover the target's language.
"""

import json
from pathlib import Path

import few_general_tasks
import pytest
import tiny_experiment

from harness.experiment.check_rows import RowCheck, examine_rows
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import resolve, unpack
from harness.records import Limits


@pytest.mark.slow
def test_the_embedded_model_is_unpacked_once_and_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    source = resolve("smollm2-135m")
    assert source.path.parent == tmp_path / "models"
    assert [p.name for p in source.path.parent.iterdir() if p.is_dir()] == [source.path.name]
    assert 130e6 < source.n_parameters < 140e6

    written = {p: p.stat().st_mtime_ns for p in source.path.iterdir()}
    assert unpack() == source.path
    assert {p: p.stat().st_mtime_ns for p in source.path.iterdir()} == written

    base = ModelHost(source, Machine("cpu", "CPU", "fp32", 1.0)).base
    prompt_ids = base.encode([{"role": "user", "content": "What is the capital of France?"}]).context
    assert "Paris" in base.generate([prompt_ids], Limits(16))[0].text


@pytest.mark.slow
def test_an_answer_that_is_no_language_is_found_by_its_perplexity_under_the_base_and_dropped(
    tmp_path, command
):
    written = Path(__file__).parents[2] / "suites" / "support" / "train.jsonl"
    rows = [json.loads(line) for line in written.read_text("utf-8").splitlines()[:24]]
    rows[5]["reference"] = "vq xj zzk"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({k: row[k] for k in ("prompt", "reference")}) + "\n" for row in rows))
    check = RowCheck([str(path)], base="smollm2-135m", only=["quality"])
    by_traits, by_perplexity = (examine_rows(check._replace(perplexity=on)).findings for on in (False, True))
    assert by_traits[0].rows == ()
    assert f"{path.name}:6" in by_perplexity[0].rows
    assert by_perplexity[0].command.endswith(" --perplexity --base smollm2-135m")
    cleaned = tmp_path / "kept.jsonl"
    words = ("--min-quality", "0.5", "--perplexity", "--base", "smollm2-135m", "--out", cleaned)
    assert command("data", "clean", path, *words)[0] == 0
    assert "vq xj zzk" not in cleaned.read_text()
    assert len(cleaned.read_text().splitlines()) == 23


CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima",
    "Greece": "Athens",
}  # fmt: skip
EXPERIMENT = """
name: written
base_model: smollm2-135m
precision: fp32
device: cpu
target: {name: capitals, data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}, metrics: [exact_match]}
suites: []
candidates: {prompt: {method: base, prompting: zero_shot}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [pytest.param("paraphrase", marks=pytest.mark.weekly), "new-questions"])
def test_the_embedded_model_words_rows_anew_and_writes_new_questions(tmp_path, command, monkeypatch, by):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"What is the name of the capital city of {land}?", "reference": capital}
        for land, capital in CAPITALS.items()
    ]
    for name, split_rows in (("train", rows[:5]), ("validation", rows[5:6]), ("test", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split_rows))
    (tmp_path / "harness.yaml").write_text(EXPERIMENT)
    words = ("data", "augment", "train.jsonl", "--with", "prompt", "--by", by, "--variants", "2")
    code, _, error = command(*words, "--max-new-tokens", "48", "--out", "more.jsonl")
    assert code == 0, error
    augmented = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    new = [row for row in augmented if row.get("source") == "augmented"]
    manifest = json.loads((tmp_path / "more.jsonl.manifest.json").read_text())
    assert manifest["counts"]["added"] == len(new) == len(augmented) - 5 > 0
    assert sum(manifest["reasons"].values()) == 10
    assert manifest["cost_usd"] > 0
    assert {row["prompt"] for row in new}.isdisjoint(row["prompt"] for row in rows)
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    result = command(*words, "--max-new-tokens", "48", "--out", "less.jsonl", "--against", "asked.jsonl")
    less = (tmp_path / "less.jsonl").read_text() if result.returncode == 0 else ""
    assert all(json.dumps(row["prompt"]) not in less for row in new), "a further test file asks them"
    manifest = (tmp_path / "less.jsonl.manifest.json").read_text() if less else result.stderr
    assert "is evaluated" in manifest
    if by == "paraphrase":
        assert all({"prompt": r["augmented_from"], "reference": r["reference"]} in rows for r in new)
    else:
        examples = [json.loads(row["augmented_from"]) for row in new]
        assert all({*texts} <= {row["prompt"] for row in rows[:5]} and len(texts) == 4 for texts in examples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "gpus", "proposed", "reason"),
    [
        ("24GB", "1", ["LoRA", "peft IA3", "spectrum"], "merged it answers as fast as the base"),
        ("4GB", "1", ["QLoRA", "peft IA3"], "LoRA on the base in 16 bits takes 4.1 GB of 4, on NF4 3.9"),
        ("4GB", "2", ["LoRA", "peft IA3", "spectrum by FSDP or ZeRO 3"], "LoRA: from 3.8 GB"),
    ],
)
def test_trainings_of_the_embedded_model_are_proposed_by_the_cards_with_their_reasons(
    command, card, gpus, proposed, reason
):
    words = ("doctor", "--base", "smollm2-135m", "--json", "--gpu", card, "--gpus", gpus)
    lines = json.loads(command(*words, check=0).stdout)["proposed"]
    assert [line.partition(": ")[0] for line in lines] == proposed
    assert reason in lines[0]
    assert all(" GB" in line for line in lines)


@pytest.mark.slow
def test_what_the_embedded_model_forgets_of_german_is_said_not_to_be_measured(tmp_path, command):
    def letter(split, n):
        return {
            "prompt": f"Mein Paket {split} {n} ist seit {n + 2} Tagen nicht angekommen, wo bleibt es denn nur?",
            "reference": ("spät", "Geld")[n % 2],
        }

    tiny_experiment.write_splits(tmp_path, (4, 2, 12), letter)
    few_general_tasks.write(tmp_path, {"chat_facts": 12})
    (tmp_path / "harness.yaml").write_text(EXPERIMENT.replace("suites: []", "suites: [general.yaml]"))
    expected = (
        "language: the target is in German, the capability suites are in English: what is forgotten of German"
    )
    assert expected in command("compare", "--dry-run", check=0).stderr
    notes = json.loads(command("compare", "--json", check=0).stdout)["notes"]
    assert any(note.startswith(expected) and "m_mmlu_de" in note for note in notes)
