"""An index of documents is a sum over the horizon to the decision, and a share of `$/1k` at the forecast in tables."""

import pytest
from fake_facts import candidate, make_fine_tune

from harness.decision import decide, index_sentences, index_usd_per_1k
from harness.report.wording import find_shown_figure, print_measured
from harness.spec import DecidePolicy

COST = "cost_per_1k_usd"


def rag(**changes):
    return candidate(
        "rag", 0.80, prompting="rag(top_k=2)", **{COST: 0.2, "index_per_1k_usd": 10.0, **changes}
    )


def arithmetic_at(requests_per_month, *facts, **policy):
    by = DecidePolicy(
        index_usd_per_month=30, requests_per_month=requests_per_month, right_answer_usd=0.0001, **policy
    )
    return decide(facts, by, closed_labels=False, has_documents=True, metric_name="m").arithmetic


def test_break_even_and_what_pays_do_not_hang_on_the_forecast_where_an_index_is_priced():
    lora = make_fine_tune("lora", 0.9, 0.10, cost_per_1k_usd=0.19, training_cost_usd=500.0)
    found = [arithmetic_at(n, rag(index_per_1k_usd=30_000 / n), lora) for n in (600, 6_000, 600_000)]
    for of in found:
        assert of["spent_once_usd"] == 500 - 6 * 30
        assert of["break_even_requests"] == pytest.approx(320 / 0.00001)
        assert of["pays_from_requests"] == pytest.approx(found[0]["pays_from_requests"])
    few, _, many = (of["costs_more_usd"] for of in found)
    assert few - many == pytest.approx(0.00001 * 6 * (600_000 - 600))


def test_a_figure_that_is_shown_holds_the_share_of_the_index():
    assert find_shown_figure(rag(), COST) == pytest.approx(10.2)
    assert print_measured(rag(), COST) == "10.20"
    assert find_shown_figure(rag(cost_per_1k_usd=None), COST) is None
    disturbed = rag(cost_per_1k_usd=None, disturbed={COST: 1.0})
    assert print_measured(disturbed, COST) == "~11.00"
    assert find_shown_figure(candidate("prompt", 0.7), COST) == candidate("prompt", 0.7).cost_per_1k_usd


def test_the_share_is_said_with_the_forecast_and_whether_anybody_set_it():
    policy = DecidePolicy(index_usd_per_month=10, requests_per_month=1000)
    assert index_usd_per_1k(policy) == 10
    (sentence,) = index_sentences([rag(), candidate("prompt", 0.7)], policy)
    assert "10.00 USD a month" in sentence
    assert (
        "10.00 USD of 1,000 requests to rag, by the 1,000 forecast a month, and part of their $/1k"
        in sentence
    )
    assert index_sentences([candidate("prompt", 0.7)], DecidePolicy()) == []
    (sentence,) = index_sentences([rag(cost_per_1k_usd=None)], policy)
    assert "$/1k" not in sentence
