"""A base's scoring engine is found by a random copy of its configuration, as the base itself would show it."""

import copy

import pytest
import test_model_families as families
import tiny_experiment
import tiny_model
from tiny_methods import CPU

from harness import config
from harness.errors import CandidateFailed
from harness.experiment import Scope, prepare_session
from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.loglikelihood import Executor
from harness.models.two_layer_copy import find_copied_engine, two_layer_copy
from harness.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("own_cache")

# As large as they are published, by the defaults of transformers' classes.
PUBLISHED = {
    "LlamaConfig": "packed",
    "Qwen3Config": "packed",
    "MistralConfig": "packed",
    "Gemma3Config": "packed",  # beside a tower for pictures
    "GptOssConfig": "packed",
    "MixtralConfig": "packed",
    "BloomConfig": "padded",
}

UNTOLD = ("Mamba", "Llama-4", "GIT")


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name not in UNTOLD])
def test_a_copy_tells_the_engine_that_the_base_itself_shows(tmp_path, name):
    folder = families.build(tmp_path, name)
    model, _ = load_base(resolve(str(folder)), CPU)
    shown = Executor(model.eval(), 512).engine
    assert find_copied_engine(folder, "cpu") == shown == families.FAMILIES[name].engine


@pytest.mark.e2e
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_engine_of_a_large_base_is_known_from_its_configuration_alone(tmp_path, name):
    import transformers

    getattr(transformers, name)().save_pretrained(tmp_path)
    assert find_copied_engine(tmp_path, "cpu") == PUBLISHED[name]
    assert sum(p.numel() for p in two_layer_copy(tmp_path).parameters()) < 30e6


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


def a_window_wider(self, input_ids, position_ids=None, attention_mask=None, use_cache=None, **_):
    from transformers import MistralForCausalLM

    if attention_mask is None:
        self.config.sliding_window += 1
    found = MistralForCausalLM.forward(
        self, input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=use_cache
    )
    if attention_mask is None:
        self.config.sliding_window -= 1
    return found


@pytest.mark.parametrize(("kind", "forward"), [("deaf", forward_without_masks), ("wider", a_window_wider)])
def test_a_family_that_ignores_masks_or_whose_window_is_a_token_wider_is_not_packed(tmp_path, kind, forward):
    register_family(kind, forward)().save_pretrained(tmp_path)  # a window of 4,096 tokens, as published
    assert find_copied_engine(tmp_path, "cpu") == "padded"


def test_a_family_whose_answers_hang_on_nothing_before_them_is_left_to_the_base(tmp_path):
    import torch
    from transformers.modeling_outputs import CausalLMOutput

    def forward_evenly(self, input_ids, **_):
        hidden = torch.zeros(*input_ids.shape, self.config.hidden_size)
        return CausalLMOutput(logits=self.lm_head(hidden))

    register_family("even", forward_evenly)().save_pretrained(tmp_path)
    assert find_copied_engine(tmp_path, "cpu") is None


def test_a_session_knows_an_engine_without_a_base_in_memory(tmp_path):
    base = tiny_model.build(tmp_path / "base")
    session = prepare_session(config.load(tiny_experiment.write(tmp_path, base)), Scope(), SilentProgress())
    known = session.engine(session.source)
    assert session.slot.host is None
    loaded = session.host(session.source).base
    assert known == (loaded.engine, loaded.layout_digest)


def test_a_base_whose_logits_are_no_numbers_is_refused_though_its_copy_tells_the_engine(tiny, tmp_path):
    model, tokenizer = load_base(resolve(str(tiny)), CPU)
    spoilt = copy.deepcopy(model)
    spoilt.get_input_embeddings().weight.data[5:9] = float("nan")
    spoilt.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert find_copied_engine(tmp_path, "cpu") == "packed"
    with pytest.raises(CandidateFailed, match="not numbers in float32"):
        ModelHost(resolve(str(tmp_path)), CPU)
