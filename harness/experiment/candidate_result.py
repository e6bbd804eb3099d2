"""One run with its own measurements, before it is compared with others; the learning curve of a fine-tune.

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
from harness.analysis.candidate_facts import (
    BaseSize,
    CandidateFacts,
    best_untrained,
    facts_of_run,
    judged_run,
)
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
    """Return the facts of one run before it is compared; raises CandidateFailed if no test row has one."""
    known, facts = reader.facts.get(run.run_id, (None, None))
    if facts is None or known is not run:
        facts = facts_of_run(run) if run.state == "failed" else _Measured(session, reader, run).facts()
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
        session, run, recipe, items = self.session, self.run, self.candidate.recipe, self.session.target.items
        metric, test = session.target.primary, self.rows()
        facts = facts_on_target(run, metric, test, self.rows("validation"))
        cost, disturbed = self.cost_per_1k_usd(test, facts.tokens), facts.speed.disturbed
        if cost is None and run.latency.get("compute_contended") and not self.is_remote:
            by_time = self.price(1000 * run.latency.get("compute_s", 0.0))
            disturbed = {**disturbed, "cost_per_1k_usd": by_time}  # other work disturbed the time
        recalls = [r.recall for r in test if r.recall is not None]
        retrieves = any(hasattr(plugins.load("prompting", name), "passages") for name in recipe.prompting)
        of_slices, metrics = rows_by_slice(test, self.reader.edge_cases), session.target.metrics
        n_train, n_taught = self.count_rows()
        device = "its server, over HTTP" if self.is_remote else run.provenance.get("device") or ""
        answers = facts.answers._replace(
            recall=fmean(recalls) if recalls else None,
            retrieval=self.retrieval_use(),
            citations={n: estimate(of, test) for n, of in metrics.items() if n.startswith("citation_")},
            several=several_answers(metric, test, self.reader.drawn(run, f"{session.target.task.name}/test")),
        )
        return replace(
            mark_recipe(facts, recipe, session.experiment.candidates),
            slices={
                name: estimate(metric, rows)
                for name, rows in of_slices.items()
                if comparison.is_comparable(metric, rows, rows)
            },
            cost_per_1k_usd=cost,
            index_per_1k_usd=index_usd_per_1k(session.experiment.decide) if retrieves else 0.0,
            speed=facts.speed._replace(disturbed=disturbed, measured_on=device),
            answers=answers,
            training_cost_usd=self.price(run.training.total_s),
            rows_cost_usd=rows_cost_usd(self.candidate, session.training_data),
            n_train=n_train,
            n_taught=n_taught,
            base=self.base_size(),
            settings=self.settings(),
            training=run.training,
            parity=run.parity,
            is_instructed=has_instruction(session.target.task, recipe, [*items.validation, *items.test]),
        )

    def settings(self) -> tuple[str, ...]:
        # Those that validation chose from: trials of the run's sweep or search, else itself. Weights chosen
        # by another candidate's sweep are not trials of this one.
        run, recipe = self.run, self.candidate.recipe
        if run.training.sweep and not recipe.weights_of:
            how = [recipe.answer, recipe.prompting, recipe.system, recipe.template]
            trials = enumerate(run.training.sweep)
            return tuple(t.asked or digest([t.fit_key or [run.candidate, i], *how]) for i, t in trials)
        prompts = digest_prompts(run.weights_digest, recipe, self.rows("validation"))
        return (prompts or run.candidate,)

    def base_size(self) -> BaseSize | None:
        candidate = self.candidate
        if candidate.is_remote or not candidate.method.makes_language_model:
            return None
        source = candidate.given or candidate.served_base
        quantization = candidate.served_base.quantization
        gb: float | None = None
        if candidate.method.makes == "artefact" and not candidate.given:
            gb = count_bytes(Path(candidate.source.path or "")) / 1e9
        elif known := shape(source):
            gb = weights_gb(known, self.session.machine.precision, quantization=quantization)
        return BaseSize(Path(source.name).name, source.n_parameters, gb)

    def retrieval_use(self) -> RetrievalUse | None:
        target, test = self.session.target, self.rows()
        metric = target.primary
        if not metric.unit.is_rate or not any(row.passages for row in test):
            return None
        examples = {e.id: e for e in target.items.test}
        # Several answers are averaged only if none of them is chosen.
        decoding = self.candidate.recipe.sampling
        is_mean = decoding is not None and decoding.choose == "first"
        if drawn := self.reader.drawn(self.run, f"{target.task.name}/test") if is_mean else {}:
            test = list_each_answer(test, drawn)
            examples = {row.example_id: examples[row.example_id.rpartition("#")[0]] for row in test}
        parts = {row.example_id: row.parts[metric.name] for row in test}
        scored = {i: np.array([values]) for i, values in parts.items() if values is not None}
        scores = {i: float(item_scores(metric, values)[0]) for i, values in scored.items()}
        right = {i: score if metric.higher_is_better else 1 - score for i, score in scores.items()}
        found = retrieval_use(test, right, examples, target.items.documents)
        return found._replace(by_answer=bool(drawn)) if found else None

    def cost_per_1k_usd(self, test: Rows, tokens: TokenCounts | None) -> float | None:
        # What chooses shots or passages takes device time in either case: who sells tokens does not retrieve.
        # None of an endpoint without prices, and where other work disturbed the time.
        own = self.candidate.source.params.get("usd_per_million_tokens")
        policy = self.session.experiment.decide
        prices = TokenPrices.model_validate(own) if own else policy.usd_per_million_tokens
        if tokens is not None and prices is not None:
            zero_shot = self.run.prompting == "zero_shot"
            prompting_s = 0.0 if zero_shot else self.run.latency.get("prompting_s", 0.0)
            return 1000 * costs.request_usd(tokens, prices) + self.price(1000 * prompting_s)
        busy_s = compute_s(self.run, test)
        return None if self.is_remote or busy_s is None else self.price(1000 * busy_s)

    def count_rows(self) -> tuple[int, int]:
        # Of the training, and of a teacher. A row that a mixture drew several times is one: it was labelled
        # once. 0 for adapters made elsewhere and endpoints, whose data are unknown.
        candidate, training, data = self.candidate, self.run.training, self.session.training_data
        if self.is_remote or plugins.method(self.run.method).made_elsewhere:
            return 0, 0
        own, init = candidate.source, candidate.init.source if candidate.init else None
        if training.n_pairs is None:
            return n_rows(data(own), own), n_taught_rows(data(own), own)
        taught = n_taught_rows(data(init), init) if init else 0
        if training.init_wall_s is None or (candidate.choosers and init is None):
            return training.n_pairs, taught
        behind = init or Recipe()
        return training.n_pairs + n_rows(data(behind), behind), taught


SHARES = (0.125, 0.25, 0.5)
_LEAST = 8  # rows in the smallest part


def plan_curve(session: Session, selected: Iterable[str]) -> Work:
    """Estimate the longest learning curve, as validation chooses among them; refuse if none is possible."""
    refuse_folds(session.folds, "--learning-curve", "where a part of all rows would be tested on itself")
    trained = [one for name in selected if (one := session.candidates[name]).method.trains]
    if not trained:
        expected, step = "a candidate that is trained here", "add one, or leave --learning-curve out"
        raise UserError("--learning-curve", "no fine-tune among the candidates", expected, step)
    if (n_most := max(session.n_training_rows(one.name) for one in trained)) < _LEAST / SHARES[0]:
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
    """Train the fine-tune of the decision on each part of the data that is not done yet."""
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
    """Fit the curve of stored parts; None if there are none or fewer than four sizes."""
    name = _curve_candidate(session.candidates, facts)
    known = f"{session.experiment.name}-{name}@"
    if name is None or not any(path.name.startswith(known) for path in session.store.folder.glob("*@*")):
        return None
    found = [(part, find_stored_runs(part, [request])[0]) for part, request in _parts(session, runs, facts)]
    trained = [(part, run) for part, run in found if run and run.state == "done"]
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    points = [
        TrainingSize(
            session_of_part.n_training_rows(r.candidate),
            facts_of(session_of_part, reader, r).training_cost_usd,
            reader.read(r, session_of_part.target),
        )
        for session_of_part, r in [*trained, (session, whole)]
    ]
    return learning_curve(name, points, session.target.primary)


def _parts(session: Session, runs: Runs, facts: Facts) -> Iterator[tuple[Session, RunRequest]]:
    # A session with each share of the training data, and its run; each reuses the base in memory.
    name = _curve_candidate(session.candidates, facts)
    if name is None or session.n_training_rows(name) * SHARES[0] < _LEAST:
        return
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    candidates = dict(session.experiment.candidates)
    source = candidates[name].weights_of or name
    candidates[source] = settle_sweep(candidates[source], whole)
    last = session

    def cut(whole: MeasuredTask, share: float) -> MeasuredTask:
        return join_items(
            whole.task, whole.role, whole.suite, part_of(whole.items, share, session.first_seed)
        )

    for share in SHARES:
        target = cut(session.target, share)._replace(judged=session.target.judged)
        training = {key: cut(rows, share) for key, rows in session.training.items()}
        here = replace(last, target=target, training=training, suites=(), more_targets=())
        part = f"{name}@{here.n_training_rows(name)}"
        last = here.with_candidates({**candidates, part: candidates[name]})
        yield last, RunRequest(last.candidates[part], session.first_seed)


def settle_sweep(recipe: Recipe, run: Run) -> Recipe:
    """Return the recipe with the values that its sweep or search chose, so that all sizes share them."""
    chosen = next((trial.params for trial in run.training.sweep if trial.chosen), {})
    return recipe.with_params(chosen)


def _curve_candidate(candidates: Mapping[str, ResolvedCandidate], facts: Facts) -> str | None:
    run = judged_run(facts)
    return run.name if run and candidates[run.name].method.trains else None


def study_session(session: Session, reader: Reader) -> Study:
    """Return the study of an open experiment; settled runs keep the items of their analysis."""
    current = {m.task.name: m.weights for m in session.suites if m.weights is not None}

    def find_weights(run: Run) -> TaskWeights:
        settled = store.read_sampling(session.store, run.run_id) if run.run_id in session.settled else None
        return settled.weights if settled else current

    def find_base_arm(run: Run) -> dict[str, str]:
        # Rows of the base's capability suite; none unless it is completely measured.
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


def describe_reached(session: Session, reader: Reader, runs: Runs) -> list[CandidateFacts]:
    """Return the runs' own results, corrected by labels, by which validation chooses."""
    measured = (facts_of(session, reader, run) for run in runs)
    facts = apply_budgets(measured, session.experiment.decide)
    study, metric, task = study_session(session, reader), session.target.primary, session.target.task
    if not is_judge(metric.name):
        return list(facts)
    labels = judge_labels(study.store, task, metric.name)
    corrected = [
        correct_reached(metric, f, study.rows.with_drawn(run, task), labels, reader.edge_cases)
        if f.target
        else f
        for f, run in zip(facts, runs, strict=True)
    ]
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    best = by_name.get(best_untrained(corrected) or "")
    missing: dict[str, int] = {}  # a recipe is as open as the seed that has the fewest labels
    for f, run in zip(corrected, runs, strict=True):
        if f.target:
            lacks = count_missing(study, *filter(None, (run, best)))
            missing[f.name] = max(missing.get(f.name, 0), lacks)
    return [replace(f, labels_missing=missing.get(f.name, 0)) for f in corrected]
