"""The control arms that a run's rows were computed beside, read from the store.

Invariant: the A/A rate is that of measurements before the one judged, of the same precision, in
which nothing had drifted; before there are any, what was measured for this precision once.
"""

from collections.abc import Callable, Mapping
from functools import cache

from harness import gating, provenance, store
from harness.gating import ControlFacts
from harness.records import Control, Run
from harness.store import Store

Described = Callable[[str], Mapping[str, str]]


def controls_of(
    at: Store, run: Run, judged: Callable[[], Mapping[str, ControlFacts]] | None = None
) -> list[ControlFacts]:
    """List what was found beside the blocks of a run, each measurement once.

    `judged` gives all measurements of the store where somebody keeps them for several runs.
    """
    named = {
        origin.control
        for rows_digest in set(run.rows.values())
        for origin in store.origins(at, rows_digest).values()
        if origin.control
    }
    known = (judged() if judged else judged_controls(at)) if named else {}
    return [known[one] for one in sorted(named) if one in known]


def judged_controls(at: Store) -> dict[str, ControlFacts]:
    """Judge all measurements in their order, each with the A/A rate of those before it."""
    rates = gating.AA_FLIPS | store.noise_rates(at)
    found: dict[str, ControlFacts] = {}
    environment = cache(lambda key: store.read_environment(at, key))
    for control in store.controls(at):
        flips, n = rates.get(control.precision, gating.AA_FLIPS["bf16"])
        facts = facts_of_control(control, flips, n, environment(control.environment), environment)
        found[control.id] = facts
        if not gating.has_drifted(facts):
            rates[control.precision] = (flips + len(facts.flipped), n + facts.n_other)
    return found


def facts_of_control(
    control: Control, aa_flips: float, aa_n: float, now: Mapping[str, str], then_of: Described
) -> ControlFacts:
    """Put the blocks of a measurement together, those of the same environment apart from the others."""
    same = [b for b in control.blocks if b.environment == control.environment]
    other = [b for b in control.blocks if b.environment != control.environment]
    changed = [provenance.changes(then_of(key), now) for key in dict.fromkeys(b.environment for b in other)]
    return ControlFacts(
        id=control.id,
        n_blocks=len(control.blocks),
        n_same=sum(b.n for b in same),
        n_other=sum(b.n for b in other),
        reworded=tuple(item for b in control.blocks for item in b.reworded),
        differing=tuple(item for b in same for item in b.differing),
        flipped=tuple(item for b in other for item in b.flipped),
        aa_flips=aa_flips,
        aa_n=aa_n,
        changed="; ".join(dict.fromkeys(changed)),
    )
