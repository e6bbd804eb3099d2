"""Fronts of gains and costs, and baselines that are compared with fine-tunes."""

from dataclasses import replace

import pytest
import tiny_experiment
from fake_facts import alternatives, candidate, make_fine_tune
from openai_server import Model, serve_model
from test_decision import find_reason, make_decision

from harness.errors import UserError
from harness.experiment import compare
from harness.lifecycle.release import gate
from harness.models.endpoints import is_private
from harness.report.document import markdown
from harness.report.sections import experiment_document
from reports.studies.fronts.choice import choose, share_of_gain
from reports.studies.fronts.fronts_page import page
from reports.studies.fronts.plan import make, plan, report_done
from reports.studies.fronts.rows import Row, rows_of
from reports.studies.fronts.ways import WAYS, candidates, way_of

PARAMS = "{r: 2, max_steps: 1, max_length: 250, learning_rate: 0.01}"
CANDIDATES = f"""\
  prompt: {{method: base}}
  plain-1: {{method: lora, params: {PARAMS}}}
  short-1: {{method: full, params: {{max_steps: 1, max_length: 8}}}}
  halved-1: {{method: scaled, init_from: plain-1, params: {{scale: 0.5}}}}
"""


@pytest.fixture(scope="module")
def steps_file(tiny, own_cache, tmp_path_factory):
    """Make three of four steps, one at a time; no row has at most 8 tokens, so one of them fails."""
    file = tiny_experiment.write(tmp_path_factory.mktemp("fronts"), tiny, CANDIDATES)
    for _ in range(3):
        make([next(step for step in plan(file) if not step.is_done)], 1)
    return file


@pytest.mark.usefixtures("own_cache")
@pytest.mark.e2e
def test_steps_are_made_one_at_a_time_and_the_page_lists_what_is_left(steps_file, tmp_path):
    steps = plan(steps_file)
    assert [step.candidate for step in steps if step.is_done] == ["prompt", "plain-1", "short-1"]
    (left,) = (step for step in steps if not step.is_done)
    assert left.candidate == "halved-1"
    assert left.expected_s > 0
    rows = rows_of("ways", "a CPU", report_done(steps_file, steps))
    text = page(rows, [step for step in steps if not step.is_done], 7200.0, tmp_path)
    done, left = text.split("## Not run")
    assert "| plain-1 |" in done
    assert "- short-1 failed: all 30 rows" in done
    assert "| halved-1 |" not in done
    assert "| harness | halved-1 | 0.0 |" in left
    assert "| three tasks | plain LoRA and 5 ways | 2.0 |" in left
    (row,) = (row for row in rows if row.candidate == "plain-1")
    assert row.held_back
    assert not {"critical", "regressions", "target"} & set(row.held_back)


def make_row(candidate, goal, kept=0.0, machine="a CPU"):
    return Row(
        "ways", candidate, candidate, machine, candidate != "prompt", goal, kept, "", "", "", "", [], ""
    )


ROWS = [
    make_row("prompt", 0.2), make_row("plain-1", 0.6, -0.2), make_row("a-1", 0.58, -0.1),
    make_row("a-2", 0.57, -0.05), make_row("b-1", 0.7, -0.15), make_row("c-2", 0.4, 0.0),
]  # fmt: skip


@pytest.mark.usefixtures("own_cache")
def test_a_share_of_the_gain_is_that_over_the_prompt_on_one_kind_of_machine():
    expected = {"prompt": 0.0, "plain-1": 1.0, "a-1": 0.95, "a-2": 0.925, "b-1": 1.25, "c-2": 0.5}
    assert {row.candidate: round(share_of_gain(ROWS, row), 3) for row in ROWS} == expected
    assert share_of_gain(ROWS[:1], ROWS[0]) is None
    other = [make_row("prompt", 0.0, machine="a GPU"), make_row("plain-1", 0.5, machine="a GPU")]
    assert share_of_gain([*ROWS, *other], make_row("d-1", 0.25, machine="a GPU")) is None
    rows = [*ROWS, *other, make_row("d-1", 0.25, machine="a GPU")]
    assert share_of_gain(rows, rows[-1]) == 0.5
    assert share_of_gain(rows, rows[2]) == pytest.approx(0.95)


@pytest.mark.usefixtures("own_cache")
def test_of_ways_that_keep_the_gain_the_one_that_forgets_least_comes_first(tmp_path):
    assert choose(ROWS) == ["a-2", "b-1", "c-2"]
    same = make_row("d-1", 0.6)._replace(remark="d-1: d found nothing to change")
    assert choose([*ROWS, same]) == choose(ROWS)
    assert "- d-1: d found nothing to change" in page([*ROWS, same], [], 0.0, tmp_path).splitlines()
    assert all(low != high for low, high in WAYS.values())
    names = candidates(WAYS)
    assert {way_of(name) for name in names if name != "prompt"} == set(WAYS)
    assert len(names) == 1 + 2 * len(WAYS)


LARGE = candidate("large", 0.90, method="endpoint", trained=True, baseline=True, leaves_machine=True)
WITH_BASELINES = """\
  prompt: {{method: base}}
  large:
    method: endpoint
    role: baseline
    params: {{base_url: {url}, model: tiny, usd_per_million_tokens: {{input: 3, output: 15}}}}
  tuned: {{method: endpoint, params: {{base_url: {url}, model: tiny}}}}
"""


def test_recipes_are_ranked_by_forgetting_and_by_public_tasks_as_means_over_their_seeds(tmp_path):
    changes = {
        "a-1": (-0.3, 0.04), "b-1": (-0.2, 0.03), "c-1": (-0.1, 0.02), "d-1": (0.1, -0.01),
    }  # fmt: skip
    rows = [make_row(name, 0.5, kept)._replace(public_change=of) for name, (kept, of) in changes.items()]
    rows.append(make_row("d-1", 0.5, 0.3)._replace(public_change=0.015, label="d-1 (seed 1)"))
    text = page(rows, [], 0.0, tmp_path)
    assert "Of the 4 recipes" in text
    assert "3 fell on the capability suite and 0 on the mean of the public tasks" in text
    assert "Rank correlation of both changes: −1.00 [−1.00, " in text
    assert "public tasks (each" not in page(rows[:3], [], 0.0, tmp_path)


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    """Compare the base in memory with a baseline behind an address."""
    folder = tmp_path_factory.mktemp("baseline")
    with serve_model(Model(tiny)) as server:
        path = tiny_experiment.write(folder, tiny, WITH_BASELINES.format(url=server.url))
        yield path, compare(path)


def test_a_baseline_is_no_alternative_on_the_base_and_sensitive_data_leave_out_one_elsewhere():
    decision = make_decision([*alternatives(), LARGE, make_fine_tune("lora", 0.81, -0.09)])
    assert (decision.action, decision.candidate) == ("prompt", "large")
    decision = make_decision([LARGE, make_fine_tune("lora", 0.97, 0.07)])
    assert decision.candidate is None
    assert "prompt only (prompting: zero_shot)" in decision.missing

    facts = [*alternatives(), LARGE, make_fine_tune("lora", 0.81, 0.07)]
    decision = make_decision(facts, needs=("sensitive_data",))
    assert decision.candidate == "lora"
    expected = "Left out before the choice: large (sensitive data would go to an external server)."
    assert find_reason(decision, "Left out before the choice") == expected
    facts = [*alternatives(), replace(LARGE, leaves_machine=False), make_fine_tune("lora", 0.81, -0.09)]
    assert make_decision(facts, needs=("sensitive_data",)).candidate == "large"


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://localhost:8000/v1", True), ("http://10.1.2.3/v1", True), ("http://[::1]:8000/v1", True),
        ("http://gpu-box:8000/v1", True), ("http://box.lan/v1", True), ("http://100.64.0.1/v1", True),
        ("http://100.128.0.1/v1", False), ("http://api.example.com./v1", False), ("http://8.8.8.8/v1", False),
        ("http://0x08080808/v1", False), ("http://[::ffff:8.8.8.8]/v1", False), ("http://ai/v1", False),
        ("http://127.1/v1", True), ("http://2130706433/v1", True),
    ],
)  # fmt: skip
def test_an_address_of_a_private_network_is_told_from_a_public_one(url, own):
    assert is_private(url) is own


def test_a_baseline_is_compared_at_its_own_price_by_report_and_gate_and_never_judged(file_and_report):
    path, found = file_and_report
    assert [key.partition("/")[0] for key in tiny_experiment.runs_of(path)["large"].rows] == ["letters"] * 2
    facts = tiny_experiment.fact_of(found, "large")
    assert facts.verdict is None
    assert "(a baseline, not judged)" in markdown(experiment_document(found))
    assert facts.cost_per_1k_usd == pytest.approx((3 * facts.tokens.prompt + 15 * facts.tokens.output) / 1000)

    (judged,) = gate(path, "tuned", ["gate.target.gain=0.05"])
    (rule,) = [rule for rule in judged.verdict.rules if rule.name == "target"]
    assert "over the best untrained candidate" in rule.sentence
    assert gate(path, "tuned", ["candidates.tuned.params.num_concurrent=2"])
    with pytest.raises(UserError, match="large: found a baseline, measured on the target alone"):
        gate(path, "large")
