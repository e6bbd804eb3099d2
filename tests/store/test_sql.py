"""SQL over what is stored: documented tables, queries of the docs, and errors with a next step."""

import csv
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_rows import EXACT, LOWER
from test_store import IDENTITY, complete, make_run, row
from typer.testing import CliRunner

from harness import frames
from harness import store as stores
from harness.analysis.comparison import compare_rows
from harness.cli import app
from harness.errors import UserError
from harness.experiment.verdict_records import record_verdict
from harness.records import MetricRange
from harness.spec import DecidePolicy, GatePolicy
from harness.store import TABLES, DecisionRecord, Store
from tests.fake_facts import verdict

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "sql.md"
QUERIES, (OF_README,) = (
    re.findall(r"```sql\n(.*?)```", page.read_text("utf-8"), re.DOTALL) for page in (DOCS, ROOT / "README.md")
)
BASE = replace(IDENTITY, weights_digest="b")
LORA = replace(IDENTITY, weights_digest="weights of lora")
DPO = replace(IDENTITY, weights_digest="weights of dpo")
POLICY = GatePolicy()
RIGHT = {"support": {"exact_match": MetricRange(True, 0.0, 1.0)}}


def answers(right):
    return [row(i, parts={"exact_match": (float(i in right),)}) for i in range(6)]


@pytest.fixture(scope="module")
def written_store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("written") / "runs")
    for identity, right in ((BASE, {0, 1, 2, 3}), (LORA, {0, 2, 3, 4}), (DPO, {0, 2, 5})):
        complete(store, identity, answers(right))
    key = "support/test"
    base = make_run("prompt", [], method="base", weights_digest="b", rows={key: BASE.digest}, metrics=RIGHT)
    stores.save_run(store, base)
    stores.save_run(store, make_run("lora", [], rows={key: LORA.digest}, metrics=RIGHT))
    stores.save_run(store, make_run("dpo", [], rows={key: DPO.digest}, metrics=RIGHT))
    return store


@pytest.fixture
def store(written_store, tmp_path):
    return Store(shutil.copytree(written_store.folder, tmp_path / "runs"))


def column(store, query):
    return [value for (value,) in stores.query(store, query).rows]


def sql(*words):
    return CliRunner().invoke(app, ["sql", *map(str, words)])


def test_the_items_that_every_fine_tune_lost_are_the_same_in_sql_and_in_pandas(store, monkeypatch):
    monkeypatch.chdir(store.folder.parent)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (program,), names = [block for block in blocks if "best" in block], {}
    exec(program, names)
    by_sql = stores.query(store, QUERIES[0]).rows
    assert [key for key, _ in names["lost"].items()] == [tuple(row[:3]) for row in by_sql]
    assert [row[1] for row in by_sql] == ["item-00001"]


def test_tables_have_the_columns_that_are_documented_and_queries_of_the_docs_are_answered(store):
    for table in TABLES:
        described = stores.query(store, f"SELECT column_name, column_type FROM (DESCRIBE {table.name})").rows
        assert described == [(c.name, c.type) for c in table.columns]
    assert all(stores.query(store, query).columns for query in QUERIES)


def test_a_delta_is_the_score_less_the_bases_and_names_what_docs_say_was_lost(store):
    lost = stores.query(store, OF_README.partition(";")[0]).rows
    assert lost == [row[:3] for row in stores.query(store, QUERIES[0]).rows]

    deltas = column(store, "SELECT delta FROM deltas WHERE run_id = 'lora' ORDER BY example_id")
    assert deltas == [0, -1, 0, 0, 1, 0]
    assert column(store, "SELECT count(*) FROM deltas WHERE run_id = 'prompt'") == [0]


def store_with_errors(store, metric, bounds, base, new):
    """Store two arms of scores, None where an answer failed, as a run `bad`; returns the rows."""
    identities = [replace(BASE, task_version="bad", weights_digest=w) for w in ("b", "weights of bad")]
    arms = []
    for identity, arm in zip(identities, (base, new), strict=True):
        parts = [{metric: None if x is None else (x,)} for x in arm]
        states = ["error" if x is None else "ok" for x in arm]
        arms.append([row(i, parts=parts[i], status=states[i]) for i in range(len(arm))])
        complete(store, identity, arms[-1])
    metrics, rows = {"support": {metric: bounds}}, {"support/test": identities[1].digest}
    stores.save_run(store, make_run("bad", [], rows=rows, metrics=metrics))
    return arms


@pytest.mark.parametrize("metric", [EXACT, LOWER], ids=["higher is better", "lower is better"])
def test_a_mean_delta_counts_failed_answers_as_a_comparison_does(store, metric):
    best, worst = metric.bounds[::-1] if metric.higher_is_better else metric.bounds
    base = [best] * 4 + [None] * 2
    arms = store_with_errors(store, metric.name, metric.range, base, [None] * 3 + [best, best, None])
    compared = compare_rows(metric, *arms, base_errors="bounds")
    assert compared.n == 4
    averages = stores.query(
        store,
        "SELECT avg(delta), avg(improvement), count(*) FILTER (failed = 'run'), count(*) FILTER (failed = 'base') "
        "FROM deltas WHERE run_id = 'bad'",
    ).rows
    assert averages == [(pytest.approx(compared.delta), pytest.approx(-0.75), 3, 1)]
    assert compared.delta == pytest.approx(0.75 * (worst - best))


def test_the_base_of_a_run_is_known_when_it_is_measured_after_it(tmp_path):
    store = Store(tmp_path / "runs")
    complete(store, LORA, answers({0}))
    stores.save_run(store, make_run("lora", [], rows={"support/test": LORA.digest}))
    assert column(store, "SELECT count(*) FROM deltas") == [0]
    complete(store, BASE, answers({1}))
    assert column(store, "SELECT sum(abs(delta)) FROM deltas") == [2]


def test_the_weights_behind_a_run_are_its_lineage(store):
    behind = {"fit_key": "fit-lora", "stands_on": {"fit-sft": "weights of sft"}}
    stores.save_run(store, make_run("dpo-2", [], training=behind, served_digest="nf4"))
    query = "SELECT role, weights_digest, fit_key FROM lineage WHERE run_id = 'dpo-2' ORDER BY role"
    assert stores.query(store, query).rows == [
        ("base", "b", None),
        ("behind", "weights of sft", "fit-sft"),
        ("own", "weights of dpo-2", "fit-lora"),
        ("served", "nf4", None),
    ]


def test_a_training_and_each_trial_of_its_search_stand_in_their_tables(store):
    whole = {"params": {"r": 2}, "validation": 0.5, "chosen": True, "fit_key": "a", "wall_s": 2.0}
    pruned = {"params": {"r": 4}, "validation": 0.1, "pruned_at": 6, "points": [[6, 0.1]], "fit_key": "b"}
    stores.save_run(store, make_run("found", [], training={"wall_s": 3.0, "sweep": [whole, pruned]}))
    query = "SELECT run_id, wall_s FROM training WHERE wall_s IS NOT NULL"
    assert stores.query(store, query).rows == [("found", 3.0)]
    trials = "SELECT trial, params->>'r', validation, pruned_at, chosen, fit_key FROM trials ORDER BY trial"
    assert stores.query(store, trials).rows == [(1, "2", 0.5, None, True, "a"), (2, "4", 0.1, 6, False, "b")]


def test_a_decisions_inputs_are_those_of_its_last_comparison(store):
    for target in (0.5, 0.75):
        facts = [{"run_id": "lora", "name": "lora", "seed": 0, "target": {"score": target}}]
        decision = DecisionRecord("desk", "f1", "prompt", "Ship the prompt.", facts, "0.1.0", "2025-01-01")
        stores.save_decision(store, decision)
    query = "SELECT experiment, run_id, candidate, metric, target, gain, action FROM decision_inputs"
    assert stores.query(store, query).rows == [("desk", "lora", "lora", "f1", 0.75, None, "prompt")]


def test_an_improvement_is_above_0_where_a_lower_score_is_better(store):
    store_with_errors(store, "wer", MetricRange(False, 0.0, None), [0.5, 0.5], [0.2, 0.2])
    query = "SELECT DISTINCT delta, improvement, higher_is_better, scale FROM deltas WHERE run_id = 'bad'"
    assert stores.query(store, query).rows == [(pytest.approx(-0.3), pytest.approx(0.3), False, 1.0)]
    assert column(store, "SELECT DISTINCT higher_is_better FROM scores WHERE run_id = 'bad'") == [False]
    lost = stores.query(store, QUERIES[0]).rows
    assert [name for _, _, name, _ in lost] == ["exact_match"]


# Verdicts


def store_verdict(store, run_id, policy=POLICY):
    run = stores.get_run(store, run_id)
    experiment = SimpleNamespace(gate=policy, decide=DecidePolicy())
    study = SimpleNamespace(experiment=experiment, suite_tasks=list)
    stores.save_verdict(store, record_verdict(study, run, verdict("fail")))


def query_stale(store):
    return dict(stores.query(store, "SELECT run_id, bool_and(stale) FROM verdicts GROUP BY ALL").rows)


def edit_verdict(store, **changes):
    path = next((store.folder / "verdicts" / "lora").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_a_verdict_is_stale_where_rows_version_or_policy_are_others_since(store):
    store_verdict(store, "lora")
    edit_verdict(store, created="2000-01-01")
    store_verdict(store, "dpo", GatePolicy(each=0.1))
    assert query_stale(store) == {"lora": True, "dpo": False}
    stores.remove_run(store, "dpo")
    assert query_stale(store) == {"lora": False}
    edit_verdict(store, harness="0.0.1")
    assert query_stale(store) == {"lora": True}
    store_verdict(store, "lora")
    stores.save_run(store, replace(stores.get_run(store, "lora"), rows={"support/test": BASE.digest}))
    assert query_stale(store) == {"lora": True}


# The verb


def test_a_query_is_printed_as_a_table_json_and_csv(store):
    query = "SELECT run_id, trained FROM runs ORDER BY run_id"
    table = sql(query, "--runs", store.folder).stdout.splitlines()
    cells = [line.split() for line in table]
    assert cells == [["run_id", "trained"], ["dpo", "True"], ["lora", "True"], ["prompt", "False"]]
    plain = json.loads(sql(query, "--runs", store.folder, "--json").stdout)
    assert plain[0] == {"run_id": "dpo", "trained": True}
    lines = sql(query, "--runs", store.folder, "--csv").stdout.splitlines()
    assert list(csv.reader(lines))[:2] == [["run_id", "trained"], ["dpo", "True"]]


def test_the_tables_are_listed_with_every_column_without_a_store(tmp_path):
    listed = json.loads(sql("--tables", "--json", "--runs", tmp_path).stdout)
    assert len(listed) == sum(len(table.columns) for table in TABLES)
    assert listed[0].keys() == {"table", "column", "type", "unit", "meaning"}


def test_a_query_that_cannot_be_answered_is_refused_with_a_next_step(store):
    for query, expected in {
        "SELECT * FROM score": "did you mean 'scores'", "SELECT skore FROM scores": "score",
        "SELEC 1": "syntax error", "": "no statement", "DELETE FROM stored.files": "expected one SELECT",
        "SELECT 1; SELECT 2": "expected one SELECT", "COPY runs TO 'runs.csv'": "expected one SELECT",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=r"found .*; expected .*; next: ") as refused:
            stores.query(store, query)
        assert expected in str(refused.value)


SECRET = "the key of the safe"
OUTSIDE = [
    *(f"FROM {reader}('{{file}}')" for reader in ("read_csv", "read_text", "glob", "read_parquet")),
    *("FROM '{file}'", "FROM '{file}.parquet'", "FROM read_text('{runs}/rows/../../safe.csv')"),
    *("FROM read_text('{runs}/harness.duckdb')", "FROM read_csv('http://127.0.0.1:9/x.csv')"),
    "FROM frame_of_python", "FROM glob('/etc/*')", "FROM duckdb_secrets()", "FROM query('FROM ''{file}''')",
    "FROM enable_logging(storage='file', storage_path='{file}.log')",
    "FROM enable_profiling(save_location='{file}.log')", "COPY (SELECT 1) TO '{file}.log'", "ATTACH '{file}.log'",
    "INSTALL httpfs", "LOAD httpfs", "SET enable_external_access = true",
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "form"),
    [*((query, "--csv") for query in OUTSIDE), (OUTSIDE[0], "frames"), ("FROM frame_of_python", "frames")],
)
def test_a_query_reads_and_writes_no_file_but_the_stored_rows(tmp_path, store, command, query, form):
    (tmp_path / "safe.csv").write_text(SECRET)
    written = query.format(file=tmp_path / "safe.csv", runs=store.folder)
    if form == "frames":
        frame_of_python = frames.runs(store.folder)
        assert len(frame_of_python) == 3
        with pytest.raises(UserError, match="next: "):
            frames.query(written, store.folder)
    else:
        code, stdout, stderr = command("sql", written, "--runs", store.folder, form)
        assert (code, stdout, "expected" in stderr, SECRET in stderr) == (2, "", True, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "safe.csv"]


@pytest.mark.e2e
def test_queries_of_several_threads_are_all_answered(store):
    query = "SELECT count(text) FROM samples"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: column(store, query), range(8))) == [[18]] * 8


def test_no_text_in_csv_is_a_formula(store):
    query = "SELECT '=1+1' AS \"=a\", '\x1b[31m@SUM(1)' AS b, -0.5 AS c, '-0.5' AS d, 'a\nb' AS e"
    lines = sql(query, "--runs", store.folder, "--csv").stdout
    assert lines == "'=a,b,c,d,e\n'=1+1,'@SUM(1),-0.5,'-0.5,\"a\nb\"\n"


def test_rows_that_are_damaged_are_named(store):
    store.parquet(LORA.digest).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=rf"{LORA.digest}.*next: harness compare"):
        stores.query(store, "SELECT count(text) FROM samples")


def test_a_folder_without_runs_is_refused_and_stays_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"found no such folder.*next: make one: harness compare"):
        stores.query(Store(tmp_path / "nowhere"), "FROM runs")
    with pytest.raises(UserError, match="found no stored run"):
        stores.query(Store(tmp_path), "FROM runs")
    with pytest.raises(UserError, match="no stored run"):
        frames.runs(tmp_path)
    assert list(tmp_path.iterdir()) == []
