"""Trackers that show results beside those of other tools: TensorBoard, MLflow and W&B, a file each.

Invariant: a tracker shows what the report says and holds nothing of its own. Runs go by their id, so a report
that is sent again renews them. What keeps a tracker from taking runs is a note, and costs no result.
"""

import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from harness.errors import Problem
from harness.masking import mask_secrets
from harness.report.experiment_report import ExperimentReport
from harness.report.trackers.tracked_run import list_tracked_runs

FOLDER = "trackers"  # beside the reports


def problems(names: Iterable[str]) -> Iterator[Problem]:
    """Yield each tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            step = "pip install 'harness-evals[tracking]', or leave it out of report_to"
            yield Problem("report_to", f"{name}, and no package {name}", "an installed tracker", step)


def send(report: ExperimentReport, names: Sequence[str], folder: Path) -> list[str]:
    """Send every run of a report to trackers; return for each where its runs are, or why they are not.

    `folder` is that of the reports: what a tracker writes to this disk lies in `trackers/NAME` there.
    """
    runs = list_tracked_runs(report)
    return [_send(name, report.file_name, runs, folder / FOLDER / name) for name in names]


def _send(name: str, experiment: str, runs: Sequence[object], folder: Path) -> str:
    try:
        link: str = import_module(f"{__name__}.to_{name}").send(experiment, runs, folder)
    except Exception as error:  # noqa: BLE001  (a server of somebody else's: any kind)
        said = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        link = f"the results were not sent ({said}); next: harness report, which sends them again"
    return f"{name}: {mask_secrets(link)}"
