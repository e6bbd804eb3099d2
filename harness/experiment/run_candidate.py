"""One recipe and seed, from its spec to rows on disk and a run folder.

Invariant: stored results are not computed again; a kill loses at most the current block. In folds no item is
answered by weights or shots that were made with it or its cluster, and all folds' rows are one set; the
weights of the run are those made of all rows. An artefact is
compared with the run that it was exported from, computed in fp32; the run's own difference from fp32 is the
floor, so flipped answers alone never count against an artefact (`records.PARITY`).
"""

from collections.abc import Sequence
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
from harness.evaluation.judging_stage import (
    answer_and_score,
    base_arm,
    rescore_stored,
    score_answered,
    suite_arm,
)
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
from harness.evaluation.runner import count_shared_tokens, open_and_fill, open_weights, refuse_other_prompts
from harness.evaluation.session import Session
from harness.experiment.candidate_weights import ensure_weights, find_stored_weights, stands_on
from harness.experiment.stored_rows import Reader, is_cross_validated, list_measured_bases
from harness.experiment.trials import measure_points, read_kept_points
from harness.models import artefacts
from harness.records import BLOCK, Origin, Run, TrackedPoint, digest
from harness.spec import Recipe
from harness.stats import Array
from harness.training import Weights


def make_run(session: Session, candidate: ResolvedCandidate, seed: int, done: Run | None = None) -> Run:
    """Train and evaluate the missing parts of one candidate and seed; remove its recorded failure.

    Raises HarnessError if the candidate could not be made or evaluated.
    """
    at, begun = session.store, session.name_begun(candidate.name, seed)
    refuse_silent(candidate)
    if candidate.searches_prompts:
        step = "harness compare, which chooses one"
        raise CandidateFailed("no prompt was chosen for it on validation", step)
    run = done
    if run is None:
        session.begin(candidate.name, seed)
        parts = _RunParts(session, candidate, seed, ensure_weights(session, candidate, seed))
        run = parts.answer_in_folds().find_or_make()
    if (at.folder / (failed := make_failure_id(begun))).exists():
        store.remove_run(at, failed)
    store.end(at, begun)
    return run


_N_PROMPTS, _N_TOKENS = 50, 8  # test prompts, and tokens at their end whose next one is compared
_GIB = 2**30


class _FoldPart(NamedTuple):
    # Test rows of one fold with the weights that answer them, and the session in which these were made.
    session: Session
    weights: Weights
    rows: RowSet


@dataclass(frozen=True)
class _RunParts:
    # Of one candidate and seed: the weights that answer, and the row sets.
    session: Session
    candidate: ResolvedCandidate
    seed: int
    weights: Weights

    @cached_property
    def sets(self) -> list[RowSet]:
        session, candidate, weights, seed = self.session, self.candidate, self.weights, self.seed
        target = target_sets(session, candidate.recipe, weights, seed)
        if self.is_folded:  # test is answered by the folds' models; it does not exist if one was never made
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
        who = digest(["folds", *(part.rows.identity.answers.digest for part in parts)])
        return test._replace(identity=replace(test.identity, weights_digest=who))

    def answer_in_folds(self) -> "_RunParts":
        # Makes missing models of the folds and their answers; the weights are then based on them.
        session, candidate, parts = self.session, self.candidate, list[_FoldPart]()
        if not self.is_folded:
            return self
        for number, fold in enumerate(session.in_folds(), start=1):
            made = ensure_weights(fold, candidate, self.seed)
            part = _FoldPart(fold, made, target_sets(fold, candidate.recipe, made, self.seed)[1])
            answer_and_score(fold, made, [part.rows], f"{candidate.name}, fold {number}", candidate.base)
            parts.append(part)
        self.write_joined(self.join_folds(parts), parts)
        behind = self.weights.training.stands_on | stands_on(*(part.weights for part in parts))
        training = replace(self.weights.training, stands_on=behind)
        return replace(self, weights=self.weights._replace(training=training))

    def rescore_folds(self) -> list[RowSet]:
        # Scores stored answers as metrics are now; returns the sets that need a model.
        if not self.is_folded:
            return []
        parts = self.find_folds()
        if lacking := [rows for part in parts for rows in rescore_stored(part.session, [part.rows])]:
            return lacking
        joined = self.join_folds(parts)
        if len(parts) < len(self.session.in_folds()):
            return [joined]
        self.write_joined(joined, parts)
        return []

    def write_joined(self, joined: RowSet, parts: Sequence[_FoldPart]) -> None:
        # In the order of test, unless that is done.
        at, identity = self.session.store, joined.identity
        if joined.is_there(at) and store.read_folds(at, identity.digest):
            return
        found, folds, origins = {}, {}, list[Origin]()
        for number, part in enumerate(parts, start=1):
            name = part.rows.identity.digest
            drawn = store.read_drawn(at, name) if identity.decoding else {}
            for row in store.read_rows(at, name, len(part.rows.ids)):
                found[row.example_id] = replace(row, samples=drawn.get(row.example_id, ()))
                folds[row.example_id] = number
            origins += store.origins(at, name).values()
        rows = [replace(found[item], position=place) for place, item in enumerate(joined.ids)]
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
        begun = self.session.name_begun(self.candidate.name, self.seed)
        return RunIdentity(f"{begun}-{digest([rows, self.weights.digest])[:8]}", rows)

    @property
    def is_answered(self) -> bool:
        return all(rows.is_there(self.session.store) for rows in self.sets)

    def find_done(self) -> Run | None:
        (done,) = find_runs(self.session.store, [self.identity if self.is_answered else None])
        return done

    def find_or_make(self) -> Run:
        session, candidate, weights, sets = self.session, self.candidate, self.weights, self.sets
        if (done := self.find_done()) is not None:
            return self.add_points(done)
        if candidate.method.makes == "artefact":
            refuse_other_prompts(open_weights(session, weights), candidate, sets)
        lacking = score_answered(session, sets)
        at, device, n = session.store, session.machine.device, timing.FEW_REQUESTS
        if not lacking:  # the newest finished run with the same answers, scored otherwise
            wanted = {s.name: s.identity.answers for s in sets}
            known = {identity.digest: identity.answers for identity in store.identities(at)}
            same = (candidate.name, self.seed, weights.digest, "done")
            for before in reversed(store.list_runs(at, session.experiment.name)):
                answers = {key: known.get(rows) for key, rows in before.rows.items()}
                found = (before.candidate, before.seed, before.weights_digest, before.state)
                if found == same and answers == wanted:
                    return self.add_points(self.save_again(before))
        with open_and_fill(session, weights, lacking, candidate.name, candidate.base) as model:
            # Single requests for validation items, and answers in a batch. What a judge has yet to grade is
            # stored as it was answered.
            validation, test = (rows if rows.is_there(at) else rows.answers for rows in sets[:2])
            n_timed = timing.n_timed(len(validation.ids))
            with timing.learn_requests(session.learn_load, model, n_timed) as latency:
                latency |= timing.latency_figures(timing.request_latency(device, model, validation, n))
                compute_s, contended = timing.batch_time(at, device, model, test)
                latency |= {"compute_s": compute_s, "compute_contended": float(contended)}
                latency["prompting_s"] = timing.measure_prompting(validation, n)
                latency["shared_prompt_tokens"] = float(count_shared_tokens(model, validation.job()))
        score_answered(session, lacking)
        training_rows = describe_rows(session.training_data(candidate.source), candidate.source)
        run = describe_run(
            session.experiment.name,
            candidate,
            self.seed,
            weights_digest=weights.digest,
            state="done",
            training=replace(weights.training, tracked=self.measure_points()),
            latency=latency,
            provenance=provenance.collect(session.machine.name)
            | {"precision": session.machine.precision}
            | ({"training_rows": training_rows} if training_rows else {}),
            metrics=metric_ranges(sets),
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

    def add_points(self, done: Run) -> Run:
        # What a finished run lacks: points along its training, and trials.
        wanted = read_kept_points(self.candidate, self.weights.folder)
        is_tracked = not wanted or len(wanted) == len(done.training.tracked)
        if is_tracked and _has_trials(done, self.weights):
            return done
        training = replace(self.weights.training, tracked=self.measure_points())
        run = replace(done, training=training, recipe=self.candidate.recipe.stored_form())
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
        # With the run that it was exported from, as far as that is stored here.
        session, path, test = self.session, Path(self.candidate.source.path or ""), self.sets[1]
        rows, found = test.read(session.store), dict[str, Any](size_bytes=artefacts.count_bytes(path))
        if busy_s := sum(row.compute_s for row in rows):
            found["tokens_per_s"] = round(sum(row.n_output_tokens for row in rows) / busy_s, 2)
        of_texts = [s for s in self.sets if s.measured.task.kind == "bits_per_byte"]
        scored = [
            (row.gold_logprob, row.gold_bytes)
            for row in (row for s in of_texts for row in s.read(session.store))
            if row.gold_bytes and row.gold_logprob is not None
        ]
        if scored:
            nats, n_bytes = (sum(column) for column in zip(*scored, strict=True))
            found["bits_per_byte"] = round(-nats / np.log(2) / n_bytes, 5)
        run_id = str(artefacts.read_export(path).get("run_id") or "")
        own = store.read_written_runs(session.store, [run_id]).get(run_id) if run_id else None
        if own is None or test.name not in own.rows:
            return found | ({"own_run": run_id} if run_id else {})
        found |= {"own_run": run_id, "n_answers": len(rows)}
        # The answers that differ from the run's, with the scores that were lost and won.
        known = {row.example_id: row for row in store.read_rows(session.store, own.rows[test.name])}
        before = [known[row.example_id] for row in rows if row.example_id in known]
        if len(before) == len(rows):
            c = comparison.compare_rows(test.measured.primary, before, rows)
            changed = sum(a.text != b.text for a, b in zip(before, rows, strict=True))
            found |= {"flipped": changed, "lost": len(c.lost), "won": len(c.gained)}
        # The run's weights as its recipe is written now, if they are those of the run.
        of_run = session.candidates.get(own.candidate)
        if of_run is None or not of_run.method.makes_language_model or of_run.is_remote:
            return found
        own_weights = find_stored_weights(session, of_run, own.seed)
        if own_weights is None or own_weights.digest != own.weights_digest:
            return found
        return found | self.compare_in_fp32(own, own_weights)

    def compare_in_fp32(self, own: Run, own_weights: Weights) -> dict[str, Any]:
        # Logits with the run's in fp32; also counts the run's own answers that differ in fp32.
        session, test, texts = self.session, self.sets[1], list[tuple[int, ...]]()
        exact, recipe = session.switch_to_fp32(), session.candidates[own.candidate].recipe
        own_test = target_sets(exact, recipe, own_weights, own.seed)[1]
        try:
            with open_and_fill(exact, own_weights, [own_test], f"{own.candidate} in fp32") as model:
                asked = [prompt_text(test.measured.task, e) for e in own_test.examples()[:_N_PROMPTS]]
                texts = [
                    ids for encoded in model.encode_all(asked) if len(ids := encoded.context) >= _N_TOKENS
                ]
                wanted = [*artefacts.list_logits(model, texts, _N_TOKENS)]
        finally:
            exact.unload()
        answers = {row.example_id: row.text for row in own_test.read(session.store)}
        rows = store.read_rows(session.store, own.rows[test.name])
        floor = {"floor": sum(answers.get(row.example_id, row.text) != row.text for row in rows)}
        columns: list[tuple[Array, Array, Array]] = []
        with open_weights(session, self.weights) as model:
            for both in zip(wanted, artefacts.list_logits(model, texts, _N_TOKENS), strict=True):
                n = min(logits.shape[1] for logits in both)  # a vocabulary may be padded
                cut = [logits[:, :n] for logits in both]
                p, q = (
                    logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
                    for logits in (logits.astype(float) for logits in cut)
                )
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
    """Time more single requests to a finished run's weights, and concurrent ones; its answers stay.

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
        if not candidate.is_remote:  # each request of an endpoint has its price
            latency = timing.request_latency(device, model, rows, timing.MANY_REQUESTS)
            figures |= timing.latency_figures(latency)
    run = replace(run, latency=run.latency | figures)
    store.save_run(session.store, run)
    return run


def rescore_run(session: Session, run_before: Run) -> tuple[Run, dict[str, dict[str, Estimate]]]:
    """Score stored answers with the current metrics: of a run, and on suites of its base and the champion.

    Returns the run and its scores by task. Raises IncompatibleRuns if the model would have to answer again.
    """
    candidate = _find_unchanged(session, run_before)
    again, weights = None, find_stored_weights(session, candidate, run_before.seed)
    lacking = list(run_before.rows)
    if weights is not None:
        parts = _RunParts(session, candidate, run_before.seed, weights)
        in_folds = parts.rescore_folds()
        lacking = [f"{rows.name} in folds" for rows in in_folds[:1]]
        lacking = lacking or [rows.name for rows in rescore_stored(session, parts.sets)]
        again = None if lacking else parts.find_done() or parts.save_again(run_before)
    if again is None:
        raise IncompatibleRuns(
            f"{run_before.run_id}: found no stored answers to {', '.join(lacking)} as prompted now; expected "
            "that only their scoring has changed; next: harness compare evaluates again"
        )
    gated_against = [base_weights(base) for base in candidate.bases]
    champion = store.read_champion(session.store.folder.parent, session.experiment.target.name)
    if champion is not None:
        gated_against.append(gated_against[0]._replace(digest=champion.weights_digest))
    for other in gated_against:
        rescore_stored(session, suite_sets(session, other))
    return again, Reader(session.store, session.tasks).scores(again)


def rescore_pinned(session: Session, run: Run) -> list[str]:
    """Answer the regression suites in fp32 with a run's weights; return the tasks stored in fp32."""
    weights = ensure_weights(session, session.candidates[run.candidate], run.seed)
    pinned = tuple(m for m in session.suites if m.role == "regression")
    exact = replace(session.switch_to_fp32(), suites=pinned)
    return list(suite_arm(exact, weights, f"{run.candidate} in fp32"))


def answer_all_items(session: Session, run: Run) -> Run:
    """Let the weights of a run of sampled items, and its bases, answer whole tasks, if unchanged."""
    candidate = _find_unchanged(session, run)
    weights = find_stored_weights(session, candidate, run.seed)
    if weights is None or weights.digest != run.weights_digest:
        raise IncompatibleRuns(
            f"{run.run_id}: found no weights {run.weights_digest} as the file makes them now; expected "
            "those that answered the sampled items; next: harness compare --all-items --candidates "
            f"{run.candidate}"
        )
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


def find_stored_runs(session: Session, requests: Sequence[RunRequest]) -> list[Run | None]:
    """Find the runs of recipes as they are written now, or their failures; computes nothing."""
    at, stored = session.store, [_find_whole(session, *request) for request in requests]
    store.read_ids(at, {rows.identity.digest for parts in stored if parts for rows in parts.sets})
    wanted = [parts.identity if parts and parts.is_answered else None for parts in stored]
    found = [
        run if run and parts and _has_trials(run, parts.weights) else None
        for parts, run in zip(stored, find_runs(at, wanted), strict=True)
    ]
    if all(found):
        return found
    known = {run.run_id: run for run in store.list_runs(at, session.experiment.name)}
    for place, (candidate, seed) in enumerate(requests):
        failed = known.get(make_failure_id(session.name_begun(candidate.name, seed)))
        if found[place] is None and failed and Recipe.model_validate(failed.recipe) == candidate.recipe:
            found[place] = failed
    return found


def _find_whole(session: Session, candidate: ResolvedCandidate, seed: int) -> _RunParts | None:
    weights = None if candidate.searches_prompts else find_stored_weights(session, candidate, seed)
    if weights is None:
        return None
    parts = _RunParts(session, candidate, seed, weights)
    try:
        test = parts.sets[1]
    except CandidateFailed:  # its base cannot be loaded, and rows are named by the scoring engine
        return None
    return parts if not parts.is_folded or store.read_folds(session.store, test.identity.digest) else None


def _has_trials(run: Run, weights: Weights) -> bool:
    now, known = (
        [(t.params, t.pruned_at, t.forgetting) for t in of.sweep] for of in (weights.training, run.training)
    )
    return now == known


def row_sets(session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int) -> list[RowSet]:
    """List what a run refers to: the target, more targets, then the suites."""
    return _RunParts(session, candidate, seed, weights).sets
