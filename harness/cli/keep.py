"""The verbs that list and keep what is there: runs, ls, reindex.

Invariant: nothing here loads a model.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import Json, RunsFolder, app, runs_app
from harness.cli.output import print_value, say

if TYPE_CHECKING:
    from harness.records import Run


@runs_app.command("list")
def runs_list(runs: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """List stored runs, oldest first, with what removing each would free, and the disk use of all."""
    from harness import store
    from harness.numbers import size

    at = store.Store(runs)
    found = store.list_runs(at)
    used = store.disk_use(at, found)
    print_value({run.run_id: f"{_brief(run)}, {size(used.freed[run.run_id])}" for run in found}, as_json)
    say(
        f"{runs}: {size(used.total)} on the disk: rows {size(used.rows)}, weights {size(used.weights)}, "
        f"index {size(used.index_file)}, unfinished {size(used.unfinished)}"
    )


@runs_app.command("show")
def runs_show(run_id: str, runs: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """Show all that is stored of one run, without its rows."""
    from dataclasses import asdict

    from harness import store

    print_value(asdict(store.get_run(store.Store(runs), run_id)), as_json)


@runs_app.command("rm")
def runs_rm(run_id: str, runs: RunsFolder = Path("runs")) -> None:
    """Remove a run that is no champion, with the rows and weights that no other run refers to."""
    from harness import release
    from harness.store import Store

    release.remove_run(Store(runs), run_id)
    say(f"removed {run_id}")


@app.command("ls")
def ls(
    what: Annotated[
        str, typer.Argument(help="methods, prompting, metrics, suites, tasks or lm-eval")
    ] = "methods",
    as_json: Json = False,
) -> None:
    """List what there is to choose from, each with its purpose."""
    from harness.catalogue import listing

    print_value(listing(what), as_json)


@app.command()
def reindex(runs: RunsFolder = Path("runs"), as_json: Json = False) -> None:
    """Rebuild the DuckDB index from the run folders."""
    from harness import store

    print_value(store.reindex(store.Store(runs))._asdict(), as_json)


def _brief(run: "Run") -> str:
    state = run.error if run.state == "failed" else run.state
    return f"{run.created}  {run.method} × {run.prompting}, seed {run.seed}, {run.base_model}: {state}"
