"""Textbook advice on declared needs, next to the measurements, and why the two differ.

Invariant: advice decides nothing. It is printed with the measurement on the same need; if the chosen
candidate is of another kind, the scores of both are given with the measured reasons against the advised one.
Source: the usual lists of when to fine-tune and when to retrieve; Gupta et al. 2024, arXiv 2401.08406
(retrieval, fine-tuning and both), Ovadia et al. 2024, arXiv 2312.05934 (facts by retrieval).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from harness import formatting
from harness.decision.advice.measured_reasons import explain_why_not
from harness.decision.results import (
    Action,
    CandidateFacts,
    Case,
    action_of,
    best,
    gain,
    gain_text,
    score_text,
)
from harness.spec import Need

_PROMPTED: tuple[Action, ...] = ("prompt", "few-shot", "rank", "rag")
_RETRIEVES: tuple[Action, ...] = ("rag", "hybrid")
_TUNES: tuple[Action, ...] = ("fine-tune", "hybrid")


class Advice(NamedTuple):
    """Textbook advice on one need: its words, the kinds of candidates advised, the slices that measure it."""

    text: str
    actions: tuple[Action, ...] = ()
    slices: tuple[str, ...] = ()


_ADVICE: Mapping[Need, Advice] = {
    "changing_facts": Advice(
        "facts that change belong into documents, so retrieval; a fine-tune would soon be old",
        _RETRIEVES,
        ("knowledge",),
    ),
    "private_knowledge": Advice(
        "knowledge that the base never saw is found by retrieval, which can name its source",
        _RETRIEVES,
        ("knowledge",),
    ),
    "new_domain": Advice(
        "the language of a domain that the base hardly saw is learned by a fine-tune; its facts are found"
        " by retrieval",
        _TUNES,
        ("knowledge", "behaviour"),
    ),
    "style_or_format": Advice(
        "style and format are learned by a fine-tune; retrieval does not bring them", _TUNES, ("behaviour",)
    ),
    "low_latency": Advice(
        "little latency speaks for a fine-tune, whose prompt needs no shots or passages",
        ("fine-tune", "classifier"),
    ),
    "little_data": Advice(
        "below some 100 examples a prompt with shots; a fine-tune varies with their draw", _PROMPTED
    ),
    "knowledge_and_behaviour": Advice(
        "both are wanted, so measure retrieval on tuned weights (weights_of with rag)",
        ("hybrid",),
        ("knowledge", "behaviour"),
    ),
    "sensitive_data": Advice("the model has to run here: one behind an external API is left out"),
    "general_purpose": Advice(
        "a model that serves many tasks stays as it is, for a fine-tune on one may lose others",
        _PROMPTED,
    ),
    "rapid_iteration": Advice(
        "what changes every few days is prompted; a fine-tune is trained and judged again each time",
        _PROMPTED,
    ),
    "no_compute": Advice(
        "where nothing can be trained, prompts, retrieval or a plain classifier", (*_PROMPTED, "classifier")
    ),
    "low_resource_language": Advice(
        "a language that the base hardly saw is learned by a fine-tune; shots show too little of it", _TUNES
    ),
}


def need_sentences(case: Case, slices: Sequence[str], shipped: str | None) -> list[str]:
    """Answer each declared need from the measurements, and from the textbook where there are none."""
    chosen = best(f for f in case.facts if f.name == shipped)
    return [_sentence(case, need, slices, chosen) for need in case.policy.needs]


def _sentence(case: Case, need: Need, slices: Sequence[str], chosen: CandidateFacts | None) -> str:
    advice, name = _ADVICE[need], need.replace("_", " ")
    measured = _describe_measured(case, need, slices)
    agreement = _agreement(case, advice, chosen)
    if not measured:
        return f"Declared, not measured ({name}): {advice.text}.{agreement}"
    return f"Measured ({name}): {measured}. The textbook says: {advice.text}.{agreement}"


def _describe_measured(case: Case, need: Need, slices: Sequence[str]) -> str:
    """Describe the measurement of a need; empty without one."""
    wanted = _ADVICE[need].slices
    if wanted and set(wanted) <= set(slices):
        return f"on the slice{'s' if len(wanted) > 1 else ''} {' and '.join(wanted)}, as said above"
    if need in _WITHOUT_FINE_TUNE:
        return _WITHOUT_FINE_TUNE[need](case)
    run = case.judged
    return _MEASURES[need](case, run) if run and need in _MEASURES else ""


def _latency(case: Case, run: CandidateFacts) -> str:
    other = case.alternative
    if other is None or None in (run.latency_p50_s, other.latency_p50_s):
        return ""
    own, its = formatting.seconds(run.latency_p50_s), formatting.seconds(other.latency_p50_s)
    return f"the median request takes {own} with {run.label} and {its} with {other.name}"


def _examples(_: Case, run: CandidateFacts) -> str:
    return f"there are {formatting.count(run.n_train)} training examples" if run.n_train else ""


def _capability_change(_: Case, run: CandidateFacts) -> str:
    macro = run.verdict.macro if run.verdict else None
    return (
        f"the other abilities of {run.label} changed by {formatting.points(*macro[:3])} points"
        if macro
        else ""
    )


def _training(_: Case, run: CandidateFacts) -> str:
    if not run.training.total_s:
        return ""
    memory = run.training.peak_memory_gib
    held = f" and at most {formatting.plain(memory)} GiB" if memory else ""
    where = f" on {run.measured_on}" if run.measured_on else ""
    return f"training {run.label} took {formatting.seconds(run.training.total_s)}{held}{where}"


def _retrieval(case: Case) -> str:
    """Say what share of the needed documents retrieval found, and the score of its best candidate."""
    run = best(f for f in case.facts if action_of(f) in _RETRIEVES and not f.baseline)
    if run is None or run.recall is None:
        return ""
    recall_text = f"retrieval found {formatting.percent(run.recall)} % of the documents needed"
    return f"{recall_text}, and {run.name} reaches {score_text(case, run)} with them"


def _describe_remote_requests(case: Case) -> str:
    """Say which candidates send requests to an external server."""
    leaving = dict.fromkeys(f.name for f in case.facts if f.leaves_machine)
    if not leaving:
        return f"all {formatting.count(len({f.name for f in case.facts}))} candidates answer here"
    return f"requests of {', '.join(leaving)} go to an external server; the other candidates answer here"


def _describe_each_kind(case: Case) -> str:
    """Give the scores of the best of retrieval, fine-tunes and hybrids."""
    kinds: tuple[Action, ...] = ("rag", "fine-tune", "hybrid")
    own = [f for f in case.facts if not f.baseline]
    runs = [run for kind in kinds if (run := best(f for f in own if action_of(f) == kind))]
    return ", ".join(f"{run.name} reaches {score_text(case, run)}" for run in runs) if len(runs) > 1 else ""


def _gain_over_prompt(case: Case, run: CandidateFacts) -> str:
    if run.vs_prompt is None:
        return ""
    return f"{run.label} gains {gain_text(gain(run.vs_prompt))} over the prompt"


_WITHOUT_FINE_TUNE: Mapping[Need, Callable[[Case], str]] = {
    "changing_facts": _retrieval,
    "private_knowledge": _retrieval,
    "sensitive_data": _describe_remote_requests,
    "knowledge_and_behaviour": _describe_each_kind,
}
_MEASURES: Mapping[Need, Callable[[Case, CandidateFacts], str]] = {
    "low_latency": _latency,
    "little_data": _examples,
    "general_purpose": _capability_change,
    "rapid_iteration": _training,
    "no_compute": _training,
    "new_domain": _gain_over_prompt,
    "low_resource_language": _gain_over_prompt,
}


def _agreement(case: Case, advice: Advice, chosen: CandidateFacts | None) -> str:
    """Say whether the chosen candidate is of the advised kind, and otherwise the score of that kind."""
    if chosen is None or not advice.actions:
        return ""
    if chosen.baseline:
        return f" {chosen.name}, which is chosen, is a baseline: how it was made is not said."
    if action_of(chosen) in advice.actions:
        return f" {chosen.name}, which is chosen, is of that kind."
    other = best(f for f in case.facts if action_of(f) in advice.actions and not f.baseline)
    if other is None:
        return f" {chosen.name} is chosen; no candidate of that kind was measured."
    reached = f"{other.name}, the best of that kind, {score_text(case, other)}"
    scores = f" What is chosen differs: here {chosen.name} reaches {score_text(case, chosen)}, {reached}."
    why = "; ".join(explain_why_not(case, other, chosen))
    return f"{scores} Why: {why}." if why else f"{scores} Nothing that was measured says why."
