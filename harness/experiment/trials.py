"""Trials of a sweep or search: the points to try, and each trial stored as a run.

    runs/weights/<key>/pruned.json      with the points: the digest of the last one, and the log

Invariant: proposals depend on the space, the seed and the earlier results, so an interrupted search repeats
its points, whose results are stored, and continues. A pruned trial frees its budget: a search trains as much
as its number of whole trials would.
Source: the tree-structured Parzen estimator of Bergstra et al. 2011, *Algorithms for Hyper-Parameter
Optimization*, and the pruners of Optuna (Akiba et al. 2019, arXiv:1907.10902)
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import provenance, store, training
from harness.errors import CandidateFailed, Diverged, HarnessError, Problem, SharedFailure, one_line
from harness.evaluation.candidates import ResolvedCandidate, read_weights
from harness.evaluation.row_sets import describe_run, metric_ranges, target_sets
from harness.evaluation.session import Session
from harness.experiment.training_fit import PRUNED, Fit, show_point
from harness.experiment.validation_scores import read_kept_points, validate
from harness.records import Curve, TrackedPoint, TrainingRecord, Trial, read_training_record
from harness.spec import Recipe, is_span, span_of
from harness.store import TrialRun, write_whole

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner

_KEY_DIGITS = 8


class TrialScores(NamedTuple):
    """Scores of a trial by step; the last weights with their record if it was pruned."""

    scores: Curve = ()
    pruned: training.Weights | None = None


class TrialKeeper(NamedTuple):
    """Keeper of a candidate's trials, each stored as a run, and of the current one."""

    session: Session
    candidate: ResolvedCandidate

    def record(self, made: Trial, weights: training.Weights) -> None:
        """Keep a trial that was trained, whole or until it was pruned, with its answers on validation."""
        session = self.session
        rows = target_sets(session, self.candidate.source, weights, session.first_seed)[0]
        self._save(
            made,
            made.fit_key or rows.identity.digest,
            weights_digest=weights.digest,
            state="done",
            rows={rows.name: rows.identity.digest},
            training=weights.training,
            provenance=provenance.collect(session.machine.name) | {"precision": session.machine.precision},
            metrics=metric_ranges([rows]),
        )

    def record_failed(self, params: Mapping[str, Any], fit_key: str, error: Exception) -> Trial:
        """Return a trial that could not be trained or evaluated, and keep it with its reason."""
        # That it diverged, its folder of weights says.
        reason = "" if isinstance(error, Diverged) else one_line(error)
        made = Trial(params=dict(params), validation=None, fit_key=fit_key, error=reason)
        if not self.session.reads_only:
            self._save(made, fit_key, weights_digest="", state="failed", rows={}, error=one_line(error))
        return made

    def _save(self, made: Trial, key: str, **of_run: Any) -> None:
        # The candidate that makes the weights, also where another one takes them.
        maker = replace(self.candidate, name=self.candidate.source_name, recipe=self.candidate.source)
        seed = self.session.first_seed
        run = describe_run(self.session.experiment.name, maker, seed, run_id=self._run_id(key), **of_run)
        curveless = replace(made, loss=(), validation_loss=())  # the run's training has them
        store.save_trial(self.session.store, TrialRun(run, curveless, self.session.target.primary.name))

    def _run_id(self, fit_key: str) -> str:
        named = self.session.name_begun(self.candidate.source_name, self.session.first_seed)
        return f"{named}-trial-{fit_key[:_KEY_DIGITS]}"

    def find_failed(self, fit_key: str) -> Trial | None:
        """Find a recorded trial that failed."""
        known = store.find_trial(self.session.store, self._run_id(fit_key))
        return known.trial if known and known.trial.error and known.trial.fit_key == fit_key else None

    def train_until_pruned(
        self, folder: Path, train: Callable[[int], None], should_prune: Callable[[int, float], bool]
    ) -> TrialScores:
        """Train a trial until its pruner stops it, scoring it on validation at each point.

        `train(n)` trains until `n` points are kept, the last one at the end.

        Raises:
            NotStored: a result is missing, and the session is read-only.
        """
        assert self.candidate.source.track
        scores: list[tuple[float, float | None]] = []
        n_points = self.candidate.source.track.points
        for place in range(1, n_points + 1):
            kept = read_points_so_far(self.candidate, folder)
            if len(kept) < place and read_weights(self.candidate, folder) is None:
                self.session.refuse_if_reading(f"point {place} of {folder.name}")
                train(place)
                kept = read_points_so_far(self.candidate, folder)
            if len(kept) < place:  # it has fewer checkpoints than points were requested
                break
            step, weights = list(kept.items())[place - 1]
            score = validate(self.session, self.candidate, weights).score
            scores.append((step, score))
            if not self.session.reads_only:
                point = TrackedPoint(step=step, target=score)
                fit = Fit(self.session, self.candidate, self.session.first_seed)
                show_point(fit.live_run(folder), point)
            if should_prune(place, score) and place < n_points:
                return TrialScores(tuple(scores), self._set_pruned(folder, step, weights))
        return TrialScores(tuple(scores))

    def _set_pruned(self, folder: Path, step: int, weights: training.Weights) -> training.Weights:
        part = _part(folder)
        if part.exists() and not (part / PRUNED).exists():
            elapsed_s, loss, validation_loss = training.read_log_until(part / training.CHECKPOINTS, step)
            logged = TrainingRecord(
                wall_s=elapsed_s,
                n_steps=step,
                loss=loss,
                validation_loss=validation_loss,
                fit_key=folder.name,
            )
            content = json.dumps({"digest": weights.digest, "training": logged.to_plain()})
            write_whole(self.session.store, part / PRUNED, content)
        if part.exists():
            training.remove_all_but(part, (training.TRACKED, PRUNED))
            part.rename(folder)
        if (folder / PRUNED).exists():
            made = read_training_record(json.loads((folder / PRUNED).read_text("utf-8"))["training"])
        else:  # it was completely trained before its search had this pruner
            whole = read_weights(self.candidate, folder)
            assert whole is not None
            made = whole.training
        loss, validation_loss = (
            tuple(at for at in curve if at[0] <= step) for curve in (made.loss, made.validation_loss)
        )
        record = TrainingRecord(wall_s=made.wall_s, n_steps=step, fit_key=folder.name)
        return weights._replace(training=replace(record, loss=loss, validation_loss=validation_loss))


def fails_alone(error: Exception) -> bool:
    """Tell whether an error fails only one trial, because other points may avoid it."""
    if isinstance(error, HarnessError):
        return isinstance(error, CandidateFailed) and not isinstance(error, SharedFailure)
    return not isinstance(error, OSError)


def phrase_no_trial(failed: Sequence[tuple[Mapping[str, Any], Exception]]) -> CandidateFailed:
    """Return the error of a candidate without a complete trial: each reason, once."""
    if all(isinstance(error, Diverged) for _, error in failed):
        return Diverged("the training loss is not a number in any trial", "lower learning rates to try")
    points: dict[str, list[str]] = {}
    for params, error in failed:
        reason = error.reason if isinstance(error, CandidateFailed) else one_line(error)
        points.setdefault(reason, []).append(", ".join(f"{name} {value}" for name, value in params.items()))
    knobs = dict.fromkeys(error.knob for _, error in failed if isinstance(error, CandidateFailed))
    if len(points) == 1:
        return CandidateFailed(f"every trial failed: {next(iter(points))}", ", or ".join(filter(None, knobs)))
    said = "; ".join(f"{of[0]}: {reason}" for reason, of in points.items())
    return CandidateFailed(f"every trial failed: {said}", ", or ".join(filter(None, knobs)))


def read_points_so_far(trial: ResolvedCandidate, folder: Path) -> dict[int, training.Weights]:
    """Read the weights at the points of a training, by step, whether it is finished, pruned or under way."""
    return read_kept_points(trial, folder if folder.exists() else _part(folder))


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


_RANDOM = 5  # first trials; each is a training, so half of what Optuna does
_MOST_REPEATS = 100  # consecutive repeated proposals after which the space counts as exhausted
_DIGITS = 3  # of a proposed number, so that it can be read and written again


class TrialProposal(NamedTuple):
    """A point to try; `should_prune` is told its score at the n-th tracked point."""

    params: dict[str, Any]
    should_prune: Callable[[int, float], bool] | None = None


def proposals(
    candidate: ResolvedCandidate, seed: int, sign: int, tried: Sequence[Trial]
) -> Iterator[TrialProposal]:
    """Yield the points to try; before the next one, `tried` ends with the trial of the last.

    `sign` is −1 if lower is better. Repeated proposals of a prompt search are not trials.
    """
    source, counts_repeats = candidate.source, not candidate.searches_prompts
    if not source.search:
        yield from map(TrialProposal, candidate.points)
        return
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for name, values in source.search.items():
        span = span_of(values) if is_span(values) else None
        if span is None:
            space[name] = CategoricalDistribution(range(len(values)))  # by place: a value may be a list
        elif span.is_whole:
            space[name] = IntDistribution(int(span.low), int(span.high), log=span.is_log)
        else:
            space[name] = FloatDistribution(span.low, span.high, log=span.is_log)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
    # The name decides Hyperband's brackets, and would be drawn.
    study = optuna.create_study(
        study_name="search", direction="maximize", sampler=sampler, pruner=_pruner(source)
    )
    n_points = source.track.points if source.prune and source.track else 1
    left, n_repeats = source.trials * n_points, 0
    while left >= n_points and n_repeats < _MOST_REPEATS:
        proposed = study.ask(space)
        point = {name: _value(values, proposed.params[name]) for name, values in source.search.items()}
        before = None if counts_repeats else next((one for one in tried if one.params == point), None)
        if before:  # its answers are known: no trial is spent on it
            _tell(study, proposed, before, sign)
            n_repeats += 1
            continue
        yield TrialProposal(point, partial(_should_prune, proposed, sign) if source.prune else None)
        *earlier, found = tried
        if not counts_repeats and found.asked and any(one.asked == found.asked for one in earlier):
            n_repeats += 1  # the same prompt, written in another way
        else:
            n_repeats = 0
            left -= len(found.points) if found.is_pruned else n_points
        _tell(study, proposed, found, sign)


def searcher(source: Recipe) -> str:
    """Name what proposes the points of a search, and what prunes them."""
    pruned = "".join(f", pruned by its {_pruner_class(name).__name__}" for name in source.prune)
    return f"TPE of Optuna {version('optuna')}{pruned}"


def search_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield a problem if the search package is missing, or its pruner refuses the parameters."""
    source = candidate.source
    if source.search and find_spec("optuna") is None:
        step = "pip install 'harness-evals[search]', or sweep: a few values"
        yield Problem(f"candidate {candidate.name}", "search, and no package optuna", "Optuna", step)
    elif source.prune:
        try:
            _pruner(source)
        except (ArithmeticError, TypeError, ValueError) as error:
            ((name, given),) = source.prune.items()
            found = f"prune: {{{name}: {given}}} ({str(error).partition('__init__() ')[2] or error})"
            expected = f"parameters of Optuna's {_pruner_class(name).__name__}"
            yield Problem(f"candidate {candidate.name}", found, expected, "see optuna.readthedocs.io")


def _tell(study: "optuna.Study", proposed: "optuna.Trial", found: Trial, sign: int) -> None:
    from optuna.trial import TrialState

    if found.forgetting is not None and found.most_forgetting is not None:
        proposed.set_constraint("forgetting", found.forgetting - found.most_forgetting)
    if found.is_pruned:
        study.tell(proposed, state=TrialState.PRUNED)
    elif found.validation is None:
        study.tell(proposed, state=TrialState.FAIL)
    else:
        study.tell(proposed, sign * found.validation)


def _should_prune(proposed: "optuna.Trial", sign: int, place: int, score: float) -> bool:
    proposed.report(sign * score, place)
    return bool(proposed.should_prune())


def _pruner_class(name: str) -> "type[BasePruner]":
    from optuna import pruners

    found: type[BasePruner] = getattr(pruners, f"{name.title().replace('_', '')}Pruner")
    return found


def _pruner(source: Recipe) -> "BasePruner":
    import optuna

    if not source.prune or not source.track:
        return optuna.pruners.NopPruner()
    ((name, given),) = source.prune.items()
    resource = {
        "successive_halving": {"min_resource": 1},
        "hyperband": {"min_resource": 1, "max_resource": source.track.points},
    }
    return _pruner_class(name)(**{**resource.get(name, {}), **given})


def _value(values: Sequence[Any], proposed: Any) -> Any:
    if not is_span(values):
        return values[proposed]
    span = span_of(values)
    shared = int(log10(max(abs(span.low), abs(span.high)) / (span.high - span.low)))  # digits of both ends
    rounded = proposed if span.is_whole else float(f"{proposed:.{_DIGITS + max(0, shared)}g}")
    return min(max(rounded, span.low), span.high)
