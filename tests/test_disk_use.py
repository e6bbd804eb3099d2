"""What a store takes on the disk, and what may be removed from it."""

import json

import pytest
from test_store import IDENTITY, OTHER, append, complete, make_rows, make_run, save_two_runs

from harness import release
from harness import store as stores
from harness.errors import HarnessError, UserError
from harness.store import References
from harness.store.garbage import size


def measure_disk_use(store):
    return stores.disk_use(store, stores.list_runs(store))


def write_champion(store, run_id, **changes):
    """Write a champion's file beside the runs folder, as `promote` does."""
    values = {
        "target": "desk",
        "run_id": run_id,
        "candidate": "lora",
        "seed": 0,
        "experiment": "desk",
        "base_model": "m",
        "weights_digest": "w",
        "base_digest": "b",
        "created": "2025",
        "rows": {},
        "scores": {},
        "recipe": {},
    }
    path = store.folder.parent / "baselines" / "champions" / "desk.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(values | changes))


def test_what_removing_a_run_would_free_is_what_removing_it_frees(store):
    save_two_runs(store)
    stores.write_whole(store, store.weights("fit-b") / "adapter.bin", "x" * 10_000)
    before = measure_disk_use(store)
    assert before.weights == 10_000
    stores.remove_run(store, "b")
    after = measure_disk_use(store)
    files = [use.rows + use.weights + use.unfinished for use in (before, after)]
    assert before.freed["b"] == files[0] - files[1] > 10_000


def test_rows_and_weights_that_are_not_complete_are_named_apart(store):
    complete(store, OTHER, make_rows(3))
    append(store, IDENTITY, make_rows(64))
    stores.write_whole(store, store.folder / "weights" / "fit.part" / "checkpoint-1" / "x", "x" * 500)
    assert measure_disk_use(store).rows == size(store.rows(OTHER.digest))
    assert measure_disk_use(store).unfinished == size(store.rows(IDENTITY.digest)) + 500


def test_the_champion_is_not_removed(store):
    save_two_runs(store)
    write_champion(store, "b")
    with pytest.raises(UserError, match=r"b, the champion of desk.*promote another run first"):
        release.remove_run(store, "b", References())
    release.remove_run(store, "a", References())
    assert [run.run_id for run in stores.list_runs(store)] == ["b"]


def test_rows_and_weights_of_a_champion_are_kept_whatever_the_run_is_called(store):
    save_two_runs(store)
    stores.write_whole(store, store.weights("fit-b") / "adapter.bin", "x")
    kept = {"rows": {"facts/test": OTHER.digest}, "weights_digest": "weights of b"}
    write_champion(store, "a run of another folder", **kept)
    release.remove_run(store, "b", References())
    assert store.parquet(OTHER.digest).exists()
    assert (store.weights("fit-b") / "adapter.bin").exists()


@pytest.mark.e2e
def test_nothing_is_removed_while_a_compare_is_at_work(store):
    save_two_runs(store)
    with stores.hold(store), pytest.raises(HarnessError, match="another harness compare at work"):
        release.remove_run(store, "b", References())
    assert [run.run_id for run in stores.list_runs(store)] == ["a", "b"]


def test_checkpoints_of_a_training_that_is_not_finished_outlive_every_removal(store):
    stores.write_whole(store, store.folder / "weights" / "fit-a.part" / "checkpoints" / "x", "x")
    stores.save_run(store, make_run("a", []))
    release.remove_run(store, "a", References())
    stores.reindex(store)
    assert (store.folder / "weights" / "fit-a.part" / "checkpoints" / "x").exists()
