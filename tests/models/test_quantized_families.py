"""NF4 on a CPU, families that PEFT cannot adapt on it, and model sizes computed from shapes."""

import json
import sys

import pytest
import tiny_experiment
import tiny_methods
from model_headers import decoder, write_headers
from tiny_methods import CPU
from tiny_model import logits

from harness.errors import UserError
from harness.experiment.bases import FitQuery, examine_base
from harness.methods.supervised import Qlora
from harness.models import hub, memory
from harness.models.devices import load_base
from harness.models.hardware import dtype
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.models.shapes import shape_of
from harness.records import PromptText
from harness.spec import Recipe
from harness.training import peft_families
from harness.training.peft_families import NOT_ON_NF4, UNQUANTIZED, families, peft_config

pytestmark = pytest.mark.usefixtures("own_cache")


# Parameters of a family on a model of 32 units; the others take `r: 2`.
PARAMS = {
    "ADALORA": {"init_r": 6, "target_r": 2}, "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BEFT": {"target_modules": ["v_proj"]}, "BOFT": {}, "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20}, "FROD": {"progressbar": False}, "GRALORA": {"r": 4}, "IA3": {},
    "LN_TUNING": {}, "OFT": {"oft_block_size": 4}, "OSF": {}, "ROAD": {"group_size": 4},
    "SUPERTUNING": {"sparsity": 0.9}, "TINYLORA": {"u": 4}, "UNILORA": {"r": 2, "theta_d_length": 32},
    "VBLORA": {"r": 2, "vector_length": 4, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 20},
}  # fmt: skip
# No adapters of linear layers: soft prompts, an adapter of attention, and embeddings.
ELSEWHERE = ("ADAPTION_PROMPT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "TRAINABLE_TOKENS")
# Untrained adapters that change the base's output.
NOT_ZERO = ("C3A", "FOURIERFT", "VBLORA")
# They compute with dequantised weights, while the base multiplies in 8 bits.
DEQUANTIZED = ("SHIRA",)
# It computes with the integers, and an untrained one changes nothing.
SILENT = (("PEANUT", "int8"),)


@pytest.mark.parametrize("family", [*UNQUANTIZED, *NOT_ON_NF4])
def test_what_needs_unquantised_weights_is_refused_on_nf4_on_a_gpu_alone(family):
    recipe = Recipe(method="peft", quantization="nf4")

    def list_problems(device):
        return [*peft_families.quantization_problems(recipe, {"peft_type": family}, device, "own")]

    assert list_problems("cuda")
    assert not list_problems("cpu")


@pytest.mark.weekly
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("family", sorted(families().keys() - {*ELSEWHERE}))
def test_the_families_that_are_refused_are_those_that_peft_cannot_compute(tiny, family, quantization):
    refused = UNQUANTIZED if quantization == "int8" else (*UNQUANTIZED, *NOT_ON_NF4)
    is_silent = (family, quantization) in SILENT
    assert _computes(tiny, family, quantization) == (family not in refused or is_silent)


def _computes(tiny, family, quantization):
    """Tell whether an adapter of a family trains on quantised layers and starts at the expected output."""
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if quantization == "int8":
        base, _ = load_base(quantize(resolve(str(tiny)), quantization), CPU)
    else:  # packed, as on a GPU
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        loading = {"dtype": torch.float32, "device_map": {"": "cpu"}, "quantization_config": config}
        base = AutoModelForCausalLM.from_pretrained(tiny, **loading)
        for module in base.modules():  # a kernel that no GPU has, and that takes no rows shorter than a block
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    ids = list(range(5, 20))
    plain = logits(base, ids)
    try:
        model = get_peft_model(base, peft_config(family, PARAMS.get(family, {"r": 2})))
        moved = (logits(model, ids) - plain).abs().max()
        row = torch.tensor([ids])
        model.train()(input_ids=row, labels=row).loss.backward()
    except (RuntimeError, TypeError, ValueError):
        return False
    return family in (*NOT_ZERO, *DEQUANTIZED) or moved.item() < 0.01


@pytest.fixture
def source(tiny):
    return quantize(resolve(str(tiny)), "nf4")


def load_by_bitsandbytes(source, precision):
    """Load the model with bitsandbytes' own layers, left in training mode, where it never repacks."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype(precision),
    }
    loading = {"dtype": dtype(precision), "device_map": {"": "cpu"}}
    config = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    return AutoModelForCausalLM.from_pretrained(source.path, quantization_config=config, **loading).train()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_quantised_base_computes_what_bitsandbytes_does(source, precision):
    import torch

    ids = torch.arange(5, 25)[None]
    theirs = load_by_bitsandbytes(source, precision)
    ours, _ = load_base(source, CPU._replace(precision=precision))
    plain, _ = load_base(source._replace(quantization=""), CPU._replace(precision=precision))
    with torch.no_grad():
        expected = theirs(ids).logits
        for _ in range(2):  # bitsandbytes' own layers change at the first evaluation
            assert torch.equal(ours.eval()(ids).logits, expected)
        assert not torch.allclose(plain(ids).logits, expected, atol=1e-2)


def test_gradients_pass_through_it_after_an_evaluation_as_before(source):
    import torch

    ids = torch.arange(5, 25)[None]
    grads = []
    for model in (load_by_bitsandbytes(source, "fp32"), load_base(source, CPU)[0]):
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        if not grads:
            model.train()
        else:
            with torch.no_grad():
                model.eval()(inputs_embeds=embeddings)
        model(inputs_embeds=embeddings).logits.logsumexp(-1).sum().backward()
        grads.append(embeddings.grad)
    assert torch.allclose(*grads, atol=1e-5)


@pytest.mark.e2e
def test_qlora_is_trained_on_the_quantised_base(tiny, source, tmp_path):
    rows = tiny_methods.examples(slice(0, 1))[:1]
    params = {"r": 2, "max_steps": 1, "warmup_steps": 0}
    trained = tiny_methods.fit(tiny, tmp_path, Qlora, params, source=source, train=rows)
    candidate = ModelHost(source, CPU).base
    written = PromptText(rows[0].messages, f"{rows[0].references[0]}<|im_end|>\n", is_written=True)
    (encoded,) = candidate.encode_all([written])
    expected = -candidate.loglikelihood([encoded[:2]])[0].logprob / len(encoded.continuation)
    assert trained.training.loss[0][1] == pytest.approx(expected, abs=1e-3)


def test_without_bitsandbytes_a_qlora_is_refused_before_anything_runs(tiny, tmp_path, monkeypatch):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n  qlora: {method: qlora}\n")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"candidate qlora.*pip install 'harness-evals\[qlora\]'"):
        tiny_experiment.session(path)
    assert not (tmp_path / "runs").exists()


LLAMA_3_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3_SIZES = {
    "layers": 32, "hidden": 4096, "inner": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocabulary": 128256,
    "tied": False,
}  # fmt: skip
# google/gemma-3-4b-pt: heads, their width and the vocabulary are left at the family's default.
GEMMA_3_4B = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip
# google/gemma-2-2b, without the tie, which is the family's default.
GEMMA_2_2B = {
    "model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
FALCON_7B = {
    "model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71,
    "multi_query": True, "new_decoder_architecture": False, "vocab_size": 65024,
}  # fmt: skip
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512,
    "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
MAMBA_130M = {"model_type": "mamba", "num_hidden_layers": 24, "hidden_size": 768, "vocab_size": 50280}


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        pytest.param(LLAMA_3_8B, 32 * 2 * 8 * 128, id="Llama-3-8B (arXiv:2407.21783, table 3)"),
        pytest.param(GEMMA_3_4B, 34 * 2 * 4 * 256, id="Gemma-3-4B (arXiv:2503.19786)"),
        pytest.param(GEMMA_2_2B, 26 * 2 * 4 * 256, id="Gemma-2-2B (arXiv:2408.00118, table 1)"),
        pytest.param(FALCON_7B, 32 * 2 * 1 * 64, id="Falcon-7B, one head of keys (arXiv:2311.16867)"),
        pytest.param(DEEPSEEK_V2_LITE, 27 * (512 + 64), id="DeepSeek-V2-Lite, latent (arXiv:2405.04434)"),
        pytest.param(MAMBA_130M, 0, id="Mamba, which keeps no keys (arXiv:2312.00752)"),
    ],
)
def test_of_a_token_is_kept_what_the_family_keeps(config, numbers):
    assert memory.kv_cache_bytes(shape_of(config, 1e9), 1, "bf16") == 2 * numbers


def test_embeddings_that_are_tied_by_default_count_once(tmp_path):
    """675 million in embeddings, and 3,209 others (arXiv:2503.19786, table 1)."""
    sizes = {
        "layers": 34, "hidden": 2560, "inner": 10240, "heads": 8, "kv_heads": 4, "head_dim": 256, "vocabulary": 262208,
    }  # fmt: skip
    folder = write_headers(tmp_path / "base", GEMMA_3_4B, decoder(**sizes, tied=True))
    result = examine_base(str(folder), FitQuery(24.0))
    assert result.shape.in_embeddings / 1e6 == pytest.approx(675, abs=4)
    assert (result.n_parameters - result.shape.in_embeddings) / 1e6 == pytest.approx(3209, abs=1)


def gptq(name, d_out, d_in):
    groups = d_in // 128
    return {
        f"{name}.qweight": ("I32", (d_in // 8, d_out)),
        f"{name}.qzeros": ("I32", (groups, d_out // 8)),
        f"{name}.scales": ("F16", (groups, d_out)),
    }


def fp8(name, d_out, d_in):
    return {
        f"{name}.weight": ("F8_E4M3", (d_out, d_in)),
        f"{name}.weight_scale_inv": ("F32", (d_out // 128, d_in // 128)),
    }


IN_LAYERS = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
BESIDE = 2 * 2 * 128256 * 4096 + 2 * 65 * 4096  # bytes of embeddings, output layer and norms
QUANTISED = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 16 / 128 + 4 / 128),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_files_that_are_quantised_take_the_memory_of_their_headers(tmp_path, name):
    layer, settings, _ = QUANTISED[name]
    config = {**LLAMA_3_8B, "quantization_config": settings}
    folder = str(write_headers(tmp_path / "base", config, decoder(**LLAMA_3_SIZES, quantised=layer)))
    result = examine_base(folder, FitQuery(12.0))
    assert result.n_parameters == 8_030_261_248
    stored = (IN_LAYERS * QUANTISED[name][2] / 8 + BESIDE) / 1e9
    ways = {way.name: way for way in result.ways}
    assert ways["prompting"].peak.weights == pytest.approx(stored, abs=0.001)
    assert {"QLoRA", "full fine-tuning"}.isdisjoint(ways)
    assert f"quantised ({name})" in result.notes[0]
    if name == "gptq":  # its 16 bits would not fit
        assert {w.name for w in examine_base(folder, FitQuery(16.0)).ways if w.fits} == {"prompting", "LoRA"}


def test_gpt_oss_20b_is_read_as_its_card_has_it_packed_and_unpacked(tmp_path):
    """20.9 billion parameters in a checkpoint of 12.8 GiB (arXiv:2508.10925, table 1)."""
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 201088, "tie_word_embeddings": False, "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    tensors = {f"{name}.weight": ("BF16", (201088, 2880)) for name in ("model.embed_tokens", "lm_head")}
    for i in range(24):
        at = f"model.layers.{i}"
        for name, d_out, d_in in (("q", 4096, 2880), ("k", 512, 2880), ("v", 512, 2880), ("o", 2880, 4096)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = ("BF16", (d_out, d_in))
        for name, d_out in (("gate_up_proj", 5760), ("down_proj", 2880)):
            tensors[f"{at}.mlp.experts.{name}_blocks"] = ("U8", (32, d_out, 90, 16))
            tensors[f"{at}.mlp.experts.{name}_scales"] = ("U8", (32, d_out, 90))
    result = examine_base(str(write_headers(tmp_path / "base", config, tensors)), FitQuery(24.0))
    assert result.n_parameters / 1e9 == pytest.approx(20.9, abs=0.05)
    prompting, unpacked, lora, _ = result.ways
    assert prompting.peak.weights / (2**30 / 1e9) == pytest.approx(12.8, abs=0.05)
    assert (prompting.fits, unpacked.fits) == (True, False)
    assert (unpacked.name, lora.name) == ("prompting (unpacked)", "LoRA (unpacked)")
    assert unpacked.peak.weights == pytest.approx(2 * 20.9, abs=0.05)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "config.json: []"),
        ({**LLAMA_3_8B, "num_attention_heads": 0}, "num_attention_heads: 0"),
        ({**LLAMA_3_8B, "quantization_config": "gptq"}, "quantization_config: 'gptq'"),
        ({"model_type": "t5", "vocab_size": 32128}, "an encoder with a decoder"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_with_what_is_wrong_in_it(tmp_path, config, said):
    write_headers(tmp_path, config, {"w": ("BF16", (4,))})
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        examine_base(str(tmp_path), FitQuery(24.0))
    if "encoder" not in said:
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            hub.resolve(str(tmp_path))


def test_a_shard_that_the_index_names_and_that_is_missing_is_said(tmp_path):
    tensors = {"w": ("BF16", (4,))}
    write_headers(tmp_path, LLAMA_3_8B, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    shards = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for refuse in (lambda: examine_base(str(tmp_path), FitQuery(24.0)), lambda: hub.resolve(str(tmp_path))):
        with pytest.raises(UserError, match=r"no model-00002-of-00002\.safetensors, which"):
            refuse()
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="a damaged file"):
        hub.resolve(str(tmp_path))
