"""Requests to a server: how many at once, what was timed, and what they may cost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

import pytest
import tiny_experiment
from fake_facts import candidate
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Fault, Rule, serve_model
from test_prompt_search import HARNESS

from harness.decision import UnderLoad
from harness.errors import CandidateFailed
from harness.evaluation.costs import Budget, Words
from harness.experiment import compare
from harness.report import experiment_document, markdown
from harness.report.result_tables import load_section

POLICY = "concurrency: 4\n"


class SlowServer:
    """Takes its time with each request, and counts how many are under way together."""

    def __init__(self, took_s):
        self.took_s, self.now, self.most, self.lock = took_s, 0, 0, threading.Lock()

    def __call__(self, messages):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.took_s)
        with self.lock:
            self.now -= 1
        return "yes"


def write_experiment(folder, url, model, policy):
    for name in ("train", "validation", "test"):
        rows = [
            {"id": f"{name}-{i}", "prompt": f"{name} {i}?", "reference": ("yes", "no")[i % 2]}
            for i in range(6)
        ]
        tiny_experiment.rows(folder / f"{name}.jsonl", rows)
    path = folder / "harness.yaml"
    text = HARNESS.partition("  best:")[0].format(model=model, url=url)
    path.write_text(text.replace("protocol: chat", "protocol: chat, num_concurrent: 1") + policy)
    return path


@pytest.mark.e2e
def test_requests_to_a_server_come_together_where_that_is_written(tiny, tmp_path, own_cache):
    answer = SlowServer(0.1)
    with serve_model(Rule(answer)) as server:
        report = compare(write_experiment(tmp_path, server.url, tiny, POLICY))
    assert answer.most > 1, "otherwise one is asked after the other"
    (facts,) = report.facts
    load = facts.under_load
    assert load.n == 4
    assert 0.1 <= load.first_token_p50_s <= load.first_token_p95_s
    assert 0 < load.requests_per_s <= 4 / 0.1
    assert not any("validation has no more rows" in note for note in report.notes)
    assert "### Under load" in markdown(experiment_document(report))


@pytest.mark.e2e
def test_a_server_that_refuses_so_many_at_once_costs_its_load_and_not_the_report(tiny, tmp_path, own_cache):
    answer = SlowServer(0.3)
    with serve_model(Rule(answer)) as server:
        server.fault = lambda: Fault(429) if answer.now else None
        path = write_experiment(tmp_path, server.url, tiny, POLICY)
        path.write_text(path.read_text().replace("num_concurrent: 1", "num_concurrent: 1, max_retries: 0"))
        report = compare(path)
    assert [f.state for f in report.facts] == ["done"]
    assert report.facts[0].under_load is None


def test_the_table_holds_what_was_timed():
    facts = [
        replace(candidate("prompt", 0.5), under_load=UnderLoad(8, 12.5, 0.2, 0.3, 0.1)),
        replace(candidate("bag", 0.5), under_load=UnderLoad(8, 4000.0)),
        candidate("knn", 0.4),
    ]
    shown = load_section(facts)
    first, second = (dict(zip(shown.columns, row, strict=True)) for row in shown.rows)
    assert (first["at once"], first["requests a second"]) == ("8", "12.5")
    expected = ("0.2 s", "0.3 s", "0.1 s")
    assert (first["first token p50"], first["first token p95"], first["first token alone"]) == expected
    assert second["first token p50"] == "–"


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
    for _ in range(4):  # estimates are a fourth of what is counted: 22 are paid
        ask(budget, read=5, written=1, took=(20, 1))
    with pytest.raises(CandidateFailed, match=r"4 answers have cost 88.* the next may cost 22"):
        ask(budget, read=5, written=1, took=(20, 1))
    budget = Budget(50.0, price)
    # Thinking that the server counts beside the answer: 45 are paid.
    ask(budget, read=5, written=1, took=(5, 20))
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
