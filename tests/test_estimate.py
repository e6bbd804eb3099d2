"""Estimates add up, grow with the work, and price by the hour."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluation.costs import (
    DEVICE_HOUR_USD,
    TokenCounts,
    Work,
    estimate_answering,
    price_usd,
    request_usd,
    tokens,
)
from harness.models.hardware import Machine
from harness.records import Example
from harness.spec import TokenPrices

MACHINE, TWICE_AS_FAST = (Machine("cuda", "GPU", "bf16", gflops) for gflops in (100.0, 200.0))
PURE = settings(deadline=None)
COUNTS = st.integers(0, 10**9)
WORK = st.builds(Work, COUNTS, COUNTS, COUNTS)


def make_example(text, choices=(), reference="late"):
    return Example("x", ({"role": "user", "content": text},), (reference,), choices)


@PURE
@given(WORK)
def test_a_model_twice_as_large_takes_twice_as_long_and_a_machine_twice_as_fast_half(work):
    once = work.seconds(10**8, MACHINE)
    assert work.seconds(2 * 10**8, MACHINE) == pytest.approx(2 * once)
    assert work.seconds(10**8, TWICE_AS_FAST) == pytest.approx(once / 2)


def test_a_token_costs_least_to_read_and_a_longer_text_has_more():
    read, generated, trained = (
        Work(**{kind: 1000}).seconds(10**8, MACHINE) for kind in ("read", "generated", "trained")
    )
    assert read < generated
    assert read < trained
    assert tokens("") == 1
    assert tokens("x" * 400) == 100


def test_ranked_choices_and_whole_texts_are_read_and_nothing_is_generated():
    example = make_example("Where is it?", choices=("late", "money"))
    ranked, generated = (estimate_answering([example], ranked=r, max_new_tokens=5) for r in (True, False))
    assert ranked.generated == 0
    assert ranked.read == generated.read + tokens("late") + tokens("money")
    text = Example("x", (), ("A brown hen walks past a gate.",))
    assert estimate_answering([text], ranked=False, max_new_tokens=5) == Work(read=tokens(text.references[0]))


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("The desk is open on Monday, and every letter is answered with one word.", 16),
        ("窓口は月曜日に開いており、すべての手紙にはそこで働く人々が一言で答えます。", 68),
        (
            "المكتب مفتوح يوم الاثنين، ويتم الرد على كل رسالة بكلمة واحدة من قبل الأشخاص الذين يعملون هناك.",
            86,
        ),
        (
            "Окно открыто в понедельник, и на каждое письмо люди, которые там работают, отвечают одним словом.",
            75,
        ),
    ],
)
def test_tokens_are_estimated_within_a_quarter_in_every_script(text, counted):
    """They were counted with the tokenizer of smollm2-135m."""
    assert tokens(text) == pytest.approx(counted, rel=0.25)


def test_device_time_is_priced_by_the_hour_and_a_request_by_its_tokens():
    assert price_usd(1800, "cpu", None) == DEVICE_HOUR_USD["cpu"] / 2
    assert price_usd(1800, "cpu", 3.0) == 1.5
    assert price_usd(1800, "cuda", 0.0) == 0.0
    asked = TokenCounts(1000, 800, 20)
    assert request_usd(asked, TokenPrices(input=3, cached=0.3, output=15)) == pytest.approx(0.00114)
    assert request_usd(asked, TokenPrices(input=3, output=15)) == pytest.approx(0.0033)
    assert request_usd(asked, TokenPrices(input=0, output=0)) == 0
