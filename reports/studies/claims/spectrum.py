"""Claim about Spectrum and QLoRA: target and, on a GPU, peak memory, each trained in its own process there."""

from collections.abc import Sequence
from statistics import fmean

from harness import formatting
from harness.models.hardware import visible_gpus
from harness.records import Run
from reports.studies.claims.claim import ClaimResult, Verdict, judge, judge_all
from reports.studies.claims.fine_tunes import (
    FOLDER,
    change_over_seeds,
    list_target_figures,
    mean_training_s,
    prepare,
    run_recipes,
)

_SIMILAR = 1.25  # times the memory of QLoRA
_ON_GPU = "one training of each peaked at 1.0 beside 0.7 GiB on an H200, 2026-11-26"


def spectrum_against_qlora() -> ClaimResult:
    """Compare the targets and the peak memory of Spectrum and QLoRA; without a GPU memory is not decided."""
    session, runs = run_recipes(prepare(FOLDER, suites=False), ("qlora", "spectrum"))
    new, base = runs["spectrum"], runs["qlora"]
    target = change_over_seeds(session, [session.target], new, base)
    each = [change_over_seeds(session, [session.target], [n], [b]).score for n, b in zip(new, base, strict=True)]
    text = f"target {formatting.points(target.score, target.low, target.high)} points"
    figures = list_target_figures(target)
    similar: Verdict = "not decided"
    if visible_gpus():
        new_gib, base_gib = _mean_peak_gib(new), _mean_peak_gib(base)
        similar = "holds" if new_gib <= _SIMILAR * base_gib else "does not hold here"
        text += f", at a peak of {new_gib:.1f} beside {base_gib:.1f} GiB"
        figures |= {"spectrum_gib": new_gib, "qlora_gib": base_gib}
    else:
        text += f"; memory not compared, because a CPU computes NF4 in 16 bits ({_ON_GPU})"
    return ClaimResult(
        text,
        judge_all(judge(target.low, target.high, least=0.0), similar),
        figures,
        f"spectrum at 1e-4 on a quarter of each type's matrices against qlora of rank 16 at 1e-3, {len(new)} seeds "
        f"(target {', '.join(map(formatting.points, each))}), 320 rows, {target.n} items of the target, trainings of "
        f"{mean_training_s(new):.0f} and {mean_training_s(base):.0f} s",
    )


def _mean_peak_gib(runs: Sequence[Run]) -> float:
    return fmean((run.training and run.training.peak_memory_gib) or 0.0 for run in runs)
