"""Forward passes: prefixes are read once; rotations and windows that depend on lengths agree too."""

import copy
import math

import pytest
import test_model_families as families
from tiny_methods import CPU
from tiny_model import note_shapes

from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.loglikelihood import Executor
from harness.models.prefix_cache import PrefixCache, row_cache
from harness.models.tokenization import end_ids
from harness.records import Limits

pytestmark = pytest.mark.usefixtures("own_cache")

ONE, OTHER, THIRD = tuple(range(10, 60)), tuple(range(20, 70)), tuple(range(30, 80))


@pytest.fixture
def read(model):
    with note_shapes(model.get_input_embeddings()) as shapes:
        yield shapes


def make_pairs(prefix, start=100):
    return [((*prefix, start + i), (j, 7)) for i in range(6) for j in (5, 6)]


def test_a_beginning_is_read_once_for_several_calls_and_changes_no_number(model, read):
    executor = Executor(model, 512, "packed")
    executor.score(make_pairs(ONE))
    executor.score(make_pairs(ONE, 200))
    assert list(map(math.prod, read)) == [50, 18, 18]

    fresh, used = (Executor(model, 512, "packed") for _ in range(2))
    used.score(make_pairs(OTHER))
    used.score(make_pairs(ONE[:30]))
    assert used.score(make_pairs(ONE)) == fresh.score(make_pairs(ONE))


def test_answering_after_a_beginning_leaves_it_untouched(model):
    import torch

    cache = PrefixCache(model).read(ONE)
    with torch.inference_mode():
        model(torch.tensor([[5], [6]]), past_key_values=row_cache(model, cache, 2), use_cache=True)
    assert cache.get_seq_length() == 50


def test_the_oldest_goes_where_the_newest_fill_the_memory(model, read):
    layers = PrefixCache(model).read(ONE).layers
    n_bytes = sum(x.nbytes for layer in layers for x in (layer.keys, layer.values))
    prefixes = PrefixCache(model, kept_bytes=2 * n_bytes)
    read.clear()
    for ids in (ONE, OTHER, ONE, THIRD, ONE, OTHER):
        prefixes.read(ids)
    assert len(read) == 4  # OTHER was evicted by THIRD


def test_of_a_beginning_one_token_at_most_is_projected_and_of_the_rest_what_predicts(model):
    with note_shapes(model.get_output_embeddings()) as projected:
        Executor(model, 512, "packed").score(make_pairs(ONE))
    assert [math.prod(shape[:-1]) for shape in projected] == [1, 6 * 3]


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
LONG = {"rope_type": "longrope", **FACTORS, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
MIXED = [[["global", "local"], 1]]
GLOBAL_AND_LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": MIXED, "window_size": 16}
KINDS = {
    "longrope": families.Kind(
        "Phi3Config", {"original_max_position_embeddings": 20, "rope_parameters": LONG}
    ),
    "dynamic": families.Kind("LlamaConfig", {"max_position_embeddings": 20, "rope_parameters": DYNAMIC}),
    "places": families.Kind("GPTNeoConfig", GLOBAL_AND_LOCAL, engine="padded"),
    "content": families.Kind("DogeConfig", {"keep_window_size": 16}, engine="padded"),
}
# Some stay below 20 tokens, some begin below and end above, one starts above.
PREFIX = tuple(range(40, 52))
PAIRS = [
    ((*PREFIX, 60), (5, 6, 7)),
    ((*PREFIX, 60), (5, 9)),
    ((*PREFIX, 61, 62, 63, 64, 65, 66, 67), (8, 6, 9, 10)),
    ((*PREFIX, *range(100, 130)), (8, 6)),
    ((*PREFIX, 61, 62, 63, 64, 65, 66, 67, 68), (8, 6, 9, 10)),
    ((70, 71), (9,)),
]


@pytest.fixture(scope="module", params=KINDS)
def host(request, tmp_path_factory, own_cache):
    folder = families.save(tmp_path_factory.mktemp("kind"), KINDS[request.param])
    new_host = ModelHost(resolve(str(folder)), CPU)
    assert new_host.base.engine == f"transformers/{KINDS[request.param].engine}"
    return new_host


@pytest.fixture(scope="module")
def load_untouched(host):
    model, _ = load_base(host.source, CPU)
    return lambda: copy.deepcopy(model.eval())


def score_alone(model, context, continuation):
    """Score a continuation by transformers' forward pass over the tokens before each of its own."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation[:-1]]]), use_cache=False).logits[0].double()
    rows = torch.log_softmax(logits, -1)[len(context) - 1 :]
    return sum(row[token].item() for row, token in zip(rows, continuation, strict=True))


@pytest.mark.parametrize("chosen", [PAIRS, PAIRS[2:5]])
def test_likelihoods_do_not_hang_on_what_else_is_read(host, load_untouched, chosen):
    logprobs = [s.logprob for s in host.base.loglikelihood(chosen)]
    assert logprobs == pytest.approx([score_alone(load_untouched(), *pair) for pair in chosen], abs=1e-4)


def test_greedy_answers_are_those_of_each_prompt_alone(host, load_untouched):
    import torch

    prompts = [context for context, _ in PAIRS]
    ends = end_ids(host.tokenizer, host.model.generation_config)
    for prompt, output in zip(prompts, host.base.generate(prompts, Limits(6)), strict=True):
        options = {"max_new_tokens": 6, "eos_token_id": ends, "pad_token_id": ends[0]}
        with torch.inference_mode():
            whole = load_untouched().generate(torch.tensor([prompt]), do_sample=False, **options)
        assert output.text == host.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)
