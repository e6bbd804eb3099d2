"""An index of documents is in what a request costs, once, and the decision says so."""

from dataclasses import replace

import pytest
from fake_facts import candidate, tuned

from harness.decision import decide, index_sentences, index_usd_per_1k, policy_without_index, reprice
from harness.spec import DecidePolicy


def test_an_index_that_is_in_the_cost_of_requests_is_weighed_once():
    policy = DecidePolicy(index_usd_per_month=10, requests_per_month=1000)
    share = index_usd_per_1k(policy)
    rag = replace(candidate("rag", 0.80, prompting="rag(top_k=2)"), cost_per_1k_usd=2.0)
    dearer = replace(rag, cost_per_1k_usd=2.0 + share, index_per_1k_usd=share)
    lora = replace(tuned("lora", 0.88, 0.08), cost_per_1k_usd=1.0)

    def weighed(one, policy):
        by = policy_without_index(policy)
        return decide([one, lora], by, closed_labels=False, has_documents=True, metric_name="m").arithmetic

    plain, with_index = weighed(rag, DecidePolicy(requests_per_month=1000)), weighed(dearer, policy)
    assert share == 10
    assert with_index["spent_once_usd"] == plain["spent_once_usd"]
    assert with_index["costs_more_usd"] == pytest.approx(plain["costs_more_usd"] - 60), (
        "10 a month, six months"
    )
    assert with_index["break_even_requests"] == pytest.approx(plain["break_even_requests"] / 11)
    (sentence,) = index_sentences([dearer, lora], policy)
    assert "10.00 USD a month: 10.00 USD of what 1,000 requests to rag cost" in sentence
    assert index_sentences([rag, lora], DecidePolicy()) == []


def test_a_dearer_device_leaves_the_price_of_an_index_as_it_is():
    rag = replace(candidate("rag", 0.80), cost_per_1k_usd=5.0, index_per_1k_usd=3.0)
    assert [f.cost_per_1k_usd for f in reprice([rag], 10)] == [23.0]
    assert [(f.cost_per_1k_usd, f.index_per_1k_usd) for f in reprice([rag], 1, 0.5)] == [(3.5, 1.5)]
