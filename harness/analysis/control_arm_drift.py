"""Drift of the harness, measured by the control arm: answers of the base that are evaluated again.

Invariant: other tokens of a prompt are drift of the harness, and so is another answer in the same
environment; in another environment, more changed scores than the A/A rate explains are.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting, stats
from harness.analysis.verdict import Number, Rule

ALPHA = 0.01  # level at which the control arm has too many flips
# A/A flips by precision: (flipped, all) items of one model between two correct layouts. 0 of 120 in fp32
# counts as a half; fp16 has three more bits of mantissa than bf16.
AA_FLIPS = {"bf16": (22.0, 1000.0), "fp16": (3.0, 1000.0), "fp32": (0.5, 120.0)}
_AFTER_DRIFT = (
    "undo what changed, remove the runs that were made meanwhile (harness runs rm) and compare again; "
    "or, where the change is wanted, begin a new runs folder, so that all items are re-evaluated"
)


class ControlFacts(NamedTuple):
    """One measurement of the control arm on a base.

    `n_same` items were stored in the same environment, `n_other` in another or unknown one; `changed` says
    what changed there. `reworded` items have other tokens, `differing` ones got another answer in the same
    environment, `flipped` ones another score in another environment. `aa_flips` of `aa_n` items flip if
    nothing is wrong.
    """

    id: str
    n_blocks: int
    n_same: int
    n_other: int
    reworded: tuple[str, ...]
    differing: tuple[str, ...]
    flipped: tuple[str, ...]
    aa_flips: float
    aa_n: float
    changed: str = ""


def aa_rate(precision: str) -> float:
    """Return the share of items that flip if nothing is wrong; that of bf16 for an unknown precision."""
    flips, n = AA_FLIPS.get(precision, AA_FLIPS["bf16"])
    return flips / n


def flips_p(facts: ControlFacts) -> float:
    """Return the chance of so many flips or more at the A/A rate."""
    if not facts.flipped:
        return 1.0
    return stats.binomial_p(len(facts.flipped), facts.n_other, facts.aa_flips / facts.aa_n)


def has_drifted(facts: ControlFacts) -> bool:
    """Tell whether the harness, not a candidate, has drifted."""
    return bool(facts.reworded or facts.differing) or flips_p(facts) < ALPHA


def control_rule(controls: Sequence[ControlFacts]) -> Rule:
    """Report a drift of the harness itself."""
    if not controls:
        text = "control: no block of the base was re-evaluated with these rows"
        return Rule("control", "skipped", text, {})
    n = sum(facts.n_same + facts.n_other for facts in controls)
    flipped = [facts for facts in controls if facts.flipped]
    numbers: dict[str, Number] = {
        "n_items": n,
        "n_reworded": sum(len(facts.reworded) for facts in controls),
        "n_differing": sum(len(facts.differing) for facts in controls),
        "n_flipped": (n_flipped := sum(len(facts.flipped) for facts in flipped)),
    }
    drifts = dict[str, None]()

    def share(items: Sequence[str], n: int) -> str:
        return f"{formatting.count(len(items))} of {formatting.count(n)}"

    for f in filter(has_drifted, controls):
        parts = []
        if f.reworded:
            prompts = share(f.reworded, f.n_same + f.n_other)
            parts.append(f"{prompts} prompts of the base are other tokens now than when stored")
        if f.differing:
            answers = share(f.differing, f.n_same)
            parts.append(f"{answers} items of the base came back otherwise in the same environment")
        if flips_p(f) < ALPHA:
            rate, p = formatting.percent(f.aa_flips / f.aa_n), formatting.p_value(flips_p(f))
            flipped_text = f"{share(f.flipped, f.n_other)} items of the base have another score"
            allowed = f"more than the A/A rate of {rate} % allows (exact binomial p {p})"
            parts.append(f"{flipped_text} in another environment ({f.changed}), {allowed}")
        items = (f.reworded or f.differing or f.flipped)[:3]
        drifts[f"{', '.join(parts)} ({', '.join(items)} …)"] = None
    if drifts:
        why = "so the harness moved, and this says nothing of the candidate"
        return Rule(
            "control", "harness-drift", f"control: {'; '.join(drifts)}; {why}; next: {_AFTER_DRIFT}", numbers
        )
    text = f"control: {formatting.count(n)} items of the base were re-evaluated"
    if not flipped:
        return Rule("control", "pass", f"{text} and came back as stored", numbers)
    allowed = formatting.percent(max(facts.aa_flips / facts.aa_n for facts in flipped))
    changed = "; ".join(dict.fromkeys(facts.changed for facts in flipped))
    flips = f"{formatting.count(n_flipped)} of them with another score"
    text += f" in another environment ({changed}), {flips}, which the A/A rate of {allowed} % allows"
    return Rule("control", "pass", text, numbers)
