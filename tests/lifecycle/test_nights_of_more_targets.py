"""Nights of an experiment with several targets: each is watched as its own series."""

import shutil
from dataclasses import replace

import nights
import pytest
from nights import STILL, Calendar, folder_of

from harness.lifecycle import nightly
from harness.lifecycle.nightly_state import read_nights

pytestmark = pytest.mark.usefixtures("rule_cache")


@pytest.fixture(scope="module")
def declared_later(rule_cache, tmp_path_factory):
    path = nights.world(tmp_path_factory.mktemp("later"), test=100)
    Calendar(path).night(1, STILL)
    nights.add_counter(path)
    return path


@pytest.fixture(scope="module")
def pinned_file(rule_cache, declared_later, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pinned") / "copy"
    shutil.copytree(declared_later.parent, folder)
    path = folder / "harness.yaml"
    nights.compare_again(path)
    nightly.acknowledge(path, "lora", new_reference=True)
    return path


@pytest.fixture
def path(pinned_file, tmp_path):
    shutil.copytree(pinned_file.parent, tmp_path / "copy")
    return tmp_path / "copy" / "harness.yaml"


def test_a_target_that_the_reference_does_not_hold_is_named_as_not_watched(declared_later, tmp_path):
    shutil.copytree(declared_later.parent, tmp_path / "copy")
    calendar = Calendar(tmp_path / "copy" / "harness.yaml")
    (line,) = calendar.night(2, STILL).lines
    assert set(line.series) == {"target", "general"}
    compare = calendar.loaded.typed.command("compare")
    assert (
        f"; not watched: counter, which the reference holds no rows of; next: {compare}, then"
        in line.sentence
    )
    assert f" -c {calendar.loaded.typed.config}" in compare
    (_, last_night) = read_nights(folder_of(tmp_path / "copy" / "harness.yaml"))
    assert last_night.candidates[0].unwatched == ("counter",)


def test_a_loss_on_a_further_target_alone_is_a_regression_of_that_series(path):
    night = Calendar(path).night(2, replace(STILL, counter_lost=0.4))
    (line,) = night.lines
    verdicts = {key: series.verdict for key, series in line.series.items()}
    assert verdicts == {"target": "ok", "target counter": "regression", "general": "ok"}
    assert (night.verdict, night.exit_code) == ("regression", 3)
    assert {item.split("/")[0] for item in line.lost} == {"counter"}
    assert "target counter −" in line.sentence
    assert "not watched" not in line.sentence


def test_all_targets_and_the_suites_share_the_chance_of_a_false_alarm(path):
    (line,) = Calendar(path).night(2, STILL).lines
    assert {series.verdict for series in line.series.values()} == {"ok"}
    assert [series.needed for series in line.series.values()] == pytest.approx([3 / (0.8 * 0.05)] * 3)


def test_the_base_answers_a_further_target_as_its_control_arm(path):
    night = Calendar(path).night(2, replace(STILL, base_moves=0.5))
    assert night.verdict == "harness-drift"
    (_, last_night) = read_nights(folder_of(path))
    (candidate,) = last_night.candidates
    assert candidate.series["target counter"].adjusted
    (base_night,) = last_night.bases.values()
    assert any(item.startswith("counter/") for item in base_night.flips)
