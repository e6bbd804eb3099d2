"""Report of a night as it is shown: its verdicts, with what people's labels say of those by a judge.

Invariant: no verdict changes; sentences alone do, those of alarms with them.
"""

from collections.abc import Sequence
from dataclasses import replace

from harness.nightly.alarm import NightReport, build_report
from harness.nightly.judged_changes import judged_sentence
from harness.nightly.state import Night, State
from harness.spec import NightlyPolicy


def shown_report(
    experiment: str, policy: NightlyPolicy, nights: Sequence[Night], state: State
) -> NightReport:
    """Say what the last of some finished nights shows, beside people's labels where a judge graded it."""
    report = build_report(experiment, policy, nights, state)
    told = {one.name: judged_sentence(one.judged) for one in nights[-1].candidates if one.judged}
    more = {name: f"; {said}" for name, said in told.items() if said}
    lines = tuple(replace(line, sentence=line.sentence + more.get(line.name, "")) for line in report.lines)
    raised = {line.name: line.sentence for line in lines}
    new = tuple(replace(a, sentence=raised.get(a.about, a.sentence)) for a in report.new)
    return replace(report, lines=lines, new=new)
