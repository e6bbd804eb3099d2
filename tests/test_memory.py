"""Memory and operations are those that were published or measured, and memory that runs out is noticed."""

import pytest
import torch
from fake_facts import candidate
from golden import golden

from harness.analysis.economics import break_even
from harness.errors import CandidateFailed
from harness.models import memory
from harness.models.memory import explain_out_of_memory, ran_out_of_memory
from harness.models.shapes import Shape, shape_of
from harness.spec import DecidePolicy

LLAMA_7B = Shape(6738415616.0, 32, 4096, 11008, 32, 32, 128, 32000)
LLAMA3_8B = Shape(8.03e9, 32, 4096, 14336, 32, 8, 128, 128256)
LLAMA3_70B = Shape(70.6e9, 80, 8192, 28672, 64, 8, 128, 128256)

QWEN = {
    "1.8B": Shape(1.837e9, 24, 2048, 5504, 16, 16, 128, 151936),
    "7B": Shape(7.721e9, 32, 4096, 11008, 32, 32, 128, 151936),
    "14B": Shape(14.17e9, 40, 5120, 13696, 40, 40, 128, 152064),
    "72B": Shape(72.29e9, 80, 8192, 24576, 64, 64, 128, 152064),
}
LENGTHS = (256, 1024, 4096, 8192)
# Measured by the authors of Qwen: one A100, batch 1, flash attention, LoRA of rank 64, in GB.
MEASURED = {
    ("1.8B", False): (6.7, 8.4, 16.2, 21.8),
    ("1.8B", True): (5.8, 6.6, 10.2, 15.8),
    ("7B", False): (20.1, 21.5, 29.7, 36.6),
    ("7B", True): (11.5, 12.3, 16.9, 23.5),
    ("14B", True): (18.7, 18.9, 23.0, 27.9),
    ("72B", True): (61.4, 62.9, 68.0, 75.6),
}


def test_the_memory_of_qwens_table_is_within_a_fifth_on_nearly_all_cells():
    off = {}
    for (size, nf4), measured in MEASURED.items():
        shape, how = QWEN[size], "nf4" if nf4 else ""
        for length, gb in zip(LENGTHS, measured, strict=True):
            estimate = memory.training_peak(
                shape, memory.lora_parameters(shape, 64), length, quantization=how
            ).total
            off[size, nf4, length] = estimate / gb - 1
    assert len(off) == 24
    assert sum(abs(x) <= 0.20 for x in off.values()) >= 22, off


def test_the_weights_of_llama_take_the_known_bytes():
    expected, _ = golden("vram_llama2_7b")
    assert memory.weights_gb(LLAMA_7B, "bf16") == pytest.approx(expected["bf16_w_GB"])
    trained = 2 * memory.BYTES["fp32"] + memory.optimizer_bytes(None)  # an fp32 copy, gradients, both moments
    state = trained * LLAMA_7B.n_parameters / 1e9
    assert state == pytest.approx(expected["adamw_mixed16_GB"])
    assert state + memory.weights_gb(LLAMA_7B, "bf16") == pytest.approx(expected["adamw_mixed18_GB"])
    nothing_left_out = LLAMA_7B._replace(vocabulary=0)
    assert memory.weights_gb(nothing_left_out, "bf16", quantization="nf4") == pytest.approx(
        expected["nf4_w_GB_4p127"]
    )


def test_a_65b_model_in_nf4_fits_a_card_of_48_gb():
    expected, tolerance = golden("qlora_65b")
    shape = Shape(expected["P"], 80, 8192, 22016, 64, 64, 128, 32000)
    bare = memory.weights_gb(shape._replace(vocabulary=0), "bf16", quantization="nf4")
    assert bare == pytest.approx(expected["w_GB"], rel=tolerance)
    n_trained = memory.lora_parameters(shape, 16)
    assert memory.training_peak(shape, n_trained, 512, quantization="nf4").total < 48


@pytest.mark.parametrize(
    ("r", "modules", "name"),
    [
        *((r, "all-linear", f"r{r}_all") for r in (8, 16, 64, 256)),
        (8, ("q_proj", "v_proj"), "r8_qv"),
        (8, ("q_proj", "k_proj", "v_proj", "o_proj"), "r8_attn4"),
    ],
)
def test_the_parameters_of_an_adapter_are_counted(r, modules, name):
    expected, _ = golden("lora_params_llama2_7b")
    assert memory.lora_parameters(LLAMA_7B, r, modules) == expected[name]


def test_the_cache_of_keys_and_values_takes_the_known_bytes():
    expected, _ = golden("kv_cache")
    assert memory.kv_cache_bytes(LLAMA_7B, 1) == expected["per_token_llama2_7b"]
    assert memory.kv_cache_bytes(LLAMA3_8B, 1) == expected["per_token_llama3_8b"]
    assert memory.kv_cache_bytes(LLAMA_7B, 4096) == expected["llama2_7b_4096"]
    assert memory.kv_cache_bytes(LLAMA3_8B, 8192) == expected["llama3_8b_8192"]
    assert memory.kv_cache_bytes(LLAMA3_70B, 8192) == expected["llama3_70b_8192"]


def test_the_costs_and_break_evens_of_t_few_are_the_published_ones():
    expected, tolerance = golden("tfew_cost")
    asked, shots = 103, 41 * 98  # tokens of one example, and of the shots in front of it
    half = 11e9 / 2  # a token passes the encoder or the decoder
    own = memory.inference_flops(half, asked)
    # T-Few runs the whole backward pass.
    spent = memory.training_flops(half, asked * 8 * 1000)
    in_context = {
        name: memory.inference_flops(n, shots + asked)
        for name, n in (("infer_icl175", 175e9), ("infer_67", 6.7e9), ("infer_13", 13e9))
    }
    assert own == pytest.approx(expected["infer_tfew"], rel=tolerance)
    assert spent == pytest.approx(expected["train_tfew"], rel=tolerance)
    for name, flops in in_context.items():
        assert flops == pytest.approx(expected[name], rel=tolerance)
    assert memory.inference_flops(half, shots + asked) == pytest.approx(expected["t5lm"], rel=tolerance)
    for name, key in (("infer_icl175", "breakeven_requests_vs_icl175"), ("infer_67", "breakeven_vs_icl6p7")):
        tuned = candidate("t-few", 0.8, training_cost_usd=spent, cost_per_1k_usd=1000 * own)
        shots = candidate("in context", 0.7, cost_per_1k_usd=1000 * in_context[name])
        assert break_even(tuned, shots, DecidePolicy()) == pytest.approx(expected[key], rel=tolerance)


def test_a_shape_is_read_from_a_configuration_and_unknown_where_that_does_not_say():
    config = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    shape = shape_of(config, 134_515_008)
    assert (shape.head_dim, shape.n_kv_heads, shape.in_embeddings) == (64, 3, 49152 * 576)
    assert shape_of({"hidden_size": 576}, 1) is None
    assert shape_of({"text_config": config}, 1).n_layers == 30


@pytest.mark.parametrize(
    ("optim", "trained_in", "n_bytes"),
    [
        # Of a parameter that is trained: itself, its gradient and what the optimiser remembers. Rajbhandari et al.
        # 2020 (16 in fp32); Dettmers et al. 2022 (arXiv:2110.02861, two moments of 8 bits).
        (None, "fp32", 16),
        ("adamw_8bit", "fp32", 10),
        (None, "bf16", 8),
        ("paged_adamw_32bit", "bf16", 12),
        ("adamw_8bit", "bf16", 6),
        ("lion_8bit", "bf16", 5),
        ("sgd", "bf16", 4),
    ],
)
def test_a_trained_parameter_takes_what_its_type_and_its_optimiser_do(optim, trained_in, n_bytes):
    n = LLAMA_7B.n_parameters
    peak = memory.training_peak(LLAMA_7B, n, 1, "bf16", optim=optim, trained_in=trained_in)
    beside = 2 if trained_in == "fp32" else 0  # the copy for products
    states = peak.weights + peak.gradients + peak.optimizer
    assert states == pytest.approx((n_bytes + beside) * n / 1e9)
    in_fp32 = memory.training_peak(LLAMA_7B, n, 1, "fp32", trained_in=trained_in)  # without a copy beside
    assert in_fp32.weights == pytest.approx(memory.BYTES[trained_in] * n / 1e9)


def test_a_cpu_without_memory_is_noticed_and_another_error_is_not():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 46)
    assert not isinstance(error.value, torch.OutOfMemoryError)
    assert ran_out_of_memory(error.value)
    with pytest.raises(RuntimeError) as error:
        torch.ones(2) @ torch.ones(3)
    assert not ran_out_of_memory(error.value)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), explain_out_of_memory("x", "y"):
        torch.ones(2) @ torch.ones(3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_what_python_and_a_gpu_say_is_noticed(error):
    assert ran_out_of_memory(error)


def test_a_candidate_without_memory_fails_with_what_to_turn():
    with pytest.raises(CandidateFailed, match="out of memory while training; try: max_length"):  # noqa: SIM117
        with explain_out_of_memory("out of memory while training", "max_length"):
            torch.empty(1 << 46)
