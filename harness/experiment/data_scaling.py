"""A fine-tune trained on nested parts of its data, each an ordinary run that is stored and found again.

Invariant: every part answers the same validation and test rows of the target; the suites are
not asked again, because what a curve says is of the target.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from harness import decision
from harness.data import part_of
from harness.decision import CandidateFacts, LearningCurve
from harness.errors import HarnessError, Problem, UserError
from harness.evaluation.candidates import fit_work, source_of
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import target_sets, total_work
from harness.evaluation.session import Bench, measured
from harness.experiment.candidate_result import facts_of
from harness.experiment.run_candidate import base_weights, make_run, stored_runs
from harness.experiment.stored_rows import Reader
from harness.plugins import load as load_plugin
from harness.records import Run
from harness.spec import Recipe

SHARES = (0.125, 0.25, 0.5)
_LEAST = 8  # rows in the smallest part


class Part(NamedTuple):
    """A share of the training data: a bench that holds it alone, and what its run is called there."""

    bench: Bench
    name: str
    recipe: Recipe
    seed: int


def refuse_curve(bench: Bench, selected: Iterable[str]) -> None:
    """Refuse a learning curve that no selected candidate could have.

    Raises:
        UserError: none of them trains a language model, or there are too few rows for four sizes.
    """
    if not list(_trained_here(bench, selected)):
        expected, step = "a candidate that is trained here", "add one, or leave --learning-curve out"
        raise UserError(Problem("--learning-curve", "no fine-tune among the candidates", expected, step))
    if (n := len(bench.target.items.train)) < _LEAST / SHARES[0]:
        expected = f"at least {_LEAST / SHARES[0]:.0f}, so that an eighth of them is {_LEAST}"
        raise UserError(Problem("--learning-curve", f"{n} training rows", expected, "leave it out"))


def planned_curve(bench: Bench, selected: Iterable[str]) -> Work:
    """Estimate the curve of the fine-tune that takes longest; which one it will be, validation says."""
    works = (_work(bench, bench.experiment.candidates[name]) for name in _trained_here(bench, selected))
    return max(works, key=bench.seconds, default=Work())


def _work(bench: Bench, recipe: Recipe) -> Work:
    trains = fit_work(bench, source_of(bench, recipe), bench.experiment.seeds[0])
    asks = total_work(target_sets(bench, recipe, base_weights(bench), 0))
    once = Work(*(round(sum(SHARES) * n) for n in trains))
    return sum([asks] * len(SHARES), once)


def make_curve(bench: Bench, runs: Sequence[Run], facts: Sequence[CandidateFacts]) -> None:
    """Train the fine-tune that the decision is about on each part of the data, as far as that is not done."""
    for part in _parts(bench, runs, facts):
        try:
            run = make_run(part.bench, part.name, part.recipe, part.seed)
            bench.progress.finished(part.name, f"{run.candidate}: trained and measured")
        except UserError:
            raise
        except HarnessError as error:
            bench.progress.finished(part.name, f"{part.name} failed: {error}")


def stored_curve(
    bench: Bench, reader: Reader, runs: Sequence[Run], facts: Sequence[CandidateFacts]
) -> LearningCurve | None:
    """Fit the curve of stored parts; None where they were not made, or are fewer than four sizes."""
    name = _judged(bench, facts)
    known = f"{bench.experiment.name}-{name}@"
    if name is None or not any(path.name.startswith(known) for path in bench.store.folder.glob("*@*")):
        return None
    found = [(part, stored_runs(part.bench, [part[1:]])[0]) for part in _parts(bench, runs, facts)]
    trained = [_trained(part.bench, reader, run) for part, run in found if run and run.state == "done"]
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    return decision.learning_curve(name, [*trained, _trained(bench, reader, whole)], bench.target.primary)


def _trained(bench: Bench, reader: Reader, run: Run) -> decision.Trained:
    cost = facts_of(bench, reader, run).training_cost_usd
    return decision.Trained(len(bench.target.items.train), cost, reader.of(run, bench.target))


def _parts(bench: Bench, runs: Sequence[Run], facts: Sequence[CandidateFacts]) -> Iterator[Part]:
    """Yield the parts one after the other, so that each goes on with the base that is in memory."""
    name = _judged(bench, facts)
    if name is None or len(bench.target.items.train) * SHARES[0] < _LEAST:
        return
    whole = next(r for r in runs if r.candidate == name and r.state == "done")
    candidates = dict(bench.experiment.candidates)
    source = candidates[name].weights_of or name
    candidates[source] = settled(candidates[source], whole)
    last = bench
    for share in SHARES:
        items = part_of(bench.target.items, share, bench.experiment.seeds[0])
        target = measured(bench.target.task, bench.target.role, bench.target.suite, items)
        part = f"{name}@{len(items.train)}"
        known = {**candidates, part: candidates[name]}
        experiment = bench.experiment.model_copy(update={"candidates": known})
        last = replace(last, experiment=experiment, target=target, suites=())
        yield Part(last, part, known[part], bench.experiment.seeds[0])


def settled(recipe: Recipe, run: Run) -> Recipe:
    """Return the recipe with what its sweep chose, so that all sizes are of one recipe."""
    chosen: dict[str, Any] = next((t["params"] for t in run.training.get("sweep", []) if t["chosen"]), {})
    return recipe.model_copy(update={"sweep": {}, "params": {**recipe.params, **chosen}})


def _judged(bench: Bench, facts: Sequence[CandidateFacts]) -> str | None:
    """Name the fine-tune that the decision is about, where it is trained here."""
    name = decision.best_trained(facts) or decision.strongest(facts)
    return name if name in list(_trained_here(bench, [name] if name else [])) else None


def _trained_here(bench: Bench, selected: Iterable[str]) -> Iterator[str]:
    for name in selected:
        source = source_of(bench, bench.experiment.candidates[name])
        if "num_train_epochs" in load_plugin("methods", source.method).Params.model_fields:
            yield name
