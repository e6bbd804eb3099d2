"""Training of a candidate's weights where none are stored: one fit, or the best trial on validation.

Invariant: a folder of weights is named by everything they depend on, and exists only when they are
complete; whatever weights start from or are selected among is made first.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness import plugins, store
from harness.data import TaskItems
from harness.errors import CandidateFailed, Diverged
from harness.evaluation import costs, runner
from harness.evaluation.candidate_rows import training_data
from harness.evaluation.candidates import (
    DIVERGED,
    ResolvedCandidate,
    base_weights,
    read_weights,
    refuse_damaged,
)
from harness.evaluation.judges.judging_stage import score_answered
from harness.evaluation.regularization import mix_context, regularization_work
from harness.evaluation.rows.row_sets import (
    is_there,
    prompting_digest,
    prompting_step,
    suite_set,
    target_sets,
)
from harness.evaluation.runner import fill, measure_control, open_weights
from harness.evaluation.session import Session, join_items
from harness.experiment.weights import proposals
from harness.metrics import Metric, extremes
from harness.metrics import version as metric_version
from harness.models.hardware import MOST_WAITED
from harness.models.hub import ModelSource, content_digest
from harness.plugins import Method
from harness.provenance.code_versions import versions_of
from harness.records import (
    Curve,
    Example,
    SampleResult,
    Trial,
    checksum,
    digest,
    parse_json,
    without_defaults,
)
from harness.regularizers import Mixture, general_rows, mixed_rows, regularizers_digest
from harness.spec import Recipe, Task, TaskData, is_path
from harness.store.layout import AGAIN, clear_errors, remove_folder, write_whole
from harness.training import FIT, Job, Reward, Weights, clean_up, code_of, run_job, threads_of, write_job
from harness.training.worker import launch

_ALIKE = 0.6  # of the tokens estimated, and one over it: so many make it the training that was estimated


def ensure_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Return the weights of a candidate, made now or before."""
    weights = _weights(session, candidate, seed, make=True)
    assert weights is not None
    return weights


def stored_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights | None:
    """Return the weights of a candidate where they were made before; None also where making them diverged."""
    try:
        return _weights(session, candidate, seed, make=False)
    except Diverged:
        return None


def _weights(session: Session, candidate: ResolvedCandidate, seed: int, *, make: bool) -> Weights | None:
    """Find weights; without `make`, None where they or what they start from are missing."""
    if candidate.given:
        return base_weights(candidate.given)
    if candidate.source.tried:
        return _tuned(session, candidate, seed, make=make)
    return _single(session, candidate, seed, make=make)


def _single(session: Session, candidate: ResolvedCandidate, seed: int, *, make: bool) -> Weights | None:
    init, reward = (
        _weights(session, one, seed, make=make) if one else None for one in (candidate.init, candidate.reward)
    )
    if (candidate.init and init is None) or (candidate.reward and reward is None):
        return None
    merged = [_weights(session, one, seed, make=make) for one in candidate.merges]
    merges = [one for one in merged if one]
    if len(merges) < len(merged):
        return None
    _refuse_other_kind(candidate, init, merges)
    folder = folder_of(session, candidate, seed, init, reward, merges)
    found = read_weights(candidate, folder)
    if found is None and make:
        with session.claim(folder.name):
            found = read_weights(candidate, folder)
            if found is None:
                _fit_anew(session, candidate, seed, folder, init, reward, merges)
                found = read_weights(candidate, folder)
    known = [weights for weights in (init, reward, *merges) if weights]
    if found is None or not known:
        return found
    before_s = round(sum(weights.training.total_s for weights in known), 3)
    began_with = replace(found.training, init_wall_s=before_s, stands_on=stands_on(*known))
    if reward:
        began_with = replace(began_with, reward_model_accuracy=_last(reward.training.heldout_accuracy))
    return found._replace(training=began_with)


def _refuse_other_kind(candidate: ResolvedCandidate, init: Weights | None, merges: Sequence[Weights]) -> None:
    """Refuse to start from, or merge, weights that turned out to be of another kind than the method takes.

    Raises:
        CandidateFailed: they are.
    """
    wanted = {"init_from": candidate.method.init_from, "merges": candidate.method.makes}
    for key, given in (("init_from", [init] if init else []), ("merges", merges)):
        for one in given:
            kind = one.kind if one.folder else "model"
            if kind != wanted[key]:
                found = f"{key}: weights that turned out to be of the kind {kind}"
                raise CandidateFailed(f"{found}; expected {wanted[key]}", "another candidate")


def _fit_anew(
    session: Session,
    candidate: ResolvedCandidate,
    seed: int,
    folder: Path,
    init: Weights | None,
    reward: Weights | None,
    merges: Sequence[Weights],
) -> None:
    """Make weights that are not there, on the rows of the target and those of the regularisers."""
    general, mixed = _general(session, candidate, seed), _mixed(session, candidate, seed)
    if session.experiment.engine == "vllm" or session.machine.device == "cuda":
        session.unload()  # training has a base of its own, and a GPU rarely room for two
    fit(session, candidate, seed, folder, init, mixed, reward, general, merges)


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of those that they in turn stand on, to their digests."""
    behind: dict[str, str] = {}
    for one in weights:
        own = one.training.fit_key
        behind |= one.training.stands_on | ({own: one.digest} if own else {})
    return behind


def _mixed(session: Session, candidate: ResolvedCandidate, seed: int) -> Sequence[Example]:
    """Return the rows that a candidate's regularisers mix into training."""
    evaluate = partial(_base_answers, session, candidate.base)
    return mixed_rows(candidate.source.regularize, mix_context(session, candidate.source, seed), evaluate)


def _general(session: Session, candidate: ResolvedCandidate, seed: int) -> dict[str, tuple[Example, ...]]:
    """Return the general rows that the penalties of a candidate's regularisers read."""
    evaluate = partial(_base_answers, session, candidate.base)
    return general_rows(candidate.source.regularize, mix_context(session, candidate.source, seed), evaluate)


def _base_answers(session: Session, base: ModelSource, name: str, mixture: Mixture) -> Iterable[SampleResult]:
    """Evaluate the base on the prompts of a regulariser, now or before; its answers are stored rows."""
    task = Task(
        name=name,
        data=TaskData(),
        metrics=("no_refusal",),
        max_new_tokens=mixture.max_new_tokens,
        chat_template=session.target.task.chat_template,
    )
    items = TaskItems((), (), mixture.rows, (), (), ())
    weights = base_weights(base)
    wanted = suite_set(session, weights, join_items(task, "capability", name, items))
    if lacking := runner.rescore_stored(session, [wanted]):
        with open_weights(session, weights) as model:
            fill(session, model, lacking, "base")
    return store.read_rows(session.store, wanted.identity.digest, len(wanted.ids))


def _last(curve: Curve) -> float | None:
    return curve[-1][1] if curve else None


def folder_of(
    session: Session,
    candidate: ResolvedCandidate,
    seed: int,
    init: Weights | None,
    reward: Weights | None = None,
    merges: Sequence[Weights] = (),
) -> Path:
    """Name the folder of weights by everything that they depend on, and nothing else."""
    source, method, base = candidate.source, candidate.method, candidate.trained_base
    identity = {
        "method": source.method,
        "code": [plugins.version("methods", source.method), versions_of(*method.loops)],
        "params": method.params(**source.params).model_dump(mode="json", exclude_defaults=True),
        "base": [base.weights_digest, base.template_digest],
        "init": init.digest if init else "",
        "reward": _reward_digest(session, source, reward),
        "reads": method.reads(method.params(**source.params)),
        "merges": [one.digest for one in merges],
        "path": content_digest(sorted(Path(source.path).glob("adapter_*"))) if source.path else "",
        "training": _training_digest(session, method, source, seed),
        "track": source.track.points if source.track else 0,
        "regularize": regularizers_digest(source.regularize, mix_context(session, source, seed)),
    }
    return session.store.weights(digest({name: value for name, value in identity.items() if value}))


def _reward_digest(session: Session, source: Recipe, reward: Weights | None) -> str:
    """Digest what the answers of a training are rewarded by; empty of one without rewards."""
    if source.reward is None or reward:
        return reward.digest if reward else ""
    if is_path(source.reward):
        return checksum(Path(source.reward))
    task = session.target.task.model_dump(mode="json", exclude={"data", "limit"}, exclude_defaults=True)
    return digest([source.reward, metric_version(source.reward), task])


def _training_digest(session: Session, method: Method, source: Recipe, seed: int) -> str:
    """Digest the rows that a method trains on, and how it computes; empty for one that needs none."""
    if not method.draws_from:
        return ""
    target = training_data(session, source)
    pairs = [without_defaults(pair) for pair in target.items.pairs] if method.draws_from == "pairs" else []
    rows = [] if pairs else [target.versions["train"], target.versions["validation"]]
    drawn = [seed] if method.seeded else []
    computed = [session.machine.precision, session.machine.device]
    return digest([pairs, rows, prompting_digest(session, source, seed), drawn, computed])


def fit(
    session: Session,
    candidate: ResolvedCandidate,
    seed: int,
    folder: Path,
    init: Weights | None,
    mixed: Sequence[Example] = (),
    reward: Weights | None = None,
    general: Mapping[str, Sequence[Example]] | None = None,
    merges: Sequence[Weights] = (),
) -> None:
    """Make weights in a folder of another name, which gets its own when they are complete.

    `mixed` rows stand beside the training rows, asked as they are; penalties read `general` ones.
    Whatever ends a training, the next call goes on from its checkpoints; they are deleted when the weights
    are complete.

    Raises:
        CandidateFailed: they cannot be made; a training that diverged is remembered.
    """
    for behind in filter(None, (init, reward, *merges)):
        refuse_damaged(behind)
    source, method, part = candidate.source, candidate.method, folder.with_name(folder.name + ".part")
    own_process = method.trains and session.experiment.training.process == "own"
    work, is_resumed = fit_work(session, source, seed), part.exists()
    expected_s = session.seconds(work, candidate.trained_base)
    what = f"training {candidate.source_name}, seed {seed}"
    try:
        if not (part / FIT).exists():  # it is written when all else is there
            with (
                clear_errors(session.store, str(part), AGAIN),
                session.progress.stage(what, expected_s) as advance,
            ):
                _write_job(session, candidate, seed, part, init, mixed, reward, general, merges)
                (launch if own_process else run_job)(part, advance)
    except Diverged as error:
        remove_folder(part)
        write_whole(session.store, folder / DIVERGED, json.dumps([error.reason, error.knob]))
        raise
    except Exception:
        clean_up(part, complete=False)
        raise
    if method.trains and not (is_resumed or session.is_worker):
        _learn_pace(session, work, part, candidate.trained_base)
    clean_up(part, complete=True)
    part.rename(folder)


def _learn_pace(session: Session, work: costs.Work, made: Path, base: ModelSource) -> None:
    """Learn how fast this machine trains, from a training that read about what was estimated, undisturbed.

    One that stopped early read less, and one that generates its answers does what nobody estimated.
    """
    record = parse_json((made / FIT).read_text("utf-8"))["training"]
    as_estimated = _ALIKE * work.trained < record.get("n_tokens", 0) < work.trained / _ALIKE
    undisturbed = record.get("waited_share", 0.0) <= MOST_WAITED
    if "wall_s" in record and as_estimated and undisturbed and "reward" not in record:
        session.learn_pace("training", work, record["wall_s"], base)


def _write_job(
    session: Session,
    candidate: ResolvedCandidate,
    seed: int,
    part: Path,
    init: Weights | None,
    mixed: Sequence[Example],
    reward: Weights | None,
    general: Mapping[str, Sequence[Example]] | None,
    merges: Sequence[Weights],
) -> None:
    source, step = candidate.source, prompting_step(session, candidate.source, seed)
    items = training_data(session, source).items
    job = Job(
        method=source.method,
        params=source.params,
        source=candidate.trained_base,
        machine=session.machine,
        seed=seed,
        chat_template=session.target.task.chat_template,
        regularize=source.regularize,
        n_mixed=len(mixed),
        init=_init_path(init),
        merges=tuple(filter(None, map(_init_path, merges))),
        path=Path(source.path) if source.path else None,
        reward=_reward(session, candidate, reward),
        report_to=session.experiment.report_to,
        threads=threads_of(source.method),
        track=source.track.points if source.track else 0,
        code=code_of(source.method, source.regularize),
    )
    write_job(
        part,
        job,
        train=(*map(step, items.train), *mixed),
        validation=map(step, items.validation),
        pairs=map(step, items.pairs) if candidate.method.draws_from == "pairs" else (),
        general=general,
    )


def _reward(session: Session, candidate: ResolvedCandidate, weights: Weights | None) -> Reward | None:
    """Return what the answers of a training are rewarded by, as its job holds it."""
    if weights and weights.folder and candidate.reward:
        return Reward(model=weights.folder / weights.kind, source=candidate.reward.trained_base)
    written = candidate.source.reward
    return Reward(written=written, task=session.target.task) if written else None


def _init_path(init: Weights | None) -> Path | None:
    """Return the folder of the weights to start from: of a method's, or where a model made elsewhere lies."""
    if init is None or init.folder:
        return init.folder / init.kind if init and init.folder else None
    return init.source.path if init.source else None


def fit_work(session: Session, source: Recipe, seed: int) -> costs.Work:
    """Estimate the tokens one fit trains on; methods without epochs train no language model."""
    method = plugins.method(source.method)
    if not method.trains:
        return costs.Work()
    params = method.params(**source.params)
    step_rows = params.per_device_train_batch_size * params.gradient_accumulation_steps
    items, step = training_data(session, source).items, prompting_step(session, source, seed)
    n_rows = len(items.pairs if method.draws_from == "pairs" else items.train)
    epochs = params.num_train_epochs
    if params.max_steps > 0:
        epochs = params.max_steps * step_rows / max(n_rows, 1)
    if method.draws_from == "pairs":
        plain = costs.preference(list(map(step, items.pairs)), epochs)
    else:
        plain = costs.training(list(map(step, items.train)), epochs)
    return plain + regularization_work(session, source, seed, plain, (n_rows, step_rows))


def _tuned(session: Session, candidate: ResolvedCandidate, seed: int, *, make: bool) -> Weights | None:
    """Return the weights of the trial of a sweep or search that is best on validation with the first seed.

    Every trial has the same budget; those that lose stay in the store.

    Raises:
        Diverged: every trial did.
    """
    tried: list[Trial] = []
    kept: list[Weights] = []
    first, sign = session.experiment.seeds[0], session.target.primary.unit.sign
    points = proposals.proposals(candidate, first, sign)
    point = next(points, None)
    while point is not None:
        trial, found = _try(session, candidate.at(point), point, make=make)
        if trial is None:
            return None
        is_again = any(trial.params == before.params for before in tried)  # its training is counted once
        tried.append(replace(trial, wall_s=0.0) if is_again else trial)
        kept += [found] if found else []
        try:
            point = points.send(trial)
        except StopIteration:
            point = None
    best = max(tried, key=lambda trial: _rank(trial, sign))
    if best.validation is None:
        raise Diverged("the training loss is not a number in any trial", "lower learning rates to try")
    found = _single(session, candidate.at(best.params), seed, make=make)
    if found is None:
        return None
    again = 0.0 if seed == first else found.training.wall_s or 0.0
    training = replace(
        found.training,
        wall_s=round(sum(t.wall_s for t in tried) + again, 3),
        sweep=tuple(replace(t, chosen=t is best) for t in tried),
        searched_by=proposals.searcher() if candidate.source.search else "",
        stands_on=stands_on(*kept),
    )
    return found._replace(training=training)


def _try(
    session: Session, trial: ResolvedCandidate, point: dict[str, Any], *, make: bool
) -> tuple[Trial | None, Weights | None]:
    """Train at one point and score on validation; no trial where something of it is missing."""
    try:
        found = _single(session, trial, session.experiment.seeds[0], make=make)
    except Diverged:
        return Trial(params=point, validation=None), None
    score = None if found is None else _validation(session, trial, found, make=make)
    if found is None or score is None:
        return None, None
    of = found.training
    made = Trial(
        params=point,
        validation=score,
        best_validation_loss=of.best_validation_loss,
        wall_s=of.wall_s or 0.0,
        loss=of.loss,
        validation_loss=of.validation_loss,
    )
    return made, found


def make_trial(session: Session, candidate: ResolvedCandidate, place: int) -> None:
    """Make and validate the trial at one point of a candidate's sweep; that it diverged is remembered."""
    point = candidate.points[place]
    _try(session, candidate.at(point), point, make=True)


def _rank(trial: Trial, sign: int) -> tuple[float, float]:
    """Order trials by their validation score; of equal ones the lower validation loss is the better."""
    score, loss = trial.validation, trial.best_validation_loss
    return -np.inf if score is None else sign * score, -np.inf if loss is None else -loss


def _validation(session: Session, trial: ResolvedCandidate, weights: Weights, *, make: bool) -> float | None:
    """Return a trial's score on the validation rows of the target; None where they are missing."""
    rows = target_sets(session, trial.source, weights, session.experiment.seeds[0])[0]
    if not is_there(session, rows):
        if not make:
            return None
        if lacking := score_answered(session, [rows]):
            beside = measure_control(session, trial.base, weights)
            with open_weights(session, weights) as candidate:
                fill(session, candidate, lacking, "sweep", control=beside)
            score_answered(session, lacking)
    answered = store.read_rows(session.store, rows.identity.digest, len(rows.ids))
    return mean_score(session.target.primary, answered)


def mean_score(metric: Metric, rows: Iterable[SampleResult]) -> float | None:
    """Return the score of rows, a failed answer as the metric's worst value, if it has one; None without any.

    So no trial is favoured for the answers that it owes.
    """
    parts = [p for row in rows if (p := _parts(metric, row)) is not None]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None


def _parts(metric: Metric, row: SampleResult) -> tuple[float, ...] | None:
    parts = row.parts.get(metric.name)
    if parts is None and (row.status == "error" or row.error):
        known = extremes(metric, row.references)
        return known.worst if known else None
    return parts
