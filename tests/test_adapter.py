"""An adapter made elsewhere is judged like one made here, and refused where it cannot be."""

import json
import re
import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_experiment import runs_of
from tiny_methods import CPU

from harness import store
from harness.errors import CandidateFailed, UserError
from harness.methods import adapter, lora
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.store import Store
from harness.training import adapter_digest

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def peft_adapter(tiny, tmp_path_factory):
    """Train an adapter with plain PEFT and a loop of one's own; returns its folder."""
    folder = tmp_path_factory.mktemp("theirs")
    tiny_model.train_adapter(tiny).save_pretrained(folder)
    return folder


def candidates(folder, more=""):
    return f"  prompt: {{method: base}}\n  theirs: {{method: adapter, path: {folder}{more}}}\n"


def test_one_trained_by_plain_peft_has_the_rows_that_plain_peft_computes(tiny, peft_adapter, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = tiny_experiment.write(tmp_path, tiny, candidates("./from-peft"))
    shutil.copytree(peft_adapter, tmp_path / "from-peft")
    tiny_experiment.run(path)
    runs = runs_of(path)
    rows, base = (
        store.read_rows(Store(tmp_path / "runs"), runs[name].rows["prose/test"])
        for name in ("theirs", "prompt")
    )
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), peft_adapter
    )
    encode = ModelHost(resolve(str(tiny)), CPU).base.encode
    for row, before in zip(rows, base, strict=True):
        encoded = encode([], row.references[0], chat_template=False)
        ids = torch.tensor([[*encoded.context, *encoded.continuation]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        places = range(len(encoded.context) - 1, ids.shape[1] - 1)
        expected = sum(logprobs[at, ids[0, at + 1]].item() for at in places)
        assert row.gold_logprob == pytest.approx(expected, abs=1e-3)
        assert row.gold_logprob != pytest.approx(before.gold_logprob, abs=1e-3)


def test_the_same_weights_trained_here_and_saved_by_plain_peft_have_the_same_rows(tiny, tmp_path, copy):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inside = runs_of(copy)["lora"]
    made = copy.parent / "runs" / "weights" / inside.training.fit_key / "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    PeftModel.from_pretrained(base, made).save_pretrained(tmp_path / "elsewhere")
    copy.write_text(copy.read_text() + candidates(tmp_path / "elsewhere").partition("\n")[2])
    tiny_experiment.run(copy, candidates=("prompt", "theirs"))
    assert runs_of(copy)["theirs"].rows == inside.rows


def test_a_digest_sees_the_weights_and_their_scale_and_nothing_else(peft_adapter, tmp_path):
    def changed(name, **config):
        folder = shutil.copytree(peft_adapter, tmp_path / name)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
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
    made = lora.fit(tiny_methods.context(wide, tmp_path / "fit"), lora.Params(r=2, max_steps=1))
    said = refusal(tiny, tmp_path, made.folder / "adapter")
    assert f"an adapter for another base ({wide})" in said
    assert re.search(r"layers\.\d\.\S+ of size \d+, which the base has as \(\d+, \d+\)", said), said
    assert f"set base_model: {wide}" in said


def test_an_adapter_of_more_layers_than_the_base_has_is_refused(tiny, peft_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(peft_adapter, tmp_path / "deep")
    tensors = load_file(folder / "adapter_model.safetensors")
    deeper = {name.replace("layers.1.", "layers.7."): t.clone() for name, t in tensors.items()}
    save_file(tensors | deeper, folder / "adapter_model.safetensors")
    assert "layers.7.mlp.down_proj, which the base does not have" in refusal(tiny, tmp_path, folder)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("adapter_config.json", "without adapter_config.json"),
        ("adapter_model.safetensors", "without adapter_model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(tiny, peft_adapter, tmp_path, lost, said):
    folder = shutil.copytree(peft_adapter, tmp_path / "part")
    (folder / lost).unlink()
    assert said in refusal(tiny, tmp_path, folder)


def test_a_file_that_is_no_safetensors_is_refused(tiny, peft_adapter, tmp_path):
    folder = shutil.copytree(peft_adapter, tmp_path / "garbled")
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    assert "no safetensors file" in refusal(tiny, tmp_path, folder)


def pickle_adapter(theirs, folder):
    import torch
    from safetensors.torch import load_file

    shutil.copytree(theirs, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_unless_asked_for(tiny, peft_adapter, tmp_path):
    said = refusal(tiny, tmp_path, pickle_adapter(peft_adapter, tmp_path / "pickled"))
    assert "a pickle, which can run code" in said
    assert "allow_pickle: true" in said


def test_pickled_weights_that_are_asked_for_are_those_of_the_safetensors(tiny, peft_adapter, tmp_path):
    params = adapter.Params(allow_pickle=True)
    contexts = [
        tiny_methods.context(tiny, tmp_path / name, path=folder)
        for name, folder in (("a", peft_adapter), ("b", pickle_adapter(peft_adapter, tmp_path / "pickled")))
    ]
    first, second = (adapter.fit(context, params) for context in contexts)
    assert first.digest == second.digest


def test_a_pickle_that_holds_more_than_tensors_is_not_opened(tiny, peft_adapter, tmp_path):
    import pickle

    folder = pickle_adapter(peft_adapter, tmp_path / "pickled")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"x": print}))
    context = tiny_methods.context(tiny, tmp_path / "fit", path=folder)
    with pytest.raises(CandidateFailed, match="something other than tensors"):
        adapter.fit(context, adapter.Params(allow_pickle=True))
