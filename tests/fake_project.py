"""A project for the dashboard, made without a model: stored runs with rows, and their report.

Invariant: the report is computed from the stored rows by the real functions. A project that a session has
written once is copied the next time.
"""

import atexit
import json
import os
import random
import shutil
import tempfile
from dataclasses import asdict, replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path

from fake_facts import verdict

from harness import report, store
from harness.analysis import comparison
from harness.analysis import decision as decide
from harness.analysis.candidate_facts import CandidateFacts, Case, Speed, best_untrained
from harness.analysis.economics import apply_budgets
from harness.analysis.estimators import Estimate
from harness.lifecycle import nightly_alarm as alarm
from harness.lifecycle import nightly_state as files
from harness.metrics import mean_metric
from harness.records import BLOCK, Rating, RowsIdentity, Run, SampleResult, read_training_record
from harness.report import ExperimentReport
from harness.spec import DecidePolicy, NightlyPolicy
from harness.store import Store

EXACT = mean_metric("exact_match", lambda output, example: None)
TASKS = ("support", "chat")
# Each candidate's method, and how many of 60 items it has right on the target and in chat.
CANDIDATES = {"prompt": ("base", 20, 48), "knn": ("base", 22, 48), "lora": ("lora", 50, 12)}


def write(folder: Path, candidates=CANDIDATES, *, texts=None, n=60, with_report=True) -> ExperimentReport:
    """Write `runs/` and `reports/` of an experiment; `texts` maps candidates to their answer."""
    if texts or (folder / "runs").exists():
        return _write(folder, candidates, texts, n, with_report)
    written, result = _write_once(json.dumps(candidates), n, with_report)
    shutil.copytree(written, folder, dirs_exist_ok=True)
    return result


@cache
def _write_once(candidates: str, n: int, with_report: bool) -> tuple[Path, ExperimentReport]:
    folder = _make_session_folder()
    return folder, _write(folder, json.loads(candidates), None, n, with_report)


def _make_session_folder() -> Path:
    """Make a folder next to the tests' own folders that exists until the session ends."""
    folder = Path(tempfile.mkdtemp(prefix="fake-project-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _write(folder: Path, candidates, texts, n: int, with_report: bool) -> ExperimentReport:
    at = Store(folder / "runs")
    runs = [_run(at, name, *how, (texts or {}).get(name), n) for name, how in candidates.items()]
    result = report_of(at, runs)
    if with_report:
        report.write(result, folder / "reports")
    return result


def _run(at: Store, name: str, method: str, n_right: int, n_chat: int, text: str | None, n: int) -> Run:
    weights = "base" if method == "base" else f"weights of {name}"
    digests = {}
    for task, right in zip(TASKS, (n_right, n_chat), strict=True):
        prompting = name if task == "support" else "zero_shot"
        identity = RowsIdentity(
            weights, "t", task, "v", "test", prompting, "generate", "fp32", "hf", "l", "cpu", "s"
        )
        sample = [row_of(task, i, float(i < right), text or f"{name} answers {i % 7}") for i in range(n)]
        if not at.parquet(identity.digest).exists():
            for i in range(0, n, BLOCK):
                store.append_block(at, identity, i // BLOCK, sample[i : i + BLOCK])
            store.complete_rows(at, identity, n)
        digests[f"{task}/test"] = identity.digest
    steps = [[i, 2.0 / i] for i in range(1, 25)]
    training = {"wall_s": 36.0, "loss": steps, "validation_loss": [[24, 0.5]], "tokens_per_s": 250.0}
    run = Run(
        run_id=f"{name}-0", experiment="desk", candidate=name, method=method, prompting="zero_shot",
        answer="generate", seed=0, base_model="tiny", weights_digest=weights, base_digest="base",
        state="done", created="2026-01-01T00:00:00+00:00", rows=digests, recipe={"method": method},
        training=read_training_record({} if method == "base" else training),
        latency={"p50_s": 0.5 if name == "knn" else 0.25},
    )  # fmt: skip
    store.save_run(at, run)
    return run


def row_of(task: str, i: int, score: float, text: str) -> SampleResult:
    return SampleResult(
        task=task, split="test", example_id=f"{task}-{i:03d}", position=i,
        status="truncated" if i == 0 else "ok", text=text, prompt=f"Question {i} of {task}?",
        references=(f"reference {i}",), parts={"exact_match": (score,)},
        slice=("knowledge", "behaviour")[i % 2], cluster=f"family {i // 2}", output_digest=str(hash(text)),
    )  # fmt: skip


def report_of(
    at: Store, runs: list[Run], name: str = "desk", tasks=TASKS, policy: DecidePolicy | None = None
) -> ExperimentReport:
    """Report the runs: paired differences on the target and a general task, and a decision."""
    policy, (target, general) = policy or DecidePolicy(), tasks
    rows = {
        (run.candidate, task): store.read_rows(at, run.rows[f"{task}/test"]) for run in runs for task in tasks
    }
    facts = apply_budgets((_facts(run, rows[run.candidate, target]) for run in runs), policy)
    best = best_untrained(facts) or runs[0].candidate
    facts = [
        replace(f, vs_untrained=comparison.compare_rows(EXACT, rows[best, target], rows[f.name, target]))
        if f.name != best
        else f
        for f in facts
    ]
    on_general = {
        run.candidate: (
            comparison.compare_rows(EXACT, rows[runs[0].candidate, general], rows[run.candidate, general]),
        )
        for run in runs
        if run.method != "base"
    }
    case = Case(facts, policy, "exact_match")
    decision = decide.decide(case, closed_labels=False, has_documents=False)
    return ExperimentReport(
        name, "tiny", "exact_match", tuple(facts), on_general, decision, task=target,
        margins={general: 0.05}, macro_margin=0.02, policy=policy,
    )  # fmt: skip


def _facts(run: Run, rows: list[SampleResult]) -> CandidateFacts:
    trained = run.method != "base"
    judged = verdict("fail", macro=Estimate(-0.6, -0.7, -0.5, 60)) if trained else verdict("pass")
    if not trained:
        judged = replace(judged, macro=Estimate(0.0, 0.0, 0.0, 60))
    score = comparison.estimate(EXACT, rows)
    return CandidateFacts(
        name=run.candidate, run_id=run.run_id, method=run.method, prompting=run.prompting, answer=run.answer,
        seed=run.seed, trained=trained, state="done", target=score, validation=score.score, verdict=judged,
        cost_per_1k_usd=0.1 if trained else 0.2, speed=Speed(latency_p50_s=run.latency["p50_s"]),
        training_cost_usd=0.001 if trained else 0.0, n_train=100 if trained else 0, training=run.training,
    )  # fmt: skip


def nights(folder: Path, n: int = 24, name: str = "desk") -> None:
    """Write nights, the tenth missing; from the 13th `lora` loses more, from the 16th numpy is newer."""
    shutil.copytree(_nights(n, name), folder, dirs_exist_ok=True)


@cache
def _nights(n: int, name: str) -> Path:
    folder = _make_session_folder()
    at, draw = Store(folder / "runs"), random.Random(1)
    home, state = files.home(at, name), files.State()
    written_nights: list[files.Night] = []
    libraries = [store.keep_environment(at, {"numpy": version}) for version in ("2.3", "2.4")]

    def series(night: int, lost: float) -> files.SeriesNight:
        changes = {f"support/{night}-{k}": _change(draw.random(), lost) for k in range(30)}
        return files.SeriesNight(changes, {"support/anchor": 0.0}, n_asked=31)

    for i in (i for i in range(n) if i != 9):
        day = (date(2026, 3, 1) + timedelta(days=i)).isoformat()
        moved = {f"chat/{i}-{k}": draw.random() < 0.02 for k in range(60)}
        lost = 0.05 + 0.2 * (i > 11)
        watched = (
            files.NightCandidate(
                "champion knn", "knn-0", "t1", ("the harness",), {"target": series(i, 0.05)}
            ),
            files.NightCandidate("lora", "lora-0", "t2", ("the harness",), {"target": series(i, lost)}),
        )
        night = files.Night(
            night=day, started=day + "T02:00", finished=day + "T02:20", commit=f"abc{i // 8:04d}",
            precision="bf16", environment=libraries[i // 15 % 2], bases={"base": files.BaseNight(moved)},
            candidates=watched, taken={"target": 30 * i}, left={"target": 200},
        )  # fmt: skip
        files.write(at, home, night)
        written_nights.append(night)
        night_report = alarm.build_report(name, NightlyPolicy(), written_nights, state)
        state = replace(state, alarms=(*state.alarms, *night_report.new))
    files.write(at, home, state)
    return folder


def _change(number: float, lost: float) -> float:
    return -1.0 if number < lost else 1.0 if number < lost + 0.05 else 0.0


def rate(at: Store, runs: tuple[Run, Run], won: int, lost: int, rater: str = "bob") -> None:
    """Write ratings of two runs' answers on the target, one per item; the first run wins `won` of them."""
    a, b = runs
    folder = at.folder / "ratings"
    folder.mkdir(exist_ok=True)
    for i in range(won + lost):
        rating = Rating(
            rating_id=f"{rater}-{a.candidate}-{b.candidate}-{i}", rater=rater,
            created=f"2026-01-01T00:{i // 60:02d}:{i % 60:02d}+00:00", task=TASKS[0], split="test",
            example_id=f"item-{i}", run_a=a.run_id, run_b=b.run_id, rows_a=a.rows[f"{TASKS[0]}/test"],
            rows_b=b.rows[f"{TASKS[0]}/test"], left="a", choice="a" if i < won else "b",
        )  # fmt: skip
        (folder / f"{rating.rating_id}.json").write_text(json.dumps(asdict(rating)))


def experiment(folder: Path, metrics: str = "exact_match") -> None:
    row = {"prompt": "Where is my parcel?", "reference": "on its way"}
    (folder / "support.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "harness.yaml").write_text(
        "name: desk\ntarget:\n  name: support\n  data: {train: support.jsonl, test: support.jsonl}\n"
        f"  metrics: [{metrics}]\ncandidates:\n  prompt: {{method: base}}\n"
    )


def write_large_project(folder: Path) -> Path:
    """Write a project of a thousand runs with a report and nights."""
    # All runs share the rows of one run; there is no report.
    write(folder, {"prompt": CANDIDATES["prompt"]}, with_report=False)
    at = Store(folder / "runs")
    (first,) = store.list_runs(at)
    for i in range(1_000 - 1):
        run = replace(first, run_id=f"run-{i:04d}", candidate=f"candidate-{i % 50}", seed=i // 50)
        store.write_whole(at, at.run_file(run.run_id), json.dumps(asdict(run)))
    write(folder)
    experiment(folder)
    nights(folder)
    return folder
