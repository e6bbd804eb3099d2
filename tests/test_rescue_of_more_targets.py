"""A rescue where one training serves several targets: what the fine-tune gains on each has to be kept."""

import json
from dataclasses import replace

import pytest
import rescue_worlds
from rescue_worlds import AS_IT_IS, COLLAPSED, Version
from worlds import GOOD, Sizes

from harness import rescue
from harness.rescue import exit_code
from harness.rescue.trials import estimate_trials
from harness.spec import GatePolicy

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("module_cache")]

SMALL = Sizes(general=160)
SPLITS = {"train": range(300, 340), "validation": range(200, 300), "test": range(200)}
# The fine-tune has 90 % right on the first two. Of the last two only test items are there, so the prompt,
# which has 20 % right everywhere, is what a gain is measured against.
TARGETS = {"counter": tuple(SPLITS), "till": ("test",), "shelf": ("test",)}
FINE_TUNE = COLLAPSED._replace(more=(("shelf", 20),))


def declare_targets(folder):
    """Write the rows of further targets; returns what declares them in harness.yaml."""
    written = []
    for name, splits in TARGETS.items():
        for split in splits:
            asked = [
                {"id": f"{name}-{i}", "prompt": f"What is {name} behaviour {i} ?", "reference": GOOD}
                for i in SPLITS[split]
            ]
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        data = ", ".join(f"{split}: {folder}/{name}-{split}.jsonl" for split in splits)
        written.append(f"  - {{name: {name}, data: {{{data}}}, max_new_tokens: 4}}\n")
    return f"more_targets:\n{''.join(written)}"


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return declare_targets(tmp_path_factory.mktemp("targets"))


def world(folder, targets, **scales):
    versions = {f"scale=0.{digits}": version for digits, version in scales.items()}
    return rescue_worlds.world(folder, {AS_IT_IS: FINE_TUNE, **versions}, sizes=SMALL, extra=targets)


@pytest.fixture(scope="module")
def target_world(module_cache, targets, tmp_path_factory):
    """Make a fine-tune of which the strongest setting keeps the gain on the target alone, and the next one all."""
    scales = {
        "75": Version(88, more=(("counter", 20),)),
        "5": Version(80, more=(("counter", 75), ("shelf", 10))),
    }
    return world(tmp_path_factory.mktemp("kept"), targets, **scales)


@pytest.fixture(scope="module")
def rescue_result(target_world):
    return target_world.rescue()


def test_a_trial_that_gives_up_the_gain_on_another_target_is_no_rescue(rescue_result):
    first, second = rescue_result.tried
    assert (first.search.verdict.outcome, first.search.gains, first.search.passes) == ("pass", True, False)
    assert first.search.lost_on == ("counter",)
    assert first.search.sentence.endswith("; the gain on counter is gone")
    assert rescue_result.rescued_trial == second.name == "lora+scale=0.5"
    assert (second.search.lost_on, second.confirm.lost_on) == ((), ())


def test_a_trial_is_scored_on_every_target_beside_what_trains_nothing_there(rescue_result):
    for one, right in zip((rescue_result.original, *rescue_result.tried), (0.9, 0.2, 0.75), strict=True):
        scores = {score.task: score for score in one.facts.more_targets}
        assert set(scores) == set(TARGETS)
        assert scores["counter"].score.score == pytest.approx(right)
        assert scores["counter"].untrained in {"fixed", "knn"}
        assert scores["counter"].vs_untrained.delta == pytest.approx(right - 0.4)
        assert (scores["till"].untrained, scores["till"].vs_untrained) == (None, None)
        assert scores["till"].vs_prompt.delta == pytest.approx(scores["till"].score.score - 0.2)


def test_a_gain_that_validation_promises_and_test_does_not_show_rescues_nothing(tmp_path, targets):
    """41 % right are one point over the best that trains nothing, too few to be shown on 200 items."""
    found = world(tmp_path, targets, **{"75": Version(88, more=(("counter", 41),))}).rescue()
    (one,) = found.tried
    assert (one.search.passes, one.confirm.verdict.outcome) == (True, "pass")
    assert (one.confirm.gains, one.confirm.lost_on) == (True, ("counter",))
    assert found.rescued_trial is None
    assert found.sentence.startswith("Nothing is rescued: lora+scale=0.75 passed on the search half, but on")
    assert "the gain on counter is gone" in found.sentence
    assert exit_code(found, GatePolicy()) == 3


def test_a_target_of_test_rows_alone_is_judged_of_the_confirmed_trial_against_the_prompt(tmp_path, targets):
    found = world(tmp_path, targets, **{"75": Version(88, more=(("till", 15),))}).rescue()
    (one,) = found.tried
    assert (one.search.lost_on, one.confirm.lost_on) == ((), ("till",))
    assert any(note.startswith("till: no validation rows") for note in found.notes)


def test_a_plan_counts_what_each_trial_answers_of_more_targets(target_world, rescue_result):
    prepared = rescue.prepare(target_world.session, target_world.loaded.selected, "lora")
    alone = estimate_trials(replace(prepared.session, more_targets=()), prepared.schedule, 0)
    assert all(one.work.read > other.work.read for one, other in zip(prepared.plan, alone, strict=True))
