"""Measurements of one run before it is compared with others, and the learning curve of a fine-tune.

Invariant: validation and test rows are read as stored; people's labels correct a judge's scores on both.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import plugins, store
from harness.analysis import comparison
from harness.analysis.answers import RetrievalUse, list_each_answer, retrieval_use, several_answers
from harness.analysis.candidate_facts import BaseSize, CandidateFacts, facts_without_rows, judged_run
from harness.analysis.comparison import estimate
from harness.analysis.economics import apply_budgets, index_usd_per_1k
from harness.analysis.estimators import is_judge
from harness.analysis.target_scores import LearningCurve, TrainingSize, learning_curve
from harness.data import Split, part_of
from harness.errors import HarnessError, UserError
from harness.evaluation import costs, has_instruction
from harness.evaluation.candidate_rows import n_rows, n_taught_rows, rows_cost_usd
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.row_sets import RunRequest, suite_sets, target_sets, total_work
from harness.evaluation.session import MeasuredTask, Session, join_items
from harness.experiment.run_candidate import find_stored_runs, make_run
from harness.experiment.stored_rows import Facts, Reader, Rows, Runs, refuse_folds, rows_by_slice
from harness.experiment.study import (
    Study,
    TaskWeights,
    best_untrained_run,
    compute_s,
    correct_reached,
    count_missing,
    facts_on_target,
    judge_labels,
    mark_recipe,
)
from harness.experiment.trials import digest_prompts, fit_work
from harness.metrics import item_scores
from harness.models.artefacts import count_bytes
from harness.models.hub import shape
from harness.models.memory import weights_gb
from harness.records import Run, TokenCounts, digest
from harness.spec import Recipe, TokenPrices


def facts_of(session: Session, reader: Reader, run: Run) -> CandidateFacts:
    """Return the facts of one run before comparisons: scores on validation and test, cost, speed.

    Raises CandidateFailed if all test rows are errors.
    """
    cached_run, facts = reader.facts.get(run.run_id, (None, None))
    if facts is None or cached_run is not run:
        facts = facts_without_rows(run) if run.state == "failed" else _Measured(session, reader, run).facts()
        reader.facts[run.run_id] = run, facts
    return facts


class _Measured(NamedTuple):
    session: Session
    reader: Reader
    run: Run

    @property
    def candidate(self) -> ResolvedCandidate:
        return self.session.candidates[self.run.candidate]

    @property
    def is_remote(self) -> bool:
        return plugins.method(self.run.method).is_remote

    def rows(self, split: Split = "test") -> Rows:
        return self.reader.read(self.run, self.session.target, split)

    def price(self, device_s: float) -> float:
        hour = self.session.experiment.decide.device_hour_usd
        return costs.price_usd(device_s, self.session.machine.device, hour)

    def facts(self) -> CandidateFacts:
        session, run, candidate = self.session, self.run, self.candidate
        recipe, items = candidate.recipe, session.target.items
        metric, test = session.target.primary, self.rows()
        facts = facts_on_target(run, metric, test, self.rows("validation"))
        cost, disturbed = self.cost_per_1k_usd(test, facts.tokens), facts.speed.disturbed
        if cost is None and run.latency.get("compute_contended") and not self.is_remote:
            by_time = self.price(1000 * run.latency.get("compute_s", 0.0))
            disturbed = {**disturbed, "cost_per_1k_usd": by_time}  # other work disturbed the timing
        recalls = [r.recall for r in test if r.recall is not None]
        retrieves = any(hasattr(plugins.load("prompting", name), "passages") for name in recipe.prompting)
        rows_of_slices, metrics = rows_by_slice(test, self.reader.edge_cases), session.target.metrics
        n_train, n_taught = self.count_rows()
        device = "its server, over HTTP" if self.is_remote else run.provenance.get("device") or ""
        base: BaseSize | None = None
        gb: float | None = None
        if candidate.method.makes_language_model and not candidate.is_remote:
            source = candidate.given or candidate.served_base
            if candidate.method.makes == "artefact" and not candidate.given:
                gb = count_bytes(Path(candidate.source.path or "")) / 1e9
            elif base_shape := shape(source):
                quantization = candidate.served_base.quantization
                gb = weights_gb(base_shape, session.machine.precision, quantization=quantization)
            base = BaseSize(Path(source.name).name, source.n_parameters, gb)
        answers = facts.answers._replace(
            recall=fmean(recalls) if recalls else None,
            retrieval=self.retrieval_use(),
            citations={n: estimate(m, test) for n, m in metrics.items() if n.startswith("citation_")},
            several=several_answers(metric, test, self.reader.drawn(run, f"{session.target.task.name}/test")),
        )
        return replace(
            mark_recipe(facts, recipe, session.experiment.candidates),
            slices={
                name: estimate(metric, rows)
                for name, rows in rows_of_slices.items()
                if comparison.is_comparable(metric, rows, rows)
            },
            cost_per_1k_usd=cost,
            index_per_1k_usd=index_usd_per_1k(session.experiment.decide) if retrieves else 0.0,
            speed=facts.speed._replace(disturbed=disturbed, measured_on=device),
            answers=answers,
            training_cost_usd=self.price(run.training.total_s),
            rows_cost_usd=rows_cost_usd(candidate, session.training_data),
            n_train=n_train,
            n_taught=n_taught,
            base=base,
            settings=self.settings(),
            training=run.training,
            parity=run.parity,
            is_instructed=has_instruction(session.target.task, recipe, [*items.validation, *items.test]),
        )

    def settings(self) -> tuple[str, ...]:
        # The settings that validation chose from: trials of the run's sweep or search, else the run itself.
        # Trials of another candidate's sweep do not count.
        run, recipe = self.run, self.candidate.recipe
        if run.training.sweep and not recipe.weights_of:
            how = [recipe.answer, recipe.prompting, recipe.system, recipe.template]
            trials = enumerate(run.training.sweep)
            return tuple(t.asked or digest([t.fit_key or [run.candidate, i], *how]) for i, t in trials)
        return (digest_prompts(run.weights_digest, recipe, self.rows("validation")) or run.candidate,)

    def retrieval_use(self) -> RetrievalUse | None:
        target, test = self.session.target, self.rows()
        metric = target.primary
        if not metric.unit.is_rate or not any(row.passages for row in test):
            return None
        examples = {e.id: e for e in target.items.test}
        # Several answers to an item are averaged only if none of them is selected.
        decoding = self.candidate.recipe.sampling
        is_mean = decoding is not None and decoding.choose == "first"
        if samples_by_item := self.reader.drawn(self.run, f"{target.task.name}/test") if is_mean else {}:
            test = list_each_answer(test, samples_by_item)
            examples = {row.example_id: examples[row.example_id.rpartition("#")[0]] for row in test}
        parts = {row.example_id: row.parts[metric.name] for row in test}
        scored = {i: np.array([values]) for i, values in parts.items() if values is not None}
        scores = {i: float(item_scores(metric, values)[0]) for i, values in scored.items()}
        right = {i: score if metric.higher_is_better else 1 - score for i, score in scores.items()}
        use = retrieval_use(test, right, examples, target.items.documents)
        return use._replace(by_answer=bool(samples_by_item)) if use else None

    def cost_per_1k_usd(self, test: Rows, tokens: TokenCounts | None) -> float | None:
        # Choosing shots or passages always takes device time, also for endpoints priced by the token.
        # None for an endpoint without prices, and if other work disturbed the timing.
        own_prices = self.candidate.source.params.get("usd_per_million_tokens")
        policy = self.session.experiment.decide
        prices = TokenPrices.model_validate(own_prices) if own_prices else policy.usd_per_million_tokens
        if tokens is not None and prices is not None:
            zero_shot = self.run.prompting == "zero_shot"
            prompting_s = 0.0 if zero_shot else self.run.latency.get("prompting_s", 0.0)
            return 1000 * costs.request_usd(tokens, prices) + self.price(1000 * prompting_s)
        busy_s = compute_s(self.run, test)
        return None if self.is_remote or busy_s is None else self.price(1000 * busy_s)

    def count_rows(self) -> tuple[int, int]:
        # Counts training rows and rows labelled by a teacher. Rows that a mixture repeats count once, as
        # they were labelled once. 0 for external adapters and endpoints, whose data are unknown.
        candidate, training, data = self.candidate, self.run.training, self.session.training_data
        if self.is_remote or plugins.method(self.run.method).made_elsewhere:
            return 0, 0
        recipe, init = candidate.source, candidate.init.source if candidate.init else None
        if training.n_pairs is None:
            return n_rows(data(recipe), recipe), n_taught_rows(data(recipe), recipe)
        taught = n_taught_rows(data(init), init) if init else 0
        if training.init_wall_s is None or (candidate.choosers and init is None):
            return training.n_pairs, taught
        init_recipe = init or Recipe()
        return training.n_pairs + n_rows(data(init_recipe), init_recipe), taught


SHARES = (0.125, 0.25, 0.5)
_LEAST = 8  # rows in the smallest share


def plan_curve(session: Session, selected: Iterable[str]) -> Work:
    """Estimate the costliest learning curve that validation may choose; refuse if none is possible."""
    refuse_folds(session.folds, "--learning-curve", "where a part of all rows would be tested on itself")
    trained = [candidate for name in selected if (candidate := session.candidates[name]).method.trains]
    if not trained:
        expected, step = "a candidate that is trained here", "add one, or leave --learning-curve out"
        raise UserError("--learning-curve", "no fine-tune among the candidates", expected, step)
    if (n_most := max(session.n_training_rows(candidate.name) for candidate in trained)) < _LEAST / SHARES[0]:
        expected = f"at least {_LEAST / SHARES[0]:.0f}, so that an eighth of them is {_LEAST}"
        raise UserError("--learning-curve", f"{n_most} training rows", expected, "leave it out")
    works, n = [], len(SHARES)
    for candidate in trained:
        trains = fit_work(session, candidate.source, session.first_seed)
        evaluation = total_work(target_sets(session, candidate.recipe, base_weights(session.source), 0))
        once = Work(*(round(sum(SHARES) * amount) for amount in trains))._replace(fits=n)
        works.append(times(evaluation, n) + once + Work(opened=n, runs=n))
    return max(works, key=session.seconds)


def make_curve(session: Session, runs: Runs, facts: Facts) -> None:
    """Train the fine-tune that the decision judges on each share of the data that is not done yet."""
    for part, request in _parts(session, runs, facts):
        name = request.candidate.name
        try:
            run = make_run(part, *request)
            session.progress.finish(name, f"{run.candidate}: trained and measured")
        except UserError:
            raise
        except HarnessError as error:
            session.progress.finish(name, f"{name} failed: {error}")


def fit_stored_curve(session: Session, reader: Reader, runs: Runs, facts: Facts) -> LearningCurve | None:
    """Fit the learning curve of stored runs; None if there are none or fewer than four sizes."""
    name = _curve_candidate(session.candidates, facts)
    prefix = f"{session.experiment.name}-{name}@"
    if name is None or not any(path.name.startswith(prefix) for path in session.store.folder.glob("*@*")):
        return None
    parts = [(part, find_stored_runs(part, [request])[0]) for part, request in _parts(session, runs, facts)]
    trained = [(part, run) for part, run in parts if run and run.state == "done"]
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    points = list[TrainingSize]()
    for part, run in [*trained, (session, whole)]:
        cost_usd, rows = facts_of(part, reader, run).training_cost_usd, reader.read(run, part.target)
        points.append(TrainingSize(part.n_training_rows(run.candidate), cost_usd, rows))
    return learning_curve(name, points, session.target.primary)


def _parts(session: Session, runs: Runs, facts: Facts) -> Iterator[tuple[Session, RunRequest]]:
    # Yields a session for each share of the training data, and its run; all reuse the base in memory.
    name = _curve_candidate(session.candidates, facts)
    if name is None or session.n_training_rows(name) * SHARES[0] < _LEAST:
        return
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    candidates = dict(session.experiment.candidates)
    source = candidates[name].weights_of or name
    candidates[source] = settle_sweep(candidates[source], whole)
    last = session

    def cut(whole: MeasuredTask, share: float) -> MeasuredTask:
        items = part_of(whole.items, share, session.first_seed)
        return join_items(whole.task, whole.role, whole.suite, items)

    for share in SHARES:
        target = cut(session.target, share)._replace(judged=session.target.judged)
        training = {key: cut(rows, share) for key, rows in session.training.items()}
        part_session = replace(last, target=target, training=training, suites=(), more_targets=())
        part_name = f"{name}@{part_session.n_training_rows(name)}"
        last = part_session.with_candidates({**candidates, part_name: candidates[name]})
        yield last, RunRequest(last.candidates[part_name], session.first_seed)


def settle_sweep(recipe: Recipe, run: Run) -> Recipe:
    """Return the recipe with the values that its sweep or search chose, shared by all sizes."""
    return recipe.with_params(next((trial.params for trial in run.training.sweep if trial.chosen), {}))


def _curve_candidate(candidates: Mapping[str, ResolvedCandidate], facts: Facts) -> str | None:
    run = judged_run(facts)
    return run.name if run and candidates[run.name].method.trains else None


def study_of_session(session: Session, reader: Reader) -> Study:
    """Return the study of an open session; settled runs keep the items of their analysis."""
    current = {m.task.name: m.weights for m in session.suites if m.weights is not None}

    def find_weights(run: Run) -> TaskWeights:
        settled = store.read_sampling(session.store, run.run_id) if run.run_id in session.settled else None
        return settled.weights if settled else current

    def find_base_arm(run: Run) -> dict[str, str]:
        # Rows of the base on the suites; empty unless all are measured.
        sets = suite_sets(session, base_weights(session.candidates[run.candidate].base))
        is_whole = all(rows.is_there(session.store) for rows in sets)
        return {rows.measured.task.name: rows.identity.digest for rows in sets} if is_whole else {}

    return Study(
        session.experiment,
        session.store,
        {m.task.name: m.metrics for m in session.tasks},
        reader,
        find_weights,
        find_base_arm,
        store.find_first_base(session.store.folder.parent, session.target.task.name),
        settled=session.settled,
    )


def facts_of_runs(session: Session, reader: Reader, runs: Runs) -> list[CandidateFacts]:
    """Return the facts of the runs, corrected by people's labels, from which validation chooses."""
    reader.prepare(rows_digest for run in runs for rows_digest in run.rows.values())
    facts = apply_budgets((facts_of(session, reader, run) for run in runs), session.experiment.decide)
    study, metric, task = study_of_session(session, reader), session.target.primary, session.target.task
    if not is_judge(metric.name):
        return list(facts)
    labels = judge_labels(study.store, task, metric.name)
    corrected = list(facts)
    for i, run in enumerate(runs):
        if corrected[i].target:
            rows = study.rows.with_drawn(run, task)
            corrected[i] = correct_reached(metric, corrected[i], rows, labels, reader.edge_cases)
    arms = list(filter(None, [best_untrained_run(runs, corrected)]))
    missing: dict[str, int] = {}  # the seed with the fewest labels decides for its recipe
    for f, run in zip(corrected, runs, strict=True):
        if f.target:
            missing[f.name] = max(missing.get(f.name, 0), count_missing(study, run, *arms))
    return [replace(f, labels_missing=missing.get(f.name, 0)) for f in corrected]
