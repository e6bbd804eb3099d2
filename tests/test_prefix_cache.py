"""A prefix is read once, its projection once at most, and what follows leaves it as it is."""

import math

import pytest
from tiny_model import note_shapes

from harness.models.loglikelihood import Executor
from harness.models.prefix_cache import PrefixCache, row_cache

ONE, OTHER, THIRD = tuple(range(10, 60)), tuple(range(20, 70)), tuple(range(30, 80))


@pytest.fixture
def read(model):
    with note_shapes(model.get_input_embeddings()) as shapes:
        yield shapes


def make_pairs(prefix, start=100):
    return [((*prefix, start + i), (j, 7)) for i in range(6) for j in (5, 6)]


def bytes_of(model, ids):
    return sum(x.nbytes for layer in PrefixCache(model).read(ids).layers for x in (layer.keys, layer.values))


def test_a_beginning_is_read_once_for_several_calls(model, read):
    executor = Executor(model, 512, "packed")
    executor.loglikelihoods(make_pairs(ONE))
    executor.loglikelihoods(make_pairs(ONE, 200))
    assert list(map(math.prod, read)) == [50, 18, 18]


def test_what_was_asked_before_changes_no_number(model):
    fresh, used = (Executor(model, 512, "packed") for _ in range(2))
    used.loglikelihoods(make_pairs(OTHER))
    used.loglikelihoods(make_pairs(ONE[:30]))
    assert used.loglikelihoods(make_pairs(ONE)) == fresh.loglikelihoods(make_pairs(ONE))


def test_answering_after_a_beginning_leaves_it_untouched(model):
    import torch

    cache = PrefixCache(model).read(ONE)
    with torch.inference_mode():
        model(torch.tensor([[5], [6]]), past_key_values=row_cache(model, cache, 2), use_cache=True)
    assert cache.get_seq_length() == 50


def test_the_oldest_goes_where_the_newest_fill_the_memory(model, read):
    prefixes = PrefixCache(model, kept_bytes=2 * bytes_of(model, ONE))
    read.clear()
    for ids in (ONE, OTHER, ONE, THIRD, ONE, OTHER):
        prefixes.read(ids)
    assert len(read) == 4  # OTHER went when THIRD came


def test_of_a_beginning_one_token_at_most_is_projected_and_of_the_rest_what_predicts(model):
    with note_shapes(model.get_output_embeddings()) as projected:
        Executor(model, 512, "packed").loglikelihoods(make_pairs(ONE))
    assert [math.prod(shape[:-1]) for shape in projected] == [1, 6 * 3]
