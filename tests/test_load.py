"""Latency under load: of servers too where it is written how many requests come together, and in the report."""

import threading
import time
from dataclasses import replace

import pytest
import tiny_experiment
from fake_facts import candidate
from openai_server import Fault, Rule, serve_model
from test_prompt_search import HARNESS

from harness.decision import UnderLoad
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
    assert (first["first token p50"], first["first token p95"], first["first token alone"]) == (
        "0.2 s",
        "0.3 s",
        "0.1 s",
    )
    assert second["first token p50"] == "–"
