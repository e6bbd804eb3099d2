"""Layers laid out for the matrix unit multiply exactly as before."""

import copy

import pytest

from harness.models.cpu_kernels import prepack

ROWS = [1, 3, 64, 160]


def layers(bias, dtype):
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 130, bias=bias), torch.nn.Linear(130, 50)).to(dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", ROWS)
def test_a_product_stays_the_same_to_the_last_bit(bias, n_rows):
    import torch

    plain = layers(bias, torch.bfloat16)
    packed = copy.deepcopy(plain)
    prepack(packed)
    x = torch.randn(2, n_rows, 96).bfloat16()
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))
    assert "forward" in vars(packed[0])


def test_layers_in_full_precision_are_left_as_they_are():
    import torch

    plain = layers(True, torch.float32)
    prepack(plain)
    assert not any("forward" in vars(layer) for layer in plain)


def test_a_low_rank_adapter_works_on_a_layer_laid_out(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    made = []
    for packs in (False, True):
        model = layers(False, torch.bfloat16)
        if packs:
            prepack(model)
        torch.manual_seed(1)
        config = LoraConfig(target_modules=["0"], init_lora_weights=False)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
        with torch.inference_mode():
            made.append(adapted(torch.ones(5, 96, dtype=torch.bfloat16)))
    assert torch.equal(*made)
