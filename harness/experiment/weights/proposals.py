"""Points that a candidate's sweep or search tries, one after the other.

Invariant: a proposal depends on the space, the seed and what was found of those before it. So a search that
was ended comes by the same points again, whose weights and answers are stored, and goes on after them;
more trials go on with those there are.
Source: the tree-structured Parzen estimator of Bergstra et al. 2011, *Algorithms for Hyper-Parameter
Optimization*, as Optuna has it (Akiba et al. 2019, arXiv:1907.10902).
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness.errors import Problem
from harness.evaluation.candidates import ResolvedCandidate
from harness.records import Trial
from harness.spec import is_span, span_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANDOM = 5  # first trials; each is a training, so half of what Optuna does
_DIGITS = 3  # of a proposed number, so that it can be read and written again

Proposals = Generator[dict[str, Any], Trial, None]


def proposals(candidate: ResolvedCandidate, seed: int, sign: int) -> Proposals:
    """Yield the points to try; each is sent what was found of it. `sign` is −1 where lower is better."""
    if candidate.source.search:
        yield from _search(candidate.source.search, candidate.source.trials, seed, sign)
        return
    for point in candidate.points:
        _ = yield point  # what was found of it changes nothing


def searcher() -> str:
    """Name what proposes the points of a search."""
    return f"TPE of Optuna {version('optuna')}"


def problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that nothing is there to search with."""
    if candidate.source.search and find_spec("optuna") is None:
        step = "pip install 'harness-evals[search]', or sweep: a few values"
        yield Problem(f"candidate {candidate.name}", "search, and no package optuna", "Optuna", step)


def _search(space: Mapping[str, Sequence[Any]], n: int, seed: int, sign: int) -> Proposals:
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(n):
        asked = study.ask({name: _distribution(values) for name, values in space.items()})
        found = yield {name: _value(space[name], asked.params[name]) for name in space}
        if found.validation is None:
            study.tell(asked, state=TrialState.FAIL)
        else:
            study.tell(asked, sign * found.validation)


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
    rounded = proposed if span.is_whole else float(f"{proposed:.{_DIGITS}g}")
    return min(max(rounded, span.low), span.high)
