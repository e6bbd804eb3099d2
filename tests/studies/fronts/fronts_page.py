"""The page of fronts: what each way reached and forgot, what is chosen, and what did not run with its hours."""

from collections.abc import Iterable, Mapping, Sequence

from harness import formatting
from harness.comparison import mean_change
from harness.decision import CandidateFacts
from harness.report import ExperimentReport
from tests.studies.fronts.choice import KEPT, N_BEST, choose, share_of_gain
from tests.studies.fronts.plan import Step
from tests.studies.fronts.ways import way_of
from tests.studies.recipe_search import PUBLIC

_ABOUT = f"""\
Which way to fine-tune gains as much as plain LoRA and forgets less? First every way at two strengths with one seed on the
quickstart's target, judged on validation rows and on general items that no gate asks. Then plain LoRA and the {N_BEST} best ways on
three tasks over three seeds: the quickstart's, Banking77 cut to twelve intents and 360 rows, and Dolly's instructions. The share of
plain LoRA's gain is over the prompt, on the same items; forgetting is the mean change of the capability suite in points."""
_COLUMNS = ("candidate", "target", "share of plain LoRA's gain", "forgetting", "public tasks", "gate")


def page(
    first: ExperimentReport | None,
    tasks: Mapping[str, ExperimentReport],
    left: Sequence[Step],
    later_s: float,
) -> str:
    """Write the page; `later_s` is what the second stage is expected to take while nothing is chosen for it."""
    lines = ["# Fronts of target against forgetting", "", _ABOUT, "", "## Every way, on validation", ""]
    lines += _table(first) if first else ["Nothing of it has run."]
    if first and choose(first.facts):
        lines += ["", f"Chosen so far: {', '.join(choose(first.facts))}."]
    for name, found in tasks.items():
        picture = f"![Front of {name}](fronts.{name}.svg)"
        lines += ["", f"## {name}", "", *_table(found), "", _verdict(found), "", picture]
    lines += ["", "## Not run", "", *_not_run(left, later_s)]
    again = "`python -m tests.studies.fronts --steps 1` makes the next step and writes this page again."
    return "\n".join([*lines, "", again, ""])


def _table(found: ExperimentReport) -> list[str]:
    done = sorted((f for f in found.facts if f.target), key=lambda f: -f.target.score if f.target else 0.0)
    rows = [_row(found, f) for f in done]
    failed = [f"- {f.label} failed: {f.error}" for f in found.facts if f.state == "failed"]
    head = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    return [*head, *rows, *([""] if failed else []), *failed]


def _row(found: ExperimentReport, f: CandidateFacts) -> str:
    assert f.target is not None
    macro = f.verdict.macro if f.verdict and f.trained else None
    share = share_of_gain(found.facts, f)
    cells = [
        f.label,
        formatting.score(f.target.unit, *f.target[:3]),
        formatting.UNKNOWN if share is None else f"{formatting.percent(share)} %",
        formatting.points(macro.score, macro.low, macro.high) if macro else "base weights",
        _public(found, f),
        f.verdict.outcome if f.verdict and f.trained else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _public(found: ExperimentReport, f: CandidateFacts) -> str:
    """Return the mean change on public tasks; unknown where none was asked."""
    first = {c.task: c for c in reversed(found.comparisons.get(f.label, ())) if c.task in PUBLIC}
    if not first:
        return formatting.UNKNOWN
    mean = mean_change(list(first.values()))
    return formatting.points(mean.score, mean.low, mean.high)


def _verdict(found: ExperimentReport) -> str:
    """Say which fine-tunes keep nine tenths of plain LoRA's gain and pass the gate, or why none does."""
    shares = {f.name: share_of_gain(found.facts, f) for f in found.facts if f.trained}
    keeping = [name for name, share in shares.items() if (share or 0.0) >= KEPT]
    held = {name: _held_back(found, name) for name in keeping}
    if passing := [name for name, rules in held.items() if not rules]:
        return f"At least {KEPT:.0%} of plain LoRA's gain, and a gate that passes for every seed: {', '.join(passing)}."
    if not any(shares.values()):
        return "Plain LoRA gains nothing over the prompt here, so there is no gain to keep."
    if not keeping:
        return f"None keeps {KEPT:.0%} of plain LoRA's gain at its best over all seeds."
    failing = [f"{name} ({', '.join(rules)})" for name, rules in held.items()]
    return (
        f"None keeps {KEPT:.0%} of plain LoRA's gain and passes; of those that keep it the gate holds back "
        f"{', '.join(failing)}."
    )


def _held_back(found: ExperimentReport, name: str) -> list[str]:
    """Name the rules of the gate that do not pass for one of a candidate's seeds."""
    verdicts = [f.verdict for f in found.facts if f.name == name and f.verdict]
    rules = [
        rule.name for of in verdicts if of.outcome != "pass" for rule in of.rules if rule.outcome != "pass"
    ]
    return list(dict.fromkeys(rules))


def _not_run(left: Sequence[Step], later_s: float) -> list[str]:
    if not left and not later_s:
        return ["Everything has run."]
    ways: dict[tuple[str, str], list[Step]] = {}
    for step in left:
        ways.setdefault((step.file.stem, way_of(step.candidate) or step.candidate), []).append(step)
    rows = [
        f"| {task} | {', '.join(step.candidate for step in of)} | {_hours(step.expected_s for step in of):.1f} |"
        for (task, _), of in ways.items()
    ]
    rows += [f"| three tasks | plain LoRA and {N_BEST} ways | {_hours([later_s]):.1f} |"] if later_s else []
    total = _hours([*(step.expected_s for step in left), later_s])
    said = f"About {total:.0f} hours on the machine that wrote this page, by the harness's own estimate."
    return ["| experiment | candidates | hours |", "|---|---|---|", *rows, "", said]


def _hours(seconds: Iterable[float]) -> float:
    return sum(seconds) / 3600
