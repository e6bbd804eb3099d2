"""Margins of a proposal's gate: the smallest that the items of its suites can show.

Invariant: with these margins nothing is warned of before a run; a model that lost nothing passes the mean in
90 % of cases as one of the fine-tunes, so that the other rules, which stop it in 5 % each, leave it 80 %.
"""

from functools import cache
from typing import NamedTuple

from harness import gating
from harness.data import load_task
from harness.decision import family_of
from harness.spec import Experiment, GatePolicy, Task

_PASSES = 0.9
_MEANS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
_TASKS = (0.05, 0.1, 0.15, 0.2, 0.3)


@cache
def _count_items(task: str) -> int:
    return len(load_task(Task.model_validate_json(task), 0).test)


class ProposedGate(NamedTuple):
    """A policy, and what it lets pass in a line."""

    policy: GatePolicy
    said: str


def propose_gate(experiment: Experiment) -> ProposedGate:
    """Choose the margins of the mean, of each task and of each task of a suite of role safety."""
    gate, members = GatePolicy(), max(family_of(experiment).size, 1)
    n = {task.name: _count_items(task.model_dump_json()) for s in experiment.suites for task in s.tasks}
    capability = [suite for suite in experiment.suites if suite.role == "capability"]
    chance: float | None = None
    for macro in _MEANS:
        gate = gate.model_copy(update={"macro": macro})
        chance = gating.chance_of_an_equal_model(capability, n, gate, members)
        if chance is None or chance >= _PASSES:
            break
    for key, suites in (("each", capability), ("safety", experiment.suites)):
        for margin in _TASKS:
            gate = gate.model_copy(update={key: margin})
            if not gating.power_warnings(suites, n, gate, n_members=members):
                break
    points = [f"{100 * float(margin or 0):g}" for margin in (gate.macro, gate.each, gate.safety)]
    if chance is None:
        return ProposedGate(gate, "margins: nothing is judged of forgetting: no suite has a task that counts")
    among = f", as one of {members}," if members > 1 else ""
    passes = (
        f"; one that lost nothing{among} passes the average in {100 * chance:.0f} % of cases, if the"
        " base is above chance on all of their tasks (others do not count)"
    )
    lost = (
        "margins: a fine-tune may lose {} points on average over the suites, {} on one task and {} on one of"
    )
    return ProposedGate(
        gate, f"{lost.format(*points)} safety, the smallest that their items can show{passes}"
    )
