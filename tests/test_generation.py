"""Answers do not depend on how prompts are batched and read, nor on what they share."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import note_shapes

from harness.models.batching import Size, grow, pack, plan
from harness.models.generation import Continuation, PromptReader, answers, pick_at_random
from harness.models.hf import HFCandidate
from harness.models.hub import load_tokenizer, resolve
from harness.models.prefix_cache import PrefixCache
from harness.records import Limits

SIZE = Size(8, 64)
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def generate_greedily(model, prompt, n):
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
    return new + [model.config.pad_token_id] * (n - len(new))


def never(new):
    """Stop no row for its text."""
    import torch

    return torch.zeros(len(new), dtype=torch.bool)


def generate_by_engine(model, prompts, n, size=SIZE):
    """Answer by the engine, with no stop strings; rows are filled up to n tokens."""
    pad_id, end_id = model.config.pad_token_id, model.generation_config.eos_token_id
    reader = PromptReader(model, size, PrefixCache(model))
    rows = answers(reader, prompts, Continuation(n, [pad_id, end_id], never))
    return [row + [pad_id] * (n - len(row)) for row in rows]


def assert_greedy(model, prompts, n):
    alone = [generate_greedily(model, prompt, n) for prompt in prompts]
    assert generate_by_engine(model, prompts, n) == alone


@FEW
@given(
    st.lists(st.integers(4, 300), min_size=8, max_size=20),
    st.lists(st.lists(st.integers(4, 300), min_size=1, max_size=9), min_size=1, max_size=5),
)
def test_a_shared_beginning_read_once_changes_no_answer(model, prefix, ends):
    assert_greedy(model, [(*prefix, *end) for end in ends], 6)


def test_one_prompt_that_another_begins_with_is_answered_too(model):
    long = tuple(range(10, 40))
    assert_greedy(model, [long[:20], long, long[:20]], 4)


def test_rows_that_have_ended_are_no_longer_computed(model):
    prompts = [tuple(range(10 + i, 30 + i)) for i in range(4)]
    alone = [generate_greedily(model, prompt, 6) for prompt in prompts]
    ends = [0, alone[0][1]]  # where the first has ended, and perhaps others
    last = [next((n for n, token in enumerate(row, 1) if token in ends), 6) for row in alone]
    with note_shapes(model.get_input_embeddings()) as read:
        rows = answers(PromptReader(model, SIZE, PrefixCache(model)), prompts, Continuation(6, ends, never))
    found, expected = ([row[:n] for row, n in zip(of, last, strict=True)] for of in (rows, alone))
    assert found == expected
    assert min(last) < max(last)
    computed = [n for n, width in read if width == 1]
    assert computed[-1] == sum(n == max(last) for n in last) < len(prompts)


DRAWN = Limits(8, (), temperature=1.0)


def sample_answers(model, folder, prompts, seeds):
    candidate = HFCandidate(model, load_tokenizer(resolve(str(folder))), "w")
    return [output.text for output in candidate.generate(prompts, DRAWN, seeds)]


def test_a_seed_draws_the_same_answer_whatever_is_asked_beside_it(model, tiny):
    prompts = [tuple(range(10, 10 + n)) for n in (20, 5, 31, 5)]
    together = sample_answers(model, tiny, prompts, [3, 4, 5, 6])
    for prompt, seed, text in zip(prompts, (3, 4, 5, 6), together, strict=True):
        assert sample_answers(model, tiny, [prompt], [seed]) == [text]
    assert together[1] != together[3], "two seeds of one prompt"


def test_tokens_are_drawn_as_often_as_their_chances_say():
    import torch

    n, chances = 6_000, torch.tensor([0.3, 0.5, 0.15, 0.05])
    logits = chances.log().repeat(n, 1)

    def shares(temperature, top_p):
        pick = pick_at_random(Limits(1, (), temperature, top_p), range(n))
        return torch.bincount(pick(logits, torch.arange(n), 0), minlength=4) / n

    close = {"atol": 0.025, "rtol": 0}  # four standard errors of the largest share
    torch.testing.assert_close(shares(1.0, 1.0), chances, **close)
    torch.testing.assert_close(shares(1.0, 0.7), torch.tensor([0.375, 0.625, 0, 0]), **close)
    torch.testing.assert_close(shares(0.5, 1.0), chances**2 / (chances**2).sum(), **close)
    assert shares(1.0, 0.1).tolist() == [0, 1, 0, 0], "the likeliest is always among those that may be drawn"


# Few ids, so that sequences begin alike.
IDS = st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple)
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)
BUDGETS = st.integers(1, 40)
LENGTHS = st.lists(st.integers(1, 90), max_size=40)
SIZES = st.builds(Size, st.integers(1, 12), st.integers(1, 400))
PURE = settings(deadline=None)

# Trees


def list_seen_ids(tree, token):
    """Return the ids that a token sees, itself last."""
    return tuple(tree.ids[i] for i in range(token + 1) if token < tree.ends[i])


@PURE
@given(PAIRS, BUDGETS)
def test_a_tree_computes_each_needed_position_once_which_sees_no_other_branch_and_keeps_to_the_budget(
    pairs, budget
):
    longest = max(len(context) + len(continuation) for context, continuation in pairs)
    for tree in grow(pairs, budget):
        needed = set()
        for number, sources in zip(tree.numbers, tree.sources, strict=True):
            context, continuation = pairs[number]
            before = [(*context, *continuation[:i]) for i in range(len(continuation))]
            assert [list_seen_ids(tree, source) for source in sources] == before
            needed |= {before[-1][:i] for i in range(1, len(before[-1]) + 1)}
        computed = [list_seen_ids(tree, token) for token in range(len(tree.ids))]
        assert len(computed) == len(needed)
        assert set(computed) == needed
        assert len(tree.numbers) == 1 or len(tree.ids) <= max(budget, 2 * longest)


@PURE
@given(PAIRS, BUDGETS)
def test_a_pack_keeps_every_continuation_and_names_each_place_once(pairs, budget):
    trees = grow(pairs, budget)
    packed = pack(trees, pairs)
    spans = dict(zip(packed.numbers, packed.spans, strict=True))
    assert [tuple(packed.targets[slice(*spans[i])]) for i in range(len(pairs))] == [c for _, c in pairs]
    assert len(set(packed.sources)) == len(packed.sources)
    for place, tree in enumerate(trees):
        for number, sources in zip(tree.numbers, tree.sources, strict=True):
            places = [packed.sources[w] for w in packed.where[slice(*spans[number])]]
            assert places == [(place, source) for source in sources]


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
