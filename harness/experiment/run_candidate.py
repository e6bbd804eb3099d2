"""One recipe and seed, from its spec to rows on disk and a run folder.

Invariant: nothing is computed whose identity already lies on disk; a kill loses at most the
block in flight, and the next call goes on from there. An artefact is compared with the run that it was
exported from, whose weights compute in fp32; the floor is what the run's own rows differ from that, so that
flipped answers alone never speak against an artefact. `records.PARITY` says what each figure means.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import provenance, store
from harness.analysis import comparison
from harness.errors import CandidateFailed
from harness.evaluation import prompt_text, timing
from harness.evaluation.candidate_rows import describe_rows
from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.judging_stage import rescore_stored, score_answered
from harness.evaluation.row_sets import (
    RowSet,
    RunRequest,
    describe_run,
    failure,
    find_runs,
    is_there,
    list_further_sets,
    make_failure_id,
    metric_ranges,
    name_begun_run,
    run_id_of,
    run_identity,
    suite_sets,
    target_sets,
)
from harness.evaluation.runner import count_shared_tokens, open_and_fill, open_weights
from harness.evaluation.session import EngineSlot, Session
from harness.evaluation.verification import refuse_other_prompts
from harness.experiment.candidate_weights import ensure_weights, find_stored_weights
from harness.experiment.stored_rows import (
    answer_folds,
    base_arm,
    is_cross_validated,
    rescore_folds,
    sets_of_target,
)
from harness.experiment.validation_scores import measure_points, read_tracked_weights
from harness.models import Candidate, artefacts
from harness.records import RowsIdentity, Run, TrackedPoint
from harness.stats import Array
from harness.training import Weights


def make_run(session: Session, candidate: ResolvedCandidate, seed: int, done: Run | None = None) -> Run:
    """Train and evaluate one candidate and seed, as far as that is not `done`; forget its failure.

    Raises:
        UserError: the candidate answers nothing.
        HarnessError: the candidate could not be made or evaluated.
    """
    name = candidate.name
    refuse_silent(candidate)
    if candidate.searches_prompts:
        raise CandidateFailed(
            "no prompt was chosen for it on validation", "harness compare, which chooses one"
        )
    if done is None:
        begin(session, name, seed)
    run = done or _train_and_evaluate(session, candidate, seed)
    if (session.store.folder / (failed := make_failure_id(session, name, seed))).exists():
        store.remove_run(session.store, failed)
    store.end(session.store, name_begun_run(session, name, seed))
    return run


def begin(session: Session, name: str, seed: int) -> None:
    """Note that a run has begun, so that nobody clears away what it has so far, until `make_run` made it."""
    store.begin(session.store, name_begun_run(session, name, seed))


def _train_and_evaluate(session: Session, candidate: ResolvedCandidate, seed: int) -> Run:
    name, weights = candidate.name, ensure_weights(session, candidate, seed)
    weights = answer_folds(session, candidate, weights, seed)
    sets = row_sets(session, candidate, weights, seed)
    (done,) = find_runs(session, [run_identity(session, name, seed, weights, sets)])
    if done is not None:
        return _add_points(session, candidate, seed, weights, done)
    run_id = run_id_of(session, name, seed, weights, sets)
    if candidate.method.makes_artefact:
        refuse_other_prompts(session, candidate, weights, sets)
    lacking = score_answered(session, sets)
    if not lacking and (before := _find_before(session, name, seed, weights, sets)) is not None:
        return _add_points(
            session, candidate, seed, weights, _save_again(session.store, candidate, run_id, sets, before)
        )
    with open_and_fill(session, weights, lacking, name, candidate.base) as model:
        latency = _measure_times(session, model, sets, timing.FEW_REQUESTS)
    score_answered(session, lacking)
    said = describe_rows(session, candidate.source)
    run = describe_run(
        session,
        candidate,
        seed,
        run_id=run_id,
        weights_digest=weights.digest,
        state="done",
        rows={s.name: s.identity.digest for s in sets},
        training=replace(weights.training, tracked=_points(session, candidate, seed, weights)),
        latency=latency,
        provenance=provenance.collect(session.machine.name)
        | {"precision": session.machine.precision}
        | ({"training_rows": said} if said else {}),
        metrics=metric_ranges(sets),
        parity=measure_parity(session, candidate, weights, sets) if candidate.method.makes_artefact else {},
    )
    store.save_run(session.store, run)
    return run


def _points(
    session: Session, candidate: ResolvedCandidate, seed: int, weights: Weights
) -> tuple[TrackedPoint, ...]:
    if not candidate.source.track:
        return ()
    return measure_points(session, candidate, weights, seed, base_arm(session, candidate.base))


def _add_points(
    session: Session, candidate: ResolvedCandidate, seed: int, weights: Weights, done: Run
) -> Run:
    """Return a finished run with the points along its training and the trials that one made before lacks."""
    wanted = read_tracked_weights(candidate, weights)
    is_tracked = not wanted or len(wanted) == len(done.training.tracked)
    if is_tracked and _has_trials(done, weights):
        return done
    tracked = _points(session, candidate, seed, weights)
    run = replace(
        done,
        training=replace(weights.training, tracked=tracked),
        recipe=candidate.recipe.stored_form(),
    )
    store.save_run(session.store, run)
    return run


def _measure_times(session: Session, model: Candidate, sets: Sequence[RowSet], n: int) -> dict[str, float]:
    """Time single requests for validation items and answers in a batch on test; with the cached tokens."""
    # What a judge has yet to grade is stored as it was answered.
    validation, test = (rows if is_there(session, rows) else rows.answers for rows in sets[:2])
    with timing.learn_requests(session, model, timing.n_timed(len(validation.ids))) as figures:
        figures |= timing.latency_figures(timing.request_latency(session, model, validation, n))
        batch = timing.batch_time(session, model, test)
        figures |= {"compute_s": batch.compute_s, "compute_contended": float(batch.contended)}
        figures["prompting_s"] = timing.measure_prompting(validation, n)
        figures["shared_prompt_tokens"] = float(count_shared_tokens(model, validation.job()))
    return figures


def time_again(session: Session, candidate: ResolvedCandidate, run: Run) -> Run:
    """Time more single requests to a finished run's weights, and several at once; its answers stay.

    A run of which more would say no more is returned as it is, as is one whose single requests all failed.
    """
    weights = find_stored_weights(session, candidate, run.seed)
    sets = [] if weights is None else row_sets(session, candidate, weights, run.seed)
    at_once = session.experiment.concurrency
    if weights is None or not timing.wants_more(run, len(sets[0].ids), at_once):
        return run
    if "p50_s" not in run.latency:
        return run
    expected_s = timing.n_timed(len(sets[0].ids), best=True) * run.latency["p50_s"]
    with (
        open_weights(session, weights) as model,
        session.progress.stage(f"{candidate.name}: single requests", expected_s),
        timing.learn_requests(session, model, timing.n_timed(len(sets[0].ids), best=True)) as figures,
    ):
        generates = weights.is_language_model and candidate.recipe.answer == "generate"
        figures |= timing.time_load(
            session, model, sets[0], generates=generates, at_once=at_once or timing.AT_ONCE
        )
        if not candidate.is_remote:  # each request of an endpoint has its price
            latency = timing.request_latency(session, model, sets[0], timing.MANY_REQUESTS)
            figures |= timing.latency_figures(latency)
    run = replace(run, latency=run.latency | figures)
    store.save_run(session.store, run)
    return run


def rescore_run(session: Session, candidate: ResolvedCandidate, run: Run) -> tuple[Run | None, list[str]]:
    """Score a finished run's stored answers with the metrics as they are now, without the model.

    Returns the run as it is scored now, and the names of rows that only asking again would give; where
    there are such rows, no run is made.
    """
    weights = find_stored_weights(session, candidate, run.seed)
    if weights is None:
        return None, list(run.rows)
    if in_folds := rescore_folds(session, candidate, weights, run.seed):
        return None, [f"{rows.name} in folds" for rows in in_folds[:1]]
    sets = row_sets(session, candidate, weights, run.seed)
    if lacking := rescore_stored(session, sets):
        return None, [rows.name for rows in lacking]
    (done,) = find_runs(session, [run_identity(session, candidate.name, run.seed, weights, sets)])
    run_id = run_id_of(session, candidate.name, run.seed, weights, sets)
    return done or _save_again(session.store, candidate, run_id, sets, run), []


def _find_before(
    session: Session, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]
) -> Run | None:
    wanted = {s.name: s.identity.answers for s in sets}
    known = {one.digest: one.answers for one in store.identities(session.store)}
    for run in reversed(store.list_runs(session.store, session.experiment.name)):
        own = (run.candidate, run.seed, run.weights_digest, run.state)
        answers = {key: known.get(rows) for key, rows in run.rows.items()}
        if own == (name, seed, weights.digest, "done") and answers == wanted:
            return run
    return None


def _save_again(
    at: store.Store, candidate: ResolvedCandidate, run_id: str, sets: Sequence[RowSet], before: Run
) -> Run:
    """Save a run with rows that were scored again; what was measured of it stays."""
    run = replace(
        before,
        run_id=run_id,
        created=provenance.timestamp(),
        rows={s.name: s.identity.digest for s in sets},
        recipe=candidate.recipe.stored_form(),
        metrics=metric_ranges(sets),
    )
    store.save_run(at, run)
    return run


def find_stored_runs(session: Session, requests: Sequence[RunRequest]) -> list[Run | None]:
    """Find the runs of recipes as they are written now, or their failures; computes nothing.

    A run whose trials are not those of its search as it is written now is none.
    """
    stored = [_find_stored_sets(session, *request) for request in requests]
    store.read_ids(session.store, {rows.identity.digest for one in stored if one for rows in one[1]})
    wanted = [
        run_identity(session, request.candidate.name, request.seed, *one) if one else None
        for request, one in zip(requests, stored, strict=True)
    ]
    found = [
        run if run and one and _has_trials(run, one[0]) else None
        for one, run in zip(stored, find_runs(session, wanted), strict=True)
    ]
    if all(found):
        return found
    known = {run.run_id: run for run in store.list_runs(session.store, session.experiment.name)}
    return [run or failure(session, known, one) for run, one in zip(found, requests, strict=True)]


def describe_outdated(session: Session, request: RunRequest) -> str:
    """Say why the newest stored run of this name and seed is not that of the recipe now; empty if unknown."""
    candidate, seed = request
    own = (session.experiment.name, candidate.name, seed, "done")
    runs = [r for r in store.list_runs(session.store) if (r.experiment, r.candidate, r.seed, r.state) == own]
    weights = find_stored_weights(session, candidate, seed)
    if not runs:
        return ""
    if weights is None:
        return f"the weights of {candidate.name} as written now are not stored"
    stored = {one.digest: asdict(one) for one in store.identities(session.store)}
    sets = row_sets(session, candidate, weights, seed)
    now = {rows.name: asdict(rows.identity) for rows in sets}
    then = {key: stored[rows] for key, rows in runs[-1].rows.items() if rows in stored and key in now}
    names = [field.name for field in fields(RowsIdentity)]
    differing = [name for name in names if any(then[key][name] != now[key][name] for key in then)]
    if differing:
        return f"that of {candidate.name} has another {', '.join(differing)}"
    lost = [rows.name for rows in sets if not store.has_rows(session.store, rows.identity, ())]
    return f"its rows of {', '.join(lost)} are lost or damaged" if lost else ""


def _find_stored_sets(
    session: Session, candidate: ResolvedCandidate, seed: int
) -> tuple[Weights, list[RowSet]] | None:
    """Find the weights of a run, and the row sets that it refers to."""
    if candidate.searches_prompts or (weights := find_stored_weights(session, candidate, seed)) is None:
        return None
    try:
        sets = row_sets(session, candidate, weights, seed)
    except CandidateFailed:  # its base cannot be loaded, and by what scores it rows are named
        return None
    # In folds it is kept which fold's model answered each test row.
    needs_folds = is_cross_validated(session.folds, candidate)
    has_all = not needs_folds or store.read_folds(session.store, sets[1].identity.digest)
    return (weights, sets) if has_all else None


def _has_trials(run: Run, weights: Weights) -> bool:
    now, known = (
        [(t.params, t.pruned_at, t.forgetting) for t in of.sweep] for of in (weights.training, run.training)
    )
    return now == known


def row_sets(session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int) -> list[RowSet]:
    """List what a run refers to: the target, more targets, then the suites."""
    suites = [] if candidate.is_target_only else suite_sets(session, weights)
    more = list_further_sets(session, candidate.recipe, weights, seed)
    return [*sets_of_target(session, candidate, weights, seed), *more, *suites]


_N_PROMPTS, _N_TOKENS = 50, 8  # test prompts, and tokens at their end whose next one is compared
_GIB = 2**30


def measure_parity(
    session: Session, candidate: ResolvedCandidate, weights: Weights, sets: Sequence[RowSet]
) -> dict[str, Any]:
    """Measure an artefact beside the run that it was exported from, as far as that is stored here.

    `sets` are the artefact's answered rows, those of the target's test split second.
    """
    path, test = Path(candidate.source.path or ""), sets[1]
    rows = test.read(session.store)
    busy_s = sum(row.compute_s for row in rows)
    found: dict[str, Any] = {"size_bytes": artefacts.count_bytes(path)}
    if busy_s:
        found["tokens_per_s"] = round(sum(row.n_output_tokens for row in rows) / busy_s, 2)
    texts = [row for s in sets if s.measured.task.kind == "bits_per_byte" for row in s.read(session.store)]
    scored = [
        (row.gold_logprob, row.gold_bytes) for row in texts if row.gold_bytes and row.gold_logprob is not None
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
    return found | _compare_in_fp32(session, own, own_weights, weights, test)


def _compare_in_fp32(
    session: Session, own: Run, own_weights: Weights, weights: Weights, test: RowSet
) -> dict[str, Any]:
    """Compare logits with those of the run in fp32, and count which of its own answers differ there."""
    session.unload()
    exact = replace(session, machine=session.machine._replace(precision="fp32"), slot=EngineSlot())
    recipe = session.candidates[own.candidate].recipe
    own_test = target_sets(exact, recipe, own_weights, own.seed)[1]
    texts: list[tuple[int, ...]] = []
    try:
        with open_and_fill(exact, own_weights, [own_test], f"{own.candidate} in fp32") as model:
            asked = [prompt_text(test.measured.task, e) for e in own_test.examples()[:_N_PROMPTS]]
            texts = [ids for one in model.encode_all(asked) if len(ids := one.context) >= _N_TOKENS]
            wanted = [*artefacts.list_logits(model, texts, _N_TOKENS)]
    finally:
        exact.unload()
    answers = {row.example_id: row.text for row in own_test.read(session.store)}
    rows = store.read_rows(session.store, own.rows[test.name])
    floor = {"floor": sum(answers.get(row.example_id, row.text) != row.text for row in rows)}
    columns: list[tuple[Array, Array, Array]] = []
    with open_weights(session, weights) as model:
        for both in zip(wanted, artefacts.list_logits(model, texts, _N_TOKENS), strict=True):
            n = min(logits.shape[1] for logits in both)  # a vocabulary may be padded
            cut = [logits[:, :n] for logits in both]
            exact_logits = [logits.astype(float) for logits in cut]
            p, q = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in exact_logits)
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
