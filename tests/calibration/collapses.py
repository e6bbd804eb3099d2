"""Cells of the rule on mode collapse: the commonest answer's share at its limit, and an equal model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from harness.analysis.answers import compare_commonest_answers
from harness.analysis.gate_rules_on_answers import mode_collapse_rule
from harness.metrics import mean_metric
from harness.records import SampleResult
from harness.spec import GatePolicy
from tests.calibration.cell import Cell, Claim, claim_at_most
from tests.calibration.draws import Groups, make_equal_clusters, make_rows, make_single_items

LIMIT = 0.1
POLICY = GatePolicy(mode_collapse=LIMIT)
_METRIC = mean_metric("score", lambda output, example: None)
Shares = Sequence[float]  # shares of the repeated answers; the others are all distinct


class RepetitionTask(NamedTuple):
    """A task whose new and base answers repeat texts with these shares, and its references with one share."""

    new: Shares
    base: Shares
    groups: Groups
    reference: float | None = None


class _Arm:
    """Rows of one arm, made once for every text that can be an item's answer."""

    def __init__(self, groups: Groups, task: str, references: Sequence[str]) -> None:
        self.groups = groups
        self._made: dict[int, list[SampleResult]] = {}
        self._task, self._references = task, references

    def draw(self, shares: Shares, rng: np.random.Generator) -> list[SampleResult]:
        """Answer every item anew; items of a cluster have the same answer as often as its groups say."""
        codes, n_clusters = self.groups.codes, int(self.groups.codes.max()) + 1
        alike = (rng.random(n_clusters) < self.groups.together)[codes]
        numbers = np.where(alike, rng.random(n_clusters)[codes], rng.random(len(codes)))
        chosen = np.searchsorted(np.cumsum(shares), numbers, side="right").tolist()
        return [self._rows(text, len(shares))[i] for i, text in enumerate(chosen)]

    def _rows(self, text: int, n_shared: int) -> list[SampleResult]:
        if text not in self._made:
            rows = make_rows(_METRIC, self.groups, self._task)
            for i, row in enumerate(rows):
                answer = f"answer {text}" if text < n_shared else f"answer to {i}"
                references = (self._references[i],) if self._references else ()
                changed = {"text": answer, "references": references, "finish_reason": "stop"}
                for field, value in changed.items():
                    object.__setattr__(row, field, value)
            self._made[text] = rows
        return self._made[text]


def _arm(task: str, spec: RepetitionTask) -> _Arm:
    n = len(spec.groups.codes)
    if spec.reference is None:
        return _Arm(spec.groups, task, ())
    n_common = round(spec.reference * n)
    return _Arm(spec.groups, task, ["the common one" if i < n_common else f"right {i}" for i in range(n)])


def make_collapse_cell(world: str, tasks: Sequence[RepetitionTask], claims: Mapping[str, Claim]) -> Cell:
    """Measure how often the rule gives each outcome that names a claim."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        arms = [(_arm(f"t{i}", spec), _arm(f"t{i}", spec)) for i, spec in enumerate(tasks)]
        while True:
            compared = {
                f"t{i}": compare_commonest_answers(old.draw(spec.base, rng), new.draw(spec.new, rng))
                for i, (spec, (old, new)) in enumerate(zip(tasks, arms, strict=True))
            }
            rule = mode_collapse_rule(compared, POLICY, identical=False)
            yield {name: rule is not None and rule.outcome == name for name in claims}

    return Cell("gate", world, simulate, claims)


_PASSES = "a collapse of the limit is passed (α = 5 %)"
_FAILS = "a collapse that does not exceed the limit is failed (α = 5 %)"
_AT_LIMIT = {"pass": claim_at_most(0.055, _PASSES), "fail": claim_at_most(0.055, _FAILS)}

CELLS = (
    make_collapse_cell("mode collapse, 200 answers, the commonest rose from 5 to 15 %",
                       [RepetitionTask((0.15,), (0.05,), make_single_items(200))], _AT_LIMIT),
    make_collapse_cell("mode collapse, 200 answers, two alike in share rose from 5 to 15 %",
                       [RepetitionTask((0.15, 0.15), (0.05,), make_single_items(200))], _AT_LIMIT),
    make_collapse_cell("mode collapse, 200 answers in 40 clusters of 5, the commonest rose from 5 to 15 %",
                       [RepetitionTask((0.15,), (0.05,), make_equal_clusters(40, 5))],
                       {"pass": claim_at_most(0.065, _PASSES), "fail": claim_at_most(0.065, _FAILS)}),
    make_collapse_cell("mode collapse, 200 answers, 15 % where base and references have 5",
                       [RepetitionTask((0.15,), (0.05,), make_single_items(200), reference=0.05)], _AT_LIMIT),
    make_collapse_cell("mode collapse, 4 tasks of 100 answers, the commonest rose from 5 to 15 % on each",
                       [RepetitionTask((0.15,), (0.05,), make_single_items(100))] * 4, _AT_LIMIT),
    make_collapse_cell("mode collapse, 200 answers, four labels in their right shares where the base repeats nothing",
                       [RepetitionTask((0.25,) * 4, (), make_single_items(200), reference=0.25)],
                       {"fail": claim_at_most(0.05, "right labels are called a collapse")}),
)  # fmt: skip
