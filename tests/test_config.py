"""harness.yaml becomes an experiment: references, overrides, grids, selection."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import EXPERIMENT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import config

ROOT = Path(__file__).parents[1]


DOCUMENTS = "target.data.documents=suites/tiny/documents.jsonl"
SHOT = "candidates.x.prompting.few_shot.shots=1"
RAG = "candidates.x={prompting: {rag: {retriever: dense, model: weights}}}"
ALL = "target={name: t, data: {all: suites/tiny/train.jsonl}}"


SHOTS = "candidates.shots.prompting.few_shot"
GRID = f"{SHOTS}={{select: [fixed, knn], shots: [1, 2]}}"
MEMBERS = [f"shots[select={s},shots={n}]" for s in ("fixed", "knn") for n in (1, 2)]
LORA = "candidates.l={{method: lora, params: {{{}}}}}"
RANKS = LORA.format("r: [8, 16], learning_rate: 1e-3")


def read(folder, *overrides, candidates=(), text=None):
    if text is not None:
        (folder / "harness.yaml").write_text(text)
    return config.load(folder / "harness.yaml", overrides, candidates)


def experiment(folder, *overrides, **kwargs):
    return read(folder, *overrides, **kwargs).experiment


@pytest.mark.parametrize(
    ("overrides", "value_of", "value"),
    [
        ((), lambda e: e.target.name, "tiny"),
        (["target={name: own, data: {train: a.jsonl, test: a.jsonl}}"], lambda e: e.target.name, "own"),
        (["target=suites/support.yaml"], lambda e: e.target.name, "support"),  # it ships
        (["suites=[general]"], lambda e: e.suites[0].name, "general"),
        (["suites=[safety]"], lambda e: e.suites[0].name, "safety"),
        (["suites=[mine]"], lambda e: e.suites[0].name, "other"),  # one's own by its bare name
        (["target.data.test=hub:own/name"], lambda e: e.target.data.test, "hub:own/name"),
        (["base_model=owner/name"], lambda e: e.base_model, "owner/name"),
        (
            ["candidates.x=rag"],
            lambda e: e.candidates["x"].prompting["few_shot"]["shots"],
            7,
        ),  # one's own first
        (["candidates.x="], lambda e: e.candidates["x"].prompting, {"zero_shot": {}}),
        (["candidates.x="], lambda e: e.candidates["x"].method, "base"),
        (["gate={macro: 1e-2}"], lambda e: e.gate.macro, 0.01),
        (["gate.target.min=0.7"], lambda e: e.gate.target.min, 0.7),  # the mapping on its way is made
        (["seeds=[1]", "seeds=[2]"], lambda e: e.seeds, (2,)),
        (["target.limit=5"], lambda e: e.target.limit, 5),
        (["suites.other.tasks.capitals.margin=0.1"], lambda e: e.suites[0].tasks[1].margin, 0.1),
        (["suites.0.tasks.0.limit=3"], lambda e: e.suites[0].tasks[0].limit, 3),
        (["candidates.x=rag", SHOT], lambda e: e.candidates["x"].prompting["few_shot"]["shots"], 1),
        (
            ["candidates.x={prompting: few_shot}", SHOT],
            lambda e: e.candidates["x"].prompting,
            {"few_shot": {"shots": 1}},
        ),
        ([GRID], lambda e: e.candidates[MEMBERS[3]].prompting, {"few_shot": {"select": "knn", "shots": 2}}),
        (
            [LORA.format("target_modules: [q, v]")],
            lambda e: e.candidates["l"].params,
            {"target_modules": ["q", "v"]},
        ),
        ([RANKS, "candidates.h={weights_of: 'l[r=8]'}"], lambda e: e.candidates["h"].weights_of, "l[r=8]"),
    ],
)
def test_a_setting_is_read_as_written(folder, overrides, value_of, value):
    (folder / "baselines").mkdir()
    (folder / "baselines" / "rag.yaml").write_text("prompting: {few_shot: {shots: 7}}\n")
    (folder / "suites" / "mine.yaml").write_text((folder / "suites" / "other.yaml").read_text())
    (folder / "a.jsonl").write_text("{}\n")
    assert value_of(experiment(folder, *overrides)) == value


@pytest.mark.parametrize(
    ("overrides", "value_of", "file"),
    [
        ((), lambda e: e.target.data.test, "suites/tiny/test.jsonl"),  # against the folder of the suite
        ([DOCUMENTS], lambda e: e.target.data.documents, "suites/tiny/documents.jsonl"),
        (["base_model=./weights"], lambda e: e.base_model, "weights"),
        ([DOCUMENTS, RAG], lambda e: e.candidates["x"].prompting["rag"]["model"], "weights"),
        ([ALL, "candidates.x=bag"], lambda e: e.target.data.source("test"), "suites/tiny/train.jsonl"),
    ],
)
def test_a_local_path_becomes_absolute(folder, overrides, value_of, file):
    (folder / "weights").mkdir()
    assert value_of(experiment(folder, *overrides)) == str(folder / file)


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "baselines").glob("*.yaml")))
def test_every_shipped_recipe_loads_by_its_short_name(folder, name):
    pairs = "target.data.pairs=suites/tiny/pairs.jsonl"
    assert name in experiment(folder, DOCUMENTS, pairs, f"candidates.{name}={name}").candidates


@pytest.mark.e2e
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


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (f"{SHOTS}.shots=[2, 4]", ["shots[shots=2]", "shots[shots=4]"]),
        (GRID, MEMBERS),
        (RANKS, ["shots", "l[r=8]", "l[r=16]"]),
        (
            LORA.format("target_modules: [[q, v], all-linear]"),
            ["shots", "l[target_modules=q+v]", "l[target_modules=all-linear]"],
        ),
    ],
)
def test_a_list_where_one_value_belongs_gives_a_candidate_for_each(folder, grid, names):
    assert list(experiment(folder, grid).candidates) == ["prompt", *names]


@pytest.mark.parametrize(
    ("asked", "selected"),
    [
        ([], ["prompt", *MEMBERS, "third"]),
        (["third,prompt"], ["prompt", "third"]),
        (["shots"], MEMBERS),
        ([f"{MEMBERS[2]},prompt"], ["prompt", MEMBERS[2]]),
    ],
)
def test_a_selection_names_candidates_and_whole_grids_and_drops_none(folder, asked, selected):
    loaded = read(folder, GRID, "candidates.third={}", candidates=asked)
    assert list(loaded.selected) == selected
    assert list(loaded.experiment.candidates) == ["prompt", *MEMBERS, "third"]


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


@pytest.mark.e2e
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
