"""Rows joined in one sequence train like each alone, and are joined only where that holds."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from harness.models import loglikelihood
from harness.models.hub import resolve
from harness.training.sft import can_join, join_rows, joins_rows_of

SYSTEM, OTHER = list(range(20, 32)), list(range(40, 50))
ROWS = [[*SYSTEM, 5, 6, 7, 8], [*OTHER, 9, 10, 11], [*SYSTEM, 5, 12, 13], [*SYSTEM, 14, 15, 16, 17, 18]]


def batch_of(rows, n_learned=2):
    """Return ids, mask and labels of right-padded rows whose last tokens are learned."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        labels[number, len(row) - n_learned : len(row)] = torch.tensor(row[-n_learned:])
    return ids, mask, labels


def loss_and_gradient(model, compute_loss):
    model.zero_grad()
    loss = compute_loss()
    loss.backward()
    return loss.item(), model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_and_gradients_of_joined_rows_are_those_of_padded_rows_for_fewer_tokens(tiny, attention):
    model = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation=attention).train()
    ids, mask, labels = batch_of(ROWS)
    joined = join_rows(model, ids, mask, labels)

    def padded():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")

    def in_one():
        logits = model(**joined.inputs, use_cache=False).logits[0, joined.kept]
        return cross_entropy(logits, joined.targets, reduction="sum")

    (expected, gradient), (loss, in_one_gradient) = (loss_and_gradient(model, f) for f in (padded, in_one))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(in_one_gradient, gradient, atol=1e-5)
    assert joined.input_ids.numel() == sum(map(len, ROWS)) - 2 * len(SYSTEM)


def test_tokens_from_the_one_that_predicts_a_label_on_are_a_rows_own(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    same = [[*SYSTEM, 5, 6], [*SYSTEM, 5, 6]]
    joined = join_rows(model, *batch_of(same, n_learned=1))
    assert joined.input_ids.tolist() == [[*SYSTEM, 5, 6, 5, 6]]
    assert joined.position_ids.tolist() == [[*range(12), 12, 13, 12, 13]]
    assert joined.kept.tolist() == [12, 14]


def test_adapters_that_put_tokens_before_rows_and_models_on_a_card_read_each_row_alone(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert can_join(get_peft_model(model, LoraConfig(r=2)), tiny)
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not can_join(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), soft), tiny)
    assert not can_join(AutoModelForCausalLM.from_pretrained(tiny).to("meta"), tiny)


def test_models_with_dropout_a_loss_of_experts_windows_or_without_a_copy_read_each_row_alone(
    tiny, tmp_path, monkeypatch
):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert can_join(model, tiny)
    counting = AutoModelForCausalLM.from_pretrained(tiny)
    counting.config.output_router_logits = True
    assert not can_join(counting, tiny)
    dropping = AutoModelForCausalLM.from_pretrained(tiny)
    dropping.model.layers[0].mlp.act_fn = torch.nn.Dropout(0.1)
    assert not can_join(dropping, tiny)
    noisy = shutil.copytree(tiny, tmp_path / "noisy")
    config = json.loads((noisy / "config.json").read_text())
    (noisy / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    assert not can_join(model, noisy)
    windowed = shutil.copytree(tiny, tmp_path / "windowed")
    config = json.loads((windowed / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4}
    (windowed / "config.json").write_text(json.dumps(config))
    assert not can_join(model, windowed)
    assert [joins_rows_of(resolve(str(base))) for base in (tiny, windowed)] == [True, False]
    monkeypatch.setattr(loglikelihood, "two_layer_copy", lambda path: None)
    assert not can_join(model, tiny)


def test_a_model_whose_positions_hang_on_a_mask_of_rows_reads_each_row_alone(tiny, tmp_path):
    config = BloomConfig(
        vocab_size=400, hidden_size=32, n_layer=2, n_head=4, attention_dropout=0.0, hidden_dropout=0.0
    )
    bloom = BloomForCausalLM(config)
    bloom.save_pretrained(tmp_path / "bloom")
    assert not can_join(bloom, tmp_path / "bloom")


@pytest.mark.parametrize(
    "rows", [[list(range(9)), list(range(50, 59))], [[*SYSTEM, *range(400)], [*SYSTEM, *range(400, 0, -1)]]]
)
def test_rows_that_share_nothing_or_are_long_stay_a_padded_batch(tiny, rows):
    assert join_rows(AutoModelForCausalLM.from_pretrained(tiny), *batch_of(rows)) is None
