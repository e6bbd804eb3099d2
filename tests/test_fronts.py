"""The study of fronts: its steps, what it chooses on validation, and a page that says what did not run."""

from dataclasses import replace

import pytest
import tiny_experiment
from conftest import shared_data

from harness import config
from tests.studies.fronts.choice import choose, share_of_gain
from tests.studies.fronts.experiments import prepare_tasks, prepare_ways
from tests.studies.fronts.fronts_page import page
from tests.studies.fronts.plan import make, plan, report_done
from tests.studies.fronts.ways import WAYS, candidates, way_of

pytestmark = pytest.mark.usefixtures("own_cache")

PARAMS = "{r: 2, max_steps: 1, max_length: 250, learning_rate: 0.01}"
CANDIDATES = f"""\
  prompt: {{method: base}}
  plain-1: {{method: lora, params: {PARAMS}}}
  frozen-1: {{method: full, regularize: {{freeze: {{first: 90}}}}, params: {{max_steps: 1}}}}
  halved-1: {{method: scaled, init_from: plain-1, params: {{scale: 0.5}}}}
"""


@pytest.fixture(scope="module")
def stepped(tiny, own_cache, tmp_path_factory):
    """Make three of four steps, one at a time; the base has no 90 layers to freeze, so one of them fails."""
    file = tiny_experiment.write(tmp_path_factory.mktemp("fronts"), tiny, CANDIDATES)
    for _ in range(3):
        make(next(step for step in plan(file) if not step.is_done))
    return file


def test_steps_are_made_one_at_a_time_and_the_others_are_left_with_their_time(stepped):
    steps = plan(stepped)
    assert [step.candidate for step in steps if step.is_done] == ["prompt", "plain-1", "frozen-1"]
    (left,) = (step for step in steps if not step.is_done)
    assert left.candidate == "halved-1"
    assert left.expected_s > 0


def test_the_page_shows_what_is_done_and_lists_what_is_left(stepped):
    steps = plan(stepped)
    first = report_done(stepped, steps)
    text = page(first, {}, [step for step in steps if not step.is_done], 7200.0)
    done, left = text.split("## Not run")
    assert "| plain-1 |" in done
    assert "- frozen-1 failed: freeze names 90 layers" in done
    assert "| halved-1 |" not in done
    assert "| harness | halved-1 | 0.0 |" in left
    assert "| three tasks | plain LoRA and 5 ways | 2.0 |" in left


@pytest.fixture(scope="module")
def facts(stepped):
    """Facts of a prompt that scores 20 %, plain LoRA 60 %, and ways that gain more or less."""
    found = {f.name: f for f in report_done(stepped, plan(stepped)).facts}

    def scored(of, name, score, kept=0.0):
        macro = replace(of.verdict, macro=of.verdict.macro._replace(score=kept)) if of.trained else of.verdict
        return replace(of, name=name, target=of.target._replace(score=score), verdict=macro)

    prompt, plain = found["prompt"], found["plain-1"]
    return [
        scored(prompt, "prompt", 0.2),
        scored(plain, "plain-1", 0.6, -0.2),
        scored(plain, "a-1", 0.58, -0.1),
        scored(plain, "a-2", 0.57, -0.05),
        scored(plain, "b-1", 0.7, -0.15),
        scored(plain, "c-2", 0.4, 0.0),
    ]


def test_a_share_of_the_gain_is_that_over_the_prompt(facts):
    assert {f.name: round(share_of_gain(facts, f), 3) for f in facts} == {
        "prompt": 0.0,
        "plain-1": 1.0,
        "a-1": 0.95,
        "a-2": 0.925,
        "b-1": 1.25,
        "c-2": 0.5,
    }
    assert share_of_gain(facts[:1], facts[0]) is None


def test_of_ways_that_keep_the_gain_the_one_that_forgets_least_comes_first(facts):
    assert choose(facts) == ["a-2", "b-1", "c-2"]


def test_every_way_has_two_strengths_that_differ():
    assert all(low != high for low, high in WAYS.values())
    names = candidates(WAYS)
    assert {way_of(name) for name in names if name != "prompt"} == set(WAYS)
    assert len(names) == 1 + 2 * len(WAYS)


def test_the_files_of_both_stages_stand_beside_each_other(tmp_path):
    shared_data("rows")
    ways = prepare_ways(tmp_path)
    tasks = prepare_tasks(tmp_path, ["replay-2"])
    assert len(config.load(ways).experiment.candidates) == 1 + 2 * len(WAYS)
    found = {
        config.load(file).experiment.name: set(config.load(file).experiment.candidates) for file in tasks
    }
    assert set(found) == {"fronts-support", "fronts-banking77", "fronts-dolly"}
    assert all(of == {"prompt", "plain-2", "replay-2"} for of in found.values())
