"""How many more items the gate asks for, as many as would decide, and the next step that asks those there are."""

import re
import shlex
from dataclasses import replace

import pytest
import tiny_experiment
from fake_facts import verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.comparison import compare_rows, compare_validity
from harness.analysis.gate_rules import apply_rules
from harness.analysis.significance import SpareItems, find_settling, list_spare_items, power_warnings
from harness.analysis.verdict import Rule, TaskComparison, Verdict, list_items_needed
from harness.config import CommandLine, load
from harness.report import advise_more_items
from harness.spec import Experiment, GatePolicy, Suite, Task, TaskData
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


@pytest.mark.e2e
@settings(max_examples=20)
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


@pytest.mark.e2e
@settings(max_examples=8)  # each counts up to 20,000 items
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


def test_a_margin_next_to_nothing_is_said_to_take_more_than_any_number_of_items():
    policy = GatePolicy(macro=1e-300, each=1e-300)
    suites = [Suite(name="general", role="capability", tasks=(Task(name="a", data=TaskData()),))]
    assert all("∞ items" in said for said in power_warnings(suites, {"a": 9}, policy))
    rule = judge_tasks([compare_task("a", 9, 1, 1)], policy).rules[0]
    assert "no number of items would settle so small a margin" in rule.sentence
    assert "items_needed" not in rule.numbers


# The next step


def need(items, *by_task, name="macro", lower=-0.031):
    """Make an inconclusive verdict that needs so many items, of the tasks named with their numbers."""
    numbers = {"lower": lower, "items_needed": items}
    numbers |= {"items_needed_by_task": list(by_task)} if by_task else {}
    return verdict("inconclusive", items_needed=items, rules=(Rule(name, "inconclusive", "", numbers),))


def join(*verdicts):
    rules = tuple(rule for one in verdicts for rule in one.rules)
    return replace(verdicts[0], rules=rules, items_needed=list_items_needed(rules).total)


A = SpareItems("a", ("suites.s.tasks.a.limit",), 300, 413)
B = SpareItems("b", ("suites.s.tasks.b.limit", "suites.s.tasks.b.data.limits.test"), 100, 1_500)
DRAWN = SpareItems("a", (), 160, 800)
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
        ([need(100, "a and c 100")], [A], ON_113),
        ([need(90, name="validity")], [A], ON_113),
        ([need(300, "a 300")], [DRAWN], r"harness compare judges again, on 640 more items that the tasks hold \(a 800\)$"),
        ([need(1_975, "a 1,975")], [A], f"{WIDER}tasks hold only 113 unused items, and some 1,975 more are needed"),
        ([need(90, "a 90", lower=-0.4)], [], OTHER_TASKS),
        # A rule on one task needs the items of that task.
        ([need(500, "a 500", name="each")], [A, B], "once suites: lists other tasks, .* only 113 unused items"),
        ([join(need(90, "a 90"), need(700, "b 700", name="critical"))], [A, B],
         f"{LIMIT_A}=390 {LIMIT_B.format('800')} judges again, on 790 more items"),
        # Unusable answers are counted of generated ones alone.
        ([need(90, name="validity")], [A._replace(is_generated=False)], "once suites: lists other tasks"),
    ],
)  # fmt: skip
def test_the_next_step_names_the_items_that_tasks_hold_or_something_else(verdicts, spare, advice):
    judging = ["gate", "--candidate", "lora"]
    found = advise_more_items(verdicts, spare, CommandLine(), relative=False, judging=judging)
    assert re.search(advice, found.text), found.text


@pytest.mark.parametrize(
    ("verdict", "spare", "said"),
    [
        (need(90, "a 90"), [A], "some 90 more items would settle it, and the tasks hold them"),
        (need(1_975, "a 1,975"), [A], "but the tasks hold only 113 unused items (gate.macro=0.032 can be shown)"),
        (need(90, "a 90", lower=-0.4), [], "some 90 more items would settle it, but the tasks hold no unused items"),
    ],
)  # fmt: skip
def test_what_would_settle_a_verdict_says_whether_it_exists(verdict, spare, said):
    assert find_settling([verdict], spare, relative=False).text.endswith(said)


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
    at = "suites.s.tasks"
    assert list_spare_items(experiment, (), lambda task: 413) == (
        SpareItems("both", (f"{at}.both.limit", f"{at}.both.data.limits.test"), 200, 413),
        SpareItems("arc_easy", (f"{at}.3.limit",), 100, 413),
        SpareItems("v1.5", (f"{at}.4.limit",), 100, 413),
    )


LIMITED = """\
name: v2.0
role: capability
tasks:
  - {name: sums, kind: choice, data: {test: general/sums.jsonl}, metrics: [accuracy], limit: 5}
  - {name: "1", data: {test: general/facts.jsonl, limits: {test: 4}}, metrics: [contains], limit: 5}
  - {name: v1.5, data: {test: general/facts.jsonl}, metrics: [contains], limit: 5}
  - {lm_eval: arc_easy, limit: 5}
"""


def test_each_setting_of_a_limit_is_read_as_it_is_printed(tmp_path):
    path = tiny_experiment.write(tmp_path, tmp_path, "  prompt: {method: base}\n")
    (path.parent / "suites" / "general.yaml").write_text(LIMITED)
    spare = list_spare_items(load(path).experiment, (), lambda task: 9)
    assert [one.task for one in spare] == ["sums", "1", "v1.5", "arc_easy"]
    (suite,) = load(path, [f"{key}=9" for one in spare for key in one.keys]).experiment.suites
    assert [(task.limit, task.data.limits.test) for task in suite.tasks] == [
        *((9, None), (9, 9), (9, None), (9, None))
    ]


GENERAL = """\
name: general
role: capability
tasks:
  - {name: sums, kind: choice, data: {test: general/sums.jsonl}, metrics: [accuracy], chat_template: false, limit: 40}
"""
TUNED = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


@pytest.mark.e2e
def test_a_step_as_it_is_printed_asks_more_items(tiny, own_cache, tmp_path, command):
    path = tiny_experiment.write(tmp_path, tiny, TUNED, extra="gate: {macro: 0.02}\n")
    sums = [
        {
            "prompt": f"{n} and {n % 7} make",
            "reference": f"{n + n % 7}",
            "choices": [f"{n + n % 7}", f"{n + 8}"],
        }
        for n in range(800)
    ]
    tiny_experiment.rows(path.parent / "suites" / "general" / "sums.jsonl", sums)
    (path.parent / "suites" / "general.yaml").write_text(GENERAL)

    def run(line, code=0):
        return command(*shlex.split(line)[1:], check=code)

    said = run("harness compare --strict --dry-run gate.macro=0.05 gate.each=0.1", 2).stderr
    line = re.search(r"next: (harness compare --strict .*?) asks ", said)[1]
    assert line.endswith("gate.each=0.1 suites.general.tasks.sums.limit=800")
    run(f"{line} --dry-run")
    said = run("harness compare --strict --dry-run suites.general.tasks.sums.limit=300", 2).stderr
    assert "runs, once suites: lists other tasks, their files more rows, or gate: wider margins" in said
    run("harness compare")
    _, table, said = run("harness gate --candidate lora", 4)
    assert re.search(r"sums +accuracy +(\d+)", table)[1] == "40"
    step = r"next: (harness compare \S+limit=(\d+)) judges again, on [\d,]+ more items"
    line, limit = re.search(step, said).groups()
    run(line)
    table = command("gate", "--candidate", "lora", f"suites.general.tasks.sums.limit={limit}").stdout
    assert int(re.search(r"sums +accuracy +(\d+)", table)[1]) == int(limit) > 40
