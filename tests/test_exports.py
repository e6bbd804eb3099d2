"""Exports of the tiny model's runs, held against the run's own answers, logits and prompts."""

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
    """Run an experiment with an adapter, a whole model, retrieval and what cannot be exported."""
    folder = tmp_path_factory.mktemp("made")
    path = tiny_experiment.write(folder, tiny, CANDIDATES)
    target = folder / "suites" / "letters.yaml"
    written = target.read_text().replace("data: {train", "data: {documents: letters/pages.jsonl, train")
    target.write_text(written)
    tiny_experiment.rows(folder / "suites" / "letters" / "pages.jsonl", PAGES)
    tiny_experiment.run(path)
    return path


def export(made, *words):
    return CliRunner().invoke(app, ["export", *map(str, words), "-c", str(made)])


def export_to(made, tmp_path, *words):
    """Export into a folder; returns it with its record, whose files are whole."""
    done = export(made, *words, "--out", tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    return tmp_path / "out", exports.verify_export(tmp_path / "out")


def answers_of(made, name):
    """Return the prompts' tokens and the stored answers of a candidate's first test items."""
    session = tiny_experiment.session(made)
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
    assert record.types == {"F32": len(model.state_dict()) - 1}  # whose output layer is the embeddings
    for asked in answers_of(made, name):
        asks = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        ids = tokenizer.apply_chat_template(asked.prompt.messages, **asks)["input_ids"]
        assert ids.shape[1] == asked.prompt.n_tokens
        new = model.generate(ids)[0, ids.shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == asked.row.text.strip()


def test_a_type_is_that_of_every_tensor_and_the_merge_is_rounded_once(made, tmp_path):
    _, record = export_to(made, tmp_path, "lora", "--to", "merged", "--quantize", "bf16")
    assert (set(record.types), record.quantization) == ({"BF16"}, "bf16")
    assert 0 <= record.merge_gap < 1e-4


def test_an_export_is_found_by_its_run_and_made_once(made):
    first, again = export(made, "lora", "--to", "merged"), export(made, "lora", "--to", "merged")
    assert first.exit_code == again.exit_code == 0
    assert "exported before, and whole" in again.stderr
    at = store.Store(made.parent / "runs")
    run = tiny_experiment.runs_of(made)["lora"]
    (folder,) = exports.exports_of(at, run.run_id)
    assert folder == at.folder / "exports" / run.run_id / "merged-fp32"
    assert exports.read_export(folder).weights_digest == run.weights_digest
    assert str(made.parent) not in (folder / "export.json").read_text()


def test_a_folder_is_checked_by_content_alone(made, tmp_path):
    folder, _ = export_to(made, tmp_path, "lora", "--to", "merged")
    file, added = folder / "model.safetensors", folder / "modeling.py"

    def is_refused_by(named):
        with pytest.raises(UserError, match=re.escape(str(named))):
            exports.verify_export(folder)

    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    is_refused_by(file)
    file.unlink()
    is_refused_by(file)
    file.write_bytes(content)
    added.write_text("import os\n")
    is_refused_by(added)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["soft", "--to", "merged"], "soft prompt"),
        (["lora", "--to", "gguf8"], "gguf, hub, merged, onnx"),
        (["lora", "--to", "gguf", "export.gguf.command=/no/such"], "make gguf-tools"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(made, tmp_path, words, said):
    done = export(made, *words, "--out", tmp_path / "out")
    assert isinstance(done.exception, UserError), done.output
    assert said in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_limits_and_prompts_other_than_those_of_the_run_are_not_exported(made, tmp_path):
    folder = shutil.copytree(made.parent, tmp_path / "copy")
    suite = folder / "suites" / "letters.yaml"
    suite.write_text(suite.read_text().replace("max_new_tokens: 4", "max_new_tokens: 9"))
    done = export(folder / "harness.yaml", "lora", "--to", "merged", "--out", tmp_path / "out")
    assert "another task_version of letters/validation" in str(done.exception), done.output


def test_a_dry_run_writes_nothing_and_another_folder_is_not_touched(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = export(made, "lora", "--to", "merged", "--dry-run", "--json", "--out", out)
    planned = json.loads(done.stdout)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused = export(made, "lora", "--to", "merged", "--out", out).exception
    assert "a new or empty folder; next: name another folder with --out" in str(refused)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert export(made, "lora", "--to", "merged", "--out", ".").exit_code == 0
    record = exports.verify_export(tmp_path / "empty")
    weights = record.files["model.safetensors"].bytes
    assert planned["n_bytes"] == pytest.approx(weights, rel=0.1)


def test_the_lines_beside_passages_give_the_prompt_of_the_run(made, tmp_path):
    folder, _ = export_to(made, tmp_path, "hybrid", "--to", "merged")
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) <= 25
    for asked in answers_of(made, "hybrid"):
        question = asked.prompt.messages[-1]["content"].partition("\n\n")[2]
        command = [sys.executable, "-c", lines.replace('"your question"', repr(question))]
        said = subprocess.check_output(command, cwd=folder, text=True)
        assert said.rstrip("\n") == asked.prompt.messages[-1]["content"]


def test_a_card_says_what_was_measured_and_holds_no_text_of_the_data(made, tmp_path):
    from huggingface_hub import ModelCard

    folder, record = export_to(made, tmp_path, "hybrid", "--to", "hub")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", None)
    headings = ("## Scores", "## Gate: hybrid", "## Passages for these weights")
    measured = (record.run_id, record.weights_digest, "| letters/test | 12 |", "learning_rate")
    for said in (*headings, *measured, "The licence of the base model is not known here"):
        assert said in card.text, said
    assert not [page for page in PAGES if page["text"] in card.text]
    assert {"model.safetensors", "chat_template.jinja", "passages.jsonl"} < record.files.keys()


@pytest.mark.slow
def test_the_graph_of_onnx_reads_a_prompt_and_then_a_token_as_the_run(made, tmp_path):
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM

    folder, record = export_to(made, tmp_path, "lora", "--to", "onnx")
    whole, _ = export_to(made, tmp_path / "whole", "lora", "--to", "merged")
    ids = np.array([[5, 9, 2, 40, 41, 7]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(whole)(torch.tensor(ids)).logits.numpy()
    graph = onnxruntime.InferenceSession(str(exports.main_file(folder, record)))
    outputs = [one.name for one in graph.get_outputs()]

    def read(part, n_before, past):
        known = {"input_ids": part, "attention_mask": np.ones((1, n_before + part.shape[1]), np.int64)}
        known["position_ids"] = np.arange(n_before, n_before + part.shape[1])[None]
        fed = {}
        for one in graph.get_inputs():
            empty = np.zeros([1, 2, 0, 8], np.float32)
            fed[one.name] = known.get(one.name, past.get(one.name, empty))
        found = dict(zip(outputs, graph.run(None, fed), strict=True))
        keys = [name for name in outputs if name != "logits"]
        inputs = [one.name for one in graph.get_inputs() if one.name not in known]
        return found["logits"], dict(zip(inputs, (found[name] for name in keys), strict=True))

    first, past = read(ids[:, :4], 0, {})
    second, _ = read(ids[:, 4:], 4, past)
    assert np.abs(np.concatenate([first, second], 1) - expected).max() < 1e-3
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
    """Write a program that is called as llama.cpp's converter, and writes one tensor."""
    program = folder / "tools" / "convert"
    program.parent.mkdir()
    lines = CONVERTER.format(before=before, with_template=with_template)
    program.write_text(f"#!{sys.executable}\n{lines}")
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
    done = export(made, *words)
    assert done.exit_code
    assert said in str(done.exception)
    assert [one.name for one in tmp_path.iterdir()] == ["tools"]
