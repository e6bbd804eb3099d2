"""One fit: its job is written with the rows of its regularisers, run, and its folder renamed when complete.

Invariant: whatever ends a training, the next call goes on from its checkpoints.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import NamedTuple

from harness import plugins
from harness.data import TaskItems
from harness.errors import Diverged
from harness.evaluation import costs
from harness.evaluation.candidate_rows import find_shipped, mix_context, regularization_work, training_data
from harness.evaluation.candidates import DIVERGED, ResolvedCandidate, base_weights, refuse_damaged
from harness.evaluation.rescoring import rescore_stored
from harness.evaluation.row_sets import prompting_step, suite_set
from harness.evaluation.runner import answer
from harness.evaluation.session import Session, join_items
from harness.experiment.weights.pruned_trials import unset_pruned
from harness.experiment.weights.weights_folder import processes_of, shards_of
from harness.models.hardware import MOST_WAITED, ignores_load
from harness.models.hub import ModelSource
from harness.records import Example, parse_json
from harness.regularizers import Answered, Mixture, general_rows, mix_rows
from harness.spec import Recipe, Task, TaskData
from harness.store import AGAIN, clear_errors, remove, write_whole
from harness.training import (
    FIT,
    Reward,
    TrainingJob,
    Weights,
    clean_up,
    code_of,
    run_job,
    threads_of,
    write_job,
    write_launch,
)
from harness.training.worker import launch

_ALIKE = 0.6  # of the steps estimated, and one over it: so many make it the training that was estimated


class FitInputs(NamedTuple):
    """Weights that others start from, are rewarded by or merge, and the folder that these get.

    `mixed` rows stand beside the training rows, prompted as they are; penalties read `general` ones.
    """

    init: Weights | None
    reward: Weights | None
    merges: Sequence[Weights]
    folder: Path
    mixed: Sequence[Example] = ()
    general: Mapping[str, Sequence[Example]] | None = None


def fit(
    session: Session, candidate: ResolvedCandidate, seed: int, begun: FitInputs, pause_at: int = 0
) -> None:
    """Make weights in a folder of another name, which gets its own when they are complete.

    Where `pause_at` points of the training are kept it stops for now, and the folder stays as it is.
    Whatever ends a training, the next call goes on from its checkpoints; they are deleted when the weights
    are complete.

    Raises:
        CandidateFailed: they cannot be made; a training that diverged is remembered.
    """
    for behind in filter(None, (begun.init, begun.reward, *begun.merges)):
        refuse_damaged(behind)
    source, method, folder = candidate.source, candidate.method, begun.folder
    part = folder.with_name(folder.name + ".part")
    processes = processes_of(session, source)
    own_process = method.trains and (processes > 1 or has_own_process(session))
    unset_pruned(folder, part)
    work, is_resumed, began = fit_work(session, source, seed), part.exists(), time.monotonic()
    expected_s = session.seconds(work, candidate.trained_base)
    shared = f", {processes} processes" if processes > 1 else ""
    what = f"training {candidate.source_name}, seed {seed}{shared}"
    try:
        if not (part / FIT).exists():  # it is written when all else is there
            with (
                clear_errors(session.store, str(part), AGAIN),
                session.progress.stage(what, expected_s) as advance,
            ):
                _write_job(session, candidate, seed, part, begun, pause_at)
                if processes > 1:
                    write_launch(part, session.experiment.training.accelerate, session.machine.device)
                (launch if own_process else run_job)(part, advance)
    except Diverged as error:
        remove(session.store.folder, [part])
        write_whole(session.store, folder / DIVERGED, json.dumps([error.reason, error.knob]))
        raise
    except Exception:
        clean_up(part, complete=False)
        raise
    if not (part / FIT).exists():
        return
    clean_up(part, complete=True)
    part.rename(folder)
    if method.trains:
        alone = processes == 1 and not (is_resumed or session.is_worker)
        _learn_pace(session, work, folder, candidate.trained_base, time.monotonic() - began, alone=alone)


def has_own_process(session: Session) -> bool:
    """Tell whether each training has a process of its own: on a GPU, unless harness.yaml says otherwise."""
    requested = session.experiment.training.process
    return requested == "own" or (requested == "auto" and session.machine.device == "cuda")


def _learn_pace(
    session: Session, work: costs.Work, made: Path, base: ModelSource, took_s: float, *, alone: bool
) -> None:
    """Learn how fast this machine trains, from a training of the steps that were estimated, undisturbed."""
    # One that stopped early made less, and one that generates its answers does what nobody estimated. What it
    # took beside its steps is learnt of a training that read nothing before them.
    record = parse_json((made / FIT).read_text("utf-8"))["training"]
    steps_s = min(record.get("train_loop_s", 0.0), took_s)
    as_estimated = _ALIKE * work.steps < record.get("n_steps", 0) < work.steps / _ALIKE
    waited = 0.0 if ignores_load() else record.get("waited_share") or 0.0
    undisturbed = alone and waited <= MOST_WAITED
    generates = bool({"reward", "teacher"} & record.keys())
    session.learn_pace(
        "training", work, steps_s, base, teaches=undisturbed and as_estimated and not generates
    )
    reads_first = bool(work.read or work.generated)
    session.learn_pace("fits", work, took_s - steps_s, base, teaches=undisturbed and not reads_first)


def _write_job(
    session: Session, candidate: ResolvedCandidate, seed: int, part: Path, begun: FitInputs, pause_at: int
) -> None:
    source, step = candidate.source, prompting_step(session, candidate.source, seed)
    items = training_data(session, source).items
    job = TrainingJob(
        method=source.method,
        params=source.params,
        source=candidate.trained_base,
        machine=session.machine,
        seed=seed,
        chat_template=session.target.task.chat_template,
        regularize=source.regularize,
        n_mixed=len(begun.mixed),
        init=_init_path(begun.init),
        merges=tuple(filter(None, map(_init_path, begun.merges))),
        path=Path(source.path) if source.path else None,
        reward=_reward(session, candidate, begun.reward),
        threads=threads_of(source.method),
        processes=processes_of(session, source),
        shards=shards_of(session, source),
        track=source.track.points if source.track else 0,
        pause_at=pause_at,
        code=code_of(source.method, source.regularize),
    )
    write_job(
        part,
        job,
        train=(*map(step, items.train), *begun.mixed),
        validation=map(step, items.validation),
        pairs=map(step, items.pairs) if candidate.method.draws_from == "pairs" else (),
        general=begun.general,
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
    """Estimate the tokens and steps one fit trains on; methods without epochs train no language model."""
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
    base = session.sources.get(source.base_model or "", session.source)
    read, generated = method.teaching.extra_tokens(params, base, round(n_rows * epochs), plain.trained)
    extra = costs.Work(read=read, generated=generated)
    plain = plain._replace(steps=ceil(ceil(n_rows / step_rows) * epochs))
    whole = plain + extra + regularization_work(session, source, seed, plain, (n_rows, step_rows))
    return whole._replace(steps=params.max_steps if params.max_steps > 0 else whole.steps, fits=1)


def find_mixed_rows(session: Session, candidate: ResolvedCandidate, seed: int) -> Sequence[Example]:
    """Return the rows that a candidate's regularisers mix into training."""
    evaluate = partial(_base_answers, session, candidate.base)
    return mix_rows(candidate.source.regularize, mix_context(session, candidate.source, seed), evaluate)


def find_penalty_rows(
    session: Session, candidate: ResolvedCandidate, seed: int
) -> dict[str, tuple[Example, ...]]:
    """Return the general rows that the penalties of a candidate's regularisers read."""
    evaluate = partial(_base_answers, session, candidate.base)
    return general_rows(candidate.source.regularize, mix_context(session, candidate.source, seed), evaluate)


def _base_answers(session: Session, base: ModelSource, name: str, mixture: Mixture) -> Iterable[Answered]:
    """Return the base's answers to a regulariser's prompts: shipped, stored, or made now and stored."""
    if shipped := find_shipped(session, base, mixture):
        return shipped
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
    if lacking := rescore_stored(session, [wanted]):
        answer(session, weights, lacking, "base")
    return wanted.read(session.store)
