"""Knobs of TRL and transformers are passed on by their names, and smaller batches leave a step as it is."""

import pytest
import tiny_methods

from harness.errors import CandidateFailed
from harness.methods import dpo, full, lora, spectrum
from harness.training import CHECKPOINTS
from harness.training.sft import smaller_batch_size

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1, "warmup_steps": 0}


def fit_tiny(tiny, folder, method=lora, prepare=lambda model: None, advance=lambda *_: None, **params):
    context = tiny_methods.context(tiny, folder, prepare=prepare)
    return method.fit(replace_advance(context, advance), method.Params(**{**QUICK, **params}))


def replace_advance(context, advance):
    from dataclasses import replace

    return replace(context, advance=advance)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "optim"), [(lora, "adafactor"), (lora, "paged_adamw_8bit"), (dpo, "lion_8bit")]
)
def test_an_optimiser_is_taken_by_its_name(tiny, tmp_path, method, optim):
    plain = fit_tiny(tiny, tmp_path / "plain", method)
    assert fit_tiny(tiny, tmp_path / optim, method, optim=optim).digest != plain.digest


@pytest.mark.e2e
def test_the_best_of_the_measured_steps_is_saved(tiny, tmp_path):
    """At this rate every later step is worse."""
    many = {"per_device_train_batch_size": 1, "lr_scheduler_type": "constant", "early_stopping_patience": 2}
    made = fit_tiny(tiny, tmp_path, learning_rate=1.0, eval_steps=1, **many)
    losses = [loss for _, loss in made.training.validation_loss]
    assert made.training.n_steps < 12
    assert losses.index(min(losses)) == len(losses) - 3


def limit_memory(rows, seen=None):
    """Return what lets a model run out of memory where it reads more than so many rows at once."""
    import torch

    def check(module, given, options):
        if module.training and len(options["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if seen is not None and module.training:
            seen.append(len(options["input_ids"]))

    return lambda model: model.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.e2e
@pytest.mark.parametrize("method", [lora, full])
def test_a_batch_that_memory_is_not_enough_for_is_read_in_parts(tiny, tmp_path, method):
    own = {} if method is lora else {"r": 2}
    params = {k: v for k, v in {**QUICK, "per_device_train_batch_size": 6}.items() if k not in own}
    known = tiny_methods.context(tiny, tmp_path / "whole")
    whole = method.fit(known, method.Params(**params)).training
    little = tiny_methods.context(tiny, tmp_path / "parts", prepare=limit_memory(2))
    parts = method.fit(little, method.Params(**params, auto_find_batch_size=True)).training
    assert (parts.batch_size, parts.accumulated_batches) == (2, 3)  # by way of 3 and 2
    assert parts.n_steps == whole.n_steps
    assert (whole.batch_size, whole.accumulated_batches) == (None, None)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


@pytest.mark.e2e
def test_a_training_that_is_begun_again_with_smaller_batches_names_each_type_of_matrix_once(tiny, tmp_path):
    part = {name: value for name, value in QUICK.items() if name != "r"}
    known = spectrum.fit(tiny_methods.context(tiny, tmp_path / "whole"), spectrum.Params(**part))
    little = tiny_methods.context(tiny, tmp_path / "parts", prepare=limit_memory(2))
    parts = spectrum.fit(little, spectrum.Params(**part, auto_find_batch_size=True))
    assert parts.training.batch_size
    assert parts.training.scan == known.training.scan


@pytest.mark.e2e
def test_memory_for_no_row_and_other_failures_fail_as_before(tiny, tmp_path):
    with pytest.raises(CandidateFailed, match="out of memory while training"):
        fit_tiny(tiny, tmp_path / "none", prepare=limit_memory(0), auto_find_batch_size=True)
    with pytest.raises(CandidateFailed, match="out of memory while training"):
        fit_tiny(tiny, tmp_path / "not asked", prepare=limit_memory(2))
    with pytest.raises(CandidateFailed, match="longer than"):
        fit_tiny(tiny, tmp_path / "long", max_length=8, auto_find_batch_size=True)


@pytest.mark.e2e
def test_a_training_that_was_stopped_goes_on_with_the_batch_size_that_it_found(tiny, tmp_path):
    def stop(done, total, note=""):
        if done == 4:
            raise KeyboardInterrupt

    many = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "auto_find_batch_size": True}
    whole = fit_tiny(tiny, tmp_path / "whole", prepare=limit_memory(2), **many)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tiny, tmp_path / "cut", prepare=limit_memory(2), advance=stop, **many)
    assert any((tmp_path / "cut" / CHECKPOINTS).glob("checkpoint-*"))
    seen = []
    assert fit_tiny(tiny, tmp_path / "cut", prepare=limit_memory(2, seen), **many).digest == whole.digest
    assert set(seen) == {2}


@pytest.mark.parametrize(
    ("size", "n_rows", "smaller"),
    [(8, 8, 4), (8, 32, 4), (6, 6, 3), (3, 6, 2), (6, 12, 4), (7, 7, 1), (1, 8, 0)],
)
def test_smaller_batches_make_up_the_rows_of_a_step(size, n_rows, smaller):
    assert smaller_batch_size(size, n_rows) == smaller


@pytest.mark.parametrize(
    ("params", "weights", "moments"),
    [
        ({}, "torch.float32", {"torch.float32"}),
        ({"dtype": "bfloat16"}, "torch.bfloat16", {"torch.bfloat16"}),
        ({"dtype": "bfloat16", "optim": "adamw_8bit"}, "torch.bfloat16", {"torch.uint8", "torch.float32"}),
        ({"dtype": "bfloat16", "optim": "paged_adamw_32bit"}, "torch.bfloat16", {"torch.float32"}),
    ],
)
def test_a_whole_model_is_trained_in_the_type_that_is_written(
    tiny, tmp_path, monkeypatch, params, weights, moments
):
    from transformers import Trainer

    inner, seen = Trainer.training_step, []

    def record_types(self, *args, **kwargs):
        state = self.optimizer.optimizer.state.values()
        remembered = [v for of in state for name, v in of.items() if name in ("exp_avg", "state1")]
        seen.append(({str(p.dtype) for p in self.model.parameters()}, {str(v.dtype) for v in remembered}))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", record_types)
    context = tiny_methods.context(tiny, tmp_path, machine=tiny_methods.CPU._replace(precision="bf16"))
    made = full.fit(context, full.Params(**params, max_steps=3, warmup_steps=0, learning_rate=0.01))
    assert made.training.loss[-1][1] < made.training.loss[0][1]
    assert {kind for kinds, _ in seen for kind in kinds} == {weights}
    assert seen[-1][1]
    assert seen[-1][1] <= moments
