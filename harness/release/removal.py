"""Remove a run from the store, unless something still stands on it.

Invariant: a champion's rows and weights stay, and so do those of work in progress.
"""

from harness import store
from harness.errors import Problem, UserError
from harness.release.champions import champions
from harness.store import Store


def remove_run(at: Store, run_id: str) -> None:
    """Delete a run with the rows and weights that neither another run nor a champion refers to.

    Raises:
        UserError: there is no such run, or it is a champion.
        HarnessError: a compare is at work in the folder.
    """
    store.get_run(at, run_id)
    promoted = champions(at.folder.parent)
    targets = [champion.target for champion in promoted if champion.run_id == run_id]
    if targets:
        found = f"{run_id}, the champion of {', '.join(targets)}"
        step = "promote another run first: harness promote"
        raise UserError(Problem("run", found, "a run that no gate compares with", step))
    with store.working(at):
        store.remove_run(at, run_id, keep={rows for c in promoted for rows in c.rows.values()})
