"""Packed rows are trained on like rows alone, where enough steps are left; else rows are not packed."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import tiny_methods

from harness.experiment.analysis.run_remarks import describe_trainings
from harness.methods import full, lora
from harness.models.cpu_kernels import chunk_attention
from harness.records import TrainingRecord
from harness.training import sft
from harness.training.tokenized import FEWEST_STEPS, batch_packs, keeps_rows_apart

pytestmark = pytest.mark.usefixtures("own_cache")

# All twelve rows in one batch, packed or not.
STEPS = {"max_steps": FEWEST_STEPS, "learning_rate": 1e-3, "max_length": 80}
ALONE = {"per_device_train_batch_size": 12, **STEPS}


def fit_tiny(tiny, folder, method, params):
    return method.METHOD.fit(tiny_methods.context(tiny, folder), method.Params(**params)).training


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "own"),
    [pytest.param(lora, {"r": 2}, id="lora"), pytest.param(full, {}, id="full", marks=pytest.mark.weekly)],
)
def test_packed_rows_have_the_losses_of_rows_alone(tiny, tmp_path, method, own):
    alone = fit_tiny(tiny, tmp_path / "alone", method, {**own, **ALONE})
    packed = fit_tiny(tiny, tmp_path / "packed", method, {**own, **ALONE, "packing": True})
    assert 1 < packed.n_packs < 12
    for name in ("loss", "validation_loss"):
        assert [loss for _, loss in getattr(packed, name)] == pytest.approx(
            [loss for _, loss in getattr(alone, name)], abs=1e-4
        )
    assert packed.loss[-1][1] < 0.9 * packed.loss[0][1]
    assert packed.n_tokens == alone.n_tokens


@pytest.fixture
def rows():
    import torch

    alone = [torch.arange(5, 5 + n) for n in (4, 9, 2)]
    return alone, torch.cat(alone)[None], torch.cat([torch.arange(len(row)) for row in alone])[None]


@contextmanager
def set_attention(model, attention):
    if attention == "in parts":
        with chunk_attention(model):
            yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    yield
    model.set_attn_implementation(before)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "in parts"])
def test_a_packed_row_is_read_as_if_it_were_alone(model, rows, attention):
    import torch

    alone, ids, positions = rows
    with set_attention(model, attention), torch.no_grad():
        expected = torch.cat([model(row[None], use_cache=False).logits[0] for row in alone])
        packed = model(ids, position_ids=positions, use_cache=False).logits[0]
    assert torch.allclose(packed, expected, atol=1e-5)


def test_a_model_is_known_by_its_answers_to_keep_packed_rows_apart_or_not(model):
    assert keeps_rows_apart(model)

    def forward_blindly(input_ids, position_ids, use_cache):
        return model(input_ids, use_cache=use_cache)  # one row of all, as without positions

    forward_blindly.device = model.device
    assert not keeps_rows_apart(forward_blindly)


@pytest.mark.e2e
def test_rows_are_not_packed_where_too_few_steps_would_be_left(tiny, tmp_path):
    params = {"r": 2, "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    alone = fit_tiny(tiny, tmp_path / "alone", lora, params)
    made = fit_tiny(tiny, tmp_path / "packed", lora, {**params, "packing": True})
    assert made.loss == alone.loss
    assert made.not_packed == "would leave 2 optimiser steps, fewer than 100"


def test_that_rows_were_not_packed_is_said_under_the_table():
    run = SimpleNamespace(
        candidate="lora",
        seed=0,
        method="lora",
        weights_digest="w",
        training=TrainingRecord(not_packed="would x"),
    )
    recipe = SimpleNamespace(weights_of="", init_from=None)
    study = SimpleNamespace(
        experiment=SimpleNamespace(candidates={"lora": recipe}),
        target=None,
        primary=lambda task: SimpleNamespace(unit=SimpleNamespace(sign=1)),
    )
    assert [*describe_trainings(study, [run])] == ["lora: trained without packing, which would x"]


# What a GPU's training computes, on a CPU


def loss_of(tiny, tmp_path, kind, *, packing):
    """Return the losses of one batch of three rows under a kind of trainer, and what its model read."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    ids = [list(range(5, 5 + n)) for n in (6, 11, 4)]
    rows = [{"input_ids": row, "completion_mask": [0, 0] + [1] * (len(row) - 2)} for row in ids]
    args = SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        max_length=12,
        packing=packing,
        completion_only_loss=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    model = AutoModelForCausalLM.from_pretrained(tiny)
    trainer = kind(
        model=model,
        args=args,
        processing_class=AutoTokenizer.from_pretrained(tiny),
        train_dataset=Dataset.from_list(rows),
    )
    if packing:
        batch_packs(trainer.data_collator)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == (2 if packing else 3), "packs keep rows of their own"
    return trainer.compute_loss(trainer.model, batch).item()


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_a_gpus_training_is_that_of_a_cpus(tiny, tmp_path, packing):
    tiled, whole = (
        loss_of(tiny, tmp_path, kind(), packing=packing)
        for kind in (sft.make_tiled_loss_trainer, sft.whole_loss_trainer)
    )
    alone = loss_of(tiny, tmp_path, sft.whole_loss_trainer(), packing=False)
    assert tiled == pytest.approx(whole, abs=1e-5)
    assert tiled == pytest.approx(alone, abs=1e-5)
