"""Report of a night as it is shown: its verdicts, with what people's labels say of those by a judge.

Invariant: no verdict changes; sentences alone do, those of alarms with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.nightly.alarm import NightReport, build_report
from harness.nightly.judged_changes import judged_sentence
from harness.nightly.state import Night, State, Watched
from harness.spec import NightlyPolicy


def shown_report(
    experiment: str, policy: NightlyPolicy, nights: Sequence[Night], state: State
) -> NightReport:
    """Say what the last of some finished nights shows, beside people's labels where a judge graded it."""
    report = build_report(experiment, policy, nights, state)
    more = {one.name: "".join(f"; {said}" for said in _more_said(one)) for one in nights[-1].candidates}
    lines = tuple(replace(line, sentence=line.sentence + more.get(line.name, "")) for line in report.lines)
    raised = {line.name: line.sentence for line in lines}
    new = tuple(replace(a, sentence=raised.get(a.about, a.sentence)) for a in report.new)
    return replace(report, lines=lines, new=new)


def _more_said(one: Watched) -> Iterator[str]:
    """Yield what people's labels say of a night, and which targets were not watched."""
    if one.judged and (said := judged_sentence(one.judged)):
        yield said
    if one.unwatched:
        lacking = f"{', '.join(one.unwatched)}, of which the reference holds no rows"
        yield f"not watched: {lacking}; harness compare, then {_pin_again(one)}"


def _pin_again(one: Watched) -> str:
    champion = one.name.startswith("champion ")
    return "harness promote" if champion else f"harness nightly ack {one.name} --new-reference"
