"""An index that an earlier version wrote is built anew from the folders by whoever opens it next."""

from dataclasses import replace

import duckdb
import pytest
from test_store import IDENTITY, complete, list_indexed_runs, make_rows, make_run

from harness import store as stores
from harness.store import Store, ingest


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
    assert stores.query(store, "SELECT DISTINCT run_id, count(*) FROM samples GROUP BY ALL").rows == [
        ("a", 3)
    ]
