"""Problems of rows at once: whatever is wrong with a file is said in one round, each by its line."""

from pathlib import Path

import pytest
from checked_rows import write

from harness import config
from harness.config.rubrics import read_rubric
from harness.data import load_task
from harness.data.training_rows import load_training_rows
from harness.errors import UserError
from harness.spec import Task

LABELS = ("refund", "card")
TEST = [{"prompt": f"t{i} v{i * 3}", "reference": LABELS[i % 2]} for i in range(6)]
GOOD = [{"prompt": f"q{i} w{i * 7}", "reference": LABELS[i % 2]} for i in range(20)]
FAULTY = [
    *GOOD,
    {"prompt": "a b c", "reference": "refnd"},
    {"prompt": "", "reference": "card"},
    {"prompt": "x y", "reference": ""},
    TEST[3],
]
LINES = {
    21: "reference 'refnd'",
    22: "an empty prompt",
    23: "an empty reference",
    24: "'t3 v9', the question of",
}


def problems(read):
    with pytest.raises(UserError) as error:
        read()
    return error.value.problems


def map_by_line(found):
    return {int(p.where.rpartition(":")[2]): p.found for p in found}


def assert_all_lines(found):
    said = map_by_line(found)
    assert said.keys() == LINES.keys()
    assert all(said[line].startswith(begins) for line, begins in LINES.items())


def task(tmp_path, train):
    data = {"train": write(tmp_path / "a.jsonl", train), "test": write(tmp_path / "b.jsonl", TEST)}
    return Task(name="rows", data=data, labels=LABELS)


def test_unknown_labels_empty_cells_and_leaks_come_in_one_round(tmp_path):
    assert_all_lines(problems(lambda: load_task(task(tmp_path, FAULTY), 0)))


def test_so_do_those_of_a_candidates_own_rows(tmp_path):
    asked = task(tmp_path, GOOD)
    own = write(tmp_path / "own.jsonl", FAULTY)
    items = load_task(asked, 0)
    assert_all_lines(problems(lambda: load_training_rows(asked, items, [own], None, 0)))


def test_rows_that_cannot_be_read_are_not_said_to_be_evaluated(tmp_path):
    asked = task(tmp_path, GOOD)
    own = write(tmp_path / "own.jsonl", [{"chosen": "a", "rejected": "b"}] * 3)
    items = load_task(asked, 0)
    found = problems(lambda: load_training_rows(asked, items, [own], None, 0))
    assert [int(p.where.rpartition(":")[2]) for p in found] == [1, 2, 3]


def test_many_rows_of_one_fault_hide_no_other_fault(tmp_path):
    empty = [{"prompt": "", "reference": "card"}] * 30
    found = problems(lambda: load_task(task(tmp_path, [*FAULTY, *empty]), 0))
    assert {21, 24} <= {int(p.where.rpartition(":")[2]) for p in found if ":" in p.where}
    assert any(p.found.startswith("32 rows that cannot be used; the first 10") for p in found)


def test_rows_made_from_test_items_alone_are_refused_by_what_they_are(tmp_path):
    asked = task(tmp_path, GOOD)
    made = [
        {"prompt": f"in other words {i}", "reference": "card", "augmented_from": TEST[i]["prompt"]}
        for i in range(3)
    ]
    own = write(tmp_path / "own.jsonl", made)
    (said,) = problems(lambda: load_training_rows(asked, load_task(asked, 0), [own], None, 0))
    assert said.where == f"{own}:1"
    assert said.found == "only rows made from rows that are evaluated (this is the first of 3)"


def test_training_rows_in_folds_need_no_test_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    file = tmp_path / "harness.yaml"
    file.write_text(
        "name: x\ntarget:\n  name: x\n  data: {train: rows.jsonl, folds: 5}\ncandidates:\n  prompt: prompt\n"
    )
    assert config.load(file).experiment.target.data.folds == 5


def test_a_key_that_may_be_a_misspelt_one_is_not_missed_besides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("harness.yaml").write_text("target:\n  name: x\n  data:\n    al: a.jsonl\n    folds: 5\n")
    said = [p.found for p in problems(lambda: config.load(Path("harness.yaml")))]
    assert not [found for found in said if "no rows to deal" in found]


@pytest.mark.parametrize(
    ("data", "recipe", "found"),
    [
        (
            "{documents: rows.jsonl, test: rows.jsonl, folds: 5}",
            "prompt",
            ["folds: 5, and a test file", "folds: 5, and no rows to deal"],
        ),
        (
            "{all: rows.jsonl}",
            "{method: lora, mix: {files: {rows.jsonl: 0.5}, temperature: 2, replacement: true}}",
            [
                "a mixture needs two files or more",
                "replacement without rows",
                "shares of files and a temperature",
                "shares that add up to 0.5",
            ],
        ),
        (
            "{all: rows.jsonl}",
            "{decoding: {samples: 3, top_p: 0.5, choose: best}}",
            ["3 samples at temperature 0", "choose: best and by", "top_p at temperature 0"],
        ),
        (
            "{all: rows.jsonl}",
            "{method: lora, train: rows.jsonl, mix: {rows.jsonl: 0.5, b.jsonl: 0.5}, subject_to: {forgetting: 0}}",
            ["subject_to bounds", "train and mix both"],
        ),
    ],
)
def test_all_that_the_keys_of_one_mapping_disagree_on_is_said_at_once(tmp_path, data, recipe, found):
    for name in ("rows.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}\n")
    file = tmp_path / "harness.yaml"
    file.write_text(f"name: x\ntarget:\n  name: x\n  data: {data}\ncandidates:\n  lora: {recipe}\n")
    said = problems(lambda: config.load(file))
    texts = sorted(p.found for p in said)
    assert len(texts) == len(found), texts
    assert all(text.startswith(begins) for text, begins in zip(texts, found, strict=True)), texts
    assert {p.expected for p in said} == {"keys that agree with each other"}


def test_all_that_a_rubric_disagrees_on_is_said_at_once(tmp_path):
    file = tmp_path / "rubric.yaml"
    file.write_text("criteria: Is it right?\npanel: [smollm2-135m]\nmax_cost: 1\n")
    texts = sorted(p.found for p in problems(lambda: read_rubric(file)))
    assert [text.partition(" ")[0] for text in texts] == ["a", "max_cost"]
