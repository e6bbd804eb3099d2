"""Cells of repeated analyses: a rescue's confirmation, and the interim analyses of fewer items."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from harness.analysis.admission import HALVES, Measurement, cut_tasks, cut_to_half
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.gate_verdict import ComparedArms, compare_arms, judge
from harness.analysis.seeds import Family, place_in_family
from harness.evaluation import sampling
from harness.experiment.interim_analyses import _is_settled, is_settled
from harness.records import SampleResult
from harness.spec import GatePolicy, Task
from tests.calibration.cell import Cell, Claim, claim_at_least, claim_at_most
from tests.calibration.decisions import make_decision, make_fine_tune
from tests.calibration.draws import (
    EXACT,
    Groups,
    Law,
    Pair,
    draw,
    lognormal,
    make_binary_law,
    make_equal_clusters,
    make_graded_law,
    make_single_items,
    make_skewed_law,
    pair,
)
from tests.calibration.gates import LOST, POLICY, Suite, outcome, repeat_task


def make_rescue_cell(law: Law, groups: Groups, n_trials: int = 3, **options: Any) -> Cell:
    """Choose the trial that keeps most on the search half, and judge it once on the other half."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(repeat_task(2, law, groups))
        cut = cut_tasks(suite.measured, 0)
        parts = [cut_to_half(suite.measured, cut, half) for half in HALVES]
        while True:
            trials = []
            for _ in range(n_trials):
                suite.score(rng)
                search, confirm = (judge(p, POLICY, target=None, identical=False).verdict for p in parts)
                trials.append((search.macro.score if search.macro else -1.0, outcome(confirm, "macro")))
            yield {"confirmed": max(trials)[1] == "pass"}

    claims = {
        "confirmed": claim_at_most(0.06, "the best of 3 trials is confirmed though it lost the margin (5 %)")
    }
    world = f"2 tasks of {groups.name}, {law.name}, every trial truly lost 2 points"
    return Cell("rescue", world, simulate, claims, **options)


WIDE = GatePolicy(macro=0.05)


class LargeTask:
    """A task with the base's margins, which determine each item's chance to flip; the base has 60 % right."""

    def __init__(self, name: str, n: int, delta: float) -> None:
        self.name, self.metric, self.delta, self.n = name, EXACT, delta, n
        self.pair = pair(make_binary_law(), make_single_items(n), name)

    def draw(self, rng: np.random.Generator) -> Pair:
        """Draw the rows of both arms, the base's with their margins."""
        far, right = rng.exponential(1.0, self.n), rng.random(self.n) < 0.6
        closeness = 0.35 * np.exp(-far)  # 17.5 % on average
        flips = rng.random(self.n) < closeness * np.where(right, 1 - self.delta / 0.175 / 0.6, 1.5)
        margins = np.where(right, far, -far)
        self.pair.score(right.astype(float), np.where(flips, ~right, right).astype(float))
        for row, margin in zip(self.pair.base, margins.tolist(), strict=True):
            put(row, "margin", margin)
        return self.pair


class PlainTask:
    """A task without margins, like generated answers: scores by a law, in clusters."""

    def __init__(self, name: str, law: Law, groups: Groups) -> None:
        self.name, self.metric = name, law.metric
        self.law, self.groups, self.pair = law, groups, pair(law, groups, name)

    def draw(self, rng: np.random.Generator) -> Pair:
        """Draw the rows of both arms."""
        return self.pair.score(*draw(self.law, self.groups, rng))


Drawn = LargeTask | PlainTask


def make_looks_cell(
    world: str, tasks: Sequence[Drawn], claims: Mapping[str, Claim], policy: GatePolicy = WIDE, **options: Any
) -> Cell:
    """Judge at every interim analysis until one settles the verdict, as `harness compare --sequential` does.

    Claims name outcomes of the macro, and `first fail` a failure at the first analysis.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        while True:
            end, look = settle_verdict(tasks, policy, rng)
            yield {name: end == name or (end, look, name) == ("fail", 0, "first fail") for name in claims}

    return Cell("fewer items", world, simulate, claims, **options)


def settle_verdict(tasks: Sequence[Drawn], policy: GatePolicy, rng: np.random.Generator) -> tuple[str, int]:
    """Draw tasks; return the macro's outcome at the analysis that settles the verdict, and that analysis."""
    arms, ending = {t.name: t.draw(rng) for t in tasks}, ("", 0)
    for look, (at_look, chosen) in enumerate(looks(tasks, arms, policy, rng)):
        measured = [_make_measurement(t, arms[t.name], chosen[t.name]) for t in tasks]
        verdict = judge(measured, at_look, target=None, identical=False).verdict
        ending = outcome(verdict, "macro"), look
        if _is_settled(verdict):
            break
    return ending


Weights = Mapping[str, float]


def looks(
    tasks: Sequence[Drawn], arms: Mapping[str, Pair], policy: GatePolicy, rng: np.random.Generator
) -> Iterator[tuple[GatePolicy, dict[str, Weights]]]:
    """Plan by the base's rows; yield each analysis's policy, and the weight of every asked item."""
    pools = {t.name: pool for t in tasks if (pool := sampling.pool_of(arms[t.name].base, t.metric))}
    plan = sampling.plan(pools, [], float(policy.macro), policy.alpha)
    orders = {
        name: sampling.order_items(pool, plan.drawn[name], int(rng.integers(2**31)))
        for name, pool in pools.items()
    }
    for look, alpha in enumerate(plan.alphas):
        chosen = {
            name: sampling.weights(pool, plan.drawn[name][look], orders[name]) for name, pool in pools.items()
        }
        yield policy.model_copy(update={"alpha": alpha}), chosen


def put(row: SampleResult, field: str, value: float) -> None:
    """Set a field of a row that is made once and judged many times: copies took a third of the study."""
    object.__setattr__(row, field, value)


def _make_measurement(t: Drawn, task_pair: Pair, weights: Weights) -> Measurement:
    arms = [[row for row in rows if row.example_id in weights] for rows in (task_pair.base, task_pair.new)]
    for row in (*arms[0], *arms[1]):
        put(row, "weight", weights[row.example_id])
    task = Task(name=t.name, data={}, kind="choice", metrics=(t.metric.name,))
    return Measurement(task, "capability", "", {t.metric.name: t.metric}, *arms)


class FineTune(NamedTuple):
    """A fine-tune at the analysis that settled it, or at the last: its facts and its judgement."""

    facts: CandidateFacts
    measured: Sequence[Measurement] = ()
    compared: ComparedArms | None = None
    settled: bool = False


def make_several_looks_cell(n_candidates: int, n_tasks: int, n: int, **options: Any) -> Cell:
    """Judge several fine-tunes at every analysis, alone and as a family, until all are settled, and decide.

    Each has truly lost the margin. One with a settled verdict is asked nothing more and keeps it.
    """
    law = make_binary_law(-WIDE.macro)
    tasks = make_tasks(n_tasks, law, make_single_items(n))

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        gain = make_binary_law(0.1)
        gain_pair, suites = (
            pair(gain, make_single_items(200)),
            [make_tasks(n_tasks, law, make_single_items(n)) for _ in range(n_candidates)],
        )
        while True:
            fact = make_fine_tune("lora", 0, gain_pair.score(*draw(gain, make_single_items(200), rng)))
            yield {"ships": make_decision(*_draw_last_look(tasks, suites, fact, rng)).action == "fine-tune"}

    claims = {"ships": claim_at_most(0.055, "one that lost the margin is shipped, at any look (5 %)")}
    each = f"{n_tasks} tasks of {n} binary items" if n_tasks > 1 else f"1 task of {n} binary items"
    world = f"{n_candidates} candidates by interim analyses, each truly -5 points on {each}"
    return Cell("several candidates", world, simulate, claims, **options)


def _draw_last_look(
    tasks: Sequence[PlainTask],
    suites: Sequence[Sequence[PlainTask]],
    fact: CandidateFacts,
    rng: np.random.Generator,
) -> tuple[list[CandidateFacts], float]:
    """Return the fine-tunes' facts once all are settled or no items are left, and that analysis's level."""
    base = {t.name: t.draw(rng).base for t in tasks}
    arms = [{t.name: _draw_answers(t, base[t.name], rng) for t in arm_tasks} for arm_tasks in suites]
    validation = rng.uniform(0.75, 0.85, len(suites)).tolist()
    fine_tunes = [
        FineTune(replace(fact, name=f"lora-{i}", run_id=f"lora-{i}", validation=v))
        for i, v in enumerate(validation)
    ]
    family = Family({tuned.facts.name: tuned.facts.name for tuned in fine_tunes})
    for policy, chosen in looks(tasks, arms[0], WIDE, rng):
        fine_tunes = [
            tuned if tuned.settled else _judge_candidate(tuned, tasks, arms[i], chosen, policy)
            for i, tuned in enumerate(fine_tunes)
        ]
        placed = place_in_family([tuned.facts for tuned in fine_tunes], replace(family, alpha=policy.alpha))
        fine_tunes = [
            tuned if tuned.settled else _judge_among_all(tuned, f, policy)
            for tuned, f in zip(fine_tunes, placed, strict=True)
        ]
        if all(tuned.settled for tuned in fine_tunes):
            break
    return [tuned.facts for tuned in fine_tunes], policy.alpha


def _draw_answers(t: PlainTask, base: Sequence[SampleResult], rng: np.random.Generator) -> Pair:
    """Draw one more candidate's answers: each item by the law, given the base's score."""
    old = np.array([row.parts[t.metric.name][0] for row in base])
    right, delta, share = t.law.base, t.law.delta, 0.2
    flips = rng.random(len(old)) < np.where(
        old == 1, (share - delta) / 2 / right, (share + delta) / 2 / (1 - right)
    )
    return t.pair.score(old, np.where(flips, 1 - old, old))


def _judge_candidate(
    tuned: FineTune,
    tasks: Sequence[PlainTask],
    arms: Mapping[str, Pair],
    chosen: Mapping[str, Weights],
    policy: GatePolicy,
) -> FineTune:
    measured = [_make_measurement(t, arms[t.name], chosen[t.name]) for t in tasks]
    compared = compare_arms(measured, policy, identical=False)
    judged = judge(measured, policy, target=None, identical=False, compared=compared)
    return FineTune(replace(tuned.facts, verdict=judged.verdict, corrected=None), measured, compared)


def _judge_among_all(tuned: FineTune, f: CandidateFacts, policy: GatePolicy) -> FineTune:
    """Judge a fine-tune at its level in the family, and tell whether more items could change the verdict."""
    if f.standing is not None and f.standing.level != f.standing.alpha:
        level, compared = f.standing.level, tuned.compared
        judged = judge(tuned.measured, policy, target=None, identical=False, compared=compared, level=level)
        f = replace(f, corrected=judged.verdict)
    return tuned._replace(facts=f, settled=is_settled([f]))


def make_tasks(n_tasks: int, law: Law, groups: Groups) -> list[PlainTask]:
    """Return `n_tasks` tasks of one kind."""
    return [PlainTask(f"t{i}", law, groups) for i in range(n_tasks)]


def claim_at_margin(limit: float = 0.055) -> dict[str, Claim]:
    """Claim that a loss of the margin rarely passes, and is rarely called larger than it is."""
    return {
        "pass": claim_at_most(limit, "macro passes a true loss of its margin at any look (α = 5 %)"),
        "fail": claim_at_most(
            limit, "macro fails a true loss of its margin, and no more, at any look (α = 5 %)"
        ),
    }


FELL = -0.20
COLLAPSED = {"first fail": claim_at_least(0.9, "a loss of 20 points is found at the first look")}

CELLS = (
    make_several_looks_cell(3, 1, 300, in_tests=40),
    make_several_looks_cell(8, 1, 150),
    make_rescue_cell(make_binary_law(LOST, 0.1), make_single_items(150)),
    make_rescue_cell(make_binary_law(LOST), make_equal_clusters(30, 5)),
    make_rescue_cell(make_graded_law(LOST), make_single_items(100), in_tests=150),
    make_looks_cell("1 task of 640 binary items with margins, lost its margin of 5 points",
                    [LargeTask("t0", 640, -WIDE.macro)], claim_at_margin(), in_tests=60),
    make_looks_cell("1 task of 1,600 binary items without margins, lost its margin of 5 points",
                    make_tasks(1, make_binary_law(-WIDE.macro), make_single_items(1600)), claim_at_margin()),
    make_looks_cell("4 tasks of 150 binary items, all lost their margin of 5 points",
                    make_tasks(4, make_binary_law(-WIDE.macro), make_single_items(150)), claim_at_margin(), in_tests=60),
    make_looks_cell("4 tasks of 300 binary items in 60 clusters of 5, all lost their margin of 5 points",
                    make_tasks(4, make_binary_law(-WIDE.macro), make_equal_clusters(60, 5)), claim_at_margin(0.065)),
    make_looks_cell("3 tasks of binary items in clusters of log-normal sizes, all lost their margin of 5 points",
                    make_tasks(3, make_binary_law(-WIDE.macro), lognormal()), claim_at_margin(0.075)),
    make_looks_cell("4 tasks of 150 graded items, all lost their margin of 5 points",
                    make_tasks(4, make_graded_law(-WIDE.macro), make_single_items(150)), claim_at_margin()),
    make_looks_cell("4 tasks of 150 graded items of which few fall far, all lost their margin of 5 points",
                    make_tasks(4, make_skewed_law(-WIDE.macro), make_single_items(150)), claim_at_margin(0.075)),
    make_looks_cell("4 tasks of 300 binary items in 60 clusters of 5 and 4 of 150, equal model",
                    [*make_tasks(4, make_binary_law(), make_equal_clusters(60, 5)),
                     *(PlainTask(f"g{i}", make_binary_law(), make_single_items(150)) for i in range(4))],
                    {"fail": claim_at_most(0.05, "macro fails an equal model at any look (α = 5 %)")}, POLICY),
    make_looks_cell("4 tasks of 300 binary items in 60 clusters of 5 and 4 of 150, all lost 20 points",
                    [*make_tasks(4, make_binary_law(FELL, 0.3), make_equal_clusters(60, 5)),
                     *(PlainTask(f"g{i}", make_binary_law(FELL, 0.3), make_single_items(150)) for i in range(4))],
                    COLLAPSED, POLICY, in_tests=30),
)  # fmt: skip
