"""Checkpoints of a delta hold what is trained and no more, and a training goes on from them as if undisturbed."""

from dataclasses import replace

import pytest
import tiny_methods

from harness.methods import bottleneck, spectrum
from harness.models.deltas import WEIGHTS
from harness.models.weight_files import tensors_of
from harness.training import CHECKPOINTS

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = {"num_train_epochs": 3, "per_device_train_batch_size": 2, "warmup_steps": 0}
METHODS = {
    "bottleneck": (bottleneck, {"learning_rate": 0.02, "bottleneck_size": 4}),
    "spectrum": (spectrum, {"learning_rate": 0.01, "share": 0.5}),
}


def fit(tiny, folder, name, changes=None, **given):
    method, params = METHODS[name]
    context = replace(tiny_methods.context(tiny, folder), **(changes or {}))
    return method.fit(context, method.Params(**{**QUICK, **params, **given}))


def stop_at(step):
    def advance(done, total, note=""):
        if done == step:
            raise KeyboardInterrupt

    return advance


@pytest.mark.e2e
@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_was_stopped_goes_on_to_the_weights_of_an_undisturbed_one(tiny, tmp_path, name):
    whole = fit(tiny, tmp_path / "whole", name)
    total = whole.training.n_steps
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path / "stopped", name, {"advance": stop_at(2 * total // 3)})
    (kept, *_) = (tmp_path / "stopped" / CHECKPOINTS).glob("checkpoint-*/model.safetensors")
    trained = sum((t.end - t.begin) // 4 for t in tensors_of(kept).values())
    assert trained == whole.training.n_trainable
    again = fit(tiny, tmp_path / "stopped", name)
    assert again.digest == whole.digest
    assert again.training.n_steps == total


@pytest.mark.parametrize("name", METHODS)
def test_the_checkpoint_with_the_best_validation_loss_is_what_is_saved(tiny, tmp_path, name):
    """The validation rows want answers of which each round knows less."""
    from safetensors.torch import load_file

    others = tuple(
        replace(row, references=("brown hen at noon",)) for row in tiny_methods.examples(slice(5, 6))
    )
    rate = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "num_train_epochs": 5}
    made = fit(tiny, tmp_path, name, {"validation": others}, **rate)
    losses = dict(made.training.validation_loss)
    best = min(losses, key=losses.get)
    assert best < max(losses)
    checkpoint = load_file(tmp_path / CHECKPOINTS / f"checkpoint-{best}" / "model.safetensors")
    saved = load_file(tmp_path / "delta" / WEIGHTS)
    plain = {
        key.removeprefix("bottleneck_layers.").removesuffix(".weight"): t for key, t in checkpoint.items()
    }
    assert len(plain) == len(saved)
    assert all(t.equal(plain[key.removesuffix(".weight")]) for key, t in saved.items())
