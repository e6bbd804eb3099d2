"""Names that a new adapter is put on are held against the base before anything runs."""

import pytest
import tiny_experiment
from test_model_families import build

from harness import config
from harness.errors import UserError
from harness.experiment import Scope, prepare_session
from harness.progress import SilentProgress


def prepare_candidates(folder, model, params, *overrides):
    candidates = f"  prompt: {{method: base}}\n  mine: {params}\n"
    path = tiny_experiment.write(folder, model, candidates)
    return prepare_session(config.load(path, overrides), Scope(), SilentProgress())


def test_a_refused_name_that_an_override_gave_is_shown_with_the_override(tiny, tmp_path):
    given = "candidates.mine.params.target_modules=[nope]"
    with pytest.raises(UserError) as refused:
        prepare_candidates(tmp_path, tiny, "{method: lora}", given, "seeds=[3]")
    (problem,) = refused.value.problems
    assert problem.where.endswith(f", override {given}: candidate mine")


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["tied", "own"])
@pytest.mark.parametrize(
    "recipe",
    [
        "{method: lora, params: {target_modules: [q_proj, lm_head]}}",
        "{method: qlora, params: {target_modules: '.*(q_proj|head)'}}",
        "{method: lora, params: {r: 2}, sweep: {target_modules: [[q_proj], [lm_head]]}}",
    ],
)
def test_an_adapter_of_the_head_is_refused_with_tied_embeddings_and_without(tiny, tmp_path, recipe, kind):
    base = tiny if kind == "tied" else build(tmp_path / "base", "Llama")
    with pytest.raises(UserError, match=r"mine: found an adapter of lm_head.*; expected .*; next: leave"):
        prepare_candidates(tmp_path, base, recipe)


def test_names_that_are_there_are_taken_and_so_are_embeddings_that_the_head_is_tied_to(tiny, tmp_path):
    recipe = "{method: lora, params: {target_modules: [embed_tokens]}}"
    assert prepare_candidates(tmp_path, tiny, recipe).candidates["mine"]
    recipe = "{method: lora, params: {target_modules: '.*(q|v)_proj', exclude_modules: [o_proj]}}"
    assert prepare_candidates(tmp_path, tiny, recipe).candidates["mine"]


@pytest.mark.e2e
def test_a_misspelt_parameter_is_answered_with_the_one_that_is_there(tmp_path):
    base = build(tmp_path / "base", "gpt-oss")
    recipe = "{method: lora, params: {target_parameters: [mlp.experts.down_prj]}}"
    with pytest.raises(UserError, match=r"did you mean 'mlp\.experts\.down_proj'"):
        prepare_candidates(tmp_path, base, recipe)
    assert prepare_candidates(tmp_path, base, recipe.replace("down_prj", "down_proj")).candidates["mine"]


@pytest.mark.e2e
def test_names_of_experts_that_peft_finds_by_other_names_are_taken(tmp_path):
    base = build(tmp_path / "base", "Qwen3-MoE")
    recipe = "{method: lora, params: {r: 2, target_modules: [q_proj, gate_proj, up_proj, down_proj]}}"
    assert prepare_candidates(tmp_path, base, recipe).candidates["mine"]
    with pytest.raises(UserError, match=r"target_modules: q_prj; .*did you mean 'q_proj'"):
        prepare_candidates(tmp_path, base, recipe.replace("q_proj", "q_proj, q_prj"))
