"""One run with its own measurements, before it is compared with others; the first one is shown at once.

Invariant: an error in one run is recorded as its failure and stops no other run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import plugins, store
from harness.analysis import comparison
from harness.analysis.answers import RetrievalUse, list_each_answer, retrieval_use, several_answers
from harness.analysis.candidate_facts import BaseSize, CandidateFacts, UnderLoad, UnreadAnswers, facts_of_run
from harness.analysis.comparison import estimate
from harness.analysis.economics import index_usd_per_1k
from harness.data import Split
from harness.errors import CandidateFailed, UserError, one_line
from harness.evaluation import costs, has_instruction
from harness.evaluation.candidate_rows import n_rows, n_taught_rows, rows_cost_usd
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judging_stage import score_answered
from harness.evaluation.row_sets import RunRequest, describe_run, make_failure_id, target_sets
from harness.evaluation.runner import answer
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.run_candidate import make_run
from harness.experiment.stored_rows import EdgeCases, Reader, Rows, is_cross_validated, is_measured
from harness.experiment.validation_scores import digest_prompts
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

_N_ITEMS = 3


def show_first_result(session: Session, ordered: Sequence[RunRequest], *, smoke: bool) -> None:
    """Evaluate the first untrained candidate on the target's test before the suites of its base."""
    for request in ordered:
        # The base as published, without judge, folds or draws.
        candidate = request.candidate
        own = candidate.given == candidate.served_base == session.source
        waits = (
            candidate.recipe.sampling or session.target.judged or is_cross_validated(session.folds, candidate)
        )
        if own and not candidate.is_remote and not waits:
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
        score_line = first_result_line(
            candidate.name,
            estimate(session.target.primary, answered),
            session.target.task.primary_metric,
            smoke=smoke,
        )
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
    for row in [row for row in test_rows if row.status != "error"][:_N_ITEMS]:
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

    Raises:
        UserError: no run can be made at all, for example because the disk is full.
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
    if run.state == "failed":
        return run
    try:
        _refuse_unanswered(reader.read(run, target))
    except CandidateFailed as error:
        return replace(run, state="failed", rows={}, error=one_line(error))
    return run


def facts_of(session: Session, reader: Reader, run: Run) -> CandidateFacts:
    """Return the facts of one run before it is compared; the reader caches them.

    Raises:
        CandidateFailed: every test row is an error.
    """
    known, facts = reader.facts.get(run.run_id, (None, None))
    if facts is None or known is not run:
        facts = facts_of_run(run) if run.state == "failed" else _Measured(session, reader, run).facts()
        reader.facts[run.run_id] = run, facts
    return facts


class _Measured(NamedTuple):
    """A finished run, and what reads its rows."""

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
        cost, disturbed = self.cost_per_1k_usd(test, facts.tokens), facts.disturbed
        if cost is None and run.latency.get("compute_contended") and not self.is_remote:
            by_time = self.price(1000 * run.latency.get("compute_s", 0.0))
            disturbed = disturbed | {"cost_per_1k_usd": by_time}  # other work disturbed the time
        recalls = [r.recall for r in test if r.recall is not None]
        retrieves = any(hasattr(plugins.load("prompting", name), "passages") for name in recipe.prompting)
        return replace(
            mark_recipe(facts, recipe, session.experiment.candidates),
            slices={
                name: comparison.estimate(metric, rows)
                for name, rows in rows_by_slice(test, self.reader.edge_cases).items()
                if comparison.is_comparable(metric, rows, rows)
            },
            cost_per_1k_usd=cost,
            index_per_1k_usd=index_usd_per_1k(session.experiment.decide) if retrieves else 0.0,
            disturbed=disturbed,
            measured_on="its server, over HTTP" if self.is_remote else run.provenance.get("device") or "",
            training_cost_usd=self.price(run.training.total_s),
            rows_cost_usd=rows_cost_usd(self.candidate, session.training_data),
            n_train=self.n_train(),
            n_taught=self.n_taught(),
            base=self.base_size(),
            recall=fmean(recalls) if recalls else None,
            retrieval=self.retrieval_use(),
            citations={
                name: comparison.estimate(of, test)
                for name, of in session.target.metrics.items()
                if name.startswith("citation_")
            },
            settings=self.settings(),
            several=several_answers(metric, test, self.reader.read_drawn(run, session.target)),
            training=run.training,
            parity=run.parity,
            is_instructed=has_instruction(session.target.task, recipe, [*items.validation, *items.test]),
        )

    def settings(self) -> tuple[str, ...]:
        """Name the settings that validation chose from: trials of the run's sweep or search, else itself."""
        # Weights chosen by another candidate's sweep are not trials of this one.
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
        drawn = self.reader.read_drawn(self.run, target) if is_mean else {}
        if drawn:
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

    def n_train(self) -> int:
        # A row that a mixture drew several times is one: it was labelled once.
        # 0 for adapters made elsewhere and endpoints, whose data are unknown.
        candidate, training = self.candidate, self.run.training
        if self.is_remote or plugins.method(self.run.method).made_elsewhere:
            return 0
        if training.n_pairs is None:
            return n_rows(self.session.training_data(candidate.source), candidate.source)
        if training.init_wall_s is None or (candidate.choosers and candidate.init is None):
            return training.n_pairs
        behind = candidate.init.source if candidate.init else Recipe()
        return training.n_pairs + n_rows(self.session.training_data(behind), behind)

    def n_taught(self) -> int:
        candidate = self.candidate
        if self.is_remote or plugins.method(self.run.method).made_elsewhere:
            return 0
        own = self.run.training.n_pairs is None
        made_by = candidate.source if own else candidate.init.source if candidate.init else None
        return n_taught_rows(self.session.training_data(made_by), made_by) if made_by else 0


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

    Raises:
        CandidateFailed: every test row is an error.
    """
    _refuse_unanswered(test)
    busy_s, timed, facts = _compute_s(run, test), run.latency, facts_of_run(run)
    disturbed = dict(facts.disturbed)
    if timed.get("compute_contended") and timed.get("compute_s"):
        disturbed["requests_per_s"] = 1 / timed["compute_s"]
    under_load = None
    if "at_once" in timed and not timed.get("at_once_contended"):
        under_load = UnderLoad(
            n=round(timed["at_once"]),
            requests_per_s=timed["at_once"] / timed["at_once_s"],
            first_token_p50_s=timed.get("first_token_at_once_p50_s"),
            first_token_p95_s=timed.get("first_token_at_once_p95_s"),
            first_token_alone_s=timed.get("first_token_s"),
        )
    cut = [row.n_output_tokens for row in test if row.status == "truncated"]
    unparsable = sum(row.status == "unparsable" for row in test)
    return replace(
        facts,
        target=comparison.estimate(metric, test),
        validation=comparison.estimate(metric, validation).score,
        tokens=_tokens(run, test),
        requests_per_s=1 / busy_s if busy_s else None,
        under_load=under_load,
        disturbed=disturbed,
        unread=UnreadAnswers(len(cut) / len(test), unparsable / len(test), max(cut, default=0)),
    )


def _compute_s(run: Run, test: Rows) -> float | None:
    """Return the seconds per request in a batch, with prompting; None if other work disturbed that."""
    # Of runs before that was noticed it is the mean of all rows.
    if run.latency.get("compute_contended"):
        return None
    return run.latency.get("compute_s", fmean(r.compute_s for r in test)) + run.latency.get("prompting_s", 0)


def _tokens(run: Run, test: Rows) -> TokenCounts | None:
    # None of a classifier, which no provider sells by the token, and of a server that counts none.
    prompt = fmean(r.n_prompt_tokens for r in test)
    if not plugins.method(run.method).makes_language_model or not prompt:
        return None
    shared = min(prompt, run.latency.get("shared_prompt_tokens", 0.0))
    return TokenCounts(prompt, shared, fmean(r.n_output_tokens for r in test))
