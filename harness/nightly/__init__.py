"""Nightly regression test: champions and named candidates re-evaluated, with the base as the control arm.

Invariant: an alarm is raised once and stays until it is acknowledged; an unchanged candidate raises one
with a chance of at most `nightly.alpha`, however many nights are evaluated.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from harness import config
from harness.config import LoadedExperiment
from harness.errors import Problem, UserError
from harness.nightly import scheduler
from harness.nightly.alarm import (
    NightReport,
    build_report,
    list_missed_nights,
    night_document,
    refuse_webhook,
    report_nights,
    tell,
    to_json,
    write,
)
from harness.nightly.night import night_lock, run_night, run_prepared
from harness.nightly.state import (
    Alarm,
    Night,
    State,
    acknowledge_alarms,
    home,
    open_alarms,
    read_nights,
    read_state,
    references,
    write_state,
)
from harness.store import Store


@dataclass(frozen=True, slots=True)
class Status:
    """State between two nights: the report of the last one, and what is missing since."""

    last: NightReport | None
    n_nights: int
    missed: tuple[str, ...]
    unfinished: tuple[str, ...]
    open: tuple[Alarm, ...]


def status(path: Path, today: str) -> Status:
    """Report where the nights of an experiment stand; loads no model.

    Raises:
        UserError: with every problem of the file at once.
        UserError: a night's file cannot be read.
    """
    loaded = config.load(path)
    folder = home(Store(loaded.folder / "runs"), loaded.experiment.name)
    state, nights = read_state(folder), read_nights(folder)
    last = report_nights(loaded, nights, state) if nights else None
    # Nights that began and were ended before they finished.
    begun = sorted(p.parent.name for p in folder.glob("*/rows") if not (p.parent / "night.json").exists())
    missed = tuple(list_missed_nights(nights, today))
    return Status(last, len(nights), missed, tuple(begun), tuple(open_alarms(state)))


def acknowledge(path: Path, about: str | None, *, new_reference: bool = False) -> list[Alarm]:
    """Close the open alarms about a candidate, `harness`, or all; evidence is then collected afresh.

    With `new_reference` the next night compares with the newest stored run.

    Raises:
        UserError: there is nothing to close.
        HarnessError: a night is being run.
    """
    loaded = config.load(path)
    at = Store(loaded.folder / "runs")
    folder = home(at, loaded.experiment.name)
    with night_lock(folder):
        state, nights = read_state(folder), read_nights(folder)
        state, closed = acknowledge_alarms(state, about, nights[-1].night if nights else "")
        if new_reference:
            kept = {n: r for n, r in state.references.items() if about not in (None, "harness", n)}
            state = replace(state, references=kept)
        if not closed and not new_reference:
            known = open_alarms(state)
            found = f"no open alarm about {about}" if about else "no open alarm"
            step = f"one of: {', '.join(a.about for a in known)}" if known else "there is nothing to do"
            raise UserError(
                Problem(f"nightly ack, {loaded.experiment.name}", found, "an alarm to close", step)
            )
        write_state(at, folder, state)
    return closed


def send(path: Path, webhook: str, night: str) -> str:
    """Send open alarms that were not sent yet to a webhook; returns what went wrong, or nothing.

    Raises:
        UserError: the address is none of the web.
        HarnessError: a night is being run.
    """
    loaded = config.load(path)
    at = Store(loaded.folder / "runs")
    folder = home(at, loaded.experiment.name)
    with night_lock(folder):
        before = read_state(folder)
        state, error = tell(before, loaded.experiment.name, webhook, night)
        if state != before:
            write_state(at, folder, state)
    return error
