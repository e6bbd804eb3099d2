"""Removal of runs, and of files that no run, champion or night uses.

Invariant: rows and weights of nights and kept champions stay, and these champions' exports; files of
unfinished work too, unless their removal is requested.
"""

from typing import NamedTuple

from harness import store
from harness.errors import UserError
from harness.lifecycle import nightly_state
from harness.store import Leftover, Store


class UnreferencedFiles(NamedTuple):
    """Files that may be removed, files kept for unfinished work, and the names of that work."""

    removable: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]
    wanted_by: tuple[str, ...]


def remove_run(at: Store, run_id: str) -> None:
    """Delete a run with its rows and weights that no other run uses; refused for kept champions."""
    store.get_run(at, run_id)
    for champion in store.kept_champions(at.folder.parent):
        if champion.run_id == run_id:
            found = f"{run_id}, a champion of {champion.target}"
            step = "retire it first: harness champions list shows its number for harness champions retire"
            raise UserError("run", found, "a run that no gate or rollback needs", step)
    with store.hold(at):
        store.remove_run(at, run_id, keep=_kept_references(at))


def list_unreferenced(at: Store, *, unfinished: bool = False) -> UnreferencedFiles:
    """List files that no run, champion or night uses; unfinished work keeps all, unless requested."""
    runs = store.all_runs(at)
    behind, unneeded = store.split_trials(at, runs)
    used_names = store.run_references(runs) | behind | _kept_references(at)
    complete = [*store.list_unreferenced(at, used_names), *unneeded]
    unfinished_files = store.list_unfinished(at)
    wanted_by = store.list_begun(at)
    if unfinished:
        return UnreferencedFiles((*complete, *unfinished_files), (), ())
    if wanted_by:
        return UnreferencedFiles((), (*complete, *unfinished_files), tuple(wanted_by))
    return UnreferencedFiles(tuple(complete), tuple(unfinished_files), ())


def remove_unreferenced(at: Store, *, unfinished: bool = False) -> UnreferencedFiles:
    """Delete the removable files of `list_unreferenced`; return them."""
    with store.hold(at):
        unreferenced = list_unreferenced(at, unfinished=unfinished)
        store.remove(at.folder, (file.path for file in unreferenced.removable))
        for name in store.list_begun(at) if unfinished else ():
            store.end(at, name)
    return unreferenced


def _kept_references(at: Store) -> set[str]:
    names = nightly_state.references(at)
    for c in store.kept_champions(at.folder.parent):
        names |= {c.run_id, c.fit_key, c.weights_digest, c.base_digest, *c.rows.values()}
    return names - {""}
