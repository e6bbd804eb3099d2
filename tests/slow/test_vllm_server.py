"""vLLM's own server over HTTP gives the same results as transformers with the embedded model; needs vLLM."""

import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import tiny_methods

from harness.methods.made_elsewhere import Endpoint
from harness.models import openai_api
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.records import Limits

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(shutil.which("vllm") is None, reason="vLLM is not installed"),
]

MODEL = "smollm2-135m"
PATIENCE_S = 500
NATS = 1e-3
QUESTIONS = (
    "Where is my parcel?", "What is the capital of France?", "Name three colours.",
    "Write one sentence about the sea.", "How many legs has a spider?",
)  # fmt: skip
CHOICES = ("Paris", "It is late.", "red, green and blue", "eight")


@pytest.fixture(scope="module")
def source():
    return resolve(MODEL)


@pytest.fixture(scope="module")
def local_base(source):
    return ModelHost(source, tiny_methods.CPU).base


@pytest.fixture(scope="module")
def url(source, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--model", source.path, "--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", 1024,
    ]  # fmt: skip
    options += ["--host", "127.0.0.1", "--port", port, "--generation-config", "vllm"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, options)]
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _wait(server, health, log):
    end = time.monotonic() + PATIENCE_S
    while server.poll() is None and time.monotonic() < end:
        try:
            with urlopen(health, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(1)
    pytest.fail(f"vLLM's server did not start: {log.read_text()[-3000:]}")


@pytest.fixture
def endpoints(source, url, tmp_path):
    def open_by_protocol(protocol):
        weights = Endpoint.METHOD.fit(
            tiny_methods.context(source.path, tmp_path / protocol, source=source),
            Endpoint.Params(base_url=url, model=MODEL, protocol=protocol),
        )
        return openai_api.open_endpoint(openai_api.settings_of(weights.folder), weights.digest, source)

    return open_by_protocol


def turns(text):
    return [{"role": "user", "content": text}]


def answers(candidate, limits):
    outputs = candidate.generate([candidate.encode(turns(text)).context for text in QUESTIONS], limits)
    return [(o.text, o.finish_reason, o.n_prompt_tokens) for o in outputs]


def test_likelihoods_are_those_of_transformers(local_base, endpoints):
    encoded = [local_base.encode(turns(text), choice) for text in QUESTIONS for choice in CHOICES]
    whole = local_base.encode((), " ".join(QUESTIONS), chat_template=False)
    pairs = [(e.context, e.continuation) for e in (*encoded, whole)]
    with endpoints("completions") as candidate:
        assert candidate.max_context == 1023
        theirs = candidate.loglikelihood(pairs)
    ours = local_base.loglikelihood(pairs)
    assert [x.logprob for x in theirs] == pytest.approx([x.logprob for x in ours], abs=NATS)
    assert [x.greedy for x in theirs] == [x.greedy for x in ours]


@pytest.mark.parametrize("protocol", ["completions", "chat"])
@pytest.mark.parametrize("limits", [Limits(1), Limits(24), Limits(24, (".",))])
def test_answers_are_those_of_transformers(local_base, endpoints, protocol, limits):
    with endpoints(protocol) as candidate:
        assert answers(candidate, limits) == answers(local_base, limits)


def test_a_prompt_that_vllm_finds_too_long_is_an_error_row(endpoints):
    with endpoints("completions") as candidate:
        (output,) = candidate.generate([(5,) * 1100], Limits(4))
    assert output.finish_reason == "error"
    assert "1024" in output.error
