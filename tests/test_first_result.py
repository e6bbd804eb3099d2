"""A first result stands before the base's suite is asked, and changes nothing of what is measured."""

import re
from contextlib import contextmanager

import pytest
import tiny_experiment
from tiny_experiment import runs_of

from harness import store
from harness.cli.progress_bar import TerminalProgress
from harness.experiment.runs.stored_rows import StoredRows
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

ASKS_THE_BASE = ["base: sums/test", "base: facts/test", "base: prose/test"]


class ProgressLog:
    """Progress that remembers stages and lines in their order."""

    def __init__(self):
        self.lines, self.items = [], []

    @contextmanager
    def stage(self, label, expected_s=0.0):
        self.lines.append(label)
        yield lambda done, total, note="": None

    def show(self, candidate, line, *items):
        self.lines.append(line)
        self.items += items

    finish = show


def lines(path, *overrides, candidates=("prompt", "bag"), seen=None):
    seen = seen or ProgressLog()
    tiny_experiment.run(path, *overrides, candidates=candidates, progress=seen)
    once = ("getting ", "loading ", "measuring short steps")  # what only the first test of a session sees
    return [line for line in seen.lines if not line.startswith(once)]


@pytest.fixture(scope="module")
def file_and_lines(tmp_path_factory, tiny):
    path = tiny_experiment.write(tmp_path_factory.mktemp("begun"), tiny)
    return path, lines(path)


def rows_of(path, run):
    return {name: store.read_rows(Store(path.parent / "runs"), digest) for name, digest in run.rows.items()}


def simplify_rows(rows):
    return {name: [(r.example_id, r.text, r.parts, r.prompt_digest) for r in of] for name, of in rows.items()}


def items_of(seen):
    """Check that three items were shown once, each with question, answer and reference; returns their words."""
    questions, answers = seen.items[::2], seen.items[1::2]
    assert questions[0] == "Please look at my post again."
    assert len(questions) == len(answers) == 3
    assert all(re.search(r" \(reference: “(late|money)”\)$", answer) for answer in answers), answers
    return [answer.partition(":")[0].strip() for answer in answers]


def test_items_stand_below_the_first_result_and_are_cut_to_the_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    item = "Which of [these] labels fits the letter that begins so?"
    TerminalProgress().show("prompt", "prompt: EM 50.0", item)
    TerminalProgress(shows_items=False).finish("bag", "bag: EM 60.0", item)
    said = capsys.readouterr().err.splitlines()
    assert said == ["prompt: EM 50.0", "  Which of [these] labels fits the lett…", "bag: EM 60.0"]


def test_a_score_on_the_target_stands_before_the_base_is_asked_and_is_the_one_it_ends_with(file_and_lines):
    _, said = file_and_lines
    assert said[0] == "prompt: letters/test"
    assert said[1].startswith("prompt: EM ")
    assert said[1].endswith(", a first result; next, the capability suite of the base")
    assert said[2:5] == ASKS_THE_BASE
    assert said[5] == "capability suite of the base: measured on 3 tasks"
    assert said[6:8] == ["control arm: the base again", "prompt: letters/validation"]
    last = next(line for line in said[2:] if line.startswith("prompt: EM "))
    assert last.startswith(f"{said[1].partition(',')[0]},{said[1].split(',')[1]} · ")


@pytest.mark.e2e
def test_its_answers_are_those_of_a_run_whose_base_was_asked_first(file_and_lines, tiny, tmp_path):
    path, with_bag, with_prompt = tiny_experiment.write(tmp_path, tiny), ProgressLog(), ProgressLog()
    lines(path, candidates=("bag",), seen=with_bag)
    assert items_of(with_bag) == ["wrong", "wrong", "right"]
    assert lines(path, seen=with_prompt)[:2] == [
        "capability suite of the base: measured on 3 tasks",
        "control arm: the base again",
    ]
    assert items_of(with_prompt) == ["wrong"] * 3  # of prompt's own line, as no first result stands before
    mine, theirs = (runs_of(one)["prompt"] for one in (file_and_lines[0], path))
    assert (mine.run_id, mine.rows) == (theirs.run_id, theirs.rows)
    assert simplify_rows(rows_of(file_and_lines[0], mine)) == simplify_rows(rows_of(path, theirs))


def test_the_run_has_a_control_arm_and_its_first_rows_have_none(file_and_lines):
    path, run = file_and_lines[0], runs_of(file_and_lines[0])["prompt"]
    at = Store(path.parent / "runs")
    controls = {
        name: {origin.control for origin in store.origins(at, digest).values()}
        for name, digest in run.rows.items()
    }
    (measured,) = StoredRows(at).controls_of(run)
    assert measured.n_same > 0
    assert controls["letters/validation"] == {measured.id}
    assert controls["letters/test"] == {""}


@pytest.mark.e2e
def test_what_the_base_was_asked_before_leaves_the_order_as_it_was(file_and_lines):
    assert not any("a first result" in line for line in lines(file_and_lines[0], "target.max_new_tokens=3"))


class Stops(ProgressLog):
    """Progress of a call that is ended when the base is asked."""

    @contextmanager
    def stage(self, label, expected_s=0.0):
        if label == ASKS_THE_BASE[0]:
            raise KeyboardInterrupt
        with super().stage(label, expected_s) as advance:
            yield advance


@pytest.mark.e2e
def test_answers_that_are_stored_are_scored_by_other_metrics_and_not_asked_again(tiny, tmp_path):
    path, stopped = tiny_experiment.write(tmp_path, tiny), Stops()
    with pytest.raises(KeyboardInterrupt):
        tiny_experiment.run(path, candidates=("prompt",), progress=stopped)
    assert "a first result" in stopped.lines[-1]
    assert items_of(stopped) == ["wrong"] * 3
    said = lines(path, "target.metrics=[exact_match]", candidates=("prompt",))
    assert said[:3] == ASKS_THE_BASE
    assert "prompt: letters/test" not in said


@pytest.mark.e2e
def test_without_a_prompt_on_the_base_or_an_answer_there_is_none(tiny, tmp_path):
    assert lines(tiny_experiment.write(tmp_path, tiny), candidates=("bag",))[:3] == ASKS_THE_BASE
    system = " ".join(["word"] * 3000)
    said = lines(tiny_experiment.write(tmp_path, tiny), f"target.system={system}")
    assert not any("a first result" in line for line in said)
    assert any("no test row could be answered" in line for line in said), said


def test_the_time_left_counts_what_the_first_result_took_once():
    progress = TerminalProgress()
    with progress.follow({"base": 60.0, "prompt": 40.0}):
        with progress.stage("prompt: test", 30.0):
            pass
        progress.show("prompt", "prompt: EM 1.0")
        progress._spent_s = progress._expected_s
        assert progress._left_s() == 70.0
        progress.finish("base", "base is measured")
        assert progress._left_s() == 10.0
        progress.finish("prompt", "prompt: EM 1.0")
        assert progress._left_s() == 0.0
