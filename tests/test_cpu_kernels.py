"""Pre-packed layers multiply exactly as before; attention in chunks is as transformers' own."""

import copy

import pytest

from harness.models.cpu_kernels import chunk_attention, multiplies_bf16, prepack

ROWS = [1, 3, 64, 160]
N = 300  # two whole parts and a rest


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
    assert ("forward" in vars(packed[0])) == multiplies_bf16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", ROWS)
def test_a_product_in_full_precision_stays_the_same_but_for_rounding(bias, n_rows):
    import torch

    plain = layers(bias, torch.float32)
    laid_out = copy.deepcopy(plain)
    prepack(laid_out)
    x = torch.randn(2, n_rows, 96)
    with torch.inference_mode():
        assert torch.allclose(laid_out(x), plain(x), rtol=1e-5, atol=1e-6)


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


@pytest.fixture
def small_llama():
    """A model of two layers whose six heads share two groups of keys."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 90}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=512, attn_implementation="sdpa")
    return LlamaForCausalLM(config).eval()


def ids(n_rows, n=N):
    import torch

    return torch.arange(n_rows * n).reshape(n_rows, n) % 83 + 5


def logits(model, in_parts, **inputs):
    import torch

    with torch.inference_mode():
        if in_parts:
            with chunk_attention(model):
                return model(**inputs).logits
        return model(**inputs).logits


def assert_same(model, **inputs):
    import torch

    torch.testing.assert_close(
        logits(model, True, **inputs), logits(model, False, **inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("n", [1, 128, 129, N])
def test_causal_rows_of_any_length_get_the_logits_of_fused_attention(small_llama, n):
    assert_same(small_llama, input_ids=ids(2, n))


def test_a_mask_of_ones_own_is_kept(small_llama):
    import torch

    order = torch.arange(N)
    seen = (order[:, None] >= order) & ((order < 40) | (order // 50 == order[:, None] // 50))
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    assert_same(small_llama, input_ids=ids(1), attention_mask=mask)
    assert not torch.equal(
        logits(small_llama, True, input_ids=ids(1), attention_mask=mask),
        logits(small_llama, True, input_ids=ids(1)),
    )


def test_rows_that_go_on_after_others_see_what_was_read(small_llama):
    import torch
    from transformers import DynamicCache

    whole = logits(small_llama, False, input_ids=ids(1))
    cache = DynamicCache(config=small_llama.config)
    logits(small_llama, True, input_ids=ids(1)[:, :130], past_key_values=cache, use_cache=True)
    rest = logits(small_llama, True, input_ids=ids(1)[:, 130:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(rest, whole[:, 130:], rtol=1e-4, atol=1e-5)


def test_a_model_attends_afterwards_as_before_and_as_it_was_told(small_llama):
    with chunk_attention(small_llama):
        assert small_llama.config._attn_implementation == "parts"
    assert small_llama.config._attn_implementation == "sdpa"
    small_llama.set_attn_implementation("eager")
    with chunk_attention(small_llama):
        assert small_llama.config._attn_implementation == "eager"
