"""Answers do not depend on the batching or reading of prompts, nor on shared prefixes."""

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
    """Answer one prompt alone by the argmax over the full sequence, without a cache."""
    import torch

    ids = list(prompt)
    end_id = model.generation_config.eos_token_id
    while len(ids) < len(prompt) + n:
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == end_id:
            break
    new_ids = ids[len(prompt) :]
    return new_ids + [model.config.pad_token_id] * (n - len(new_ids))


def never(texts):
    """Stop no row because of its text."""
    import torch

    return torch.zeros(len(texts), dtype=torch.bool)


def generate_by_engine(model, prompts, n, size=SIZE):
    """Answer by the engine without stop strings; pads rows to n tokens."""
    pad_id, end_id = model.config.pad_token_id, model.generation_config.eos_token_id
    reader = PromptReader(model, size, PrefixCache(model))
    rows = answers(reader, prompts, Continuation(n, [pad_id, end_id], never))
    return [row + [pad_id] * (n - len(row)) for row in rows]


def assert_greedy(model, prompts, n):
    expected = [generate_greedily(model, prompt, n) for prompt in prompts]
    assert generate_by_engine(model, prompts, n) == expected


@FEW
@given(
    st.lists(st.integers(4, 300), min_size=8, max_size=20),
    st.lists(st.lists(st.integers(4, 300), min_size=1, max_size=9), min_size=1, max_size=5),
)
def test_a_shared_beginning_read_once_changes_no_answer(model, prefix, ends):
    assert_greedy(model, [(*prefix, *end) for end in ends], 6)


def test_one_prompt_that_another_begins_with_is_answered_too(model):
    long_prompt = tuple(range(10, 40))
    assert_greedy(model, [long_prompt[:20], long_prompt, long_prompt[:20]], 4)


def test_rows_that_have_ended_are_no_longer_computed(model):
    prompts = [tuple(range(10 + i, 30 + i)) for i in range(4)]
    singles = [generate_greedily(model, prompt, 6) for prompt in prompts]
    ids = [0, singles[0][1]]  # these end the first row and perhaps others
    lengths = [next((n for n, token in enumerate(row, 1) if token in ids), 6) for row in singles]
    with note_shapes(model.get_input_embeddings()) as shapes:
        rows = answers(PromptReader(model, SIZE, PrefixCache(model)), prompts, Continuation(6, ids, never))
    cut_rows, expected_rows = ([row[:n] for row, n in zip(g, lengths, strict=True)] for g in (rows, singles))
    assert cut_rows == expected_rows
    assert min(lengths) < max(lengths)
    batch_sizes = [n for n, width in shapes if width == 1]
    assert batch_sizes[-1] == sum(n == max(lengths) for n in lengths) < len(prompts)


def sample_answers(model, folder, prompts, seeds):
    candidate = HFCandidate(model, load_tokenizer(resolve(str(folder))), "w")
    return [output.text for output in candidate.generate(prompts, Limits(8, (), temperature=1.0), seeds)]


def test_a_seed_draws_the_same_answer_whatever_is_asked_beside_it(model, tiny):
    prompts = [tuple(range(10, 10 + length)) for length in (20, 5, 31, 5)]
    texts = sample_answers(model, tiny, prompts, [3, 4, 5, 6])
    for prompt, seed, text in zip(prompts, (3, 4, 5, 6), texts, strict=True):
        assert sample_answers(model, tiny, [prompt], [seed]) == [text]
    assert texts[1] != texts[3], "two seeds of one prompt"


def test_tokens_are_drawn_as_often_as_their_chances_say():
    import torch

    n, chances = 6_000, torch.tensor([0.3, 0.5, 0.15, 0.05])
    logits = chances.log().repeat(n, 1)

    def shares(temperature, top_p):
        pick = pick_at_random(Limits(1, (), temperature, top_p), range(n))
        return torch.bincount(pick(logits, torch.arange(n), 0), minlength=4) / n

    tolerance = {"atol": 0.025, "rtol": 0}  # four standard errors of the largest share
    torch.testing.assert_close(shares(1.0, 1.0), chances, **tolerance)
    torch.testing.assert_close(shares(1.0, 0.7), torch.tensor([0.375, 0.625, 0, 0]), **tolerance)
    torch.testing.assert_close(shares(0.5, 1.0), chances**2 / (chances**2).sum(), **tolerance)
    assert shares(1.0, 0.1).tolist() == [0, 1, 0, 0], "the likeliest is always among those that may be drawn"


# Few ids, so that sequences share prefixes.
IDS = st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple)
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)
BUDGETS = st.integers(1, 40)
LENGTHS = st.lists(st.integers(1, 90), max_size=40)
SIZES = st.builds(Size, st.integers(1, 12), st.integers(1, 400))
PURE = settings(deadline=None)

# Trees


def list_seen_ids(tree, position):
    """Return the ids visible to a position, ending with its own."""
    return tuple(tree.ids[j] for j in range(position + 1) if position < tree.ends[j])


@PURE
@given(PAIRS, BUDGETS)
def test_a_tree_computes_each_needed_position_once_sees_no_other_branch_and_keeps_the_budget(pairs, budget):
    longest_pair = max(len(context) + len(continuation) for context, continuation in pairs)
    for tree in grow(pairs, budget):
        needed_ids = set()
        for pair_index, sources in zip(tree.numbers, tree.sources, strict=True):
            context, continuation = pairs[pair_index]
            expected = [(*context, *continuation[:i]) for i in range(len(continuation))]
            assert [list_seen_ids(tree, source) for source in sources] == expected
            needed_ids |= {expected[-1][:i] for i in range(1, len(expected[-1]) + 1)}
        computed_ids = [list_seen_ids(tree, token) for token in range(len(tree.ids))]
        assert len(computed_ids) == len(needed_ids)
        assert set(computed_ids) == needed_ids
        assert len(tree.numbers) == 1 or len(tree.ids) <= max(budget, 2 * longest_pair)


@PURE
@given(PAIRS, BUDGETS)
def test_a_pack_keeps_every_continuation_and_names_each_place_once(pairs, budget):
    trees = grow(pairs, budget)
    packed = pack(trees, pairs)
    spans = dict(zip(packed.numbers, packed.spans, strict=True))
    assert [tuple(packed.targets[slice(*spans[i])]) for i in range(len(pairs))] == [c for _, c in pairs]
    assert len(set(packed.sources)) == len(packed.sources)
    for tree_index, tree in enumerate(trees):
        for pair_index, sources in zip(tree.numbers, tree.sources, strict=True):
            found_places = [packed.sources[w] for w in packed.where[slice(*spans[pair_index])]]
            assert found_places == [(tree_index, source) for source in sources]


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
        return sum(len(group) * max(group) + batch_cost for group in groups)

    def cuts(lengths_left):
        if not lengths_left:
            yield []
        for n in range(1, len(lengths_left) + 1):
            for tail in cuts(lengths_left[n:]):
                yield [lengths_left[:n], *tail]

    planned = [[lengths[i] for i in batch] for batch in plan(lengths, Size(64, 10_000), batch_cost)]
    assert cost(planned) == min(map(cost, cuts(sorted(lengths))))
