"""Claim about Spectrum and QLoRA: target and peak memory on a GPU, each trained in its own process."""

from harness import formatting
from harness.records import Run
from reports.studies.claims.claim import ClaimResult, judge, judge_all
from reports.studies.claims.fine_tunes import (
    FOLDER,
    change_over_seeds,
    list_target_figures,
    prepare,
    read_training_s,
    run_recipes,
)

_SIMILAR = 1.25  # times the memory of QLoRA


def spectrum_against_qlora() -> ClaimResult:
    """Compare the targets and the peak memory of Spectrum and QLoRA."""
    session, runs = run_recipes(prepare(FOLDER, suites=False), ("qlora", "spectrum"), (0,))
    (new,), (base,) = runs["spectrum"], runs["qlora"]
    target = change_over_seeds(session, [session.target], [new], [base])
    new_gib, base_gib = _read_peak_gib(new), _read_peak_gib(base)
    similar = "holds" if new_gib <= _SIMILAR * base_gib else "does not hold here"
    return ClaimResult(
        f"target {formatting.points(target.score, target.low, target.high)} points, at a peak of {new_gib:.1f} "
        f"beside {base_gib:.1f} GiB",
        judge_all(judge(target.low, target.high, least=0.0), similar),
        list_target_figures(target) | {"spectrum_gib": new_gib, "qlora_gib": base_gib},
        f"spectrum at 1e-4 on a quarter of each type's matrices against qlora of rank 16 at 1e-3, one seed, 320 rows, "
        f"{target.n} items of the target, trainings of {read_training_s(new):.0f} and {read_training_s(base):.0f} s",
    )


def _read_peak_gib(run: Run) -> float:
    return (run.training and run.training.peak_memory_gib) or 0.0
