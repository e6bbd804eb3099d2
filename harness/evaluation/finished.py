"""Which run a recipe, its weights and its row sets make, and whether it is finished or has failed.

Invariant: the id of a finished run names its weights and its rows, so a run that is found is the one that
would be made.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness import store
from harness.evaluation.row_sets import RowSet
from harness.evaluation.session import Bench
from harness.records import Run, digest
from harness.spec import Recipe
from harness.training import Weights

Asked = tuple[str, Recipe, int]  # a candidate's name, its recipe, a seed


class Sought(NamedTuple):
    """The id of a run, and the row set of each of its tasks and splits."""

    run_id: str
    rows: dict[str, str]


def sought(bench: Bench, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]) -> Sought | None:
    """Say which run to look for; None where rows are missing, so that there is none."""
    if not all(is_there(bench, s) for s in sets):
        return None
    return Sought(run_id_of(bench, name, seed, weights, sets), {s.name: s.identity.digest for s in sets})


def finished(bench: Bench, wanted: Sequence[Sought | None]) -> list[Run | None]:
    """Find the runs that lie in the store; None for each that does not."""
    written = store.written_runs(bench.store, [one.run_id for one in wanted if one])
    found = [(one, written.get(one.run_id)) if one else (None, None) for one in wanted]
    return [run if one and run and run.rows == one.rows else None for one, run in found]


def failure(bench: Bench, known: Mapping[str, Run], name: str, recipe: Recipe, seed: int) -> Run | None:
    """Find the failure of a recipe as it is written now among the runs that are known."""
    run = known.get(failed_id(bench, name, seed))
    return run if run and Recipe.model_validate(run.recipe) == recipe else None


def is_there(bench: Bench, rows: RowSet) -> bool:
    """Tell whether a row set is complete."""
    return store.has_rows(bench.store, rows.identity, rows.ids)


def run_id_of(bench: Bench, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]) -> str:
    """Name a finished run by its weights and its rows."""
    rows = {s.name: s.identity.digest for s in sets}
    return f"{begun_as(bench, name, seed)}-{digest([rows, weights.digest])[:8]}"


def failed_id(bench: Bench, name: str, seed: int) -> str:
    """Name the run that says why a recipe could not be made."""
    return f"{begun_as(bench, name, seed)}-failed"


def begun_as(bench: Bench, name: str, seed: int) -> str:
    """Name a run that has begun; nothing is known of what it will be."""
    return f"{bench.experiment.name}-{name}-s{seed}"
