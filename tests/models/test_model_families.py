"""All model families score, answer and train like plain transformers; a two-layer copy shows the engine."""

import copy
import json
from typing import NamedTuple

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
import torch
from tiny_methods import CPU
from tiny_model import score_alone

from harness.errors import CandidateFailed, UserError
from harness.experiment.bases import base_remarks
from harness.methods.supervised import Lora
from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import expert_share, resolve
from harness.models.loglikelihood import Executor, find_copied_engine, two_layer_copy
from harness.models.tokenization import end_ids
from harness.records import Limits
from harness.training.peft_families import family_problems

pytestmark = pytest.mark.usefixtures("own_cache")


_SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LAYERS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA_4 = {"vocab_size_per_layer_input": 400, "per_layer_config": {"1": {"head_dim": 16}}}
_GIT_SEES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
_LLAMA_4 = {
    "num_local_experts": 4, "intermediate_size_mlp": 64, "attention_chunk_size": 8,
    "layer_types": ["chunked_attention", "full_attention"],
}  # fmt: skip


class Kind(NamedTuple):
    """A family: transformers' configuration class, its settings and the expected engine."""

    config: str
    said: dict
    engine: str = "packed"


UNREADABLE = [
    (
        Kind("RwkvConfig", {"attention_hidden_size": 32, "context_length": 256}),
        "RwkvForCausalLM keeps a state that no cache of transformers' holds; try: another base_model",
    ),
    (Kind("BertConfig", {}), "BertLMHeadModel reads a token by those after it too; try: another base_model"),
    (Kind("XmodConfig", {"is_decoder": True}), "XmodForCausalLM cannot be .*Input language unknown"),
]
FAMILIES = {
    "Llama": Kind("LlamaConfig", {}),
    "Qwen2": Kind("Qwen2Config", {}),
    "Qwen2 with windows": Kind("Qwen2Config", {"use_sliding_window": True, **_LAYERS}),
    "Qwen3": Kind("Qwen3Config", {}),
    "Mistral with a window": Kind("MistralConfig", {"sliding_window": 8}),
    "Gemma-2": Kind("Gemma2Config", {"query_pre_attn_scalar": 8, **_LAYERS}),
    "Gemma-3": Kind("Gemma3TextConfig", {"query_pre_attn_scalar": 8, **_LAYERS}),
    "Phi-3": Kind("Phi3Config", {"sliding_window": 8}),
    "gpt-oss": Kind("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, **_LAYERS}),
    "Qwen3-MoE": Kind("Qwen3MoeConfig", {"num_experts": 4, **_EXPERTS}),
    "SmolLM3": Kind("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "GPT-2": Kind("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "Bloom": Kind("BloomConfig", {"n_layer": 2, "n_head": 4}, engine="padded"),
    "MPT": Kind("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4}, engine="padded"),
    "GIT": Kind("GitConfig", {"vision_config": _GIT_SEES}, engine="padded"),
    "Gemma-4": Kind("Gemma4TextConfig", {"hidden_size_per_layer_input": 8, **_LAYERS, **_GEMMA_4}),
    "Granite-MoE": Kind("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Llama-4": Kind("Llama4TextConfig", {**_LLAMA_4, "num_experts_per_tok": 1}, engine="padded"),
    "Mamba": Kind("MambaConfig", {"state_size": 4}, engine="padded"),
}
# Every other family takes the same code paths as one of these.
FAST = (
    "Llama", "Mistral with a window", "Gemma-3", "gpt-oss", "GPT-2", "Bloom", "Mamba",
)  # fmt: skip
EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES]


def build(folder, name):
    return save(folder, FAMILIES[name])


def save(folder, kind):
    import transformers

    tokenizer = tiny_model.tokenizer()
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    settings = {"vocab_size": len(tokenizer), **_SMALL, **ids, **kind.said}
    config = getattr(transformers, kind.config)(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # parameters that start at 0 or 1 would hide differences
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def load_family(tmp_path_factory, own_cache):
    hosts = {}

    def load(name):
        if name not in hosts:
            folder = build(tmp_path_factory.mktemp("family"), name)
            hosts[name] = ModelHost(resolve(str(folder)), CPU)
        return hosts[name]

    return load


PREFIX = tuple(range(40, 52))  # longer than the windows
PAIRS = [
    ((*PREFIX, 60, 61), (5, 6, 7)),
    ((*PREFIX, 60, 61), (5, 9)),
    ((*PREFIX, 60, 70, 71, 72, 73, 74, 75, 76, 77, 78), (8, 6)),
    ((*PREFIX, 80), tuple(range(100, 115))),
]


@pytest.mark.parametrize("name", EACH)
def test_likelihoods_are_those_of_transformers_alone(load_family, name):
    host = load_family(name)
    assert host.base.engine == f"transformers/{FAMILIES[name].engine}"
    for pairs in (PAIRS, [((5, *context), continuation) for context, continuation in PAIRS[:1]] + PAIRS):
        logprobs = [score.logprob for score in host.base.loglikelihood(pairs)]
        assert logprobs == pytest.approx([score_alone(host.model, *pair) for pair in pairs], abs=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_greedy_answers_are_those_of_transformers_alone(load_family, name):
    host, n = load_family(name), 12
    prompts = [context for context, _ in PAIRS] + [(5, 6, 7)]
    end_tokens = end_ids(host.tokenizer, host.model.generation_config)
    for batch in (prompts[:4], prompts):
        for prompt, output in zip(batch, host.base.generate(batch, Limits(n)), strict=True):
            options = {"max_new_tokens": n, "eos_token_id": end_tokens, "pad_token_id": end_tokens[0]}
            with torch.inference_mode():
                sequence = host.model.generate(torch.tensor([prompt]), do_sample=False, **options)
            new_ids = sequence[0, len(prompt) :]
            assert output.text == host.tokenizer.decode(new_ids, skip_special_tokens=True)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["Llama", "gpt-oss", "Mamba"])
def test_an_adapter_trains_a_step_and_loads_again(load_family, name, tmp_path):
    host = load_family(name)
    params = {"r": 2, "max_steps": 1, "warmup_steps": 0, "learning_rate": 0.05}
    weights = tiny_methods.fit(host.source.path, tmp_path, Lora, params)
    assert weights.training.n_steps == 1
    base_scores = host.base.loglikelihood(PAIRS[:1])
    with host.use_adapter(weights.folder / "adapter", weights.digest) as tuned:
        scores, lone_scores = tuned.loglikelihood(PAIRS), [score_alone(tuned.model, *pair) for pair in PAIRS]
        assert [score.logprob for score in scores] == pytest.approx(lone_scores, abs=1e-4)
    assert scores[0].logprob != pytest.approx(base_scores[0].logprob, abs=1e-4)
    assert host.base.loglikelihood(PAIRS[:1]) == base_scores


@pytest.mark.parametrize("name", ["Mistral with a window", "Mamba"])
def test_a_soft_prompt_is_refused_beforehand_where_layers_do_not_see_or_keep_it(load_family, name):
    base = load_family(name).source.path
    (problem,) = family_problems("PROMPT_TUNING", {"num_virtual_tokens": 4}, base, "cpu", "candidate soft")
    assert problem.found == "a soft prompt, and layers that do not attend to everything that was read"


@pytest.mark.e2e
def test_a_base_of_experts_is_not_quantised(tmp_path):
    base = build(tmp_path / "base", "Granite-MoE")
    assert 0.2 < expert_share(resolve(str(base))) < 0.7
    path = tiny_experiment.write(tmp_path, base, "  qlora: {method: qlora}\n")
    with pytest.raises(UserError, match="are experts that stay in 16 bits"):
        tiny_experiment.session(path)


def test_a_base_whose_thinking_nobody_decided_is_named_and_a_decision_is_another_template(tmp_path):
    template = tiny_model.CHATML + "{% if enable_thinking is defined %}{% endif %}"
    base = tiny_model.build(tmp_path / "base", template=template)
    sessions = {
        setting: tiny_experiment.session(tiny_experiment.write(tmp_path, base, extra=setting))
        for setting in ("", "chat_template_kwargs: {enable_thinking: false}\n")
    }
    default_session, decided = sessions.values()
    remarks, no_remarks = (list(base_remarks(s.sources)) for s in (default_session, decided))
    assert [remark for remark in remarks if "chat_template_kwargs" in remark]
    assert no_remarks == []
    assert default_session.source == resolve(str(base)), "a key at its default moves nothing that is stored"
    assert decided.source.template_digest != default_session.source.template_digest
    assert decided.source.weights_digest == default_session.source.weights_digest


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"intermediate_size": 128}, r"mlp.\w+.weight is \[\d+, \d+\] in its files, and .* by its config.json"),
        ({"num_hidden_layers": 3}, r"lack 9 of \d+ tensors of LlamaForCausalLM, such as model.layers.2"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers: 1 by its config.json, and model\.layers\.1\..* in its files"),
        ({"num_attention_heads": 3}, "cannot be loaded .*not a multiple of the number of attention heads"),
        ({"is_encoder_decoder": True}, "is an encoder with a decoder"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}, "brings its own code"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_that_of_the_weights_is_refused_with_a_sentence(tmp_path, said, found):
    folder = build(tmp_path, "Llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(CandidateFailed, match=found):
        ModelHost(resolve(str(folder)), CPU)


@pytest.mark.parametrize(("kind", "said"), UNREADABLE)
def test_what_does_not_read_from_left_to_right_by_what_a_cache_holds_or_at_all_is_refused(
    tmp_path, kind, said
):
    with pytest.raises(CandidateFailed, match=said):
        ModelHost(resolve(str(save(tmp_path, kind))), CPU)


# Configurations in their published size: the defaults of transformers' classes.
PUBLISHED = {
    "GptOssConfig": "packed",
    "Gemma3Config": "packed",  # with a vision tower
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FAST if name != "Mamba"])
def test_a_copy_tells_the_engine_that_the_base_itself_shows(tmp_path, name):
    folder = build(tmp_path, name)
    model, _ = load_base(resolve(str(folder)), CPU)
    base_engine = Executor(model.eval(), 512).engine
    assert find_copied_engine(folder, "cpu") == base_engine == FAMILIES[name].engine


@pytest.mark.e2e
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_engine_of_a_large_base_is_known_from_its_configuration_alone(tmp_path, name):
    import transformers

    getattr(transformers, name)().save_pretrained(tmp_path)
    assert find_copied_engine(tmp_path, "cpu") == PUBLISHED[name]
    assert sum(parameter.numel() for parameter in two_layer_copy(tmp_path).parameters()) < 30e6


def register_family(kind, forward):
    import transformers

    class Config(transformers.MistralConfig):
        model_type = kind

    class Model(transformers.MistralForCausalLM):
        config_class = Config

    Model.forward = forward
    transformers.AutoConfig.register(kind, Config, exist_ok=True)
    transformers.AutoModelForCausalLM.register(Config, Model, exist_ok=True)
    return Config


def forward_without_masks(self, input_ids, position_ids=None, attention_mask=None, use_cache=None, **_):
    from transformers import MistralForCausalLM

    return MistralForCausalLM.forward(self, input_ids, use_cache=use_cache)


def test_a_family_that_ignores_masks_is_not_packed(tmp_path):
    register_family("deaf", forward_without_masks)().save_pretrained(tmp_path)
    assert find_copied_engine(tmp_path, "cpu") == "padded"


def test_a_session_knows_an_engine_without_a_base_in_memory(tmp_path):
    base = tiny_model.build(tmp_path / "base")
    session = tiny_experiment.session(tiny_experiment.write(tmp_path, base))
    engine = session.engine(session.source)
    assert session.slot.host is None
    loaded_base = session.host(session.source).base
    assert engine == (loaded_base.engine, loaded_base.layout_digest)


def test_a_base_whose_logits_are_no_numbers_is_refused_though_its_copy_tells_the_engine(tiny, tmp_path):
    model, tokenizer = load_base(resolve(str(tiny)), CPU)
    nan_model = copy.deepcopy(model)
    nan_model.get_input_embeddings().weight.data[5:9] = float("nan")
    nan_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert find_copied_engine(tmp_path, "cpu") == "packed"
    with pytest.raises(CandidateFailed, match="not numbers in float32"):
        ModelHost(resolve(str(tmp_path)), CPU)
