"""A runs folder written by others or damaged: no name leads out of it, and nothing in use is removed."""

import json
import os
from dataclasses import replace

import fake_project
import pytest
import tiny_experiment
from test_store import IDENTITY, OTHER, append, complete, make_rows, make_run, save_two_runs

from harness import store as stores
from harness.errors import HarnessError, UserError
from harness.lifecycle import nightly_state as state
from harness.lifecycle import removal
from harness.progress import SilentProgress

HOSTILE_NAMES = ["../../../precious", "..", "", "a/b", "a\\b", "~root", "a\0b", "x" * 300]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    fake_project.write(tmp_path / "project")
    yield tmp_path / "project"
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


PLACES = {  # where a run holds a name
    "rows": lambda name: {"rows": {"support/test": name}},
    "weights": lambda name: {"training": {"fit_key": name}},
    "weights behind": lambda name: {"training": {"stands_on": {name: "w"}}},
    "run": lambda name: {"run_id": name},
    "candidate": lambda name: {"candidate": name},  # names a folder of event files
}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("rows", name) for name in (*HOSTILE_NAMES, "ABSOLUTE")),
        *((place, "..") for place in PLACES if place != "rows"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_run_that_names_a_path_is_damaged_and_nothing_is_removed_by_it(project, command, place, name):
    name = str(project.parent / "precious") if name == "ABSOLUTE" else name
    file = project / "runs" / "lora-0" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | PLACES[place](name)))
    code, _, stderr = command("runs", "rm", "lora-0", "--runs", project / "runs")
    assert (code, (project / "runs" / "rows").is_dir()) == (2, True)
    assert "lora-0/run.json: found" in stderr
    assert "lora-0/run.json: " in command("runs", "list", "--runs", project / "runs")[2]
    code, _, stderr = command("runs", "rm", "knn-0", "--runs", project / "runs")
    assert (code, "lora-0/run.json" in stderr) == (1, True)
    code, listed, _ = command("reindex", "--runs", project / "runs", "--json")
    (skipped,) = json.loads(listed)["skipped"]
    assert (code, "lora-0/run.json" in skipped) == (0, True)


@pytest.mark.parametrize("name", ["../precious", "/", "rows", ".unfinished"])
def test_no_name_on_the_command_line_leads_out_of_the_store(project, command, name):
    code, _, stderr = command("runs", "rm", name, "--runs", project / "runs")
    assert (code, "next:" in stderr) == (2, True)
    assert (project / "runs" / "rows").is_dir()


@pytest.mark.parametrize("folder", ["rows", ".unfinished", "smoke"])
def test_a_run_in_a_folder_of_something_else_is_no_run(project, command, folder):
    (project / "runs" / folder).mkdir(exist_ok=True)
    run = json.loads((project / "runs" / "lora-0" / "run.json").read_text()) | {"run_id": folder}
    (project / "runs" / folder / "run.json").write_text(json.dumps(run))
    code, _, stderr = command("runs", "rm", folder, "--runs", project / "runs")
    assert (code, "which cannot be its own" in stderr) == (2, True)
    assert (project / "runs" / folder).is_dir()


def move_behind_link(project, *names):
    original = project.joinpath("runs", *names)
    elsewhere = project.parent / "elsewhere"
    original.rename(elsewhere)
    original.symlink_to(elsewhere)
    return elsewhere


def rows_of(project, run):
    return json.loads((project / "runs" / run / "run.json").read_text())["rows"]["support/test"]


@pytest.mark.parametrize("part", ["run", "rows", "row set"])
def test_a_link_in_a_store_is_named_before_anything_is_removed(project, command, part):
    names = {"run": ["lora-0"], "rows": ["rows"], "row set": ["rows", rows_of(project, "lora-0")]}[part]
    elsewhere = move_behind_link(project, *names)
    before = sorted(path.name for path in elsewhere.rglob("*"))
    code, _, stderr = command("runs", "rm", "lora-0", "--runs", project / "runs")
    assert (code, "found a link to" in stderr, "rm " in stderr) == (2, True, True)
    assert (project / "runs" / "lora-0" / "run.json").exists()
    assert sorted(path.name for path in elsewhere.rglob("*")) == before


@pytest.mark.parametrize("name", ["loop", "dangling", "a folder"])
def test_a_run_file_that_cannot_be_read_is_named(project, command, name):
    folder = project / "runs" / "odd"
    folder.mkdir()
    if name == "a folder":
        (folder / "run.json").mkdir()
    else:
        (folder / "run.json").symlink_to("run.json" if name == "loop" else "gone")
    assert command("runs", "list", "--runs", project / "runs")[0] == 0
    assert command("reindex", "--runs", project / "runs")[0] == 0
    assert command("runs", "rm", "knn-0", "--runs", project / "runs")[0] == (1 if name == "a folder" else 0)


def test_a_folder_that_will_hold_rows_is_not_readable_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        fake_project.write(tmp_path / "project", {"prompt": ("base", 20, 48)}, texts={"prompt": "x"})
    finally:
        os.umask(before)
    modes = [(tmp_path / "project" / name).stat().st_mode & 0o777 for name in ("runs", "reports")]
    assert modes == [0o700, 0o700]


CHAMPION = {
    "target": "support", "run_id": "lora-0", "candidate": "lora", "seed": 0, "experiment": "desk", "base_model": "tiny",
    "weights_digest": "w", "base_digest": "b", "created": "", "rows": {}, "scores": {}, "recipe": {},
}  # fmt: skip


@pytest.mark.parametrize("change", [{"rows": {"support/test": "../../x"}}, {"target": ".."}, {"run_id": "/"}])
def test_a_champion_that_names_a_path_is_refused(project, command, change):
    file = project / "baselines" / "champions" / "support.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(CHAMPION | change))
    code, _, stderr = command("runs", "rm", "--unused", "--yes", "--runs", project / "runs")
    assert (code, "the name of one file or folder, and no path" in stderr) == (2, True)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("experiment", name) for name in ("..", "-x", "a/b", "x" * 101)),
        *(("task", ".."), ("candidate", "..")),
    ],
)
def test_a_name_in_an_experiment_file_is_one_of_a_file(tmp_path, command, place, name):
    names = {"experiment": "e", "task": "t", "candidate": "c"} | {place: name}
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "reference": "b"}\n')
    target = {"name": names["task"], "data": {"test": "rows.jsonl"}}
    candidates = {names["candidate"]: {"prompting": "zero_shot"}}
    experiment = {"name": names["experiment"], "target": target, "candidates": candidates}
    (tmp_path / "harness.yaml").write_text(json.dumps(experiment))
    code, _, stderr = command("compare", "--dry-run", "-c", tmp_path / "harness.yaml")
    assert (code, "expected letters, digits and the signs _ . -" in stderr) == (2, True)


SWEPT = """\
  prompt: {method: base}
  lora: {method: lora, sweep: {learning_rate: [0.01, 0.001]}, params: {r: 2, num_train_epochs: 1, max_length: 200}}
  half: {method: scaled, init_from: lora, params: {scale: 0.5}}
"""


def list_unused(store, **options):
    listing = removal.list_unreferenced(store, **options)
    return {str(entry.path.relative_to(store.folder)) for entry in listing.removable}


def folders(*identities):
    return {f"rows/{identity.digest}" for identity in identities}


def write_fit(store, fit_key, digest):
    """Write finished weights."""
    stores.write_whole(store, store.weights(fit_key) / "fit.json", json.dumps({"digest": digest}))


@pytest.fixture
def run_store(store):
    """Save a run of weights w on a base b."""
    complete(store, IDENTITY, make_rows(3))
    training = {"fit_key": "own", "stands_on": {"lost": "l"}}
    run = make_run("a", [IDENTITY.digest], weights_digest="w", base_digest="b", training=training)
    stores.save_run(store, run)
    return store


@pytest.mark.parametrize(
    ("changes", "weights", "is_used"),
    [
        ({"weights_digest": "other"}, ("nobody's", "n"), False),
        ({"weights_digest": "l"}, ("lost", "l"), True),  # of a trial that leads to the run
        ({"weights_digest": "b"}, ("own", "w"), True),  # the run it is compared with
        ({"precision": "bf16"}, ("own", "w"), True),  # the run that confirms it
    ],
)
def test_rows_and_weights_are_unused_where_no_run_rests_on_them(run_store, changes, weights, is_used):
    identity = replace(IDENTITY, **changes)
    complete(run_store, identity, make_rows(3))
    for fit_key, digest in (("own", "w"), weights):
        write_fit(run_store, fit_key, digest)
    unused = set() if is_used else {*folders(identity), f"weights/{weights[0]}"}
    assert list_unused(run_store) == unused


def test_rows_and_weights_of_a_champion_are_wanted(store):
    complete(store, OTHER, make_rows(3))
    write_fit(store, "best", "w")
    assert list_unused(store) == {*folders(OTHER), "weights/best"}
    write_champion(store, "a run that is gone", rows={"facts/test": OTHER.digest})
    assert list_unused(store) == set()


def test_what_nights_refer_to_is_wanted(store):
    complete(store, OTHER, make_rows(3))
    complete(store, IDENTITY, make_rows(3))
    for fit_key in ("tonight", "before"):
        write_fit(store, fit_key, fit_key)
    folder = state.home(store, "desk")
    reference = state.Reference("r", {"a/test": OTHER.digest}, {"a/test": IDENTITY.digest}, "w", {}, "d", "e")
    state.write(store, folder, state.State({"lora": reference}))
    for day, fit_key in (("2025-01-01", "before"), ("2025-01-02", "tonight")):
        watched = state.NightCandidate("lora", "r", "t", (), fit_keys=(fit_key,))
        night = state.Night(day, "", "", "", "fp32", "e", {}, (watched,), {}, {})
        state.write(store, folder, night)
    assert list_unused(store) == {"weights/before"}


def test_what_is_not_finished_is_kept_until_it_is_asked_for(store):
    append(store, IDENTITY, make_rows(64))
    write_fit(store, "fit.part", "w")
    assert list_unused(store) == set()
    assert list_unused(store, unfinished=True) - {".unfinished"} == {*folders(IDENTITY), "weights/fit.part"}


def test_while_work_is_unfinished_all_that_may_be_its_own_is_kept_and_the_work_named(store):
    complete(store, OTHER, make_rows(3))
    stores.begin(store, "desk-lora-s0")
    files = removal.remove_unreferenced(store)
    assert (files.removable, files.wanted_by) == ((), ("desk-lora-s0",))
    assert store.parquet(OTHER.digest) in {entry.path / "rows.parquet" for entry in files.kept}
    removal.remove_unreferenced(store, unfinished=True)
    assert not store.rows(OTHER.digest).exists()
    assert stores.list_begun(store) == []


def test_nothing_is_removed_while_a_run_cannot_be_read_and_weights_behind_another_outlive_theirs(run_store):
    write_fit(run_store, "lost", "l")
    stores.save_run(run_store, make_run("b", [], training={"fit_key": "lost"}))
    removal.remove_run(run_store, "b")
    assert run_store.weights("lost").exists()

    (run_store.folder / "torn").mkdir()
    (run_store.folder / "torn" / "run.json").write_text("{")
    with pytest.raises(HarnessError, match="readable run files"):
        removal.remove_unreferenced(run_store)


class InterruptAtStage(SilentProgress):
    """Progress that ends the command, like Ctrl-C, when a stage with this label prefix opens."""

    def __init__(self, label):
        self.label = label

    def stage(self, label, expected_s=0.0):
        if label.startswith(self.label):
            raise KeyboardInterrupt
        return super().stage(label, expected_s)


@pytest.mark.e2e
def test_nothing_of_an_experiment_is_unused_and_all_is_once_its_runs_are_gone(tiny, store, tmp_path):
    tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, SWEPT), "suites=[]")
    assert len(list((store.folder / "weights").iterdir())) == 3
    listing = removal.list_unreferenced(store)
    assert (listing.removable, listing.wanted_by) == ((), ())
    for run in stores.list_runs(store):
        removal.remove_run(store, run.run_id)
    removal.remove_unreferenced(store)
    assert [*(store.folder / "rows").iterdir(), *(store.folder / "weights").iterdir()] == []


@pytest.mark.e2e
def test_a_comparison_that_is_ended_leaves_its_name_until_it_is_finished(tiny, store, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    with pytest.raises(KeyboardInterrupt):
        tiny_experiment.run(path, progress=InterruptAtStage("base: "))
    assert stores.list_begun(store) == ["tiny", "tiny-prompt-s0"]
    tiny_experiment.run(path)
    assert stores.list_begun(store) == []


def write_champion(store, run_id, **changes):
    """Write a champion next to the runs folder, as `promote` does, without earlier ones."""
    champion = stores.Champion("desk", run_id, "lora", 0, "desk", "m", "w", "b", "2025", {}, {}, {})
    number = len(stores.read_history(store.folder.parent, "desk").entries) + 1
    promoted = replace(champion, **changes)
    entry = stores.ChampionEntry(number, "promotion", "", "Ann", "", number, promoted, keep=1)
    with stores.hold_champions(store):
        stores.record_champion(store, entry)


def test_the_champion_is_not_removed_and_its_rows_and_weights_stay_whatever_the_run_is_called(store):
    save_two_runs(store)
    stores.write_whole(store, store.weights("fit-b") / "adapter.bin", "x")
    write_champion(store, "b")
    with pytest.raises(UserError, match=r"b, a champion of desk.*retire it first"):
        removal.remove_run(store, "b")
    removal.remove_run(store, "a")
    assert [run.run_id for run in stores.list_runs(store)] == ["b"]
    still_used = {"rows": {"facts/test": OTHER.digest}, "weights_digest": "weights of b"}
    write_champion(store, "a run of another folder", **still_used)
    removal.remove_run(store, "b")
    assert store.parquet(OTHER.digest).exists()
    assert (store.weights("fit-b") / "adapter.bin").exists()


@pytest.mark.e2e
def test_nothing_is_removed_while_a_compare_is_at_work(store):
    save_two_runs(store)
    complete(store, OTHER, make_rows(3))
    for remove in (lambda: removal.remove_run(store, "b"), lambda: removal.remove_unreferenced(store)):
        with stores.hold(store), pytest.raises(HarnessError, match="another harness compare at work"):
            remove()
    assert [run.run_id for run in stores.list_runs(store)] == ["a", "b"]
    assert store.parquet(OTHER.digest).exists()
