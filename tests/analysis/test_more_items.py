"""The number of further items that would settle the gate, and the next step that asks available items."""

import re
import shlex
from dataclasses import replace

import pytest
import tiny_experiment
from fake_facts import verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.comparison import compare_rows
from harness.analysis.gate_verdict import apply_rules
from harness.analysis.significance import SpareItems, list_spare_items
from harness.analysis.verdict import Rule, TaskComparison, Verdict, list_items_needed
from harness.config import CommandLine
from harness.report import advise_more_items
from harness.spec import Experiment, GatePolicy, Task, TaskData
from tests.fake_rows import EXACT, flips, rows


def compare_task(name: str, n: int, gains: int, losses: int) -> TaskComparison:
    base, new = (rows(arm, task=name) for arm in flips(n, gains, losses))
    return TaskComparison(
        Task(name=name, data=TaskData()), "capability", compare_rows(EXACT, base, new), True, ""
    )


def judge_tasks(tasks: list[TaskComparison], policy: GatePolicy) -> Verdict:
    return apply_rules(tasks, policy, validity=None, target=None, identical=False)


@pytest.mark.e2e
@settings(max_examples=8)  # each counts up to 20,000 items
@given(st.integers(20, 300), st.floats(0, 1), st.floats(0, 1.1), st.floats(0.3, 0.95))
def test_with_the_items_asked_for_the_margin_is_settled_if_the_assumption_holds(n, lost, gained, low):
    # From four losses on, six or more flips are expected below; rounding fewer would change their share.
    losses = 4 + round((n - 4) * lost / 4)
    gains = round(losses * gained)
    task_comparison = compare_task("task", n, gains, losses)
    # Between the lower bound and the delta, so that the items at hand decide nothing.
    margin = -(low * task_comparison.comparison.lower + (1 - low) * min(task_comparison.comparison.delta, 0))
    policy = GatePolicy(macro=margin, each=0.99)
    rule = judge_tasks([task_comparison], policy).rules[0]
    n_needed = rule.numbers["items_needed"]
    n_grown = n + n_needed
    n_flipped = ((gains + losses + 1) / (n + 2)) * n_grown  # the flips that `find_planning_se` expects
    net = 0.0 if "nothing is lost" in rule.sentence else (gains - losses) / n * n_grown
    larger = compare_task("task", n_grown, round((n_flipped + net) / 2), round((n_flipped - net) / 2))
    assert judge_tasks([larger], policy).rules[0].outcome != "inconclusive"


@pytest.mark.parametrize("n", [60, 120, 123, 130])
def test_with_the_items_asked_for_a_task_on_which_nothing_changes_is_settled(n):
    rule = judge_tasks([compare_task("task", n, 0, 0)], GatePolicy()).rules[0]
    larger = compare_task("task", n + rule.numbers["items_needed"], 0, 0)
    assert (rule.outcome, judge_tasks([larger], GatePolicy()).rules[0].outcome) == ("inconclusive", "pass")


# The next step


def need(items, *by_task, name="macro", lower=-0.031):
    """Make an inconclusive verdict that needs these items in total and by task."""
    numbers = {"lower": lower, "items_needed": items}
    numbers |= {"items_needed_by_task": list(by_task)} if by_task else {}
    return verdict("inconclusive", items_needed=items, rules=(Rule(name, "inconclusive", "", numbers),))


def join(*verdicts):
    rules = tuple(rule for judged in verdicts for rule in judged.rules)
    return replace(verdicts[0], rules=rules, items_needed=list_items_needed(rules).total)


A = SpareItems("a", ("suites.s.tasks.a.limit",), 300, 413)
B = SpareItems("b", ("suites.s.tasks.b.limit", "suites.s.tasks.b.data.limits.test"), 100, 1_500)
LIMIT_A = "suites.s.tasks.a.limit"
LIMIT_B = "suites.s.tasks.b.limit={0} suites.s.tasks.b.data.limits.test={0}"
ON_90, ON_113 = (f"compare {LIMIT_A}={n + 300} judges again, on {n} more items" for n in (90, 113))
WIDER = "harness gate --candidate lora gate.macro=0.032 judges by the least margin that these items can show; the "
OTHER_TASKS = "harness compare judges again, once suites: lists other tasks"


@pytest.mark.parametrize(
    ("verdicts", "spare", "advice"),
    [
        ([need(90, "a 90")], [A], f"{ON_90} that .* \\(a 390\\)$"),
        ([need(1_113, "a 113", "b 1,000")], [A, B], f"{LIMIT_A}=413 {LIMIT_B.format('1100')} judges again, on 1,113"),
        ([need(90, name="validity")], [A], ON_113),
        ([need(1_975, "a 1,975")], [A], f"{WIDER}tasks hold only 113 unused items, and some 1,975 more are needed"),
        ([need(90, "a 90", lower=-0.4)], [], OTHER_TASKS),
        # A rule on one task needs items of that task.
        ([need(500, "a 500", name="each")], [A, B], "once suites: lists other tasks, .* only 113 unused items"),
        ([join(need(90, "a 90"), need(700, "b 700", name="critical"))], [A, B],
         f"{LIMIT_A}=390 {LIMIT_B.format('800')} judges again, on 790 more items"),
    ],
)  # fmt: skip
def test_the_next_step_names_the_items_that_tasks_hold_or_something_else(verdicts, spare, advice):
    judging = ["gate", "--candidate", "lora"]
    proposal = advise_more_items(verdicts, spare, CommandLine(), relative=False, judging=judging)
    assert re.search(advice, proposal.text), proposal.text


def test_only_judged_tasks_that_hold_more_than_their_limit_are_listed():
    tasks = [
        {"name": "whole", "data": {"test": "t.jsonl"}},
        {"name": "short", "limit": 900, "data": {"test": "t.jsonl"}},
        {"name": "both", "limit": 300, "data": {"test": "t.jsonl", "limits": {"test": 200}}},
        {"lm_eval": "arc_easy", "limit": 100},
        {"name": "v1.5", "limit": 100, "data": {"test": "t.jsonl"}},
    ]
    suites = [
        {"name": "s", "role": "capability", "tasks": tasks},
        {"name": "off", "role": "safety", "tasks": [{**tasks[2], "name": "safe"}]},
    ]
    experiment = Experiment.model_validate(
        {
            "name": "e", "base_model": "m", "target": {**tasks[0], "name": "t"}, "suites": suites,
            "candidates": {"b": {}}, "gate": {"safety": None},
        }
    )  # fmt: skip
    prefix = "suites.s.tasks"
    assert list_spare_items(experiment, (), lambda task: 413) == (
        SpareItems("both", (f"{prefix}.both.limit", f"{prefix}.both.data.limits.test"), 200, 413),
        SpareItems("arc_easy", (f"{prefix}.3.limit",), 100, 413),
        SpareItems("v1.5", (f"{prefix}.4.limit",), 100, 413),
    )


GENERAL = """\
name: general
role: capability
tasks:
  - {name: sums, kind: choice, data: {test: general/sums.jsonl}, metrics: [accuracy], chat_template: false, limit: 40}
"""


@pytest.mark.e2e
def test_a_step_as_it_is_printed_asks_more_items(tiny, own_cache, tmp_path, command):
    path = tiny_experiment.write(tmp_path, tiny, tiny_experiment.TUNED, extra="gate: {macro: 0.02}\n")
    sums = [
        {"prompt": f"{n} and {n % 7} make", "reference": total, "choices": [total, f"{n + 8}"]}
        for n, total in ((n, f"{n + n % 7}") for n in range(800))
    ]
    tiny_experiment.rows(path.parent / "suites" / "general" / "sums.jsonl", sums)
    (path.parent / "suites" / "general.yaml").write_text(GENERAL)

    def run(line, code=0):
        return command(*shlex.split(line)[1:], check=code)

    output = run("harness compare --strict --dry-run gate.macro=0.05 gate.each=0.1", 2).stderr
    line = re.search(r"next: (harness compare --strict .*?) asks ", output)[1]
    assert line.endswith("gate.each=0.1 suites.general.tasks.sums.limit=800")
    run(f"{line} --dry-run")
    output = run("harness compare --strict --dry-run suites.general.tasks.sums.limit=300", 2).stderr
    assert "runs, once suites: lists other tasks, their files more rows, or gate: wider margins" in output
    run("harness compare")
    _, table, output = run("harness gate --candidate lora", 4)
    assert re.search(r"sums +accuracy +(\d+)", table)[1] == "40"
    step = r"next: (harness compare \S+limit=(\d+)) judges again, on [\d,]+ more items"
    line, limit = re.search(step, output).groups()
    run(line)
    table = command("gate", "--candidate", "lora", f"suites.general.tasks.sums.limit={limit}").stdout
    assert int(re.search(r"sums +accuracy +(\d+)", table)[1]) == int(limit) > 40
