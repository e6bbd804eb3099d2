"""The verdict on a run against a baseline: the one place that gathers what the gate's rules need.

Invariant: pure; the same run, baseline and store give the same rules, numbers and outcome, whoever asks: a
comparison, the gate, a rescue or a page.
"""

from dataclasses import replace
from functools import partial

from harness import gating
from harness.errors import IncompatibleRuns
from harness.experiment.analysis.stored_arms import (
    FindIdentity,
    confirm_in_fp32,
    find_baseline_identity,
    find_first_base_identity,
    measure_arms,
)
from harness.experiment.analysis.study import ArmsOfPair, Study
from harness.experiment.analysis.target_facts import target_facts
from harness.gating import GateResult, Measurement, Rule
from harness.gating.halves import Half
from harness.records import Run
from harness.spec import TargetPolicy
from harness.store import Champion


def judge(
    study: Study,
    run: Run,
    champion: Champion | None = None,
    *,
    items: Half | None = None,
    level: float | None = None,
) -> GateResult:
    """Judge a run against a champion, or against its own base.

    `items` cuts every task of the suites to one half of its items; on the half on which a rescue searches
    the target is not judged, because test rows choose nothing. `level` is that at which one of many
    candidates has to be shown, in place of the policy's alpha.

    Raises:
        IncompatibleRuns: rows of the baseline are missing, or must not be compared.
    """
    experiment, digest = study.experiment, champion.weights_digest if champion else run.base_digest
    policy = gating.applicable_policy(experiment.gate, trained=run.weights_digest != run.base_digest)
    if items == "search":
        policy = policy.model_copy(update={"target": TargetPolicy()})
    arms = compare_arms(study, run, digest, partial(find_baseline_identity, study, run, champion), items)
    missing = [
        one.task.name
        for one in study.suite_tasks()
        if gating.may_decide(*one, experiment.gate) and f"{one.task.name}/test" not in run.rows
    ]
    result = gating.judge(
        arms.measured,
        policy,
        target=None if items == "search" else target_facts(study, run, policy),
        identical=run.weights_digest == digest,
        confirmed=confirm_in_fp32(study, run, arms.measured),
        controls=study.rows.controls_of(run),
        compared=arms.compared,
        missing=missing,
        level=level,
        cumulative=_judge_cumulative_loss(study, run, digest, items),
    )
    return replace(result, notes=arms.notes)


def measure(study: Study, run: Run, items: Half | None = None) -> list[Measurement]:
    """Put a run's rows and its base's beside each task that both answered, or beside one half of it."""
    return compare_arms(
        study, run, run.base_digest, partial(find_baseline_identity, study, run, None), items
    ).measured


def compare_arms(
    study: Study, run: Run, digest: str, find: FindIdentity, items: Half | None = None
) -> ArmsOfPair:
    """Compare a run with the baseline of a digest, or return what was found of a run with the same rows."""
    names = [f"{one.task.name}/test" for one in study.suite_tasks()]
    key = (digest, run.base_digest, run.weights_digest, items or "", *(run.rows.get(n, "") for n in names))
    if key not in study.compared:
        measured, notes = measure_arms(study, run, find)
        admitted = None
        if items is not None:
            measured = gating.cut_to_half(measured, gating.cut_tasks(measured, study.seed), items)
        else:
            admitted = _admit_once(study, digest, measured)
        compared = gating.compare_arms(
            measured,
            study.experiment.gate,
            identical=run.weights_digest == digest,
            seed=study.seed,
            admitted=admitted,
        )
        study.compared[key] = ArmsOfPair(measured, compared, tuple(notes))
    return study.compared[key]


def _admit_once(study: Study, digest: str, measured: list[Measurement]) -> gating.AdmittedTasks:
    """Admit tasks by the rows of a baseline, once for all runs that answered the same items of them."""
    key = (digest, *(f"{m.task.name} {len(m.base)}" for m in measured))
    if key not in study.admitted:
        study.admitted[key] = gating.admit_tasks(measured, study.seed, study.experiment.gate)
    return study.admitted[key]


def _judge_cumulative_loss(study: Study, run: Run, digest: str, items: Half | None) -> Rule | None:
    """Judge a run against the first base by that base's own rows; None where that is the baseline itself."""
    first = study.first_base
    if first in ("", digest):
        return None
    try:
        arms = compare_arms(study, run, first, partial(find_first_base_identity, study, run), items)
    except IncompatibleRuns as error:
        return gating.make_unmeasured_rule(str(error).partition(";")[0], first)
    found = gating.judge(
        arms.measured,
        gating.cumulative_policy(study.experiment.gate),
        target=None,
        identical=run.weights_digest == first,
        compared=arms.compared,
    )
    return gating.cumulative_rule(found.verdict, first)
