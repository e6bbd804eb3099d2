"""Budget of requests: nothing begins that could pass it, however many are under way."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import CandidateFailed
from harness.evaluation.costs import Budget, Words


def price(read, written):
    return read + 2 * written


def ask(budget, read, written, took):
    """Ask for one answer; what it took is a prompt's tokens and those of the answer."""
    with budget.reserve(read, written) as spend:
        spend(price(*took), *took)


@given(
    most=st.integers(1, 200),
    requests=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1)), max_size=30),
)
def test_what_is_paid_stays_within_a_budget_whose_prompts_are_estimated_right(most, requests):
    budget, paid, lock = Budget(most, price), [], Lock()

    def one(request):
        read, written, share = request
        try:
            with budget.reserve(read, written) as spend:
                cost = price(read, share * written)
                spend(cost, read, 0)
            with lock:
                paid.append(cost)
        except CandidateFailed:
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, requests))
    assert sum(paid) <= most
    if sum(price(read, written) for read, written, _ in requests) <= most:
        assert len(paid) == len(requests)


def test_the_first_answer_shows_how_far_estimates_are_too_low():
    budget = Budget(100.0, price)
    ask(budget, read=5, written=1, took=(20, 1))  # estimates are a fourth of what is counted: 22 are paid
    ask(budget, read=5, written=1, took=(20, 1))
    ask(budget, read=5, written=1, took=(20, 1))
    ask(budget, read=5, written=1, took=(20, 1))
    with pytest.raises(CandidateFailed, match=r"4 answers have cost 88.* the next may cost 22"):
        ask(budget, read=5, written=1, took=(20, 1))
    budget = Budget(50.0, price)
    ask(
        budget, read=5, written=1, took=(5, 20)
    )  # thinking that the server counts beside the answer: 45 are paid
    with pytest.raises(CandidateFailed, match=r"1 answers have cost 45.* the next may cost 45"):
        ask(budget, read=5, written=1, took=(5, 20))


def test_what_was_paid_before_counts_and_the_refusal_names_the_option():
    budget = Budget(10.0, price, 9.0, 3, Words("max_cost", " in the rubric", "grades"))
    with pytest.raises(CandidateFailed, match=r"3 grades have cost 9.* and max_cost is 10") as refused:
        ask(budget, read=2, written=1, took=(2, 1))
    assert "a larger max_cost in the rubric" in str(refused.value.knob)


def test_a_request_that_fails_gives_back_what_was_set_aside_and_one_without_usage_ends_the_asking():
    budget = Budget(5.0, price)
    with pytest.raises(ZeroDivisionError), budget.reserve(1, 2):
        raise ZeroDivisionError
    ask(budget, read=1, written=2, took=(1, 2))
    budget = Budget(10.0, price)
    with budget.reserve(1, 1) as spend:
        spend(None, 0, 0)
    with pytest.raises(CandidateFailed, match="what they cost is unknown"):
        ask(budget, read=1, written=1, took=(1, 1))
