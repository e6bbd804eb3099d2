"""Requests are timed alone and together, timed again after disturbances, and stay within their budget."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import count
from threading import Lock

import pytest
import tiny_experiment
import tiny_methods
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Rule, serve_model
from test_prompt_search import HARNESS

from harness import store
from harness.errors import CandidateFailed
from harness.evaluation.costs import Budget
from harness.evaluation.timing import describe_timing, time_requests
from harness.experiment import compare
from harness.experiment.run_candidate import time_again
from harness.methods.supervised import Lora
from harness.models.devices import load_base
from harness.models.hardware import Load, Machine
from harness.models.hf import HFCandidate, ModelHost, merge_adapter
from harness.models.hub import resolve
from harness.report import experiment_document, markdown

pytestmark = pytest.mark.usefixtures("watched_load")

POLICY = "concurrency: 4\n"


class SlowServer:
    """A slow server that counts its concurrent requests."""

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
    tiny_experiment.write_splits(
        folder, (6, 6, 6), lambda name, i: {"prompt": f"{name} {i}?", "reference": ("yes", "no")[i % 2]}
    )
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
    load = facts.speed.under_load
    assert load.n == 4
    assert 0.1 <= load.first_token_p50_s <= load.first_token_p95_s
    assert 0 < load.requests_per_s <= 4 / 0.1
    assert not any("validation has no more rows" in note for note in report.notes)
    assert "### Under load" in markdown(experiment_document(report))


def price(n_read, n_written):
    return n_read + 2 * n_written


def ask(budget, read, written, took):
    """Ask for one answer that takes these numbers of prompt and answer tokens."""
    with budget.reserve(read, written) as spend:
        spend(price(*took), *took)


@given(
    most=st.integers(1, 200),
    requests=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1)), max_size=30),
)
def test_what_is_paid_stays_within_a_budget_whose_prompts_are_estimated_right(most, requests):
    budget, costs, lock = Budget(most, price), [], Lock()

    def one(request):
        read, written, share = request
        try:
            with budget.reserve(read, written) as spend:
                cost = price(read, share * written)
                spend(cost, read, 0)
            with lock:
                costs.append(cost)
        except CandidateFailed:
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, requests))
    assert sum(costs) <= most
    if sum(price(read, written) for read, written, _ in requests) <= most:
        assert len(costs) == len(requests)


def test_the_first_answer_shows_how_far_estimates_are_too_low():
    budget = Budget(100.0, price)
    for _ in range(4):  # estimates are a quarter of the counted tokens: 22 are paid
        ask(budget, read=5, written=1, took=(20, 1))
    with pytest.raises(CandidateFailed, match=r"4 answers have cost 88.* the next may cost 22"):
        ask(budget, read=5, written=1, took=(20, 1))
    budget = Budget(50.0, price)
    ask(budget, read=5, written=1, took=(5, 20))
    with pytest.raises(CandidateFailed, match=r"1 answers have cost 45.* the next may cost 45"):
        ask(budget, read=5, written=1, took=(5, 20))


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


class FakeMachine:
    """A clock on which each request takes a given time, part of which it waits for a processor."""

    def __init__(self, seconds, waited_share=lambda turn: 0.0):
        self.seconds, self.waited_share = seconds, waited_share
        self.turn, self.now, self.waited, self.asked = count(), 0.0, 0.0, []

    def ask(self, i):
        took_s, turn = self.seconds(i), next(self.turn)
        self.now += took_s
        self.waited += took_s * self.waited_share(turn)
        self.asked.append(i)

    def read(self):
        return Load(self.now, self.now, self.waited)


def test_requests_are_timed_alone_and_again_beside_other_work():
    machine = FakeMachine(lambda i: 0.1 + i / 100)
    timing = time_requests(machine.ask, 10, read=machine.read)
    assert machine.asked == [0, *range(10), 0]
    assert timing.times_s == pytest.approx([0.1 + i / 100 for i in range(10)])
    assert (timing.p50_s, timing.p95_s) == (pytest.approx(0.145), pytest.approx(0.19))
    assert not timing.contended
    machine = FakeMachine(lambda i: 3.0)
    assert len(time_requests(machine.ask, 30, read=machine.read).times_s) == 5

    machine = FakeMachine(lambda i: 0.1, lambda turn: 0.5 if turn < 7 else 0.0)
    timing = time_requests(machine.ask, 5, read=machine.read)
    assert len(machine.asked) == 14
    assert not timing.contended
    machine = FakeMachine(lambda i: 0.1, lambda turn: 0.5)
    timing = time_requests(machine.ask, 5, read=machine.read)
    assert len(machine.asked) == 14
    assert timing.contended


# Stored runs


@pytest.fixture
def session_and_run(copy):
    session = tiny_experiment.session(copy)
    (run,) = (r for r in store.list_runs(session.store) if r.candidate == "lora")
    return session, run


def test_a_run_holds_both_times_with_their_marks(session_and_run):
    _, run = session_and_run
    assert 0 < run.latency["p50_s"] <= run.latency["p95_s"]
    assert {"contended", "compute_s", "compute_contended"} <= run.latency.keys()


def test_a_disturbed_run_is_timed_again_with_requests_at_once_and_a_first_token(session_and_run, monkeypatch):
    monkeypatch.setenv("HARNESS_IGNORE_LOAD", "1")
    session, run = session_and_run
    run.latency.update(p50_s=99.0, contended=1.0)
    new_run = time_again(session, session.candidates["lora"], run)
    (stored_run,) = (stored for stored in store.list_runs(session.store) if stored.run_id == run.run_id)
    assert asdict(stored_run) == asdict(new_run)
    assert new_run.latency["compute_s"] == run.latency["compute_s"]
    again = new_run.latency
    assert again["p50_s"] < 99.0
    assert again["at_once"] == 6, "as many as validation has, eight at most"
    assert again["first_token_s"] > 0
    assert again["at_once_s"] > 0
    (note,) = (n for n in describe_timing([replace(run, latency=again)]) if n.startswith("several requests"))
    assert re.search(
        r"lora answers 6 within .* \([\d.,]+ a second\), their first tokens after .*;"
        r" one alone has its first token after ",
        note,
    )
    assert 0 < again["first_token_at_once_p50_s"] <= again["first_token_at_once_p95_s"]
    seeds = [replace(run, latency=again, seed=seed) for seed in (0, 1)]
    assert "lora (seed 1) answers 6 within" in " ".join(describe_timing(seeds)), (
        "seeds have names of their own"
    )
    without_first = {name: value for name, value in again.items() if name != "first_token_s"}
    assert "a second), their first tokens after " in describe_timing([replace(run, latency=without_first)])[1]


def test_nothing_rests_on_figures_that_other_work_disturbed_and_a_note_names_them(copy):
    (file,) = (copy.parent / "runs").glob("*-lora-s0-*/run.json")
    stored_run = json.loads(file.read_text())
    stored_run["latency"] |= {"contended": 1.0, "compute_contended": 1.0}
    file.write_text(json.dumps(stored_run))
    report = tiny_experiment.run(copy)
    (lora,) = (fact for fact in report.facts if fact.name == "lora")
    assert (lora.speed.latency_p50_s, lora.speed.requests_per_s, lora.cost_per_1k_usd) == (None, None, None)
    names = {"latency_p50_s", "latency_p95_s", "requests_per_s", "cost_per_1k_usd"}
    assert lora.speed.disturbed.keys() == names
    (table,) = [section for section in experiment_document(report).sections if section.kind == "speed"]
    cells = {row[0]: row[1:] for row in table.rows}
    assert [cell.startswith("~") for cell in cells["lora"]] == [True, True, True, False, False, True]
    assert not any("~" in cell for cell in cells["prompt"])
    assert "the decision ignores" in table.notes[0]
    ending = "were disturbed by other work on this machine, twice: marked ~ and left out of the decision"
    notes = [note for note in report.notes if note.endswith(ending)]
    assert any(note.startswith("latencies of ") and "lora" in note for note in notes)
    assert any(note.startswith("costs and requests a second of ") and "lora" in note for note in notes)
    assert report.decision.arithmetic.get("break_even_requests") is None


# Served adapters


@pytest.mark.e2e
def test_a_merged_adapter_answers_with_the_likelihoods_of_the_adapter_and_the_base_is_left_alone(
    tiny, tmp_path, own_cache
):
    import torch
    from peft import PeftModel

    weights = Lora.METHOD.fit(
        tiny_methods.context(tiny, tmp_path), Lora.Params(r=4, max_steps=4, learning_rate=5e-2)
    )
    source, machine = resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 1.0)
    host, (lone_base, tokenizer) = ModelHost(source, machine), load_base(source, machine)
    adapted_model = PeftModel.from_pretrained(lone_base, weights.folder / "adapter").eval()
    ids = torch.arange(5, 15)[None]

    def logprobs(model):
        with torch.no_grad():
            return model(input_ids=ids).logits.log_softmax(-1)

    base_logprobs, separate_logprobs = logprobs(host.model), logprobs(adapted_model)
    with merge_adapter(HFCandidate(adapted_model, tokenizer, "w", "packed")):
        merged_logprobs = logprobs(adapted_model)
        n_low_rank = sum(hasattr(module, "lora_A") for module in adapted_model.modules())
    with host.use_adapter(weights.folder / "adapter", weights.digest) as candidate:
        opened_logprobs = logprobs(candidate.model)
    assert n_low_rank == 0
    assert (merged_logprobs - separate_logprobs).abs().max() < 1e-4
    assert (opened_logprobs - separate_logprobs).abs().max() < 1e-4
    assert not torch.equal(separate_logprobs, base_logprobs)
    assert torch.equal(logprobs(adapted_model), separate_logprobs)
    assert torch.equal(logprobs(host.model), base_logprobs)
