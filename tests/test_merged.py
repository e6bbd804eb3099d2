"""Adapters are merged as PEFT defines it, held against sums and products written out, or refused by name."""

import json

import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of

from harness.errors import CandidateFailed
from harness.methods import lora, merged
from harness.models.weight_files import CONFIG, WEIGHTS

pytestmark = pytest.mark.usefixtures("own_cache")

PLACE = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory, own_cache):
    made = []
    for seed, r in ((0, 2), (1, 2), (2, 3)):
        context = tiny_methods.context(tiny, tmp_path_factory.mktemp("tuned"))
        params = lora.Params(r=r, lora_alpha=3, learning_rate=0.05 * (1 + seed), max_steps=3, max_length=200)
        made.append(lora.fit(context, params).folder / "adapter")
    return made


def merge(tiny, folder, adapters, seed=0, **params):
    from dataclasses import replace

    context = replace(tiny_methods.context(tiny, folder), merges=tuple(adapters), seed=seed)
    return merged.fit(context, merged.Params(**params))


def parts(folder):
    """Read A (r, in), B (out, r) and the scale of one layer."""
    from safetensors.torch import load_file

    tensors, kept = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    a, b = (tensors[f"{PLACE}.lora_{part}.weight"].double() for part in "AB")
    return a, b, kept["lora_alpha"] / kept["r"]


def delta(folder):
    a, b, scale = parts(folder)
    return scale * b @ a


def test_linear_adds_a_and_b_each_with_the_roots_of_their_weights(tiny, tmp_path, adapters):
    made = merge(tiny, tmp_path, adapters[:2], combination_type="linear", weights=[0.7, 0.2])
    roots = [(w * parts(folder)[2]) ** 0.5 for w, folder in zip((0.7, 0.2), adapters[:2], strict=True)]
    a = sum(root * parts(folder)[0] for root, folder in zip(roots, adapters[:2], strict=True))
    b = sum(root * parts(folder)[1] for root, folder in zip(roots, adapters[:2], strict=True))
    found = delta(made.folder / "adapter")
    assert found.abs().max() > 1e-3
    assert found.allclose(b @ a, atol=1e-6)


def test_without_weights_each_adapter_has_an_equal_share(tiny, tmp_path, adapters):
    made = merge(tiny, tmp_path, adapters[:2], combination_type="cat")
    assert delta(made.folder / "adapter").allclose((delta(adapters[0]) + delta(adapters[1])) / 2, atol=1e-6)


@pytest.mark.parametrize("written", [{"combination_type": "cat"}, {"combination_type": "svd", "svd_rank": 5}])
def test_joined_adapters_change_the_weights_by_the_sum_of_their_changes(tiny, tmp_path, adapters, written):
    two = [adapters[0], adapters[2]]  # of ranks 2 and 3
    made = merge(tiny, tmp_path, two, weights=[0.7, -0.2], **written)
    assert delta(made.folder / "adapter").allclose(0.7 * delta(two[0]) - 0.2 * delta(two[1]), atol=1e-6)


@pytest.mark.parametrize("combination", ["ties", "dare_ties", "ties_svd", "dare_ties_svd"])
def test_ties_of_two_equal_adapters_is_either_of_them_as_it_takes_their_mean(
    tiny, tmp_path, adapters, combination
):
    made = merge(tiny, tmp_path, [adapters[0]] * 2, combination_type=combination, density=1.0)
    assert delta(made.folder / "adapter").allclose(delta(adapters[0]), atol=1e-5)


def test_ties_keeps_of_each_value_what_most_adapters_agree_on(tiny, tmp_path, adapters):
    """Trim, elect the sign, and average what has it (Yadav et al. 2023), on A and on B, written out in loops."""
    import torch

    made = merge(tiny, tmp_path, adapters[:2], combination_type="ties", density=0.5, weights=[1.0, 1.0])
    expected = []
    for which in (0, 1):
        trimmed = []
        for folder in adapters[:2]:
            values = parts(folder)[which].flatten().tolist()
            kept = sorted(range(len(values)), key=lambda i, v=values: -abs(v[i]))[: len(values) // 2]
            trimmed.append([v if i in kept else 0.0 for i, v in enumerate(values)])
        root = parts(adapters[0])[2] ** 0.5
        out = []
        for one, other in zip(*trimmed, strict=True):
            sign = 1 if one + other >= 0 else -1
            agreeing = [v for v in (one, other) if v * sign > 0]
            out.append(root * sum(agreeing) / max(1, len(agreeing)))
        expected.append(torch.tensor(out).double().reshape(parts(adapters[0])[which].shape))
    assert delta(made.folder / "adapter").allclose(expected[1] @ expected[0], atol=1e-5)


def test_adapters_of_unlike_rank_are_refused_where_the_way_needs_one(tiny, tmp_path, adapters):
    told = "linear of adapter 1 of rank 2, adapter 2 of rank 3, where adapters of one rank are expected"
    with pytest.raises(CandidateFailed, match=told):
        merge(tiny, tmp_path, [adapters[0], adapters[2]], combination_type="linear")


@pytest.mark.parametrize(
    ("configs", "combination", "said"),
    [
        ({"a": {"r": 2}, "b": {"r": 4}}, "ties", "ties of a of rank 2, b of rank 4"),
        ({"a": {"r": 2}, "b": {"r": 4}}, "svd", None),
        ({"a": {"r": 2}, "b": {"r": 2}}, "linear", None),
        ({"a": {"r": 2}, "b": {"peft_type": "IA3"}}, "svd", "b, an adapter of the family IA3"),
        (
            {"a": {"r": 2, "rank_pattern": {"q_proj": 3}}, "b": {"r": 3}},
            "linear",
            "linear of a of rank 2 and 3, b of rank 3",
        ),
        ({"a": {"r": 2, "rank_pattern": {"q_proj": 3}}, "b": {"r": 3}}, "cat", None),
        (
            {"a": {"r": 2, "init_lora_weights": "pissa"}, "b": {"r": 2}},
            "ties",
            "ties of a of rank 4, b of rank 2",
        ),
        ({"a": {"use_dora": True}, "b": {}}, "cat", "a, an adapter with use_dora"),
        ({"a": {"use_rslora": True}, "b": {}}, "cat", "a, an adapter with use_rslora"),
        ({"a": {}, "b": {"target_parameters": ["w"]}}, "svd", "b, an adapter with target_parameters"),
        ({"a": {"lora_bias": True}, "b": {}}, "cat", "a, an adapter with lora_bias"),
        ({"a": {}, "b": {"modules_to_save": ["norm"]}}, "svd", "b, an adapter with modules_to_save"),
        ({"a": {}, "b": {"bias": "all"}}, "svd", "b, an adapter with bias: all"),
    ],
)
def test_what_cannot_be_merged_is_named(configs, combination, said):
    found = merged.unlike(configs, combination)
    assert (found and found[0]) == said


LORA = "{method: lora, params: {r: %d, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}"


def write_experiment(tmp_path, tiny, own, more=""):
    candidates = f"  prompt: {{method: base}}\n  one: {LORA % 2}\n  two: {LORA % 4}\n{more}  own: {own}\n"
    return tiny_experiment.write(tmp_path, tiny, candidates)


@pytest.mark.e2e
def test_it_is_a_candidate_that_stands_on_the_others(tiny, tmp_path):
    path = write_experiment(
        tmp_path, tiny, "{method: merged, merges: [one, two], params: {weights: [0.5, 0.5]}}"
    )
    report = tiny_experiment.run(path, candidates=("own",))
    assert {fact.name: fact.state for fact in report.facts}["own"] == "done"
    run = runs_of(path)["own"]
    assert len(run.training.stands_on) == 2
    assert run.training.init_wall_s > 0
    again = tiny_experiment.run(path, candidates=("own",))
    assert {fact.name: fact.state for fact in again.facts}["own"] == "done"
    assert runs_of(path)["own"].weights_digest == run.weights_digest
