"""An index that an earlier version wrote is built anew from the folders by whoever opens it next."""

from dataclasses import replace

import duckdb
import pytest
from test_store import IDENTITY, complete, indexed_runs, make_rows, make_run

from harness import store as stores
from harness.store import Store, ingest

# The schemas as they were released, and rows of them. A schema is never changed here: a new one is added.
V1 = """
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
INSERT INTO meta VALUES (1);
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
V2 = """
CREATE TABLE runs (
    run_id VARCHAR, experiment VARCHAR, candidate VARCHAR, method VARCHAR, prompting VARCHAR,
    answer VARCHAR, seed BIGINT, state VARCHAR, created VARCHAR, record VARCHAR);
CREATE TABLE run_rows (run_id VARCHAR, task_split VARCHAR, rowset VARCHAR);
CREATE TABLE rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
CREATE TABLE rows (
    rowset VARCHAR, task VARCHAR, split VARCHAR, example_id VARCHAR, position BIGINT,
    status VARCHAR, cluster VARCHAR,
    slice VARCHAR, gold_logprob DOUBLE, gold_bytes BIGINT, margin DOUBLE,
    n_prompt_tokens BIGINT, n_output_tokens BIGINT, compute_s DOUBLE, prompt_digest VARCHAR,
    output_digest VARCHAR, boundary_merged BOOLEAN, finish_reason VARCHAR, passages VARCHAR[],
    recall DOUBLE, attempt BIGINT, weight DOUBLE, error VARCHAR,
    text_key UBIGINT, prompt_key UBIGINT, references_key UBIGINT);
CREATE TABLE scores (rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[]);
CREATE TABLE texts (key UBIGINT, text VARCHAR);
CREATE VIEW samples AS
SELECT rows.* EXCLUDE (text_key, prompt_key, references_key), answer.text AS text,
    asked.text AS prompt, from_json(accepted.text, '["VARCHAR"]') AS "references"
FROM rows
JOIN texts AS answer ON answer.key = text_key
JOIN texts AS asked ON asked.key = prompt_key
JOIN texts AS accepted ON accepted.key = references_key;
CREATE TABLE meta (version BIGINT);
INSERT INTO meta VALUES (1), (2);
INSERT INTO runs VALUES ('old', 'desk', 'lora', 'lora', 'zero_shot', 'generate', 0, 'done', '2025-01-01',
    '{"run_id": "old", "experiment": "desk", "candidate": "lora", "method": "lora", "prompting": "zero_shot",
      "answer": "generate", "seed": 0, "base_model": "m", "weights_digest": "w", "base_digest": "b",
      "state": "done", "created": "2025-01-01", "rows": {"t/test": "abc"}, "recipe": {}}');
INSERT INTO run_rows VALUES ('old', 't/test', 'abc');
INSERT INTO rowsets VALUES ('abc', 3, 1);
CREATE TEMP TABLE told AS FROM (VALUES
    ('i0', 0, 'ok', 'same', 'Q0', '["a","b"]', 1.0),
    ('i1', 1, 'ok', 'same', 'Q1', '[]', 1.0),
    ('i2', 2, 'error', '', 'Q1', '["it''s \\"so\\""]', 0.5)
) AS t(example_id, position, status, text, prompt, refs, weight);
INSERT INTO rows BY NAME
SELECT 'abc' AS rowset, 't' AS task, 'test' AS split, example_id, position, status, weight,
    md5_number_lower(text) AS text_key, md5_number_lower(prompt) AS prompt_key,
    md5_number_lower(refs) AS references_key
FROM told;
INSERT INTO texts SELECT DISTINCT md5_number_lower(t), t
FROM (SELECT unnest([text, prompt, refs]) AS t FROM told);
INSERT INTO scores VALUES ('abc', 'i0', 'f1', [0.5, 1.0]), ('abc', 'i2', 'f1', NULL);
"""
V3 = (
    V2
    + """
INSERT INTO meta VALUES (3);
CREATE TABLE ratings (
    rating_id VARCHAR, rater VARCHAR, created VARCHAR, task VARCHAR, split VARCHAR,
    example_id VARCHAR, run_a VARCHAR, run_b VARCHAR, rows_a VARCHAR, rows_b VARCHAR,
    left_side VARCHAR, choice VARCHAR, seconds DOUBLE);
"""
)
V4 = """
CREATE SCHEMA stored;
CREATE TABLE stored.files (kind VARCHAR, path VARCHAR, modified_ns BIGINT, record JSON);
CREATE TABLE stored.run_rows (
    run_id VARCHAR, task VARCHAR, split VARCHAR, rowset VARCHAR, base_rowset VARCHAR);
CREATE TABLE stored.rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
CREATE TABLE stored.scores (
    rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[], status VARCHAR, cluster VARCHAR,
    slice VARCHAR, weight DOUBLE);
CREATE TABLE meta (version BIGINT, written_by VARCHAR, folder VARCHAR);
INSERT INTO meta VALUES (4, '0.1.0', '/elsewhere');
INSERT INTO stored.run_rows VALUES ('old', 't', 'test', 'abc', '');
"""
V5 = """
CREATE SCHEMA stored;
CREATE TABLE stored.files (kind VARCHAR, path VARCHAR, modified_ns BIGINT, record JSON);
CREATE TABLE stored.run_rows (
    run_id VARCHAR, task VARCHAR, split VARCHAR, rowset VARCHAR, base_rowset VARCHAR,
    metrics MAP(VARCHAR, STRUCT(higher_is_better BOOLEAN, scale DOUBLE)));
CREATE TABLE stored.rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
CREATE TABLE stored.scores (
    rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[], status VARCHAR, cluster VARCHAR,
    slice VARCHAR, weight DOUBLE);
CREATE TABLE meta (version BIGINT, written_by VARCHAR, folder VARCHAR);
INSERT INTO meta VALUES (5, '0.1.0', '/elsewhere');
INSERT INTO stored.run_rows VALUES ('old', 't', 'test', 'abc', '', MAP {'f1': {higher_is_better: true, scale: 100}});
"""
V6 = (
    V5.replace("scale DOUBLE)", "scale DOUBLE, worst DOUBLE)")
    .replace("VALUES (5", "VALUES (6")
    .replace("scale: 100}", "scale: 100, worst: 0}")
)
SCHEMAS = {1: V1, 2: V2, 3: V3, 4: V4, 5: V5, 6: V6}


@pytest.fixture(params=SCHEMAS)
def old(request, tmp_path):
    store = Store(tmp_path / "runs")
    complete(store, IDENTITY, make_rows(3))
    stores.save_run(store, make_run("a", [IDENTITY.digest]))
    store.index.unlink()
    with duckdb.connect(str(store.index)) as db:
        db.execute(SCHEMAS[request.param])
    return store


def test_every_earlier_schema_is_kept_here():
    assert list(SCHEMAS) == list(range(1, ingest.VERSION))


def test_an_old_index_is_queried_as_the_folders_are(old):
    assert stores.query(old, "SELECT run_id, count(*) FROM samples GROUP BY ALL").rows == [("a", 3)]
    assert indexed_runs(old) == ["a"]


def test_a_run_is_saved_beside_an_old_index_which_is_then_a_new_one(old):
    stores.save_run(old, make_run("b", []))
    assert indexed_runs(old) == ["a", "b"]
    with duckdb.connect(str(old.index), read_only=True) as db:
        assert db.execute("SELECT version FROM meta").fetchall() == [(ingest.VERSION,)]


def test_an_old_index_that_somebody_keeps_open_is_left_alone_and_its_store_queried(old):
    before = old.index.read_bytes()
    with duckdb.connect(str(old.index), read_only=True):
        assert stores.query(old, "SELECT run_id FROM runs").rows == [("a",)]
    assert old.index.read_bytes() == before


def test_an_index_of_another_version_of_harness_is_built_anew(old):
    stores.reindex(old)
    with duckdb.connect(str(old.index)) as db:
        db.execute("UPDATE meta SET written_by = '0.0.1'")
        db.execute("DROP VIEW runs")
    assert stores.query(old, "SELECT run_id FROM runs").rows == [("a",)]


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
    assert indexed_runs(store) == ["a"]
    assert stores.query(store, "SELECT DISTINCT run_id, count(*) FROM samples GROUP BY ALL").rows == [
        ("a", 3)
    ]
