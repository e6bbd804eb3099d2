"""Adapters merged, scaled, and served within 16-bit weights, compared with PEFT and with sums by hand."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_experiment import runs_of
from tiny_methods import host_of
from tiny_model import ASKED

from harness import plugins, store
from harness.errors import CandidateFailed
from harness.methods.derived import Merged, Scaled, unlike
from harness.methods.supervised import Lora
from harness.models.weight_files import CONFIG, WEIGHTS
from harness.plugins import RescueSituation
from harness.spec import RescuePolicy
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")


PAIRS = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (11, 12, 13)), ((5, 6), (7,))]
CANDIDATES = """\
  lora: {method: lora, params: {r: 2, num_train_epochs: 4, learning_rate: 0.02, max_length: 200}}
  served: {weights_of: lora, serve_merged: true}
"""


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory, own_cache):
    """Train an adapter that moves the base; it is saved in fp32."""
    params = {"r": 4, "max_steps": 20, "learning_rate": 1e-2}
    return tiny_methods.fit(tiny, tmp_path_factory.mktemp("made"), Lora, params).folder / "adapter"


def test_merged_weights_in_16_bits_are_those_that_peft_exports(tiny, adapter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    theirs = PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()
    host = host_of(tiny, "bf16")
    target = {name: layer.weight for name, layer in theirs.named_modules() if type(layer) is torch.nn.Linear}
    with host.use_adapter(adapter, "served", merged=True) as candidate:
        layers = candidate.model.get_base_model().named_modules()
        merged = {name: layer.weight for name, layer in layers if type(layer) is torch.nn.Linear}
        assert merged.keys() == target.keys()
        assert all(torch.equal(merged[name], target[name]) for name in merged)
        assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}


def test_merged_and_apart_differ_in_16_bits_alone_and_leave_the_base_as_it_was(tiny, adapter):
    gaps = {}
    for precision in ("fp32", "bf16"):
        host = host_of(tiny, precision)
        before, logprobs = host.base.loglikelihood(PAIRS), []
        for is_merged in (False, True):
            with host.use_adapter(adapter, f"{is_merged}", merged=is_merged) as candidate:
                logprobs.append([s.logprob for s in candidate.loglikelihood(PAIRS)])
        assert host.base.loglikelihood(PAIRS) == before
        gaps[precision] = max(abs(a - b) for a, b in zip(*logprobs, strict=True))
    assert gaps["fp32"] < 1e-4 < gaps["bf16"] < 0.5


@pytest.mark.e2e
def test_a_comparison_measures_both(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES)
    path.write_text(path.read_text().replace("precision: fp32", "precision: bf16"))
    report = tiny_experiment.run(path, "suites=[]")
    assert {fact.state for fact in report.facts} == {"done"}
    runs = runs_of(path)
    assert runs["served"].weights_digest != runs["lora"].weights_digest
    assert runs["served"].rows.keys() == runs["lora"].rows.keys()


def test_an_adapter_that_cannot_be_merged_is_refused_when_it_is_opened(tiny, tmp_path):
    weights = tiny_methods.fit(tiny, tmp_path, Lora, {"r": 2, "max_steps": 1, "use_dora": True})
    host = host_of(tiny, "bf16")
    before = host.base.loglikelihood(PAIRS)
    refused = pytest.raises(CandidateFailed, match="more than low-rank updates of unquantised linear layers")
    with refused, host.use_adapter(weights.folder / "adapter", "served", merged=True):
        pass
    assert host.base.loglikelihood(PAIRS) == before


PLACE = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory, own_cache):
    folders = []
    for seed, r in ((0, 2), (1, 2), (2, 3)):
        params = {
            "r": r, "lora_alpha": 3, "learning_rate": 0.05 * (1 + seed), "max_steps": 3, "max_length": 200,
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("tuned")
        folders.append(tiny_methods.fit(tiny, folder, Lora, params).folder / "adapter")
    return folders


def merge(tiny, folder, adapters, **params):
    return tiny_methods.fit(tiny, folder, Merged, params, merges=tuple(adapters))


def parts(folder):
    """Read A (r, in), B (out, r) and the scale of one layer."""
    from safetensors.torch import load_file

    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    a, b = (tensors[f"{PLACE}.lora_{letter}.weight"].double() for letter in "AB")
    return a, b, config["lora_alpha"] / config["r"]


def delta(folder):
    a, b, scale = parts(folder)
    return scale * b @ a


def test_linear_adds_a_and_b_each_with_the_roots_of_their_weights(tiny, tmp_path, adapters):
    merged = merge(tiny, tmp_path, adapters[:2], combination_type="linear", weights=[0.7, 0.2])
    roots = [(w * parts(folder)[2]) ** 0.5 for w, folder in zip((0.7, 0.2), adapters[:2], strict=True)]
    a = sum(root * parts(folder)[0] for root, folder in zip(roots, adapters[:2], strict=True))
    b = sum(root * parts(folder)[1] for root, folder in zip(roots, adapters[:2], strict=True))
    change = delta(merged.folder / "adapter")
    assert change.abs().max() > 1e-3
    assert change.allclose(b @ a, atol=1e-6)


@pytest.mark.parametrize(
    ("written", "shares"),
    [
        ({"combination_type": "cat"}, (0.5, 0.5)),
        ({"combination_type": "svd", "svd_rank": 5, "weights": [0.7, -0.2]}, (0.7, -0.2)),
    ],
)
def test_joined_adapters_change_the_weights_by_the_sum_of_their_changes(
    tiny, tmp_path, adapters, written, shares
):
    pair = [adapters[0], adapters[2]]  # of ranks 2 and 3
    merged = merge(tiny, tmp_path, pair, **written)
    expected = sum(share * delta(folder) for share, folder in zip(shares, pair, strict=True))
    assert delta(merged.folder / "adapter").allclose(expected, atol=1e-6)


def test_ties_keeps_of_each_value_what_most_adapters_agree_on(tiny, tmp_path, adapters):
    """Trim, elect the sign, average values of that sign (Yadav et al. 2023), on A and B, in plain loops."""
    import torch

    merged = merge(tiny, tmp_path, adapters[:2], combination_type="ties", density=0.5, weights=[1.0, 1.0])
    expected = []
    for which in (0, 1):
        trimmed = []
        for folder in adapters[:2]:
            values = parts(folder)[which].flatten().tolist()
            largest = sorted(range(len(values)), key=lambda i, v=values: -abs(v[i]))[: len(values) // 2]
            trimmed.append([v if i in largest else 0.0 for i, v in enumerate(values)])
        root = parts(adapters[0])[2] ** 0.5
        averaged = []
        for first, second in zip(*trimmed, strict=True):
            sign = 1 if first + second >= 0 else -1
            agreeing = [v for v in (first, second) if v * sign > 0]
            averaged.append(root * sum(agreeing) / max(1, len(agreeing)))
        expected.append(torch.tensor(averaged).double().reshape(parts(adapters[0])[which].shape))
    assert delta(merged.folder / "adapter").allclose(expected[1] @ expected[0], atol=1e-5)


PATTERN = {"r": 2, "rank_pattern": {"q_proj": 3}}


@pytest.mark.parametrize(
    ("configs", "combination", "said"),
    [
        ({"a": {"r": 2}, "b": {"r": 2}}, "linear", None),
        ({"a": PATTERN, "b": {"r": 3}}, "linear", "linear of a of rank 2 and 3, b of rank 3"),
        ({"a": PATTERN, "b": {"r": 3}}, "cat", None),
        ({"a": {"use_dora": True}, "b": {}}, "cat", "a, an adapter with use_dora"),
        ({"a": {}, "b": {"modules_to_save": ["norm"]}}, "svd", "b, an adapter with modules_to_save"),
    ],
)
def test_what_cannot_be_merged_is_named(configs, combination, said):
    problem = unlike(configs, combination)
    assert (problem and problem[0]) == said


@pytest.mark.e2e
def test_it_is_a_candidate_that_stands_on_the_others(tiny, tmp_path):
    lora = "{method: lora, params: {r: %d, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}"
    recipe = "{method: merged, merges: [one, two], params: {weights: [0.5, 0.5]}}"
    path = tiny_experiment.write(tmp_path, tiny, f"  one: {lora % 2}\n  two: {lora % 4}\n  own: {recipe}\n")
    (fact,) = tiny_experiment.run(path, "suites=[]", candidates=("own",)).facts
    assert (fact.name, fact.state) == ("own", "done")
    training = runs_of(path)["own"].training
    assert len(training.stands_on) == 2
    assert training.init_wall_s > 0


@pytest.fixture(scope="module")
def tuned_weights(tiny, tmp_path_factory, own_cache):
    params = {"r": 2, "learning_rate": 0.05, "max_steps": 4, "max_length": 200}
    return tiny_methods.fit(tiny, tmp_path_factory.mktemp("tuned"), Lora, params)


def logprob(tiny, weights):
    host = host_of(tiny)
    encoded = [host.base.encode(ASKED, "late")[:2]]
    if weights is None:
        return host.base.loglikelihood(encoded)[0].logprob
    with host.use_adapter(weights.folder / "adapter", weights.digest) as candidate:
        return candidate.loglikelihood(encoded)[0].logprob


def test_it_answers_as_the_adapter_that_peft_scales(tiny, tuned_weights, tmp_path):
    import torch
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale
    from transformers import AutoModelForCausalLM

    scaled = tiny_methods.fit(tiny, tmp_path, Scaled, {"scale": 0.25}, init=tuned_weights.folder / "adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(tuned_weights.folder / "adapter")).eval()
    context, continuation, _ = host_of(tiny).base.encode(ASKED, "late")
    with rescale_adapter_scale(model, 0.25):
        expected = tiny_model.score_alone(model, context, continuation)
    assert logprob(tiny, scaled) == pytest.approx(expected, abs=1e-4)


def test_what_has_no_scale_is_refused_and_left_out_of_a_rescue(tiny, tuned_weights, tmp_path):
    folder = tmp_path / "ia3"
    folder.mkdir()
    shutil.copy(tuned_weights.folder / "adapter" / WEIGHTS, folder)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(CandidateFailed, match="an adapter of the kind IA3, which has no lora_alpha"):
        tiny_methods.fit(tiny, tmp_path / "to", Scaled, {}, init=folder)
    with pytest.raises(CandidateFailed, match="scaled without init_from"):
        tiny_methods.fit(tiny, tmp_path / "none", Scaled, {})
    situation = RescueSituation(RescuePolicy(), {"r": 2, "use_dora": True})
    (scaling,) = [m for m in plugins.list_rescue_methods("scale") if plugins.method(m).makes == "adapter"]
    reason = plugins.method(scaling).rescue.settings(situation)
    assert reason == "it is an adapter with use_dora, whose magnitudes do not follow its scale"


SMALL_LORA = "{method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}"

ALWAYS = """\
from harness.metrics import mean_metric

def metric(task):
    return mean_metric("always", lambda output, example: 1.0)
"""
IN_OTHER_WORDS = """\
name: general
role: capability
tasks:
  - {name: plain, data: {test: general/facts.jsonl}, metrics: [always.py], truncated_scores: true, max_new_tokens: 4}
  - name: brief
    data: {test: general/facts.jsonl}
    metrics: [always.py]
    truncated_scores: true
    max_new_tokens: 4
    system: Be brief.
"""


@pytest.fixture(scope="module")
def folder_and_report(tiny, tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("half")
    candidates = f"  prompt: {{method: base}}\n  lora: {SMALL_LORA}}}\n"
    candidates += "  half: {method: scaled, init_from: lora, params: {scale: 0.5}}\n"
    path = tiny_experiment.write(folder, tiny, candidates)
    (folder / "suites" / "general.yaml").write_text(IN_OTHER_WORDS)
    (folder / "suites" / "always.py").write_text(ALWAYS)
    facts = [{"id": f"q{n}", "prompt": f"What follows {n}?", "reference": str(n + 1)} for n in range(12)]
    tiny_experiment.rows(folder / "suites" / "general" / "facts.jsonl", facts)
    return folder, tiny_experiment.run(path)


def test_it_is_a_candidate_like_any_other_whose_documents_count_once(folder_and_report):
    folder, report = folder_and_report
    assert {f.name: f.state for f in report.facts} == dict.fromkeys(("prompt", "lora", "half"), "done")
    runs = runs_of(folder / "harness.yaml")
    assert runs["half"].training.init_wall_s == pytest.approx(runs["lora"].training.wall_s, abs=0.01)
    assert [step.what for step in report.steps["half"]] == ["scaling"]
    (step,) = report.steps["half"]
    (verdict,) = [f.verdict for f in report.facts if f.name == "half"]
    assert [t.n for t in step.tasks] == [12, 12]
    assert (step.macro.n, verdict.macro.n) == (12, 12)


@pytest.mark.e2e
def test_replayed_rows_are_the_bases_own_answers_asked_once_or_those_of_a_file_as_they_are(tiny, tmp_path):
    general = [{"prompt": f"Say {n}.", "reference": f"Here is {n}."} for n in range(12)]
    tiny_experiment.rows(tmp_path / "general.jsonl", general)
    candidates = f"  mixed: {SMALL_LORA}, replay: 0.2}}\n"
    candidates += f"  file: {SMALL_LORA}, replay: {{share: 0.1, data: general.jsonl}}}}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    assert {f.state for f in tiny_experiment.run(path).facts} == {"done"}
    at, runs = Store(tmp_path / "runs"), runs_of(path)
    (identity,) = [i for i in store.identities(at) if i.task == "replay"]
    assert identity.weights_digest == runs["mixed"].base_digest
    # a fifth of thirty rows, and two more in place of answers that are empty or refused
    assert len(store.read_rows(at, identity.digest)) == 8
    assert 1 <= runs["mixed"].training.n_replayed <= 6
    assert runs["file"].training.n_replayed == 3


@pytest.mark.e2e
def test_whole_weights_lie_between_the_base_and_the_fine_tune(tiny, tmp_path):
    from safetensors.torch import load_file

    candidates = "  full: {method: full, params: {max_steps: 2, learning_rate: 0.01}}\n"
    candidates += "  half: {method: interpolated, init_from: full, params: {scale: 0.25}}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    assert {f.state for f in tiny_experiment.run(path, "suites=[]").facts} == {"done"}
    runs = runs_of(path)
    at = {name: tmp_path / "runs" / "weights" / runs[name].training.fit_key for name in ("full", "half")}
    base = load_file(tiny / "model.safetensors")
    full, mixed = (load_file(at[name] / "model" / "model.safetensors") for name in ("full", "half"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not full[name].equal(base[name])
    assert mixed[name].allclose(base[name] + 0.25 * (full[name] - base[name]), atol=1e-6)
