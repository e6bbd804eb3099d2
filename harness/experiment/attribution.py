"""Split a candidate's change into steps: what quantisation did, and what training did after it.

Invariant: every step compares stored rows of the same items; nothing is measured here.
"""

from collections.abc import Iterable, Mapping, Sequence

from harness import comparison
from harness.comparison import Comparison
from harness.evaluation.candidates import source_of
from harness.evaluation.session import Bench, Measured
from harness.gating import TaskComparison
from harness.gating.verdict import in_macro
from harness.records import Run, SampleResult
from harness.report import Step

Rows = Mapping[str, Sequence[SampleResult]]


def steps_of(
    bench: Bench,
    run: Run,
    runs: Iterable[Run],
    rows: Mapping[str, Rows],
    tasks: Sequence[TaskComparison],
) -> tuple[Step, ...]:
    """List the steps from the base to a run: over its quantised base, and from the run it starts from.

    `rows` maps the digests of bases, and the ids of runs, to rows by task; `tasks` are the run's
    comparisons with the base, which say what counts.
    """
    counting = {t.task.name for t in tasks if in_macro(t)}
    out = []
    if run.served_digest in rows and run.base_digest in rows:
        base, served, own = rows[run.base_digest], rows[run.served_digest], rows[run.run_id]
        out += [
            _step(bench, "quantisation", "NF4 base", "base", served, base, counting),
            _step(bench, "training", run.candidate, "NF4 base", own, served, counting),
        ]
    parent = parent_of(bench, run, runs)
    if parent is not None:
        own, old = rows[run.run_id], rows[parent.run_id]
        what = "training on pairs" if "n_pairs" in run.training else "scaling"
        out.append(_step(bench, what, run.candidate, parent.candidate, own, old, counting))
    return tuple(out)


def parent_of(bench: Bench, run: Run, runs: Iterable[Run]) -> Run | None:
    """Find the run whose adapter was trained further or scaled: of the same seed, where there is one."""
    init = source_of(bench, bench.experiment.candidates[run.candidate]).init_from
    made = [r for r in runs if r.candidate == init and r.state == "done"]
    return next((r for r in made if r.seed == run.seed), made[0] if made else None)


def _step(bench: Bench, what: str, new: str, base: str, own: Rows, old: Rows, counting: set[str]) -> Step:
    compared = {m.task.name: _compared(bench, m, old, own) for m in bench.suites}
    counted = [c for name, c in compared.items() if name in counting]
    target = bench.target.task.name
    return Step(
        what,
        new,
        base,
        comparison.mean_change(counted) if counted else None,
        tuple(compared.values()),
        _compared(bench, bench.target, old, own) if target in own and target in old else None,
    )


def _compared(bench: Bench, m: Measured, old: Rows, new: Rows) -> Comparison:
    name = m.task.name
    metric = m.primary
    return comparison.compare_rows(metric, old[name], new[name], alpha=bench.experiment.gate.alpha)
