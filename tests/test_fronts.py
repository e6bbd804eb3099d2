"""The study of fronts: its steps, what it chooses on validation, and a page that says what did not run."""

import pytest
import tiny_experiment

from reports.studies.fronts.choice import choose, share_of_gain
from reports.studies.fronts.fronts_page import page
from reports.studies.fronts.plan import make, plan, report_done
from reports.studies.fronts.rows import Row, rows_of
from reports.studies.fronts.ways import WAYS, candidates, way_of

pytestmark = pytest.mark.usefixtures("own_cache")

PARAMS = "{r: 2, max_steps: 1, max_length: 250, learning_rate: 0.01}"
CANDIDATES = f"""\
  prompt: {{method: base}}
  plain-1: {{method: lora, params: {PARAMS}}}
  short-1: {{method: full, params: {{max_steps: 1, max_length: 8}}}}
  halved-1: {{method: scaled, init_from: plain-1, params: {{scale: 0.5}}}}
"""


@pytest.fixture(scope="module")
def steps_file(tiny, own_cache, tmp_path_factory):
    """Make three of four steps, one at a time; no row has at most 8 tokens, so one of them fails."""
    file = tiny_experiment.write(tmp_path_factory.mktemp("fronts"), tiny, CANDIDATES)
    for _ in range(3):
        make([next(step for step in plan(file) if not step.is_done)], 1)
    return file


@pytest.mark.e2e
def test_steps_are_made_one_at_a_time_and_the_page_lists_what_is_left(steps_file, tmp_path):
    steps = plan(steps_file)
    assert [step.candidate for step in steps if step.is_done] == ["prompt", "plain-1", "short-1"]
    (left,) = (step for step in steps if not step.is_done)
    assert left.candidate == "halved-1"
    assert left.expected_s > 0
    rows = rows_of("ways", "a CPU", report_done(steps_file, steps))
    text = page(rows, [step for step in steps if not step.is_done], 7200.0, tmp_path)
    done, left = text.split("## Not run")
    assert "| plain-1 |" in done
    assert "- short-1 failed: all 30 rows" in done
    assert "| halved-1 |" not in done
    assert "| harness | halved-1 | 0.0 |" in left
    assert "| three tasks | plain LoRA and 5 ways | 2.0 |" in left
    (row,) = (
        row
        for row in rows_of("ways", "a CPU", report_done(steps_file, plan(steps_file)))
        if row.candidate == "plain-1"
    )
    assert row.held_back
    assert not {"critical", "regressions", "target"} & set(row.held_back)


def make_row(candidate, goal, kept=0.0, machine="a CPU"):
    return Row(
        "ways", candidate, candidate, machine, candidate != "prompt", goal, kept, "", "", "", "", [], ""
    )


ROWS = [
    make_row("prompt", 0.2),
    make_row("plain-1", 0.6, -0.2),
    make_row("a-1", 0.58, -0.1),
    make_row("a-2", 0.57, -0.05),
    make_row("b-1", 0.7, -0.15),
    make_row("c-2", 0.4, 0.0),
]


def test_a_share_of_the_gain_is_that_over_the_prompt_on_one_kind_of_machine():
    assert {row.candidate: round(share_of_gain(ROWS, row), 3) for row in ROWS} == {
        "prompt": 0.0,
        "plain-1": 1.0,
        "a-1": 0.95,
        "a-2": 0.925,
        "b-1": 1.25,
        "c-2": 0.5,
    }
    assert share_of_gain(ROWS[:1], ROWS[0]) is None
    other = [make_row("prompt", 0.0, machine="a GPU"), make_row("plain-1", 0.5, machine="a GPU")]
    assert share_of_gain([*ROWS, *other], make_row("d-1", 0.25, machine="a GPU")) is None
    rows = [*ROWS, *other, make_row("d-1", 0.25, machine="a GPU")]
    assert share_of_gain(rows, rows[-1]) == 0.5
    assert share_of_gain(rows, rows[2]) == pytest.approx(0.95)


def test_of_ways_that_keep_the_gain_the_one_that_forgets_least_comes_first(tmp_path):
    assert choose(ROWS) == ["a-2", "b-1", "c-2"]
    same = make_row("d-1", 0.6)._replace(remark="d-1: d found nothing to change")
    assert choose([*ROWS, same]) == choose(ROWS)
    assert "- d-1: d found nothing to change" in page([*ROWS, same], [], 0.0, tmp_path).splitlines()
    assert all(low != high for low, high in WAYS.values())
    names = candidates(WAYS)
    assert {way_of(name) for name in names if name != "prompt"} == set(WAYS)
    assert len(names) == 1 + 2 * len(WAYS)
