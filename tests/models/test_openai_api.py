"""A model over HTTP answers as in memory, and every failure of a server is reported."""

import json
import shutil
import time

import openai_server
import pytest
import tiny_experiment
import tiny_methods
from conftest import refused
from openai_server import Fault, Model, Rule, ServerAnswer, serve_model
from pydantic import ValidationError
from tiny_experiment import fact_of, runs_of
from tiny_model import CHOICES, QUESTIONS

from harness import config, report
from harness.errors import CandidateFailed
from harness.experiment import compare
from harness.experiment.checkup import examine
from harness.experiment.study import load_study
from harness.lifecycle import release
from harness.methods.made_elsewhere import Endpoint
from harness.models import openai_api
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.openai_api import Settings
from harness.progress import SilentProgress
from harness.records import Limits
from harness.store import Store, read_rows

pytestmark = pytest.mark.usefixtures("own_cache")

KEY = "sk-very-secret-7f3a"


@pytest.fixture(scope="module")
def source(tiny, own_cache):
    return resolve(str(tiny))


@pytest.fixture(scope="module")
def local_base(source):
    return ModelHost(source, tiny_methods.CPU).base


@pytest.fixture(scope="module")
def answer_model(tiny):
    """The model that answers, loaded once; each test puts its own server in front."""
    return Model(tiny)


@pytest.fixture
def server(answer_model):
    with serve_model(answer_model) as running_server:
        yield running_server


@pytest.fixture
def open_candidate(tiny, source, tmp_path):
    """Function that opens candidates as a run does: from the folder that the method wrote."""
    endpoints = []

    def open_by_server(server, **params):
        settings = {"base_url": server.url, "model": openai_server.NAME, "max_retries": 0, **params}
        made = Endpoint.METHOD.fit(tiny_methods.context(tiny, tmp_path / "made"), Endpoint.Params(**settings))
        endpoint = openai_api.open_endpoint(openai_api.settings_of(made.folder), made.digest, source)
        endpoints.append(endpoint)
        return endpoint.__enter__()

    yield open_by_server
    for endpoint in endpoints:
        endpoint.__exit__(None, None, None)


def turns(text):
    return [{"role": "user", "content": text}]


def pairs(candidate):
    encoded = [candidate.encode(turns(text), choice) for text in QUESTIONS for choice in CHOICES]
    text_pair = candidate.encode((), " ".join(QUESTIONS), chat_template=False)
    return [(encoded_pair.context, encoded_pair.continuation) for encoded_pair in (*encoded, text_pair)]


def answers(candidate, limits, n=None):
    """Ask the first n questions; returns the text, finish reason and prompt tokens of each answer."""
    outputs = candidate.generate([candidate.encode(turns(text)).context for text in QUESTIONS[:n]], limits)
    return [(output.text, output.finish_reason, output.n_prompt_tokens) for output in outputs]


# Agreement with the model in memory


@pytest.mark.e2e
def test_likelihoods_are_those_of_the_model_in_memory(local_base, server, open_candidate):
    local_scores, served_scores = (
        local_base.loglikelihood(pairs(local_base)),
        open_candidate(server).loglikelihood(pairs(local_base)),
    )
    assert [x.logprob for x in served_scores] == pytest.approx([x.logprob for x in local_scores], abs=1e-4)
    assert [x.greedy for x in served_scores] == [x.greedy for x in local_scores]


@pytest.mark.parametrize(("protocol", "limits"), [("completions", Limits(40)), ("chat", Limits(12))])
def test_answers_are_those_of_the_model_in_memory(local_base, server, open_candidate, protocol, limits):
    served_answers = answers(open_candidate(server, protocol=protocol), limits)
    assert served_answers == answers(local_base, limits)
    assert server.asked[-1][0] == ("/v1/chat/completions" if protocol == "chat" else "/v1/completions")


def test_an_answer_ends_before_a_stop_string_also_of_those_a_server_was_not_told(
    local_base, server, open_candidate
):
    ((text, *_),) = answers(local_base, Limits(12), n=1)
    limits = Limits(12, (text[4:6], "never said"))
    served_answers = answers(open_candidate(server), limits)
    assert served_answers == answers(local_base, limits)
    assert served_answers[0][0] == text[: text.index(text[4:6])]

    with serve_model(Rule(lambda messages: "late.Or not")) as rule:
        candidate, stops = open_candidate(rule, protocol="chat"), ("!", "?", ";", ":", ".")
        (output,) = candidate.generate([encode_as_json()], Limits(9, stops))
        assert rule.asked[0][1]["stop"] == [*stops[:4]]  # the protocol takes four
    assert (output.text, output.finish_reason) == ("late", "stop")


def encode_as_json(text="Yes?"):
    return tuple(json.dumps(turns(text)).encode())


# Requests


def test_answers_come_in_the_order_of_the_questions_however_they_arrive(open_candidate):
    def answer_slowest_first(messages):
        number = int(messages[-1]["content"])
        time.sleep((9 - number) / 50)
        return f"answer {number}"

    with serve_model(Rule(answer_slowest_first)) as rule:
        prompts = [encode_as_json(str(n)) for n in range(10)]
        outputs = open_candidate(rule, protocol="chat").generate(prompts, Limits(4))
    assert [output.text for output in outputs] == [f"answer {n}" for n in range(10)]


@pytest.mark.e2e
def test_a_busy_server_is_asked_again(server, open_candidate):
    server.faults = [Fault(429), Fault(503)]
    outputs = open_candidate(server, max_retries=2, num_concurrent=1).generate([(5, 6, 7)], Limits(2))
    assert [output.finish_reason for output in outputs] == ["length"]


def test_a_prompt_that_the_server_finds_too_long_is_an_error_row_and_the_others_go_on(
    local_base, open_candidate, answer_model
):
    class ShortContext:
        max_model_len = 30
        complete = answer_model.complete

    with serve_model(ShortContext()) as short_server:
        candidate = open_candidate(short_server)
        assert candidate.max_context == 29
        short_output, long = candidate.generate([(5, 6, 7), tuple(range(4, 40))], Limits(2))
    assert short_output.finish_reason == "length"
    assert (long.finish_reason, long.error) == ("error", "This model's maximum context length is 30 tokens.")


# Failures


def failure(candidate, prompts=((5, 6, 7),)):
    with pytest.raises(CandidateFailed) as caught:
        candidate.generate(list(prompts), Limits(2))
    return str(caught.value)


def test_a_server_that_is_down_a_model_that_it_lacks_and_a_web_page_are_named_with_what_to_do(
    answer_model, open_candidate, server
):
    with serve_model(answer_model) as stopped:
        url = stopped.url
    with pytest.raises(CandidateFailed) as caught:
        open_candidate(stopped)
    assert str(caught.value) == (
        f"tiny at {url}: found no server; expected an answer; try: start it, or correct base_url"
    )
    assert (
        "status 404, The model `other` does not exist.; expected an answer; try: a base_url that ends with /v1"
        in (failure(open_candidate(server, model="other")))
    )
    with serve_model(Rule(lambda messages: "late")) as chat_server:
        assert "or protocol: chat where it has no completions" in failure(open_candidate(chat_server))
    server.page = b"<html>Welcome</html>"
    with pytest.raises(CandidateFailed, match=r"a page that is not a list of models.*ends with /v1"):
        open_candidate(server)


@pytest.mark.parametrize(("variable", "asked"), [("SUPPORT_KEY", "SUPPORT_KEY"), ("OPENAI_API_KEY", None)])
def test_a_wrong_key_is_said_and_never_shown_and_that_of_another_provider_never_sent(
    answer_model, open_candidate, monkeypatch, variable, asked
):
    monkeypatch.setenv(variable, KEY)
    with serve_model(answer_model, key="another" if asked else KEY) as guarded_server:
        problem = failure(open_candidate(guarded_server, **({"api_key_env": asked} if asked else {})))
    assert "status 401" in problem
    assert not asked or "the key in the variable that api_key_env names" in problem
    assert KEY not in problem


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(server, open_candidate, monkeypatch):
    monkeypatch.setenv("SUPPORT_KEY", "two\nlines")
    problem = "a key in SUPPORT_KEY with characters that no header"
    with pytest.raises(CandidateFailed, match=problem) as caught:
        open_candidate(server, api_key_env="SUPPORT_KEY")
    assert "two\nlines" not in str(caught.value)


def test_headers_of_another_provider_are_never_sent(server, open_candidate, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-of-another")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: secret-of-another")
    open_candidate(server).generate([(5, 6, 7)], Limits(2))
    assert server.headers
    assert "of-another" not in str(server.headers)


def test_what_went_wrong_is_kept_as_it_is_but_for_the_key(server, open_candidate, monkeypatch):
    server.faults = [Fault(400, openai_server._error("none of these fields is known"))]
    assert "none of these fields" in failure(open_candidate(server))
    monkeypatch.setenv("SUPPORT_KEY", KEY)
    server.faults = [Fault(400, openai_server._error(f"context length is less for {KEY}"))]
    (row,) = open_candidate(server, api_key_env="SUPPORT_KEY").generate([(5, 6, 7)], Limits(2))
    assert row.error == "context length is less for …"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(429), "status 429, busy; expected an answer; try: a smaller num_concurrent, or more max_retries"),
        (Fault(200, after_s=0.6), "nothing within 0.3 s; expected an answer; try: a longer timeout"),
    ], ids=["busy", "slow"],
)  # fmt: skip
def test_what_a_server_says_instead_of_an_answer_has_a_name(server, open_candidate, fault, words):
    server.faults = [fault]
    assert words in failure(open_candidate(server, timeout=0.3 if fault.after_s else 60))


def test_likelihoods_need_a_server_that_echoes_prompts_and_adds_nothing(server, open_candidate, answer_model):
    server.faults = [Fault(200, openai_server._response(ServerAnswer("x"), {"text": "x", "logprobs": None}))]
    with pytest.raises(CandidateFailed, match=r"of 0 tokens where 3 were sent.*protocol: chat"):
        open_candidate(server).loglikelihood([((5, 6), (7,))])
    probs = answer_model.logprobs([1, 5, 6, 7])
    server.faults = [Fault(200, openai_server._response(ServerAnswer("x"), {"text": "x", "logprobs": probs}))]
    with pytest.raises(CandidateFailed, match="log-probabilities of 5 tokens where 3 were sent"):
        open_candidate(server).loglikelihood([((5, 6), (7,))])


# Stored settings


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "https://me:secret@host/v1", "https://host/v1?key=1"]
)
def test_an_address_is_one_of_the_web_and_holds_no_secret(url):
    with pytest.raises(ValidationError, match="base_url"):
        Settings(base_url=url, model="m")


def test_the_weights_are_named_by_address_model_and_protocol_alone():
    settings = Settings(base_url="http://host/v1", model="m")
    same_model = Settings(base_url="http://host/v1/", model="m", api_key_env="A", num_concurrent=1, timeout=9)
    assert settings.weights_digest == same_model.weights_digest
    changes = [{"base_url": "http://host/v2"}, {"model": "n"}, {"protocol": "chat"}]
    named = [Settings(**{"base_url": "http://host/v1", "model": "m", **change}) for change in changes]
    assert len({settings.weights_digest, *(s.weights_digest for s in named)}) == 4


# A whole comparison

CANDIDATES = """\
  prompt: {{method: base}}
  served:
    method: endpoint
    params: {{base_url: {url}, model: tiny, api_key_env: SUPPORT_KEY, max_retries: 0}}
  shots: {{weights_of: served, prompting: {{few_shot: {{select: fixed, shots: 2}}}}}}
  ranked: {{weights_of: served, answer: rank}}
  chatty: {{method: endpoint, params: {{base_url: {url}, model: tiny, api_key_env: SUPPORT_KEY, protocol: chat}}}}
"""
PRICES = "decide.usd_per_million_tokens={input: 1, output: 2}"


@pytest.fixture(scope="module")
def file_and_report(answer_model, tiny, own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as environment, serve_model(answer_model, key=KEY) as guarded_server:
        environment.setenv("SUPPORT_KEY", KEY)
        path = tiny_experiment.write(folder, tiny, CANDIDATES.format(url=guarded_server.url))
        result = compare(path, ["seeds=[0,1]"])
        report.write(result, folder / "reports")
        yield path, guarded_server, result


def test_the_base_behind_an_address_scores_as_in_memory_and_so_judges_the_gate(file_and_report):
    path, _, result = file_and_report
    assert {(fact.name, fact.seed, fact.state, fact.error) for fact in result.facts} == {
        (name, 0, "done", "") for name in ("prompt", "served", "shots", "ranked", "chatty")
    }
    prompt, served, chatty = (fact_of(result, name).target for name in ("prompt", "served", "chatty"))
    assert served == chatty == prompt
    store = Store(path.parent / "runs")
    local_texts, served_texts = (
        [(row.text, row.prompt_digest) for row in read_rows(store, runs_of(path)[name].rows["letters/test"])]
        for name in ("prompt", "served")
    )
    assert served_texts == local_texts
    assert [c.delta for c in result.comparisons["served"]] == pytest.approx([0] * 3, abs=1e-4)

    (gate_result,) = release.gate(path, "served", ["seeds=[0,1]"])
    assert gate_result.verdict.outcome == fact_of(result, "served").verdict.outcome
    (chat_result,) = release.gate(path, "chatty", ["seeds=[0,1]"])
    # The texts in bits per byte are not counted, though chat cannot score them: no rule judges them.
    assert "1 task not answered by both (sums)" in chat_result.verdict.sentence
    (facts_result,) = release.gate(path, "chatty", ["seeds=[0,1]", "gate.tasks=[facts]"])
    assert "tasks" not in [rule.name for rule in facts_result.verdict.rules]


def test_an_endpoint_is_judged_on_what_it_was_asked_and_has_no_cost_without_prices(file_and_report):
    *_, result = file_and_report
    notes, served = " ".join(result.notes), fact_of(result, "served")
    assert "chatty: not evaluated on sums, prose, which need token ids or their log-probabilities" in notes
    assert "served: not evaluated" not in notes
    assert served.verdict is not None
    assert [comparison.task for comparison in result.comparisons["chatty"]] == ["facts"]

    assert (served.cost_per_1k_usd, served.training_cost_usd) == (None, 0)
    assert "its requests have no price here without usd_per_million_tokens" in notes
    p50_s = served.speed.latency_p50_s
    assert p50_s is None or p50_s > 0, "unknown where other work disturbed it"
    assert result.seeds == ()
    assert [fact.training_cost_usd for fact in result.facts] == [0.0] * 5


def test_with_prices_an_endpoint_costs_its_tokens(file_and_report, monkeypatch):
    monkeypatch.setenv("SUPPORT_KEY", KEY)
    fact = fact_of(compare(file_and_report[0], ["seeds=[0,1]", PRICES]), "chatty")
    tokens = fact.tokens
    assert fact.cost_per_1k_usd == pytest.approx(1000 * (tokens.prompt + 2 * tokens.output) / 1e6)
    assert tokens.cached == 0


def test_the_key_stands_in_no_file_and_a_second_comparison_asks_nobody(file_and_report, monkeypatch):
    texts = [file.read_bytes() for file in file_and_report[0].parent.rglob("*") if file.is_file()]
    assert len(texts) > 20
    assert not any(KEY.encode() in text for text in texts)
    monkeypatch.setenv("SUPPORT_KEY", KEY)
    path, server, first_report = file_and_report
    n_asked = len(server.asked)
    result = compare(path, ["seeds=[0,1]"])
    assert [fact.target for fact in result.facts] == [fact.target for fact in first_report.facts]
    assert len(server.asked) == n_asked


def test_an_endpoint_can_be_promoted_and_local_runs_are_gated_against_it(file_and_report, tmp_path):
    shutil.copytree(file_and_report[0].parent, tmp_path / "copy")
    path = tmp_path / "copy" / "harness.yaml"
    stored_study = load_study(config.load(path, ["seeds=[0,1]"]))
    run = runs_of(path)["served"]
    release.promote(stored_study, run, "", "it is what is served")
    (gate_result,) = release.gate(path, "prompt", ["seeds=[0,1]"])
    assert gate_result.baseline == f"the champion served ({run.run_id})"


# Refusals before anything runs


def list_refusals(path, *overrides, candidates=("served",)):
    refusal = refused(compare, path, overrides, candidates)
    return [(problem.where, problem.found) for problem in refusal.problems]


@pytest.fixture
def experiment_file(tiny, tmp_path):
    return tiny_experiment.write(tmp_path, tiny, CANDIDATES.format(url="http://localhost:1/v1"))


@pytest.mark.e2e
def test_a_key_that_is_not_in_the_environment_is_refused_with_its_line(
    experiment_file, monkeypatch, own_cache, command
):
    monkeypatch.delenv("SUPPORT_KEY", raising=False)
    missing = ("harness.yaml:9", "no variable SUPPORT_KEY in the environment")
    assert list_refusals(experiment_file) == [missing]
    problems = examine(experiment_file, [], SilentProgress()).problems
    assert missing in [(problem.where, problem.found) for problem in problems]
    code, _, output = command("compare", "-c", experiment_file, "--candidates", "served")
    assert (code, "next: export SUPPORT_KEY=" in output) == (2, True)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["eval", "hinted"], "an endpoint on an external server, tiny at http://8.8.8.8:1/v1"),
        (
            ["compare", "--dry-run", "--candidates", "served"],
            "served on an external server, tiny at http://8.8.8.8:1/v1",
        ),
    ],
)
def test_sensitive_rows_are_sent_to_nobody_elses_server(
    tiny, tmp_path, own_cache, monkeypatch, command, words, found
):
    monkeypatch.setenv("SUPPORT_KEY", KEY)
    hinted_candidate = "  hinted: {weights_of: served, prompting: {few_shot: {shots: 1}}}\n"
    candidates = CANDIDATES.format(url="http://8.8.8.8:1/v1") + hinted_candidate
    path = tiny_experiment.write(tmp_path, tiny, candidates, extra="decide: {needs: [sensitive_data]}\n")
    code, printed, problem = command(*words, "-c", path)
    assert (code, printed) == (2, "")
    assert f"found {found}" in problem
    assert words[0] == "eval" or "next: --candidates without it, or remove it or sensitive_data" in problem


def test_an_endpoint_that_cannot_rank_be_swept_or_replayed_is_refused(experiment_file, monkeypatch):
    monkeypatch.setenv("SUPPORT_KEY", KEY)
    override = "candidates.ranked.weights_of=chatty"
    (where, problem), *_ = list_refusals(experiment_file, override, candidates=["ranked"])
    assert where == f"harness.yaml:13, override {override}"
    assert problem.startswith("ranked, asked by chat")
    sweep = "candidates.chatty.sweep={answer: [generate, rank]}"
    ((_, problem),) = list_refusals(experiment_file, sweep, candidates=["chatty"])
    assert problem.startswith("chatty, asked by chat, and a target that needs")

    refusal = refused(config.load, experiment_file, ["candidates.served.sweep={timeout: [1, 2]}"])
    assert "a sweep with the method endpoint, which trains no language model" in str(refusal)
