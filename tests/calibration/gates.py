"""Cells of the gate: each rule and the whole policy, with a true loss of the margin or an equal model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from harness.analysis.admission import Measurement
from harness.analysis.comparison import compare_rows, estimate
from harness.analysis.control_arm_drift import ControlFacts, aa_rate, has_drifted
from harness.analysis.gate_verdict import judge
from harness.analysis.verdict import TargetFacts, Verdict
from harness.records import SampleResult
from harness.spec import GatePolicy, TargetPolicy, Task
from tests.calibration.cell import Cell, Claim, claim_at_most
from tests.calibration.draws import (
    Groups,
    Law,
    Pair,
    Scores,
    draw,
    draw_clusters,
    lognormal,
    make_binary_law,
    make_equal_clusters,
    make_graded_law,
    make_single_items,
    make_skewed_law,
    pair,
)
from tests.calibration.estimates import invert_direction

POLICY = GatePolicy()


class SuiteTask(NamedTuple):
    """One task of a simulated suite; its first `n_shared` documents are in all tasks, with the same answers.

    These follow the `shared_law` if there is one. With `passages` its clusters are in all tasks, and a
    cluster's effects are the same in each.
    """

    law: Law
    groups: Groups
    chance: float = 0.0
    kind: str = "choice"
    n_shared: int = 0
    shared_law: Law | None = None
    passages: bool = False

    def documents(self, task: str) -> list[str]:
        """Return the digests of its documents."""
        n = len(self.groups.codes)
        return [f"shared-{i:05d}" if i < self.n_shared else f"{task}-{i:05d}" for i in range(n)]


class Suite:
    """A suite whose rows are made once; `verdict` draws their scores anew and runs the gate."""

    def __init__(self, tasks: Sequence[SuiteTask], policy: GatePolicy = POLICY) -> None:
        self.tasks, self.policy = tasks, policy
        self.pairs = [
            pair(t.law, t.groups, f"t{i}", t.documents(f"t{i}"), "passage" if t.passages else "")
            for i, t in enumerate(tasks)
        ]
        self.measured = [_measurement(i, t, self.pairs[i]) for i, t in enumerate(tasks)]

    def cut(self, sizes: Sequence[int]) -> "Suite":
        """Return the suite of each task's first `sizes` items, as single items; the rows are the same."""
        copy = object.__new__(Suite)
        copy.policy = self.policy
        copy.tasks = [t._replace(groups=make_single_items(n)) for t, n in zip(self.tasks, sizes, strict=True)]
        copy.pairs = [Pair(p.law, p.base[:n], p.new[:n]) for p, n in zip(self.pairs, sizes, strict=True)]
        copy.measured = [_measurement(i, t, copy.pairs[i]) for i, t in enumerate(copy.tasks)]
        return copy

    def score(self, rng: np.random.Generator, laws: Sequence[Law] | None = None) -> None:
        """Draw the scores of every task, by other laws if given."""
        shared: tuple[Scores, ...] = ()
        fate: tuple[Scores, Scores] | None = None
        for i, (t, arms) in enumerate(zip(self.tasks, self.pairs, strict=True)):
            law = laws[i] if laws else t.law
            fate = (fate or draw_clusters(law, t.groups, rng)) if t.passages else None
            scores = draw(law, t.groups, rng, fate)
            if t.shared_law and not shared:
                shared = t.shared_law.draw(rng, t.n_shared)
            if t.n_shared and shared:
                k = t.n_shared
                scores = tuple(np.r_[head[:k], tail[k:]] for head, tail in zip(shared, scores, strict=True))
            shared = shared or scores
            arms.score(*scores)

    def verdict(self, rng: np.random.Generator, laws: Sequence[Law] | None = None) -> Verdict:
        """Draw the suite and judge it."""
        self.score(rng, laws)
        return judge(self.measured, self.policy, target=None, identical=False).verdict


def _measurement(i: int, t: SuiteTask, arms: Pair) -> Measurement:
    metric = t.law.metric
    fields: dict[str, Any] = {"name": f"t{i}", "data": {}, "kind": t.kind, "chance": t.chance}
    task = Task(**fields, metrics=(metric.name,))
    return Measurement(task, "capability", "", {metric.name: metric}, arms.base, arms.new)


def outcome(verdict: Verdict, rule: str) -> str:
    """Return the outcome of one rule."""
    return next(r.outcome for r in verdict.rules if r.name == rule)


def make_gate_cell(
    world: str, tasks: Sequence[SuiteTask], claims: Mapping[str, Claim], **options: Any
) -> Cell:
    """Measure how often rules give an outcome; claims are named `rule outcome`, as in `macro pass`."""
    policy = options.pop("policy", POLICY)

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(tasks, policy)
        while True:
            verdict = suite.verdict(rng)
            yield {name: _has_outcome(verdict, name) for name in claims}

    return Cell("gate", world, simulate, claims, **options)


def _has_outcome(verdict: Verdict, name: str) -> bool:
    rule, expected = name.split()
    actual = verdict.outcome if rule == "verdict" else outcome(verdict, rule)
    return actual != "pass" if expected == "not-passed" else actual == expected


_MACRO = "macro passes a true loss of its margin (α = 5 %)"
_EQUAL = {
    "verdict fail": claim_at_most(0.05, "an equal model fails"),
    "each not-passed": claim_at_most(0.05, "each does not pass an equal model"),
}


def macro_at_margin(world: str, tasks: Sequence[SuiteTask], limit: float = 0.055, **options: Any) -> Cell:
    """Measure how often the macro passes though every task has lost its margin."""
    return make_gate_cell(world, tasks, {"macro pass": claim_at_most(limit, _MACRO)}, **options)


def repeat_task(n_tasks: int, law: Law, groups: Groups, **fields: Any) -> list[SuiteTask]:
    """Return `n_tasks` tasks of one kind."""
    return [SuiteTask(law, groups, **fields)] * n_tasks


def make_critical_cell(world: str, law: Law, groups: Groups, wrong_outcome: str, says: str) -> Cell:
    """Measure how often a critical task's losses are judged wrongly."""
    policy = GatePolicy(critical=("t0",))
    claims = {f"critical {wrong_outcome}": claim_at_most(0.055, says)}
    return make_gate_cell(world, repeat_task(1, law, groups), claims, policy=policy)


def make_losing_law(rate: float, base: float = 0.8) -> Law:
    """Return a law that loses this share of the items that the base passed, and gains as many points."""
    lost = rate * base
    return make_binary_law(delta=0.0, disagreement=2 * lost, base=base)


def make_validity_cell(rise: float, wrong_outcome: str, says: str, n: int = 300) -> Cell:
    """Measure how often the rule on invalid answers errs at a true rise."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(repeat_task(2, make_binary_law(), make_single_items(n // 2), kind="generate"))
        invalid = [
            [(m.base, _mark_unparsable(m.base)), (m.new, _mark_unparsable(m.new))] for m in suite.measured
        ]
        while True:
            suite.score(rng)
            measured = [
                m._replace(
                    base=_mix_rows(*base, rng.random(n // 2) < 0.05),
                    new=_mix_rows(*new, rng.random(n // 2) < 0.05 + rise),
                )
                for m, (base, new) in zip(suite.measured, invalid, strict=True)
            ]
            verdict = judge(measured, POLICY, target=None, identical=False).verdict
            yield {"validity": outcome(verdict, "validity") == wrong_outcome}

    claims = {"validity": claim_at_most(0.055, says)}
    return Cell("gate", f"invalid answers rise by {100 * rise:g} points, {n} items", simulate, claims)


def _mark_unparsable(rows: Sequence[SampleResult]) -> list[SampleResult]:
    return [replace(row, status="unparsable") for row in rows]


def _mix_rows(rows, changed, chosen: np.ndarray) -> list[SampleResult]:
    return [new if picked else row for row, new, picked in zip(rows, changed, chosen, strict=True)]


def make_target_cell(law: Law, n: int) -> Cell:
    """Measure how often a level and a gain declared exactly at the truth are called reached, or missed."""
    policy = GatePolicy(target=TargetPolicy(min=law.base + law.delta))
    gaining = GatePolicy(target=TargetPolicy(gain=law.delta))

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        arms = pair(law, make_single_items(n))
        while True:
            arms.score(*draw(law, make_single_items(n), rng))
            facts = TargetFacts(estimate(law.metric, arms.new), compare_rows(law.metric, arms.base, arms.new))
            level, gain = (
                outcome(judge([], p, target=facts, identical=False).verdict, "target")
                for p in (policy, gaining)
            )
            yield {
                "level pass": level == "pass",
                "level fail": level == "fail",
                "gain pass": gain == "pass",
                "gain fail": gain == "fail",
            }

    says = ("a level that is just not exceeded is {}", "a gain that is just not exceeded is {}")
    claims = {
        f"{goal} {result}": claim_at_most(0.035, text.format(word))
        for goal, text in zip(("level", "gain"), says, strict=True)
        for result, word in (("pass", "called shown (2.5 %)"), ("fail", "called missed (2.5 %)"))
    }
    return Cell("gate", f"target, {law.name}, {n} items", simulate, claims)


def make_control_cell(n: int = 320) -> Cell:
    """Measure how often a harness without drift is said to have drifted, in another environment of bf16."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        while True:
            flipped = tuple(map(str, range(rng.binomial(n, aa_rate("bf16")))))
            yield {"drift": has_drifted(ControlFacts("c", 2, 0, n, (), (), flipped, 22.0, 1000.0))}

    claims = {"drift": claim_at_most(0.01, "harness-drift though nothing moved (1 %)")}
    return Cell("gate", f"control arm, {n} items asked again in another environment", simulate, claims)


LOST = -0.02
_LARGE_AND_SMALL = [
    SuiteTask(make_binary_law(LOST), make_single_items(1200)),
    *repeat_task(4, make_binary_law(LOST), make_single_items(50)),
]

CELLS = (
    macro_at_margin("1 task of 50 binary items, all lost 2 points",
                    repeat_task(1, make_binary_law(LOST, 0.1), make_single_items(50)), 0.06),
    macro_at_margin("8 tasks of 100 binary items, all lost 2 points",
                    repeat_task(8, make_binary_law(LOST, 0.1), make_single_items(100)), in_tests=300),
    macro_at_margin("1 task of 1,200 and 4 of 50 binary items, all lost 2 points", _LARGE_AND_SMALL),
    macro_at_margin("4 tasks of 100 binary items in 20 clusters of 5, all lost 2 points",
                    repeat_task(4, make_binary_law(LOST), make_equal_clusters(20, 5)), 0.065),
    macro_at_margin("3 tasks of binary items in clusters of log-normal sizes, all lost 2 points",
                    repeat_task(3, make_binary_law(LOST), lognormal()), 0.075),
    macro_at_margin("4 tasks of 100 graded items, all lost 2 points",
                    repeat_task(4, make_graded_law(LOST), make_single_items(100))),
    macro_at_margin("4 tasks of 100 graded items of which few fall far, all lost 2 points",
                    repeat_task(4, make_skewed_law(LOST), make_single_items(100)), 0.075),
    macro_at_margin("2 tasks that ask the same 200 documents, both lost 2 points",
                    repeat_task(2, make_binary_law(LOST), make_single_items(200), n_shared=200), in_tests=300),
    macro_at_margin("4 tasks that share 100 of 150 documents, all lost 2 points",
                    repeat_task(4, make_binary_law(LOST), make_single_items(150), n_shared=100)),
    macro_at_margin("8 tasks that ask the same 100 documents, all lost 2 points",
                    repeat_task(8, make_binary_law(LOST), make_single_items(100), n_shared=100)),
    macro_at_margin("4 tasks that share 60 of 200 documents, on which the answers change, all lost 2 points",
                    [t._replace(shared_law=make_binary_law(LOST / 0.3, 0.4))
                     for t in repeat_task(4, make_binary_law(0.0, 0.02), make_single_items(200), n_shared=60)]),
    macro_at_margin("4 tasks of 5 questions on each of the same 40 passages, all lost 2 points",
                    repeat_task(4, make_binary_law(LOST), make_equal_clusters(40, 5), passages=True), 0.065),
    macro_at_margin("16 tasks of 60 binary items near chance, of which 30 % differ, all lost 2 points",
                    repeat_task(16, make_binary_law(LOST, 0.3, 0.30), make_single_items(60), chance=0.25)),
    make_gate_cell("16 tasks of 60 binary items near chance, of which 30 % differ, equal model",
                   repeat_task(16, make_binary_law(0.0, 0.3, 0.30), make_single_items(60), chance=0.25),
                   {"macro fail": claim_at_most(0.05, "macro fails an equal model (α = 5 %)")}, in_tests=300),
    make_gate_cell("57 tasks of 100 binary items near chance, of which 30 % differ, equal model",
                   repeat_task(57, make_binary_law(0.0, 0.3, 0.30), make_single_items(100), chance=0.25),
                   {"verdict fail": claim_at_most(0.05, "an equal model fails")}),
    make_gate_cell("8 tasks of 100 binary items, equal model",
                   repeat_task(8, make_binary_law(), make_single_items(100)), _EQUAL),
    make_gate_cell("4 tasks of 100 binary items in 20 clusters of 5, equal model",
                   repeat_task(4, make_binary_law(), make_equal_clusters(20, 5)), _EQUAL),
    make_gate_cell("4 tasks of 100 graded items of which few fall far, equal model",
                   repeat_task(4, make_skewed_law(), make_single_items(100)), _EQUAL),
    make_gate_cell("8 tasks of 100 binary items, all lost 5 points",
                   repeat_task(8, make_binary_law(-0.05), make_single_items(100)),
                   {"each fail": claim_at_most(0.055, "each vetoes though no task lost more than its margin (5 %)")}),
    make_gate_cell("4 tasks of 300 binary items, all lost 3 points",
                   repeat_task(4, make_binary_law(-0.03), make_single_items(300)),
                   {"verdict pass": claim_at_most(0.05, "a loss beyond the margin passes the whole policy")}),
    make_critical_cell("critical task, 5 % of 160 passed items lost", make_losing_law(0.05), make_single_items(200), "fail",
                       "critical fails at its margin (α = 5 %)"),
    make_critical_cell("critical task, 10 % of 160 passed items lost", make_losing_law(0.10), make_single_items(200),
                       "pass", "critical passes at twice its margin (α = 5 %)"),
    make_critical_cell("critical task where lower is better, 10 % of 160 passed items lost",
                       invert_direction(make_binary_law(disagreement=0.16, base=0.2)), make_single_items(200), "pass",
                       "critical passes at twice its margin (α = 5 %)"),
    make_critical_cell("critical task in 40 clusters of 5, 10 % of the passed items lost", make_losing_law(0.10),
                       make_equal_clusters(40, 5), "pass", "critical passes at twice its margin (α = 5 %)"),
    make_validity_cell(0.02, "pass", "validity passes a true rise of its margin (α = 5 %)"),
    make_validity_cell(0.0, "fail", "validity fails an equal model"),
    make_target_cell(make_binary_law(0.05), 200),
    make_target_cell(make_graded_law(0.05), 100),
    make_control_cell(),
)  # fmt: skip
