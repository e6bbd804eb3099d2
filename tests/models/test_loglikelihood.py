"""Packed likelihoods equal the plain ones for any shared prefixes and any grouping."""

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import note_shapes

from harness.errors import CandidateFailed
from harness.models.loglikelihood import Executor, layout_digest

# A few frequent ids and many rare ones, so that some sequences share a prefix.
IDS = st.one_of(st.integers(4, 6), st.integers(4, 300))
CONTEXT, REST = (st.lists(IDS, min_size=1, max_size=n).map(tuple) for n in (12, 5))
PAIRS = st.lists(st.tuples(CONTEXT, REST), min_size=1, max_size=12)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def score_plainly(model, context, continuation):
    """Score a continuation as transformers does: one sequence, no mask, all logits."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation]])).logits[0].double()
    log_softmax = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
    token_logprobs = [row[token].item() for row, token in zip(log_softmax, continuation, strict=True)]
    return sum(token_logprobs), log_softmax.argmax(-1).tolist() == list(continuation)


def agree(executor, model, pairs):
    for (logprobs, greedy), pair in zip(executor.score(pairs), pairs, strict=True):
        logprob, is_likeliest = score_plainly(model, *pair)
        assert sum(logprobs) == pytest.approx(logprob, abs=1e-4)
        assert greedy == is_likeliest


@pytest.mark.e2e
@FEW
@given(PAIRS, st.integers(8, 80))
def test_packed_likelihoods_are_those_of_each_pair_alone(model, pairs, budget):
    executor = Executor(model, budget)
    assert executor.engine == "packed"
    agree(executor, model, pairs)


@pytest.mark.e2e
@FEW
@given(st.lists(IDS, min_size=8, max_size=20), PAIRS)
def test_likelihoods_are_the_same_when_all_contexts_begin_alike(model, prefix, pairs):
    agree(Executor(model, 80), model, [((*prefix, *context), rest) for context, rest in pairs])


def test_without_masks_several_sequences_and_what_they_begin_with_are_read_once(model):
    prefix = tuple(range(10, 60))
    pairs = [((*prefix, 100 + i), (j, 7)) for i in range(6) for j in (5, 6)]
    executor = Executor(model, 512)
    with note_shapes(model.get_input_embeddings()) as shapes:
        executor.score(pairs)
    assert list(map(math.prod, shapes)) == [50, 6 * 3]

    crowded_model = CrowdedModel(model, 512)
    pairs = [(tuple(range(5 + n, 11 + n)), (20, 21)) for n in range(6)]
    agree(Executor(crowded_model, 512, "padded"), model, pairs)
    assert crowded_model.tried == [6 * 7]


@FEW
@given(PAIRS, st.sampled_from(["plain", "padded"]))
def test_the_engines_without_masks_give_the_same_numbers(model, pairs, engine):
    agree(Executor(model, 64, engine), model, pairs)


def test_numbers_that_are_none_are_refused_when_a_model_is_opened_and_when_it_scores(model):
    nan_model = copy.deepcopy(model)
    nan_model.get_input_embeddings().weight.data[7] = float("nan")
    with pytest.raises(CandidateFailed, match=r"not numbers in float32; try: precision"):
        Executor(nan_model, 64)
    executor = Executor(nan_model, 64, "packed")
    with pytest.raises(CandidateFailed, match="not numbers in float32"):
        executor.score([((5, 6), (8,)), ((5, 7), (8,))])


def test_a_branch_is_greedy_when_every_token_is_the_first_argmax(model):
    import torch

    context = (7, 8, 9)
    with torch.inference_mode():
        answer = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False, eos_token_id=-1)
    best_ids = tuple(answer[0, 3:].tolist())
    other_ids = (*best_ids[:2], (best_ids[2] + 1) % 300)
    scores = Executor(model, 64).score([(context, rest) for rest in (best_ids, other_ids, best_ids[:1])])
    assert [greedy for _, greedy in scores] == [True, False, True]
    uniform_model = copy.deepcopy(model)
    rows = uniform_model.get_output_embeddings().weight.data
    rows[:] = 0  # all tokens are equally probable
    scores = Executor(uniform_model, 64).score([((7, 8), (0,)), ((7, 8), (1,))])
    assert [greedy for _, greedy in scores] == [True, False]
    assert Executor(model, 64).score([]) == []


def load_ignoring_masks(tiny):
    """Return the tiny model with layers that ignore masks, as recurrent layers do."""
    from transformers import LlamaForCausalLM

    class Recurrent(LlamaForCausalLM):
        def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=None):
            return super().forward(input_ids, use_cache=use_cache)

    return Recurrent.from_pretrained(tiny).eval()


def load_refusing_masks(tiny):
    """Return the tiny model with support for two-dimensional padding masks only."""
    from transformers import LlamaForCausalLM

    class Strict(LlamaForCausalLM):
        def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=None):
            if attention_mask is not None and attention_mask.ndim != 2:
                raise ValueError("attention_mask must be of shape (batch, tokens)")
            return super().forward(input_ids, use_cache=use_cache)

    return Strict.from_pretrained(tiny).eval()


@pytest.mark.parametrize("kind", [load_ignoring_masks, load_refusing_masks])
def test_a_model_that_does_not_take_the_mask_is_scored_plainly_and_rightly(tiny, model, kind):
    executor = Executor(kind(tiny), 64)
    assert executor.engine == "padded"
    agree(executor, model, [((5, 6, 7), (8, 9)), ((5, 6, 7), (10,)), ((11, 12), (13,))])


def raise_gpu_oom():
    import torch

    raise torch.OutOfMemoryError("no room")


def raise_cpu_oom():
    import torch

    return torch.empty(1 << 46)


@dataclass
class CrowdedModel:
    """A model on a device with memory for `room` tokens; `tried` lists the token counts of all calls."""

    model: object
    room: int
    run_out: Callable = raise_gpu_oom
    tried: list = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=None, logits_to_keep=0):
        raise NotImplementedError

    def __call__(self, input_ids, **inputs):
        self.tried.append(input_ids.numel())
        if input_ids.numel() > self.room:
            self.run_out()
        return self.model(input_ids, **inputs)


LADDER = [(tuple(range(5 + n, 5 + 2 * n)), (20, 21)) for n in (3, 4, 5, 6, 7)]


@pytest.mark.parametrize("run_out", [raise_gpu_oom, raise_cpu_oom])
def test_out_of_memory_halves_the_group_also_of_what_begins_alike(model, run_out):
    crowded_model = CrowdedModel(model, 20, run_out)
    agree(Executor(crowded_model, 512, "packed"), model, LADDER)
    assert max(crowded_model.tried) > 20
    pairs = [(tuple(range(5, 11)), (start, start + 1, start + 2, 7)) for start in (20, 30, 40, 50)]
    agree(Executor(CrowdedModel(model, 13, run_out), 512, "packed"), model, pairs)


def test_what_ran_out_of_memory_is_let_go_before_the_halves_are_tried(model):
    import torch

    references = []

    class HoldingModel(CrowdedModel):
        def __call__(self, input_ids, **inputs):
            assert [ballast() for ballast in references] == [None] * len(references)
            ballast = torch.zeros(1)
            if input_ids.numel() > self.room:
                references.append(weakref.ref(ballast))
            return super().__call__(input_ids, **inputs)

    Executor(HoldingModel(model, 8), 512, "packed").score(LADDER[:4])
    assert references


def test_the_digest_depends_on_engine_and_budget():
    assert len({layout_digest(engine, n) for n in (64, 128) for engine in ("packed", "plain")}) == 4


@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_one_pair_that_does_not_fit_fails_the_candidate(model, engine):
    with pytest.raises(CandidateFailed, match="out of memory while scoring"):
        Executor(CrowdedModel(model, 5), 512, engine).score([((1, 2, 3, 4, 5), (6, 7))])
