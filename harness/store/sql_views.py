"""SQL views: the tables that people query, each a view of the index with its columns, units and meanings.

`harness sql --tables` and the docs are generated from it. Unknown values are NULL.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness.records import PARITY, SERVING, TRAINING, Figure


class Column(NamedTuple):
    """A column: its name, DuckDB type, unit (may be empty), meaning, and JSON path in a record."""

    name: str
    type: str
    unit: str
    meaning: str
    place: str = ""


class Table(NamedTuple):
    """A view: its name, the meaning of a row, its columns, and its query."""

    name: str
    row: str
    columns: tuple[Column, ...]
    query: str


def _view(
    name: str,
    row: str,
    columns: tuple[Column, ...],
    source: str,
    *,
    record: str = "record",
    sql: Mapping[str, str] | None = None,
) -> Table:
    """Build a view; a column's SQL is its path in the JSON `record` unless `sql` gives another."""
    values = {c.name: f"({record}->>'{c.place or c.name}')::{c.type}" for c in columns}
    values = (values if record else {c.name: f'"{c.name}"' for c in columns}) | dict(sql or {})
    selected = ", ".join(f'{value} AS "{column_name}"' for column_name, value in values.items())
    return Table(name, row, columns, f"SELECT {selected} FROM {source}")


def _figures(figures: Iterable[Figure]) -> tuple[Column, ...]:
    return tuple(Column(f.name, f.type, f.unit, f.meaning) for f in figures if f.type)


_RUN_ID = Column("run_id", "VARCHAR", "", "the run, a folder of the store")
_TASK = Column("task", "VARCHAR", "", "the task")
_SPLIT = Column("split", "VARCHAR", "", "train, validation or test")
_ROWSET = Column("rowset", "VARCHAR", "", "digest of the row set, the folder runs/rows/<digest>")
_ITEM = Column("example_id", "VARCHAR", "", "the item")
_METRIC = Column("metric", "VARCHAR", "", "the metric")
_BETTER = Column("higher_is_better", "BOOLEAN", "", "the metric's direction; NULL: not known")
_SCALE = Column("scale", "DOUBLE", "", "100: rates in [0, 1], shown in percent; 1: the metric's own unit")
_STATUSES = "ok, unparsable, truncated, refused, incomplete (some of several answers failed) or error"
_STATUS = Column("status", "VARCHAR", "", _STATUSES)
_TEXT = Column("text", "VARCHAR", "", "the answer")
_PARTS = Column("parts", "MAP(VARCHAR, DOUBLE[])", "the metrics'", "each metric's parts")
_N_PROMPT = Column("n_prompt_tokens", "BIGINT", "tokens", "length of the prompt")
_N_OUTPUT = Column("n_output_tokens", "BIGINT", "tokens", "length of the answer")
_ERROR = Column("error", "VARCHAR", "", "why there is no answer; empty where there is one")
_CLUSTER = Column("cluster", "VARCHAR", "", "the family of items that it belongs to; empty: its own")
_SLICE = Column("slice", "VARCHAR", "", "the part of the task that it belongs to; empty: none")
_WEIGHT = Column("weight", "DOUBLE", "items", "how many items of the task it stands for; 1 unless sampled")
_CREATED = Column("created", "VARCHAR", "ISO 8601", "when it was written")
_EXPERIMENT = Column("experiment", "VARCHAR", "", "the experiment's name")
_CANDIDATE = Column("candidate", "VARCHAR", "", "the candidate's name in harness.yaml")
_SEED = Column("seed", "BIGINT", "", "the seed that it was trained with")
_ROW = (_RUN_ID, _TASK, _SPLIT, _ROWSET, _ITEM)  # identify a row of a run
_RUN = (_RUN_ID, _EXPERIMENT, _CANDIDATE)  # identify a run
_COUNTED = (_CLUSTER, _SLICE, _WEIGHT, _BETTER, _SCALE)  # how a score counts

_RUNS = _view(
    "runs",
    "one candidate and one seed, trained and evaluated",
    (
        *_RUN,
        Column("method", "VARCHAR", "", "how its weights were made, as `harness ls methods` names it"),
        Column("prompting", "VARCHAR", "", "zero_shot, few_shot, rag …"),
        Column("answer", "VARCHAR", "", "generate or rank"),
        _SEED,
        Column("state", "VARCHAR", "", "done or failed"),
        Column("error", "VARCHAR", "", "why it failed; empty where it did not"),
        _CREATED,
        Column("base_model", "VARCHAR", "", "the base model's name"),
        Column("trained", "BOOLEAN", "", "whether its weights are other than the base's; false if it failed"),
        *(f._replace(place="$.latency.p50_s") for f in _figures(SERVING) if f.name == "latency_p50_s"),
        Column("device", "VARCHAR", "", "the machine that it was measured on", "$.provenance.device"),
        Column("harness", "VARCHAR", "", "the version of harness that made it", "$.provenance.harness"),
        Column("git_sha", "VARCHAR", "", "the commit that was checked out", "$.provenance.git_sha"),
        Column("record", "JSON", "", "all of runs/<run_id>/run.json: recipe, training, provenance"),
    ),
    "stored.files WHERE kind = 'run'",
    sql={"trained": "(record->>'weights_digest') NOT IN ('', record->>'base_digest')", "record": "record"},
)
_SCORES = _view(
    "scores",
    "one item of one run, scored by one metric",
    (
        *_ROW,
        _METRIC,
        Column("score", "DOUBLE", "the metric's", "the item's score; NULL: not scored, or several parts"),
        Column("parts", "DOUBLE[]", "the metric's", "what the metric aggregates over items"),
        _STATUS,
        *_COUNTED,
    ),
    "stored.run_rows JOIN stored.scores USING (rowset)",
    record="",
    sql={"score": "CASE WHEN len(parts) = 1 THEN parts[1] END"}
    | {name: f"metrics[metric].{name}" for name in ("higher_is_better", "scale")},
)
# Rows of files, named by the folder of their row set.
_FILES = "stored.run_rows JOIN (SELECT parse_path(filename)[{}] AS rowset, {} FROM {}) USING (rowset)"
_SAMPLES = _view(
    "samples",
    "one item of one run, with its prompt and answer",
    (
        *_ROW,
        Column("position", "BIGINT", "", "the item's place in the task, from 0"),
        *(_STATUS, _TEXT),
        Column("prompt", "VARCHAR", "", "the question of the item, without system text, shots and passages"),
        Column("references", "VARCHAR[]", "", "the accepted answers"),
        *(_PARTS, _CLUSTER, _SLICE),
        Column("gold_logprob", "DOUBLE", "nats", "log-probability of the reference"),
        Column("gold_bytes", "BIGINT", "bytes", "length of the reference"),
        Column("margin", "DOUBLE", "nats", "log p of the right choice − log p of the best other one"),
        *(_N_PROMPT, _N_OUTPUT),
        Column("compute_s", "DOUBLE", "s", "the item's share of its batch's time"),
        Column("prompt_digest", "VARCHAR", "", "digest of the prompt's tokens"),
        Column("output_digest", "VARCHAR", "", "digest of the answer"),
        Column("boundary_merged", "BOOLEAN", "", "whether a token spans the end of prompt and the choice"),
        Column("finish_reason", "VARCHAR", "", "stop, length, ranked or error"),
        Column("passages", "VARCHAR[]", "", "documents that retrieval put into the prompt"),
        Column("recall", "DOUBLE", "share", "share of the needed documents among the passages"),
        Column("attempt", "BIGINT", "", "which attempt succeeded, from 1"),
        _WEIGHT,
        _ERROR,
    ),
    _FILES.format(-2, "* EXCLUDE (task, split)", "{rows}"),
    record="",
)
_ANSWERS = _view(
    "answers",
    "one answer sampled for an item of a run whose recipe has decoding",
    (
        *_ROW,
        Column("sample", "BIGINT", "", "the answer's place among those of the item, from 0"),
        *(_STATUS, _TEXT),
        _PARTS,
        Column("finish_reason", "VARCHAR", "", "stop, length or error"),
        *(_N_PROMPT, _N_OUTPUT),
        Column("compute_s", "DOUBLE", "s", "the answer's share of its batch's time"),
        Column("mean_logprob", "DOUBLE", "nats", "mean log-probability of its tokens; NULL: not requested"),
        _ERROR,
    ),
    _FILES.format(-3, '*, "index" AS sample', "{samples}"),
    record="",
)
_DELTAS = Table(
    "deltas",
    "one item of one run with its own base's answer to the same item, by one metric",
    (
        *(_RUN_ID, _TASK, _SPLIT, _ITEM, _METRIC),
        Column("base_score", "DOUBLE", "the metric's", "score of the base, equal but for the weights"),
        Column("score", "DOUBLE", "the metric's", "the run's score; the worst where its answer failed"),
        Column("delta", "DOUBLE", "the metric's", "score − base_score; NULL where either is unknown"),
        Column("failed", "VARCHAR", "", "which of run and base did not answer; empty: both did"),
        *_COUNTED,
        Column("improvement", "DOUBLE", "the metric's", "delta, where lower is better its negative"),
    ),
    """
    SELECT run_id, task, split, new.example_id, new.metric, base.parts[1] AS base_score,
        CASE WHEN new.parts IS NULL THEN metrics[new.metric].worst ELSE new.parts[1] END AS score,
        score - base_score AS delta,
        CASE WHEN new.parts IS NULL THEN 'run' WHEN base.parts IS NULL THEN 'base' ELSE '' END AS failed,
        new.cluster, new.slice, new.weight,
        metrics[new.metric].higher_is_better AS higher_is_better, metrics[new.metric].scale AS scale,
        delta * CASE WHEN higher_is_better THEN 1 WHEN NOT higher_is_better THEN -1 END AS improvement
    FROM stored.run_rows
    JOIN stored.scores AS new USING (rowset)
    JOIN stored.scores AS base ON base.rowset = base_rowset AND base.example_id = new.example_id
        AND base.metric = new.metric
    WHERE len(coalesce(new.parts, base.parts)) = 1 AND len(coalesce(base.parts, new.parts)) = 1
    """,
)
_VERDICTS = _view(
    "verdicts",
    "the gate's verdict on one run against one baseline under one policy",
    (
        *(*_RUN, _SEED),
        Column("baseline", "VARCHAR", "", "the base, or the champion by its run"),
        Column("outcome", "VARCHAR", "", "pass, fail, inconclusive or harness-drift"),
        Column("sentence", "VARCHAR", "", "the reason in words"),
        Column("delta", "DOUBLE", "share", "mean change over admitted capability tasks", "$.macro.score"),
        Column("low", "DOUBLE", "share", "lower end of its 95 % interval", "$.macro.low"),
        Column("high", "DOUBLE", "share", "upper end of its 95 % interval", "$.macro.high"),
        Column("n", "BIGINT", "items", "how many items it rests on", "$.macro.n"),
        Column("lost", "BIGINT", "items", "items that got worse"),
        Column("gained", "BIGINT", "items", "items that got better"),
        Column("items_needed", "BIGINT", "items", "how many more would probably settle the verdict"),
        Column("policy_digest", "VARCHAR", "", "digest of the settings that it was judged by"),
        Column("harness", "VARCHAR", "", "the version of harness that judged"),
        _CREATED,
        Column("stale", "BOOLEAN", "", "whether run, rows, policy or version of harness are others by now"),
        Column("record", "JSON", "", "all of its file: every rule with its numbers, and the policy"),
    ),
    """(
        SELECT record, max_by(record->>'policy_digest', record->>'created')
            OVER (PARTITION BY record->>'experiment') AS newest_policy
        FROM stored.files WHERE kind = 'verdict')
    LEFT JOIN (
        SELECT record->>'run_id' AS of, record->'rows' AS rows_now FROM stored.files WHERE kind = 'run')
        ON of = record->>'run_id'
    """,
    sql={
        "record": "record",
        "stale": """coalesce(rows_now <> (record->'rows'), true)
            OR (record->>'policy_digest') <> newest_policy
            OR (record->>'harness') <> (SELECT written_by FROM meta)""",
    },
)
_TRAINING = _view(
    "training",
    "what the training of one run took",
    (_RUN_ID, *_figures(TRAINING)),
    "stored.files WHERE kind = 'run' AND (record->>'$.training.wall_s') IS NOT NULL",
    record="record->'training'",
    sql={"run_id": "record->>'run_id'"},
)
_PARITY = _view(
    "parity",
    "an artefact with the run that it was exported from",
    (_RUN_ID, *_figures(PARITY)),
    "stored.files WHERE kind = 'run' AND (record->'parity') IS NOT NULL",
    record="record->'parity'",
    sql={"run_id": "record->>'run_id'"},
)
_TRIALS = _view(
    "trials",
    "one trial of the sweep or search of one run",
    (
        _RUN_ID,
        Column("trial", "BIGINT", "", "its place in the order in which they were tried, from 1"),
        Column("params", "JSON", "", "the parameters that were tried"),
        Column("validation", "DOUBLE", "the metric's", "its score on validation; NULL: it failed"),
        Column("forgetting", "DOUBLE", "share", "mean loss of capability on general items for validation"),
        Column("pruned_at", "BIGINT", "", "the step at which a pruner ended it; NULL: it was trained whole"),
        Column("chosen", "BOOLEAN", "", "whether the run's weights are its own"),
        Column("wall_s", "DOUBLE", "s", "time of its training"),
        Column("fit_key", "VARCHAR", "", "the folder of its weights, runs/weights/<fit_key>"),
        Column("points", "JSON", "", "its scores at the tracked points, as pairs of step and score"),
        Column("error", "VARCHAR", "", "why it failed; NULL: it did not, or diverged"),
    ),
    """(
        SELECT record->>'run_id' AS run_id, unnest(from_json(record->'$.training.sweep', '["JSON"]')) AS one,
            generate_subscripts(from_json(record->'$.training.sweep', '["JSON"]'), 1) AS trial
        FROM stored.files WHERE kind = 'run' AND (record->'$.training.sweep') IS NOT NULL)
    """,
    record="one",
    sql={
        "run_id": "run_id",
        "trial": "trial",
        "fit_key": "nullif(one->>'fit_key', '')",
        "error": "nullif(one->>'error', '')",
    },
)
_DECISION_INPUTS = _view(
    "decision_inputs",
    "what the last decision of an experiment knew of one run",
    (
        _EXPERIMENT,
        _RUN_ID,
        _CANDIDATE._replace(place="name"),
        _SEED,
        _METRIC,
        Column("target", "DOUBLE", "the metric's", "the target's primary metric on test", "$.target.score"),
        Column("target_low", "DOUBLE", "the metric's", "lower end of its 95 % interval", "$.target.low"),
        Column("target_high", "DOUBLE", "the metric's", "upper end of its 95 % interval", "$.target.high"),
        Column("validation", "DOUBLE", "the metric's", "its value on validation, by which runs are chosen"),
        _BETTER,
        _SCALE,
        Column("gain", "DOUBLE", "the metric's", "gain on test over the best untrained; above 0: better"),
        Column("gain_low", "DOUBLE", "the metric's", "lower end of its 95 % interval"),
        Column("gain_high", "DOUBLE", "the metric's", "upper end of its 95 % interval"),
        *_figures(SERVING),
        Column("training_cost_usd", "DOUBLE", "USD", "price of the training"),
        Column("n_train", "BIGINT", "rows", "training examples of its recipe; 0: unknown"),
        Column("over_budget", "VARCHAR", "", "which budget it breaks; empty: none"),
        Column("action", "VARCHAR", "", "what the decision recommends for the whole experiment"),
        _CREATED,
    ),
    """(
        SELECT record, unnest(from_json(record->'facts', '["JSON"]')) AS fact,
            CASE record->>'higher_is_better' WHEN 'true' THEN 1 WHEN 'false' THEN -1 END AS sign
        FROM stored.files WHERE kind = 'decision')
    """,
    record="fact",
    sql={
        **{name: f"record->>'{name}'" for name in ("experiment", "metric", "action", "created")},
        "higher_is_better": "(record->>'higher_is_better')::BOOLEAN",
        "scale": "(record->>'scale')::DOUBLE",
        "cost_per_1k_usd": "(fact->>'cost_per_1k_usd')::DOUBLE"
        " + coalesce((fact->>'index_per_1k_usd')::DOUBLE, 0)",
        "gain": "sign * (fact->>'$.vs_untrained.delta')::DOUBLE",
        "gain_low": "sign * (fact->>if(sign < 0, '$.vs_untrained.high', '$.vs_untrained.low'))::DOUBLE",
        "gain_high": "sign * (fact->>if(sign < 0, '$.vs_untrained.low', '$.vs_untrained.high'))::DOUBLE",
    },
)
_LINEAGE = Table(
    "lineage",
    "one set of weights that one run rests on",
    (
        _RUN_ID,
        Column("role", "VARCHAR", "", "own, base, served (quantised base) or behind (went on from, trial)"),
        Column("weights_digest", "VARCHAR", "", "digest of the weights"),
        Column("fit_key", "VARCHAR", "", "their folder runs/weights/<fit_key>; NULL: not made here"),
    ),
    """
    WITH run AS (SELECT record->>'run_id' AS run_id, record FROM stored.files WHERE kind = 'run')
    SELECT run_id, 'own' AS role, record->>'weights_digest' AS weights_digest,
        record->>'$.training.fit_key' AS fit_key FROM run
    UNION ALL SELECT run_id, 'base', record->>'base_digest', NULL FROM run
    UNION ALL SELECT run_id, 'served', record->>'served_digest', NULL FROM run
        WHERE (record->>'served_digest') <> ''
    UNION ALL SELECT run_id, 'behind', record->'$.training.stands_on'->>key, key FROM (
        SELECT run_id, record, unnest(json_keys(record, '$.training.stands_on')) AS key FROM run)
    """,
)
_RATINGS = _view(
    "ratings",
    "which of two answers to one item a person preferred",
    (
        Column("rating_id", "VARCHAR", "", "the rating, a file runs/ratings/<rating_id>.json"),
        Column("rater", "VARCHAR", "", "the person"),
        *(_CREATED, _TASK, _SPLIT, _ITEM),
        Column("run_a", "VARCHAR", "", "one run"),
        Column("run_b", "VARCHAR", "", "the other run"),
        Column("rows_a", "VARCHAR", "", "digest of the row set that holds the one answer"),
        Column("rows_b", "VARCHAR", "", "digest of the row set that holds the other answer"),
        Column("left_side", "VARCHAR", "", "whose answer stood on the left: a or b", "left"),
        Column("choice", "VARCHAR", "", "a, b, tie or skip"),
        Column("seconds", "DOUBLE", "s", "how long the rater took"),
    ),
    "stored.files WHERE kind = 'rating'",
)
_FEEDBACK = _view(
    "feedback",
    "one request that a model served in production, with masked texts and its users' feedback",
    (
        Column("row_id", "VARCHAR", "", "the row, a keyed digest"),
        Column("time", "VARCHAR", "ISO 8601", "when it was served, in UTC; empty: not known"),
        Column("model", "VARCHAR", "", "the model that answered, as it was logged"),
        Column("request", "VARCHAR", "", "the last message before the answer"),
        Column("answer", "VARCHAR", "", "what the model answered"),
        Column("thumb", "BOOLEAN", "", "true: up, false: down; NULL: none"),
        Column("correction", "VARCHAR", "", "the answer as a person wrote it; empty: none"),
        Column("preference", "VARCHAR", "", "another answer that was preferred; empty: none"),
        Column("sender", "VARCHAR", "", "who asked, a keyed digest; empty: not known"),
        Column("assignment", "VARCHAR", "", "how the model was chosen: random, random:NAME or other"),
        Column("messages", "JSON", "", "the conversation up to the answer"),
        Column("source", "VARCHAR", "", "the file and line that it was added from"),
    ),
    "{feedback}",
    record="",
    sql={"request": "messages->>'$[#-1].content'", "messages": "messages::JSON"},
)

TABLES: tuple[Table, ...] = (
    *(_RUNS, _SCORES, _SAMPLES, _ANSWERS, _DELTAS, _VERDICTS, _TRAINING, _PARITY, _TRIALS, _DECISION_INPUTS),
    *(_LINEAGE, _RATINGS, _FEEDBACK),
)
