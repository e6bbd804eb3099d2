"""Preview of runs and lookup of stored ones: what will run where and for how long, and what is stored."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from harness.analysis.seeds import family_of
from harness.analysis.significance import chance_of_an_equal_model, list_spare_items, power_warnings
from harness.config import CommandLine, LoadedExperiment, lint
from harness.errors import IncompatibleRuns, Problem, UserError
from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.row_sets import RunRequest, list_open
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_result import outcome
from harness.experiment.judged_runs import judge_and_report
from harness.experiment.plan import make_plan
from harness.experiment.preparation import Scope
from harness.experiment.run_candidate import find_stored_runs
from harness.experiment.stored_rows import Reader
from harness.experiment.training_fit import processes_of
from harness.formatting import count, pluralize, seconds
from harness.models.hardware import Machine, describe_speed, probe_notes
from harness.progress import spins_briefly
from harness.records import Run
from harness.report import Command, ExperimentReport, advise_on_power
from harness.spec import Experiment


def report_stored(session: Session, selected: Iterable[str], needed: str = "") -> ExperimentReport:
    """Report the stored runs of the selected candidates as they are written now; computes nothing.

    With `needed`, which has to have a run, candidates without one are left out.

    Raises:
        IncompatibleRuns: a candidate has no stored run, or only runs of another recipe or other items.
    """
    wanted = in_order(session.candidates, selected)
    found = find_stored_runs(session, wanted)
    if needed:
        stored = {needed, *(one.candidate.name for one, run in zip(wanted, found, strict=True) if run)}
        found = [run for one, run in zip(wanted, found, strict=True) if one.candidate.name in stored]
        wanted = [one for one in wanted if one.candidate.name in stored]
    names = [one.candidate.name for one, run in zip(wanted, found, strict=True) if run is None]
    if names and (unknown := session.unknown_bases()):
        raise IncompatibleRuns(
            f"{session.store.folder}: unknown whether {', '.join(names)} is stored as written now: "
            f"{say_never_loaded(unknown)}; expected a finished run; "
            "next: harness report, which loads it once"
        )
    if names:
        selectable = [] if needed else [one.candidate.name for one in wanted]
        kept = dict.fromkeys(name for name in selectable if name not in names)
        step = f"harness compare, or --candidates {','.join(kept)}" if kept else "harness compare"
        raise IncompatibleRuns(
            f"{session.store.folder}: found no run of {', '.join(names)} as written now; "
            f"expected one of each candidate; next: {step}"
        )
    reader = Reader(session.store, session.tasks)
    return judge_and_report(
        session, reader, [outcome(session.target, reader, run) for run in found if run is not None]
    )


MANY = 64  # candidates


def refuse_many(loaded: LoadedExperiment, *, yes: bool) -> None:
    """Refuse more than 64 candidates without a yes."""
    n = len(loaded.selected)
    if n > MANY and not yes:
        found, expected = f"{n} candidates", f"at most {MANY}, or a yes to more"
        step = "--yes to go on, --dry-run to see what that takes, or --candidates to select"
        raise UserError(Problem("candidates", found, expected, step))


def describe_stored(unknown_bases: Sequence[str], found: Sequence[Run | None], missing_s: float) -> str:
    """Describe how much of a dry run's plan is stored, and the time of the rest, or why it is unknown."""
    if unknown_bases:
        return f"unknown whether any of it is stored: {say_never_loaded(unknown_bases)}"
    is_done = [run is not None and run.state == "done" for run in found]
    stored = f"{count(sum(is_done))} of {count(len(found))} runs are stored already"
    if all(is_done) or not any(is_done):
        return stored
    return f"{stored}; the others take about {seconds(missing_s)}"


def workers_sentence(
    session: Session, selected: Iterable[str], found: Sequence[Run | None], scope: Scope
) -> str:
    """Describe the steps that workers would get; empty without workers."""
    policy = session.experiment.execution
    if policy.executor == "in_process":
        return ""
    open_ = list_open(in_order(session.candidates, selected), found)
    plan = make_plan(session, open_, policy.workers or 1, answers=not scope.fewer)
    most = f", at most {count(policy.workers)} at once" if policy.workers else ""
    return f"workers ({policy.executor}{most}) would get {plan}"


def say_never_loaded(names: Sequence[str]) -> str:
    """State that bases were never loaded here, so that their stored results are unknown."""
    return f"{', '.join(names)} was never loaded on this machine, and a dry run loads no model"


def are_all_done(found: Iterable[Run | None]) -> bool:
    """Tell whether all runs are finished, so that nothing will be computed."""
    return all(run and run.state == "done" for run in found)


def first_line(
    experiment: Experiment, machine: Machine, n_candidates: int, whole_s: float | None, missing_s: float
) -> str:
    """Describe what runs where, and the time of the missing part and of the whole (None: all is stored)."""
    beside = whole_s is not None and machine.device == "cpu" and spins_briefly()
    notes = [probe_notes(machine), "other work runs too, so threads spin briefly" if beside else ""]
    said = f" ({'; '.join(filter(None, notes))})" if any(notes) else ""
    n = pluralize(n_candidates, "candidate")
    took = "all of it stored"
    if whole_s is not None:
        rest = f"about {seconds(missing_s)} for what is missing, " if missing_s < whole_s else ""
        took = f"{rest}about {seconds(whole_s)} from nothing"
    return (
        f"{experiment.name}: {n} on {experiment.base_model}, {machine.name}, {machine.precision}{said}, "
        f"{describe_speed(machine.gflops)}; {took}"
    )


def describe_power(
    experiment: Experiment, suites: Sequence[MeasuredTask], warnings: Sequence[str]
) -> list[str]:
    """Name a margin that cannot be shown, or how often an equal model passes the macro, if it is judged."""
    if len(warnings) > 1:
        return [f"power: {warnings[0]} (and {len(warnings) - 1} more margins; --strict lists them all)"]
    if warnings:
        return [*warnings]
    members, n = family_of(experiment).size, _count_asked(suites)
    chance = chance_of_an_equal_model(experiment.suites, n, experiment.gate, members)
    if not members or chance is None:
        return []
    among = f", as one of {members}," if members > 1 else ""
    return [f"power: a fine-tune that lost nothing{among} passes the macro {100 * chance:.0f} % of the time"]


def warnings_before(experiment: Experiment, suites: Sequence[MeasuredTask]) -> tuple[str, ...]:
    """List the margins that these items probably cannot show, for one of all fine-tunes."""
    n, members = _count_asked(suites), family_of(experiment).size
    return power_warnings(experiment.suites, n, experiment.gate, n_members=members)


def advise_before(experiment: Experiment, suites: Sequence[MeasuredTask], typed: CommandLine) -> Command:
    """Advise how to show margins that these items probably cannot show; commands repeat `typed` options."""
    held = {m.task.name: m.held for m in suites}
    spare = list_spare_items(experiment, (), lambda task: held[task.name])
    warn = partial(
        power_warnings, experiment.suites, policy=experiment.gate, n_members=family_of(experiment).size
    )
    return advise_on_power(_count_asked(suites), spare, warn, typed)


def _count_asked(suites: Sequence[MeasuredTask]) -> dict[str, int]:
    return {m.task.name: len(m.items.test) for m in suites}


def recipe_warnings(session: Session, selected: Iterable[str]) -> list[str]:
    """List settings of the selected trainings that differ from published ones or do not suit their rows."""
    said: dict[str, list[str]] = {}
    for name in selected:
        candidate = session.candidates[name]
        if name == candidate.source_name and candidate.method.trains:
            for trial in candidate.trials:
                params = candidate.method.params(**trial.source.params).model_dump()
                size, written = candidate.base.n_parameters, trial.source.params
                items = session.training_data(trial.source).items
                lines = [*lint(candidate.source.method, params, size, written)]
                if candidate.method.trains_on_rows and (most := params.get("max_length")) is not None:
                    n_rows, limit = pluralize(len(items.train), "row"), f"max_length, {count(most)} tokens"
                    lines += filter(None, [costs.describe_longer(items.train, most, n_rows, limit)])
                policy = session.experiment.training.accelerate
                wanted = policy.num_processes
                if processes_of(policy, trial.source) < wanted:
                    lines.append(
                        f"trains in one process, not in {wanted} (training.accelerate), as its method or a "
                        "regulariser of it cannot share steps"
                    )
                for line in lines:
                    said.setdefault(line, []).append(name)
    return [f"recipe of {', '.join(dict.fromkeys(names))}: {line}" for line, names in said.items()]


def in_order(known: Mapping[str, ResolvedCandidate], selected: Iterable[str]) -> list[RunRequest]:
    """List recipes and seeds: the bases' first, then trainings, then candidates that borrow weights.

    A candidate comes after the one that it starts from, and those on the same served base together, because
    one base at a time is in memory.
    """
    candidates = [known[name] for name in selected]
    for candidate in candidates:
        refuse_silent(candidate)
    places: dict[str, int] = {}

    def key(candidate: ResolvedCandidate) -> tuple[bool, bool, int, int]:
        place = places.setdefault(candidate.served_base.weights_digest, len(places))
        borrows = candidate.recipe.weights_of is not None
        return candidate.method.seeded, borrows, len(candidate.lineage), place

    return [RunRequest(one, seed) for one in sorted(candidates, key=key) for seed in one.seeds]
