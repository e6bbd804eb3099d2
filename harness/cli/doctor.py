"""The verb that looks before anything runs: doctor.

Invariant: it only looks; whatever is wrong is listed, and the exit code says whether something is.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.cli.app import Config, Json, Overrides, app
from harness.cli.output import print_value, say

if TYPE_CHECKING:
    from harness.doctor import Checkup, Cost

_COLUMNS = ("candidate", "memory GiB", "time", "operations", "cost USD", "fits")


@app.command()
def doctor(overrides: Overrides = None, config: Config = Path("harness.yaml"), as_json: Json = False) -> None:
    """Check machine, packages, model and data, and what each candidate will take."""
    from harness.doctor import examine
    from harness.report import to_plain
    from harness.terminal import TerminalProgress

    found = examine(config, overrides or [], TerminalProgress())
    if as_json:
        print_value(to_plain(found), True)
    else:
        for line in _lines(found):
            print(line)
    for problem in found.problems:
        say(f"error: {problem}")
    raise typer.Exit(2 if found.problems else 0)


def _lines(found: "Checkup") -> list[str]:
    machine, room = found.machine, found.memory
    versions = ", ".join(f"{name} {v or 'missing'}" for name, v in found.packages.items())
    slow = ", bf16 is emulated" if machine.emulated_bf16 else ""
    return [
        f"machine   {machine.name}; {machine.precision}, {machine.gflops:,.0f} GFLOP/s{slow}",
        f"memory    {room.free_gib:.1f} of {room.total_gib:.1f} GiB free ({room.of})",
        f"disk      {found.disk_free_gb:,.0f} GB free",
        f"packages  {versions}",
        *(f"          not there: {name}, {how}" for name, how in found.absent.items()),
        *(f"found     {line}" for line in found.experiment),
        *(table(found.costs) if found.costs else ()),
    ]


def table(costs: "tuple[Cost, ...]") -> list[str]:
    """Lay out what each candidate takes, estimated, with what was measured behind a slash."""
    rows = [_COLUMNS, *map(_row, costs)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    knobs = [f"{cost.candidate} does not fit; try {cost.knob}" for cost in costs if cost.knob]
    return ["", *map(str.rstrip, lines), "estimated / measured, each made alone and from nothing", *knobs]


def _row(cost: "Cost") -> tuple[str, ...]:
    from harness.numbers import UNKNOWN, seconds, usd

    def both(estimated: str, measured: str | None) -> str:
        return estimated if measured is None else f"{estimated} / {measured}"

    def gib(x: float | None) -> str | None:
        return None if x is None else f"{x:.1f}"

    time_s, spent = cost.time_measured_s, cost.cost_measured_usd
    return (
        cost.candidate,
        both(gib(cost.memory_gib) or UNKNOWN, gib(cost.memory_measured_gib)),
        both(seconds(cost.time_s), None if time_s is None else seconds(time_s)),
        f"{cost.flops:.1e}" if cost.flops else "few",
        both(usd(cost.cost_usd), None if spent is None else usd(spent)),
        {True: "yes", False: "no", None: UNKNOWN}[cost.fits],
    )
