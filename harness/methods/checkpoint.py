"""Another candidate's weights at an earlier step of its training, as kept by the recipe's `track`.

Source: Goodfellow, Bengio and Courville 2016, *Deep Learning*, section 7.8, on stopping early.
"""

import shutil
import time
from collections.abc import Iterator

from pydantic import Field

from harness.errors import CandidateFailed, Problem
from harness.methods._shared import requires_init
from harness.plugins import InitWeights, Method, MethodChecks, RescueSituation, RescueStep, TrialSetting
from harness.records import TrainingRecord
from harness.spec import Spec
from harness.training import TRACKED, FitContext, Weights, made_weights, map_tracked_folders


class Params(Spec):
    """`step` is a step whose weights `track` kept."""

    step: int = Field(ge=1)


def init_problems(params: Params, init: InitWeights, where: str) -> Iterator[Problem]:
    """Yield a problem if the training keeps no weights of its steps."""
    if init.recipe.track is None:
        step = "add track: {points: 4} to that recipe"
        yield Problem(where, "init_from: a recipe without track", "a training that was tracked", step)


def fit(context: FitContext, params: Params) -> Weights:
    """Copy the weights that the training of `init_from` kept at the step."""
    if context.init is None:
        raise CandidateFailed("checkpoint without init_from", "init_from: the candidate that is meant")
    start, kept = time.perf_counter(), map_tracked_folders(context.init.parent / TRACKED)
    if params.step not in kept:
        there = f"those of the steps {', '.join(map(str, kept))}" if kept else "none"
        knob = "params.step, one of these" if kept else "track: {points: 4} on the recipe of init_from"
        raise CandidateFailed(f"no weights were kept of step {params.step}, but {there}", knob)
    kind = context.init.name  # the folder is named after the kind of weights
    shutil.copytree(kept[params.step] / kind, context.folder / kind)
    made = TrainingRecord(copying_s=round(time.perf_counter() - start, 3))
    return made_weights(context, kind, made)


def _list_settings(at: RescueSituation) -> list[TrialSetting] | str:
    """List the steps a rescue tries: the best on the target within the margin, else the least forgetful."""
    known = [
        (at.sign * p.target, p.capability, p.step)
        for p in at.tracked
        if p.target is not None and p.capability is not None
    ]
    if not known:
        return "nothing was measured along its training: its recipe has no track, or no task counts"
    within = [point for point in known if point[1] >= -at.margin]
    # Ties are broken by the other value, so that no point beats it, then by the earlier step.
    best = max(within or known, key=lambda p: (p[0], p[1], -p[2]) if within else (p[1], p[0], -p[2]))
    step = best[2]
    return [TrialSetting({"step": step}, f"step={step}", f"as it was at step {step}, no training")]


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter or delta or model",
    seeded=True,
    init_from="adapter or delta or model",
    checks=MethodChecks(requires_init("the candidate whose training was tracked"), of_init=init_problems),
    rescue=RescueStep("earlier", _list_settings, place=1),
)
