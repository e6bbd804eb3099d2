"""An index that an earlier version wrote is built anew from the folders by whoever opens it next."""

from dataclasses import replace

import duckdb
import pytest
from test_store import IDENTITY, complete, list_indexed_runs, make_rows, make_run

from harness import store as stores
from harness.store import Store, ingest

# As versions 1 to 3 held copies of all rows, and later ones tables of what is stored. Of an index of any earlier
# version nothing but the version in `meta` is looked at.
COPIES = """
CREATE TABLE runs (
    run_id VARCHAR, experiment VARCHAR, candidate VARCHAR, method VARCHAR, prompting VARCHAR,
    answer VARCHAR, seed BIGINT, state VARCHAR, created VARCHAR, record VARCHAR);
CREATE TABLE run_rows (run_id VARCHAR, task_split VARCHAR, rowset VARCHAR);
CREATE TABLE rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
CREATE TABLE rows (
    rowset VARCHAR, task VARCHAR, split VARCHAR, example_id VARCHAR, position BIGINT,
    status VARCHAR, text VARCHAR, prompt VARCHAR, "references" VARCHAR[], cluster VARCHAR,
    slice VARCHAR, gold_logprob DOUBLE, gold_bytes BIGINT, margin DOUBLE,
    n_prompt_tokens BIGINT, n_output_tokens BIGINT, compute_s DOUBLE, prompt_digest VARCHAR,
    output_digest VARCHAR, boundary_merged BOOLEAN, finish_reason VARCHAR, passages VARCHAR[],
    recall DOUBLE, attempt BIGINT, weight DOUBLE, error VARCHAR);
CREATE TABLE scores (rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[]);
CREATE TABLE meta (version BIGINT);
INSERT INTO meta VALUES ({version});
INSERT INTO runs VALUES ('old', 'desk', 'lora', 'lora', 'zero_shot', 'generate', 0, 'done', '2025-01-01',
    '{"run_id": "old", "experiment": "desk", "candidate": "lora", "method": "lora", "prompting": "zero_shot",
      "answer": "generate", "seed": 0, "base_model": "m", "weights_digest": "w", "base_digest": "b",
      "state": "done", "created": "2025-01-01", "rows": {"t/test": "abc"}, "recipe": {}}');
INSERT INTO run_rows VALUES ('old', 't/test', 'abc');
INSERT INTO rowsets VALUES ('abc', 3, 1);
INSERT INTO rows (rowset, task, split, example_id, position, status, text, prompt, "references", weight)
VALUES ('abc', 't', 'test', 'i0', 0, 'ok', 'same', 'Q0', ['a', 'b'], 1.0),
       ('abc', 't', 'test', 'i1', 1, 'ok', 'same', 'Q1', [], 1.0),
       ('abc', 't', 'test', 'i2', 2, 'error', '', 'Q1', ['it''s "so"'], 0.5);
INSERT INTO scores VALUES ('abc', 'i0', 'f1', [0.5, 1.0]), ('abc', 'i2', 'f1', NULL);
"""
STORED = """
CREATE SCHEMA stored;
CREATE TABLE stored.files (kind VARCHAR, path VARCHAR, modified_ns BIGINT, record JSON);
CREATE TABLE stored.run_rows (
    run_id VARCHAR, task VARCHAR, split VARCHAR, rowset VARCHAR, base_rowset VARCHAR,
    metrics MAP(VARCHAR, STRUCT(higher_is_better BOOLEAN, scale DOUBLE, worst DOUBLE)));
CREATE TABLE stored.rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
CREATE TABLE stored.scores (
    rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[], status VARCHAR, cluster VARCHAR,
    slice VARCHAR, weight DOUBLE);
CREATE TABLE meta (version BIGINT, written_by VARCHAR, folder VARCHAR);
INSERT INTO meta VALUES ({version}, '0.1.0', '/elsewhere');
INSERT INTO stored.run_rows VALUES ('old', 't', 'test', 'abc', '', MAP());
"""


@pytest.fixture(params=range(1, ingest.VERSION))
def old_store(request, tmp_path):
    store = Store(tmp_path / "runs")
    complete(store, IDENTITY, make_rows(3))
    stores.save_run(store, make_run("a", [IDENTITY.digest]))
    store.index.unlink()
    with duckdb.connect(str(store.index)) as db:
        db.execute((COPIES if request.param < 4 else STORED).replace("{version}", str(request.param)))
    return store


def test_an_old_index_is_queried_as_the_folders_are(old_store):
    assert stores.query(old_store, "SELECT run_id, count(*) FROM samples GROUP BY ALL").rows == [("a", 3)]
    assert list_indexed_runs(old_store) == ["a"]


def test_a_run_is_saved_beside_an_old_index_which_is_then_a_new_one(old_store):
    stores.save_run(old_store, make_run("b", []))
    assert list_indexed_runs(old_store) == ["a", "b"]
    with duckdb.connect(str(old_store.index), read_only=True) as db:
        assert db.execute("SELECT version FROM meta").fetchall() == [(ingest.VERSION,)]


def test_an_old_index_that_somebody_keeps_open_is_left_alone_and_its_store_queried(old_store):
    before = old_store.index.read_bytes()
    with duckdb.connect(str(old_store.index), read_only=True):
        assert stores.query(old_store, "SELECT run_id FROM runs").rows == [("a",)]
    assert old_store.index.read_bytes() == before


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
