"""Removal of runs, and of rows and weights that nothing refers to.

Invariant: the rows and weights of nights and of the champions that are kept stay, and the exports of these.
So does what work in progress needs, or work that was ended before it was finished unless somebody asks for
that.
"""

from typing import NamedTuple

from harness import store
from harness.errors import Problem, UserError
from harness.store import Leftover, References, Store


class UnreferencedFiles(NamedTuple):
    """Files that may be removed, those kept for work that is not finished, and the names of that work."""

    removable: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]
    wanted_by: tuple[str, ...]


def remove_run(at: Store, run_id: str, nights: References) -> None:
    """Delete a run with the rows and weights that no other run, champion or night refers to.

    `nights` is what nights refer to.

    Raises:
        UserError: there is no such run, or it is a champion, or one that a rollback may return to.
        HarnessError: a compare is at work in the folder.
    """
    store.get_run(at, run_id)
    targets = [champion.target for champion in store.champions(at.folder.parent) if champion.run_id == run_id]
    if targets:
        found = f"{run_id}, the champion of {', '.join(targets)}"
        step = "promote another run first: harness promote"
        raise UserError(Problem("run", found, "a run that no gate compares with", step))
    for earlier in store.kept_champions(at.folder.parent):
        if earlier.run_id == run_id:
            found = f"{run_id}, an earlier champion of {earlier.target}"
            step = "retire it first: harness champions list shows its number for harness champions retire"
            raise UserError(Problem("run", found, "a run that no rollback returns to", step))
    with store.hold(at):
        kept = store.join_references([_champion_references(at), nights])
        store.remove_run(at, run_id, keep=frozenset().union(*kept))


def list_unreferenced(at: Store, nights: References, *, unfinished: bool = False) -> UnreferencedFiles:
    """List what no run, champion or night refers to; `nights` is what nights do.

    While work has begun and is not finished, what it has so far cannot be told from what is left over:
    then nothing may be removed but by asking, with `unfinished`, for that too.

    Raises:
        HarnessError: the file of a run or a champion cannot be read.
    """
    runs = store.all_runs(at)
    behind = store.trial_references(at, runs)
    wanted = store.join_references([store.run_references(runs), behind, _champion_references(at), nights])
    complete = [*store.list_unreferenced(at, wanted), *store.list_unneeded_trials(at, runs)]
    begun = store.list_unfinished(at)
    wanted_by = list(store.list_begun(at))
    for run in runs:
        # Made before runs named the weights that they are found by way of.
        trained = run.training.init_wall_s is not None or any(t.fit_key for t in run.training.sweep)
        if trained and not run.training.stands_on:
            wanted_by.append(run.run_id)
    if unfinished:
        return UnreferencedFiles((*complete, *begun), (), ())
    if wanted_by:
        return UnreferencedFiles((), (*complete, *begun), tuple(wanted_by))
    return UnreferencedFiles(tuple(complete), tuple(begun), ())


def remove_unreferenced(at: Store, nights: References, *, unfinished: bool = False) -> UnreferencedFiles:
    """Delete what `list_unreferenced` lists as removable; returns what it was.

    Raises:
        HarnessError: a compare is at work in the folder, or a file of a run or a champion cannot be read.
    """
    with store.hold(at):
        found = list_unreferenced(at, nights, unfinished=unfinished)
        store.remove(at.folder, (left.path for left in found.removable))
        for name in store.list_begun(at) if unfinished else ():
            store.end(at, name)
    return found


def _champion_references(at: Store) -> References:
    kept = store.kept_champions(at.folder.parent)
    return References(
        rows=frozenset(rows for one in kept for rows in one.rows.values()),
        fit_keys=frozenset(one.fit_key for one in kept) - {""},
        weights=frozenset(digest for one in kept for digest in (one.weights_digest, one.base_digest)),
        runs=frozenset(one.run_id for one in kept),
    )
