"""Selection of the run to rescue: one that gains and forgets too much; everything else is refused.

Invariant: reads what is stored; nothing is computed before it is known that there is something to
rescue. Of a run of sampled items its weights answer whole tasks first: one half of all items chooses, and the
other judges.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from harness import decision, formatting, plugins, store
from harness.decision import CandidateFacts
from harness.errors import IncompatibleRuns, Problem, UserError, did_you_mean
from harness.evaluation.session import Session
from harness.experiment import answer_all_items, report_stored_so_far
from harness.records import FEWER, Run
from harness.report import ExperimentReport

_RETENTION = ("macro", "each", "safety", "critical", "regressions", "validity", "mode collapse", "drift")
_AGAIN = "fix that, then harness compare"


class RescueCase(NamedTuple):
    """A run to rescue, and the candidate without training that gains are measured against.

    `runs` are the finished ones of the experiment, by candidate.
    """

    facts: CandidateFacts
    run: Run
    reference: CandidateFacts
    runs: Mapping[str, Run] = {}


def find_case(session: Session, selected: Sequence[str], wanted: str) -> RescueCase:
    """Find the run that a name or an id means, and refuse what cannot or need not be rescued.

    Raises:
        UserError: nobody has this name, or the run failed, trains nothing, passes, or does not gain.
        IncompatibleRuns: there is no run of it as written now.
    """
    runs = {run.run_id: run for run in store.list_runs(session.store, session.experiment.name)}
    name = _resolve_name(session, selected, wanted, runs)
    report = report_stored_so_far(session, selected, name)
    known = [f for f in report.facts if f.name == name and wanted in (name, f.run_id)]
    if not known:
        raise IncompatibleRuns(
            f"{wanted}: found a run of other items or code than now; expected one of {name} as written now; "
            f"next: harness rescue {name}"
        )
    # A recipe passes with all of its seeds: the first that does not is the one to rescue.
    facts = next((f for f in known if f.verdict is None or f.verdict.outcome != "pass"), known[0])
    return _case(report, runs, facts)


def answer_whole_tasks(session: Session, selected: Sequence[str], wanted: str) -> str:
    """Let the weights that a rescue of a run of `--sequential` needs answer whole tasks.

    Those are all seeds of its recipe, and the candidates that train nothing. Returns what is to be rescued:
    the id of the run on whole tasks, or the name that was `wanted`; computes nothing where that is no run of
    sampled items.

    Raises:
        UserError: the gate passes the run, or a dry run would have to compute.
        IncompatibleRuns: the file has another recipe now, or weights are gone.
    """
    sampled = [r for r in store.list_runs(session.store, f"{session.experiment.name}{FEWER}") if _is_done(r)]
    named = [r for r in sampled if r.run_id == wanted] or _list_without_whole(session, sampled, wanted)
    if not named:
        return wanted
    _refuse_before_answering(session, named, wanted)
    recipe = {run.candidate for run in named}
    newest = {(run.candidate, run.seed): run for run in sampled if run.candidate in {*selected, *recipe}}
    needed = [run for run in newest.values() if run.candidate in recipe or not _is_tuned(run)]
    whole = {run.run_id: answer_all_items(session, run).run_id for run in needed}
    return whole.get(wanted, wanted)


def _list_without_whole(session: Session, sampled: Sequence[Run], name: str) -> list[Run]:
    """List the runs of sampled items of a candidate that has none on whole tasks."""
    stored = store.list_runs(session.store, session.experiment.name)
    if any(run.candidate == name and _is_done(run) for run in stored):
        return []
    return [run for run in sampled if run.candidate == name]


def _refuse_before_answering(session: Session, named: Sequence[Run], wanted: str) -> None:
    """Refuse what needs no rescue by its stored verdicts, and a dry run, which answers nothing."""
    verdicts = [store.newest_verdict(session.store, run.run_id, run.base_digest) for run in named]
    if all(verdict is not None and verdict.outcome == "pass" for verdict in verdicts):
        _refuse(wanted, "a run that the gate passes", "one that it does not", f"harness promote {wanted}")
    if session.dry_run:
        found = "a run of --sequential, whose weights have not answered whole tasks yet"
        step = "leave --dry-run out, or harness compare --all-items first"
        _refuse(wanted, found, "whole tasks: one half chooses, the other judges", step)


def _is_done(run: Run) -> bool:
    return run.state == "done"


def _is_tuned(run: Run) -> bool:
    return run.weights_digest != run.base_digest and plugins.find_method(run.method).makes_language_model


def select_case(report: ExperimentReport, runs: Sequence[Run]) -> RescueCase | None:
    """Choose of a finished experiment the fine-tune that is best on validation among those to rescue."""
    by_id = {run.run_id: run for run in runs}
    failing = [f for f in report.facts if not list(_reasons(f))]
    name = decision.strongest(failing)
    facts = next((f for f in failing if f.name == name), None)
    return _case(report, by_id, facts) if facts else None


def _resolve_name(session: Session, selected: Sequence[str], wanted: str, runs: dict[str, Run]) -> str:
    if wanted in selected:
        return wanted
    if wanted not in runs:
        expected = "a candidate of the file, or a run's id"
        raise UserError(Problem("run", repr(wanted), expected, did_you_mean(wanted, [*selected, *runs])))
    run = runs[wanted]
    if run.state == "failed":
        _refuse(wanted, f"a run that failed: {run.error}", "a finished one", _AGAIN)
    now = session.experiment.candidates.get(run.candidate)
    if now is None or not now.is_stored_as(run.recipe):
        raise IncompatibleRuns(
            f"{wanted}: found a run of a recipe that the file does not have now; expected {run.candidate} as "
            "it was; next: write it down as it was, or harness compare"
        )
    return run.candidate


def _case(report: ExperimentReport, runs: dict[str, Run], facts: CandidateFacts) -> RescueCase:
    for found, expected, step in _reasons(facts):
        _refuse(facts.label, found, expected, step)
    name = decision.best_untrained(report.facts)
    reference = next(f for f in report.facts if f.name == name and f.state == "done")
    done = {f.name: runs[f.run_id] for f in report.facts if f.state == "done"}
    return RescueCase(facts, runs[facts.run_id], reference, done)


def _reasons(f: CandidateFacts) -> list[tuple[str, str, str]]:
    """Say why a run is not to be rescued: found, expected, next step; empty where it is."""
    if f.state == "failed":
        return [(f"a run that failed: {f.error}", "a finished one", _AGAIN)]
    if not decision.is_fine_tuned(f):
        found = "a candidate that fine-tunes nothing, so it has forgotten nothing"
        return [(found, "a fine-tune", "choose one with weights of its own")]
    if plugins.find_method(f.method).is_remote:
        found = "an endpoint, whose weights are elsewhere"
        return [(found, "weights that can be scaled or trained", "rescue them where they lie")]
    if f.verdict is None:
        step = "add a suite of the role capability"
        return [("a run without a verdict", "one that the gate has judged", step)]
    if f.verdict.outcome == "pass":
        return [("a run that the gate passes", "one that it does not", f"harness promote {f.name}")]
    g = decision.gain(f.vs_untrained)
    if g is None:
        found = "no candidate without training to measure the gain against"
        step = "add prompt: {method: base}, then harness compare"
        return [(found, "one in the same experiment", step)]
    if g.low <= 0:
        gained = formatting.change(g.unit, g.delta, g.low, g.high)
        found = f"no gain that is shown ({gained} over the best untrained candidate)"
        return [(found, "a fine-tune that gains", "rescue keeps a gain, and makes none")]
    if not any(r.outcome in ("fail", "inconclusive") for r in f.verdict.rules if r.name in _RETENTION):
        said = "; ".join(r.sentence for r in f.verdict.deciding)
        found = f"a run that has kept what it could; what stops it is {said}"
        return [(found, "a rule on capability that does not pass", "rescue cannot fix that")]
    return []


def _refuse(name: str, found: str, expected: str, step: str) -> NoReturn:
    raise UserError(Problem(f"rescue {name}", found, expected, step))
