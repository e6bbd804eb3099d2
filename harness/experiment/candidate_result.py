"""One run with its own measurements, before it is compared with others; the first one is shown at once.

Invariant: an error in one run is recorded as its failure and stops no other run.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import plugins, store
from harness.analysis import comparison
from harness.analysis.answers import RetrievalUse, list_each_answer, retrieval_use, several_answers
from harness.analysis.candidate_facts import (
    AnswerFacts,
    BaseSize,
    CandidateFacts,
    UnderLoad,
    UnreadAnswers,
    facts_of_run,
    judged_run,
)
from harness.analysis.comparison import estimate
from harness.analysis.economics import index_usd_per_1k
from harness.analysis.target_scores import LearningCurve, TrainingSize, learning_curve
from harness.data import Split, part_of
from harness.errors import CandidateFailed, HarnessError, UserError, one_line
from harness.evaluation import costs, has_instruction
from harness.evaluation.candidate_rows import n_rows, n_taught_rows, rows_cost_usd
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.judging_stage import score_answered
from harness.evaluation.row_sets import RunRequest, describe_run, make_failure_id, target_sets, total_work
from harness.evaluation.runner import answer
from harness.evaluation.session import MeasuredTask, Session, join_items
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.run_candidate import find_stored_runs, make_run
from harness.experiment.stored_rows import (
    EdgeCases,
    Facts,
    Reader,
    Rows,
    Runs,
    is_cross_validated,
    is_measured,
    refuse_folds,
)
from harness.experiment.training_fit import fit_work
from harness.experiment.trials import digest_prompts
from harness.formatting import UNKNOWN, quote, score
from harness.metrics import Metric, extremes, item_scores
from harness.models import is_private
from harness.models.artefacts import count_bytes
from harness.models.hub import shape
from harness.models.memory import weights_gb
from harness.records import Run, SampleResult, TokenCounts, digest
from harness.report import first_result_line
from harness.report.escape import clean
from harness.spec import Recipe, TokenPrices


def show_first_result(session: Session, ordered: Sequence[RunRequest], *, smoke: bool) -> None:
    """Evaluate the first untrained candidate on the target's test before the suites of its base."""
    for request in ordered:
        # The base as published, without judge, folds or draws.
        candidate, folds = request.candidate, session.folds
        own = candidate.given == candidate.served_base == session.source and not candidate.is_remote
        waits = candidate.recipe.sampling or session.target.judged or is_cross_validated(folds, candidate)
        if own and not waits:
            break
    else:
        return
    if (candidate.name, request.seed) in session.failures:
        return
    try:
        weights = ensure_weights(session, candidate, request.seed)
        rows = target_sets(session, candidate.recipe, weights, request.seed)[1]
        lacking = score_answered(session, [rows])
        if not lacking or is_measured(session, candidate.base):
            return
        session.begin(candidate.name, request.seed)
        answer(session, weights, lacking, candidate.name)
        answered = rows.read(session.store)
        if all(row.status == "error" for row in answered):
            return
        reached, metric = estimate(session.target.primary, answered), session.target.task.primary_metric
        score_line = first_result_line(candidate.name, reached, metric, smoke=smoke)
        items = describe_items(session.target, session.shown, answered)
        session.progress.show(candidate.name, score_line, *items)
    except UserError:
        raise
    except Exception:  # noqa: BLE001 (the run records it, and the others go on)
        return


def describe_items(target: MeasuredTask, shown: list[str], test_rows: Sequence[SampleResult]) -> list[str]:
    """List question, score, answer and reference of the first test items; none once some were `shown`."""
    if shown or target.task.kind == "bits_per_byte":
        return []
    shown.append(target.task.name)
    prompts = {example.id: example.prompt for example in target.examples("test")}
    lines, metric = [], target.primary
    for row in [row for row in test_rows if row.status != "error"][:3]:
        reference = quote(clean(row.references[0])) if row.references else UNKNOWN
        ends, parts = extremes(metric, row.references), row.parts[metric.name]
        if parts is None:
            said = "not scored"
        elif ends and parts in ends:  # the best or the worst score that there is
            said = "right" if parts == ends.best else "wrong"
        else:
            said = f"{metric.name} {score(metric.unit, float(item_scores(metric, np.array([parts]))[0]))}"
        answer_line = f"  {said}: {quote(clean(row.text))} (reference: {reference})"
        lines += [clean(prompts.get(row.example_id, row.prompt)), answer_line]
    return lines


def attempt(
    session: Session, reader: Reader, candidate: ResolvedCandidate, seed: int, done: Run | None = None
) -> tuple[Run, CandidateFacts]:
    """Make the missing parts of a run; its errors, here or at a worker, are recorded.

    Raises UserError if no run can be made at all, for example because the disk is full.
    """
    if seed == candidate.seeds[0]:
        session.checked_judges.clear()  # a judge may be another by now
        session.refused_judges.clear()
    try:
        if done is None and (error := session.failures.get((candidate.name, seed))):
            raise error
        run = make_run(session, candidate, seed, done)
        # A run without any row that could be scored has no facts: it failed as well.
        return run, facts_of(session, reader, run)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (one run must not stop the others)
        run = describe_run(
            session.experiment.name,
            candidate,
            seed,
            run_id=make_failure_id(session.name_begun(candidate.name, seed)),
            weights_digest="",
            state="failed",
            rows={},
            error=one_line(error),
        )
        store.save_run(session.store, run)
        return run, facts_of(session, reader, run)


def outcome(target: MeasuredTask, reader: Reader, run: Run) -> Run:
    """Return a stored run as `compare` ended with it: failed if none of its test rows could be scored."""
    try:
        if run.state != "failed":
            _refuse_unanswered(reader.read(run, target))
    except CandidateFailed as error:
        return replace(run, state="failed", rows={}, error=one_line(error))
    return run


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
        scored = {i: np.array([of]) for i, of in parts.items() if of is not None}
        scores = {i: float(item_scores(metric, of)[0]) for i, of in scored.items()}
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
        busy_s = _compute_s(self.run, test)
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


def rows_by_slice(rows: Sequence[SampleResult], edge_cases: EdgeCases) -> dict[str, Rows]:
    """Return the rows of each slice that they name, and of each edge case."""
    names = sorted({row.slice for row in rows} - {""})
    own = {name: [row for row in rows if row.slice == name] for name in names}
    return own | {case: [r for r in rows if r.example_id in ids] for case, ids in edge_cases.items()}


def _refuse_unanswered(test: Rows) -> None:
    if any(row.status != "error" for row in test):
        return
    if any(row.finish_reason != "error" for row in test):
        raise CandidateFailed(f"no answer could be graded: {test[0].error}", "another judge, or rubric")
    knob = "fewer shots or passages, or a longer context"
    raise CandidateFailed(f"no test row could be answered: {test[0].error}", knob)


def mark_recipe(facts: CandidateFacts, recipe: Recipe, recipes: Mapping[str, Recipe]) -> CandidateFacts:
    """Mark a candidate whose recipe, or the one that its weights come from, sends rows away."""
    source = recipes.get(recipe.weights_of or "", recipe)
    is_remote = plugins.find_method(source.method).is_remote
    leaves = is_remote and not is_private(source.params["base_url"])
    return replace(facts, leaves_machine=leaves)


def facts_on_target(run: Run, metric: Metric, test: Rows, validation: Rows) -> CandidateFacts:
    """Return the facts of a finished run on the target, scores and speed, by which recipes are chosen.

    Raises CandidateFailed if every test row is an error.
    """
    _refuse_unanswered(test)
    busy_s, timed, facts = _compute_s(run, test), run.latency, facts_of_run(run)
    disturbed, under_load, prompt = dict(facts.speed.disturbed), None, fmean(r.n_prompt_tokens for r in test)
    if timed.get("compute_contended") and timed.get("compute_s"):
        disturbed["requests_per_s"] = 1 / timed["compute_s"]
    if "at_once" in timed and not timed.get("at_once_contended"):
        under_load = UnderLoad(
            n=round(timed["at_once"]),
            requests_per_s=timed["at_once"] / timed["at_once_s"],
            first_token_p50_s=timed.get("first_token_at_once_p50_s"),
            first_token_p95_s=timed.get("first_token_at_once_p95_s"),
            first_token_alone_s=timed.get("first_token_s"),
        )
    # None of a classifier, which no provider sells by the token, and of a server that counts none.
    tokens = None
    if plugins.method(run.method).makes_language_model and prompt:
        shared = min(prompt, timed.get("shared_prompt_tokens", 0.0))
        tokens = TokenCounts(prompt, shared, fmean(r.n_output_tokens for r in test))
    cut = [row.n_output_tokens for row in test if row.status == "truncated"]
    unparsable = sum(row.status == "unparsable" for row in test)
    return replace(
        facts,
        target=estimate(metric, test),
        validation=estimate(metric, validation).score,
        tokens=tokens,
        speed=facts.speed._replace(
            requests_per_s=1 / busy_s if busy_s else None, under_load=under_load, disturbed=disturbed
        ),
        answers=AnswerFacts(
            unread=UnreadAnswers(len(cut) / len(test), unparsable / len(test), max(cut, default=0))
        ),
    )


def _compute_s(run: Run, test: Rows) -> float | None:
    # Per request in a batch, with prompting; None if other work disturbed it. Of runs before that was noticed
    # it is the mean of all rows.
    if run.latency.get("compute_contended"):
        return None
    return run.latency.get("compute_s", fmean(r.compute_s for r in test)) + run.latency.get("prompting_s", 0)


SHARES = (0.125, 0.25, 0.5)
_LEAST = 8  # rows in the smallest part


def plan_curve(session: Session, selected: Iterable[str]) -> Work:
    """Estimate the longest learning curve, as validation chooses among them; refuse if none is possible."""
    refuse_folds(session.folds, "--learning-curve", "where a part of all rows would be tested on itself")
    trained = [one for name in selected if (one := session.candidates[name]).method.trains]
    if not trained:
        expected, step = "a candidate that is trained here", "add one, or leave --learning-curve out"
        raise UserError("--learning-curve", "no fine-tune among the candidates", expected, step)
    if (n_most := max(_n_rows(session, one.name) for one in trained)) < _LEAST / SHARES[0]:
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
            _n_rows(of, r.candidate), facts_of(of, reader, r).training_cost_usd, reader.read(r, of.target)
        )
        for of, r in [*trained, (session, whole)]
    ]
    return learning_curve(name, points, session.target.primary)


def _n_rows(session: Session, name: str) -> int:
    return len(session.training_data(session.candidates[name].source).items.train)


def _parts(session: Session, runs: Runs, facts: Facts) -> Iterator[tuple[Session, RunRequest]]:
    # A session with each share of the training data, and its run; each reuses the base in memory.
    name = _curve_candidate(session.candidates, facts)
    if name is None or _n_rows(session, name) * SHARES[0] < _LEAST:
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
        training = {key: cut(of, share) for key, of in session.training.items()}
        here = replace(last, target=target, training=training, suites=(), more_targets=())
        part = f"{name}@{_n_rows(here, name)}"
        last = here.with_candidates({**candidates, part: candidates[name]})
        yield last, RunRequest(last.candidates[part], session.first_seed)


def settle_sweep(recipe: Recipe, run: Run) -> Recipe:
    """Return the recipe with the values that its sweep or search chose, so that all sizes share them."""
    chosen = next((trial.params for trial in run.training.sweep if trial.chosen), {})
    return recipe.with_params(chosen)


def _curve_candidate(candidates: Mapping[str, ResolvedCandidate], facts: Facts) -> str | None:
    run = judged_run(facts)
    return run.name if run and candidates[run.name].method.trains else None
