"""Scheduler units that run a night every day: cron line, systemd timer or GitHub workflow.

Units are named by their experiment, so that several can be installed; no secret is written.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from harness import config
from harness.errors import Problem, UserError

Scheduler = Literal["cron", "systemd", "github"]

_SERVICE = """\
[Unit]
Description=One night of {name}

[Service]
Type=oneshot
WorkingDirectory={folder}
ExecStart={command}
Environment=PATH={path}
# 3 and 4 are verdicts, not failures of the service; the journal holds what was said.
SuccessExitStatus=3 4
"""

_TIMER = """\
[Unit]
Description=Every night at {at}

[Timer]
OnCalendar=*-*-* {at}:00
# A machine that was off runs the night when it is on again.
Persistent=true

[Install]
WantedBy=timers.target
"""

_GITHUB = """\
name: harness nightly, {name}
on:
  schedule:
    - cron: "{minute} {hour} * * *"   # UTC
  workflow_dispatch:
concurrency: harness-nightly-{name}
permissions:
  contents: read
  issues: write
jobs:
  night:
    runs-on: self-hosted              # the runs folder has to be there again the next night
    timeout-minutes: 240
    steps:
      - uses: actions/checkout@v4
        with: {{clean: false}}
      - name: Run the night
        env:
          HARNESS_WEBHOOK: ${{{{ secrets.HARNESS_WEBHOOK }}}}
        run: harness nightly run -c {config}
      - name: Open an issue about a new alarm
        if: always()                    # also where a night before could not open its own
        env:
          GH_TOKEN: ${{{{ github.token }}}}
        run: |
          text={issue}
          if [ -e "$text" ]; then
            gh issue create --title "$(head -n 1 "$text")" --body-file "$text"
            rm "$text"                  # opened: the next night finds nothing to open
          fi
"""


def units(scheduler: Scheduler, path: Path, at: str) -> dict[Path, str]:
    """Return the files of a scheduler's unit by path; a cron line has no file, so its path is empty."""
    hour, minute = (int(digits) if digits.isdigit() else 99 for digits in at.partition(":")[::2])
    if hour > 23 or minute > 59:
        raise UserError("--at", repr(at), "a time of day", "write 02:30")
    name = config.load(path).experiment.name
    folder, unit = path.absolute().parent, f"harness-nightly-{name}"
    if scheduler == "github":
        relative = path if not path.is_absolute() else Path(path.name)
        text = _GITHUB.format(
            name=name,
            minute=minute,
            hour=hour,
            config=shlex.quote(relative.as_posix()),
            issue=shlex.quote((relative.parent / "reports" / f"{name}.nightly.issue.md").as_posix()),
        )
        return {Path(f".github/workflows/{unit}.yml"): text}
    program = str(Path(sys.executable).with_name("harness"))
    command = f"{shlex.quote(program)} nightly run -c {shlex.quote(path.name)}"
    if scheduler == "cron":
        log = shlex.quote(str(folder / "runs" / "nightly.log"))
        line = f"{minute} {hour} * * * cd {shlex.quote(str(folder))} && {command} >> {log} 2>&1\n"
        return {Path(): line.replace("%", "\\%")}
    home = Path("~/.config/systemd/user").expanduser()
    programs = f"{Path(program).parent}:/usr/local/bin:/usr/bin:/bin"
    service = _SERVICE.format(
        name=name, folder=_escape(str(folder)), command=_escape(command), path=_escape(programs)
    )
    timer = _TIMER.format(at=f"{hour:02d}:{minute:02d}")
    return {home / f"{unit}.service": service, home / f"{unit}.timer": timer}


def next_step(
    scheduler: Scheduler, files: Iterable[Path], options: Sequence[str] = (), *, written: bool = False
) -> str:
    """Describe how to start the unit, and how it gets the webhook and the keys of endpoints."""
    unit = next(path.stem for path in files)
    how = {
        "cron": "by a line NAME=value above it",
        "systemd": f"by Environment=NAME=value in systemctl --user edit {unit}.service",
        "github": "by a secret of that name, and the key in env: next to HARNESS_WEBHOOK",
    }[scheduler]
    command = shlex.join(["harness", "nightly", "install", f"--{scheduler}", *options])
    started = {
        "cron": f"add it: (crontab -l; {command}) | crontab -",
        "systemd": f"systemctl --user enable --now {unit}.timer",
        "github": "commit the file",
    }[scheduler]
    if scheduler != "cron" and not written:
        started = f"{command} --write, then: {started}"
    return f"{started}; HARNESS_WEBHOOK, and the api_key_env of an endpoint, are given {how}"


def write(files: dict[Path, str]) -> list[Path]:
    """Write the files of a unit; a file with another content is refused."""
    if Path() in files:
        step = "leave --write out, and add the line by crontab -e"
        raise UserError("--write", "a cron line", "files", step)
    conflicts = [path for path, text in files.items() if path.exists() and path.read_text("utf-8") != text]
    if conflicts:
        found = "a file with another content"
        raise UserError([Problem(str(p), found, "no file", "move it away") for p in conflicts])
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return list(files)


def _escape(text: str) -> str:
    """Escape a setting for systemd, in which a per cent sign begins a specifier."""
    return text.replace("%", "%%")
