"""Full fine-tuning changes all of the model but what is frozen, and leaves a folder that loads anywhere."""

from functools import partial

import pytest
import tiny_methods
from tiny_methods import CPU

from harness import regularizers
from harness.methods import full
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.training import CHECKPOINTS

ASKED = [{"role": "user", "content": "Where is my parcel?"}]

pytestmark = pytest.mark.usefixtures("own_cache")


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def changed(tiny, folder, precision="fp32", regularize=None):
    """Train, and return the names of the tensors that changed."""
    prepare = partial(regularizers.prepare, regularize or {})
    context = tiny_methods.context(tiny, folder, machine=CPU._replace(precision=precision), prepare=prepare)
    made = full.fit(context, full.Params(learning_rate=0.01, num_train_epochs=1))
    before, after = tensors(tiny), tensors(made.folder / "model")
    assert before.keys() == after.keys()
    return {name for name in before if not after[name].float().equal(before[name])}, made


def test_every_tensor_is_trained(tiny, tmp_path):
    names, made = changed(tiny, tmp_path)
    assert names == set(tensors(tiny))
    assert made.kind == "model"
    assert {p.name for p in tmp_path.iterdir()} == {"model", CHECKPOINTS}
    assert made.training.n_trainable == sum(t.numel() for t in tensors(tiny).values())


def test_the_folder_is_a_model_like_any_other_in_the_precision_that_is_served(tiny, tmp_path):
    import torch

    _, made = changed(tiny, tmp_path, "bf16")
    assert {t.dtype for t in tensors(made.folder / "model").values()} == {torch.bfloat16}
    host = ModelHost(resolve(str(made.folder / "model")), CPU._replace(precision="bf16"))
    assert host.base.encode(ASKED) == ModelHost(resolve(str(tiny)), CPU).base.encode(ASKED)


@pytest.mark.parametrize(
    ("written", "moves"),
    [
        ({"first": 1}, lambda name: "layers.1." in name or name == "model.norm.weight"),
        ({"all_but_last": 1}, lambda name: "layers.1." in name),
    ],
)
def test_what_is_frozen_stays_as_it_was(tiny, tmp_path, written, moves):
    names, _ = changed(tiny, tmp_path, regularize={"freeze": written})
    assert names == {name for name in tensors(tiny) if moves(name)}
