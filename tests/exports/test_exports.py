"""Exports of the tiny model's runs, compared with the run's own answers, logits and prompts."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import tiny_experiment
from typer.testing import CliRunner

from harness import exports, store
from harness.cli import app
from harness.errors import UserError
from harness.experiment import ask

pytestmark = pytest.mark.e2e

CANDIDATES = """\
  prompt: {method: base}
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
  full: {method: full, params: {max_steps: 2, max_length: 200}}
  soft: {method: peft, params: {peft_type: PROMPT_TUNING, num_virtual_tokens: 2, max_steps: 1, max_length: 200}}
  hybrid: {weights_of: lora, prompting: {rag: {top_k: 2, chunk_words: 6, chunk_overlap: 2, mark: number}}}
"""
PAGES = [
    {"id": "depot", "title": "Depot", "text": "The depot keeps a parcel for nine days, then sends it back."},
    {"id": "money", "title": "Money", "text": "An invoice with a wrong sum is paid back within ten days."},
]


@pytest.fixture(scope="module")
def made(tiny, own_cache, tmp_path_factory):
    """Run an experiment with an adapter, a full model, retrieval and candidates that cannot be exported."""
    folder = tmp_path_factory.mktemp("made")
    path = tiny_experiment.write(folder, tiny, CANDIDATES)
    target = folder / "suites" / "letters.yaml"
    target_text = target.read_text().replace("data: {train", "data: {documents: letters/pages.jsonl, train")
    target.write_text(target_text)
    tiny_experiment.rows(folder / "suites" / "letters" / "pages.jsonl", PAGES)
    tiny_experiment.run(path)
    return path


def export(experiment_file, *words):
    return CliRunner().invoke(app, ["export", *map(str, words), "-c", str(experiment_file)])


def export_to(experiment_file, tmp_path, *words):
    """Export into a folder; returns the folder and its verified record."""
    result = export(experiment_file, *words, "--out", tmp_path / "out")
    assert result.exit_code == 0, (result.output, result.exception)
    return tmp_path / "out", exports.verify_export(tmp_path / "out")


def answers_of(experiment_file, name):
    """Return the prompts' tokens and the stored answers of a candidate's first test items."""
    session = tiny_experiment.session(experiment_file)
    items = session.target.examples("test")[:3]
    return [ask(session, name, item=item.id) for item in items]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_merged_folder_answers_as_the_run(made, tmp_path, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, record = export_to(made, tmp_path, name, "--to", "merged")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = json.loads((folder / "generation_config.json").read_text())
    assert limits["max_new_tokens"] == record.limits["max_new_tokens"] == 4
    assert not [file for file in folder.iterdir() if file.suffix in (".py", ".bin", ".pt", ".pkl")]
    assert record.types == {"F32": len(model.state_dict()) - 1}  # the output layer shares the embeddings
    for answer in answers_of(made, name):
        template_options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        ids = tokenizer.apply_chat_template(answer.prompt.messages, **template_options)["input_ids"]
        assert ids.shape[1] == answer.prompt.n_tokens
        new_ids = model.generate(ids)[0, ids.shape[1] :]
        assert tokenizer.decode(new_ids, skip_special_tokens=True).strip() == answer.row.text.strip()


def test_a_type_is_that_of_every_tensor_and_the_merge_is_rounded_once(made, tmp_path):
    _, record = export_to(made, tmp_path, "lora", "--to", "merged", "--quantize", "bf16")
    assert (set(record.types), record.quantization) == ({"BF16"}, "bf16")
    assert 0 <= record.merge_gap < 1e-4


def test_an_export_is_found_by_its_run_and_made_once(made):
    first, second = export(made, "lora", "--to", "merged"), export(made, "lora", "--to", "merged")
    assert first.exit_code == second.exit_code == 0
    assert "exported before, and whole" in second.stderr
    run_store = store.Store(made.parent / "runs")
    run = tiny_experiment.runs_of(made)["lora"]
    (folder,) = exports.exports_of(run_store, run.run_id)
    assert folder == run_store.folder / "exports" / run.run_id / "merged-fp32"
    assert exports.read_export(folder).weights_digest == run.weights_digest
    assert str(made.parent) not in (folder / "export.json").read_text()


def test_a_folder_is_checked_by_content_alone(made, tmp_path):
    folder, _ = export_to(made, tmp_path, "lora", "--to", "merged")
    file, added_file = folder / "model.safetensors", folder / "modeling.py"

    def is_refused_by(path):
        with pytest.raises(UserError, match=re.escape(str(path))):
            exports.verify_export(folder)

    stat_before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(stat_before.st_atime_ns, stat_before.st_mtime_ns))
    is_refused_by(file)
    file.unlink()
    is_refused_by(file)
    file.write_bytes(content)
    added_file.write_text("import os\n")
    is_refused_by(added_file)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["soft", "--to", "merged"], "soft prompt"),
        (["lora", "--to", "gguf8"], "gguf, hub, merged, onnx"),
        (["lora", "--to", "gguf", "export.gguf.command=/no/such"], "make gguf-tools"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(made, tmp_path, words, said):
    result = export(made, *words, "--out", tmp_path / "out")
    assert isinstance(result.exception, UserError), result.output
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_limits_and_prompts_other_than_those_of_the_run_are_not_exported(made, tmp_path):
    folder = shutil.copytree(made.parent, tmp_path / "copy")
    suite = folder / "suites" / "letters.yaml"
    suite.write_text(suite.read_text().replace("max_new_tokens: 4", "max_new_tokens: 9"))
    result = export(folder / "harness.yaml", "lora", "--to", "merged", "--out", tmp_path / "out")
    assert "another task_version of letters/validation" in str(result.exception), result.output


def test_a_dry_run_writes_nothing_and_another_folder_is_not_touched(made, tmp_path, monkeypatch):
    out_folder = tmp_path / "out"
    result = export(made, "lora", "--to", "merged", "--dry-run", "--json", "--out", out_folder)
    plan = json.loads(result.stdout)
    assert not out_folder.exists()
    out_folder.mkdir()
    (out_folder / "mine.txt").write_text("mine")
    error = export(made, "lora", "--to", "merged", "--out", out_folder).exception
    assert "a new or empty folder; next: name another folder with --out" in str(error)
    assert [file.name for file in out_folder.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert export(made, "lora", "--to", "merged", "--out", ".").exit_code == 0
    record = exports.verify_export(tmp_path / "empty")
    weights = record.files["model.safetensors"].bytes
    assert plan["n_bytes"] == pytest.approx(weights, rel=0.1)


def test_the_lines_beside_passages_give_the_prompt_of_the_run(made, tmp_path):
    folder, _ = export_to(made, tmp_path, "hybrid", "--to", "merged")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 25
    for answer in answers_of(made, "hybrid"):
        question = answer.prompt.messages[-1]["content"].partition("\n\n")[2]
        command = [sys.executable, "-c", code.replace('"your question"', repr(question))]
        printed_prompt = subprocess.check_output(command, cwd=folder, text=True)
        assert printed_prompt.rstrip("\n") == answer.prompt.messages[-1]["content"]


def test_a_card_says_what_was_measured_and_holds_no_text_of_the_data(made, tmp_path):
    from huggingface_hub import ModelCard

    folder, record = export_to(made, tmp_path, "hybrid", "--to", "hub")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", None)
    headings = ("## Scores", "## Gate: hybrid", "## Passages for these weights")
    measured_facts = (record.run_id, record.weights_digest, "| letters/test | 12 |", "learning_rate")
    for text in (*headings, *measured_facts, "The licence of the base model is not known here"):
        assert text in card.text, text
    assert not [page for page in PAGES if page["text"] in card.text]
    assert {"model.safetensors", "chat_template.jinja", "passages.jsonl"} < record.files.keys()


@pytest.mark.slow
def test_the_graph_of_onnx_reads_a_prompt_and_then_a_token_as_the_run(made, tmp_path):
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM

    folder, record = export_to(made, tmp_path, "lora", "--to", "onnx")
    merged_folder, _ = export_to(made, tmp_path / "whole", "lora", "--to", "merged")
    ids = np.array([[5, 9, 2, 40, 41, 7]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(merged_folder)(torch.tensor(ids)).logits.numpy()
    graph = onnxruntime.InferenceSession(str(exports.main_file(folder, record)))
    output_names = [output.name for output in graph.get_outputs()]

    def read(part, n_before, past):
        known = {"input_ids": part, "attention_mask": np.ones((1, n_before + part.shape[1]), np.int64)}
        known["position_ids"] = np.arange(n_before, n_before + part.shape[1])[None]
        feed = {}
        for graph_input in graph.get_inputs():
            empty = np.zeros([1, 2, 0, 8], np.float32)
            feed[graph_input.name] = known.get(graph_input.name, past.get(graph_input.name, empty))
        values = dict(zip(output_names, graph.run(None, feed), strict=True))
        cache_outputs = [name for name in output_names if name != "logits"]
        inputs = [graph_input.name for graph_input in graph.get_inputs() if graph_input.name not in known]
        return values["logits"], dict(zip(inputs, (values[name] for name in cache_outputs), strict=True))

    first_logits, past_keys = read(ids[:, :4], 0, {})
    second_logits, _ = read(ids[:, 4:], 4, past_keys)
    assert np.abs(np.concatenate([first_logits, second_logits], 1) - logits).max() < 1e-3
    assert set(record.types) == {"FLOAT", "INT64"}


CONVERTER = """\
import os, sys, signal
import numpy as np
from gguf import GGUFWriter
folder, out = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1]
{before}
made = GGUFWriter(out, "llama")
if {with_template}:
    made.add_chat_template(open(os.path.join(folder, "chat_template.jinja")).read())
made.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
made.write_header_to_file(); made.write_kv_data_to_file(); made.write_tensors_to_file(); made.close()
"""


def write_converter(folder, before="", with_template=True):
    """Write a program with the interface of llama.cpp's converter that writes one tensor."""
    program = folder / "tools" / "convert"
    program.parent.mkdir()
    code = CONVERTER.format(before=before, with_template=with_template)
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    (program.parent / "python").symlink_to(sys.executable)
    return f"export.gguf.command={program}"


def test_a_gguf_file_has_the_template_of_the_run_and_its_types_are_counted(made, tmp_path):
    words = ("lora", "--to", "gguf", "--quantize", "f32", write_converter(tmp_path))
    folder, record = export_to(made, tmp_path, *words)
    name = f"{record.run_id}-f32.gguf"
    assert record.types == {"F32": 1}
    assert sorted(record.files) == ["chat_template.jinja", "generation_config.json", name]
    assert exports.main_file(folder, record) == folder / name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"with_template": False}, "another chat template than the run's, or none"),
        ({"before": "sys.exit('BPE pre-tokenizer was not recognized')"}, "another version of the converter"),
    ],
)
def test_a_converter_that_fails_is_explained_and_leaves_nothing(made, tmp_path, changes, said):
    words = ["lora", "--to", "gguf", write_converter(tmp_path, **changes), "--out", tmp_path / "out"]
    result = export(made, *words)
    assert result.exit_code
    assert said in str(result.exception)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tools"]
