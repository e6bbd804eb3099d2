"""An index that an earlier version wrote is brought to the present schema, whatever is in it."""

import duckdb
import pytest

from harness import store as stores
from harness.store import Store, index

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
SCHEMAS = {1: V1, 2: V2}
ROWS = [
    ("i0", "same", "Q0", ["a", "b"], 1.0),
    ("i1", "same", "Q1", [], 1.0),
    ("i2", "", "Q1", ['it\'s "so"'], 0.5),
]


@pytest.fixture(params=SCHEMAS)
def old(request, tmp_path):
    store = Store(tmp_path / "runs")
    store.folder.mkdir()
    with duckdb.connect(str(store.index)) as db:
        db.execute(SCHEMAS[request.param])
    return store


def test_every_earlier_schema_is_kept_here():
    assert list(SCHEMAS) == list(range(1, len(index.MIGRATIONS)))


def test_an_old_index_is_read_whole_after_its_migration(old):
    assert [run.run_id for run in stores.list_runs(old)] == ["old"]
    with duckdb.connect(str(old.index), read_only=True) as db:
        query = 'SELECT example_id, text, prompt, "references", weight FROM samples ORDER BY position'
        assert db.execute(query).fetchall() == ROWS
        assert db.execute("SELECT count(*), count(DISTINCT key) FROM texts").fetchone() == (7, 7)
        assert db.execute("SELECT parts FROM scores ORDER BY example_id").fetchall() == [
            ([0.5, 1.0],),
            (None,),
        ]
        assert db.execute("SELECT max(version) FROM meta").fetchone() == (len(index.MIGRATIONS),)


def test_a_migration_that_fails_leaves_the_index_as_it_was(tmp_path):
    store = Store(tmp_path / "runs")
    store.folder.mkdir()
    with duckdb.connect(str(store.index)) as db:
        db.execute(V1 + "ALTER TABLE rows DROP COLUMN prompt;")
    before = columns(store)
    with pytest.raises(duckdb.Error, match="prompt"):
        stores.list_runs(store)
    assert columns(store) == before


def test_an_old_index_has_the_tables_of_a_new_one(old, tmp_path):
    stores.list_runs(old)
    new = Store(tmp_path / "new")
    new.folder.mkdir()
    stores.reindex(new)
    assert columns(old) == columns(new)


def columns(store):
    with duckdb.connect(str(store.index), read_only=True) as db:
        query = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"
        return sorted(db.execute(query).fetchall())
