"""Memory, time and operations against published or measured figures; fit on a card from headers alone."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from fake_facts import candidate
from golden import golden
from model_headers import decoder, write_headers
from test_training import LLAMA_2_7B
from typer.testing import CliRunner

from harness.analysis.economics import break_even
from harness.cli.app import app
from harness.cli.setup import gigabytes
from harness.errors import CandidateFailed, UserError
from harness.experiment.bases import FitQuery, examine_base, ways
from harness.models import hub, memory
from harness.models.out_of_memory import explain_out_of_memory, ran_out_of_memory
from harness.models.shapes import Shape, shape_of
from harness.models.weight_files import Tensor
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
    errors = {}
    for (size, nf4), measured in MEASURED.items():
        shape, quantization = QWEN[size], "nf4" if nf4 else ""
        n_trained = memory.lora_parameters(shape, 64)
        for length, gb in zip(LENGTHS, measured, strict=True):
            peak = memory.training_peak(shape, n_trained, length, quantization=quantization)
            errors[size, nf4, length] = peak.total / gb - 1
    assert len(errors) == 24
    assert sum(abs(x) <= 0.20 for x in errors.values()) >= 22, errors


def test_the_weights_of_llama_take_the_known_bytes():
    expected, _ = golden("vram_llama2_7b")
    assert memory.weights_gb(LLAMA_7B, "bf16") == pytest.approx(expected["bf16_w_GB"])
    n_bytes = 2 * memory.BYTES["fp32"] + memory.optimizer_bytes(None)  # an fp32 copy, gradients, both moments
    state_gb = n_bytes * LLAMA_7B.n_parameters / 1e9
    assert state_gb == pytest.approx(expected["adamw_mixed16_GB"])
    assert state_gb + memory.weights_gb(LLAMA_7B, "bf16") == pytest.approx(expected["adamw_mixed18_GB"])
    nf4_gb = memory.weights_gb(LLAMA_7B._replace(vocabulary=0), "bf16", quantization="nf4")
    assert nf4_gb == pytest.approx(expected["nf4_w_GB_4p127"])


def test_a_65b_model_in_nf4_fits_a_card_of_48_gb():
    expected, tolerance = golden("qlora_65b")
    shape = Shape(expected["P"], 80, 8192, 22016, 64, 64, 128, 32000)
    weights_gb = memory.weights_gb(shape._replace(vocabulary=0), "bf16", quantization="nf4")
    assert weights_gb == pytest.approx(expected["w_GB"], rel=tolerance)
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
    n_item, n_shot = 103, 41 * 98  # tokens of one example and of the shots before it
    n_passed = 11e9 / 2  # each token passes either the encoder or the decoder
    own_flops = memory.inference_flops(n_passed, n_item)
    # T-Few runs the whole backward pass.
    training_cost = memory.training_flops(n_passed, n_item * 8 * 1000)
    sizes = {"infer_icl175": 175e9, "infer_67": 6.7e9, "infer_13": 13e9}
    icl_flops = {name: memory.inference_flops(n, n_shot + n_item) for name, n in sizes.items()}
    assert own_flops == pytest.approx(expected["infer_tfew"], rel=tolerance)
    assert training_cost == pytest.approx(expected["train_tfew"], rel=tolerance)
    for name, flops in icl_flops.items():
        assert flops == pytest.approx(expected[name], rel=tolerance)
    assert memory.inference_flops(n_passed, n_shot + n_item) == pytest.approx(expected["t5lm"], rel=tolerance)
    for name, key in (("infer_icl175", "breakeven_requests_vs_icl175"), ("infer_67", "breakeven_vs_icl6p7")):
        model = candidate("t-few", 0.8, training_cost_usd=training_cost, cost_per_1k_usd=1000 * own_flops)
        prompted = candidate("in context", 0.7, cost_per_1k_usd=1000 * icl_flops[name])
        assert break_even(model, prompted, DecidePolicy()) == pytest.approx(expected[key], rel=tolerance)


def test_a_shape_is_read_from_a_configuration_and_unknown_where_that_does_not_say():
    config = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    shape = shape_of(config, 134_515_008)
    assert (shape.head_dim, shape.n_kv_heads, shape.in_embeddings) == (64, 3, 49152 * 576)
    assert shape_of({"hidden_size": 576}, 1) is None
    assert shape_of({"text_config": config}, 1).n_layers == 30
    fused = shape_of({**config, "model_type": "phi3", "pad_token_id": 0}, 1)  # q, k and v in one matrix
    assert memory.lora_parameters(fused, 2) == 2 * 30 * (576 + 960 + 2 * 576 + 576 + 3072 + 1536 + 576)


@pytest.mark.parametrize(
    ("optim", "trained_in", "n_bytes"),
    [
        # Bytes of a trained parameter: its value, its gradient and the optimiser's state. Rajbhandari et al.
        # 2020 (16 in fp32); Dettmers et al. 2022 (arXiv:2110.02861, two moments of 8 bits).
        (None, "fp32", 16),
        ("adamw_8bit", "fp32", 10),
        ("paged_adamw_32bit", "bf16", 12),
        ("lion_8bit", "bf16", 5),
        ("sgd", "bf16", 4),
    ],
)
def test_a_trained_parameter_takes_what_its_type_and_its_optimiser_do(optim, trained_in, n_bytes):
    n = LLAMA_7B.n_parameters
    peak = memory.training_peak(LLAMA_7B, n, 1, "bf16", optim=optim, trained_in=trained_in)
    copy_bytes = 2 if trained_in == "fp32" else 0  # the copy for matrix products
    states_gb = peak.weights + peak.gradients + peak.optimizer
    assert states_gb == pytest.approx((n_bytes + copy_bytes) * n / 1e9)
    fp32_peak = memory.training_peak(LLAMA_7B, n, 1, "fp32", trained_in=trained_in)  # without a copy
    assert fp32_peak.weights == pytest.approx(memory.BYTES[trained_in] * n / 1e9)


def test_what_ran_out_of_memory_is_noticed_and_fails_the_candidate_with_what_to_turn():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 46)
    assert not isinstance(error.value, torch.OutOfMemoryError)
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    for failure in (error.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), cublas):
        assert ran_out_of_memory(failure)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), explain_out_of_memory("x", "y"):
        torch.ones(2) @ torch.ones(3)
    with pytest.raises(CandidateFailed, match="out of memory while training; try: max_length"):  # noqa: SIM117
        with explain_out_of_memory("out of memory while training", "max_length"):
            torch.empty(1 << 46)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Write the configuration and headers of Llama-2-7B; the weights are a hole in a sparse file."""
    heads = {"heads": 32, "kv_heads": 32, "head_dim": 128}
    sizes = decoder(layers=32, hidden=4096, inner=11008, vocabulary=32000, tied=False, **heads)
    return write_headers(tmp_path_factory.mktemp("llama"), LLAMA_2_7B, sizes)


def map_ways(base, query):
    return {(way.name, way.checkpointing): way for way in examine_base(str(base), query).ways}


def test_a_7b_model_in_fp16_with_and_without_checkpointing(llama):
    """The exercise: 2,048 tokens, batch 4, s b h L = 2048 × 4 × 4096 × 32."""
    # Korthikanti et al. 2022: 34 s b h a layer with attention in blocks, 36.5 GB; 2 s b h a layer and one
    # whole layer where they are computed again, 2.1 + 1.1 GB. Rajbhandari et al. 2020: 16 bytes a parameter,
    # and 2 of a copy.
    examination = examine_base(str(llama), FitQuery(24.0, 2048, 4, "fp16"))
    assert examination.n_parameters == 6_738_415_616
    full_ways = {way.checkpointing: way for way in examination.ways if way.name == "full fine-tuning"}
    assert full_ways[False].peak.activations == pytest.approx(36.5, abs=0.05)
    assert full_ways[True].peak.activations == pytest.approx(2.147 + 1.141, abs=0.01)
    for way in full_ways.values():
        states_gb = way.peak.weights + way.peak.gradients + way.peak.optimizer
        assert states_gb == pytest.approx(18 * 6.738, abs=0.01)
        assert not way.fits
    fitting = {(way.name, way.checkpointing) for way in examination.ways if way.fits}
    assert fitting == {("prompting", None), ("LoRA", True), ("QLoRA", True), ("peft IA3", True)}
    (prompting,) = (way for way in examine_base(str(llama), FitQuery(24.0)).ways if way.name == "prompting")
    assert prompting.peak.keys == pytest.approx(2048 * 4 * 524_288 / 1e9)


def test_four_cards_share_a_training_whose_states_no_card_holds_alone(llama):
    """Rajbhandari et al. 2020, figure 1: stage 2 keeps the weights whole, stage 3 shards everything."""
    query = FitQuery(80.0, 2048, 4, "bf16", tokens=1e6, tflops=100, hour_usd=3.0, gpus=4)
    ways_of_4, ways_of_1 = map_ways(llama, query), map_ways(llama, query._replace(gpus=1))
    n, full = 6.738, "full fine-tuning"
    layers = 2 * 6 * n / 32  # unsharded layers in fp32 and in 16 bits
    zero_3, zero_2 = ways_of_4[f"{full} by FSDP or ZeRO 3", True], ways_of_4[f"{full} by ZeRO 2", True]
    assert zero_3.peak[:3] == pytest.approx((6 * n / 4 + layers, 4 * n / 4, 8 * n / 4), abs=0.01)
    assert zero_2.peak[:3] == pytest.approx((6 * n, 4 * n / 4, 8 * n / 4), abs=0.01)
    assert [ways_of_4[full, True].fits, zero_2.fits, zero_3.fits] == [False, True, True]
    one_row, batch = ways_of_4["LoRA", False], ways_of_1["LoRA", False]
    assert one_row.peak.activations == pytest.approx(batch.peak.activations / 4)  # a row of four on each card
    start_s = 10 + 2 * 6_738_415_616 / 1.5e9
    assert 4 * (one_row.time_s - start_s) == pytest.approx(batch.time_s - start_s)
    assert one_row.cost_usd == pytest.approx(4 * one_row.time_s * 3 / 3600)
    sharded_peak, whole_peak = ways_of_4["QLoRA by FSDP", True].peak, ways_of_4["QLoRA", True].peak
    assert whole_peak.weights == ways_of_1["QLoRA", True].peak.weights
    assert sharded_peak.weights == pytest.approx(whole_peak.weights * (1 / 4 + 2 / 32))
    assert not any("QLoRA by ZeRO" in name for name, _ in ways_of_4)
    assert ways_of_4["prompting", None].peak.weights == pytest.approx(2 * n / 4, abs=0.01)


def test_the_command_says_what_fits_and_on_which_assumption_also_as_json(llama):
    result = doctor("--base", str(llama), "--gpu", "24GB", "--precision", "fp16", "--hour-usd", "2.5")
    assert result.exit_code == 0
    assert "24 GB are enough for prompting, LoRA, QLoRA" in result.stdout
    assert "6,738 million parameters; 4 rows of 2,048 tokens in fp16" in result.stdout
    assert "1,000,000 training tokens, if they reach 42.0 % of 100 TFLOP/s" in result.stdout
    result = doctor("--base", str(llama), "--gpu", "24GB", "--json")
    doc = json.loads(result.stdout)
    assert doc["n_parameters"] == 6_738_415_616
    assert {way["name"] for way in doc["ways"] if way["fits"]} == {"prompting", "LoRA", "QLoRA", "peft IA3"}
    assert doc["ways"][1]["peak"]["optimizer"] > 0
    output = " ".join(doctor("--base", str(llama), "--gpu", "80GB", "--gpus", "4").output.split())
    assert "4 × 80 GB are enough for prompting, LoRA" in output
    assert "GB on each of 4 cards, which share rows and time evenly" in output
    assert "proposed: spectrum: trains the quarter of the model's own matrices" in output


@pytest.mark.parametrize(
    ("gb", "gpus", "proposed", "reason"),
    [
        (16.0, 1, ["QLoRA"], "LoRA on the base in 16 bits takes 20.8 GB of 16, on NF4 11.2"),
        (8.0, 2, ["QLoRA by FSDP"], "LoRA on the base in 16 bits takes 12.9 GB of 8, on NF4 7.5"),
        (80.0, 1, ["LoRA", "peft IA3", "spectrum"], "from 46.1 GB; it answers as fast as the base"),
        (8.0, 1, [], ""),
    ],
)
def test_trainings_are_proposed_by_the_card_with_their_reason(llama, gb, gpus, proposed, reason):
    proposals = examine_base(str(llama), FitQuery(gb, gpus=gpus)).proposed
    assert [proposal.partition(":")[0] for proposal in proposals] == proposed
    assert reason in "; ".join(proposals)


# Billions of parameters, active ones, and hidden, inner, layers, experts, experts per token by config.json.
MIXTURES = {
    "Qwen3-30B-A3B": (30.53, 3.3, (2048, 6144, 48, 128, 8), {"moe_intermediate_size": 768}),
    "Mixtral-8x7B": (46.7, 12.9, (4096, 14336, 32, 8, 2), {}),
    # The model card excludes the 0.58 billion parameters of the embeddings.
    "gpt-oss-20b": (20.9, 3.6 + 0.58, (2880, 2880, 24, 32, 4), {}),
}


def mixture_shape(name, **changes):
    total, _, (hidden, inner, layers, experts, n_chosen), extra = MIXTURES[name]
    rest = {"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936, **extra, **changes}
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return shape_of({**sizes, "num_experts": experts, "num_experts_per_tok": n_chosen, **rest}, total * 1e9)


@pytest.mark.parametrize("name", MIXTURES)
def test_of_a_mixture_of_experts_the_active_parameters_are_those_of_its_card(name):
    assert mixture_shape(name).active == pytest.approx(MIXTURES[name][1] * 1e9, rel=0.02)


def test_experts_stay_in_16_bits_so_qlora_is_no_way():
    shape = mixture_shape("Qwen3-30B-A3B", head_dim=128)
    assert memory.weights_gb(shape, "bf16", quantization="nf4") == pytest.approx(60, abs=1)
    qlora = [way for way in ways(shape, FitQuery(1000.0)) if way.name == "QLoRA"]
    assert [way.fits for way in qlora] == [False, False]
    assert "95% of the parameters are in experts" in qlora[0].why_not


def test_a_loss_in_tiles_takes_no_more_for_a_larger_vocabulary():
    shape = shape_of(LLAMA_2_7B, 6.7e9)
    for vocabulary in (64_000, 152_000):
        peak = memory.training_peak(shape._replace(vocabulary=vocabulary), 2e7, 8192, in_tiles=True)
        assert peak.logits == pytest.approx((2 * 4096 * 32_768 + 4 * 8192 * 4096) / 1e9)


@pytest.mark.parametrize(("written", "gb"), [("80", 80), ("15 GiB", 16.106), ("40g", 40)])
def test_a_cards_memory_is_read_as_people_write_it(written, gb):
    assert gigabytes(written) == pytest.approx(gb, abs=0.001)


@pytest.mark.parametrize("written", ["8 × 24GiB", "large", "0GB"])
def test_what_is_no_cards_memory_is_refused_with_how_to_write_it(written):
    with pytest.raises(UserError, match=f"--gpu: found {written}.*next: --gpu 24GB"):
        gigabytes(written)


def test_more_cards_than_rows_are_refused_with_the_batch_that_they_share(llama):
    with pytest.raises(UserError, match=r"8 cards, and 4 rows of a batch.*--batch 8"):
        examine_base(str(llama), FitQuery(24.0, batch=4, gpus=8))


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "{base}"], "--gpu: found nothing"),
        (["--gpu", "24"], "--base: found nothing"),
        (["--base", "{base}", "--gpu", "24", "--tokens", "inf"], "--tokens: found inf"),
    ],
)
def test_what_the_command_cannot_use_is_refused(llama, arguments, said):
    result = doctor(*(argument.format(base=llama) for argument in arguments))
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


def hub_of(folder, served):
    """Return a server that serves a folder's files like the hub and records the bytes served."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            file = folder / self.path.rpartition("/")[2]
            is_found = file.exists() and "/resolve/" in self.path
            byte_range = self.headers.get("Range", "").removeprefix("bytes=").split("-")
            begin, end = (int(byte_range[0]), int(byte_range[1])) if len(byte_range) == 2 else (0, None)
            content = b""
            if is_found and self.command == "GET":
                with file.open("rb") as opened_file:
                    opened_file.seek(begin)
                    content = opened_file.read(-1 if end is None else end + 1 - begin)
                served.append(len(content))
            self.send_response(404 if not is_found else 206 if end else 200)
            size = len(content) if self.command == "GET" or not is_found else file.stat().st_size
            for name, value in (("ETag", '"0"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", size)):
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.e2e
def test_of_a_model_on_the_hub_the_headers_are_fetched_and_no_weights(llama, tmp_path):
    served_sizes = []
    server = hub_of(llama, served_sizes)
    code = (
        "from harness.experiment.bases import FitQuery, examine_base\n"
        "print(examine_base('meta-llama/Llama-2-7b', FitQuery(24.0)).n_parameters)"
    )
    endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    environment = os.environ | endpoint | {"HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    server.shutdown()
    assert result.stdout.strip() == "6738415616", result.stderr
    assert sum(served_sizes) < 1_000_000


def test_a_stored_head_that_is_tied_to_the_embeddings_is_counted_once():
    tensors = {
        name: Tensor("BF16", (8, 4), 0, 64) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    counts = [
        sum(hub.count_by_tensor(tensors, {"tie_word_embeddings": is_tied}).values())
        for is_tied in (True, False)
    ]
    assert counts == [32, 64]
