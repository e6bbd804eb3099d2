"""Each trial of a sweep or search is a run: listed below that of its candidate, shown, compared and removed."""

import json

import pytest
import tiny_experiment
from test_store import IDENTITY, complete, make_rows, make_run
from tiny_experiment import fact_of

from harness import store as stores
from harness.errors import UserError
from harness.lifecycle import removal
from harness.records import MetricRange, Trial
from harness.store import Store, TrialRun
from harness.store.garbage import size

SWEPT = """\
  prompt: {method: base}
  swept:
    method: lora
    params: {r: 2, num_train_epochs: 1, max_length: 200}
    sweep: {learning_rate: [0.001, 0.02], weight_decay: [0.0, 1.0e+30]}
"""


def keep_trial(store, key, validation=0.5, rows=(), **trial_fields):
    """Store a trial's run with its weights of 10 kB."""
    outcome = {"state": "failed", "error": "it diverged"} if validation is None else {}
    trial = Trial(params={"r": len(key)}, validation=validation, fit_key=key, **trial_fields)
    run = make_run(
        f"desk-lora-s0-trial-{key}", rows, weights_digest=f"weights of {key}", training={"fit_key": key},
        metrics={"task-0": {"f1": MetricRange(True, 0.0, 1.0)}}, **outcome,
    )  # fmt: skip
    stores.write_whole(store, store.weights(key) / "adapter.bin", "x" * 10_000)
    stored = TrialRun(run, trial, "f1")
    stores.save_trial(store, stored)
    return stored


def save_chosen(store, run_id, *trials, **changes):
    """Save the run of a candidate whose weights were chosen among trials: those of the first."""
    first = trials[0]
    behind = {trial.trial.fit_key: trial.run.weights_digest for trial in trials if trial.run.state == "done"}
    sweep = [trial.to_plain()["trial"] for trial in trials]
    training = {"fit_key": first.trial.fit_key, "stands_on": behind, "sweep": sweep}
    changes = {"weights_digest": first.run.weights_digest, "training": training} | changes
    stores.save_run(store, make_run(run_id, [], **changes))


def list_kept(store):
    return {trial.trial.fit_key for trial in stores.list_trials(store)}


def weights(store):
    return {path.name for path in (store.folder / "weights").iterdir()}


def test_trials_are_listed_below_their_run_and_those_of_none_at_the_end_also_as_json(store, command):
    first, second = keep_trial(store, "aa"), keep_trial(store, "bbb", 0.25, pruned_at=12)
    lost, failed = keep_trial(store, "cccc"), keep_trial(store, "ddddd", None)
    save_chosen(store, "desk-lora-s0-1", first, second, failed)
    lines = command("runs", "list", "--runs", store.folder, check=0).stdout.splitlines()
    trials = [f"  {trial.run.run_id}" for trial in (first, second, failed)]
    assert [line.partition(": ")[0] for line in lines] == ["desk-lora-s0-1", *trials, lost.run.run_id]
    texts = [line.partition(": ")[2] for line in lines]
    assert texts[1:4] == [
        "trial of lora, r 2: f1 50.0 % on validation, chosen",
        "trial of lora, r 3: f1 25.0 % on validation, pruned at step 12",
        "trial of lora, r 5: it diverged",
    ]
    assert texts[4].startswith("trial of lora for a run that is not stored, r 4: f1 50.0 %")
    assert texts[4].endswith(", 10 kB")
    facts = json.loads(command("runs", "list", "--runs", store.folder, "--json", check=0).stdout)
    states = {name.rpartition("-")[2]: (v["state"], v.get("trial_of")) for name, v in facts.items()}
    assert states["bbb"] == ("pruned", "desk-lora-s0-1")
    assert (states["cccc"], states["ddddd"]) == (("done", ""), ("failed", "desk-lora-s0-1"))
    assert facts[second.run.run_id]["params"] == {"r": 3}


def test_trials_are_found_by_their_id_and_stand_in_no_list_of_runs(store):
    save_chosen(store, "desk-lora-s0-1", keep_trial(store, "aa"), keep_trial(store, "bbb"))
    assert [run.run_id for run in stores.list_runs(store)] == ["desk-lora-s0-1"]
    stores.reindex(store)
    assert stores.query(store, "SELECT run_id FROM runs").rows == [("desk-lora-s0-1",)]
    stored = keep_trial(store, "aa")
    assert stores.get_run(store, stored.run.run_id) == stored.run


def test_removing_a_run_removes_its_trials_with_their_weights_and_rows_and_frees_what_was_said(store):
    complete(store, IDENTITY, make_rows(40))
    chosen = keep_trial(store, "aa")
    lost = keep_trial(store, "bbb", rows=[IDENTITY.digest])
    save_chosen(store, "desk-lora-s0-1", chosen, lost, keep_trial(store, "cccc", None))
    assert chosen.run.weights_digest != IDENTITY.weights_digest
    n_freed = stores.count_freed_bytes(store, stores.list_runs(store))["desk-lora-s0-1"]
    before = size(store.folder / "weights") + size(store.folder / "rows")
    stores.remove_run(store, "desk-lora-s0-1")
    assert (list_kept(store), weights(store)) == (set(), set())
    assert n_freed == before - size(store.folder / "rows") == 30_000


def test_a_trial_whose_weights_another_training_began_with_stays(store):
    first, later = keep_trial(store, "aa"), keep_trial(store, "bbb")
    save_chosen(store, "desk-lora-s0-1", first, later)
    began = {"fit_key": "dpo", "stands_on": {"aa": first.run.weights_digest, "bbb": later.run.weights_digest}}
    stores.save_run(store, make_run("dpo", [], training=began))
    stores.remove_run(store, "desk-lora-s0-1")
    assert weights(store) == {"aa", "bbb"}
    stores.remove_run(store, "dpo")
    assert list_kept(store) == {"aa", "bbb"}


def test_a_trial_that_a_run_is_found_by_way_of_is_not_removed(store):
    lost = keep_trial(store, "bbb")
    save_chosen(store, "desk-lora-s0-1", keep_trial(store, "aa"), lost)
    with pytest.raises(UserError, match="next: harness runs rm desk-lora-s0-1, which removes its trials too"):
        stores.remove_run(store, lost.run.run_id)
    assert list_kept(store) == {"aa", "bbb"}


def test_a_trial_of_no_run_is_unused_with_its_weights(store):
    save_chosen(store, "desk-lora-s0-1", keep_trial(store, "aa"))
    orphan = keep_trial(store, "bbb")
    stores.write_whole(store, store.weights("bbb") / "fit.json", json.dumps({"digest": "weights of bbb"}))
    removed = removal.remove_unreferenced(store).removable
    paths = {str(entry.path.relative_to(store.folder)) for entry in removed}
    assert paths == {"weights/bbb", f"trials/{orphan.run.run_id}.json"}
    assert (list_kept(store), weights(store)) == ({"aa"}, {"aa"})


@pytest.mark.e2e
def test_trials_of_a_sweep_are_runs_that_can_be_listed_shown_compared_and_removed(tiny, tmp_path, harness):
    path = tiny_experiment.write(tmp_path, tiny, SWEPT)
    report = tiny_experiment.run(path, "suites=[]")
    store = Store(tmp_path / "runs")
    trials = stores.list_trials(store)
    assert sorted(trial.state for trial in trials) == ["done", "done", "failed", "failed"]
    sweep = fact_of(report, "swept").training.sweep
    validations = {trial.trial.fit_key: trial.trial.validation for trial in trials}
    assert validations == {trial.fit_key: trial.validation for trial in sweep}
    lines = harness("runs", "list").stdout.splitlines()
    assert len(lines) == 6
    assert sum(line.startswith("  tiny-swept-s0-trial-") for line in lines) == 4
    assert sum("not a number" in line for line in lines) == 2
    finished_ids = [trial.run.run_id for trial in trials if trial.state == "done"]
    assert "learning_rate: 0.02" in "".join(harness("runs", "show", run_id).stdout for run_id in finished_ids)
    assert "learning_rate" in harness("runs", "diff", *finished_ids).stdout
    harness("runs", "rm", finished_ids[0], check=2)
    harness("runs", "rm", tiny_experiment.runs_of(path)["swept"].run_id, check=0)
    assert stores.list_trials(store) == []
    assert list((store.folder / "weights").iterdir()) == []
    again = tiny_experiment.run(path, "suites=[]")
    assert [t.validation for t in fact_of(again, "swept").training.sweep] == [t.validation for t in sweep]
