"""The embedded model with an adapter, exported by llama.cpp's tools, gives the same answers as before."""

import json
import subprocess
from pathlib import Path

import pytest
import tiny_experiment

from harness import config, exports, store
from harness.experiment.study import load_study
from harness.lifecycle import release
from harness.models.artefacts import find_converter

THEIRS = "  theirs: {method: adapter, path: ./theirs}\n"
ANSWER = """
import json, sys, jinja2, llama_cpp
file, prompts = sys.argv[1], json.loads(sys.argv[2])
model = llama_cpp.Llama(file, n_ctx=512, verbose=False)
template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
    model.metadata["tokenizer.chat_template"])
def answer(messages):
    text = template.render(messages=messages, add_generation_prompt=True)
    ids = model.tokenize(text.encode(), add_bos=False, special=True)
    made = model.create_completion(ids, max_tokens=4, temperature=0.0)
    return [len(ids), made["choices"][0]["text"]]
print(json.dumps([answer(messages) for messages in prompts]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Evaluate a random adapter of the embedded model on a dozen letters."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from harness.models.hub import unpack

    folder = tmp_path_factory.mktemp("made")
    path = tiny_experiment.write(folder, "smollm2-135m", THEIRS)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(unpack())
    adapter = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(folder / "theirs")
    tiny_experiment.run(path)
    return path


@pytest.mark.slow
def test_the_file_of_llama_cpp_reads_the_same_tokens_and_gives_the_same_answers(made, tmp_path):
    program = find_converter(None)
    if program is None:
        pytest.skip("needs .venv-gguf: make gguf-tools")
    session = tiny_experiment.session(made)
    run = release.find_run(load_study(config.load(made)), "theirs")
    plans = [exports.plan_export(session, run, "gguf", kind, tmp_path / kind) for kind in ("f32", "q4_k_m")]
    (folder, first, _), (_, second, _) = (exports.export_run(session, plan) for plan in plans)
    assert {"F32"} == set(first.types)  # in the precision of the run, so that rounding changes no answer
    assert {"Q4_K", "Q5_0", "F32"} < set(second.types)  # rows of 576 are not divisible by 256
    for plan, export in ((plans[0], first), (plans[1], second)):
        assert plan.n_bytes == pytest.approx(export.n_bytes, rel=0.1)
    items = session.target.examples("test")
    rows = store.read_samples(session.store, run.rows["letters/test"], [item.id for item in items])
    prompts = json.dumps([list(item.messages) for item in items])
    file = exports.main_file(folder, first)
    python = Path(program).with_name("python")
    result = subprocess.run(
        [python, "-I", "-c", ANSWER, str(file), prompts], capture_output=True, text=True, check=True
    )
    answered = json.loads(result.stdout.splitlines()[-1])
    pairs = [(rows[item.id], *answer) for item, answer in zip(items, answered, strict=True)]
    assert [n for _, n, _ in pairs] == [row.n_prompt_tokens for row, _, _ in pairs]
    assert sum(text.strip() == row.text.strip() for row, _, text in pairs) >= len(pairs) - 1
