"""The six scenarios of a choice between prompt, retrieval and fine-tune, and which one an experiment shows.

Invariant: the scenario is that of the candidate measured to do better than the rest, shipped or not, and the
measurement is given. What was not measured leaves several scenarios possible, and an open decision is in none
yet.
Source: the usual lists of when to prompt, to retrieve and to fine-tune; they differ by what the base lacks.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness import formatting
from harness.decision.advice.failures import best_of, list_measured_slices, list_mended_slices
from harness.decision.next_step import too_few
from harness.decision.results import (
    Action,
    CandidateFacts,
    Case,
    action_of,
    best,
    gain,
    gain_text,
    is_fine_tuned,
    is_gain_shown,
    list_within_budgets,
    score_text,
)


class Scenario(NamedTuple):
    """One of the six: its number, what the base can do or lacks, and the remedy."""

    number: int
    lack: str
    remedy: str


_PROMPTED = Scenario(1, "the base can do the task where it is prompted well", "a prompt")
_SHOWN = Scenario(
    2, "examples of the task suffice without training", "shots, ranked labels or a plain classifier"
)
_FACTS = Scenario(3, "the base lacks facts, or they change", "retrieval")
_BEHAVIOUR = Scenario(4, "the base lacks a behaviour, such as a format or a style", "a fine-tune")
_BOTH = Scenario(5, "the base lacks facts and a behaviour", "a fine-tune with retrieval")
_DATA = Scenario(6, "training rows are too few for what the base lacks", "more data")

SCENARIOS: Mapping[Action, Scenario] = {
    "prompt": _PROMPTED,
    "few-shot": _SHOWN,
    "rank": _SHOWN,
    "classifier": _SHOWN,
    "rag": _FACTS,
    "fine-tune": _BEHAVIOUR,
    "hybrid": _BOTH,
    "collect more data": _DATA,
}


def scenario_sentence(case: Case, action: Action, shipped: str | None) -> str:
    """Say which of the six scenarios this experiment is, and which measurement shows it."""
    chosen = best(f for f in case.facts if f.name == shipped)
    if chosen is not None and chosen.baseline:
        return (
            f"Scenario: none of the six, which are about one base; {chosen.name}, a model to be beaten, is"
            " not beaten here."
        )
    if action not in SCENARIOS:
        return _open_text(case)
    if action == "collect more data" or chosen is None:
        return _write_scenario([_DATA], _describe_gain(case, case.judged))
    if gaining := _find_gain(case):
        return _describe_trained(case, gaining, chosen)
    if is_fine_tuned(chosen):
        return (
            f"Scenario: none of the six, which part by what the base lacks; {chosen.name} is chosen for the"
            " budgets, which nothing untrained keeps."
        )
    return _describe_untrained(case, SCENARIOS[action_of(chosen)], chosen)


def _find_gain(case: Case) -> CandidateFacts | None:
    """Return the judged fine-tune if its gain is shown, else the best one whose gain is."""
    if case.judged is not None and is_gain_shown(case.judged):
        return case.judged
    done = (f for f in list_within_budgets(case.facts) if is_fine_tuned(f) and f.state == "done")
    return best(f for f in done if is_gain_shown(f))


def _describe_trained(case: Case, run: CandidateFacts, chosen: CandidateFacts) -> str:
    """Say what a fine-tune with a shown gain tells about the base, whether or not it is shipped."""
    gained = _describe_gain(case, run)
    if not is_fine_tuned(chosen) and case.winner and (few := too_few(case, run)):
        return _write_scenario([_DATA], f"{gained}, but {few}; {chosen.name} is shipped until then")
    kept = "" if is_fine_tuned(chosen) else f"; why {run.name} is not shipped, the decision says"
    if action_of(run) == "hybrid":
        scenarios, why = _parts(case, run)
        return _write_scenario(scenarios, f"{gained}{why}{kept}")
    return _write_scenario([_BEHAVIOUR], f"{gained}{_behaviour(case)}{kept}")


def _describe_untrained(case: Case, scenario: Scenario, chosen: CandidateFacts) -> str:
    """Give the score of the chosen untrained candidate, and say whether training was tried."""
    prompt = best_of(case, "prompt")
    prompt_text = ""
    if prompt is not None and prompt.name != chosen.name:
        prompt_text = f", and {prompt.name} {score_text(case, prompt)}"
    recall_text = (
        "" if chosen.recall is None else f" with {formatting.percent(chosen.recall)} % of the documents found"
    )
    reached = f"{chosen.name} reaches {score_text(case, chosen)}{recall_text}{prompt_text}"
    if case.judged is None:
        return _write_scenario([scenario], f"{reached}, as far as was measured: no fine-tune was compared")
    g = gain(case.judged.vs_untrained)
    tried = (
        "" if g is None else f"; {case.judged.label} {'is worse' if g.high < 0 else 'is not shown to gain'}"
    )
    return _write_scenario([scenario], reached + tried)


def _write_scenario(scenarios: Iterable[Scenario], measured: str) -> str:
    """Write the sentence for one scenario, or for several that cannot be told apart."""
    first, *others = scenarios
    measured = f": {measured}" if measured else ""
    if not others:
        return f"Scenario {first.number} of 6: {first.lack}, so {first.remedy}{measured}."
    *numbers, last = (str(s.number) for s in (first, *others))
    return f"Scenario {', '.join(numbers)} or {last} of 6{measured}."


def _describe_gain(case: Case, run: CandidateFacts | None) -> str:
    """Say what a fine-tune gains over the best untrained candidate."""
    if run is None or case.alternative is None:
        return ""
    return f"{run.name} gains {gain_text(gain(run.vs_untrained))} over {case.alternative.name}"


def _parts(case: Case, hybrid: CandidateFacts) -> tuple[list[Scenario], str]:
    """Tell which part of a hybrid explains its gain, from each part alone; an unmeasured one may."""
    alone = {_FACTS: best_of(case, "rag"), _BEHAVIOUR: best_of(case, "fine-tune")}
    scores = [f"{run.name} alone {score_text(case, run)}" for run in alone.values() if run]
    scores += [f"{s.remedy} alone was not measured" for s, run in alone.items() if run is None]
    measured = f" and reaches {score_text(case, hybrid)}; {', '.join(scores)}"
    if enough := [s for s, run in alone.items() if run is not None and not _is_above(hybrid, run)]:
        return enough, measured
    return [*(s for s, run in alone.items() if run is None), _BOTH], measured


def _is_above(run: CandidateFacts, other: CandidateFacts) -> bool:
    """Tell whether a candidate scores higher on test than another, in the metric's direction."""
    if run.target is None or other.target is None:
        return False
    return run.target.unit.sign * (run.target.score - other.target.score) > 0


def _behaviour(case: Case) -> str:
    """Say whether a slice shows that a fine-tune learned behaviour rather than facts."""
    if not list_measured_slices(case):
        return "; no slices knowledge and behaviour tell a behaviour from facts here"
    return "" if "behaviour" in list_mended_slices(case) else "; on the slice behaviour it is not shown to"


def _open_text(case: Case) -> str:
    """Name the scenarios between which an open decision has to choose."""
    runs = [run for run in (case.alternative, case.judged) if run is not None]
    between = [SCENARIOS[action] for run in runs if (action := action_of(run)) in SCENARIOS]
    named = " or ".join(dict.fromkeys(f"{s.number} ({s.remedy})" for s in between))
    return f"Scenario open: what is undecided tells whether this is {named} of the six." if named else ""
