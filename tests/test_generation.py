"""Answers do not depend on how prompts are cut into batches, nor on what they share."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.generation import BatchSize, answers, batches

LENGTHS = st.lists(st.integers(1, 90), max_size=40)
SIZES = st.builds(BatchSize, st.integers(1, 12), st.integers(1, 400))
PURE = settings(deadline=None)
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# The plan


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_batches_hold_every_prompt_once_from_short_to_long(lengths, size, max_new_tokens):
    order = [i for batch in batches(lengths, size, max_new_tokens) for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_a_batch_of_several_prompts_keeps_to_its_size(lengths, size, max_new_tokens):
    for batch in batches(lengths, size, max_new_tokens):
        assert len(batch) <= size.rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= size.tokens


@PURE
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 8))
def test_no_other_cut_costs_less(lengths, max_new_tokens):
    def cost(groups):
        return sum(len(g) * max(g) + 24 * max_new_tokens for g in groups)

    def cuts(rest):
        if not rest:
            yield []
        for n in range(1, len(rest) + 1):
            for tail in cuts(rest[n:]):
                yield [rest[:n], *tail]

    found = [[lengths[i] for i in batch] for batch in batches(lengths, BatchSize(64, 10_000), max_new_tokens)]
    assert cost(found) == min(map(cost, cuts(sorted(lengths))))


def test_one_long_prompt_does_not_make_the_short_ones_long():
    assert batches([20, 400, 21, 22], BatchSize(64, 16_384), 8) == [[0, 2, 3], [1]]


# The answers, on a model


@pytest.fixture(scope="module")
def model(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval()


def greedy(model, prompt, n, pad_id):
    """Answer one prompt alone, by the whole sequence's argmax and without any cache."""
    import torch

    ids = list(prompt)
    ends = model.generation_config.eos_token_id
    while len(ids) < len(prompt) + n:
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == ends:
            break
    new = ids[len(prompt) :]
    return new + [pad_id] * (n - len(new))


def padded(rows, n, pad_id):
    return [row + [pad_id] * (n - len(row)) for row in rows]


@FEW
@given(
    st.lists(st.integers(4, 300), min_size=8, max_size=20),
    st.lists(st.lists(st.integers(4, 300), min_size=1, max_size=9), min_size=1, max_size=5),
)
def test_a_shared_beginning_read_once_changes_no_answer(model, beginning, ends):
    prompts = [(*beginning, *end) for end in ends]
    pad_id = model.config.pad_token_id
    found = padded(answers(model, prompts, pad_id, 6, ()), 6, pad_id)
    assert found == [greedy(model, prompt, 6, pad_id) for prompt in prompts]


def test_one_prompt_that_another_begins_with_is_answered_too(model):
    long = tuple(range(10, 40))
    prompts = [long[:20], long, long[:20]]
    pad_id = model.config.pad_token_id
    found = padded(answers(model, prompts, pad_id, 4, ()), 4, pad_id)
    assert found == [greedy(model, prompt, 4, pad_id) for prompt in prompts]


def test_the_shared_beginning_is_read_for_all_rows_at_once(model):
    beginning = tuple(range(10, 60))
    prompts = [(*beginning, 100 + i) for i in range(6)]
    read = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: read.append(args[0].numel())
    )
    try:
        answers(model, prompts, model.config.pad_token_id, 1, ())
    finally:
        hook.remove()
    assert read == [50, 6]


def test_a_model_that_forgets_far_tokens_reads_each_prompt_whole(tmp_path):
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    windowed = MistralForCausalLM(config).eval()
    prompts = [(*range(10, 30), 40 + i) for i in range(3)]
    found = padded(answers(windowed, prompts, 0, 3, ()), 3, 0)
    assert found == [greedy(windowed, prompt, 3, 0) for prompt in prompts]
