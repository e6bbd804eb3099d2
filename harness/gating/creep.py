"""Creep: the loss against the first base, which non-inferiority to one champion after another does not bound.

Invariant: the candidate is compared with the first base itself, by the macro's own rule and a margin of its
own; losses of earlier champions are never added up. A shown loss vetoes; one that is not ruled out does not,
and whoever promotes is asked.
"""

from harness.gating.verdict import Number, Rule, RuleOutcome, Verdict, is_relative, margin_share
from harness.spec import GatePolicy, Margin

_STEP = "; harness promote asks for a reason"

_KEPT = ("delta", "low", "high", "lower", "n_items", "items_needed", "items_needed_by_task")
_LARGEST = 0.99  # of a margin that is not written: beyond a loss of everything none could be shown


def cumulative_policy(policy: GatePolicy) -> GatePolicy:
    """Return the policy by which the macro against the first base is judged: twice the margin by default."""
    return policy.model_copy(update={"macro": _margin(policy), "mode_collapse": None})


def _margin(policy: GatePolicy) -> Margin:
    if policy.cumulative is not None:
        return policy.cumulative
    own = margin_share(policy.macro)
    twice = max(own, min(2 * own, _LARGEST))
    return f"{100 * twice:g}%" if is_relative(policy.macro) else twice


def cumulative_rule(against_first: Verdict, first_base: str) -> Rule:
    """Judge the macro of a verdict against the first base, made by `cumulative_policy`."""
    macro = next(rule for rule in against_first.rules if rule.name == "macro")
    outcome: RuleOutcome = macro.outcome if macro.outcome in ("pass", "fail") else "skipped"
    said = f"cumulative: against the first base, {macro.sentence}{_STEP if outcome == 'skipped' else ''}"
    kept: dict[str, Number] = {name: macro.numbers[name] for name in _KEPT if name in macro.numbers}
    return Rule(
        "cumulative", outcome, said, {"first_base": first_base, "margin": macro.numbers["margin"], **kept}
    )


def make_unmeasured_rule(why: str, first_base: str) -> Rule:
    """Say that nothing is known of the loss against the first base."""
    said = f"cumulative: nothing to compare with the first base ({why}){_STEP}"
    return Rule("cumulative", "skipped", said, {"first_base": first_base})


def cumulative_of(verdict: Verdict) -> Rule | None:
    """Find the rule against the first base; None where the baseline is the base itself."""
    return next((rule for rule in verdict.rules if rule.name == "cumulative"), None)
