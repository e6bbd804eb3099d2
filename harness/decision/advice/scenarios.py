"""The six scenarios of a choice between prompt, retrieval and fine-tune, and which one an experiment shows.

Invariant: a scenario is named by what is chosen, and said with what was measured of it; an open decision is
in none yet.
Source: the usual lists of when to prompt, to retrieve and to fine-tune; they part by what the base lacks.
"""

from collections.abc import Mapping
from typing import NamedTuple

from harness import formatting
from harness.decision.results import (
    Action,
    CandidateFacts,
    Case,
    action_of,
    best,
    gain,
    gain_text,
    is_fine_tuned,
    score_text,
)


class Scenario(NamedTuple):
    """One of the six: its number, what the base can do or lacks, and what it takes then."""

    number: int
    lack: str
    remedy: str


_ASKED = Scenario(1, "the base can do the task where it is asked well", "a prompt")
_SHOWN = Scenario(
    2, "examples of the task suffice without training", "shots, ranked labels or a plain classifier"
)
_FACTS = Scenario(3, "the base lacks facts, or they change", "retrieval")
_BEHAVIOUR = Scenario(4, "the base lacks a behaviour, such as a format or a style", "a fine-tune")
_BOTH = Scenario(5, "the base lacks facts and a behaviour", "a fine-tune with retrieval")
_DATA = Scenario(6, "training rows are too few for what the base lacks", "more data")

SCENARIOS: Mapping[Action, Scenario] = {
    "prompt": _ASKED,
    "few-shot": _SHOWN,
    "rank": _SHOWN,
    "classifier": _SHOWN,
    "rag": _FACTS,
    "fine-tune": _BEHAVIOUR,
    "hybrid": _BOTH,
    "collect more data": _DATA,
}


def scenario_sentence(case: Case, action: Action, shipped: str | None) -> str:
    """Say which of the six scenarios this experiment is, and what was measured that says so."""
    chosen = best(f for f in case.facts if f.name == shipped)
    if chosen is not None and chosen.baseline:
        return (
            f"Scenario: none of the six, which are about one base; {chosen.name}, a model to be beaten, is"
            " not beaten here."
        )
    scenario = SCENARIOS.get(action)
    if scenario is None:
        return _open_text(case)
    if action != "collect more data" and (shown := _shown_gain(case, chosen)):
        what = f"{scenario.remedy} is what may be shipped, and {shown}"
        return f"Scenario {scenario.number} of 6 for now: {what}, so the base lacks what training adds."
    measured = _evidence(case, chosen or case.judged)
    return f"Scenario {scenario.number} of 6: {scenario.lack}, so {scenario.remedy}{measured}."


def _shown_gain(case: Case, chosen: CandidateFacts | None) -> str:
    """Say that a fine-tune gains over the untrained candidate that is chosen, where that is shown."""
    run, g = case.judged, gain(case.judged.vs_untrained) if case.judged else None
    if run is None or g is None or g.low <= 0 or chosen is None or is_fine_tuned(chosen):
        return ""
    return f"{run.name} gains {gain_text(case, g)} over {case.alternative.name if case.alternative else ''}"


def _open_text(case: Case) -> str:
    """Say of an open decision between which scenarios it is to decide."""
    runs = [run for run in (case.alternative, case.judged) if run is not None]
    between = [SCENARIOS[action] for run in runs if (action := action_of(run)) in SCENARIOS]
    named = " or ".join(dict.fromkeys(f"{s.number} ({s.remedy})" for s in between))
    return f"Scenario open: what is undecided tells whether this is {named} of the six." if named else ""


def _evidence(case: Case, run: CandidateFacts | None) -> str:
    """Say what the candidate that mends it was measured to do."""
    if run is None:
        return ""
    if is_fine_tuned(run) and case.alternative and (g := gain(run.vs_untrained)):
        return f", for {run.name} gains {gain_text(case, g)} over {case.alternative.name}"
    prompt = best(f for f in case.facts if action_of(f) == "prompt" and not f.baseline)
    beside = ""
    if prompt is not None and prompt.name != run.name:
        beside = f", and {prompt.name} {score_text(case, prompt)}"
    found = "" if run.recall is None else f" with {formatting.percent(run.recall)} % of the documents found"
    return f", for {run.name} reaches {score_text(case, run)}{found}{beside}"
