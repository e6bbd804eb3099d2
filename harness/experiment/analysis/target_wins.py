"""Win rates of fine-tunes over the best untrained candidate on the target, where the gate asks for them.

Invariant: `judge_pairs` alone asks a judge; whatever reads a report reads what is stored.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from harness import decision as decide
from harness import store
from harness.comparison import (
    AnswerPairs,
    JudgedPair,
    PairBias,
    Wins,
    bias_of,
    human,
    wins_by_judge,
    wins_by_people,
)
from harness.decision import CandidateFacts
from harness.errors import CandidateFailed
from harness.evaluation.judges import JudgedMetric, open_judged, read_stored_grades
from harness.evaluation.judges.answer_pairs import (
    Preferences,
    Rows,
    answers_differ,
    list_ungraded_pairs,
    map_shown_pairs,
    pair_rows,
    preferences,
)
from harness.evaluation.judges.judging_stage import grade_all
from harness.evaluation.session import Session
from harness.experiment.analysis.human_labels import describe_reached
from harness.experiment.analysis.study import Study
from harness.experiment.runs.stored_rows import Facts, Reader, Runs
from harness.records import Run
from harness.spec import PEOPLE, metric_name


def judge_of_pairs(session: Session) -> JudgedMetric | None:
    """Return the judge by whom the gate asks for a win rate; None where it asks for none, or by people."""
    goal = session.experiment.gate.target
    if goal.win_rate is None or goal.by == PEOPLE:
        return None
    return open_judged(goal.by, session.store, session.judging, session.machine)


def judge_pairs(session: Session, reader: Reader, runs: Runs, base: Run | None = None) -> list[str]:
    """Let the gate's judge compare answers of fine-tunes with the best untrained candidate's, or a base's.

    Returns why it could not, if it could not; what it said until then is kept.
    """
    judged = judge_of_pairs(session)
    if judged is None:
        return []
    pairs = [(run, base) for run in runs] if base else _pairs(runs, describe_reached(session, reader, runs))
    task, examples = session.target.task, session.target.items.test
    rows = ((reader.cut(other, task), reader.cut(run, task)) for run, other in pairs)
    try:
        grade_all(session, [one for pair in rows for one in list_ungraded_pairs(judged, examples, *pair)])
    except CandidateFailed as error:
        return [f"win rates by {judged.metric}: not all pairs could be judged ({error})"]
    return []


def add_wins(study: Study, runs: Runs, facts: Facts) -> list[CandidateFacts]:
    """Add the win rates of fine-tunes over the best untrained candidate, where the gate asks for them."""
    if study.experiment.gate.target.win_rate is None:
        return list(facts)
    found = {run.run_id: wins_of(study, run, base) for run, base in _pairs(runs, facts)}
    return [replace(f, wins=found.get(f.run_id)) for f in facts]


def wins_of(study: Study, run: Run, base: Run) -> Wins:
    """Read the win rate of a run over another on the target."""
    at, policy, task, runs = study.store, study.experiment.gate, study.target, (base, run)
    rows = study.rows.cut(base, task), study.rows.cut(run, task)
    pairs = _answer_pairs(*rows)
    digests = [one.rows[f"{task.name}/test"] for one in runs]
    votes = human.map_counted_shares(store.list_ratings(at, task.name), map_shown_pairs(*rows), *digests)
    by = policy.target.by
    if by == PEOPLE:
        return open_where_failed(wins_by_people(runs[0].candidate, pairs, votes), rows[0], policy.max_errors)
    preferred = preferences(read_stored_grades(by, at), *rows)
    found = wins_by_judge(runs[0].candidate, metric_name(by), pairs, preferred.won, votes)
    found = open_where_failed(found, rows[0], policy.max_errors, preferred.unread)
    found = found._replace(bias=_bias(preferred, rows, votes))
    return found._replace(missing=0) if policy.uncalibrated_judge == "allow" else found


def _bias(preferred: Preferences, rows: tuple[Rows, Rows], votes: Mapping[str, float]) -> PairBias:
    """Say what a judge prefers, of the items whose preferences could be read."""
    return bias_of(
        {
            now.example_id: JudgedPair(
                preferred.won[now.example_id],
                preferred.first[now.example_id],
                (len(old.text), len(now.text)),
                now.cluster or now.example_id,
                votes.get(now.example_id),
            )
            for old, now in pair_rows(*rows)
            if now.example_id in preferred.first
        }
    )


def open_where_failed(wins: Wins, base: Rows, most: float, unread: Collection[str] = ()) -> Wins:
    """Leave a win rate open where too many items tell nothing: over a share `most` of them.

    The base failed on those, or a preference of them cannot be read (`unread`).
    """
    failed = {row.example_id for row in base if row.status == "error"}.union(unread)
    if wins.rate is None or len(failed) <= most * len(base):
        return wins
    return wins._replace(rate=wins.rate._replace(low=0.0, high=1.0), is_open=True)


def _answer_pairs(base: Rows, new: Rows) -> AnswerPairs:
    """Part the items by whether their two answers differ; one that failed in both arms is a tie."""
    both = list(pair_rows(base, new))
    clusters = {now.example_id: now.cluster or now.example_id for _, now in both}
    differing = {now.example_id for old, now in both if answers_differ(old, now)}
    return AnswerPairs(
        {item: cluster for item, cluster in clusters.items() if item in differing},
        {item: cluster for item, cluster in clusters.items() if item not in differing},
    )


def _pairs(runs: Runs, facts: Facts) -> list[tuple[Run, Run]]:
    """List the finished fine-tunes, each with the run of the best untrained candidate."""
    best = decide.best_untrained(facts)
    base = next((run for run in runs if run.candidate == best and run.state == "done"), None)
    tuned = (
        run for f, run in zip(facts, runs, strict=True) if run.state == "done" and decide.is_fine_tuned(f)
    )
    return [(run, base) for run in tuned] if base else []
