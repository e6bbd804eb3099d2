"""Run of one recipe and seed, from its spec to rows on disk and a run folder.

Invariant: stored results are not computed again; a kill loses at most the current block. In folds, no item
is answered by weights or shots made from it or its cluster, and all folds' rows form one set; the weights of
the run are made of all rows. An artefact is compared with the run that it was exported from, computed in
fp32. The run's own difference from fp32 is the floor, so flipped answers alone never count against an
artefact (`records.PARITY`).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import provenance, store
from harness.analysis import comparison
from harness.analysis.estimators import Estimate
from harness.errors import CandidateFailed, IncompatibleRuns
from harness.evaluation import prompt_text, timing
from harness.evaluation.candidate_rows import describe_rows
from harness.evaluation.candidates import ResolvedCandidate, base_weights, refuse_silent
from harness.evaluation.control_arm import measure_control
from harness.evaluation.row_sets import (
    RowSet,
    RunIdentity,
    RunRequest,
    describe_run,
    find_runs,
    list_further_sets,
    make_failure_id,
    metric_ranges,
    suite_sets,
    target_sets,
)
from harness.evaluation.runner import count_shared_tokens, fill, open_weights, refuse_other_prompts
from harness.evaluation.session import Session
from harness.evaluation.stored_scores import (
    answer_and_score,
    base_arm,
    rescore_stored,
    score_answered,
    suite_arm,
)
from harness.experiment.candidate_weights import ensure_weights, find_stored_weights, stands_on
from harness.experiment.stored_rows import Reader, is_cross_validated, list_measured_bases
from harness.experiment.trials import measure_points, read_kept_points
from harness.models import artefacts
from harness.records import BLOCK, Origin, Run, TrackedPoint, digest
from harness.spec import Recipe
from harness.stats import Array
from harness.training import Weights


def make_run(
    session: Session, candidate: ResolvedCandidate, seed: int, finished_run: Run | None = None
) -> Run:
    """Train and evaluate the missing parts of one candidate and seed; remove its recorded failure.

    Raises HarnessError if the candidate could not be made or evaluated.
    """
    at, run_name = session.store, session.name_begun(candidate.name, seed)
    refuse_silent(candidate)
    if candidate.searches_prompts:
        step = "harness compare, which chooses one"
        raise CandidateFailed("no prompt was chosen for it on validation", step)
    run = finished_run
    if run is None:
        session.begin(candidate.name, seed)
        parts = _RunParts(session, candidate, seed, ensure_weights(session, candidate, seed))
        if parts.is_folded:  # the weights of the run stand on those of the folds
            fold_parts = list[_FoldPart]()
            for number, fold in enumerate(session.in_folds(), start=1):
                weights, label = ensure_weights(fold, candidate, seed), f"{candidate.name}, fold {number}"
                rows = target_sets(fold, candidate.recipe, weights, seed)[1]
                answer_and_score(fold, weights, [rows], label, candidate.base)
                fold_parts.append(_FoldPart(fold, weights, rows))
            parts.write_joined(parts.join_folds(fold_parts), fold_parts)
            weights = parts.weights
            digests = weights.training.stands_on | stands_on(*(part.weights for part in fold_parts))
            weights = weights._replace(training=replace(weights.training, stands_on=digests))
            parts = replace(parts, weights=weights)
        run = parts.find_or_make()
    if (at.folder / (failure_id := make_failure_id(run_name))).exists():
        store.remove_run(at, failure_id)
    store.end(at, run_name)
    return run


_N_PROMPTS, _N_TOKENS = 50, 8  # test prompts, and positions at their end that are compared
_GIB = 2**30


class _FoldPart(NamedTuple):
    # Test rows of one fold, the weights that answer them, and the session in which these were made.
    session: Session
    weights: Weights
    rows: RowSet


@dataclass(frozen=True)
class _RunParts:
    # Weights and row sets of one candidate and seed.
    session: Session
    candidate: ResolvedCandidate
    seed: int
    weights: Weights

    @cached_property
    def sets(self) -> list[RowSet]:
        session, candidate, weights, seed = self.session, self.candidate, self.weights, self.seed
        target = target_sets(session, candidate.recipe, weights, seed)
        if self.is_folded:  # the folds' models answer test; its rows need all of them
            target = [target[0], self.join_folds(self.find_folds())]
        suites = [] if candidate.is_target_only else suite_sets(session, weights)
        return [*target, *list_further_sets(session, candidate.recipe, weights, seed), *suites]

    @property
    def is_folded(self) -> bool:
        return is_cross_validated(self.session.folds, self.candidate)

    def find_folds(self) -> list[_FoldPart]:
        recipe, seed, parts = self.candidate.recipe, self.seed, list[_FoldPart]()
        for fold in self.session.in_folds():
            if weights := find_stored_weights(fold, self.candidate, seed):
                parts.append(_FoldPart(fold, weights, target_sets(fold, recipe, weights, seed)[1]))
        return parts

    def join_folds(self, parts: Sequence[_FoldPart]) -> RowSet:
        test = target_sets(self.session, self.candidate.recipe, self.weights, self.seed)[1]
        folds_digest = digest(["folds", *(part.rows.identity.answers.digest for part in parts)])
        return test._replace(identity=replace(test.identity, weights_digest=folds_digest))

    def write_joined(self, joined: RowSet, parts: Sequence[_FoldPart]) -> None:
        # Writes the folds' rows in test order, unless that is done.
        at, identity = self.session.store, joined.identity
        if joined.is_there(at) and store.read_folds(at, identity.digest):
            return
        rows_by_item, folds, origins = {}, {}, list[Origin]()
        for number, part in enumerate(parts, start=1):
            name = part.rows.identity.digest
            samples_by_item = store.read_drawn(at, name) if identity.decoding else {}
            for row in store.read_rows(at, name, len(part.rows.ids)):
                rows_by_item[row.example_id] = replace(row, samples=samples_by_item.get(row.example_id, ()))
                folds[row.example_id] = number
            origins += store.origins(at, name).values()
        rows = [replace(rows_by_item[item], position=position) for position, item in enumerate(joined.ids)]
        store.keep_folds(at, identity.digest, folds)
        for index in range(joined.n_blocks):
            if origins:
                disturbed = any(origin.contended for origin in origins)
                store.keep_origin(at, identity.digest, index, origins[-1]._replace(contended=disturbed))
            store.append_block(at, identity, index, rows[index * BLOCK : (index + 1) * BLOCK])
        store.complete_rows(at, identity, len(rows))

    @property
    def identity(self) -> RunIdentity:
        rows = {s.name: s.identity.digest for s in self.sets}
        run_name = self.session.name_begun(self.candidate.name, self.seed)
        return RunIdentity(f"{run_name}-{digest([rows, self.weights.digest])[:8]}", rows)

    @property
    def is_answered(self) -> bool:
        return all(rows.is_there(self.session.store) for rows in self.sets)

    def find_done(self) -> Run | None:
        (run,) = find_runs(self.session.store, [self.identity if self.is_answered else None])
        return run

    def find_or_make(self) -> Run:
        session, sets = self.session, self.sets
        if (finished_run := self.find_done()) is not None:
            return self.add_points(finished_run)
        if self.candidate.method.makes == "artefact":
            refuse_other_prompts(open_weights(session, self.weights), self.candidate, sets)
        lacking = score_answered(session, sets)
        if not lacking and (before := self.find_same_answers()):  # with other scores
            return self.add_points(self.save_again(before))
        latency = self.answer_and_time(lacking)
        score_answered(session, lacking)
        return self.save(latency)

    def find_same_answers(self) -> Run | None:
        # Finds the newest finished run with the same answers.
        at, wanted_answers = self.session.store, {s.name: s.identity.answers for s in self.sets}
        answers_by_digest = {identity.digest: identity.answers for identity in store.identities(at)}
        run_key = (self.candidate.name, self.seed, self.weights.digest, "done")
        for before in reversed(store.list_runs(at, self.session.experiment.name)):
            answers = {key: answers_by_digest.get(rows) for key, rows in before.rows.items()}
            stored_key = (before.candidate, before.seed, before.weights_digest, before.state)
            if stored_key == run_key and answers == wanted_answers:
                return before
        return None

    def answer_and_time(self, lacking: Sequence[RowSet]) -> dict[str, float]:
        # Answers the missing items. Times single requests for validation items, and answers in a batch.
        session, candidate, weights = self.session, self.candidate, self.weights
        at, device, n = session.store, session.machine.device, timing.FEW_REQUESTS
        control = measure_control(session, candidate.base) if lacking and weights.is_language_model else ""
        with open_weights(session, weights) as model:
            fill(session, model, lacking, candidate.name, control=control)
            # Ungraded answers are read as they were stored.
            validation, test = (rows if rows.is_there(at) else rows.ungraded for rows in self.sets[:2])
            n_timed = timing.n_timed(len(validation.ids))
            with timing.learn_requests(session.learn_load, model, n_timed) as latency:
                latency |= timing.latency_figures(timing.request_latency(device, model, validation, n))
                compute_s, contended = timing.batch_time(at, device, model, test)
                latency |= {"compute_s": compute_s, "compute_contended": float(contended)}
                latency["prompting_s"] = timing.measure_prompting(validation, n)
                latency["shared_prompt_tokens"] = float(count_shared_tokens(model, validation.job()))
        return latency

    def save(self, latency: dict[str, float]) -> Run:
        session, candidate = self.session, self.candidate
        training_rows = describe_rows(session.training_data(candidate.source), candidate.source)
        run = describe_run(
            session.experiment.name,
            candidate,
            self.seed,
            weights_digest=self.weights.digest,
            state="done",
            training=replace(self.weights.training, tracked=self.measure_points()),
            latency=latency,
            provenance=provenance.collect(session.machine.name)
            | {"precision": session.machine.precision}
            | ({"training_rows": training_rows} if training_rows else {}),
            metrics=metric_ranges(self.sets),
            parity=self.measure_parity() if candidate.method.makes == "artefact" else {},
            **self.identity._asdict(),
        )
        store.save_run(session.store, run)
        return run

    def measure_points(self) -> tuple[TrackedPoint, ...]:
        if not self.candidate.source.track:
            return ()
        base_rows = base_arm(self.session, self.candidate.base)
        return measure_points(self.session, self.candidate, self.weights, self.seed, base_rows)

    def add_points(self, finished_run: Run) -> Run:
        # Adds missing points along the training, and trials, to a finished run.
        kept_points = read_kept_points(self.candidate, self.weights.folder)
        is_tracked = not kept_points or len(kept_points) == len(finished_run.training.tracked)
        if is_tracked and _has_trials(finished_run, self.weights):
            return finished_run
        training = replace(self.weights.training, tracked=self.measure_points())
        run = replace(finished_run, training=training, recipe=self.candidate.recipe.stored_form())
        store.save_run(self.session.store, run)
        return run

    def save_again(self, before: Run) -> Run:
        run = replace(
            before,
            created=provenance.timestamp(),
            recipe=self.candidate.recipe.stored_form(),
            metrics=metric_ranges(self.sets),
            **self.identity._asdict(),
        )
        store.save_run(self.session.store, run)
        return run

    def measure_parity(self) -> dict[str, Any]:
        # Compares with the run that it was exported from, as far as that is stored here.
        session, path, test = self.session, Path(self.candidate.source.path or ""), self.sets[1]
        rows, parity = test.read(session.store), dict[str, Any](size_bytes=artefacts.count_bytes(path))
        if busy_s := sum(row.compute_s for row in rows):
            parity["tokens_per_s"] = round(sum(row.n_output_tokens for row in rows) / busy_s, 2)
        of_texts = [s for s in self.sets if s.measured.task.kind == "bits_per_byte"]
        of_rows = [(row.gold_logprob, row.gold_bytes) for s in of_texts for row in s.read(session.store)]
        scored = [(nats, n_bytes) for nats, n_bytes in of_rows if n_bytes and nats is not None]
        if scored:
            nats, n_bytes = (sum(column) for column in zip(*scored, strict=True))
            parity["bits_per_byte"] = round(-nats / np.log(2) / n_bytes, 5)
        run_id = str(artefacts.read_export(path).get("run_id") or "")
        origin = store.read_written_runs(session.store, [run_id]).get(run_id) if run_id else None
        if origin is None or test.name not in origin.rows:
            return parity | ({"own_run": run_id} if run_id else {})
        parity |= {"own_run": run_id, "n_answers": len(rows)}
        # Counts answers that differ from that run's, and lost and won scores.
        origin_rows = {row.example_id: row for row in store.read_rows(session.store, origin.rows[test.name])}
        rows_before = [origin_rows[row.example_id] for row in rows if row.example_id in origin_rows]
        if len(rows_before) == len(rows):
            c = comparison.compare_rows(test.measured.primary, rows_before, rows)
            changed = sum(a.text != b.text for a, b in zip(rows_before, rows, strict=True))
            parity |= {"flipped": changed, "lost": len(c.lost), "won": len(c.gained)}
        # That run's weights, if its recipe as written now still makes them.
        candidate = session.candidates.get(origin.candidate)
        if candidate is None or not candidate.method.makes_language_model or candidate.is_remote:
            return parity
        origin_weights = find_stored_weights(session, candidate, origin.seed)
        if origin_weights is None or origin_weights.digest != origin.weights_digest:
            return parity
        return parity | self.compare_in_fp32(origin, origin_weights)

    def compare_in_fp32(self, origin: Run, origin_weights: Weights) -> dict[str, Any]:
        # Compares logits with that run's in fp32, and counts that run's answers that differ in fp32.
        session, test = self.session, self.sets[1]
        in_fp32, recipe = session.switch_to_fp32(), session.candidates[origin.candidate].recipe
        origin_test = target_sets(in_fp32, recipe, origin_weights, origin.seed)[1]
        try:
            label = f"{origin.candidate} in fp32"
            with open_weights(in_fp32, origin_weights) as model:
                fill(in_fp32, model, [origin_test], label)
                prompts = [prompt_text(test.measured.task, e) for e in origin_test.examples()[:_N_PROMPTS]]
                contexts = [encoded.context for encoded in model.encode_all(prompts)]
                texts = [ids for ids in contexts if len(ids) >= _N_TOKENS]
                expected = [*artefacts.list_logits(model, texts, _N_TOKENS)]
        finally:
            in_fp32.unload()
        answers = {row.example_id: row.text for row in origin_test.read(session.store)}
        rows = store.read_rows(session.store, origin.rows[test.name])
        floor = {"floor": sum(answers.get(row.example_id, row.text) != row.text for row in rows)}
        columns: list[tuple[Array, Array, Array]] = []
        with open_weights(session, self.weights) as model:
            for pair in zip(expected, artefacts.list_logits(model, texts, _N_TOKENS), strict=True):
                n = min(logits.shape[1] for logits in pair)  # a vocabulary may be padded
                cut = [logits[:, :n] for logits in pair]
                exact = [logits.astype(float) for logits in cut]
                p, q = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in exact)
                divergence, agrees = (np.exp(p) * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)
                columns.append((np.abs(cut[0] - cut[1]).max(-1), divergence, agrees))
            peak = model.worker.peak_bytes if isinstance(model, artefacts.ArtefactCandidate) else 0
        gaps, divergences, agreements = (np.concatenate(column) for column in zip(*columns, strict=True))
        return floor | {
            "n_positions": len(gaps),
            "logit_gap": round(float(gaps.max()), 5),
            "mean_kl": round(float(divergences.mean()), 6),
            "top1_agreement": round(float(agreements.mean()), 5),
            **({"peak_memory_gib": round(peak / _GIB, 3)} if peak else {}),
        }


def time_again(session: Session, candidate: ResolvedCandidate, run: Run) -> Run:
    """Time more single requests and concurrent requests to a finished run's weights; its answers stay.

    A run that needs no more timings, or whose requests all failed, is returned unchanged.
    """
    weights, at_once = find_stored_weights(session, candidate, run.seed), session.experiment.concurrency
    if weights is None or "p50_s" not in run.latency:
        return run
    rows, device = row_sets(session, candidate, weights, run.seed)[0], session.machine.device
    if not timing.wants_more(run, len(rows.ids), at_once):
        return run
    n_timed = timing.n_timed(len(rows.ids), best=True)
    with (
        open_weights(session, weights) as model,
        session.progress.stage(f"{candidate.name}: single requests", n_timed * run.latency["p50_s"]),
        timing.learn_requests(session.learn_load, model, n_timed) as figures,
    ):
        generates = weights.is_language_model and candidate.recipe.answer == "generate"
        at_once = at_once or timing.AT_ONCE
        figures |= timing.time_load(device, model, rows, generates=generates, at_once=at_once)
        if not candidate.is_remote:  # each request to an endpoint costs money
            latency = timing.request_latency(device, model, rows, timing.MANY_REQUESTS)
            figures |= timing.latency_figures(latency)
    run = replace(run, latency=run.latency | figures)
    store.save_run(session.store, run)
    return run


def rescore_run(session: Session, run_before: Run) -> tuple[Run, dict[str, dict[str, Estimate]]]:
    """Rescore the stored answers of a run, and those of its bases and the champion on the suites.

    Returns the run and its scores by task. Raises IncompatibleRuns if the model would have to answer again.
    """
    candidate = _find_unchanged(session, run_before)
    rescored_run, weights = None, find_stored_weights(session, candidate, run_before.seed)
    lacking = list(run_before.rows)
    if weights is not None:
        parts = _RunParts(session, candidate, run_before.seed, weights)
        in_folds, folds = list[RowSet](), parts.find_folds() if parts.is_folded else []
        for part in folds:
            in_folds += rescore_stored(part.session, [part.rows])
        if parts.is_folded and not in_folds:
            joined = parts.join_folds(folds)
            if len(folds) == len(session.in_folds()):
                parts.write_joined(joined, folds)
            else:
                in_folds.append(joined)
        lacking = [f"{rows.name} in folds" for rows in in_folds[:1]]
        lacking = lacking or [rows.name for rows in rescore_stored(session, parts.sets)]
        rescored_run = None if lacking else parts.find_done() or parts.save_again(run_before)
    if rescored_run is None:
        raise IncompatibleRuns(
            f"{run_before.run_id}: found no stored answers to {', '.join(lacking)} as prompted now; expected "
            "that only their scoring has changed; next: harness compare evaluates again"
        )
    gated_against = [base_weights(base) for base in candidate.bases]
    champion = store.read_champion(session.store.folder.parent, session.experiment.target.name)
    if champion is not None:
        gated_against.append(gated_against[0]._replace(digest=champion.weights_digest))
    for baseline in gated_against:
        rescore_stored(session, suite_sets(session, baseline))
    return rescored_run, Reader(session.store, session.tasks).scores(rescored_run)


def rescore_pinned(session: Session, run: Run) -> list[str]:
    """Answer the regression suites in fp32 with a run's weights, if unchanged; return the stored tasks."""
    _, weights = _find_unchanged_weights(session, run, "harness compare")
    pinned = tuple(m for m in session.suites if m.role == "regression")
    exact = replace(session.switch_to_fp32(), suites=pinned)
    return list(suite_arm(exact, weights, f"{run.candidate} in fp32"))


def answer_all_items(session: Session, run: Run) -> Run:
    """Let the weights of a run on sampled items, and its bases, answer whole tasks if unchanged."""
    candidate, _ = _find_unchanged_weights(session, run, "harness compare --all-items")
    with store.hold(session.store):
        for source in list_measured_bases([candidate]):
            base_arm(session, source)
        return make_run(session, candidate, run.seed)


def _find_unchanged(session: Session, run: Run) -> ResolvedCandidate:
    candidate = session.candidates.get(run.candidate)
    if candidate is None or Recipe.model_validate(run.recipe) != candidate.recipe:
        raise IncompatibleRuns(
            f"{run.run_id}: the recipe of {run.candidate} in the file differs; expected the one that the run "
            "was made with; next: write it down as it was, or harness compare"
        )
    return candidate


def _find_unchanged_weights(session: Session, run: Run, command: str) -> tuple[ResolvedCandidate, Weights]:
    candidate = _find_unchanged(session, run)
    weights = find_stored_weights(session, candidate, run.seed)
    if weights is None or weights.digest != run.weights_digest:
        raise IncompatibleRuns(
            f"{run.run_id}: found no weights {run.weights_digest} as the file makes them now; expected those "
            f"that gave its answers; next: {command} --candidates {run.candidate}"
        )
    return candidate, weights


def find_stored_runs(session: Session, requests: Sequence[RunRequest]) -> list[Run | None]:
    """Find the stored runs of recipes as written now, or their failures; computes nothing."""
    at, stored = session.store, list[_RunParts | None]()
    for candidate, seed in requests:
        stored.append(None)
        weights = None if candidate.searches_prompts else find_stored_weights(session, candidate, seed)
        if weights is None:
            continue
        with suppress(CandidateFailed):  # the base cannot be loaded, but rows are named by its engine
            parts = _RunParts(session, candidate, seed, weights)
            test = parts.sets[1].identity.digest
            stored[-1] = parts if not parts.is_folded or store.read_folds(at, test) else None
    store.read_ids(at, {rows.identity.digest for parts in stored if parts for rows in parts.sets})
    identities = [parts.identity if parts and parts.is_answered else None for parts in stored]
    runs = [
        run if run and parts and _has_trials(run, parts.weights) else None
        for parts, run in zip(stored, find_runs(at, identities), strict=True)
    ]
    if all(runs):
        return runs
    runs_by_id = {run.run_id: run for run in store.list_runs(at, session.experiment.name)}
    for index, (candidate, seed) in enumerate(requests):
        failed = runs_by_id.get(make_failure_id(session.name_begun(candidate.name, seed)))
        if runs[index] is None and failed and Recipe.model_validate(failed.recipe) == candidate.recipe:
            runs[index] = failed
    return runs


def _has_trials(run: Run, weights: Weights) -> bool:
    records = run.training, weights.training
    stored, current = ([(t.params, t.pruned_at, t.forgetting) for t in r.sweep] for r in records)
    return stored == current


def row_sets(session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int) -> list[RowSet]:
    """List the row sets of a run: the target, more targets, then the suites."""
    return _RunParts(session, candidate, seed, weights).sets
