"""The smallest of several bases whose candidate meets the declared goal is named beside what is chosen."""

import pytest
import tiny_experiment
from fake_facts import BITS, alternatives, candidate, make_decision, make_fine_tune

from harness.decision import BaseSize
from harness.models.hub import resolve

SMALL, LARGE = BaseSize("small", 135_000_000, 0.27), BaseSize("large", 1_700_000_000, 3.4)


def sentence(*facts, goal, metric="exact_match"):
    found = make_decision(list(facts), metric_name=metric, goal=goal)
    said = [reason for reason in found.reasons if "meet the goal" in reason]
    return said[0] if said else ""


def test_the_smallest_base_whose_whole_interval_reaches_the_goal_is_named():
    small, large = (
        make_fine_tune("mine", 0.86, 0.12, base=SMALL),
        make_fine_tune("theirs", 0.90, 0.16, base=LARGE),
    )
    assert sentence(*alternatives(), large, small, goal=0.8) == (
        "The smallest base that is shown to meet the goal of 80.0 % is small (135 million parameters, 0.27 GB of"
        " weights), with mine, 86.0 [81, 91] exact_match; compared with large (1,700 million). theirs on large is"
        " chosen, which is larger."
    )
    assert sentence(*alternatives(), large, small, goal=0.82).startswith(
        "The smallest base that is shown to meet the goal of 82.0 % is large"
    )


def test_of_a_base_the_candidate_that_is_best_on_validation_and_passes_its_gate_speaks():
    """The other one is better on test, which chooses nothing."""
    lucky = candidate("lucky", 0.95, base=SMALL, validation=0.1)
    known = candidate("known", 0.70, base=SMALL, validation=0.7)
    large = candidate("big", 0.90, base=LARGE)
    assert "is large" in sentence(lucky, known, large, goal=0.8)
    stopped = make_fine_tune("mine", 0.95, 0.2, "fail", base=SMALL)
    large = candidate("big", 0.90, base=LARGE)
    plain = candidate("plain", 0.5, base=SMALL)
    assert "is large" in sentence(stopped, plain, large, goal=0.8)


def test_where_none_meets_it_the_nearest_is_named_and_a_lower_metric_is_turned():
    said = sentence(candidate("a", 0.5, base=SMALL), candidate("b", 0.6, base=LARGE), goal=0.8)
    assert said == (
        "No base of known size is shown to meet the goal of 80.0 %: b on large is the nearest, "
        "60.0 [55, 65] exact_match."
    )
    low = candidate("a", 0.7, BITS, base=SMALL), candidate("b", 0.6, BITS, base=LARGE)
    assert "is small" in sentence(*low, goal=0.8, metric="bits_per_byte")
    assert "is large" in sentence(*low, goal=0.7, metric="bits_per_byte")


@pytest.mark.e2e
@pytest.mark.usefixtures("own_cache")
def test_an_experiment_on_two_bases_names_the_smaller_one(tiny, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny)
    config.num_hidden_layers = 3
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deeper")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "deeper")
    both = "  prompt: {method: base}\n  deep: {base_model: ./deeper, role: baseline}\n"
    path = tiny_experiment.write(tmp_path, tiny, both)
    report = tiny_experiment.run(path, "suites=[]", "gate.target.min=0.0")
    sizes = {facts.name: facts.base for facts in report.facts}
    assert sizes["prompt"].n_parameters == resolve(str(tiny)).n_parameters
    assert sizes["deep"].n_parameters > sizes["prompt"].n_parameters
    assert sizes["deep"].weights_gb == pytest.approx(4e-9 * sizes["deep"].n_parameters, rel=0.01)  # fp32
    (said,) = (reason for reason in report.decision.reasons if "meet the goal" in reason)
    assert said.startswith("The smallest base that is shown to meet the goal of 0.0 % is tiny0")
    assert "with prompt" in said
