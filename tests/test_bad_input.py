"""Whatever is written wrongly ends in one clear message: where, found, expected, next step."""

import pytest
from conftest import EXPERIMENT, OTHER, TARGET

from harness import config
from harness.errors import UserError


def problems(where, *overrides, text=EXPERIMENT, target=TARGET, other=OTHER, candidates=()):
    """Return what is refused, as (place, found, next step)."""
    (where / "harness.yaml").write_text(text)
    (where / "suites" / "tiny.yaml").write_text(target)
    (where / "suites" / "other.yaml").write_text(other)
    with pytest.raises(UserError) as caught:
        config.load(where / "harness.yaml", overrides, candidates)
    assert caught.value.exit_code == 2
    assert all(problem.found and problem.expected for problem in caught.value.problems)
    return [(p.where, p.found, p.next_step) for p in caught.value.problems]


def find_only_problem(where, *args, **kwargs):
    found = problems(where, *args, **kwargs)
    assert len(found) == 1, found
    return found[0]


def test_an_unknown_key_is_shown_with_its_line_and_the_nearest_key(folder):
    found = find_only_problem(folder, text=EXPERIMENT + "  x: {promting: zero_shot}\n")
    assert found == ("harness.yaml:9", "unknown key 'promting'", "did you mean 'prompting'?")


def test_an_unknown_key_of_a_suite_points_into_its_file(folder):
    found = find_only_problem(folder, target=TARGET + "    metric: [exact_match]\n")
    assert found == ("suites/tiny.yaml:5", "unknown key 'metric'", "did you mean 'metrics'?")


def test_an_unknown_key_beside_the_tasks_of_the_target_is_found(folder):
    assert find_only_problem(folder, target=TARGET + "rol: target\n")[:2] == (
        "suites/tiny.yaml:5",
        "unknown key 'rol'",
    )


def test_all_problems_of_all_files_come_at_once(folder):
    text = EXPERIMENT + "  x: {method: lorra}\n  y: {prompting: {few_shot: {shot: 2}}}\nseeds: 0\n"
    found = problems(folder, text=text, target=TARGET + "    limit: many\n", other=OTHER + "    chance: 2\n")
    assert {where for where, *_ in found} == {
        "harness.yaml:9",
        "harness.yaml:10",
        "harness.yaml:11",
        "suites/tiny.yaml:5",
        "suites/other.yaml:8",
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    ("line", "found", "next_step"),
    [
        ("seeds: 0", "seeds: 0", "write [0]"),
        ("seeds: [one]", "seeds[0]: 'one'", "write another value"),
        ("seeds: [-1]", "seeds[0]: -1", "write another value"),
        ("seeds: [4294967296]", "seeds[0]: 4294967296", "write another value"),
        ("gate: 3", "gate: 3", "write another value, or leave gate out"),
        ("gate: {macro: true}", "macro: true", "write another value, or leave macro out: it is 0.02 then"),
        ("gate: {macro: 2}", "macro: 2", "write another value, or leave macro out: it is 0.02 then"),
        ("precision: bf17", "precision: 'bf17'", "did you mean 'bf16'?"),
        ("base_model: 7", "base_model: 7", 'write "7" in quotes'),
        ("base_model: true", "base_model: true", "write it in quotes, as it stands there"),
        ("seeds: []", "seeds: []", "write another value, or leave seeds out"),
    ],
)
def test_a_value_of_the_wrong_type_is_shown_as_written(folder, line, found, next_step):
    assert find_only_problem(folder, text=EXPERIMENT + line + "\n") == ("harness.yaml:9", found, next_step)


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        ("{method: lora, replay: true}", "share: true"),
        ("{method: lora, regularize: {ewc: {strength: true}}}", "strength: true"),
        ("{method: lora, params: {r: true, use_dora: true}}", "r: true"),
        ("{method: lora, sweep: {learning_rate: [true, 1.0e-3]}}", "learning_rate: true"),
    ],
)
def test_true_is_no_number(folder, recipe, found):
    assert find_only_problem(folder, text=f"{EXPERIMENT}  x: {recipe}\n")[:2] == ("harness.yaml:9", found)


def test_a_missing_key_is_named_with_what_lacks_it(folder):
    where, found, _ = find_only_problem(folder, text=EXPERIMENT.replace("name: tiny\n", ""))
    assert (where, found) == ("harness.yaml:1", "no key 'name'")


@pytest.mark.parametrize(
    ("path", "found", "next_step"),
    [
        (
            "x.yml",
            "no file {folder}/x.yml",
            "write one: harness init DIR --data FILE; or name another with -c",
        ),
        ("harnes.yaml", "no file {folder}/harnes.yaml", "did you mean 'harness.yaml'?"),
        ("", "a folder", "-c {folder}/harness.yaml"),
    ],
)
def test_an_experiment_that_is_no_file_is_refused_with_what_would_be_one(folder, path, found, next_step):
    (folder / "harness.yaml").touch()
    with pytest.raises(UserError) as caught:
        config.load(folder / path)
    (problem,) = caught.value.problems
    assert (problem.found, problem.next_step) == (
        found.format(folder=folder),
        next_step.format(folder=folder),
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "an empty file"), ("- a\n", "a list"), ("words\n", "text"), ("7\n", "the value 7")],
)
def test_a_file_that_is_no_mapping_is_named_by_what_it_holds(folder, text, found):
    assert find_only_problem(folder, text=text)[:2] == ("harness.yaml:1", found)


def test_where_nothing_could_be_meant_no_empty_list_is_offered(folder):
    text = EXPERIMENT.partition("candidates:")[0] + "candidates: {x: {weights_of: lora}}\n"
    assert find_only_problem(folder, text=text) == (
        "harness.yaml:4",
        "unknown candidate 'lora'",
        "there is none yet",
    )


def test_a_name_with_a_space_is_refused(folder):
    assert find_only_problem(folder, "name=a b")[1] == "name: 'a b'"


@pytest.mark.parametrize(
    ("recipe", "found", "next_step"),
    [
        ("{method: lorra}", "unknown method 'lorra'", "did you mean 'lora'?"),
        ("{prompting: fewshot}", "unknown prompting 'fewshot'", "did you mean 'few_shot'?"),
        ("{method: lora, params: {lora_rank: 8}}", "unknown key 'lora_rank'", None),
        ("{method: lora, params: {r: 0}}", "r: 0", "write another value, or leave r out: it is 16 then"),
        (
            "{method: lora, params: {r: [8, big]}}",
            "r: 'big'",
            "write another value, or leave r out: it is 16 then",
        ),
        (
            "{method: lora, params: {r: []}}",
            "an empty grid for r",
            "write values between the brackets, or remove r",
        ),
        (
            "{prompting: {few_shot: {select: nearest}}}",
            "select: 'nearest'",
            "write another value, or leave select out: it is fixed then",
        ),
        ("{prompting: {zero_shot: {shots: 1}}}", "key 'shots'", "remove it"),
        ("{template: 'Answer:'}", "template 'Answer:'", "add {prompt}"),
        ("lorra", "unknown recipe 'lorra'", "did you mean 'lora'?"),
        (
            "{prompting: rag}",
            "rag without documents rows",
            "add documents: documents.jsonl, or leave rag out",
        ),
    ],
)
def test_a_recipe_that_cannot_be_made_is_refused_at_its_line(folder, recipe, found, next_step):
    where, what, then = find_only_problem(folder, text=EXPERIMENT + f"  x: {recipe}\n")
    assert (where, what) == ("harness.yaml:9", found)
    assert next_step is None or then == next_step


@pytest.mark.parametrize("recipe", ["{method: lora}", "{method: classifier}", "{prompting: few_shot}"])
def test_what_learns_from_training_rows_is_refused_without_them(folder, recipe):
    target = TARGET.replace("train: tiny/train.jsonl, ", "")
    found = find_only_problem(folder, text=EXPERIMENT.split("  shots")[0] + f"  x: {recipe}\n", target=target)
    assert found[0] == "harness.yaml:6"
    assert "without train rows" in found[1]


@pytest.mark.parametrize(
    ("recipe", "found", "next_step"),
    [
        ("{weights_of: x}", "x taking its own weights", "one of: prompt, shots"),
        ("{weights_of: promt}", "unknown candidate 'promt'", "did you mean 'prompt'?"),
        ("{weights_of: prompt, method: lora}", None, "leave out method, params, "),
    ],
)
def test_weights_come_from_another_known_candidate(folder, recipe, found, next_step):
    where, what, then = find_only_problem(folder, text=EXPERIMENT + f"  x: {recipe}\n")
    assert where == "harness.yaml:9"
    assert found in (None, what)
    assert then.startswith(next_step)


def test_weights_of_a_grid_name_the_members_to_choose_from(folder):
    found = find_only_problem(
        folder, "candidates.l={method: lora, params: {r: [8, 16]}}", "candidates.h={weights_of: l}"
    )
    assert found[2] == "one of: l[r=8], l[r=16]"


def test_weights_are_not_passed_on(folder):
    found = find_only_problem(folder, "candidates.a={weights_of: prompt}", "candidates.b={weights_of: a}")
    assert found[2] == "name the one a takes them of"


def test_a_candidate_whose_name_cannot_name_a_folder_is_refused(folder):
    assert find_only_problem(folder, text=EXPERIMENT + "  a/b: {}\n")[:2] == (
        "harness.yaml:9",
        "candidate 'a/b'",
    )


def test_an_unknown_metric_is_shown_at_its_line(folder):
    found = find_only_problem(
        folder, target=TARGET + "    metrics:\n      - exact_match\n      - exact_mach\n"
    )
    assert found == ("suites/tiny.yaml:7", "unknown metric 'exact_mach'", "did you mean 'exact_match'?")


def test_a_missing_data_file_is_shown_with_its_nearest_neighbour(folder):
    where, found, then = find_only_problem(
        folder, target=TARGET.replace("tiny/test.jsonl", "tiny/tests.jsonl")
    )
    assert where == "suites/tiny.yaml:4"
    assert found == f"no file {folder}/suites/tiny/tests.jsonl"
    assert then == "did you mean 'test.jsonl'?"


def test_a_missing_suite_is_the_only_thing_said_of_it(folder):
    where, found, then = find_only_problem(folder, "target=suites/tny.yaml")
    assert where == "override target=suites/tny.yaml"
    assert found == f"no file {folder}/suites/tny.yaml"
    assert then == "did you mean 'suites/tiny.yaml'?"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("tiny.yaml", "did you mean 'suites/tiny.yaml'?"),
        ("suite/other.yml", "did you mean 'suites/other.yaml'?"),
        ("suites/generl.yaml", "did you mean 'general'?"),
        ("suites/xyz.yaml", "create it, or correct the path"),
    ],
)
def test_a_suite_in_another_folder_or_one_that_ships_is_the_hint_of_a_missing_file(folder, written, hint):
    assert find_only_problem(folder, f"suites=[{written}]")[2] == hint


@pytest.mark.parametrize("written", ["candidates:", "candidates: []", "candidates: {}", ""])
def test_an_experiment_without_candidates_is_told_what_to_write(folder, written):
    text = EXPERIMENT.partition("candidates:")[0] + written + "\n"
    assert "such as `prompt: {prompting: zero_shot}`" in find_only_problem(folder, text=text)[2]


def test_an_unknown_suite_is_shown_with_the_nearest_name(folder):
    found = find_only_problem(folder, "suites=[generl]")
    assert found[1:] == ("unknown suite 'generl'", "did you mean 'general'?")


def test_a_file_in_a_folder_that_is_not_there_names_the_folder(folder):
    assert find_only_problem(folder, "target=nowhere/tiny.yaml")[1] == f"no folder {folder}/nowhere"


def test_a_missing_experiment_is_refused_with_the_file_that_is_there(folder):
    with pytest.raises(UserError) as caught:
        config.load(folder / "harnes.yaml")
    assert caught.value.problems[0].next_step == "did you mean 'harness.yaml'?"


def test_a_target_of_two_tasks_is_refused(folder):
    found = find_only_problem(folder, target=OTHER.replace("capability", "target"))
    assert found[:2] == ("suites/tiny.yaml:3", "2 tasks")


def test_a_task_without_test_rows_is_refused(folder):
    target = TARGET.replace(", test: tiny/test.jsonl", "")
    assert find_only_problem(folder, target=target)[:2] == (
        "suites/tiny.yaml:4",
        "task tiny without test rows",
    )


def test_shots_without_rows_to_take_them_from_are_refused(folder):
    assert find_only_problem(folder, other=OTHER + "    num_fewshot: 2\n")[0] == "suites/other.yaml:8"


def test_two_tasks_of_one_name_are_refused_with_both_places(folder):
    found = find_only_problem(folder, other=OTHER.replace("capitals", "tiny"))
    assert found == ("suites/other.yaml:6", "a second task 'tiny'", "the first is at suites/tiny.yaml:3")


def test_a_suite_without_a_role_is_refused_where_it_is_not_the_target(folder):
    found = find_only_problem(folder, other=OTHER.replace("role: capability\n", ""))
    assert found[1] == "suite 'other' with the role target"


def test_a_shipped_recipe_that_does_not_fit_is_shown_where_its_name_is_written(folder):
    target = TARGET.replace("train: tiny/train.jsonl, ", "")
    text = EXPERIMENT.partition("  shots:")[0] + "  tuned: lora\n"
    assert find_only_problem(folder, text=text, target=target)[:2] == (
        "harness.yaml:6",
        "lora without train rows",
    )


def test_a_recipe_of_ones_own_is_wrong_at_its_line_and_misnamed_where_it_is_used(folder):
    (folder / "baselines").mkdir(exist_ok=True)
    (folder / "baselines" / "own.yaml").write_text("method: base\npromting: zero_shot\n")
    found = problems(folder, text=EXPERIMENT + '  "x y": own\n')
    assert sorted(problem[:2] for problem in found) == [
        ("baselines/own.yaml:2", "unknown key 'promting'"),
        ("harness.yaml:9", "candidate 'x y'"),
    ]


def test_a_night_watches_candidates_alone(folder):
    found = find_only_problem(folder, text=EXPERIMENT + "nightly:\n  candidates: [prompt, shot]\n")
    assert found == ("harness.yaml:10", "unknown candidate 'shot'", "did you mean 'shots'?")


def test_a_critical_name_has_to_be_a_task_or_a_suite(folder):
    found = find_only_problem(folder, text=EXPERIMENT + "gate:\n  critical: [othr]\n")
    assert found == ("harness.yaml:10", "unknown task or suite 'othr'", "did you mean 'other'?")


@pytest.mark.parametrize("name", ["other", "sums"])
def test_a_critical_name_may_be_a_task_or_a_suite(folder, name):
    loaded = config.load(folder / "harness.yaml", [f"gate.critical=[{name}]"])
    assert loaded.experiment.gate.critical == (name,)


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (
            "a: [1, 2",
            "harness.yaml:1",
            "expected ',' or ']', but got '<stream end>', while parsing a flow sequence",
        ),
        ("name: a\nname: b", "harness.yaml:2", 'duplicate key "name"'),
        ("name: a\n\tb: c", "harness.yaml:2", None),
        ("", "harness.yaml:1", "an empty file"),
        ("- a\n- b", "harness.yaml:1", "a list"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused_at_its_line(folder, text, where, found):
    place, what, _ = find_only_problem(folder, text=text)
    assert place == where
    assert found in (None, what)


def test_a_broken_suite_is_refused_beside_the_other_problems(folder):
    found = problems(folder, text=EXPERIMENT + "gat: {}\n", other="name: [")
    assert {where for where, *_ in found} == {"harness.yaml:9", "suites/other.yaml:1"}


def test_text_that_is_not_utf8_is_shown_with_its_byte(folder):
    (folder / "harness.yaml").write_bytes(b"name: tiny\n# caf\xe9\n")
    with pytest.raises(UserError) as caught:
        config.load(folder / "harness.yaml")
    problem = caught.value.problems[0]
    assert problem.where == "harness.yaml:2"
    assert problem.found == "byte 0xe9 at offset 16, which is not UTF-8"


@pytest.mark.parametrize(
    ("override", "found", "next_step"),
    [
        ("seeds", "'seeds'", "such as candidates.lora.params.r=8"),
        ("gate.macro=[", "no YAML: '['", "quote the value"),
        ("gat.macro=0.1", "unknown key 'gat'", "did you mean 'gate'?"),
        ("gate.macr=0.1", "unknown key 'macr'", "did you mean 'macro'?"),
        ("name.first=x", "name: 'tiny', which has no keys", "set it as a whole"),
        ("suites.othr.role=safety", "no entry 'othr'", "did you mean 'other'?"),
        ("candidates.shot.answer=rank", "unknown candidate 'shot'", "did you mean 'shots'?"),
        ("target.limit=none", "limit: 'none'", "write another value, or leave limit out"),
    ],
)
def test_an_override_that_does_not_fit_is_shown_as_written(folder, override, found, next_step):
    assert find_only_problem(folder, override) == (f"override {override}", found, next_step)


@pytest.mark.parametrize("asked", ["", " ", ","])
def test_a_selection_without_a_name_is_not_a_selection_of_all(folder, asked):
    assert find_only_problem(folder, candidates=[asked]) == (
        "candidates",
        "an empty name",
        "one of: prompt, shots",
    )


def test_a_selection_of_an_unknown_candidate_is_refused(folder):
    found = find_only_problem(folder, candidates=["prompt", "shot"])
    assert found == ("candidates", "unknown candidate 'shot'", "did you mean 'shots'?")
