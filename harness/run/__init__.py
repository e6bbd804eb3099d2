"""One recipe and seed, from its spec to rows on disk and a run folder.

Invariant: nothing is computed whose identity already lies on disk; a kill loses at most the
block in flight, and the next call goes on from there.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from harness import endpoint, provenance, store
from harness.candidates import Candidate, classifier
from harness.embedded import ModelSource
from harness.errors import CandidateFailed, Diverged, in_a_line
from harness.evaluate import latency_s
from harness.records import Example, Run
from harness.run import control as control_arm
from harness.run import replay, rescoring
from harness.run import weights as made
from harness.run.bench import Bench, measured
from harness.run.finished import (
    Asked,
    Sought,
    begun_as,
    failed_id,
    failure,
    finished,
    is_there,
    run_id_of,
    sought,
)
from harness.run.sets import RowSet, suite_set, suite_sets, target_sets, work_of
from harness.run.shared import shared_tokens
from harness.run.weights import base_of, served_base
from harness.spec import Recipe
from harness.training import Weights


def make_run(bench: Bench, name: str, recipe: Recipe, seed: int, done: Run | None = None) -> Run:
    """Train and evaluate one recipe and seed, as far as that is not `done`; forget its failure.

    Raises:
        HarnessError: the candidate could not be made or evaluated.
    """
    if done is None:
        begin(bench, name, seed)
    run = done or _made(bench, name, recipe, seed)
    if (bench.store.folder / (failed := failed_id(bench, name, seed))).exists():
        store.remove_run(bench.store, failed)
    store.end(bench.store, begun_as(bench, name, seed))
    return run


def begin(bench: Bench, name: str, seed: int) -> None:
    """Note that a run has begun, so that nobody clears away what it has so far, until `make_run` has made it.

    Raises:
        HarnessError: the disk is full.
    """
    store.begin(bench.store, begun_as(bench, name, seed))


def _made(bench: Bench, name: str, recipe: Recipe, seed: int) -> Run:
    weights = ensure_weights(bench, recipe, seed)
    sets = _row_sets(bench, recipe, weights, seed)
    (done,) = finished(bench, [sought(bench, name, seed, weights, sets)])
    if done is not None:
        return done
    run_id = run_id_of(bench, name, seed, weights, sets)
    lacking = rescoring.missing(bench, sets)
    if not lacking and (before := _before(bench, name, seed, weights, sets)) is not None:
        return _saved_again(bench, recipe, run_id, sets, before)
    beside = _beside(bench, recipe, weights) if lacking else ""
    with opened(bench, weights) as candidate:
        fill(bench, candidate, lacking, name, control=beside)
        validation = sets[0].job()
        times, shared = latency_s(candidate, validation), shared_tokens(candidate, validation)
    run = _record(
        bench,
        name,
        recipe,
        seed,
        run_id=run_id,
        weights_digest=weights.digest,
        state="done",
        rows={s.name: s.identity.digest for s in sets},
        training=weights.training,
        latency={
            "p50_s": statistics.median(times),
            "n": float(len(times)),
            "shared_prompt_tokens": float(shared),
        },
        provenance=provenance.collect(bench.machine.name) | {"precision": bench.machine.precision},
    )
    store.save_run(bench.store, run)
    return run


def scored_again(bench: Bench, name: str, recipe: Recipe, run: Run) -> tuple[Run | None, list[str]]:
    """Score a finished run's stored answers with the metrics as they are now, without the model.

    Returns the run as it is scored now, and the names of rows that only asking again would give; where
    there are such rows, no run is made.
    """
    weights = _stored_weights(bench, recipe, run.seed)
    if weights is None:
        return None, list(run.rows)
    sets = _row_sets(bench, recipe, weights, run.seed)
    if lacking := rescoring.missing(bench, sets):
        return None, [rows.name for rows in lacking]
    (done,) = finished(bench, [sought(bench, name, run.seed, weights, sets)])
    run_id = run_id_of(bench, name, run.seed, weights, sets)
    return done or _saved_again(bench, recipe, run_id, sets, run), []


def _before(bench: Bench, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]) -> Run | None:
    """Find the newest run that holds the same answers under another scoring."""
    wanted = {s.name: s.identity.answers for s in sets}
    known = {one.digest: one.answers for one in store.identities(bench.store)}
    for run in reversed(store.list_runs(bench.store, bench.experiment.name)):
        own = (run.candidate, run.seed, run.weights_digest, run.state)
        answers = {key: known.get(rows) for key, rows in run.rows.items()}
        if own == (name, seed, weights.digest, "done") and answers == wanted:
            return run
    return None


def _saved_again(bench: Bench, recipe: Recipe, run_id: str, sets: Sequence[RowSet], before: Run) -> Run:
    """Save a run with rows that were scored again; what was measured of it stays."""
    run = replace(
        before,
        run_id=run_id,
        created=provenance.timestamp(),
        rows={s.name: s.identity.digest for s in sets},
        recipe=recipe.model_dump(mode="json"),
    )
    store.save_run(bench.store, run)
    return run


def stored_runs(bench: Bench, asked: Sequence[Asked]) -> list[Run | None]:
    """Find the runs of recipes as they are written now, or their failures; computes nothing."""
    found = finished(bench, [_sought_in_store(bench, *one) for one in asked])
    if all(found):
        return found
    known = {run.run_id: run for run in store.list_runs(bench.store, bench.experiment.name)}
    return [run or failure(bench, known, *one) for run, one in zip(found, asked, strict=True)]


def _sought_in_store(bench: Bench, name: str, recipe: Recipe, seed: int) -> Sought | None:
    weights = _stored_weights(bench, recipe, seed)
    return weights and sought(bench, name, seed, weights, _row_sets(bench, recipe, weights, seed))


def _stored_weights(bench: Bench, recipe: Recipe, seed: int) -> Weights | None:
    try:
        return _weights(bench, recipe, seed, make=False)
    except Diverged:
        return None


def _row_sets(bench: Bench, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    return [*target_sets(bench, recipe, weights, seed), *suite_sets(bench, weights)]


def base_weights(bench: Bench, source: ModelSource | None = None) -> Weights:
    """Return the own weights of a base, the experiment's where none is named."""
    source = source or bench.source
    return Weights("base", source.weights_digest, None, {}, source)


def base_arm(bench: Bench, source: ModelSource) -> dict[str, str]:
    """Measure a base's general ability, as it is served; returns the row set of each task."""
    return suite_arm(bench, base_weights(bench, source), f"base {source.quantization}".rstrip())


def suite_arm(bench: Bench, weights: Weights, name: str) -> dict[str, str]:
    """Measure weights on the suites, as far as that is not done yet; returns the row set of each task."""
    sets = suite_sets(bench, weights)
    if lacking := rescoring.missing(bench, sets):
        with opened(bench, weights) as candidate:
            fill(bench, candidate, lacking, name)
    return {s.measured.task.name: s.identity.digest for s in sets}


def measured_arm(bench: Bench, source: ModelSource) -> dict[str, str] | None:
    """Find a base's general ability where it was measured; None where rows are missing."""
    sets = suite_sets(bench, base_weights(bench, source))
    if not all(is_there(bench, s) for s in sets):
        return None
    return {s.measured.task.name: s.identity.digest for s in sets}


def failed_run(bench: Bench, name: str, recipe: Recipe, seed: int, error: BaseException) -> Run:
    """Record that a candidate could not be made, with its reason."""
    run = _record(
        bench,
        name,
        recipe,
        seed,
        run_id=failed_id(bench, name, seed),
        weights_digest="",
        state="failed",
        rows={},
        error=in_a_line(error),
    )
    store.save_run(bench.store, run)
    return run


def _record(bench: Bench, name: str, recipe: Recipe, seed: int, **outcome: Any) -> Run:
    """Join what a recipe says of its run with what became of it."""
    base, served = base_of(bench, recipe), served_base(bench, recipe)
    return Run(
        experiment=bench.experiment.name,
        candidate=name,
        method=made.source_of(bench, recipe).method,
        prompting=_spelled(recipe),
        answer=recipe.answer,
        seed=seed,
        base_model=base.name,
        base_digest=base.weights_digest,
        served_digest=served.weights_digest if served != base else "",
        created=provenance.timestamp(),
        recipe=recipe.model_dump(mode="json"),
        **outcome,
    )


def ensure_weights(bench: Bench, recipe: Recipe, seed: int) -> Weights:
    """Return the weights of a recipe, made now or before."""
    found = _weights(bench, recipe, seed, make=True)
    assert found is not None
    return found


def _weights(bench: Bench, recipe: Recipe, seed: int, *, make: bool) -> Weights | None:
    """Find weights; without `make`, None where they or what they start from are missing."""
    source = made.source_of(bench, recipe)
    if source.method == "base":
        return base_weights(bench, base_of(bench, recipe))
    if source.sweep:
        return _swept(bench, recipe, source, seed, make=make)
    return _single(bench, recipe, source, seed, make=make)


def _single(bench: Bench, recipe: Recipe, source: Recipe, seed: int, *, make: bool) -> Weights | None:
    init = None
    if source.init_from:
        init = _weights(bench, bench.experiment.candidates[source.init_from], seed, make=make)
        if init is None:
            return None
    folder = made.folder_of(bench, source, seed, init)
    found = made.found(bench, recipe, folder)
    if found is None and make:
        replayed = _replayed(bench, source, seed)
        if bench.experiment.engine == "vllm" or bench.machine.device == "cuda":
            bench.unload()  # training has a base of its own, and a GPU rarely room for two
        made.fit(bench, source, seed, folder, init, replayed)
        found = made.found(bench, recipe, folder)
    if found is None or init is None:
        return found
    before_s = sum(init.training.get(name, 0.0) for name in ("wall_s", "init_wall_s"))
    began_with = {"init_wall_s": round(before_s, 3), "stands_on": stands_on(init)}
    return found._replace(training={**found.training, **began_with})


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of those that they in turn stand on, to their digests."""
    behind: dict[str, str] = {}
    for one in weights:
        own = one.training.get("fit_key")
        behind |= one.training.get("stands_on", {}) | ({own: one.digest} if own else {})
    return behind


def _replayed(bench: Bench, source: Recipe, seed: int) -> Sequence[Example]:
    """Return the general rows of a recipe's training; the base answers them now, or did before."""
    if source.replay is None:
        return ()
    if source.replay.data:
        return replay.given(bench, source.replay, seed)
    prompts = replay.asked(bench, source.replay)
    task, items = replay.as_task(bench, prompts)
    weights = base_weights(bench, base_of(bench, source))
    wanted = suite_set(bench, weights, measured(task, "capability", "replay", items))
    if lacking := rescoring.missing(bench, [wanted]):
        with opened(bench, weights) as base:
            fill(bench, base, lacking, "base")
    rows = store.read_rows(bench.store, wanted.identity.digest, len(wanted.ids))
    found = replay.answered(prompts, rows, replay.n_replayed(bench, source.replay))
    if not found:
        reason = f"the base gave no whole answer to any of {len(prompts)} general prompts"
        raise CandidateFailed(reason, "replay: {share: 0.05, data: rows-of-yours.jsonl}")
    return found


_OF_TRIAL = ("best_validation_loss", "wall_s", "loss", "validation_loss")


def _swept(bench: Bench, recipe: Recipe, source: Recipe, seed: int, *, make: bool) -> Weights | None:
    """Return the weights of the trial that is best on validation with the first seed.

    Every trial has the same budget; those that lose stay in the store.

    Raises:
        Diverged: every trial did.
    """
    tried: list[dict[str, Any]] = []
    kept: list[Weights] = []
    metric = bench.target.primary
    for point, trial in made.trials(source):
        try:
            found = _single(bench, recipe, trial, bench.experiment.seeds[0], make=make)
        except Diverged:
            tried.append({"params": point, "validation": None, "wall_s": 0.0})
            continue
        score = None if found is None else _validation(bench, trial, found, make=make)
        if found is None or score is None:
            return None
        kept.append(found)
        measured = {name: found.training.get(name) for name in _OF_TRIAL}
        tried.append({"params": point, "validation": score, **measured})
    best = max(tried, key=lambda trial: _rank(trial, higher_is_better=metric.higher_is_better))
    if best["validation"] is None:
        raise Diverged("the training loss is not a number in any trial of the sweep", "lower values in sweep")
    chosen = next(trial for point, trial in made.trials(source) if point == best["params"])
    found = _single(bench, recipe, chosen, seed, make=make)
    if found is None:
        return None
    again = 0.0 if seed == bench.experiment.seeds[0] else found.training.get("wall_s", 0.0)
    wall_s = round(sum(t["wall_s"] for t in tried) + again, 3)
    sweep = [{**t, "chosen": t is best} for t in tried]
    training = {**found.training, "wall_s": wall_s, "sweep": sweep, "stands_on": stands_on(*kept)}
    return found._replace(training=training)


def _rank(trial: Mapping[str, Any], *, higher_is_better: bool) -> tuple[float, float]:
    """Order trials by their validation score; of equal ones the lower validation loss is the better."""
    score, loss = trial["validation"], trial.get("best_validation_loss")
    signed = -np.inf if score is None else score if higher_is_better else -score
    return float(signed), -np.inf if loss is None else -float(loss)


def _validation(bench: Bench, trial: Recipe, weights: Weights, *, make: bool) -> float | None:
    """Return a trial's score on the validation rows of the target; None where they are missing."""
    rows = target_sets(bench, trial, weights, bench.experiment.seeds[0])[0]
    if not is_there(bench, rows):
        if not make:
            return None
        if lacking := rescoring.missing(bench, [rows]):
            beside = _beside(bench, trial, weights)
            with opened(bench, weights) as candidate:
                fill(bench, candidate, lacking, "sweep", control=beside)
    metric = bench.target.primary
    answered = store.read_rows(bench.store, rows.identity.digest, len(rows.ids))
    parts = [p for row in answered if (p := row.parts.get(metric.name)) is not None]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None


def _spelled(recipe: Recipe) -> str:
    """Spell out the promptings with their parameters."""
    return " + ".join(
        f"{name}({', '.join(f'{k}={v}' for k, v in params.items())})" if params else name
        for name, params in recipe.prompting.items()
    )


def _beside(bench: Bench, recipe: Recipe, weights: Weights) -> str:
    """Measure the control arm of what answers; a classifier has no base that could have moved."""
    return "" if weights.kind == "classifier" else control_arm.beside(bench, base_of(bench, recipe))


def fill(bench: Bench, candidate: Candidate, sets: Sequence[RowSet], name: str, *, control: str = "") -> None:
    """Compute the blocks that are not there yet, beside a measurement of the control arm.

    `name` is who answers, for the progress.
    """
    for rows in sets:
        if is_there(bench, rows):
            continue
        job, origin = rows.job(), control_arm.origin(bench, control)
        done = store.finished_blocks(bench.store, job.identity, rows.ids)
        with bench.progress.stage(f"{name}: {rows.name}", bench.seconds(work_of(job))) as advance:
            for index in range(job.n_blocks):
                if index not in done:
                    block = rows.measured.evaluate(candidate, job, index)
                    store.keep_origin(bench.store, job.identity.digest, index, origin)
                    store.append_block(bench.store, job.identity, index, block)
                advance(index + 1, job.n_blocks)
        store.complete_rows(bench.store, job.identity, len(rows.ids))


@contextmanager
def opened(bench: Bench, weights: Weights) -> Iterator[Candidate]:
    """Open weights as something that generates and scores."""
    source = weights.source or bench.source
    if weights.kind == "base":
        yield bench.host(source).base
        return
    assert weights.folder is not None
    if weights.kind == "classifier":
        yield classifier(weights.folder, weights.digest)
    elif weights.kind in endpoint.PROTOCOLS:
        with endpoint.opened(weights.folder, weights.digest, source) as candidate:
            yield candidate
    elif weights.kind == "model":
        whole = source._replace(path=weights.folder / "model", weights_digest=weights.digest)
        yield bench.host(whole).base
    else:
        with bench.host(source).adapted(weights.folder / "adapter", weights.digest) as candidate:
            yield candidate
