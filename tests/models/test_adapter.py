"""Adapters trained elsewhere: which are served, and which are refused before a run or on opening."""

import json
import re
import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from test_model_families import build
from tiny_methods import CPU

from harness.errors import CandidateFailed, UserError
from harness.methods.made_elsewhere import Adapter
from harness.methods.supervised import Lora
from harness.models.against_base import adapter_problems
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.weight_files import CONFIG, WEIGHTS
from harness.training import adapter_digest

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def peft_adapter(tiny, tmp_path_factory):
    """Train an adapter with plain PEFT and a custom loop; returns its folder."""
    folder = tmp_path_factory.mktemp("theirs")
    tiny_model.train_adapter(tiny).save_pretrained(folder)
    return folder


def candidates(folder, more=""):
    return f"  prompt: {{method: base}}\n  theirs: {{method: adapter, path: {folder}{more}}}\n"


def test_a_digest_sees_the_weights_and_their_scale_and_nothing_else(peft_adapter, tmp_path):
    def changed(name, **config):
        edit_config(**config)(folder := shutil.copytree(peft_adapter, tmp_path / name))
        return adapter_digest(folder, "base")

    same = adapter_digest(peft_adapter, "base")
    assert changed("a", base_model_name_or_path="/elsewhere", inference_mode=False, lora_dropout=0.5) == same
    assert changed("b", lora_alpha=99) != same
    assert adapter_digest(peft_adapter, "another base") != same


def refusal(tiny, tmp_path, folder, more="", **options):
    path = tiny_experiment.write(tmp_path / "work", tiny, candidates(folder, more))
    with pytest.raises(UserError) as caught:
        tiny_experiment.run(path, **options)
    assert not (tmp_path / "work" / "runs").exists()
    return str(caught.value)


def test_an_adapter_for_another_base_is_refused_by_name(tiny, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = tiny_model.build(tmp_path / "wide")
    config = LlamaConfig.from_pretrained(wide)
    config.hidden_size, config.head_dim = 64, 16
    LlamaForCausalLM(config).save_pretrained(wide)
    weights = tiny_methods.fit(wide, tmp_path / "fit", Lora, {"r": 2, "max_steps": 1})
    msg = refusal(tiny, tmp_path, weights.folder / "adapter")
    assert re.search(r"harness\.yaml:\d+: candidate theirs", msg), msg
    assert f"an adapter for another base ({wide}): model.layers.0." in msg
    assert re.search(r"of size \(2, 64\), where the base and adapter_config.json make \(2, 32\)", msg), msg
    assert "set base_model on this candidate to that base" in msg


def test_an_adapter_trained_after_tokens_were_added_is_refused_with_what_to_make_of_the_base(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    n_rows = len(tokenizer)
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    model.resize_token_embeddings(len(tokenizer))
    grown = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    grown.save_pretrained(tmp_path / "grown", save_embedding_layers=True)
    message = refusal(tiny, tmp_path, tmp_path / "grown")
    assert f"embed_tokens.weight of size ({n_rows + 3}, 32), where the base" in message
    assert f"resize_token_embeddings({n_rows + 3}) on {tiny}" in message


def edit_config(**changes):
    def change(folder):
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def edit_tensors(edit):
    def change(folder):
        from safetensors.torch import load_file, save_file

        tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(edit(tensors), folder / WEIGHTS)

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


UNFIT = {
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "without adapter_config.json"),
    "a whole model": (
        lambda folder: (folder / CONFIG).rename(folder / "config.json"),
        "with a whole model; .*next: method: model, with path: ",
    ),
    "weights cut short": (cut, "a damaged adapter_model.safetensors"),
    "another rank": (
        edit_config(r=4),
        r"layers.0.self_attn.q_proj.lora_A.weight of size \(2, 32\), where the base and \S+ make \(4, 32\)",
    ),
    "an unknown family": (edit_config(peft_type="BONE"), "peft_type: BONE in .*a family that PEFT"),
    "a key of a newer PEFT": (edit_config(new_scale=3), "new_scale: 3 in .*next: export it by PEFT"),
    "fewer modules than tensors": (
        edit_config(target_modules=["q_proj"]),
        "down_proj.lora_A.weight and 3 more, which would be ignored",
    ),
    "no prefix": (
        edit_tensors(lambda tensors: {n.replace("base_model.model.", ""): t for n, t in tensors.items()}),
        "would be ignored",
    ),
    "rows of tokens that the base does not have": (
        edit_config(trainable_token_indices=[5, 999]), "trained rows of the tokens 999, and the base has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("unfit", UNFIT)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_runs(tiny, peft_adapter, tmp_path, unfit):
    change, pattern = UNFIT[unfit]
    change(folder := shutil.copytree(peft_adapter, tmp_path / "theirs"))
    assert re.search(pattern, message := refusal(tiny, tmp_path, folder)), message


OPTIONS = {
    "biases": {"bias": "all", "target_modules": "all-linear"},
    "an adapted head": {"target_modules": ["lm_head", "q_proj"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "ranks by layer": {"rank_pattern": {"layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 64}},
    "parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
}


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Save a base with biases, whose head is not tied to its embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tiny_model.build(tmp_path_factory.mktemp("biased"))
    sizes = json.loads((folder / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen2Config(**{name: sizes[name] for name in keys}, num_key_value_heads=2, initializer_range=0.3)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("option", OPTIONS)
def test_an_adapter_of_any_option_of_lora_is_served_as_by_peft(biased, tmp_path, option):
    import torch
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(ModelHost(resolve(str(biased)), CPU).model, LoraConfig(r=2, **OPTIONS[option]))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0
    theirs.save_pretrained(tmp_path)
    source, ids = resolve(str(biased)), [5, 6, 7, 8]
    host = ModelHost(source, CPU)
    assert not [*adapter_problems(tmp_path, source, "theirs")]
    with tiny_model.unchanged(host.model, ids) as plain, host.use_adapter(tmp_path, "theirs") as opened:
        logits = tiny_model.logits(opened.model, ids)
    assert logits.allclose(tiny_model.logits(theirs, ids), atol=1e-4)
    assert not logits.allclose(plain, atol=1e-3)


def save_tokenizer(tiny, folder, template=None, **changes):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for token in changes.pop("added", ()):
        tokenizer.add_tokens([token])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{{ messages[0]['content'] }}"}, "a chat template of its own"),
        ({"added": ["<tool>"]}, r"a tokenizer of its own, .* \('<tool>'\)"),
        ({"eos_token": "<s>"}, "a tokenizer of its own, which reads or ends texts otherwise"),
    ],
)
def test_an_adapter_with_a_tokenizer_of_its_own_is_refused_with_both_ways_out(
    tiny, peft_adapter, tmp_path, changes, said
):
    folder = shutil.copytree(peft_adapter, tmp_path / "theirs")
    save_tokenizer(tiny, folder, **changes)
    message = refusal(tiny, tmp_path, folder)
    assert re.search(said, message), message
    assert "name it with method: model; or remove chat_template.jinja, tokenizer.json" in message


@pytest.mark.parametrize("beside", ["new keys that are off", "its tokenizer", "a tokenizer with another pad"])
def test_what_changes_nothing_beside_an_adapter_is_no_problem(tiny, peft_adapter, tmp_path, beside):
    folder = shutil.copytree(peft_adapter, tmp_path / "theirs")
    if beside == "new keys that are off":  # as a newer PEFT writes them
        edit_config(use_novelty=False, novelty_config=None, peft_version="9.0.0")(folder)
    else:
        changes = {"added": ["<pad2>"], "pad_token": "<pad2>"} if "pad" in beside else {}
        save_tokenizer(tiny, folder, **changes)
    assert not [*adapter_problems(folder, resolve(str(tiny)), "theirs")]


UNCHECKED = {"BOFT": {"boft_block_size": 4}, "UNILORA": {"r": 2}}


@pytest.mark.parametrize("family", UNCHECKED)
def test_a_tensor_that_is_lacking_or_has_no_place_is_found_when_an_adapter_is_opened(tiny, tmp_path, family):
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"peft_type": family, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    config = get_peft_config(settings | UNCHECKED[family])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(tmp_path / "whole")
    host = ModelHost(resolve(str(tiny)), CPU)
    with host.use_adapter(tmp_path / "whole", "whole"):
        pass
    edits = (
        (lambda t: dict(sorted(t.items())[1:]), "an adapter that does not fit"),
        (lambda t: t | {f"{min(t)}x": t[min(t)] + 1}, "an adapter that does not fit"),
        (
            lambda t: {n: x * (float("nan") if x.is_floating_point() else 1) for n, x in t.items()},
            "not numbers",
        ),
    )
    for i, (edit, message) in enumerate(edits):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        edit_tensors(edit)(folder)
        with pytest.raises(CandidateFailed, match=message), host.use_adapter(folder, "spoilt"):
            pass


def pickle_adapter(theirs, folder):
    import torch
    from safetensors.torch import load_file

    shutil.copytree(theirs, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_unless_asked_for(tiny, peft_adapter, tmp_path):
    pickled = pickle_adapter(peft_adapter, tmp_path / "pickled")
    message = refusal(tiny, tmp_path, pickled)
    assert "a pickle, which can run code" in message
    assert "allow_pickle: true" in message
    first, second = (
        tiny_methods.fit(tiny, tmp_path / folder.name[:1], Adapter, {"allow_pickle": True}, path=folder)
        for folder in (peft_adapter, pickled)
    )
    assert first.digest == second.digest


def test_a_pickle_that_holds_more_than_tensors_is_not_opened(tiny, peft_adapter, tmp_path):
    import torch

    class Opened:
        def __reduce__(self):
            return open, (str(tmp_path / "opened"), "w")

    folder = pickle_adapter(peft_adapter, tmp_path / "pickled")
    torch.save({"x": Opened()}, folder / "adapter_model.bin")
    with pytest.raises(CandidateFailed, match="something other than tensors"):
        tiny_methods.fit(tiny, tmp_path / "fit", Adapter, {"allow_pickle": True}, path=folder)
    assert not (tmp_path / "opened").exists()


def prepare_candidates(folder, model, params, *overrides):
    candidates = f"  prompt: {{method: base}}\n  mine: {params}\n"
    path = tiny_experiment.write(folder, model, candidates)
    return tiny_experiment.session(path, *overrides)


@pytest.mark.e2e
def test_an_adapter_of_the_head_is_refused_with_tied_embeddings_and_without(tiny, tmp_path):
    recipe = "{method: lora, params: {target_modules: [q_proj, lm_head]}}"
    for base in (tiny, build(tmp_path / "base", "Llama")):
        with pytest.raises(UserError, match=r"mine: found an adapter of lm_head.*; expected .*; next: leave"):
            prepare_candidates(tmp_path, base, recipe)


def test_names_that_are_there_are_taken_and_a_refused_one_is_shown_with_its_override(tiny, tmp_path):
    recipe = "{method: lora, params: {target_modules: [embed_tokens]}}"
    assert prepare_candidates(tmp_path, tiny, recipe).candidates["mine"]
    recipe = "{method: lora, params: {target_modules: '.*(q|v)_proj', exclude_modules: [o_proj]}}"
    assert prepare_candidates(tmp_path, tiny, recipe).candidates["mine"]

    override = "candidates.mine.params.target_modules=[nope]"
    with pytest.raises(UserError) as refused:
        prepare_candidates(tmp_path, tiny, "{method: lora}", override, "seeds=[3]")
    (problem,) = refused.value.problems
    assert problem.where.endswith(f", override {override}: candidate mine")
