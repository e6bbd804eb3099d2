"""Advice printed with the measurements: kinds of failure, declared needs, and the scenario of an experiment.

Invariant: advice decides nothing. A remedy helps if its whole interval is above the prompt. The scenario is
that of the candidate measured to do better than the rest, shipped or not. Source: the usual lists of when to
prompt, to retrieve and to fine-tune; Gupta et al. 2024, arXiv 2401.08406 (retrieval, fine-tuning and both),
Ovadia et al. 2024, arXiv 2312.05934 (facts by retrieval).
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from harness import formatting
from harness.analysis import economics
from harness.analysis.candidate_facts import (
    Action,
    CandidateFacts,
    Case,
    action_of,
    best,
    gain,
    gain_text,
    is_fine_tuned,
    is_gain_shown,
    passes,
    score_text,
)
from harness.analysis.next_step import too_few
from harness.spec import Need

_REMEDIES = {
    (): "What kind of failure it is, is not shown: neither retrieval on knowledge nor a fine-tune on"
    " behaviour is clearly above the prompt.",
    ("knowledge",): "The prompt fails on facts, and retrieval fixes that.",
    ("behaviour",): "The prompt fails on behaviour (format, style, labels), and fine-tuning fixes that.",
    ("knowledge", "behaviour"): "The prompt fails on facts, which retrieval fixes, and on behaviour, which"
    " fine-tuning fixes: a hybrid can do both.",
}
_CENT = 0.01
_PROMPTED: tuple[Action, ...] = ("prompt", "few-shot", "rank", "rag")
_RETRIEVES: tuple[Action, ...] = ("rag", "hybrid")
_TUNES: tuple[Action, ...] = ("fine-tune", "hybrid")


def failure_sentences(case: Case) -> list[str]:
    """Distinguish missing facts from missing behaviour by the remedy that helps on each slice."""
    slices = list_measured_slices(case)
    if not slices:
        return []
    runs = [best_of(case, action) for action in ("prompt", "rag", "fine-tune", "hybrid")]
    sentences = []
    for name in slices:
        measured = [f for f in runs if f and name in f.slices]
        scores = (f"{f.name} {formatting.score(f.slices[name].unit, *f.slices[name][:3])}" for f in measured)
        n = formatting.count(measured[0].slices[name].n)
        sentences.append(f"On {name} (n = {n}): {', '.join(scores)}.")
    # A remedy helps if its whole interval is above the prompt's.
    fixed, prompt = [], runs[0]
    for name, remedy in (("knowledge", runs[1]), ("behaviour", runs[2])):
        if prompt and remedy and name in slices and name in remedy.slices:
            before, after = prompt.slices[name], remedy.slices[name]
            if after.low > before.high if after.unit.higher_is_better else after.high < before.low:
                fixed.append(name)
    return [*sentences, _REMEDIES[tuple(fixed)]]


def list_measured_slices(case: Case) -> tuple[str, ...]:
    """List which of the slices `knowledge` and `behaviour` were measured."""
    prompt = best_of(case, "prompt")
    return tuple(s for s in ("knowledge", "behaviour") if prompt is not None and s in prompt.slices)


def best_of(case: Case, action: str) -> CandidateFacts | None:
    """Return the best candidate of a kind on validation, untrained ones on the experiment's base only."""
    return best(
        f
        for f in case.facts
        if action_of(f) == action
        and not f.baseline
        and (f.trained or f.base is None or case.base in ("", f.base.name))
    )


class Advice(NamedTuple):
    """Textbook advice on one need: its words, the advised kinds of candidates, the slices that measure it."""

    text: str
    actions: tuple[Action, ...] = ()
    slices: tuple[str, ...] = ()


_FACTS_SLICE, _BEHAVIOUR_SLICE, _BOTH_SLICES = ("knowledge",), ("behaviour",), ("knowledge", "behaviour")
_ADVICE: Mapping[Need, Advice] = {
    "changing_facts": Advice(
        "facts that change belong into documents; a fine-tune would soon be old", _RETRIEVES, _FACTS_SLICE
    ),
    "private_knowledge": Advice(
        "retrieval finds what the base never saw, and can name its source", _RETRIEVES, _FACTS_SLICE
    ),
    "new_domain": Advice(
        "a fine-tune learns the language of a new domain; retrieval finds its facts", _TUNES, _BOTH_SLICES
    ),
    "style_or_format": Advice(
        "a fine-tune learns style and format; retrieval does not bring them", _TUNES, _BEHAVIOUR_SLICE
    ),
    "low_latency": Advice(
        "the prompt of a fine-tune needs no shots or passages", ("fine-tune", "classifier")
    ),
    "little_data": Advice(
        "below some 100 examples a prompt with shots; a fine-tune varies with their draw", _PROMPTED
    ),
    "knowledge_and_behaviour": Advice(
        "measure retrieval on tuned weights (weights_of with rag)", ("hybrid",), _BOTH_SLICES
    ),
    "sensitive_data": Advice("the model has to run here: one behind an external API is left out"),
    "general_purpose": Advice(
        "a model that serves many tasks stays as it is: a fine-tune on one may lose others", _PROMPTED
    ),
    "rapid_iteration": Advice(
        "prompt for what changes every few days: a fine-tune is trained and judged again", _PROMPTED
    ),
    "no_compute": Advice("prompts, retrieval or a plain classifier", (*_PROMPTED, "classifier")),
    "low_resource_language": Advice(
        "a fine-tune learns a language that the base hardly saw; shots show too little of it", _TUNES
    ),
    "answers_with_sources": Advice(
        "retrieval can name the passages that an answer rests on; trained weights cannot", _RETRIEVES
    ),
    "missing_capability": Advice(
        "a prompt brings out only what the base can do; the rest takes many rows, or a larger base", _TUNES
    ),
    "cheaper_than_a_larger_model": Advice(
        "a fine-tune on a larger model's answers (harness data distill) comes near it at a smaller price",
        _TUNES,
    ),
}


def need_sentences(case: Case, shipped: str | None) -> list[str]:
    """Answer each declared need from the measurements, or from the textbook if there are none."""
    chosen, slices = best(f for f in case.facts if f.name == shipped), list_measured_slices(case)
    sentences = []
    for need in case.policy.needs:
        advice, measured = _ADVICE[need], _describe_measured(case, need, slices)
        kind = "Measured" if measured else "Declared, not measured"
        text = f"{measured}. The textbook says: {advice.text}" if measured else advice.text
        advised = best(f for f in case.facts if action_of(f) in advice.actions and not f.baseline)
        agreement = ""
        if chosen is None or not advice.actions:
            pass
        elif chosen.baseline:
            agreement = f" {chosen.name}, which is chosen, is a baseline: its training is unknown."
        elif action_of(chosen) in advice.actions:
            agreement = f" {chosen.name}, which is chosen, is of that kind."
        elif advised is None:
            agreement = f" {chosen.name} is chosen; no candidate of that kind was measured."
        else:
            advised_text = f"{advised.name}, the best of that kind, {score_text(case, advised)}"
            chosen_text = f"here {chosen.name} reaches {score_text(case, chosen)}"
            why = []  # what was measured and speaks for the chosen candidate
            if advised.over_budget:
                why.append(f"{advised.name} is left out, because {advised.over_budget}")
            if is_fine_tuned(advised) and advised.verdict is None:
                why.append(f"what {advised.name} forgot was not measured")
            elif is_fine_tuned(advised) and advised.verdict and not passes(advised):
                outcome = "fails" if advised.verdict.outcome == "fail" else "is not shown to pass"
                why.append(f"the gate of {advised.name} {outcome}")
            for run, rival in ((advised, chosen), (chosen, advised)):
                if case.alternative and rival.name == case.alternative.name and (g := gain(run.vs_untrained)):
                    why.append(f"{run.name} gains {gain_text(g)} over {rival.name}")
            if advised.answers.recall is not None and advised.answers.recall < 1:
                recall = formatting.percent(advised.answers.recall)
                why.append(f"its retrieval found {recall} % of the documents needed")
            reason = f"Why: {'; '.join(why)}." if why else "Nothing that was measured says why."
            agreement = f" What is chosen differs: {chosen_text}, {advised_text}. {reason}"
        sentences.append(f"{kind} ({need.replace('_', ' ')}): {text}.{agreement}")
    return sentences


def _describe_measured(case: Case, need: Need, slices: Sequence[str]) -> str:
    needed = _ADVICE[need].slices
    if needed and set(needed) <= set(slices):
        return f"on the slice{'s' if len(needed) > 1 else ''} {' and '.join(needed)}, as said above"
    if need in ("changing_facts", "private_knowledge", "answers_with_sources"):
        run = best(f for f in case.facts if action_of(f) in _RETRIEVES and not f.baseline)
        parts = []
        if run and run.answers.recall is not None:
            recall = formatting.percent(run.answers.recall)
            parts.append(f"retrieval found {recall} % of the documents needed")
            parts.append(f"{run.name} reaches {score_text(case, run)} with them")
        if run and need == "answers_with_sources" and (citations := run.answers.citations):
            cited = [f"{formatting.score(e.unit, *e[:3])} {name}" for name, e in citations.items()]
            parts.append(f"the citations of {run.name} reach {' and '.join(cited)}")
        return ", and ".join(parts)
    if need == "sensitive_data":
        leaving = dict.fromkeys(f.name for f in case.facts if f.leaves_machine)
        if not leaving:
            return f"all {formatting.count(len({f.name for f in case.facts}))} candidates answer here"
        return f"requests of {', '.join(leaving)} go to an external server; the other candidates answer here"
    if need == "knowledge_and_behaviour":
        kinds: tuple[Action, ...] = ("rag", "fine-tune", "hybrid")
        runs = [run for kind in kinds if (run := best_of(case, kind))]
        scores = ", ".join(f"{run.name} reaches {score_text(case, run)}" for run in runs)
        return scores if len(runs) > 1 else ""
    if need == "missing_capability":  # does the base, with prompts or examples, score above a trivial rule?
        tries: tuple[Action, ...] = ("prompt", "few-shot", "rank")
        runs = [run for kind in tries if (run := best_of(case, kind)) and run.target]
        if not runs or not case.unit.is_rate or not case.unit.higher_is_better:
            return ""
        scores = " and ".join(f"{score_text(case, run)} with {run.name}" for run in runs)
        share = case.trivial.share if case.trivial else 0.0
        above = [run.name for run in runs if run.target and run.target.low > share]
        baseline = case.trivial.text if case.trivial else "no right answer at all"
        result = f", which is {'' if above else 'not shown to be '}more than {baseline}"
        if 0 < len(above) < len(runs):
            result = f"; only {' and '.join(above)} is shown to be above {baseline}"
        tuned, gain_clause = case.judged, ""
        if tuned and tuned.vs_prompt:
            gain_clause = f"; {tuned.label} gains {gain_text(gain(tuned.vs_prompt))} over the prompt"
        return f"the base reaches {scores}{result}{gain_clause}"
    if need == "cheaper_than_a_larger_model":
        return _compare_with_larger(case)
    return _describe_fine_tune(case, need, case.judged) if case.judged else ""


def _describe_fine_tune(case: Case, need: Need, run: CandidateFacts) -> str:
    rival, macro = case.alternative, run.verdict.macro if run.verdict else None
    is_timed = rival and None not in (run.speed.latency_p50_s, rival.speed.latency_p50_s)
    if need == "low_latency" and rival and is_timed and run.speed.measured_on == rival.speed.measured_on:
        took, its = formatting.seconds(run.speed.latency_p50_s), formatting.seconds(rival.speed.latency_p50_s)
        return f"the median request takes {took} with {run.label} and {its} with {rival.name}"
    if need == "little_data" and run.n_train:
        return f"there are {formatting.count(run.n_train)} training examples"
    if need == "general_purpose" and macro:
        return f"the other abilities of {run.label} changed by {formatting.points(*macro[:3])} points"
    if need in ("rapid_iteration", "no_compute") and run.training.total_s:
        memory = run.training.peak_memory_gib
        memory_text = f" and at most {formatting.plain(memory)} GiB" if memory else ""
        where = f" on {run.speed.measured_on}" if run.speed.measured_on else ""
        return f"training {run.label} took {formatting.seconds(run.training.total_s)}{memory_text}{where}"
    if need in ("new_domain", "low_resource_language") and run.vs_prompt:
        return f"{run.label} gains {gain_text(gain(run.vs_prompt))} over the prompt"
    return ""


def _compare_with_larger(case: Case) -> str:
    """Compare the judged fine-tune, else the best of a smaller base, with the best larger model."""

    def find_larger(run: CandidateFacts) -> CandidateFacts | None:
        others = (f for f in case.facts if f.name != run.name)
        return best(f for f in others if (f.is_remote and f.baseline) or _has_more_parameters(f, run))

    own = (f for f in case.facts if is_fine_tuned(f) and not f.is_remote)
    tuned = [f for f in own if find_larger(f)]
    run = case.judged if case.judged in tuned else best(tuned)
    larger = run and find_larger(run)
    if run is None or larger is None:
        return ""
    scores = f"reaches {score_text(case, larger)} and {run.label} {score_text(case, run)}"
    text = f"{larger.name}, the larger model, {scores}"
    prices = larger.cost_per_1k_usd, run.cost_per_1k_usd
    if prices[0] is None or prices[1] is None:
        return f"{text}; what {larger.name if prices[0] is None else run.label} costs is not known"
    once, at = (run.rows_cost_usd, run.training_cost_usd), economics.break_even(run, larger, case.policy)
    costs, spent = (" and ".join(map(formatting.usd, usd)) for usd in (prices, once))
    in_all = economics.add_one_time_costs_usd(run, larger, case.policy)
    if abs(in_all - sum(once)) > _CENT:
        spent += f" USD, with labels, hosting and index {formatting.usd(in_all)}"
    pays = "never paid back" if at in (None, inf) else f"paid back after {formatting.round_up(at)} requests"
    pays = "cheaper from the first request" if at == 0 else pays
    return f"{text}; 1,000 requests cost {costs} USD; its teacher and its training cost {spent} USD, {pays}"


def _has_more_parameters(run: CandidateFacts, other: CandidateFacts) -> bool:
    return bool(run.base and other.base and run.base.n_parameters > other.base.n_parameters)


class Scenario(NamedTuple):
    """One of the six scenarios: its number, what the base can do or lacks, and the remedy."""

    number: int
    lack: str
    remedy: str


_PROMPT_SUFFICES = Scenario(1, "the base can do the task where it is prompted well", "a prompt")
_SHOWN = Scenario(
    2, "examples of the task suffice without training", "shots, ranked labels or a plain classifier"
)
_FACTS = Scenario(3, "the base lacks facts, or they change", "retrieval")
_BEHAVIOUR = Scenario(4, "the base lacks a behaviour, such as a format or a style", "a fine-tune")
_BOTH = Scenario(5, "the base lacks facts and a behaviour", "a fine-tune with retrieval")
_SCENARIO = "Of the six scenarios in docs/decision.md this is"
_DATA = Scenario(6, "training rows are too few for what the base lacks", "more data")

SCENARIOS: Mapping[Action, Scenario] = {
    "prompt": _PROMPT_SUFFICES,
    "few-shot": _SHOWN,
    "rank": _SHOWN,
    "classifier": _SHOWN,
    "rag": _FACTS,
    "fine-tune": _BEHAVIOUR,
    "hybrid": _BOTH,
    "collect more data": _DATA,
}


def scenario_sentence(case: Case, action: Action, shipped: str | None) -> str:
    """Name the scenario of this experiment, and the measurement that shows it."""
    chosen = best(f for f in case.facts if f.name == shipped)
    if chosen is not None and chosen.baseline:
        return (
            f"Scenario: none of the six, which are about one base; {chosen.name}, a model to be beaten, is"
            " not beaten here."
        )
    if action not in SCENARIOS:
        # Scenarios that an open decision still has to choose between.
        runs = [run for run in (case.alternative, case.judged) if run is not None]
        between = [SCENARIOS[kind] for run in runs if (kind := action_of(run)) in SCENARIOS]
        numbers = " or ".join(dict.fromkeys(f"{s.number} ({s.remedy})" for s in between))
        open_text = f"Scenario open: what is undecided tells whether this is {numbers} of the six."
        return open_text if numbers else ""
    if action == "collect more data" or chosen is None:
        return _write_scenario([_DATA], _describe_gain(case, case.judged))
    gaining = case.judged
    if gaining is None or not is_gain_shown(gaining):
        finished = (f for f in case.facts if is_fine_tuned(f) and f.state == "done" and not f.over_budget)
        gaining = best(f for f in finished if is_gain_shown(f))
    if gaining:
        gained = _describe_gain(case, gaining)
        if not is_fine_tuned(chosen) and case.winner and (few := too_few(case, gaining)):
            return _write_scenario([_DATA], f"{gained}, but {few}; {chosen.name} is shipped until then")
        unshipped = "" if is_fine_tuned(chosen) else f"; why {gaining.name} is not shipped, the decision says"
        if action_of(gaining) == "hybrid":
            scenarios, why = _parts(case, gaining)
            return _write_scenario(scenarios, f"{gained}{why}{unshipped}")
        no_slices = "; no slices knowledge and behaviour tell a behaviour from facts here"
        slices_text = "" if list_measured_slices(case) else no_slices
        return _write_scenario([_BEHAVIOUR], f"{gained}{slices_text}{unshipped}")
    if is_fine_tuned(chosen):
        return (
            f"Scenario: none of the six, which part by what the base lacks; {chosen.name} is chosen for the"
            " budgets, which nothing untrained keeps."
        )
    reached = f"{chosen.name} reaches {score_text(case, chosen)}"
    if case.judged is None:
        reached += ", as far as was measured: no fine-tune was compared"
    elif g := gain(case.judged.vs_untrained):
        reached += f"; {case.judged.label} {'is worse' if g.high < 0 else 'is not shown to gain'}"
    return _write_scenario([SCENARIOS[action_of(chosen)]], reached)


def _write_scenario(scenarios: Iterable[Scenario], measured: str) -> str:
    first, *rest = scenarios
    measured = f": {measured}" if measured else ""
    if not rest:
        return f"{_SCENARIO} {first.number}: {first.lack}, so {first.remedy}{measured}."
    *numbers, last = (str(s.number) for s in (first, *rest))
    return f"{_SCENARIO} {', '.join(numbers)} or {last}{measured}."


def _describe_gain(case: Case, run: CandidateFacts | None) -> str:
    if run is None or case.alternative is None:
        return ""
    return f"{run.name} gains {gain_text(gain(run.vs_untrained))} over {case.alternative.name}"


def _parts(case: Case, hybrid: CandidateFacts) -> tuple[list[Scenario], str]:
    """Tell which part of a hybrid explains its gain, by each part's results; an unmeasured part may."""
    alone = {_FACTS: best_of(case, "rag"), _BEHAVIOUR: best_of(case, "fine-tune")}
    scores = [f"{s.remedy} alone ({run.name}) {score_text(case, run)}" for s, run in alone.items() if run]
    scores += [f"{s.remedy} alone was not measured" for s, run in alone.items() if run is None]
    measured = f" and reaches {score_text(case, hybrid)}; {', '.join(scores)}"
    above, target = set[str](), hybrid.target
    for run in alone.values():
        if run and run.target and target and target.unit.sign * (target.score - run.target.score) > 0:
            above.add(run.name)
    if enough := [s for s, run in alone.items() if run is not None and run.name not in above]:
        return enough, measured
    return [*(s for s, run in alone.items() if run is None), _BOTH], measured
