"""An adapter at a share of its scale lies between the base and the adapter, exactly as PEFT scales it."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_methods import CPU

from harness import config, plugins, store
from harness.errors import CandidateFailed, UserError
from harness.experiment import Scope, prepare_session
from harness.methods import lora, scaled
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.weight_files import CONFIG, WEIGHTS
from harness.plugins import RescueSituation
from harness.progress import SilentProgress
from harness.records import Run
from harness.rescue.trials import schedule_for_run
from harness.spec import RescuePolicy
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

ASKED = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.fixture(scope="module")
def tuned_weights(tiny, tmp_path_factory, own_cache):
    context = tiny_methods.context(tiny, tmp_path_factory.mktemp("tuned"))
    params = lora.Params(r=2, learning_rate=0.05, max_steps=4, max_length=200)
    return lora.fit(context, params)


def fit_scale(tiny, tuned, folder, scale):
    context = tiny_methods.context(tiny, folder, init=tuned.folder / "adapter")
    return scaled.fit(context, scaled.Params(scale=scale))


def logprob(tiny, made):
    host = ModelHost(resolve(str(tiny)), CPU)
    asked = [host.base.encode(ASKED, "late")[:2]]
    if made is None:
        return host.base.loglikelihood(asked)[0].logprob
    with host.use_adapter(made.folder / "adapter", made.digest) as candidate:
        return candidate.loglikelihood(asked)[0].logprob


def score_by_peft(tiny, tuned, scale):
    import torch
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(tuned.folder / "adapter")).eval()
    context, continuation, _ = ModelHost(resolve(str(tiny)), CPU).base.encode(ASKED, "late")
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode(), rescale_adapter_scale(model, scale):
        logprobs = model(input_ids=ids).logits.log_softmax(-1)[0]
    places = range(len(context) - 1, ids.shape[1] - 1)
    return sum(float(logprobs[place, ids[0, place + 1]]) for place in places)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_it_answers_as_the_adapter_that_peft_scales(tiny, tuned_weights, tmp_path, scale):
    made = fit_scale(tiny, tuned_weights, tmp_path, scale)
    assert logprob(tiny, made) == pytest.approx(score_by_peft(tiny, tuned_weights, scale), abs=1e-4)


def test_a_small_scale_is_nearly_the_base_and_every_scale_has_a_digest_of_its_own(
    tiny, tuned_weights, tmp_path
):
    base, whole = logprob(tiny, None), logprob(tiny, tuned_weights)
    nearly = logprob(tiny, fit_scale(tiny, tuned_weights, tmp_path, 1e-4))
    assert abs(whole - base) > 0.1
    assert nearly == pytest.approx(base, abs=0.01)
    made = {
        scale: fit_scale(tiny, tuned_weights, tmp_path / str(scale), scale).digest
        for scale in (0.5, 0.75, 1.0)
    }
    assert len(set(made.values())) == 3
    assert made[1.0] == tuned_weights.digest
    assert fit_scale(tiny, tuned_weights, tmp_path / "again", 0.5).digest == made[0.5]


def test_scales_of_single_modules_are_scaled_as_well(tiny, tuned_weights, tmp_path):
    folder = shutil.copytree(tuned_weights.folder / "adapter", tmp_path / "pattern")
    written = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**written, "alpha_pattern": {"q_proj": 8}}))
    made = scaled.fit(tiny_methods.context(tiny, tmp_path / "to", init=folder), scaled.Params(scale=0.5))
    read = json.loads((made.folder / "adapter" / CONFIG).read_text())
    assert (read["lora_alpha"], read["alpha_pattern"]) == (written["lora_alpha"] / 2, {"q_proj": 4.0})


def test_what_has_no_scale_is_refused_and_left_out_of_a_rescue(tiny, tuned_weights, tmp_path):
    folder = tmp_path / "ia3"
    folder.mkdir()
    shutil.copy(tuned_weights.folder / "adapter" / WEIGHTS, folder)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(CandidateFailed, match="an adapter of the kind IA3, which has no lora_alpha"):
        scaled.fit(tiny_methods.context(tiny, tmp_path / "to", init=folder), scaled.Params())
    with pytest.raises(CandidateFailed, match="scaled without init_from"):
        scaled.fit(tiny_methods.context(tiny, tmp_path / "none"), scaled.Params())
    situation = RescueSituation(RescuePolicy(), {"r": 2, "use_dora": True})
    (scaling,) = [m for m in plugins.list_mending_methods("scale") if plugins.method(m).makes == "adapter"]
    found = plugins.method(scaling).rescue.settings(situation)
    assert found == "it is an adapter with use_dora, whose magnitudes do not follow its scale"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"modules_to_save": ["norm"]}, "with modules_to_save, which has no scale"),
        ({"use_dora": True}, "with use_dora, whose magnitudes do not follow its scale"),
        ({"init_lora_weights": "pissa"}, "pissa, which changed its base"),
    ],
)
def test_an_adapter_that_is_more_than_its_scale_is_refused(tiny, tuned_weights, tmp_path, own, said):
    folder = shutil.copytree(tuned_weights.folder / "adapter", tmp_path / "more")
    written = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**written, **own}))
    with pytest.raises(CandidateFailed, match=said):
        scaled.fit(tiny_methods.context(tiny, tmp_path / "to", init=folder), scaled.Params())


@pytest.mark.parametrize("name", ["theirs", "further"])
def test_a_rescue_leaves_out_what_cannot_be_done_with_an_adapter_of_dora_made_elsewhere(tiny, tmp_path, name):
    tiny_model.adapter_on(tiny, tmp_path / "theirs", r=2, target_modules=["q_proj"], use_dora=True)
    candidates = "  theirs: {method: adapter, path: ./theirs}\n  further: {method: dpo, init_from: theirs}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates, pairs=tiny_methods.pair_rows(slice(0, 2)))
    session = prepare_session(config.load(path), Scope(), SilentProgress())
    recipe = session.candidates[name].recipe
    run = Run(
        name, "tiny", name, recipe.method, "zero_shot", "generate", 0, "m", "w", "b", "done", "", {}, {}
    )
    found = schedule_for_run(session, run)
    assert "scale" not in {trial.step for trial in found.trials}
    assert "scale: it is an adapter with use_dora, whose magnitudes do not follow its scale" in found.left_out


LORA = "{method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}"


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
    candidates = f"  prompt: {{method: base}}\n  lora: {LORA}}}\n"
    candidates += "  half: {method: scaled, init_from: lora, params: {scale: 0.5}}\n"
    path = tiny_experiment.write(folder, tiny, candidates)
    (folder / "suites" / "general.yaml").write_text(IN_OTHER_WORDS)
    (folder / "suites" / "always.py").write_text(ALWAYS)
    asked = [{"id": f"q{n}", "prompt": f"What follows {n}?", "reference": str(n + 1)} for n in range(12)]
    tiny_experiment.rows(folder / "suites" / "general" / "facts.jsonl", asked)
    return folder, tiny_experiment.run(path)


def test_it_is_a_candidate_like_any_other_whose_documents_count_once(folder_and_report):
    folder, report = folder_and_report
    assert {f.name: f.state for f in report.facts} == dict.fromkeys(("prompt", "lora", "half"), "done")
    runs = {run.candidate: run for run in store.list_runs(Store(folder / "runs"))}
    assert runs["half"].training.init_wall_s == pytest.approx(runs["lora"].training.wall_s, abs=0.01)
    assert [step.what for step in report.steps["half"]] == ["scaling"]
    (step,) = folder_and_report[1].steps["half"]
    (verdict,) = [f.verdict for f in folder_and_report[1].facts if f.name == "half"]
    assert [t.n for t in step.tasks] == [12, 12]
    assert (step.macro.n, verdict.macro.n) == (12, 12)


@pytest.mark.e2e
def test_replayed_rows_are_the_bases_own_answers_and_are_asked_once(tiny, tmp_path):
    candidates = f"  prompt: {{method: base}}\n  mixed: {LORA}, replay: 0.2}}\n"
    report = tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, candidates))
    at = Store(tmp_path / "runs")
    (run,) = [r for r in store.list_runs(at) if r.candidate == "mixed"]
    assert next(f.state for f in report.facts if f.name == "mixed") == "done"
    (asked,) = [i for i in store.identities(at) if i.task == "replay"]
    assert asked.weights_digest == run.base_digest
    rows = store.read_rows(at, asked.digest)
    assert len(rows) == 12  # a fifth of thirty rows, and as many again, for answers that come to no end
    assert 1 <= run.training.n_replayed <= 6


@pytest.mark.e2e
def test_rows_of_a_file_are_replayed_as_they_are(tiny, tmp_path):
    general = [{"prompt": f"Say {n}.", "reference": f"Here is {n}."} for n in range(12)]
    tiny_experiment.rows(tmp_path / "general.jsonl", general)
    candidates = (
        f"  prompt: {{method: base}}\n  mixed: {LORA}, replay: {{share: 0.1, data: general.jsonl}}}}\n"
    )
    tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, candidates))
    (run,) = [r for r in store.list_runs(Store(tmp_path / "runs")) if r.candidate == "mixed"]
    assert run.training.n_replayed == 3
    assert not [i for i in store.identities(Store(tmp_path / "runs")) if i.task == "replay"]


def test_rows_that_are_evaluated_are_never_replayed(tiny, tmp_path):
    tiny_experiment.rows(tmp_path / "general.jsonl", tiny_experiment.facts())
    candidates = f"  mixed: {LORA}, replay: {{share: 0.1, data: general.jsonl}}}}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    with pytest.raises(UserError, match="the question of facts item fact-0 too"):
        tiny_experiment.run(path)
    assert not (tmp_path / "runs" / "weights").exists()


def test_half_of_the_layers_have_no_adapter_where_half_is_left_out(tiny, tmp_path):
    from harness.models.weight_files import tensors_of
    from harness.regularizers.freeze import match_first_layers

    params = lora.Params(r=2, max_steps=1, max_length=200, exclude_modules=match_first_layers(1))
    made = lora.fit(tiny_methods.context(tiny, tmp_path), params)
    names = tensors_of(made.folder / "adapter" / WEIGHTS)
    assert names
    assert all(".layers.1." in name for name in names)


@pytest.mark.e2e
def test_whole_weights_lie_between_the_base_and_the_fine_tune(tiny, tmp_path):
    from safetensors.torch import load_file

    candidates = (
        "  prompt: {method: base}\n  full: {method: full, params: {max_steps: 2, learning_rate: 0.01}}\n"
    )
    candidates += "  half: {method: interpolated, init_from: full, params: {scale: 0.25}}\n"
    report = tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, candidates))
    assert {f.state for f in report.facts} == {"done"}
    runs = {run.candidate: run for run in store.list_runs(Store(tmp_path / "runs"))}
    at = {name: tmp_path / "runs" / "weights" / runs[name].training.fit_key for name in ("full", "half")}
    base = load_file(tiny / "model.safetensors")
    full, mixed = (load_file(at[name] / "model" / "model.safetensors") for name in ("full", "half"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not full[name].equal(base[name])
    assert mixed[name].allclose(base[name] + 0.25 * (full[name] - base[name]), atol=1e-6)
