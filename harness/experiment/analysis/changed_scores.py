"""Scores on facts that changed: of every run before and after the refresh, paired with it and with others.

Invariant: reads rows from the store. An answer is outdated where the target's metric calls it right by what
was right before.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from harness import comparison
from harness import decision as decide
from harness.comparison import RIGHT
from harness.decision import CandidateFacts, ChangedAnswers
from harness.errors import Unscored
from harness.evaluation import costs
from harness.evaluation.changed_facts import task_after_refresh, task_before_refresh
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.runs.stored_rows import Facts, Reader, Rows, Runs
from harness.metrics import Metric, item_scores
from harness.records import Example, Output, Run


def add_changes(session: Session, reader: Reader, runs: Runs, facts: Facts) -> list[CandidateFacts]:
    """Add what the runs answered to the items that changed; as they are where none did."""
    if session.changed is None:
        return list(facts)
    before, after = task_before_refresh(session), task_after_refresh(session)
    best = decide.best_untrained(facts)
    latest = {
        run.candidate: _rows(reader, run, after) or _rows(reader, run, before) for run in reversed(runs)
    }

    def answers(run: Run, known: Rows) -> ChangedAnswers:
        other = latest.get(best or "") if run.candidate != best else None
        return _answers(session, run, known, _rows(reader, run, after), other)

    return [
        replace(f, changes=answers(run, known)) if (known := _rows(reader, run, before)) else f
        for f, run in zip(facts, runs, strict=True)
    ]


def _rows(reader: Reader, run: Run, measured: MeasuredTask) -> Rows:
    """Return a run's rows of changed items; none of a run that did not answer them."""
    return reader.read(run, measured) if f"{measured.task.name}/test" in run.rows else []


def _answers(session: Session, run: Run, before: Rows, after: Rows, other: Rows | None) -> ChangedAnswers:
    metric, known = session.target.primary, session.changed.outdated if session.changed else {}
    index_s, hour = run.latency.get("index_s"), session.experiment.decide.device_hour_usd
    return ChangedAnswers(
        n=len(before),
        before=comparison.estimate(metric, before),
        after=comparison.estimate(metric, after) if after else None,
        change=comparison.compare_rows(metric, before, after) if after else None,
        vs_untrained=comparison.compare_rows(metric, other, after or before) if other else None,
        n_known=sum(row.example_id in known for row in before),
        outdated_before=_count_outdated(session, metric, before, known),
        outdated_after=_count_outdated(session, metric, after, known) if after else None,
        index_s=index_s,
        index_cost_usd=None if index_s is None else costs.price_usd(index_s, session.machine.device, hour),
    )


def _count_outdated(
    session: Session, metric: Metric, rows: Rows, known: Mapping[str, tuple[str, ...]]
) -> int | None:
    """Count the answers that what was right before calls right; None of a metric that cannot say so."""
    if not metric.unit.is_rate or metric.name in session.target.judged or not session.changed:
        return None
    examples = {e.id: e for e in session.changed.items}
    answered = [row for row in rows if row.example_id in known and row.status != "error"]
    return sum(
        calls_right(metric, row.text, replace(examples[row.example_id], references=known[row.example_id]))
        for row in answered
    )


def calls_right(metric: Metric, answer: str, example: Example) -> bool:
    """Tell whether a rate calls an answer right; one that it cannot score is not."""
    try:
        parts = metric.score(Output(answer), example)
    except Unscored:
        return False
    if parts is None:
        return False
    score = float(item_scores(metric, np.array([parts]))[0])
    return score >= RIGHT if metric.higher_is_better else score <= RIGHT
