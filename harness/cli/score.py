"""The verb that scores stored answers again.

Invariant: no model is loaded.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import Config, Json, Overrides, app
from harness.cli.output import open_session, print_scores, say


@app.command()
def score(
    run: Annotated[str, typer.Argument(help="A run's id, or a candidate: each of its seeds.")],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    as_json: Json = False,
) -> None:
    """Score a run's stored answers again with the metrics as they are now, without the model."""
    from harness import release

    session, loaded = open_session(config, overrides)
    out = {}
    for before in release.candidate_runs(loaded, session.store, run):
        found = release.score_again(session, before)
        unchanged = found.run.run_id == before.run_id
        say(f"{before.run_id}: " + ("scored so already" if unchanged else f"now {found.run.run_id}"))
        out[found.run.run_id] = found.scores
    print_scores(out, as_json)
