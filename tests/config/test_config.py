"""harness.yaml becomes an experiment: references, overrides, grids, selection, one error for all problems."""

import json
import re
from pathlib import Path

import pytest
from conftest import EXPERIMENT, OTHER, TARGET, refused

from harness import config, plugins

ROOT = Path(__file__).parents[2]

DOCUMENTS = "target.data.documents=suites/tiny/documents.jsonl"
SHOT = "candidates.x.prompting.few_shot.shots=1"
RAG = "candidates.x={prompting: {rag: {retriever: dense, model: weights}}}"
ALL = "target={name: t, data: {all: suites/tiny/train.jsonl}}"

SHOTS = "candidates.shots.prompting.few_shot"
GRID = f"{SHOTS}={{select: [fixed, knn], shots: [1, 2]}}"
MEMBERS = [f"shots[select={s},shots={n}]" for s in ("fixed", "knn") for n in (1, 2)]
LORA = "candidates.l={{method: lora, params: {{{}}}}}"
RANKS = LORA.format("r: [8, 16], learning_rate: 1e-3")

OVERRIDES = ["target.limit=4", "target=suites/tiny.yaml", "gate.macro=0.03", "gate={each: 0.06}", "seeds=[3]"]
OVERRIDES += [f"{SHOTS}.shots=[1, 3]", "candidates.rag=few-shot"]


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
        (["target=suites/support.yaml"], lambda e: e.target.name, "support"),  # a shipped suite
        (["suites=[general]"], lambda e: e.suites[0].name, "general"),
        (["suites=[mine]"], lambda e: e.suites[0].name, "other"),  # a user's suite, by name
        (["target.data.test=hub:own/name"], lambda e: e.target.data.test, "hub:own/name"),
        (["base_model=owner/name"], lambda e: e.base_model, "owner/name"),
        # The user's recipe comes first.
        (["candidates.x=rag"], lambda e: e.candidates["x"].prompting["few_shot"]["shots"], 7),
        (["candidates.x="], lambda e: e.candidates["x"].prompting, {"zero_shot": {}}),
        (["gate={macro: 1e-2}"], lambda e: e.gate.macro, 0.01),
        (["gate.target.min=0.7"], lambda e: e.gate.target.min, 0.7),  # creates the parent mapping
        (["gate.critical=[sums]"], lambda e: e.gate.critical, ("sums",)),  # a task
        (["seeds=[1]", "seeds=[2]"], lambda e: e.seeds, (2,)),
        (["suites.other.tasks.capitals.margin=0.1"], lambda e: e.suites[0].tasks[1].margin, 0.1),
        (["suites.0.tasks.0.limit=3"], lambda e: e.suites[0].tasks[0].limit, 3),
        (["candidates.x=rag", SHOT], lambda e: e.candidates["x"].prompting["few_shot"]["shots"], 1),
        (["candidates.x={prompting: few_shot}", SHOT], lambda e: e.candidates["x"].prompting["few_shot"], {"shots": 1}),
        ([GRID], lambda e: e.candidates[MEMBERS[3]].prompting, {"few_shot": {"select": "knn", "shots": 2}}),
        ([LORA.format("target_modules: [q, v]")], lambda e: e.candidates["l"].params["target_modules"], ["q", "v"]),
        ([RANKS, "candidates.h={weights_of: 'l[r=8]'}"], lambda e: e.candidates["h"].weights_of, "l[r=8]"),
    ],
)  # fmt: skip
def test_a_setting_is_read_as_written(folder, overrides, value_of, value):
    (folder / "baselines").mkdir()
    (folder / "baselines" / "rag.yaml").write_text("prompting: {few_shot: {shots: 7}}\n")
    (folder / "suites" / "mine.yaml").write_text((folder / "suites" / "other.yaml").read_text())
    (folder / "a.jsonl").write_text("{}\n")
    assert value_of(experiment(folder, *overrides)) == value


@pytest.mark.parametrize(
    ("overrides", "value_of", "file"),
    [
        ((), lambda e: e.target.data.test, "suites/tiny/test.jsonl"),  # relative to the suite's folder
        ([DOCUMENTS], lambda e: e.target.data.documents, "suites/tiny/documents.jsonl"),
        ([DOCUMENTS, RAG], lambda e: e.candidates["x"].prompting["rag"]["model"], "weights"),
        ([ALL, "candidates.x=bag"], lambda e: e.target.data.source("test"), "suites/tiny/train.jsonl"),
    ],
)
def test_a_local_path_becomes_absolute(folder, overrides, value_of, file):
    (folder / "weights").mkdir()
    assert value_of(experiment(folder, *overrides)) == str(folder / file)


def test_every_shipped_recipe_loads_by_its_short_name(folder):
    names = [file.stem for file in (ROOT / "baselines").glob("*.yaml")]
    recipes = [f"candidates.{name}={name}" for name in names]
    pairs = "target.data.pairs=suites/tiny/pairs.jsonl"
    candidates = experiment(folder, DOCUMENTS, pairs, *recipes).candidates
    trained = {name for name in plugins.names("methods") if plugins.method(name).trains}
    assert trained <= {candidates[name].method for name in names}  # each method that trains has a recipe


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (f"{SHOTS}.shots=[2, 4]", ["shots[shots=2]", "shots[shots=4]"]),
        (GRID, MEMBERS),
        (RANKS, ["shots", "l[r=8]", "l[r=16]"]),
        (LORA.format("target_modules: [[q, v], all-linear]"), ["shots", "l[target_modules=q+v]", "l[target_modules=all-linear]"]),
    ],
)  # fmt: skip
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


def test_a_file_with_a_byte_order_mark_is_read_and_an_anchor_followed(folder):
    (folder / "harness.yaml").write_bytes(b"\xef\xbb\xbf" + EXPERIMENT.encode())
    assert experiment(folder).name == "tiny"
    text = EXPERIMENT + "  more:\n    prompting: &p {few_shot: {shots: 1}}\n  again: {prompting: *p}\n"
    candidates = experiment(folder, text=text).candidates
    assert candidates["more"] == candidates["again"]


def test_the_schema_takes_short_forms_knows_every_key_and_defines_every_reference():
    from harness.spec import Experiment

    schema = config.json_schema()
    assert schema["properties"].keys() == Experiment.model_fields.keys()
    assert {"type": "null"} in schema["properties"]["candidates"]["additionalProperties"]["anyOf"]
    assert json.loads(json.dumps(schema)) == schema
    steps = schema["$defs"]["RescuePolicy"]["properties"]["steps"]
    assert steps["default"] == schema["properties"]["rescue"]["default"]["steps"]
    assert sorted(steps["default"]) == steps["items"]["enum"]
    text = json.dumps(config.json_schema())
    used_names = {rest.split('"')[0] for rest in text.split("#/$defs/")[1:]}
    assert used_names <= config.json_schema()["$defs"].keys()


def problems(where, *overrides, text=EXPERIMENT, target=TARGET, other=OTHER, candidates=()):
    """Return the problems as tuples (where, found, next step)."""
    (where / "harness.yaml").write_text(text)
    (where / "suites" / "tiny.yaml").write_text(target)
    (where / "suites" / "other.yaml").write_text(other)
    error = refused(config.load, where / "harness.yaml", overrides, candidates)
    assert error.exit_code == 2
    assert all(problem.found and problem.expected for problem in error.problems)
    return [(p.where, p.found, p.next_step) for p in error.problems]


def find_only_problem(where, *args, **kwargs):
    found_problems = problems(where, *args, **kwargs)
    assert len(found_problems) == 1, found_problems
    return found_problems[0]


def read_cases():
    """Yield each line of the table: the file, the text added, and the expected (where, found, next step)."""
    for line in Path(__file__).parents[1].joinpath("refused_settings.txt").read_text("utf-8").splitlines():
        if line.startswith("## "):
            file = line.removeprefix("## ")
        elif " =>" in line:
            added, *expected = (cell.replace("\\n", "\n") for cell in re.split(r" => ?", line))
            yield pytest.param(file, added, [*expected, "", ""][:3], id=f"{file}: {line}")


@pytest.mark.parametrize(("file", "added", "said"), list(read_cases()))
def test_what_cannot_be_meant_is_refused_at_its_line(folder, file, added, said):
    texts = {"harness.yaml": EXPERIMENT, "suites/tiny.yaml": TARGET}
    name = "harness.yaml" if file == "candidates" else file
    texts[name] = f"{texts.get(name, '')}{'  ' * (file == 'candidates')}{added}\n"
    overrides = [added] if file == "override" else []
    written = {"text": texts["harness.yaml"], "target": texts["suites/tiny.yaml"]}
    where, found, next_step = find_only_problem(folder, *overrides, **written)
    assert where == (f"override {added}" if overrides else f"{name}:{said[0]}")
    assert said[1] in ("", found.replace(str(folder), "{}"))
    assert said[2] in ("", next_step)


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        (EXPERIMENT.replace("name: tiny\n", ""), 1, "no key 'name'"),
        (EXPERIMENT.partition("  prompt:")[0] + "  x: {weights_of: lora}", 5, "unknown candidate 'lora'"),
        ("a: [1, 2", 1, "expected ',' or ']', but got '<stream end>', while parsing a flow sequence"),
        ("name: a\nname: b", 2, 'duplicate key "name"'),
        ("name: a\n\tb: c", 2, None),
        ("", 1, "an empty file"),
        ("- a\n- b", 1, "a list"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused_at_its_line(folder, text, line, found):
    where, shown_found, next_step = find_only_problem(folder, text=text)
    assert where == f"harness.yaml:{line}"
    assert found in (None, shown_found)
    assert not next_step.endswith(": ")  # no empty list is offered


@pytest.mark.parametrize("recipe", ["{method: lora}", "{prompting: few_shot}"])
def test_what_learns_from_training_rows_is_refused_without_them(folder, recipe):
    target = TARGET.replace("train: tiny/train.jsonl, ", "")
    issue = find_only_problem(folder, text=EXPERIMENT.split("  shots")[0] + f"  x: {recipe}\n", target=target)
    assert issue[0] == "harness.yaml:6"
    assert "without train rows" in issue[1]


@pytest.mark.parametrize(
    ("target", "line", "found", "next_step"),
    [
        (TARGET.replace("y/test", "y/tests"), 4, "no file {}/suites/tiny/tests.jsonl", "did you mean 'test.jsonl'?"),
        (OTHER.replace("capability", "target"), 3, "2 tasks", None),
        (TARGET.replace(", test: tiny/test.jsonl", ""), 4, "task tiny without test rows", None),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_tested_is_refused_at_its_line(folder, target, line, found, next_step):
    where, shown_found, shown_step = find_only_problem(folder, target=target)
    assert (where, shown_found) == (f"suites/tiny.yaml:{line}", found.format(folder))
    assert next_step in (None, shown_step)


@pytest.mark.parametrize("written", ["candidates:", ""])
def test_an_experiment_without_candidates_is_told_what_to_write(folder, written):
    text = EXPERIMENT.partition("candidates:")[0] + written + "\n"
    assert "such as `prompt: {prompting: zero_shot}`" in find_only_problem(folder, text=text)[2]


@pytest.mark.parametrize(
    ("other", "where", "found", "next_step"),
    [
        (OTHER + "    num_fewshot: 2\n", "suites/other.yaml:8", None, None),
        (OTHER.replace("capitals", "tiny"), "suites/other.yaml:6", "a second task 'tiny'", "the first is at suites/tiny.yaml:3"),
        (OTHER.replace("role: capability\n", ""), None, "suite 'other' with the role target", None),
    ],
)  # fmt: skip
def test_a_suite_that_does_not_fit_beside_the_target_is_refused(folder, other, where, found, next_step):
    pairs = zip((where, found, next_step), find_only_problem(folder, other=other), strict=True)
    assert all(expected in (None, actual) for expected, actual in pairs)


def test_a_broken_suite_a_recipe_of_ones_own_and_text_that_is_not_utf8_are_refused_at_their_line(folder):
    listed = problems(folder, text=EXPERIMENT + "gat: {}\n", other="name: [")
    assert {where for where, *_ in listed} == {"harness.yaml:9", "suites/other.yaml:1"}

    (folder / "baselines").mkdir(exist_ok=True)
    (folder / "baselines" / "own.yaml").write_text("method: base\npromting: zero_shot\n")
    listed = problems(folder, text=EXPERIMENT + '  "x y": own\n')
    expected = [("baselines/own.yaml:2", "unknown key 'promting'"), ("harness.yaml:9", "candidate 'x y'")]
    assert sorted(problem[:2] for problem in listed) == expected

    (folder / "harness.yaml").write_bytes(b"name: tiny\n# caf\xe9\n")
    problem = refused(config.load, folder / "harness.yaml").problems[0]
    assert problem.where == "harness.yaml:2"
    assert problem.found == "byte 0xe9 at offset 16, which is not UTF-8"


@pytest.mark.parametrize(
    ("asked", "found", "next_step"),
    [
        *(([name], "an empty name", "one of: prompt, shots") for name in ("", ",")),
        (["prompt", "shot"], "unknown candidate 'shot'", "did you mean 'shots'?"),
    ],
)
def test_a_selection_names_known_candidates(folder, asked, found, next_step):
    assert find_only_problem(folder, candidates=asked) == ("candidates", found, next_step)
