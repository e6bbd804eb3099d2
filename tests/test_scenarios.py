"""The six scenarios: named by what was measured to do better, and left open between those that nothing tells apart."""

from dataclasses import replace

import pytest
from fake_facts import alternatives, candidate, make_fine_tune

from harness.comparison import Estimate
from harness.decision import decide
from harness.spec import DecidePolicy

RAG = "rag(top_k=2)"


def scenario(*facts, documents=False, **policy):
    given = {"closed_labels": True, "has_documents": documents, "metric_name": "exact_match"}
    decision = decide([*alternatives(), *facts], DecidePolicy(**policy), **given)
    (found,) = [reason for reason in decision.reasons if reason.startswith(("Scenario", "Of the six"))]
    return found


def make_hybrid(score=0.85, **changes):
    return make_fine_tune("both", score, score - 0.74, prompting=RAG, **changes)


def test_shots_suffice_where_no_fine_tune_is_shown_to_gain():
    assert scenario(make_fine_tune("lora", 0.76, 0.02)) == (
        "Of the six scenarios in docs/decision.md this is 2: examples of the task suffice without training, so shots, ranked labels or a plain"
        " classifier: knn reaches 74.0 [69, 79] exact_match, and prompt 20.0 [15, 25] exact_match; lora is"
        " not shown to gain."
    )
    assert scenario().endswith(", as far as was measured: no fine-tune was compared.")


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
    said = scenario(lora, **policy)
    assert said.startswith("Of the six scenarios in docs/decision.md this is 4: the base lacks a behaviour")
    assert "lora gains +16.0 [+11, +21] points over knn" in said
    assert said.endswith("why lora is not shipped, the decision says.")


def test_a_gain_of_another_fine_tune_than_the_best_on_validation_counts_too():
    flat = make_fine_tune("flat", 0.95, 0.01)
    assert scenario(flat, make_fine_tune("lora", 0.90, 0.16, "fail")).startswith(
        "Of the six scenarios in docs/decision.md this is 4"
    )


def test_only_slices_tell_a_behaviour_from_facts():
    lora = make_fine_tune("lora", 0.90, 0.16)
    assert "no slices knowledge and behaviour tell a behaviour from facts here" in scenario(lora)
    low, high = ({"behaviour": Estimate(s, s - 0.05, s + 0.05, 80)} for s in (0.2, 0.9))
    sliced = [replace(f, slices=low) for f in alternatives()]
    given = {"closed_labels": True, "has_documents": False, "metric_name": "exact_match"}
    for slices, words in ((high, "gains"), (low, "on the slice behaviour it is not shown to")):
        decision = decide([*sliced, replace(lora, slices=slices)], DecidePolicy(), **given)
        (said,) = [
            reason
            for reason in decision.reasons
            if reason.startswith("Of the six scenarios in docs/decision.md this is 4")
        ]
        assert words in said
        assert "tell a behaviour from facts" not in said


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
    said = scenario(make_hybrid(), *parts)
    assert said.startswith(f"Of the six scenarios in docs/decision.md this is {numbers}")
    assert "both gains +11.0 [+6, +16] points over knn and reaches 85.0 [80, 90] exact_match" in said
    assert ("alone was not measured" in said) == (len(parts) < 2)


def test_retrieval_that_is_chosen_says_what_it_found():
    docs = candidate("docs", 0.85, prompting=RAG, recall=0.92)
    said = scenario(docs, make_fine_tune("lora", 0.80, -0.05), documents=True)
    assert said.startswith(
        "Of the six scenarios in docs/decision.md this is 3: the base lacks facts, or they change, so retrieval: docs reaches"
    )
    assert "with 92.0 % of the documents found, and prompt 20.0" in said
    assert said.endswith("lora is not shown to gain.")
