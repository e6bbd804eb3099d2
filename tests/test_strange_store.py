"""A runs folder that somebody else wrote: no name in its files leads out of it, and removing follows no link."""

import json
import os

import fake_project
import pytest
from busy_store import keep_busy
from test_store import IDENTITY, complete, make_rows, make_run

from harness import store as stores
from harness.store import Store

HOSTILE_NAMES = [
    "../../../precious", "..", ".", "", "/", "a/b", "a\\b", "C:\\x", "~", "~root", "a\0b", "x" * 300,
]  # fmt: skip


@pytest.fixture
def project(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    fake_project.write(tmp_path / "project")
    yield tmp_path / "project"
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def name_rows(run, name):
    run["rows"]["support/test"] = name


def name_weights(run, name):
    run["training"]["fit_key"] = name


def name_weights_behind(run, name):
    run["training"]["stands_on"] = {name: "w"}


def name_run(run, name):
    run["run_id"] = name


def name_candidate(run, name):  # names a folder of event files
    run["candidate"] = name


PLACES = [name_rows, name_weights, name_weights_behind, name_run, name_candidate]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (place, name)
        for place in PLACES
        for name in (*HOSTILE_NAMES, "ABSOLUTE")
        if name or place != name_weights
    ],
    ids=lambda one: getattr(one, "__name__", ascii(one)[:20]),
)
def test_a_run_that_names_a_path_is_damaged_and_nothing_is_removed_by_it(project, command, place, name):
    name = str(project.parent / "precious") if name == "ABSOLUTE" else name
    file = project / "runs" / "lora-0" / "run.json"
    content = json.loads(file.read_text())
    (lambda run: place(run, name))(content)
    file.write_text(json.dumps(content))
    code, _, said = command("runs", "rm", "lora-0", "--runs", project / "runs")
    assert (code, (project / "runs" / "rows").is_dir()) == (2, True)
    assert "lora-0/run.json: found" in said
    assert "lora-0/run.json: " in command("runs", "list", "--runs", project / "runs")[2]
    code, _, said = command("runs", "rm", "knn-0", "--runs", project / "runs")
    assert (code, "lora-0/run.json" in said) == (1, True)
    code, listed, _ = command("reindex", "--runs", project / "runs", "--json")
    (skipped,) = json.loads(listed)["skipped"]
    assert (code, "lora-0/run.json" in skipped) == (0, True)


@pytest.mark.parametrize(
    "name", ["../precious", "/", "..", "rows", "trials", "verdicts", ".unfinished", "a\nb"]
)
def test_no_name_on_the_command_line_leads_out_of_the_store(project, command, name):
    code, _, said = command("runs", "rm", name, "--runs", project / "runs")
    assert (code, "next:" in said) == (2, True)
    assert (project / "runs" / "rows").is_dir()


@pytest.mark.parametrize("folder", ["rows", "verdicts", ".unfinished", "smoke"])
def test_a_run_in_a_folder_of_something_else_is_no_run(project, command, folder):
    (project / "runs" / folder).mkdir(exist_ok=True)
    run = json.loads((project / "runs" / "lora-0" / "run.json").read_text()) | {"run_id": folder}
    (project / "runs" / folder / "run.json").write_text(json.dumps(run))
    code, _, said = command("runs", "rm", folder, "--runs", project / "runs")
    assert (code, "which cannot be its own" in said) == (2, True)
    assert (project / "runs" / folder).is_dir()


def move_behind_link(project, *names):
    part = project.joinpath("runs", *names)
    elsewhere = project.parent / "elsewhere"
    part.rename(elsewhere)
    part.symlink_to(elsewhere)
    return elsewhere


def rows_of(project, run):
    return json.loads((project / "runs" / run / "run.json").read_text())["rows"]["support/test"]


@pytest.mark.parametrize("part", ["run", "rows", "row set"])
def test_a_link_in_a_store_is_named_before_anything_is_removed(project, command, part):
    names = {"run": ["lora-0"], "rows": ["rows"], "row set": ["rows", rows_of(project, "lora-0")]}[part]
    elsewhere = move_behind_link(project, *names)
    before = sorted(path.name for path in elsewhere.rglob("*"))
    code, _, said = command("runs", "rm", "lora-0", "--runs", project / "runs")
    assert (code, "found a link to" in said, "rm " in said) == (2, True, True)
    assert (project / "runs" / "lora-0" / "run.json").exists()
    assert sorted(path.name for path in elsewhere.rglob("*")) == before


def test_unused_rows_behind_a_link_are_named_and_stay(project, command):
    unused = project / "runs" / "rows" / "unused"
    unused.mkdir()
    (unused / "rows.parquet").write_bytes(b"")
    move_behind_link(project, "rows", "unused")
    code, _, said = command("runs", "rm", "--unused", "--yes", "--runs", project / "runs")
    assert (code, "found a link to" in said) == (2, True)
    assert (project.parent / "elsewhere" / "rows.parquet").exists()


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
    code, _, said = command("runs", "rm", "--unused", "--yes", "--runs", project / "runs")
    assert (code, "promote again" in said) == (2, True)


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "-x", "a/b", "~", "x" * 101])
@pytest.mark.parametrize("place", ["experiment", "task", "candidate"])
def test_a_name_in_an_experiment_file_is_one_of_a_file(tmp_path, command, name, place):
    names = {"experiment": "e", "task": "t", "candidate": "c"} | {place: name}
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "reference": "b"}\n')
    (tmp_path / "harness.yaml").write_text(
        json.dumps(
            {
                "name": names["experiment"],
                "target": {"name": names["task"], "data": {"test": "rows.jsonl"}},
                "candidates": {names["candidate"]: {"prompting": "zero_shot"}},
            }
        )
    )
    code, _, said = command("compare", "--dry-run", "-c", tmp_path / "harness.yaml")
    assert (code, "expected letters, digits and the signs _ . -" in said) == (2, True)


def run_writers(folder, seconds):
    store = Store(folder / "runs")
    complete(store, IDENTITY, make_rows(640))
    stores.save_run(store, make_run("first", [IDENTITY.digest]))
    run = json.loads((store.folder / "first" / "run.json").read_text("utf-8"))
    return store, keep_busy(store.folder, run, 8, seconds)


@pytest.mark.e2e
def test_eight_writers_lose_no_run_while_two_read(tmp_path):
    store, found = run_writers(tmp_path, 2)
    assert {run.run_id for run in stores.list_runs(store)} == {"first", *found.saved}
    assert len(found.saved) >= 8
    assert all(found.took_s.values())
