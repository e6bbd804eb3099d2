"""Stored rows of runs and of bases, and the measurements of control arms."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property

from harness import plugins, provenance, store
from harness.analysis import comparison
from harness.analysis.answers import add_samples, list_each_answer
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.control_arm_drift import AA_FLIPS, ControlFacts, has_drifted
from harness.analysis.estimators import Estimate
from harness.data import Split
from harness.data.row_traits import reported_cases
from harness.errors import UserError
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Fold, MeasuredTask
from harness.models.hub import ModelSource
from harness.records import Run, Sample, SampleResult
from harness.spec import Task
from harness.store import Store


def is_cross_validated(folds: Sequence[Fold], candidate: ResolvedCandidate) -> bool:
    """Tell whether a candidate differs between folds, by weights or by prompts."""
    trained = any(plugins.method(recipe.method).draws_from for recipe in candidate.lineage.values())
    return bool(folds) and (trained or bool(set(candidate.recipe.prompting) - {"zero_shot"}))


def refuse_folds(folds: Sequence[Fold], operation: str, why: str) -> None:
    """Refuse an operation that a target tested in folds does not support."""
    if folds:
        found = f"folds: {len(folds)}, {why}"
        step = "a file of test rows (data.test), or one that is split once (data.all without folds)"
        raise UserError(operation, found, "test rows that nothing shipped was trained on", step)


Rows = list[SampleResult]
Runs = Sequence[Run]
FoundRuns = Sequence[Run | None]  # stored runs of requests, or None
Facts = Sequence[CandidateFacts]
EdgeCases = Mapping[str, Collection[str]]  # test item ids by edge case


def rows_by_slice(rows: Sequence[SampleResult], edge_cases: EdgeCases) -> dict[str, Rows]:
    """Return the rows of each slice and of each edge case, by name."""
    names = sorted({row.slice for row in rows} - {""})
    by_slice = {name: [row for row in rows if row.slice == name] for name in names}
    return by_slice | {case: [r for r in rows if r.example_id in ids] for case, ids in edge_cases.items()}


class StoredRows:
    """Reads whole row sets once, and judges control arms once; `texts` also reads the suites' texts."""

    def __init__(self, at: Store, *, texts: bool = True) -> None:
        self.at, self.texts = at, texts
        self._whole: dict[str, Rows] = {}
        self._controls: dict[str, ControlFacts] = {}

    def prepare(self, rows_digests: Iterable[str], *, texts: bool = True) -> None:
        """Read all needed row sets that are not cached yet, in one query."""
        self._whole |= store.read_many(self.at, set(rows_digests) - self._whole.keys(), texts=texts)

    def whole(self, rows_digest: str) -> Rows:
        """Return all rows of a set."""
        self.prepare([rows_digest])
        return self._whole[rows_digest]

    def drawn(self, run: Run, key: str) -> Mapping[str, Sequence[Sample]]:
        """Return the sampled answers to the items of one task and split; empty for greedy decoding."""
        return store.read_drawn(self.at, run.rows[key]) if run.decoding else {}

    def cut(self, run: Run, task: Task, split: Split = "test") -> Rows:
        """Return a run's answers to a target, within its limit."""
        return self.whole(run.rows[f"{task.name}/{split}"])[: getattr(task.data.limits, split)]

    def with_drawn(self, run: Run, task: Task, split: Split = "test") -> Rows:
        """Return a run's answers to a target, within its limit, with all samples of each item."""
        return add_samples(self.cut(run, task, split), self.drawn(run, f"{task.name}/{split}"))

    def controls_of(self, run: Run) -> list[ControlFacts]:
        """List the control measurements of a run's blocks, each once."""
        origins = [store.origins(self.at, rows_digest).values() for rows_digest in set(run.rows.values())]
        control_ids = {origin.control for of_rows in origins for origin in of_rows if origin.control}
        if control_ids and len(store.controls(self.at)) != len(self._controls):  # a new one is stored
            rates, facts_by_id = store.noise_rates(self.at), dict[str, ControlFacts]()
            environment = cache(lambda key: store.read_environment(self.at, key))
            for control in store.controls(self.at):
                now = environment(control.environment)
                key = (control.precision, now.get("device", ""))  # a card's rate is not that of a CPU
                flips, n = rates.get(key) or AA_FLIPS.get(control.precision, AA_FLIPS["bf16"])
                same = [b for b in control.blocks if b.environment == control.environment]
                other_blocks = [b for b in control.blocks if b.environment != control.environment]
                other_environments = dict.fromkeys(b.environment for b in other_blocks)
                changed = [provenance.changes(environment(key), now) for key in other_environments]
                facts = ControlFacts(
                    id=control.id,
                    n_blocks=len(control.blocks),
                    n_same=sum(b.n for b in same),
                    n_other=sum(b.n for b in other_blocks),
                    reworded=tuple(item for b in control.blocks for item in b.reworded),
                    differing=tuple(item for b in same for item in b.differing),
                    flipped=tuple(item for b in other_blocks for item in b.flipped),
                    aa_flips=flips,
                    aa_n=n,
                    changed="; ".join(dict.fromkeys(changed)),
                )
                facts_by_id[control.id] = facts
                if key[1] and not has_drifted(facts):  # the device is unknown without its environment
                    rates[key] = (flips + len(facts.flipped), n + facts.n_other)
            self._controls = facts_by_id
        return [self._controls[key] for key in sorted(control_ids) if key in self._controls]


class Reader(StoredRows):
    """Reads a row set once, cut to the items of this experiment, with their inclusion weights."""

    def __init__(self, at: Store, tasks: Sequence[MeasuredTask]) -> None:
        super().__init__(at)
        self._tasks = tasks
        self.facts: dict[str, tuple[Run, CandidateFacts]] = {}  # of described runs, by id

    @cached_property
    def edge_cases(self) -> EdgeCases:
        """The reported edge cases of the target, each with the ids of its test items."""
        items = self._tasks[0].items
        return reported_cases(items.train, items.test)

    def read(self, run: Run, measured: MeasuredTask, split: Split = "test") -> Rows:
        """Return a run's rows of one task and split."""
        rows_digest, n = run.rows[f"{measured.task.name}/{split}"], measured.size(split)
        if len(self._whole.get(rows_digest, ())) < n:  # a grown set is read again
            self._whole |= store.read_many(self.at, [rows_digest])
        rows, weights = self._whole[rows_digest][:n], measured.weights
        return [replace(row, weight=weights[row.example_id]) for row in rows] if weights else rows

    def answers(self, run: Run, measured: MeasuredTask) -> Rows:
        """Return a row for each answer of a run to a task; sampled answers to an item get one row each."""
        rows = self.read(run, measured)
        return list_each_answer(rows, self.drawn(run, f"{measured.task.name}/test")) or rows

    def scores(self, run: Run) -> dict[str, dict[str, Estimate]]:
        """Estimate every metric with a scored item, on every task that a run answered on test."""
        scores = dict[str, dict[str, Estimate]]()
        for m in (m for m in self._tasks if f"{m.task.name}/test" in run.rows):
            rows = self.read(run, m)
            scored = {n: f for n, f in m.metrics.items() if comparison.is_comparable(f, rows, rows)}
            scores[m.task.name] = {name: comparison.estimate(metric, rows) for name, metric in scored.items()}
        return scores


BASE_ARM = "capability suite of the base"


def list_measured_bases(candidates: Collection[ResolvedCandidate]) -> list[ModelSource]:
    """List the bases that gated candidates are measured against: as published, then as served."""
    gated = [c for c in candidates if not c.is_target_only]
    return list(dict.fromkeys([*(c.base for c in gated), *(c.served_base for c in gated)]))


def arm_label(base_model: str, source: ModelSource) -> str:
    """Name the measurement of a base on the capability suite; `base_model` is the experiment's own."""
    base_name = "" if source.name == base_model else f" {source.name}"
    return f"{BASE_ARM}{base_name}{' in ' * bool(source.quantization)}{source.quantization.upper()}"
