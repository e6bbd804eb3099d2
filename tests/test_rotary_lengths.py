"""Models that rotate positions by how long a pass is, or count windows by place, are read as transformers alone does."""

import copy

import pytest
import test_model_families as families
from tiny_methods import CPU

from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.tokenization import end_ids
from harness.records import Limits

pytestmark = pytest.mark.usefixtures("own_cache")

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
KINDS = {
    "longrope": families.Kind(
        "Phi3Config", {"original_max_position_embeddings": 20, "rope_parameters": {**LONG, "rope_theta": 1e4}}
    ),
    "dynamic": families.Kind(
        "LlamaConfig",
        {
            "max_position_embeddings": 20,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "places": families.Kind(
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
        engine="padded",
    ),
}
KINDS["content"] = families.Kind("DogeConfig", {"keep_window_size": 16}, engine="padded")
# Some stay below 20 tokens, some begin below and end above, one stands above.
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
    found = ModelHost(resolve(str(folder)), CPU)
    assert found.base.engine == f"transformers/{KINDS[request.param].engine}"
    return found


@pytest.fixture(scope="module")
def load_untouched(host):
    model, _ = load_base(host.source, CPU)
    return lambda: copy.deepcopy(model.eval())


def score_alone(model, context, continuation):
    """Score a continuation by transformers' forward pass over what stands before each of its tokens."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation[:-1]]]), use_cache=False).logits[0].double()
    rows = torch.log_softmax(logits, -1)[len(context) - 1 :]
    return sum(row[token].item() for row, token in zip(rows, continuation, strict=True))


@pytest.mark.parametrize("chosen", [PAIRS, PAIRS[2:5], PAIRS[:2], [*reversed(PAIRS)]])
def test_likelihoods_do_not_hang_on_what_else_is_read(host, load_untouched, chosen):
    found = [one.logprob for one in host.base.loglikelihood(chosen)]
    assert found == pytest.approx([score_alone(load_untouched(), *pair) for pair in chosen], abs=1e-4)


def test_greedy_answers_are_those_of_each_prompt_alone(host, load_untouched):
    import torch

    prompts = [context for context, _ in PAIRS]
    ends = end_ids(host.tokenizer, host.model.generation_config)
    for prompt, output in zip(prompts, host.base.generate(prompts, Limits(6)), strict=True):
        with torch.inference_mode():
            whole = load_untouched().generate(
                torch.tensor([prompt]),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        assert output.text == host.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)
