"""How many more items the gate asks for: never fewer than one, and as many as would decide."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from harness import gating
from harness.comparison import compare_rows, compare_validity
from harness.gating import TaskComparison, Verdict
from harness.gating.rules import apply_rules
from harness.spec import GatePolicy, Suite, Task, TaskData
from tests.fake_rows import EXACT, flips, rows

fractions = st.floats(0, 1)
margins = st.floats(0.001, 0.99)


def compare_task(name: str, n: int, gains: int, losses: int, cluster_size: int = 1) -> TaskComparison:
    base, new = (rows(arm, task=name, cluster_size=cluster_size) for arm in flips(n, gains, losses))
    return TaskComparison(
        Task(name=name, data=TaskData()), "capability", compare_rows(EXACT, base, new), True, ""
    )


def judge_tasks(
    tasks: list[TaskComparison], policy: GatePolicy, invalid: tuple[int, int, int] | None = None
) -> Verdict:
    validity = None
    if invalid:
        n, *counts = invalid
        arms = (rows([1.0] * n, status=["unparsable"] * k + ["ok"] * (n - k)) for k in counts)
        validity = compare_validity(*arms)
    return apply_rules(tasks, policy, validity=validity, target=None, identical=False)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), fractions, fractions, st.sampled_from([1, 1, 4])),
        min_size=1,
        max_size=3,
    ),
    margins,
    margins,
    st.tuples(st.integers(1, 60), fractions, fractions),
)
def test_what_is_asked_for_is_at_least_one_item_and_is_said(tasks, macro, each, shares):
    compared = []
    for at, (n, lost, gained, size) in enumerate(tasks):
        losses = round(n * lost)
        compared.append(compare_task(f"task{at}", n, round((n - losses) * gained), losses, size))
    n, old, new = shares
    policy = GatePolicy(macro=macro, each=each, validity=macro, critical=("task0",))
    found = judge_tasks(compared, policy, (n, round(n * old), round(n * new)))
    for rule in found.rules:
        needed = rule.numbers.get("items_needed")
        assert needed is None or (rule.outcome == "inconclusive" and needed >= 1)
        for said in re.findall(r"some (\S+) more", rule.sentence):
            assert int(said.replace(",", "")) >= 1
    assert found.items_needed is None or found.items_needed >= 1


@settings(max_examples=50)  # each counts up to 20,000 items
@given(st.integers(20, 300), fractions, st.floats(0, 1.1), st.floats(0.3, 0.95))
def test_with_the_items_asked_for_the_margin_is_settled_if_the_assumption_holds(n, lost, gained, low):
    # Of four on, six flips or more are expected below: fewer, rounded to whole items, are another share.
    losses = 4 + round((n - 4) * lost / 4)
    gains = round(losses * gained)
    found = compare_task("task", n, gains, losses)
    # Between the lower bound and the delta, so that the items at hand decide nothing.
    margin = -(low * found.comparison.lower + (1 - low) * min(found.comparison.delta, 0))
    policy = GatePolicy(macro=margin, each=0.99)
    rule = judge_tasks([found], policy).rules[0]
    needed = rule.numbers["items_needed"]
    grown = n + needed
    flipped = ((gains + losses + 1) / (n + 2)) * grown  # what `find_planning_se` takes to be seen
    truth = 0.0 if "nothing is lost" in rule.sentence else (gains - losses) / n * grown
    more = compare_task("task", grown, round((flipped + truth) / 2), round((flipped - truth) / 2))
    assert judge_tasks([more], policy).rules[0].outcome != "inconclusive"


def test_a_bound_that_is_wider_than_the_spread_does_not_ask_for_one_item_more():
    """Four clusters of two, nothing lost: planned from the spread alone, the eight items would have done."""
    rule = judge_tasks(
        [compare_task("task", 8, 0, 0, cluster_size=2)], GatePolicy(macro=0.4, each=0.99)
    ).rules[0]
    assert rule.outcome == "inconclusive"
    assert rule.numbers["items_needed"] == 11


@given(margins, margins, st.floats(1e-300, 0.49), st.integers(1, 2000))
def test_any_margin_that_may_be_written_can_be_warned_of(macro, each, critical, n):
    suites = [Suite(name="general", role="capability", tasks=(Task(name="a", data=TaskData()),))]
    policy = GatePolicy(macro=macro, each=each, critical=("a",), critical_margin=critical)
    assert all("take" in said for said in gating.power_warnings(suites, {"a": n}, policy))


def test_a_margin_next_to_nothing_is_said_to_take_more_than_any_number_of_items():
    policy = GatePolicy(macro=1e-300, each=1e-300)
    suites = [Suite(name="general", role="capability", tasks=(Task(name="a", data=TaskData()),))]
    assert all("∞ items" in said for said in gating.power_warnings(suites, {"a": 9}, policy))
    rule = judge_tasks([compare_task("a", 9, 1, 1)], policy).rules[0]
    assert "no number of items would settle a margin so small" in rule.sentence
    assert "items_needed" not in rule.numbers
