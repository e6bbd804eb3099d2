"""Family of candidates: the fine-tunes that an experiment names, corrected for multiple testing together.

Invariant: the members are fixed when the experiment is resolved, before a test item is read: one per recipe
with all its seeds, and one per grid, represented by the recipe that validation chooses. The decision ships
only what is shown among them (Holm); the gate's verdict on a single run is not corrected.
Source: Holm 1979; `stats.holm`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from harness import plugins, stats
from harness.decision.results import CandidateFacts, FamilyRank, best, is_fine_tuned, list_within_budgets
from harness.spec import Experiment


@dataclass(frozen=True, slots=True)
class Family:
    """The member to which each fine-tune of an experiment belongs, and the chance of any false pass.

    A grid's candidates are one member; so is a sweep, which yields one candidate.
    """

    members: dict[str, str] = field(default_factory=dict)
    alpha: float = 0.05

    @property
    def size(self) -> int:
        """The number of members."""
        return len(set(self.members.values()))


class FamilyMember(NamedTuple):
    """One member on the test items: the recipe that represents it, its p, and Holm's p over the family.

    `p` is the largest over the recipe's seeds and over the rules to be shown; None if one of them is not
    shown even alone, or a seed failed. `level` is the level that Holm leaves it.
    """

    name: str
    candidate: str
    p: float | None
    p_adjusted: float
    level: float


def family_of(experiment: Experiment) -> Family:
    """List the members of an experiment, whether or not they are selected, trained or finished."""
    recipes = experiment.candidates
    sources = {name: recipes.get(recipe.weights_of or "", recipe) for name, recipe in recipes.items()}
    gated = {name: source for name, source in sources.items() if recipes[name].role == "candidate"}
    tuned = [name for name, source in gated.items() if plugins.method(source.method).tunes]
    return Family({name: name.partition("[")[0] for name in tuned}, experiment.gate.alpha)


def family_members(facts: Sequence[CandidateFacts], family: Family) -> tuple[FamilyMember, ...]:
    """Correct the p of every member by Holm; an unmeasured or failed one is not shown."""
    chosen = {name: _representative(facts, family, name) for name in dict.fromkeys(family.members.values())}
    ps = [_largest_p(facts, run) for run in chosen.values()]
    known = [1.0 if p is None else p for p in ps]
    adjusted, levels = stats.holm(known), _levels(known, family.alpha)
    return tuple(
        FamilyMember(name, run.name if run else "", p, corrected, level)
        for (name, run), p, corrected, level in zip(chosen.items(), ps, adjusted, levels, strict=True)
    )


def _representative(facts: Sequence[CandidateFacts], family: Family, member: str) -> CandidateFacts | None:
    """Return the recipe of a member that is best on validation."""
    own = [f for f in list_within_budgets(facts) if family.members.get(f.name) == member and is_fine_tuned(f)]
    return best(own)


def _largest_p(facts: Sequence[CandidateFacts], run: CandidateFacts | None) -> float | None:
    seeds = [f for f in facts if run and f.name == run.name]
    ps = [f.verdict.p if f.verdict else None for f in seeds]
    known = [p for p in ps if p is not None]
    return max(known) if known and len(known) == len(ps) else None


def _levels(ps: Sequence[float], alpha: float) -> list[float]:
    """Return the level at which Holm tests each p: α/k for the smallest, up to the first not shown."""
    levels, n_shown = [0.0] * len(ps), 0
    for i in sorted(range(len(ps)), key=ps.__getitem__):
        levels[i] = alpha / (len(ps) - n_shown)
        n_shown += ps[i] < levels[i]
    return levels


def place_in_family(facts: Sequence[CandidateFacts], family: Family) -> list[CandidateFacts]:
    """Set the `standing` of every fine-tune in a family with more than one candidate."""
    if len(family.members) < 2:
        return list(facts)
    members = {member.name: member for member in family_members(facts, family)}
    placed = []
    for f in facts:
        member = members.get(family.members.get(f.name, ""))
        placed.append(replace(f, standing=_rank(f, member, family)) if member and is_fine_tuned(f) else f)
    return placed


def _rank(f: CandidateFacts, m: FamilyMember, family: Family) -> FamilyRank:
    stands_for = f.name == m.candidate
    return FamilyRank(
        n=family.size,
        alpha=family.alpha,
        p=m.p if stands_for else None,
        p_adjusted=m.p_adjusted if stands_for else 1.0,
        level=m.level,
        chosen=m.candidate,
    )
