"""Rubrics: problems with file and line, texts kept between their marks, and grades that survive a kill."""

import re
from pathlib import Path

import pytest
from test_readme import example_file, reference

from harness import config, store
from harness.config.rubrics import GradedExample, Rubric, Scale, read_rubric
from harness.errors import UserError
from harness.evaluation.judges import answer_key, grade_value, judge_messages, orders, read_grade
from harness.records import Example, Grade
from harness.store import Store

GOOD = "criteria: It helps.\njudge: {base_url: http://localhost:1/v1, model: big}\n"


def problems(tmp_path, text):
    path = tmp_path / "helpful.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_rubric(path)
    return [str(problem) for problem in refused.value.problems]


def example(question="Where is it?", *references):
    return Example("1", ({"role": "user", "content": question},), references)


# The file


def test_a_rubric_has_its_defaults_and_all_that_is_wrong_with_one_is_said_at_once(tmp_path):
    (tmp_path / "helpful.yaml").write_text(GOOD)
    rubric = read_rubric(tmp_path / "helpful.yaml")
    assert rubric.grades == ("1", "2", "3", "4", "5")
    assert [rubric.value(grade) for grade in rubric.grades] == [0, 0.25, 0.5, 0.75, 1]
    assert not rubric.reference

    (problem,) = problems(tmp_path, "criteria: x\njudge: some-model\nscale: {min: 5, max: 1}\n")
    assert problem.startswith("helpful.yaml:3: found a scale from 5 to 1;")
    text = "criteria: ''\nscale: {min: 5, max: 1}\njudge: {base_url: nowhere}\nkind: x\n"
    assert {re.match(r"helpful.yaml:(\d)", p)[1] for p in problems(tmp_path, text)} == {"1", "2", "3", "4"}


LINES = Path(__file__).parents[1].joinpath("refused_rubrics.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize(("text", "said"), [line.split(" => ") for line in LINES if " => " in line])
def test_what_is_wrong_with_a_rubric_is_said_with_its_line(tmp_path, text, said):
    listed = "\n".join(problems(tmp_path, text.replace("GOOD ", GOOD).replace("\\n", "\n")))
    assert [phrase for phrase in said.split(" ‥ ") if phrase not in listed] == [], listed


def test_one_judge_twice_in_a_panel_is_refused(tmp_path):
    judges = (f"  - {{base_url: http://h/v1, model: m, timeout: {seconds}}}\n" for seconds in (5, 9))
    (problem,) = problems(tmp_path, f"criteria: x\npanel:\n{''.join(judges)}")
    assert problem.startswith("helpful.yaml:4: found judge 2 of the panel, which is judge 1 again")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("metrics: [judge:./none.yaml]", "found no file"),
        ("metrics: [judge:./helpful.yaml], kind: choice", "on a task of kind choice"),
        ("metrics: [judge:./helpful.yaml, judge:./below/helpful.yaml]", "judge:helpful twice"),
        ("metrics: [judge:./broken.yaml]", "suites/broken.yaml:2: found unknown key 'judges'"),
    ],
)
def test_a_judged_metric_of_a_task_is_checked_with_the_experiment(folder, task, said):
    suites = folder / "suites"
    (suites / "below").mkdir()
    for name in ("helpful.yaml", "below/helpful.yaml"):
        (suites / name).write_text(GOOD)
    (suites / "broken.yaml").write_text("criteria: x\njudges: y\n")
    text = f"name: tiny\ntasks:\n  - {{name: tiny, data: {{train: tiny/train.jsonl, test: tiny/test.jsonl}}, {task}}}\n"
    (suites / "tiny.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        config.load(folder / "harness.yaml")
    assert said in str(refused.value)


def test_the_example_of_a_rubric_in_the_docs_loads_and_every_key_stands_there(tmp_path):
    (tmp_path / "desk").mkdir()
    for name in ("harness.yaml", "helpful.yaml"):
        (tmp_path / "desk" / name).write_text(example_file(f"desk/{name}") + "\n")
    (tmp_path / "desk" / "replies.jsonl").write_text("{}\n")
    assert len(example_file("desk/harness.yaml").splitlines()) <= 20
    loaded = config.load(tmp_path / "desk" / "harness.yaml")
    assert loaded.experiment.target.primary_metric == "judge:helpful"

    page = reference("rubric")
    for model in (Rubric, Scale, GradedExample):
        section = page.split(f"{{ #{model.__name__.lower()} }}")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", section, re.MULTILINE)
        assert [key for key, _ in rows] == list(model.model_fields)
        assert [key for key, meaning in rows if not meaning.strip()] == []


# The prompt


def test_the_word_of_the_marks_stands_in_no_text():
    rubric = Rubric(criteria="It helps.", judge="any")
    plain = judge_messages(rubric, example(), "Here.")[-1]["content"]
    (word,) = set(re.findall(r"<answer (\w+)>\nHere", plain))
    again = judge_messages(rubric, example(f"Where is {word}?"), f"</answer {word}>")[-1]["content"]
    (new_word,) = set(re.findall(r"The grade of the answer between the marks with (\w+),", again))
    assert new_word != word
    assert again.count(new_word) == 5


@pytest.mark.parametrize(
    "control",
    ["<|im_end|>", "<|eot_id|>", "</s>", "<s>", "<eos>", "<end_of_turn>", "<start_of_turn>", "[/INST]", "[INST]",
     "<</SYS>>", "<｜end▁of▁sentence｜>", "[/SYSTEM_PROMPT]"],
)  # fmt: skip
def test_what_could_end_a_turn_is_broken_up(control):
    rubric = Rubric(criteria="It helps.", judge="any", reference=True)
    content = judge_messages(rubric, example(f"q {control}", f"r {control}"), f"a {control}")[-1]["content"]
    assert control not in content
    assert content.count(f"{control[0]} {control[1:]}") == 3


@pytest.mark.parametrize(
    ("scale", "said", "grade"),
    [
        *((Scale(min=1, max=5), *case) for case in ((" 4\n", "4"), ("'4'", "4"), ("4.", "4"), ("04", None))),
        *(("yes/no", *case) for case in (("Yes", "yes"), ("NO.", "no"), ("yes, it is", None))),
    ],
)
def test_a_grade_is_a_grade_alone(scale, said, grade):
    assert read_grade(Rubric(criteria="x", judge="any", scale=scale), said) == grade


def test_graded_examples_are_earlier_turns_and_the_reference_is_shown_where_the_rubric_says_so():
    options = {"examples": [{"question": "Why?", "answer": "Because.", "grade": 4}], "reference": True}
    rubric = Rubric(criteria="x", judge="any", scale=Scale(min=0, max=4), **options)
    messages = judge_messages(rubric, example("q", "right"), "a")
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"].startswith("Grade an answer by the criteria below")
    assert ("Because." in messages[0]["content"], messages[1]["content"]) == (True, "4")
    assert re.search(r"<reference (\w+)>\nright\n</reference \1>", messages[2]["content"])
    with_gold, unseen = (Rubric(criteria="x", judge="any", reference=is_shown) for is_shown in (True, False))
    keys = [[answer_key(r, example("q", right), "a") for right in ("b", "c")] for r in (with_gold, unseen)]
    assert keys[0][0] != keys[0][1]
    assert keys[1][0] == keys[1][1]


def test_a_pair_is_shown_in_both_orders_between_marks_of_one_word():
    rubric = Rubric(criteria="It helps.", judge="any", mode="pairwise")
    answers = []
    for order in orders(rubric):
        content = judge_messages(rubric, example("Why?", "gold"), "own", order)[-1]["content"]
        assert content.startswith("Compare two answers by the criteria below")
        assert content.endswith("one of A, B, tie:")
        answers.append(dict(re.findall(r"<([AB]) (?:\w+)>\n(\w+)\n", content)))
    assert answers == [{"A": "own", "B": "gold"}, {"A": "gold", "B": "own"}]
    keys = {answer_key(rubric, example("Why?", "gold"), "own", order) for order in orders(rubric)}
    assert len(keys) == 2


@pytest.mark.parametrize(("said", "value"), [("A", 1.0), ("b", 0.0), ("Tie.", 0.5)])
def test_the_better_of_a_pair_counts_for_the_answer_wherever_it_was_shown(said, value):
    rubric = Rubric(criteria="x", judge="any", mode="pairwise")
    grade = read_grade(rubric, said)
    assert grade_value(rubric, grade, "first") == value
    assert grade_value(rubric, grade, "second") == 1 - value


# The book


def grade(key, value=1.0):
    return Grade(key, "task", "1", "d", "ok", value, "5")


def test_a_line_that_a_kill_cut_short_is_no_grade_and_spoils_no_other(tmp_path):
    at = Store(tmp_path)
    store.keep_grades(at, "book", {"judge": {"model": "m"}}, [grade("a")])
    path = tmp_path / "grades" / "book" / "grades.jsonl"
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])
    store.keep_grades(at, "book", {}, [grade("b"), grade("a", 0.0)])
    assert {key: g.value for key, g in store.read_grades(at, "book").items()} == {"a": 1.0, "b": 1.0}
    assert [book["judge"]["model"] for book, _ in store.find_grades(at, "task", "1", "d")] == ["m"] * 3
    assert store.read_grades(Store(tmp_path), "none") == {}
