"""Stored worlds from one builder, and their frozen reports, verdicts and SQL views as plain values.

Invariant: rules make the answers, so no model is loaded; digests, dates and folders are left out.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import inspect_logs
import nights
import openai_server
import rescue_worlds
import stored_quickstart
import worlds
from openai_server import Rule, serve_model
from rescue_worlds import AS_IT_IS, Version, World
from tiny_experiment import rewrite_champion
from worlds import GOOD, Sizes

from harness import report, store
from harness.analysis.people_labels import answer_digest
from harness.experiment import Scope, ensure_weights, rescue, rescue_trials, suite_arm
from harness.lifecycle import nightly_alarm as alarm
from harness.lifecycle import release
from harness.records import AnswerLabel, LabelSet
from harness.spec import GatePolicy
from harness.store.sql_views import TABLES

FAILED = ("test behaviour 6",)
FIRST_BASE = "f" * 16  # the digest of another base with the same answers
JUDGE = """\
from harness.metrics import mean_metric


def metric(task):
    return mean_metric("judge_right", lambda output, example: float(output.text == "gimlet"))
"""
GRID = """\
  rank: {method: lora, params: {r: [8, 16]}}
  again: {method: scaled, init_from: lora, params: {scale: 0.5}}
gate:
  target: {min: 0.5, gain: 0.4}
  mode_collapse: 0.3
"""
JUDGED = {
    AS_IT_IS: Version(90, lost=40, failed=FAILED),
    "scale=0.75": Version(88, lost=30),
    "scale=0.5": Version(88, failed=FAILED),
}
USUAL = {AS_IT_IS: Version(90, lost=8)}
SIZES, WHOLE = Sizes(general=100), Scope()
LONGEST = 8  # longer golden lists are summarised


def stored(
    folder: Path,
    extra: str = "",
    *,
    versions: Mapping[str, Version] = USUAL,
    sizes: Sizes = SIZES,
    edit: Callable[[Path], None] = lambda path: None,
    scope: Scope = WHOLE,
) -> World:
    """Write a world with `extra` lines in its file, changed by `edit`, and run its experiment in `scope`."""
    path = rescue_worlds.write(folder, sizes, extra)
    edit(path)
    return rescue_worlds.open_world(path, dict(versions), scope=scope)


def write_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def add_judge(path: Path) -> None:
    """Let a judge grade the target, and pin items, some of which the fine-tune loses."""
    suites = path.parent / "suites"
    (suites / "judge_right.py").write_text(JUDGE)
    write_in(suites / "desk.yaml", "{name: desk,", "{name: desk, metrics: [./judge_right.py],")
    pinned = ({"id": f"pinned-{i}", "prompt": f"What is chat - {i} ?", "reference": GOOD} for i in range(20))
    (suites / "pinned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pinned))
    (suites / "regressions.yaml").write_text(
        "name: regressions\nrole: regression\ntasks:\n"
        "  - {name: chat-pinned, data: {test: pinned.jsonl}, max_new_tokens: 4}\n"
    )
    write_in(path, "[suites/general.yaml]", "[suites/general.yaml, suites/regressions.yaml]")
    write_in(path, "precision: fp32", "precision: bf16")


def deal_folds(path: Path) -> None:
    desk = path.parent / "suites" / "desk"
    (desk / "all.jsonl").write_text((desk / "train.jsonl").read_text() + (desk / "test.jsonl").read_text())
    apart = "train: desk/train.jsonl, validation: desk/validation.jsonl, test: desk/test.jsonl"
    write_in(path.parent / "suites" / "desk.yaml", apart, "all: desk/all.jsonl, folds: 3")


def judged_world(folder: Path) -> tuple[World, dict[str, Any]]:
    """Make a rescued fine-tune with labels by people, a failed answer, lost items in fp32 and a champion."""
    stored_world = stored(folder, GRID, versions=JUDGED, sizes=Sizes(general=160), edit=add_judge)
    prepared = stored_world.prepare()
    rescued = rescue.run(prepared)
    at = stored_world.session.store
    runs = {run.candidate: run for run in store.list_runs(at, "world")}
    trial = runs[rescued.tried[-1].name]
    # People label every answer to the target; they refuse a fifth of the fine-tune's that the judge passes.
    labels = {}
    for run in runs.values():
        for row in store.read_rows(at, run.rows["desk/test"]):
            refused = (
                run.weights_digest != run.base_digest and int(row.example_id.rpartition("-")[2]) % 5 == 0
            )
            label = float(row.text == GOOD and not refused)
            labels[answer_digest("judge_right", row)] = label
    answer_labels = tuple(AnswerLabel(answer, answer, label) for answer, label in sorted(labels.items()))
    store.save_labels(
        at, LabelSet("people", "2026-01-01T00:00:00", "desk", "test", "judge_right", "ann", answer_labels)
    )
    for run in (runs["lora"], trial):
        weights = ensure_weights(prepared.session, prepared.session.candidates[run.candidate], run.seed)
        exact = replace(
            prepared.session,
            machine=prepared.session.machine._replace(precision="fp32"),
            suites=tuple(m for m in prepared.session.suites if m.role == "regression"),
        )
        suite_arm(exact, weights, "in fp32")
    # Promote a run, as if another base with the same answers had been its first base.
    file, champion = release.promote_named(stored_world.path, runs["lora"].candidate, despite="a test")
    for key in (key for key in champion.rows if not key.startswith("desk/")):
        base = replace(store.read_identity(at, champion.rows[key]), weights_digest=champion.base_digest)
        first = replace(base, weights_digest=FIRST_BASE)
        shutil.copytree(at.rows(base.digest), at.rows(first.digest))
        identity = at.rows(first.digest) / "identity.json"
        identity.write_text(identity.read_text().replace(champion.base_digest, FIRST_BASE))
    rewrite_champion(file, first_base=FIRST_BASE)
    return rescue_worlds.open_world(stored_world.path, JUDGED), runs | {"trial": trial}


def gate_all(path: Path, *candidates: str, **options) -> dict[str, Any]:
    """Judge candidates; return the verdicts as JSON and as pages."""
    judged = {name: release.gate(path, name, **options) for name in candidates}
    return {
        name: [
            {**report.gate_json(verdict), "page": report.markdown(report.gate_document(verdict)).split("\n")}
            for verdict in verdicts
        ]
        for name, verdicts in judged.items()
    }


def freeze(world: World, *gated: str, baselines: tuple[str, ...] = ("base",)) -> dict[str, Any]:
    """Return the report of a world, its page, the gate's verdicts and the SQL views."""
    at, result = world.session.store, world.report
    gates = {baseline: gate_all(world.path, *gated, baseline=baseline) for baseline in baselines}
    return {
        "report": report.to_json(result),
        "page": report.markdown(report.experiment_document(result)).split("\n"),
        "gate": gates,
        "sql": {table.name: rows_of(at, table.name) for table in TABLES},
    }


def rows_of(at, table: str) -> list[Any]:
    """Return all rows of a view in an order that does not depend on digests."""
    result = store.query(at, f'SELECT * FROM "{table}"')
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
    return sorted((plain(row) for row in rows), key=json.dumps)


_DIGEST = re.compile(r"\b[0-9a-f]{16,}\b|(?<=-)[0-9a-f]{8}\b")  # also the end of a run's id
_DATE = re.compile(r"20\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d[:\d.+Z]*)?")
_PATH = re.compile(r"/\S*/(?=\w)")
_TIME = re.compile(
    r"(?:&lt;|<)?[\d.,]+ (?:ms|s)\b|[\d.,]+ a second|\b\d+ threads?\b|(?:&lt;|<)?\b0\.000\d*"
)  # including costs
_TIMED = re.compile(r"TIME \| TIME|^\| \S+ \| 8 \||^\| threads \||\bgit ")  # rows of tables with measurements
_MEASURED = re.compile(
    "created|wall_s|copying_s|harness|device|git_|record$|latency|compute_s|per_s$|first_token|under_load|timed"
    "|cost|_usd|break_even|^precision$|weights_gb|^threads$"  # the last three depend on the machine
)


def plain(value: Any) -> Any:
    """Return plain values without digests, dates, folders and measurements; long lists are summarised."""
    if isinstance(value, Mapping):
        return {plain(str(k)): plain(v) for k, v in value.items() if not _MEASURED.search(str(k))}
    if isinstance(value, list | tuple | set):
        items = [plain(item) for item in value]
        if len(items) <= LONGEST or any(isinstance(item, str) and " " in item for item in items):
            return items  # pages are kept whole
        return [len(items), sha256(json.dumps(rounded(items)).encode()).hexdigest()[:12], *items[:3]]
    if isinstance(value, str):
        text = _TIME.sub("TIME", _PATH.sub("~/", _DATE.sub("DATE", _DIGEST.sub("#", value))))
        return "measured" if _TIMED.search(text) else text
    return value if isinstance(value, int | float | None) else str(value)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def dump(content: Mapping[str, Any]) -> str:
    """Write plain values as JSON, with a line per entry of the second level."""
    parts = []
    for key, value in rounded(content).items():
        entries = value.items() if isinstance(value, dict) else [("", v) for v in value]
        lines = [
            f"{json.dumps(name)}: " * bool(name) + json.dumps(v, ensure_ascii=False) for name, v in entries
        ]
        opened, closed = "{}" if isinstance(value, dict) else "[]"
        parts.append(f"{json.dumps(key)}: {opened}\n" + ",\n".join(lines) + f"\n{closed}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its path."""
    if isinstance(value, dict | list) and value:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from leaves(entry, f"{at}/{key}")
    else:
        yield at, value


# Worlds


def usual(folder: Path) -> dict[str, Any]:
    """Return a fine-tune that loses some of the base's abilities."""
    return freeze(stored(folder), "lora", "rag")


def judged(folder: Path) -> dict[str, Any]:
    """Return judged answers with labels, confirmed regressions, a champion with cumulative loss, a rescue."""
    world, runs = judged_world(folder)
    frozen = freeze(world, "lora", runs["trial"].run_id, baselines=("base", "champion"))
    rescued = world.rescue()
    return frozen | {
        "rescue": rescue_trials.to_json(rescued),
        "rescue page": report.markdown(rescue_trials.rescue_document(rescued)).split("\n"),
    }


def seeds(folder: Path) -> dict[str, Any]:
    world = stored(folder, "seeds: [0, 1]\n", sizes=Sizes(test=100, general=60))
    release.promote_named(world.path, "lora", despite="a test")
    return freeze(world, "lora", baselines=("base", "champion"))


def folds(folder: Path) -> dict[str, Any]:
    return freeze(stored(folder, edit=deal_folds), "lora", "prompt")


def fewer(folder: Path) -> dict[str, Any]:
    sizes = Sizes(general=1500)
    return freeze(stored(folder, "gate: {macro: 0.1}\n", sizes=sizes, scope=Scope(fewer=True)), "lora")


def several(folder: Path) -> dict[str, Any]:
    """Return several answers per item, by majority and by mean."""
    extra = (
        "  vote: {decoding: {temperature: 0.7, samples: 3, choose: majority}}\n"
        "  mean: {method: lora, decoding: {temperature: 0.7, samples: 3}}\n"
        "gate: {target: {gain: 0.1}, mode_collapse: 0.3}\n"
    )
    return freeze(stored(folder, extra), "vote", "mean")


def further(folder: Path) -> dict[str, Any]:
    """Return a further target, a critical task and a task that is only reported."""
    extra = "gate: {tasks: [chat, sums, facts], critical: [sums], macro: 10%}\n"

    def add_target(path: Path) -> None:
        nights.add_counter(path, 100)

    return freeze(stored(folder, extra, edit=add_target), "lora")


def endpoint(folder: Path) -> dict[str, Any]:
    """Return a candidate served over HTTP next to a local one."""
    oracle = worlds.Oracle(rescue_worlds.BASE, "0", False)
    with serve_model(Rule(lambda messages: oracle._output(messages).text)) as server:
        served = f"base_url: {server.url}, model: {openai_server.NAME}, protocol: chat, max_retries: 0"
        world = stored(folder, f"  served: {{method: endpoint, params: {{{served}}}}}\n")
        return freeze(world, "served", "lora")


def outside(folder: Path) -> dict[str, Any]:
    arms = [["C"] * 200 + ["I"] * 100, ["I"] * 12 + ["C"] * 196 + ["I"] * 92]
    names = [f"task_{i}" for i in range(4)]
    old, new = (
        inspect_logs.write(folder / name, dict.fromkeys(names, arm), zipped=False)
        for name, arm in zip(("base", "tuned"), arms, strict=True)
    )
    return {"gate": report.gate_json(release.gate_folders(old, new, GatePolicy()))}


def quickstart(folder: Path) -> dict[str, Any]:
    """Return the stored runs of the quickstart, answered by chance."""
    result = stored_quickstart.write(folder)
    views = {table.name: rows_of(store.Store(folder / "runs"), table.name) for table in TABLES}
    trained = gate_all(folder / "harness.yaml", *stored_quickstart.TRAINED)
    return {"report": report.to_json(result), "gate": trained, "sql": views}


def night(folder: Path) -> dict[str, Any]:
    calendar = nights.Calendar(nights.world(folder, general=100))
    still, worse = nights.Rates(lost=0, gained=0, general_lost=0), nights.Rates(general_lost=0.3)
    night_reports = [calendar.night(n, rates) for n, rates in enumerate((still, worse, worse), start=1)]
    return {"nights": [alarm.to_json(r) for r in night_reports]}


WORLDS = (usual, judged, seeds, folds, fewer, several, further, endpoint, outside, night, quickstart)
