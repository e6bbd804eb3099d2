"""The control arm's rule: harness drift, by whether the base still answers as its stored rows say.

Invariant: in one environment nothing may differ; in another one no prompt, and no more scores than
the A/A rate allows. What drifted is the harness, so nothing is said of the candidate.
Source: the exact binomial test, one-sided.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting, stats
from harness.gating.verdict import Number, Rule

ALPHA = 0.01
# A/A flips: of so many items of one model so many flipped between two correct layouts; none of 120 in
# fp32 is taken as a half, and fp16 has three more bits of mantissa than bf16.
AA_FLIPS = {"bf16": (22.0, 1000.0), "fp16": (3.0, 1000.0), "fp32": (0.5, 120.0)}
_NEXT = (
    "undo what changed, remove the runs that were made meanwhile (harness runs rm) and compare again; "
    "or, where the change is wanted, begin a new runs folder, so that all items are re-evaluated"
)


class ControlFacts(NamedTuple):
    """One measurement of the control arm on a base.

    `n_same` items were stored in the same environment, `n_other` in another one or an unknown one;
    `changed` says in words what is another there. `reworded` names items whose prompts are other
    tokens, `differing` those of the same environment that came back otherwise, `flipped` those of
    another environment whose score moved. `aa_flips` of `aa_n` items flipped where nothing was wrong.
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
    """Return the share of items that flip where nothing is wrong; that of bf16 for another precision."""
    flips, n = AA_FLIPS.get(precision, AA_FLIPS["bf16"])
    return flips / n


def flips_p(facts: ControlFacts) -> float:
    """Return the chance of so many flips or more at the A/A rate."""
    if not facts.flipped:
        return 1.0
    return stats.binomial_p(len(facts.flipped), facts.n_other, facts.aa_flips / facts.aa_n)


def has_drifted(facts: ControlFacts) -> bool:
    """Tell whether the harness, and not a candidate, has moved."""
    return bool(facts.reworded or facts.differing) or flips_p(facts) < ALPHA


def control_rule(controls: Sequence[ControlFacts]) -> Rule:
    """Call a harness that has moved by its name."""
    if not controls:
        said = "control: no block of the base was re-evaluated with these rows"
        return Rule("control", "skipped", said, {})
    drifted = [facts for facts in controls if has_drifted(facts)]
    n = sum(facts.n_same + facts.n_other for facts in controls)
    counted: dict[str, Number] = {
        "n_items": n,
        "n_reworded": sum(len(facts.reworded) for facts in controls),
        "n_differing": sum(len(facts.differing) for facts in controls),
        "n_flipped": sum(len(facts.flipped) for facts in controls),
    }
    if not drifted:
        return Rule("control", "pass", f"control: {_describe_unchanged(controls, n)}", counted)
    found = "; ".join(dict.fromkeys(_describe_moved(facts) for facts in drifted))
    said = f"control: {found}; so the harness moved, and this says nothing of the candidate; next: {_NEXT}"
    return Rule("control", "harness-drift", said, counted)


def _describe_unchanged(controls: Sequence[ControlFacts], n: int) -> str:
    evaluated = f"{formatting.count(n)} items of the base were re-evaluated"
    flipped = sum(len(facts.flipped) for facts in controls)
    if not flipped:
        return f"{evaluated} and came back as stored"
    rates = (facts.aa_flips / facts.aa_n for facts in controls if facts.flipped)
    allowed = formatting.percent(max(rates))
    changed = "; ".join(dict.fromkeys(facts.changed for facts in controls if facts.flipped))
    return (
        f"{evaluated} in another environment ({changed}), {formatting.count(flipped)} of them with another "
        f"score, which the A/A rate of {allowed} % allows"
    )


def _describe_moved(facts: ControlFacts) -> str:
    """Say what moved, the cause before its effect."""
    n, said = facts.n_same + facts.n_other, []
    if facts.reworded:
        share = f"{formatting.count(len(facts.reworded))} of {formatting.count(n)}"
        said.append(f"{share} prompts of the base are other tokens now than when stored")
    if facts.differing:
        share = f"{formatting.count(len(facts.differing))} of {formatting.count(facts.n_same)}"
        said.append(f"{share} items of the base came back otherwise in the same environment")
    if facts.flipped and flips_p(facts) < ALPHA:
        share = f"{formatting.count(len(facts.flipped))} of {formatting.count(facts.n_other)}"
        rate, p = formatting.percent(facts.aa_flips / facts.aa_n), formatting.p_value(flips_p(facts))
        said.append(
            f"{share} items of the base have another score in another environment ({facts.changed}), "
            f"more than the A/A rate of {rate} % allows (exact binomial p {p})"
        )
    named = (facts.reworded or facts.differing or facts.flipped)[:3]
    return f"{', '.join(said)} ({', '.join(named)} …)"
