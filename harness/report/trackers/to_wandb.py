"""W&B: a project with a run each, on its server or, with WANDB_MODE=offline, in a folder to be synchronised.

Source: `wandb.init` with an id, under which a run is written again.
"""

import glob
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.report.trackers.tracked_run import TrackedRun


def send(experiment: str, runs: Sequence[TrackedRun], folder: Path) -> str:
    """Send the runs under their ids; return the project's address, or the command that sends the folder.

    There each run lies once, as it was sent last.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    url = None
    for run in runs:
        for earlier in folder.glob(f"wandb/offline-run-????????_??????-{glob.escape(run.run_id)}"):
            shutil.rmtree(earlier)
        project = os.environ.get("WANDB_PROJECT", experiment)
        settings = wandb.Settings(console="off", silent=True)
        with wandb.init(
            project=project,
            id=run.run_id,
            name=run.label,
            group=experiment,
            config=run.params,
            dir=folder,
            resume="allow",
            reinit="create_new",
            settings=settings,
        ) as sent:
            by_step: defaultdict[int, dict[str, float]] = defaultdict(dict)
            for name, curve in run.curves.items():
                for step, value in curve:
                    by_step[step][name] = value
            for step in sorted(by_step):
                sent.log(by_step[step], step=step)
            sent.summary.update({**run.metrics, **run.tags})
            if not sent.offline:
                url = sent.project_url
    return url or f"wandb sync --sync-all, in {folder}"
