"""Packed likelihoods are the plain ones, whatever the trees and however they are cut into groups."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.scoring import Executor, Size, Tree, grow, pack, plan, shared_length, split

IDS = st.integers(4, 300)
TREES = st.builds(
    lambda context, branches: Tree(tuple(context), tuple(map(tuple, branches))),
    st.lists(IDS, min_size=1, max_size=12),
    st.lists(st.lists(IDS, min_size=1, max_size=5), min_size=1, max_size=4),
)
FORESTS = st.lists(TREES, min_size=1, max_size=6)
LENGTHS = st.lists(st.integers(1, 90), max_size=40)
SIZES = st.builds(Size, st.integers(1, 12), st.integers(1, 400))
PURE = settings(deadline=None)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# The planner


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_batches_hold_every_row_once_from_short_to_long(lengths, size, cost):
    order = [i for batch in plan(lengths, size, cost) for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


@PURE
@given(LENGTHS, SIZES, st.integers(1, 64))
def test_a_batch_of_several_rows_keeps_to_its_size(lengths, size, cost):
    for batch in plan(lengths, size, cost):
        assert len(batch) <= size.rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= size.tokens


@PURE
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 200))
def test_no_other_cut_costs_less(lengths, batch_cost):
    def cost(groups):
        return sum(len(g) * max(g) + batch_cost for g in groups)

    def cuts(rest):
        if not rest:
            yield []
        for n in range(1, len(rest) + 1):
            for tail in cuts(rest[n:]):
                yield [rest[:n], *tail]

    found = [[lengths[i] for i in batch] for batch in plan(lengths, Size(64, 10_000), batch_cost)]
    assert cost(found) == min(map(cost, cuts(sorted(lengths))))


def test_one_long_row_does_not_make_the_short_ones_long():
    assert plan([20, 400, 21, 22], Size(64, 16_384), 24) == [[0, 2, 3], [1]]


def test_an_empty_plan_has_no_batches():
    assert plan([], Size(10, 10), 1) == []


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([(*range(20), 30), (*range(20), 31)], 20),
        ([tuple(range(20)), tuple(range(30))], 19),
        ([tuple(range(7)), tuple(range(30))], 0),
        ([tuple(range(20))], 0),
    ],
    ids=["the same beginning", "a row keeps one token of its own", "too short to be worth it", "one row"],
)
def test_what_all_rows_begin_with_is_shared(rows, shared):
    assert shared_length(rows) == shared


def test_neighbours_with_one_context_grow_into_one_tree():
    pairs = [((1,), (2,)), ((1,), (3, 4)), ((5,), (6,)), ((1,), (7,))]
    assert grow(pairs) == [Tree((1,), ((2,), (3, 4))), Tree((5,), ((6,),)), Tree((1,), ((7,),))]


def test_a_pack_says_where_each_token_belongs_and_what_predicts_it():
    packed = pack([Tree((10, 11), ((12,), (13, 14))), Tree((20,), ((21,),))])
    assert packed.ids == [[10, 11, 12, 13, 14], [20, 21, 0, 0, 0]]
    assert packed.branch == [[0, 0, 1, 2, 2], [0, 1, -1, -1, -1]]
    assert packed.positions == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert packed.sources == [(0, 1), (0, 1), (0, 3), (1, 0)]
    assert packed.targets == [12, 13, 14, 21]
    assert packed.spans == [(0, 1), (1, 3), (3, 4)]


def test_a_pack_leaves_out_what_was_read_before_and_keeps_the_positions():
    packed = pack([Tree((10, 11, 12), ((13,), (14, 15)))], shared=2)
    assert packed.ids == [[12, 13, 14, 15]]
    assert packed.positions == [[2, 3, 3, 4]]
    assert packed.sources == [(0, 0), (0, 0), (0, 2)]


@PURE
@given(FORESTS)
def test_every_continuation_token_is_scored_once(trees):
    packed = pack(trees)
    tokens = [[label for label in row if label >= 0] for row in packed.branch]
    assert [len(row) for row in tokens] == [tree.n_tokens for tree in trees]
    wanted = [token for tree in trees for branch in tree.branches for token in branch]
    assert packed.targets == wanted
    assert [packed.targets[a:b] for a, b in packed.spans] == [list(b) for t in trees for b in t.branches]


@PURE
@given(TREES, st.integers(1, 40))
def test_a_split_tree_keeps_its_branches_in_order_and_its_context_in_each_part(tree, budget):
    parts = split(tree, budget)
    assert [branch for part in parts for branch in part.branches] == list(tree.branches)
    assert all(part.context == tree.context and part.branches for part in parts)


@PURE
@given(TREES, st.integers(1, 40))
def test_parts_of_several_branches_keep_to_the_budget_or_twice_the_context(tree, budget):
    for part in split(tree, budget):
        assert len(part.branches) == 1 or part.n_tokens <= max(budget, 2 * len(tree.context))


# The executor, on a model


def plainly(model, tree):
    """Score each branch alone as transformers does: one sequence, no mask, all logits."""
    import torch

    out = []
    for branch in tree.branches:
        with torch.inference_mode():
            logits = model(torch.tensor([[*tree.context, *branch]])).logits[0].double()
        rows = torch.log_softmax(logits, -1)[len(tree.context) - 1 : -1]
        chosen = [row[token].item() for row, token in zip(rows, branch, strict=True)]
        out.append((sum(chosen), rows.argmax(-1).tolist() == list(branch)))
    return out


def agree(executor, model, trees):
    for found, tree in zip(executor.loglikelihoods(trees), trees, strict=True):
        for likelihood, (logprob, greedy) in zip(found, plainly(model, tree), strict=True):
            assert likelihood.logprob == pytest.approx(logprob, abs=1e-4)
            assert likelihood.greedy == greedy


@FEW
@given(FORESTS, st.integers(8, 80))
def test_packed_likelihoods_are_those_of_each_branch_alone(model, trees, budget):
    executor = Executor(model, budget)
    assert executor.engine == "packed"
    agree(executor, model, trees)


@FEW
@given(st.lists(IDS, min_size=8, max_size=20), FORESTS)
def test_likelihoods_are_the_same_when_all_contexts_begin_alike(model, beginning, trees):
    agree(Executor(model, 80), model, [Tree((*beginning, *t.context), t.branches) for t in trees])


def test_what_all_contexts_begin_with_is_read_once(model):
    beginning, read = tuple(range(10, 60)), []
    trees = [Tree((*beginning, 100 + i), ((5,), (6,))) for i in range(6)]
    executor = Executor(model, 512)
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: read.append(args[0].numel())
    )
    try:
        executor.loglikelihoods(trees)
    finally:
        hook.remove()
    assert read == [50, 6 * 3]


@FEW
@given(FORESTS)
def test_the_plain_engine_gives_the_same_numbers(model, trees):
    agree(Executor(model, 64, "plain"), model, trees)


def test_a_branch_is_greedy_when_every_token_is_the_argmax(model):
    import torch

    context = (7, 8, 9)
    with torch.inference_mode():
        answer = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False, eos_token_id=-1)
    best = tuple(answer[0, 3:].tolist())
    other = (*best[:2], (best[2] + 1) % 300)
    found = Executor(model, 64).loglikelihoods([Tree(context, (best, other, best[:1]))])
    assert [likelihood.greedy for likelihood in found[0]] == [True, False, True]


def test_token_logprobs_add_up_to_the_likelihood(model):
    executor = Executor(model, 64)
    trees = [Tree((5, 6), ((7, 8, 9), (10,))), Tree((11,), ((12, 13),))]
    for tokens, whole in zip(executor.token_logprobs(trees), executor.loglikelihoods(trees), strict=True):
        assert [sum(branch) for branch in tokens] == [x.logprob for x in whole]
    assert [[len(b) for b in tree] for tree in executor.token_logprobs(trees)] == [[3, 1], [2]]


def test_no_trees_have_no_likelihoods(model):
    assert Executor(model, 64).loglikelihoods([]) == []


def ignoring_masks(tiny):
    """Return the tiny model as if its layers took no mask, as recurrent ones do."""
    from transformers import LlamaForCausalLM

    class Recurrent(LlamaForCausalLM):
        def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=None):
            return super().forward(input_ids, use_cache=use_cache)

    return Recurrent.from_pretrained(tiny).eval()


def refusing_masks(tiny):
    """Return the tiny model as if it took padding masks only, of two dimensions."""
    from transformers import LlamaForCausalLM

    class Strict(LlamaForCausalLM):
        def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=None):
            if attention_mask is not None and attention_mask.ndim != 2:
                raise ValueError("attention_mask must be of shape (batch, tokens)")
            return super().forward(input_ids, use_cache=use_cache)

    return Strict.from_pretrained(tiny).eval()


@pytest.mark.parametrize("kind", [ignoring_masks, refusing_masks])
def test_a_model_that_does_not_take_the_mask_is_scored_plainly_and_rightly(tiny, model, kind):
    executor = Executor(kind(tiny), 64)
    assert executor.engine == "plain"
    agree(executor, model, [Tree((5, 6, 7), ((8, 9), (10,))), Tree((11, 12), ((13,),))])


@dataclass
class Crowded:
    """A model on a device whose memory holds `room` tokens at most."""

    model: object
    room: int

    def __getattr__(self, name):
        return getattr(self.model, name)

    def forward(self, input_ids, position_ids=None, attention_mask=None, use_cache=None, logits_to_keep=0):
        raise NotImplementedError

    def __call__(self, input_ids, **inputs):
        import torch

        if input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.model(input_ids, **inputs)


def test_out_of_memory_halves_the_group_and_the_numbers_stay(model):
    trees = [Tree(tuple(range(5, 5 + n)), ((20, 21),)) for n in (3, 4, 5, 6, 7)]
    agree(Executor(Crowded(model, 20), 512, "packed"), model, trees)


def test_one_tree_that_does_not_fit_raises(model):
    import torch

    with pytest.raises(torch.OutOfMemoryError):
        Executor(Crowded(model, 5), 512, "packed").loglikelihoods([Tree((1, 2, 3, 4), ((5, 6),))])


def test_the_layout_digest_depends_on_engine_and_budget(model):
    digests = {Executor(model, n, e).layout_digest for n in (64, 128) for e in ("packed", "plain")}
    assert len(digests) == 4
    assert Executor(model, 64).layout_digest == Executor(model, 64).layout_digest
