"""From finished runs to a report: estimates, paired comparisons, verdicts and the decision.

Invariant: reads rows from the store and computes nothing that needs a model.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean

from harness import comparison, decide, estimate, gating, store
from harness.comparison import Comparison, Estimate
from harness.data import Split
from harness.decide import CandidateFacts, LearningCurve
from harness.errors import CandidateFailed, IncompatibleRuns
from harness.experiment.control import controls_of, judged_controls
from harness.experiment.prepare import arms
from harness.experiment.steps import steps_of
from harness.gating import ControlFacts, Measurement, TargetFacts, TaskComparison
from harness.records import Run, SampleResult
from harness.report import ExperimentReport, Flip, Step, flips_of, origin
from harness.run import measured_arm
from harness.run.bench import Bench, Measured
from harness.spec import GatePolicy

Rows = list[SampleResult]


class Reader:
    """Reads a row set once, cut to the items of this experiment, with their inclusion weights."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._weights = {m.task.name: m.weights for m in bench.suites if m.weights is not None}
        self.rows = cache(self._rows)
        self._whole: dict[str, Rows] = {}
        self._controls: dict[str, ControlFacts] = {}

    def prepare(self, rows_digests: Iterable[str]) -> None:
        """Read row sets that will be asked for, as far as they are not held, in one go."""
        self._whole |= store.read_many(self._bench.store, set(rows_digests) - self._whole.keys())

    def _rows(self, rows_digest: str, n: int) -> Rows:
        if len(self._whole.get(rows_digest, ())) < n:  # one that has grown is read again
            self._whole |= store.read_many(self._bench.store, [rows_digest])
        rows = self._whole[rows_digest][:n]
        weights = self._weights.get(rows[0].task) if rows else None
        return [replace(row, weight=weights[row.example_id]) for row in rows] if weights else rows

    def of(self, run: Run, measured: Measured, split: Split = "test") -> Rows:
        """Return a run's rows of one task and split."""
        return self.rows(run.rows[f"{measured.task.name}/{split}"], measured.size(split))

    def controls(self) -> Mapping[str, ControlFacts]:
        """Return what the store's control arms found; judged anew when one has come."""
        if len(store.controls(self._bench.store)) != len(self._controls):
            self._controls = judged_controls(self._bench.store)
        return self._controls

    def scores(self, run: Run) -> dict[str, dict[str, Estimate]]:
        """Return every metric of every task that a run answered on test."""
        return {
            m.task.name: {
                name: comparison.estimate(metric, self.of(run, m)) for name, metric in m.metrics.items()
            }
            for m in (self._bench.target, *self._bench.suites)
            if f"{m.task.name}/test" in run.rows
        }


def report_of(
    bench: Bench,
    reader: Reader,
    runs: Sequence[Run],
    *,
    smoke: bool,
    header: dict[str, object],
    notes: Sequence[str],
    curve_of: Callable[[Sequence[CandidateFacts]], LearningCurve | None] = lambda facts: None,
) -> ExperimentReport:
    """Compare, judge and decide over the runs of one experiment; `curve_of` finds its learning curve."""
    reader.prepare(digest for run in runs for digest in run.rows.values())
    base = bases_of(bench, reader, runs)
    measured = decide.budgeted((facts_of(bench, reader, run) for run in runs), bench.experiment.decide)
    facts = _with_comparisons(bench, reader, runs, measured)
    tasks = _all_comparisons(bench, reader, runs, base)
    steps = _steps(bench, reader, runs, base, tasks)
    judged = tuple(
        replace(f, verdict=_verdict(bench, reader, run, f, tasks[run.run_id], base[run.base_digest]))
        if run.state == "done"
        else f
        for f, run in zip(facts, runs, strict=True)
    )
    primary, policy = bench.target.primary, bench.experiment.gate
    curve = curve_of(judged)
    closed_labels = any(e.choices for e in bench.target.items.test)
    has_documents = bool(bench.target.items.documents)
    decision = decide.decide(
        judged,
        bench.experiment.decide,
        closed_labels=closed_labels,
        has_documents=has_documents,
        metric_name=primary.name,
        higher_is_better=primary.higher_is_better,
        curve=curve,
    )
    return ExperimentReport(
        experiment=bench.experiment.name,
        base_model=bench.experiment.base_model,
        metric=primary.name,
        facts=judged,
        comparisons={f.label: _shown(tasks[f.run_id]) for f in judged if f.run_id in tasks and f.trained},
        decision=decision,
        header=header,
        smoke=smoke,
        notes=(*notes, *_unanswered(bench, reader, runs), *_noteworthy(bench, reader, runs)),
        not_admitted=_not_admitted(tasks.values(), policy),
        steps={f.label: steps[f.run_id] for f in judged if steps.get(f.run_id)},
        seeds=decide.over_seeds(judged, primary.name),
        ablations=_ablations(bench, reader, runs, judged),
        curve=curve,
        task=bench.target.task.name,
        macro_margin=policy.macro if isinstance(policy.macro, float) else None,
        undecided_fails=policy.on_inconclusive == "fail",
        margins=_margins(tasks.values(), policy),
        flips=_flips(bench, reader, runs, judged, tasks, base),
        origins={f.label: origin(run) for f, run in zip(judged, runs, strict=True)},
        policy=bench.experiment.decide,
        closed_labels=closed_labels,
        has_documents=has_documents,
    )


def bases_of(bench: Bench, reader: Reader, runs: Iterable[Run]) -> dict[str, dict[str, Rows]]:
    """Map digests of the bases that runs are measured against to their rows of each suite's task.

    Raises:
        IncompatibleRuns: a base's general ability was not measured as it is written now.
    """
    done = [run for run in runs if run.state == "done"]
    out: dict[str, dict[str, Rows]] = {}
    for source in arms(bench, [bench.experiment.candidates[run.candidate] for run in done]):
        rows = measured_arm(bench, source)
        if rows is not None:
            reader.prepare(rows.values())
            sizes = {m.task.name: m.size("test") for m in bench.suites}
            out[source.weights_digest] = {name: reader.rows(rows[name], n) for name, n in sizes.items()}
    if any(run.base_digest not in out for run in done):
        raise IncompatibleRuns(
            f"{bench.store.folder}: found no rows of the base's general ability as written now; "
            "expected them beside the runs; next: harness compare"
        )
    return out


def _steps(
    bench: Bench,
    reader: Reader,
    runs: Sequence[Run],
    base: Mapping[str, Mapping[str, Rows]],
    tasks: Mapping[str, Sequence[TaskComparison]],
) -> dict[str, tuple[Step, ...]]:
    """Split the changes of fine-tunes that went over a quantised base or another run."""
    done = [run for run in runs if run.run_id in tasks and f"{bench.target.task.name}/test" in run.rows]
    rows: dict[str, Mapping[str, Rows]] = dict(base)
    for run in done:
        measured = (m for m in (bench.target, *bench.suites) if f"{m.task.name}/test" in run.rows)
        rows[run.run_id] = {m.task.name: reader.of(run, m) for m in measured}
    tuned = (run for run in done if run.method not in ("base", "classifier"))
    return {run.run_id: steps_of(bench, run, done, rows, tasks[run.run_id]) for run in tuned}


def _unanswered(bench: Bench, reader: Reader, runs: Iterable[Run]) -> list[str]:
    """Count the test rows that could not be asked or scored, with the first one's reason."""
    out = []
    for run in runs:
        if run.state == "done":
            errors = [r for r in reader.of(run, bench.target) if r.status == "error"]
            if errors:
                n = len(bench.target.items.test)
                out.append(
                    f"{run.candidate}: {len(errors)} of {n} test rows are errors and left out, the first one "
                    f"{errors[0].example_id}: {errors[0].error}"
                )
    return out


# What a reader should know of single items, and how a row shows it.
_NOTEWORTHY: Mapping[str, Callable[[SampleResult], bool]] = {
    "ties between the right and the best other choice": lambda row: row.margin == 0,
    "items with a token across the boundary of prompt and choice": lambda row: row.boundary_merged,
}


def _noteworthy(bench: Bench, reader: Reader, runs: Iterable[Run]) -> Iterator[str]:
    """Count such items by candidate and task; say what is alike once."""
    done = [run for run in runs if run.state == "done"]
    for what, shows in _NOTEWORTHY.items():
        alike: dict[str, list[str]] = {}
        for run in done:
            asked = (m for m in (bench.target, *bench.suites) if f"{m.task.name}/test" in run.rows)
            counts = {m.task.name: sum(map(shows, reader.of(run, m))) for m in asked}
            if found := [f"{n} of {task}" for task, n in counts.items() if n]:
                alike.setdefault(", ".join(found), []).append(run.candidate)
        yield from (f"{', '.join(names)}: {what}: {counted}" for counted, names in alike.items())


def facts_of(bench: Bench, reader: Reader, run: Run) -> CandidateFacts:
    """Say what one run measured by itself, before it is compared with another.

    Raises:
        CandidateFailed: every test row is an error.
    """
    facts = CandidateFacts(
        name=run.candidate,
        run_id=run.run_id,
        method=run.method,
        prompting=run.prompting,
        answer=run.answer,
        seed=run.seed,
        trained=run.weights_digest != run.base_digest,
        state=run.state,
        error=run.error,
    )
    if run.state == "failed":
        return facts
    metric, test = bench.target.primary, reader.of(run, bench.target)
    if all(row.status == "error" for row in test):
        raise CandidateFailed(
            f"no test row could be answered: {test[0].error}", "fewer shots or passages, or a longer context"
        )
    hour, tokens = bench.experiment.decide.device_hour_usd, _tokens(run, test)
    recalls = [r.recall for r in test if r.recall is not None]
    return replace(
        facts,
        target=comparison.estimate(metric, test),
        validation=comparison.estimate(metric, reader.of(run, bench.target, "validation")).score,
        slices={
            s: comparison.estimate(metric, [r for r in test if r.slice == s])
            for s in sorted({r.slice for r in test if r.slice})
        },
        cost_per_1k_usd=_cost_per_1k_usd(bench, run, test, tokens),
        tokens=tokens,
        latency_p50_s=run.latency["p50_s"],
        requests_per_s=1 / busy_s if (busy_s := fmean(r.compute_s for r in test)) > 0 else None,
        measured_on="its server, over HTTP"
        if run.method == "endpoint"
        else run.provenance.get("device") or "",
        training_cost_usd=estimate.price_usd(
            sum(run.training.get(name, 0.0) for name in ("wall_s", "init_wall_s")), bench.machine.device, hour
        ),
        n_train=_n_train(bench, run),
        recall=fmean(recalls) if recalls else None,
        training=run.training,
    )


def _tokens(run: Run, test: Rows) -> estimate.Tokens | None:
    """Average the tokens of a request; a run that was stored before shared beginnings were counted has none.

    None of a classifier, which no provider sells by the token, and of a server that counts none.
    """
    prompt = fmean(r.n_prompt_tokens for r in test)
    if run.method == "classifier" or not prompt:
        return None
    shared = min(prompt, run.latency.get("shared_prompt_tokens", 0.0))
    return estimate.Tokens(prompt, shared, fmean(r.n_output_tokens for r in test))


def _cost_per_1k_usd(bench: Bench, run: Run, test: Rows, tokens: estimate.Tokens | None) -> float | None:
    """Price 1,000 requests by their tokens where the policy sets prices, else by device time.

    None of an endpoint without prices: its device is not this one.
    """
    policy = bench.experiment.decide
    if tokens is not None and policy.usd_per_million_tokens is not None:
        return 1000 * estimate.request_usd(tokens, policy.usd_per_million_tokens)
    if run.method == "endpoint":
        return None
    return estimate.price_usd(
        1000 * fmean(r.compute_s for r in test), bench.machine.device, policy.device_hour_usd
    )


def _n_train(bench: Bench, run: Run) -> int:
    """Count what was trained on: rows, or pairs, or both where training on pairs went on from rows.

    0 of an adapter made elsewhere and of an endpoint, whose data nobody knows.
    """
    if run.method in ("adapter", "endpoint"):
        return 0
    rows = len(bench.target.items.train)
    if "n_pairs" not in run.training:
        return rows
    return int(run.training["n_pairs"]) + (rows if "init_wall_s" in run.training else 0)


def _with_comparisons(
    bench: Bench, reader: Reader, runs: Sequence[Run], facts: Sequence[CandidateFacts]
) -> list[CandidateFacts]:
    """Add the paired differences to the best untrained candidate and to the plain prompt."""
    metric = bench.target.primary
    best = decide.best_untrained(facts, higher_is_better=metric.higher_is_better)
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    prompts = [r for r in by_name.values() if _is_prompt(r)]
    prompt_of = {r.base_digest: r for r in reversed(prompts)}
    first = prompts[0] if prompts else None

    def against(run: Run, other: Run | None) -> Comparison | None:
        if other is None or run.state == "failed" or run.run_id == other.run_id:
            return None
        return comparison.compare_rows(metric, reader.of(other, bench.target), reader.of(run, bench.target))

    return [
        replace(
            f,
            vs_untrained=against(run, by_name.get(best or "")),
            vs_prompt=against(run, prompt_of.get(run.base_digest, first)),
        )
        for f, run in zip(facts, runs, strict=True)
    ]


def _ablations(
    bench: Bench, reader: Reader, runs: Sequence[Run], facts: Sequence[CandidateFacts]
) -> tuple[decide.Ablation, ...]:
    metric, by_id = bench.target.primary, {run.run_id: run for run in runs}

    def pair(old: CandidateFacts, new: CandidateFacts) -> Comparison:
        base, now = (reader.of(by_id[f.run_id], bench.target) for f in (old, new))
        return comparison.compare_rows(metric, base, now)

    in_file = {name: at for at, name in enumerate(bench.experiment.candidates)}
    ordered = sorted(facts, key=lambda f: in_file[f.name])
    return decide.ablations(ordered, pair, metric.name, higher_is_better=metric.higher_is_better)


def _is_prompt(run: Run) -> bool:
    return run.method == "base" and run.prompting == "zero_shot" and run.answer == "generate"


def _all_comparisons(
    bench: Bench, reader: Reader, runs: Sequence[Run], base: Mapping[str, Mapping[str, Rows]]
) -> dict[str, list[TaskComparison]]:
    """Compare every run with its own base, once for all runs of the same weights."""
    done = [run for run in runs if run.state == "done"]
    one_of_each = {run.weights_digest: run for run in done}
    by_weights = {
        w: _task_comparisons(bench, reader, run, base[run.base_digest]) for w, run in one_of_each.items()
    }
    return {run.run_id: by_weights[run.weights_digest] for run in done}


def _task_comparisons(
    bench: Bench, reader: Reader, run: Run, base: Mapping[str, Rows]
) -> list[TaskComparison]:
    """Compare a run with the base on every metric of every capability task, the primary one first."""
    measured = measured_of(bench, reader, run, base)
    identical = run.weights_digest == run.base_digest
    return gating.compare_measurements(measured, bench.experiment.gate.alpha, identical=identical)


def measured_of(bench: Bench, reader: Reader, run: Run, base: Mapping[str, Rows]) -> list[Measurement]:
    """Put the rows of both arms beside each task that the run answered, with its A/A noise."""
    noise = store.flip_rates(bench.store, run.base_digest, bench.machine.precision)
    return [
        Measurement(
            m.task, m.role, m.suite, m.metrics, base[m.task.name], reader.of(run, m), noise.get(m.task.name)
        )
        for m in bench.suites
        if f"{m.task.name}/test" in run.rows
    ]


def _verdict(
    bench: Bench,
    reader: Reader,
    run: Run,
    facts: CandidateFacts,
    tasks: Sequence[TaskComparison],
    base: Mapping[str, Rows],
) -> gating.Verdict | None:
    """Judge a run; what has no general ability (a classifier) has no verdict."""
    if not tasks or facts.target is None:
        return None
    return gating.judge_measurements(
        measured_of(bench, reader, run, base),
        tasks,
        gating.policy_for(bench.experiment.gate, trained=facts.trained),
        target=TargetFacts(facts.target, facts.vs_untrained),
        identical=run.weights_digest == run.base_digest,
        controls=controls_of(bench.store, run, reader.controls),
    )


def _shown(tasks: Iterable[TaskComparison]) -> tuple[Comparison, ...]:
    return tuple(t.comparison for t in tasks)


def _not_admitted(runs: Collection[Sequence[TaskComparison]], policy: GatePolicy) -> dict[str, str]:
    """Say of each task that the gate leaves out why it does."""
    out = {t.task.name: t.why_not for tasks in runs for t in tasks if t.why_not and t.role != "regression"}
    safety = {t.task.name: t.suite for tasks in runs for t in tasks if t.role == "safety"}
    named = set(policy.critical)
    unjudged = {name for name, suite in safety.items() if not {name, suite} & named}
    return out | {name: f"{name} is reported; gate.critical would judge it" for name in unjudged}


def _margins(runs: Iterable[Sequence[TaskComparison]], policy: GatePolicy) -> dict[str, float]:
    """Map the tasks that the gate may veto to the loss that it takes for a regression."""
    return {t.task.name: gating.margin_of(t, policy) for tasks in runs for t in tasks if gating.in_macro(t)}


def _flips(
    bench: Bench,
    reader: Reader,
    runs: Sequence[Run],
    facts: Sequence[CandidateFacts],
    tasks: Mapping[str, Sequence[TaskComparison]],
    base: Mapping[str, Mapping[str, Rows]],
) -> dict[str, tuple[Flip, ...]]:
    """Show items that fine-tunes lost and gained: on the suites only once for the same weights."""
    best = decide.best_untrained(facts, higher_is_better=bench.target.primary.higher_is_better) or ""
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    out: dict[str, tuple[Flip, ...]] = {}
    seen: set[str] = set()
    for f, run in zip(facts, runs, strict=True):
        if f.state == "failed" or not decide.fine_tuned(f):
            continue
        shown: list[Flip] = []
        if f.vs_untrained:
            old, new = (reader.of(r, bench.target) for r in (by_name[best], run))
            shown += flips_of(f.vs_untrained, old, new, best)
        if run.weights_digest not in seen:
            by_task = {m.task.name: m for m in measured_of(bench, reader, run, base[run.base_digest])}
            shown += (flip for t in tasks[run.run_id] for flip in _flips_of_task(t, by_task[t.task.name]))
        seen.add(run.weights_digest)
        out[f.label] = tuple(shown)
    return out


def _flips_of_task(t: TaskComparison, measured: Measurement) -> list[Flip]:
    """Show items of a task's primary metric; a change in bits per byte is nothing to be read."""
    if t.comparison.metric != t.task.primary_metric or gating.is_reported_only(t.task):
        return []
    return flips_of(t.comparison, measured.base, measured.new, "base")
