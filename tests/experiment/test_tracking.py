"""Points along a training: the weights kept there, their measurements, and the resulting texts."""

import json

import pytest
import tiny_methods
from rescue_worlds import Version, items_as_rows, world
from worlds import Sizes

from harness import store
from harness.analysis.admission import cluster_name, split
from harness.evaluation.costs import Work
from harness.experiment import Estimates, in_order, make_plan, rescue
from harness.experiment.candidate_weights import Fit, find_stored_weights
from harness.experiment.trials import estimate_tracking, read_kept_points
from harness.methods.derived import Checkpoint
from harness.methods.supervised import Lora
from harness.records import TrainingRecord, read_training_record
from harness.spec import Recipe, Tracking
from harness.training import CHECKPOINTS, TRACKED, map_tracked_folders

pytestmark = pytest.mark.e2e

SHORT = {"num_train_epochs": 2, "learning_rate": 0.01, "per_device_train_batch_size": 1, "max_length": 200}
SIZES = Sizes(general=120)


@pytest.fixture(scope="module")
def untracked_fit(tiny, own_cache, tmp_path_factory):
    return fit_tracked(tiny, tmp_path_factory.mktemp("plain"), track=0)


@pytest.fixture(scope="module")
def tracked_fit(tiny, own_cache, tmp_path_factory):
    return fit_tracked(tiny, tmp_path_factory.mktemp("tracked"), track=4)


def fit_tracked(tiny, folder, *, track, advance=tiny_methods.ignore, **params):
    options = {"track": track, "advance": advance}
    return tiny_methods.fit(tiny, folder, Lora, {**SHORT, "r": 2, **params}, **options)


def read_step(fit, step):
    return json.loads((fit.folder / TRACKED / f"step-{step}" / "fit.json").read_text())


# What is kept


def test_weights_are_kept_evenly_at_checkpoints_and_change_neither_weights_nor_losses(
    tracked_fit, untracked_fit
):
    assert list(map_tracked_folders(tracked_fit.folder / TRACKED)) == [6, 12, 18, 24]
    assert tracked_fit.digest == untracked_fit.digest
    assert tracked_fit.training.loss == untracked_fit.training.loss
    assert not (untracked_fit.folder / TRACKED).exists()


def test_a_training_that_was_stopped_keeps_the_same_weights(tiny, tmp_path, tracked_fit):
    with pytest.raises(tiny_methods.Interrupted):
        fit_tracked(tiny, tmp_path, track=4, advance=tiny_methods.stop_at(15))
    assert list(map_tracked_folders(tmp_path / TRACKED)) == [6, 12]
    assert any((tmp_path / CHECKPOINTS).glob("checkpoint-*"))
    again = fit_tracked(tiny, tmp_path, track=4)
    assert list(map_tracked_folders(tmp_path / TRACKED)) == [6, 12, 18, 24]
    for step in (6, 12, 18, 24):
        assert read_step(again, step) == read_step(tracked_fit, step)


# What is measured

TRACKED_RECIPE = "  held: {method: lora, track: {points: 2, items: 160}}\n"


@pytest.fixture(scope="module")
def tracked_world(rule_cache, tmp_path_factory):
    """A world whose fine-tune was tracked: little forgotten at step 10, at step 20 as much as at the end."""
    versions = {"step-10": Version(60, lost=4), "step-20": Version(90, lost=50)}
    return world(tmp_path_factory.mktemp("measured"), versions, sizes=SIZES, extra=TRACKED_RECIPE)


def run_of(env, name="held"):
    (run,) = [run for run in store.list_runs(env.session.store) if run.candidate == name]
    return run


def test_points_say_what_target_and_capability_were_then_and_are_stored_so(tracked_world):
    early, late = run_of(tracked_world).training.tracked
    assert (early.step, late.step) == (10, 20)
    assert (early.target, late.target) == pytest.approx((0.6, 0.9), abs=0.005)
    assert late.capability < -0.4 < early.low < early.capability < early.high
    assert early.n_general == late.n_general == 160
    assert run_of(tracked_world, "lora").training.tracked == ()
    training = run_of(tracked_world).training
    assert read_training_record(training.to_plain()) == training
    assert "tracked" not in TrainingRecord().to_plain()


def test_no_test_row_and_no_confirming_item_is_read_and_the_estimate_knows_of_the_points(tracked_world):
    session = tracked_world.session
    held = session.candidates["held"]
    kept_points = read_kept_points(held, find_stored_weights(session, held, 0).folder)
    digests = {weights.digest for weights in kept_points.values()}
    row_sets = [s for s in store.identities(session.store) if s.weights_digest in digests]
    assert {s.split for s in row_sets if s.task == "desk"} == {"validation"}
    half_of = split({m.task.name: items_as_rows(m) for m in session.suites}, 0).half_of
    general = [r for s in row_sets if s.task != "desk" for r in store.read_rows(session.store, s.digest)]
    assert len(general) == 2 * 160
    assert {half_of[cluster_name(row)] for row in general} == {"search"}

    work = estimate_tracking(session, held.source)
    twice = held.source.model_copy(update={"track": Tracking(points=4, items=160)})
    assert 0 < work.read < estimate_tracking(session, twice).read == 2 * work.read
    assert estimate_tracking(session, session.candidates["lora"].source) == Work()
    works = Estimates(session).work(make_plan(session, in_order(session.candidates, ["lora", "held"])))
    assert works["held"].read == works["lora"].read + work.read
    plain, tracked = (Fit(session, session.candidates[name], 0).folder(None) for name in ("lora", "held"))
    alike = session.with_candidates({"held": Recipe(method="lora", track=Tracking(points=2, items=9))})
    assert (
        plain != tracked == Fit(alike, alike.candidates["held"], 0).folder(None)
    )  # their items are not part of the key


# A checkpoint as a candidate


def test_a_checkpoint_is_the_adapter_that_was_kept_at_its_step(tiny, tmp_path, tracked_fit):
    init = tracked_fit.folder / "adapter"
    checkpoint = tiny_methods.fit(tiny, tmp_path / "made", Checkpoint, {"step": 12}, init=init)
    assert checkpoint.digest == read_step(tracked_fit, 12)["digest"]
    for file in (tracked_fit.folder / TRACKED / "step-12" / "adapter").iterdir():
        assert (checkpoint.folder / "adapter" / file.name).read_bytes() == file.read_bytes()


def test_a_tracked_fine_tune_is_rescued_by_its_checkpoint_without_training(tmp_path):
    versions = {"step-10": Version(80, lost=0), "step-20": Version(90, lost=50)}
    env = world(tmp_path, versions, sizes=Sizes(general=160), extra=TRACKED_RECIPE)
    prepared = rescue.prepare(env.session, env.loaded.selected, "held")
    planned = Estimates(prepared.session).trials(prepared.schedule, prepared.case.run.seed)
    assert (prepared.schedule.trials[0].step, planned[0].work.trained) == ("earlier", 0)
    env.host.opened.clear()
    outcome = rescue.run(prepared)
    assert [tried.name for tried in outcome.tried] == ["held+step=10"]
    assert outcome.rescued_trial == "held+step=10"
    assert {*env.host.opened} == {"step-10"}
    rescued, row_sets = run_of(env, "held+step=10"), store.identities(env.session.store)
    splits = [s.split for s in row_sets if s.weights_digest == rescued.weights_digest]
    assert splits.count("validation") == 1  # what was measured along the training is not asked again
