"""Indexes, reports and row sets' files that are kept: read back, and made anew where they are old."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from test_store import IDENTITY, OTHER, complete, list_indexed_runs, make_rows, make_run, row, save_two_runs

import harness
from harness import report
from harness import store as stores
from harness.errors import UserError
from harness.store import TABLES, Store, ingest


@pytest.fixture
def old_store(tmp_path):
    store = Store(tmp_path / "runs")
    complete(store, IDENTITY, make_rows(3))
    stores.save_run(store, make_run("a", [IDENTITY.digest]))
    store.index.unlink()
    with duckdb.connect(str(store.index)) as db:
        db.execute(f"CREATE TABLE meta AS SELECT {ingest.VERSION - 1} AS version")
    return store


@pytest.mark.e2e
def test_an_old_index_is_queried_as_the_folders_are_also_while_it_is_kept_open(old_store):
    before = old_store.index.read_bytes()
    with duckdb.connect(str(old_store.index), read_only=True):
        assert stores.query(old_store, "SELECT run_id FROM runs").rows == [("a",)]
    assert old_store.index.read_bytes() == before
    assert stores.query(old_store, "SELECT run_id, count(*) FROM samples GROUP BY ALL").rows == [("a", 3)]
    assert list_indexed_runs(old_store) == ["a"]


def test_a_run_is_saved_beside_an_old_index_which_is_then_a_new_one(old_store):
    stores.save_run(old_store, make_run("b", []))
    assert list_indexed_runs(old_store) == ["a", "b"]
    with duckdb.connect(str(old_store.index), read_only=True) as db:
        assert db.execute("SELECT version FROM meta").fetchall() == [(ingest.VERSION,)]


def test_an_index_of_another_version_of_harness_is_built_anew(old_store):
    stores.reindex(old_store)
    with duckdb.connect(str(old_store.index)) as db:
        db.execute("UPDATE meta SET written_by = '0.0.1'")
        db.execute("DROP VIEW runs")
    assert stores.query(old_store, "SELECT run_id FROM runs").rows == [("a",)]


def test_a_damaged_first_file_of_rows_keeps_nobody_from_saving_a_run_or_querying_the_others(tmp_path):
    store = Store(tmp_path / "runs")
    digests = []
    for task in ("sums", "facts"):
        identity = replace(IDENTITY, task=task)
        complete(store, identity, make_rows(3))
        digests.append(identity.digest)
    first, second = sorted(digests)
    store.parquet(first).write_bytes(store.parquet(first).read_bytes()[:40])
    stores.save_run(store, make_run("a", [second]))
    assert list_indexed_runs(store) == ["a"]
    expected = [("a", 3)]
    assert stores.query(store, "SELECT DISTINCT run_id, count(*) FROM samples GROUP BY ALL").rows == expected


ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    store = Store(tmp_path / "runs")
    save_two_runs(store)
    return store.folder


@pytest.mark.parametrize(
    ("name", "n"), [("runs", 2), ("scores", 145), ("samples", 145), ("deltas", 0), ("verdicts", 0)]
)
def test_a_frame_has_the_documented_columns_and_a_row_for_each_of_the_table(folder, name, n):
    (table,) = (table for table in TABLES if table.name == name)
    frame = getattr(harness.frames, name)(folder)
    assert list(frame.columns) == [column.name for column in table.columns]
    assert len(frame) == n


def test_importing_the_package_loads_no_pandas():
    program = "import sys, harness; sys.exit(any(name in sys.modules for name in ('pandas', 'duckdb')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "runs")
    for identity, n in ((IDENTITY, 3), (OTHER, 5)):
        write(made, identity, n)
    return made


def write(store, identity, n):
    stores.append_block(store, identity, 0, [row(i, prompt=f"question {i} of {n}") for i in range(n)])
    stores.complete_rows(store, identity, n)


def ids(n):
    return [row(i).example_id for i in range(n)]


def test_sets_whose_ids_were_read_together_are_complete_and_one_that_grows_is_seen_to(store):
    longer = replace(IDENTITY, task="other")
    stores.read_ids(store, [IDENTITY.digest, OTHER.digest, longer.digest])
    assert stores.has_rows(store, IDENTITY, ids(3))
    assert stores.has_rows(store, OTHER, ids(5))
    assert not stores.has_rows(store, IDENTITY, ids(4))
    assert not stores.has_rows(store, longer, ids(1))
    write(store, IDENTITY, 4)
    assert stores.has_rows(store, IDENTITY, ids(4))


def test_a_damaged_file_among_others_has_no_ids_and_does_not_hide_those_of_the_others(store):
    path = store.parquet(OTHER.digest)
    path.write_bytes(path.read_bytes()[:-20])
    stores.read_ids(store, [IDENTITY.digest, OTHER.digest])
    assert stores.has_rows(store, IDENTITY, ids(3))
    assert not stores.has_rows(store, OTHER, ids(5))


def test_a_report_read_back_is_the_same(finished_run, tmp_path):
    report.write(finished_run[1], tmp_path)
    (path,) = report.kept_reports(tmp_path)
    found = report.read(path)
    assert report.to_json(found) == report.to_json(finished_run[1])
    assert report.markdown(report.experiment_document(found)) == report.markdown(
        report.experiment_document(finished_run[1])
    )
    assert found.policy == finished_run[1].policy


def test_a_report_of_another_version_is_read_as_far_as_it_goes(finished_run, tmp_path):
    report.write(finished_run[1], tmp_path)
    (path,) = report.kept_reports(tmp_path)
    plain = json.loads(path.read_text())
    plain["later"] = plain["facts"][0]["later"] = {"unknown": 1}
    del plain["policy"]
    path.write_text(json.dumps(plain))
    found = report.read(path)
    assert found.policy is None
    assert [f.label for f in found.facts] == [f.label for f in finished_run[1].facts]


@pytest.mark.parametrize("text", ["", "[]", '{"experiment": "x"}', '{"experiment": "x", "facts": 3}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no report"):
        report.read(path)


def test_files_that_are_no_reports_are_not_listed(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert report.kept_reports(tmp_path) == []
    assert report.kept_reports(tmp_path / "absent") == []
