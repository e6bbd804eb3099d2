"""The six scenarios: chosen by measured gains, and left open where no measurement tells them apart."""

from dataclasses import replace

import pytest
from fake_facts import BITS, alternatives, candidate, find_reason, make_decision, make_fine_tune

from harness.analysis.candidate_facts import BaseSize
from harness.analysis.estimators import Estimate
from harness.spec import DecidePolicy

RAG = "rag(top_k=2)"


def scenario(*facts, documents=False, **policy):
    decision = make_decision([*alternatives(), *facts], DecidePolicy(**policy), has_documents=documents)
    (summary,) = [reason for reason in decision.reasons if reason.startswith(("Scenario", "Of the six"))]
    return summary


def test_shots_suffice_where_no_fine_tune_is_shown_to_gain_and_any_that_is_counts():
    assert scenario(make_fine_tune("lora", 0.76, 0.02)) == (
        "Of the six scenarios in docs/decision.md this is 2: examples of the task suffice without training, so shots, ranked labels or a plain"
        " classifier: knn reaches 74.0 [69, 79] exact_match; lora is not shown to gain."
    )
    assert scenario().endswith(", as far as was measured: no fine-tune was compared.")

    flat = make_fine_tune("flat", 0.95, 0.01)
    assert scenario(flat, make_fine_tune("lora", 0.90, 0.16, "fail")).startswith(
        "Of the six scenarios in docs/decision.md this is 4"
    )


@pytest.mark.parametrize(
    ("lora", "policy"),
    [
        (make_fine_tune("lora", 0.90, 0.16, "fail"), {}),
        (make_fine_tune("lora", 0.90, 0.16, training_cost_usd=100.0), {"tau": 1.0}),
        (make_fine_tune("lora", 0.90, 0.16), {"requests_per_month": 1, "label_cost_usd": 9.0}),
    ],
    ids=["gate", "tau", "too dear"],
)
def test_a_fine_tune_that_gains_shows_what_the_base_lacks_though_something_else_is_shipped(lora, policy):
    text = scenario(lora, **policy)
    assert text.startswith("Of the six scenarios in docs/decision.md this is 4: the base lacks a behaviour")
    assert "lora gains +16.0 [+11, +21] points over knn" in text
    assert text.endswith("why lora is not shipped, the decision says.")


def test_only_slices_tell_a_behaviour_from_facts():
    lora = make_fine_tune("lora", 0.90, 0.16)
    assert "no slices knowledge and behaviour tell a behaviour from facts here" in scenario(lora)
    sliced = [replace(f, slices={"behaviour": Estimate(0.2, 0.15, 0.25, 80)}) for f in alternatives()]
    text = find_reason(make_decision([*sliced, lora]), "Of the six scenarios in docs/decision.md this is 4")
    assert "tell a behaviour from facts" not in text


@pytest.mark.parametrize(
    ("parts", "numbers"),
    [
        ([], "3, 4 or 5"),
        ([candidate("docs", 0.60, prompting=RAG)], "4 or 5"),
        ([make_fine_tune("lora", 0.60, -0.14)], "3 or 5"),
        ([candidate("docs", 0.60, prompting=RAG), make_fine_tune("lora", 0.60, -0.14)], "5"),
        ([candidate("docs", 0.60, prompting=RAG), make_fine_tune("lora", 0.86, 0.12, "fail")], "4"),
    ],
    ids=["neither", "retrieval", "fine-tune", "both below it", "fine-tune as good"],
)
def test_a_hybrid_shows_facts_and_behaviour_where_each_alone_was_measured_to_reach_less(parts, numbers):
    text = scenario(make_fine_tune("both", 0.85, 0.11, prompting=RAG), *parts)
    assert text.startswith(f"Of the six scenarios in docs/decision.md this is {numbers}")
    assert "both gains +11.0 [+6, +16] points over knn and reaches 85.0 [80, 90] exact_match" in text
    assert ("alone was not measured" in text) == (len(parts) < 2)


def test_retrieval_that_is_chosen_says_what_it_found():
    docs = candidate("docs", 0.85, prompting=RAG, recall=0.92)
    text = scenario(docs, make_fine_tune("lora", 0.80, -0.05), documents=True)
    assert text.startswith(
        "Of the six scenarios in docs/decision.md this is 3: the base lacks facts, or they change, so retrieval: docs reaches"
    )
    assert text.endswith("lora is not shown to gain.")


SMALL, LARGE = BaseSize("small", 135_000_000, 0.27), BaseSize("large", 1_700_000_000, 3.4)


def sentence(*facts, goal, metric="exact_match"):
    return find_reason(make_decision(list(facts), metric=metric, goal=goal), "meet the goal")


def test_the_smallest_base_whose_whole_interval_reaches_the_goal_is_named():
    small, large = (
        make_fine_tune("mine", 0.86, 0.12, base=SMALL),
        make_fine_tune("theirs", 0.90, 0.16, base=LARGE),
    )
    assert sentence(*alternatives(), large, small, goal=0.8) == (
        "The smallest base that is shown to meet the goal of 80.0 % is small (135 million parameters, 0.27 GB of"
        " weights), with mine, 86.0 [81, 91] exact_match. theirs on large is chosen, which is larger."
    )
    assert sentence(*alternatives(), large, small, goal=0.82).startswith(
        "The smallest base that is shown to meet the goal of 82.0 % is large"
    )


def test_of_a_base_the_candidate_that_is_best_on_validation_and_passes_its_gate_speaks():
    """The other candidate is better on test, which is not used to choose."""
    lucky = candidate("lucky", 0.95, base=SMALL, validation=0.1)
    steady = candidate("known", 0.70, base=SMALL, validation=0.7)
    large = candidate("big", 0.90, base=LARGE)
    assert "is large" in sentence(lucky, steady, large, goal=0.8)
    stopped = make_fine_tune("mine", 0.95, 0.2, "fail", base=SMALL)
    large = candidate("big", 0.90, base=LARGE)
    plain = candidate("plain", 0.5, base=SMALL)
    assert "is large" in sentence(stopped, plain, large, goal=0.8)


def test_where_no_base_meets_the_goal_that_is_said_and_a_lower_metric_is_turned():
    text = sentence(candidate("a", 0.5, base=SMALL), candidate("b", 0.6, base=LARGE), goal=0.8)
    assert text == "No base of known size is shown to meet the goal of 80.0 %."
    low = candidate("a", 0.7, BITS, base=SMALL), candidate("b", 0.6, BITS, base=LARGE)
    assert "is small" in sentence(*low, goal=0.8, metric="bits_per_byte")
    assert "is large" in sentence(*low, goal=0.7, metric="bits_per_byte")
