"""Report of a night as a document, a message for a webhook, the text of an issue, and plain types.

Invariant: all of it from one report; what names or models chose is escaped; an alarm is sent once,
and again the next night where the sending failed.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from harness import formatting, report
from harness.cache import make_private_folder
from harness.errors import Problem, UserError
from harness.nightly.alarm import CandidateVerdict, NightReport
from harness.nightly.state import Alarm, State, open_alarms
from harness.report import ResultDocument, Section
from harness.report.escape import clean

_TIMEOUT_S = 10
_LOST_SHOWN = 20
_NO_GATE = "a night asks some items and compares them with the reference; harness gate judges all of them"


def night_document(found: NightReport) -> ResultDocument:
    """Lay a night out: a row a candidate, then its evidence, lost items and alarms."""
    rows = [[line.name, line.verdict, _anchors(line)] for line in found.lines]
    lost = [_describe_lost(line) for line in found.lines if line.lost and line.verdict != "ok"]
    new = [f"NEW ALARM: {a.about}: {a.verdict}" for a in found.new]
    known = [
        f"known alarm since {a.night}: {a.about}: {a.verdict}; harness nightly ack closes it"
        for a in found.open
    ]
    sections = [
        Section(
            "candidates", columns=("candidate", "verdict", "fixed items, pp"), rows=rows, notes=_facts(found)
        ),
        Section("lost", notes=lost, detail=True),
        Section("alarms", notes=[*new, *known]),
    ]
    title = f"{found.experiment}: night of {found.night}: {found.verdict}"
    return ResultDocument(title, sections, found.sentence)


def issue(found: NightReport) -> str:
    """Write the text of an issue about the new alarms, its title in the first line; empty without any."""
    if not found.new:
        return ""
    names = ", ".join(dict.fromkeys(f"{a.about}: {a.verdict}" for a in found.new))
    title = clean(f"Nightly {found.experiment}, {found.night}: {names}")
    step = "`harness nightly ack` closes the alarm; evidence is then collected afresh."
    return f"{title}\n\n{report.markdown(night_document(found))}\n{step}\n"


def slack(alarms: Sequence[Alarm], experiment: str) -> dict[str, str]:
    """Make the message of a webhook, as Slack and what is compatible with it take it."""
    lines = [f"harness nightly, {experiment}: {a.verdict} ({a.night}): {a.sentence}" for a in alarms]
    text = "\n".join(clean(line) for line in lines)
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def refuse_webhook(webhook: str) -> None:
    """Refuse an address to which nothing can be sent."""
    if urlsplit(webhook).scheme not in ("http", "https"):
        found, expected = f"{webhook[:12]}…", "an address that begins with https://"
        step = "copy it from the settings of the chat's incoming webhooks"
        raise UserError(Problem("--webhook", found, expected, step))


def tell(state: State, experiment: str, webhook: str, night: str) -> tuple[State, str]:
    """Send the open alarms that were not sent yet; returns the state with what was sent, and an error.

    Raises:
        UserError: the address is none of the web.
    """
    refuse_webhook(webhook)
    untold = [a for a in open_alarms(state) if not a.told]
    if not untold:
        return state, ""
    body = json.dumps(slack(untold, experiment)).encode()
    request = Request(webhook, body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT_S):
            pass
    except (URLError, OSError, ValueError) as error:
        return state, f"the webhook did not take it ({type(error).__name__}); the next night sends it again"
    return replace(
        state, alarms=tuple(replace(a, told=night) if a in untold else a for a in state.alarms)
    ), ""


def to_json(found: NightReport) -> dict[str, Any]:
    """Turn a night into plain types, with its exit code."""
    plain: dict[str, Any] = report.to_plain(found)
    return {**plain, "exit_code": found.exit_code}


def write(found: NightReport, folder: Path) -> list[Path]:
    """Write the page and, where there are new alarms, the text of an issue; returns the files.

    The text of an issue stays until somebody removes it, who thereby says that the issue is opened.
    """
    make_private_folder(folder)
    texts = {
        folder / f"{found.experiment}.nightly.md": report.markdown(night_document(found)),
        folder / f"{found.experiment}.nightly.json": json.dumps(to_json(found), indent=2) + "\n",
        folder / f"{found.experiment}.nightly.issue.md": issue(found),
    }
    wanted = {path: text for path, text in texts.items() if text}
    for path, text in wanted.items():
        path.write_text(text, "utf-8")
    return list(wanted)


def _facts(found: NightReport) -> list[str]:
    tests = [f"{line.name} tests {'; '.join(line.tests)}" for line in found.lines if line.tests]
    return [*tests, *_night_facts(found), *(line.sentence for line in found.lines)]


def _night_facts(found: NightReport) -> list[str]:
    commit = f"commit {found.commit[:10]}, " if found.commit else ""
    missed = [f"missed: {', '.join(found.missed)}"] if found.missed else []
    return [
        f"{commit}environment {found.environment}, {found.precision}",
        f"control arm: {found.harness}",
        *found.pool,
        *missed,
        _NO_GATE,
    ]


def _anchors(line: CandidateVerdict) -> str:
    return ", ".join(f"{key} {formatting.points(change)}" for key, change in line.anchors.items()) or "–"


def _describe_lost(line: CandidateVerdict) -> str:
    more = (
        f" and {formatting.count(len(line.lost) - _LOST_SHOWN)} more" if len(line.lost) > _LOST_SHOWN else ""
    )
    return f"{line.name}, lost tonight: {', '.join(line.lost[:_LOST_SHOWN])}{more}"
