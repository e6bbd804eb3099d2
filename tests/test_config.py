"""harness.yaml becomes an experiment: references, overrides, grids, selection."""

import json
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
from conftest import EXPERIMENT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import config
from harness.errors import UserError

ROOT = Path(__file__).parents[1]


def read(folder, *overrides, candidates=(), text=None):
    if text is not None:
        (folder / "harness.yaml").write_text(text)
    return config.load(folder / "harness.yaml", overrides, candidates)


def experiment(folder, *overrides, **kwargs):
    return read(folder, *overrides, **kwargs).experiment


def test_a_target_suite_gives_its_one_task(folder):
    assert experiment(folder).target.name == "tiny"


def test_the_target_may_stand_in_the_file_itself(folder):
    text = EXPERIMENT.replace(
        "target: suites/tiny.yaml", "target: {name: own, data: {test: suites/tiny/test.jsonl}}"
    )
    assert experiment(folder, "candidates.shots={}", text=text).target.name == "own"


def test_paths_of_a_suite_are_resolved_against_the_folder_of_the_suite(folder):
    assert experiment(folder).target.data.test == str(folder / "suites" / "tiny" / "test.jsonl")


def test_a_path_set_on_the_command_line_is_relative_to_the_experiment(folder):
    data = experiment(folder, "target.data.pairs=suites/tiny/pairs.jsonl").target.data
    assert data.pairs == str(folder / "suites" / "tiny" / "pairs.jsonl")


def test_a_hub_id_stays_as_it_is(folder):
    assert experiment(folder, "target.data.test=hub:own/name").target.data.test == "hub:own/name"


def test_a_local_base_model_becomes_an_absolute_path(folder):
    (folder / "weights").mkdir()
    assert experiment(folder, "base_model=./weights").base_model == str(folder / "weights")


def test_the_name_of_a_base_model_stays_as_it_is(folder):
    assert experiment(folder, "base_model=owner/name").base_model == "owner/name"


def test_a_short_recipe_is_taken_from_the_folder_of_the_experiment_first(folder):
    (folder / "baselines").mkdir()
    (folder / "baselines" / "rag.yaml").write_text("prompting: {few_shot: {shots: 7}}\n")
    recipe = experiment(folder, "candidates.x=rag").candidates["x"]
    assert recipe.prompting == {"few_shot": {"shots": 7}}


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "baselines").glob("*.yaml")))
def test_every_shipped_recipe_loads_by_its_short_name(folder, name):
    files = "target.data.documents=suites/tiny/documents.jsonl", "target.data.pairs=suites/tiny/pairs.jsonl"
    assert name in experiment(folder, *files, f"candidates.{name}={name}").candidates


def test_a_shipped_suite_is_found_from_any_folder(folder):
    assert experiment(folder, "target=suites/support.yaml").target.name == "support"


@pytest.mark.parametrize("name", ["general", "safety"])
def test_a_shipped_suite_is_found_by_its_bare_name(folder, name):
    assert experiment(folder, f"suites=[{name}]").suites[0].name == name


def test_a_suite_of_ones_own_is_found_by_its_bare_name_first(folder):
    (folder / "suites" / "general.yaml").write_text((folder / "suites" / "other.yaml").read_text())
    assert experiment(folder, "suites=[general]").suites[0].name == "other"


def test_the_folder_of_a_retriever_is_relative_to_the_experiment(folder):
    (folder / "minilm").mkdir()
    rag = "candidates.x={prompting: {rag: {retriever: dense, model: minilm}}}"
    documents = "target.data.documents=suites/tiny/documents.jsonl"
    recipe = experiment(folder, documents, rag).candidates["x"]
    assert recipe.prompting["rag"]["model"] == str(folder / "minilm")


def test_one_file_for_all_splits_is_enough_to_train_and_test(folder):
    target = "target={name: t, data: {all: suites/tiny/train.jsonl}}"
    found = experiment(folder, target, "candidates.x={method: classifier}")
    assert found.target.data.source("test") == str(folder / "suites" / "tiny" / "train.jsonl")


def test_an_empty_candidate_is_the_base_model_asked_without_examples(folder):
    recipe = experiment(folder, text=EXPERIMENT + "  bare:\n").candidates["bare"]
    assert (recipe.method, recipe.prompting) == ("base", {"zero_shot": {}})


def test_a_small_exponent_is_a_number(folder):
    assert experiment(folder, "gate={macro: 1e-2}").gate.macro == 0.01


def test_an_override_reaches_into_the_files_that_are_named(folder):
    loaded = experiment(
        folder, "target.limit=5", "suites.other.tasks.capitals.margin=0.1", "suites.0.tasks.0.limit=3"
    )
    assert loaded.target.limit == 5
    assert [(task.limit, task.margin) for task in loaded.suites[0].tasks] == [(3, None), (None, 0.1)]


def test_an_override_reaches_into_a_short_recipe(folder):
    rag = ("candidates.rag=rag", "target.data.documents=suites/tiny/documents.jsonl")
    recipe = experiment(folder, "candidates.rag.prompting.rag.top_k=3", *rag).candidates["rag"]
    assert recipe.prompting["rag"]["top_k"] == 3


def test_an_override_reaches_into_a_bare_prompting(folder):
    text = EXPERIMENT + "  one: {prompting: few_shot}\n"
    recipe = experiment(folder, "candidates.one.prompting.few_shot.shots=1", text=text).candidates["one"]
    assert recipe.prompting == {"few_shot": {"shots": 1}}


def test_an_override_makes_the_mappings_on_its_way(folder):
    assert experiment(folder, "gate.target.min=0.7").gate.target.min == 0.7


def test_of_two_settings_of_one_key_the_later_wins(folder):
    assert experiment(folder, "seeds=[1]", "seeds=[2]").seeds == (2,)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(
        [
            "target.limit=4",
            "target=suites/tiny.yaml",
            "gate.macro=0.03",
            "gate={each: 0.06}",
            "candidates.shots.prompting.few_shot.shots=[1, 3]",
            "candidates.rag=few-shot",
            "seeds=[3]",
        ]
    )
)
def test_the_order_of_overrides_does_not_matter(folder, order):
    reference = sorted(order)
    assert experiment(folder, *order) == experiment(folder, *reference)


def test_a_list_where_one_value_belongs_gives_a_candidate_for_each(folder):
    names = list(experiment(folder, "candidates.shots.prompting.few_shot.shots=[2, 4]").candidates)
    assert names == ["prompt", "shots[shots=2]", "shots[shots=4]"]


def test_a_member_of_a_grid_holds_its_value(folder):
    candidates = experiment(folder, "candidates.shots.prompting.few_shot.shots=[2, 4]").candidates
    assert candidates["shots[shots=4]"].prompting == {"few_shot": {"select": "knn", "shots": 4}}


def test_two_grids_are_multiplied_out(folder):
    grid = "candidates.shots.prompting.few_shot={select: [fixed, knn], shots: [1, 2]}"
    names = list(experiment(folder, grid).candidates)[1:]
    assert names == [f"shots[select={s},shots={n}]" for s in ("fixed", "knn") for n in (1, 2)]


def test_a_grid_of_a_method_reads_its_numbers_as_written(folder):
    names = experiment(
        folder, "candidates.l={method: lora, params: {r: [8, 16], learning_rate: 1e-3}}"
    ).candidates
    assert {"l[r=8]", "l[r=16]"} <= names.keys()


def test_a_list_that_the_parameter_takes_is_no_grid(folder):
    one = experiment(folder, "candidates.l={method: lora, params: {target_modules: [q_proj, v_proj]}}")
    assert one.candidates["l"].params == {"target_modules": ["q_proj", "v_proj"]}


def test_a_list_of_lists_is_a_grid_where_the_parameter_takes_a_list(folder):
    grid = "candidates.l={method: lora, params: {target_modules: [[q_proj, v_proj], all-linear]}}"
    assert {"l[target_modules=q_proj+v_proj]", "l[target_modules=all-linear]"} <= experiment(
        folder, grid
    ).candidates.keys()


def test_a_candidate_may_take_the_weights_of_a_member_of_a_grid(folder):
    grid = "candidates.l={method: lora, params: {r: [8, 16]}}"
    hybrid = "candidates.hybrid={weights_of: 'l[r=8]'}"
    assert experiment(folder, grid, hybrid).candidates["hybrid"].weights_of == "l[r=8]"


def test_without_a_selection_every_candidate_is_selected(folder):
    assert read(folder).selected == ("prompt", "shots")


def test_the_selection_keeps_the_order_of_the_file_and_all_candidates(folder):
    loaded = read(folder, "candidates.third={}", candidates=["third,prompt"])
    assert loaded.selected == ("prompt", "third")
    assert list(loaded.experiment.candidates) == ["prompt", "shots", "third"]


def test_the_name_of_a_grid_selects_all_its_members(folder):
    grid = "candidates.shots.prompting.few_shot={select: [fixed, knn], shots: [1, 2]}"
    assert len(read(folder, grid, candidates=["shots"]).selected) == 4


def test_a_member_of_a_grid_is_selected_by_its_full_name(folder):
    grid = "candidates.shots.prompting.few_shot={select: [fixed, knn], shots: [1, 2]}"
    assert read(folder, grid, candidates=["shots[select=knn,shots=1],prompt"]).selected == (
        "prompt",
        "shots[select=knn,shots=1]",
    )


def test_a_file_with_a_byte_order_mark_is_read(folder):
    (folder / "harness.yaml").write_bytes(b"\xef\xbb\xbf" + EXPERIMENT.encode())
    assert experiment(folder).name == "tiny"


def test_an_anchor_is_followed(folder):
    text = EXPERIMENT + "  more:\n    prompting: &p {few_shot: {shots: 1}}\n  again: {prompting: *p}\n"
    candidates = experiment(folder, text=text).candidates
    assert candidates["more"] == candidates["again"]


def test_the_schema_takes_short_forms_and_knows_every_key():
    from harness.spec import Experiment

    schema = config.json_schema()
    assert schema["properties"].keys() == Experiment.model_fields.keys()
    assert {"type": "null"} in schema["properties"]["candidates"]["additionalProperties"]["anyOf"]
    assert json.loads(json.dumps(schema)) == schema
    steps = schema["$defs"]["RescuePolicy"]["properties"]["steps"]
    assert steps["default"] == schema["properties"]["rescue"]["default"]["steps"]
    assert sorted(steps["default"]) == steps["items"]["enum"]


def test_every_reference_of_the_schema_is_defined():
    text = json.dumps(config.json_schema())
    named = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert named <= config.json_schema()["$defs"].keys()


def test_reading_an_experiment_imports_no_torch(folder):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from harness import config\n"
        "config.load(Path(sys.argv[1]), ['candidates.l=lora', 'candidates.b=bag'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder / "harness.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_experiment_is_read_in_a_moment(folder):
    read(folder)
    start = time.process_time()
    read(folder)
    assert time.process_time() - start < 0.15


def test_the_suites_of_a_folder_are_read_by_file(folder):
    assert [suite.name for suite in config.read_suites(folder / "suites")] == ["other", "tiny"]


def test_without_a_folder_of_suites_the_shipped_ones_are_read(folder):
    assert "support" in [suite.name for suite in config.read_suites(folder / "nowhere")]


def test_a_broken_suite_of_a_folder_is_refused_at_its_line(folder):
    (folder / "suites" / "other.yaml").write_text("name: other\ntaks: []\n")
    with pytest.raises(UserError) as caught:
        config.read_suites(folder / "suites")
    assert {p.where for p in caught.value.problems} == {"other.yaml:1", "other.yaml:2"}


def test_all_problems_come_in_any_order_of_the_keys(folder):
    lines = ["name: tiny", "target: suites/tiny.yaml", "candidates: {a: {methd: base}}", "gat: {}"]
    for order in permutations(lines):
        with pytest.raises(UserError) as caught:
            read(folder, text="\n".join(order))
        assert {p.found for p in caught.value.problems} == {"unknown key 'methd'", "unknown key 'gat'"}
