"""Gains of a fine-tune on more targets, each of which a trial of its rescue has to keep.

Invariant: what the fine-tune gains on no one asks of a trial, for a rescue makes no gain. Validation rows
choose, and test rows are looked at for the one trial that is confirmed; all gains have to hold, so none of
their levels is corrected.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.comparison import Comparison
from harness.decision import TargetScore, gain
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment import (
    Study,
    compare_on,
    find_prompt,
    is_answered,
    is_better_on_validation,
    score_on,
)
from harness.records import Run
from harness.rescue.select import RescueCase


class OtherTarget(NamedTuple):
    """Target beside the one that decides: what a trial is compared with there, and whether the run gains.

    `untrained` is the best that trains nothing, by that target's validation rows; without any the plain
    `prompt` is what a gain is measured against.
    """

    measured: MeasuredTask
    untrained: Run | None
    prompt: Run | None
    gains: bool

    @property
    def name(self) -> str:
        """The name of its task."""
        return self.measured.task.name

    @property
    def reference(self) -> Run | None:
        """The run that a gain is measured against."""
        return self.untrained or self.prompt


def list_other_targets(session: Session, study: Study, case: RescueCase) -> tuple[OtherTarget, ...]:
    """List the further targets that a run answered, with what it is compared with there."""
    scores = {one.task: one for one in case.facts.more_targets}
    prompt = find_prompt(study, case.runs.values(), case.run)
    out = []
    for m in session.more_targets:
        if (own := scores.get(m.task.name)) is not None:
            untrained = case.runs.get(own.untrained or "") if own.vs_untrained else None
            found = OtherTarget(m, untrained, prompt if own.vs_prompt else None, _is_shown(_difference(own)))
            out.append(found)
    return tuple(out)


def scores_of(study: Study, run: Run, targets: Sequence[OtherTarget]) -> tuple[TargetScore, ...]:
    """Score a trial on further targets; one of which no answer could be scored is left out."""
    return tuple(
        TargetScore(
            one.name,
            one.measured.primary.name,
            score_on(study, run, one.measured.task),
            one.untrained.candidate if one.untrained else None,
            compare_on(study, run, one.untrained, one.measured.task),
            compare_on(study, run, one.prompt, one.measured.task),
        )
        for one in targets
        if is_answered(study, run, one.measured.task)
    )


def name_lost_on_validation(study: Study, run: Run, targets: Sequence[OtherTarget]) -> tuple[str, ...]:
    """Name the further targets on which a gain is gone by validation rows, where there are any."""
    return tuple(
        one.name
        for one in targets
        if one.gains
        and one.reference
        and one.measured.size("validation")
        and not is_better_on_validation(study, run, one.reference, one.measured.task)
    )


def name_lost_on_test(scores: Sequence[TargetScore], targets: Sequence[OtherTarget]) -> tuple[str, ...]:
    """Name the further targets on which a gain that the run shows is not shown by a trial."""
    kept = {one.task for one in scores if _is_shown(_difference(one))}
    return tuple(one.name for one in targets if one.gains and one.name not in kept)


def target_notes(targets: Sequence[OtherTarget]) -> Iterator[str]:
    """Say on which further targets a gain has to be kept, and on which none is required of a trial."""
    kept = [one.name for one in targets if one.gains]
    unshown = [one.name for one in targets if not one.gains]
    unseen = [one.name for one in targets if one.gains and not one.measured.size("validation")]
    if kept:
        yield f"the gain on {', '.join(kept)} must be kept as well"
    if unshown:
        yield f"no gain is shown on {', '.join(unshown)}, so none is required of a trial there"
    if unseen:
        said = "no validation rows, so the gain is judged on test alone, of the confirmed trial"
        yield f"{', '.join(unseen)}: {said}"


def _difference(score: TargetScore) -> Comparison | None:
    return score.vs_untrained or score.vs_prompt


def _is_shown(found: Comparison | None) -> bool:
    g = gain(found)
    return g is not None and g.low > 0
