"""Nights against a real HTTP server whose model is swapped or that goes down."""

import shutil

import nights
import openai_server
import pytest
import worlds
from nights import FIRST, STILL, NightlyHost, Rates, folder_of, line_of
from openai_server import Fault, Rule, serve_model

from harness import config, experiment, report
from harness.evaluation.session import EngineSlot
from harness.experiment import Scope, prepare_session
from harness.lifecycle import nightly, nightly_alarm
from harness.lifecycle.nightly_state import read_nights
from harness.progress import SilentProgress

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("rule_cache")]

WORSE = Rates(lost=0.2, gained=0, general_lost=0.2)


def rule(rates, day=FIRST):
    oracle = nights.Nightly(nights.TRUTH, "0", True, (0, day), rates, lambda prompt: None)
    return Rule(lambda messages: oracle._output(messages).text)


@pytest.fixture(scope="module")
def finished_world(rule_cache, tmp_path_factory):
    with serve_model(rule(STILL)) as server:
        path = worlds.write(
            tmp_path_factory.mktemp("finished") / "world", nights.TRUTH, worlds.Sizes(test=200, general=60)
        )
        endpoint = f"{{method: endpoint, params: {{base_url: {server.url}, model: {openai_server.NAME}, protocol: chat, max_retries: 0}}}}"
        text = path.read_text() + f"  served: {endpoint}\nnightly: {{candidates: [lora, served]}}\n"
        path.write_text(text)
        session, loaded = worlds.open_world(path, nights.TRUTH, candidates=["prompt", "lora", "served"])
        worlds.write_training(session, session.candidates["lora"])
        experiment.run_all(session, loaded)
        yield server, path.parent


@pytest.fixture
def server_and_file(finished_world, tmp_path):
    server, folder = finished_world
    server.model, server.faults = rule(STILL), []
    shutil.copytree(folder, tmp_path / "world")
    return server, tmp_path / "world" / "harness.yaml"


def night(path, n):
    day = FIRST.replace(day=n)
    session = prepare_session(config.load(path), Scope(), SilentProgress())
    host = NightlyHost(nights.TRUTH, session.source, (0, day), STILL, lambda prompt: None)
    return nightly.run_night(path, night=day, slot=EngineSlot(host))


def line(night_report, name="served"):
    return line_of(night_report, name)


def test_a_worse_model_behind_the_same_address_is_a_regression_and_named_as_the_endpoint(server_and_file):
    server, path = server_and_file
    assert night(path, 1).verdict == "ok"
    server.model = rule(WORSE)
    reports = [night(path, n) for n in (2, 3, 4)]
    assert reports[-1].verdict == "regression"
    assert (line(reports[-1]).verdict, line(reports[-1], "lora").verdict) == ("regression", "ok")
    assert line(reports[0]).tests == (
        f"the endpoint (tiny at {server.url}), which answers its anchors otherwise than before",
        "the harness",
    )
    assert "which answers its anchors as since 2026-03-02" in line(reports[-1]).tests[0]
    assert "served tests the endpoint (tiny at" in "\n".join(
        map(str, report.terminal_lines(nightly_alarm.night_document(reports[-1])))
    )


def test_without_its_key_a_night_goes_on_with_the_others(server_and_file, monkeypatch):
    _, path = server_and_file
    night(path, 1)
    monkeypatch.delenv("SUPPORT_KEY", raising=False)
    path.write_text(path.read_text().replace("protocol: chat", "protocol: chat, api_key_env: SUPPORT_KEY"))
    second_night = night(path, 2)
    assert "found no variable SUPPORT_KEY in the environment" in line(second_night).sentence
    assert line(second_night, "lora").verdict == "ok"


def test_a_server_that_is_down_ends_no_night(server_and_file):
    server, path = server_and_file
    server.faults = [Fault(503)] * 1000
    first = night(path, 1)
    assert (first.verdict, first.exit_code) == ("error", 1)
    assert line(first).sentence.startswith(f"served: failed: tiny at {server.url}: found status 503, busy")
    assert line(first, "lora").verdict == "ok"
    server.faults = []
    assert night(path, 2).verdict == "ok"
    assert [n.night for n in read_nights(folder_of(path))] == ["2026-03-01", "2026-03-02"]
