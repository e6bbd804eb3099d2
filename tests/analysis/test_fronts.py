"""Baselines compared with fine-tunes: chosen by price, never judged, and private on this machine."""

from dataclasses import replace

import pytest
import tiny_experiment
from fake_facts import alternatives, candidate, make_fine_tune
from openai_server import Model, serve_model
from test_decision import find_reason, make_decision

from harness.errors import UserError
from harness.experiment import compare
from harness.lifecycle.release import gate
from harness.models.openai_api import is_private
from harness.report.document import markdown
from harness.report.sections import experiment_document

LARGE = candidate("large", 0.90, method="endpoint", trained=True, baseline=True, leaves_machine=True)
WITH_BASELINES = """\
  prompt: {{method: base}}
  large:
    method: endpoint
    role: baseline
    params: {{base_url: {url}, model: tiny, usd_per_million_tokens: {{input: 3, output: 15}}}}
  tuned: {{method: endpoint, params: {{base_url: {url}, model: tiny}}}}
"""


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    """Compare the base in memory with a baseline behind an endpoint."""
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
    expected_reason = "Left out before the choice: large (sensitive data would go to an external server)."
    assert find_reason(decision, "Left out before the choice") == expected_reason
    facts = [*alternatives(), replace(LARGE, leaves_machine=False), make_fine_tune("lora", 0.81, -0.09)]
    assert make_decision(facts, needs=("sensitive_data",)).candidate == "large"


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://localhost:8000/v1", True), ("http://10.1.2.3/v1", True), ("http://[::1]:8000/v1", True),
        ("http://gpu-box:8000/v1", True), ("http://box.lan/v1", True), ("http://100.64.0.1/v1", True),
        ("http://100.128.0.1/v1", False), ("http://api.example.com./v1", False),
        ("http://0x08080808/v1", False), ("http://[::ffff:8.8.8.8]/v1", False), ("http://ai/v1", False),
        ("http://127.1/v1", True), ("http://2130706433/v1", True),
    ],
)  # fmt: skip
def test_an_address_of_a_private_network_is_told_from_a_public_one(url, own):
    assert is_private(url) is own


def test_a_baseline_is_compared_at_its_own_price_by_report_and_gate_and_never_judged(file_and_report):
    path, result = file_and_report
    assert [key.partition("/")[0] for key in tiny_experiment.runs_of(path)["large"].rows] == ["letters"] * 2
    fact = tiny_experiment.fact_of(result, "large")
    assert fact.verdict is None
    assert "(a baseline, not judged)" in markdown(experiment_document(result))
    assert fact.cost_per_1k_usd == pytest.approx((3 * fact.tokens.prompt + 15 * fact.tokens.output) / 1000)

    (gate_result,) = gate(path, "tuned", ["gate.target.gain=0.05"])
    (rule,) = [rule for rule in gate_result.verdict.rules if rule.name == "target"]
    assert "over the best untrained candidate" in rule.sentence
    assert gate(path, "tuned", ["candidates.tuned.params.num_concurrent=2"])
    with pytest.raises(UserError, match="large: found a baseline, measured on the target alone"):
        gate(path, "large")
