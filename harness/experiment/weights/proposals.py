"""Points that a candidate's sweep or search tries, one after the other.

Invariant: a proposal depends on the space, the seed and what was found of those before it. So a search that
was ended comes by the same points again, whose weights and answers are stored, and goes on after them;
more trials go on with those there are. Trials that are pruned leave room for others: a search trains as much
as so many whole trials would, whatever it trains and however many it prunes.
Source: the tree-structured Parzen estimator of Bergstra et al. 2011, *Algorithms for Hyper-Parameter
Optimization*, and the pruners of Optuna (Akiba et al. 2019, arXiv:1907.10902).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from math import log10
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import Problem
from harness.evaluation.candidates import ResolvedCandidate
from harness.records import Trial
from harness.spec import Recipe, is_span, span_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner

_RANDOM = 5  # first trials; each is a training, so half of what Optuna does
_MOST_REPEATS = 100  # proposals in a row of what was tried; then nothing else is taken to be left
_DIGITS = 3  # of a proposed number, so that it can be read and written again


class TrialProposal(NamedTuple):
    """A point to try; `should_prune` is told its score at the n-th tracked point."""

    params: dict[str, Any]
    should_prune: Callable[[int, float], bool] | None = None


def proposals(
    candidate: ResolvedCandidate, seed: int, sign: int, tried: Sequence[Trial]
) -> Iterator[TrialProposal]:
    """Yield the points to try; before the next one `tried` ends with the trial of the last.

    `sign` is −1 where lower is better.
    """
    if candidate.source.search:
        return _search(candidate.source, seed, sign, tried, again=not candidate.searches_prompts)
    return map(TrialProposal, candidate.points)


def searcher(source: Recipe) -> str:
    """Name what proposes the points of a search, and what prunes them."""
    pruned = "".join(f", pruned by its {_pruner_class(name).__name__}" for name in source.prune)
    return f"TPE of Optuna {version('optuna')}{pruned}"


def problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that nothing is there to search with, or that its pruner takes no such parameters."""
    source = candidate.source
    if source.search and find_spec("optuna") is None:
        step = "pip install 'harness-evals[search]', or sweep: a few values"
        yield Problem(f"candidate {candidate.name}", "search, and no package optuna", "Optuna", step)
    elif source.prune:
        try:
            _try_pruner(source)
        except (ArithmeticError, TypeError, ValueError) as error:
            ((name, given),) = source.prune.items()
            found = f"prune: {{{name}: {given}}} ({str(error).partition('__init__() ')[2] or error})"
            expected = f"parameters of Optuna's {_pruner_class(name).__name__}"
            yield Problem(f"candidate {candidate.name}", found, expected, "see optuna.readthedocs.io")


def _search(
    source: Recipe, seed: int, sign: int, tried: Sequence[Trial], *, again: bool
) -> Iterator[TrialProposal]:
    """Yield points of a search; a point that is proposed `again` is a further trial, or else none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
    # The name decides Hyperband's brackets, and would be drawn.
    study = optuna.create_study(
        study_name="search", direction="maximize", sampler=sampler, pruner=_pruner(source)
    )
    n_points = source.track.points if source.prune and source.track else 1
    left, n_repeats = source.trials * n_points, 0
    while left >= n_points and n_repeats < _MOST_REPEATS:
        proposed = study.ask({name: _distribution(values) for name, values in source.search.items()})
        point = {name: _value(values, proposed.params[name]) for name, values in source.search.items()}
        before = None if again else next((one for one in tried if one.params == point), None)
        if before:  # what answers a prompt gives is known: no trial is spent on it
            _tell(study, proposed, before, sign)
            n_repeats += 1
            continue
        yield TrialProposal(point, partial(_should_prune, proposed, sign) if source.prune else None)
        *earlier, found = tried
        if not again and found.asked and any(one.asked == found.asked for one in earlier):
            n_repeats += 1  # the same prompt, written in another way
        else:
            n_repeats = 0
            left -= len(found.points) if found.is_pruned else n_points
        _tell(study, proposed, found, sign)


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
    """Build the pruner of a search, its resource being tracked points; without one none prunes."""
    import optuna

    if not source.prune or not source.track:
        return optuna.pruners.NopPruner()
    ((name, given),) = source.prune.items()
    resource = {
        "successive_halving": {"min_resource": 1},
        "hyperband": {"min_resource": 1, "max_resource": source.track.points},
    }
    return _pruner_class(name)(**{**resource.get(name, {}), **given})


def _try_pruner(source: Recipe) -> None:
    """Let the pruner look at every point of two trials: some parameters it takes only fail then."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="search", direction="maximize", pruner=_pruner(source))
    for _ in range(2):
        proposed = study.ask()
        for place in range(source.track.points if source.track else 0):
            _should_prune(proposed, 1, place, 0.0)


def _distribution(values: Sequence[Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not is_span(values):
        return CategoricalDistribution(range(len(values)))  # by place: a value may be a list
    span = span_of(values)
    if span.is_whole:
        return IntDistribution(int(span.low), int(span.high), log=span.is_log)
    return FloatDistribution(span.low, span.high, log=span.is_log)


def _value(values: Sequence[Any], proposed: Any) -> Any:
    """Return the value of a proposal, within the range also when it is rounded."""
    if not is_span(values):
        return values[proposed]
    span = span_of(values)
    shared = int(log10(max(abs(span.low), abs(span.high)) / (span.high - span.low)))  # digits of both ends
    rounded = proposed if span.is_whole else float(f"{proposed:.{_DIGITS + max(0, shared)}g}")
    return min(max(rounded, span.low), span.high)
