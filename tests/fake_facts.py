"""Candidates as an experiment would measure them: real records with made-up numbers."""

from typing import Any

from harness.analysis.candidate_facts import AnswerFacts, CandidateFacts, Case, Speed
from harness.analysis.decision import Decision, decide
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.verdict import MissRate, Rule, Verdict
from harness.formatting import RATE, Unit
from harness.spec import DecidePolicy

BITS = Unit(1.0, "bits per byte", higher_is_better=False)


def comparison(delta: float, half: float = 0.05, **changes: Any) -> Comparison:
    """Make a comparison with the interval delta ± half on 200 items, of which 40 are lost and 54 gained."""
    fields: dict[str, Any] = {
        "task": "support", "metric": "exact_match", "n": 200, "n_clusters": 200, "base": 0.70,
        "base_low": 0.63, "base_high": 0.76, "new": 0.70 + delta, "new_low": 0.64 + delta,
        "new_high": 0.76 + delta, "delta": delta, "low": delta - half, "high": delta + half,
        "se": half / 1.959964, "disagreement": 0.20, "lost": (), "gained": (), "estimator": "tango",
        "lower": delta - 0.84 * half, "upper": delta + 0.84 * half,
    }  # fmt: skip
    return Comparison(**(fields | changes))


def verdict(outcome: Any, sentence: str = "", **changes: Any) -> Verdict:
    sentence = sentence or f"macro −0.4 [−1.5, +0.7] against the margin 2: {outcome}"
    fields: dict[str, Any] = {
        "outcome": outcome, "rules": (Rule("macro", outcome, sentence, {"delta": -0.004}),),
        "macro": Estimate(-0.004, -0.015, 0.007, 1800), "lost": 31, "gained": 27,
        "missed": (MissRate(-0.02, 0.31, "macro"), MissRate(-0.03, 0.12, "macro")),
        "items_needed": 240 if outcome == "inconclusive" else None, "sentence": sentence,
    }  # fmt: skip
    return Verdict(**(fields | changes))


def candidate(name: str, score: float, unit: Unit = RATE, **changes: Any) -> CandidateFacts:
    """Make an untrained zero-shot candidate with the score `score` on validation and test."""
    fields: dict[str, Any] = {
        "name": name, "run_id": f"{name}-0", "method": "base", "prompting": "zero_shot", "answer": "generate",
        "seed": 0, "trained": False, "state": "done",
        "target": Estimate(score, score - 0.05, score + 0.05, 200, unit), "validation": score,
        "cost_per_1k_usd": 0.20, "latency_p50_s": 0.3,
    }  # fmt: skip
    fields |= changes
    for name, group in (("speed", Speed), ("answers", AnswerFacts)):
        fields[name] = group(**{key: fields.pop(key) for key in group._fields if key in fields})
    return CandidateFacts(**fields)


def make_fine_tune(
    name: str, score: float, gain: float, outcome: str | None = "pass", unit: Unit = RATE, **changes: Any
) -> CandidateFacts:
    """Make a LoRA candidate that gains `gain` ± 5 points over the best untrained one."""
    fields: dict[str, Any] = {
        "method": "lora", "trained": True, "vs_untrained": comparison(unit.sign * gain, unit=unit),
        "vs_prompt": comparison(unit.sign * (gain + 0.3), unit=unit),
        "verdict": verdict(outcome) if outcome else None, "cost_per_1k_usd": 0.11, "latency_p50_s": 0.2,
        "training_cost_usd": 0.50, "n_train": 360,
    }  # fmt: skip
    return candidate(name, score, unit, **(fields | changes))


def alternatives(best: float = 0.74) -> list[CandidateFacts]:
    """Make every fair alternative for a closed label set; nearest-neighbour shots are the best."""
    return [
        candidate("prompt", 0.20),
        candidate("fixed", 0.35, prompting="few_shot(select=fixed, shots=4)"),
        candidate("knn", best, prompting="few_shot(select=knn, shots=8)"),
        candidate("ranked", 0.30, answer="rank"),
        candidate("bag", 0.60, method="classifier", trained=True),
    ]


def make_decision(facts: Any, policy: DecidePolicy | None = None, **changes: Any) -> Decision:
    """Decide on a labelling task without documents, by default with the default policy."""
    task: dict[str, Any] = {"closed_labels": True, "has_documents": False, "metric": "exact_match"} | changes
    of_case = {name: task.pop(name) for name in Case._fields if name in task}
    return decide(Case(facts, policy or DecidePolicy(), **of_case), **task)


def find_reason(decision: Decision, words: str) -> str:
    """Return the single reason that contains these words."""
    (reason,) = [reason for reason in decision.reasons if words in reason]
    return reason
