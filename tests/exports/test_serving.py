"""Served runs: servers that are ready once they give the stored answers, and that end with the command."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import fake_vllm
import pytest
import tiny_experiment
import tiny_gguf
from forking import children_of, is_alive, wait_for
from tiny_experiment import runs_of
from typer.testing import CliRunner

from harness import exports, store
from harness.cli import app
from harness.errors import HarnessError, UserError
from harness.exports import ExportedFile
from harness.exports._serving import ServingProgram
from harness.models import artefacts
from harness.records import checksum

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_cache")]

CANDIDATES = """\
  prompt: {method: base}
  ranked: {answer: rank}
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
  hybrid: {weights_of: lora, prompting: {few_shot: {select: fixed, shots: 2}}}
"""
KEY = "sesame"


@pytest.fixture(scope="module")
def made(tiny, own_cache, tmp_path_factory):
    """Run an experiment and export the adapter's run, merged and as GGUF."""
    path = tiny_experiment.write(tmp_path_factory.mktemp("served"), tiny, CANDIDATES)
    tiny_experiment.run(path)
    result = CliRunner().invoke(app, ["export", "lora", "--to", "merged", "-c", str(path)])
    assert result.exit_code == 0, (result.output, result.exception)
    write_gguf(path)
    return path


def write_gguf(path, name="gguf-f32", template=None):
    """Write the adapter's merged export as GGUF, with a record of its own."""
    at = store.Store(path.parent / "runs")
    exported = exports.exports_of(at, runs_of(path)["lora"].run_id).items()
    ((merged, record),) = ((folder, export) for folder, export in exported if export.format == "merged")
    folder = merged.with_name(name)
    folder.mkdir()
    file = tiny_gguf.write(merged, folder / "lora.gguf", template)
    files = {file.name: ExportedFile(checksum(file), file.stat().st_size)}
    created = f"{record.created}-{name}"  # later than the merged one
    gguf_record = replace(record, format="gguf", quantization="f32", files=files, created=created)
    (folder / "export.json").write_text(json.dumps(asdict(gguf_record)))
    return folder


@contextmanager
def serving(path, *words, **environment):
    """Start the command; yields its process and its output when ready, or all of its output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "harness", "serve", *words, "-c", str(path), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell in the background ignores
    )  # fmt: skip
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("curl "):
                break
        yield process, lines or process.communicate()[1].splitlines()
    finally:
        process.kill()
        process.communicate()


def ask(url, path, key="", body=None):
    request = Request(f"{url}{path}", json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("way", "end"), [("gguf", signal.SIGTERM), ("merged", signal.SIGKILL), ("vllm", signal.SIGINT)]
)
def test_it_is_ready_with_the_stored_answers_and_ends_with_all_that_it_started(made, tmp_path, way, end):
    """SIGTERM goes to the server alone; the other signals go to the command."""
    from openai import OpenAI

    name = "hybrid" if way == "merged" else "lora"
    words = [name, "--to", way]
    if way != "merged":
        words += ["--api-key-env", "SERVE_KEY"]
    if way == "vllm":
        words.append(f"vllm.command={fake_vllm.install(tmp_path / 'bin')}")
    with serving(made, *words, SERVE_KEY=KEY) as (process, lines):
        assert lines[0].endswith("; 12 of 12 answers are the stored ones"), lines
        url, model = lines[0].split()[1].rstrip(","), lines[0].split()[3]
        client = OpenAI(base_url=url, api_key=KEY)
        run = runs_of(made)[name]
        row = store.read_rows(store.Store(made.parent / "runs"), run.rows["letters/test"])[0]
        sent = json.loads(shlex.split(lines[-1])[-1])
        assert sent["model"] == model == ("merged-fp32" if way == "merged" else "lora")
        if name == "hybrid":
            assert lines[1].startswith("served are the weights alone: few_shot makes each request's prompt")
            assert len(sent["messages"]) == 5
        answer = client.chat.completions.create(**sent, max_tokens=4, temperature=0).choices[0]
        assert answer.message.content.strip() == row.text.strip()
        if way == "gguf":
            short = json.loads(ask(url, "/chat/completions", KEY, sent))
            assert short["usage"]["completion_tokens"] <= 4  # the limit of the target
            assert "llamacpp:prompt_tokens_total" in ask(url.removesuffix("/v1"), "/metrics", KEY)
            headers = {"Authorization": f"Bearer {KEY}", "Origin": "http://evil"}
            with urlopen(Request(f"{url}/models", headers=headers), timeout=30) as answer:
                assert answer.headers.get("Access-Control-Allow-Origin", "") == ""
        if way != "merged":
            with pytest.raises(HTTPError, match="401"):
                ask(url, "/chat/completions", "wrong", sent)
        numbers = children_of(process.pid)
        assert numbers
        if way == "gguf":
            os.kill(sorted(numbers)[1], end)  # the server; the first is its supervisor
        else:
            process.send_signal(end)
        wait_for(lambda: not any(map(is_alive, numbers)))
        process.wait(30)
        stderr = process.stderr.read()
        assert KEY not in stderr
        if way == "gguf":
            assert process.returncode == 1
            assert "llama.cpp's server ended with exit code -15; its last lines:" in stderr


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[-1]['content'] }}", r"12 of 12 prompts with other lengths .*-\d has \d+ tokens"),
        (None, r"12 of 12 answers other than stored, more than rounding changes \(\w+-\d 'late'"),
    ],
)
def test_a_server_that_is_not_the_run_is_ended_with_the_first_differences(made, tmp_path, template, said):
    words = ["lora", "--to", "gguf"]
    if template is None:
        words = ["lora", "--to", "vllm", f"vllm.command={fake_vllm.install(tmp_path / 'bin')}"]
    folder = write_gguf(made, "gguf-other", template) if template else None
    try:
        with serving(made, *words, FAKE_VLLM_MODEL="none") as (process, lines):
            assert process.returncode == 1
            assert re.search(said, lines[-1]), lines
            assert ", stored " in lines[-1]
    finally:
        if folder:
            shutil.rmtree(folder)


def invoke(path, *words):
    return CliRunner().invoke(app, ["serve", *words, "-c", str(path)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("lora --to gguf --host 0.0.0.0", "0.0.0.0, and no --api-key-env"),
        ("lora --to merged --host 0.0.0.0 --api-key-env SERVE_KEY", "`transformers serve` checks no key"),
        ("lora --to merged --api-key-env SERVE_KEY", "`transformers serve` checks no key"),
        ("lora --to ggml", "did you mean 'gguf'?"),
        ("lora --to gguf --api-key-env NO_SUCH_KEY", "no variable NO_SUCH_KEY in the environment"),
        ("lora --to vllm vllm.command=/no/such", "which is not a program here"),
        ("ranked --to merged", "answers that are chosen by their log-probabilities"),
        ("bag --to merged", "weights of the kind classifier"),
        ("nothing", "a candidate of the file, or a run's id"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(made, words, said):
    result = invoke(made, *words.split())
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert said in str(result.exception)


def test_a_file_that_has_changed_is_not_served(made):
    folder = made.parent / "runs" / "exports" / runs_of(made)["lora"].run_id / "gguf-f32"
    file, content = folder / "lora.gguf", (folder / "lora.gguf").read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = invoke(made, "lora", "--to", "gguf", "--print")
    file.write_bytes(content)
    assert isinstance(result.exception, HarnessError)
    assert str(file) in str(result.exception)


def test_the_printed_command_and_compose_file_name_the_variable_of_the_key_alone(made, monkeypatch):
    monkeypatch.setenv("SERVE_KEY", KEY)
    result = invoke(made, "lora", "--api-key-env", "SERVE_KEY", "--host", "0.0.0.0", "--print")
    assert result.exit_code == 0, result.exception
    command, compose = result.stdout.split("\n\n# compose.yaml\n")
    assert KEY not in result.stdout
    assert "llama_server.py lora.gguf --alias lora --parallel 4" in command  # the last export
    service = json.loads(compose)["services"]["model"]
    assert service["environment"] == {"LLAMA_API_KEY": "${SERVE_KEY:?}"}
    assert service["ports"] == ["0.0.0.0:8000:8000"]
    assert service["volumes"][0].endswith("/gguf-f32:/model:ro")


def test_a_server_with_an_empty_key_does_not_start(monkeypatch):
    monkeypatch.setenv("SERVE_KEY", " ")
    program = str(Path(artefacts.__file__).with_name("llama_server.py"))
    words = "m.gguf --alias m --api-key-env SERVE_KEY".split()
    result = subprocess.run([sys.executable, "-P", program, *words], capture_output=True, text=True)
    assert (result.returncode, "no key in the variable SERVE_KEY" in result.stderr) == (2, True)
    environment = {"VLLM_API_KEY": "$SERVE_KEY", "VLLM_NO_USAGE_STATS": "1"}
    program = ServingProgram("vLLM", "m", ["vllm", "serve"], Path("/a  b"), environment, {})
    expected = 'VLLM_API_KEY="${SERVE_KEY:?}" VLLM_NO_USAGE_STATS="1" vllm serve'
    assert program.as_shell() == f"cd '/a  b' && {expected}"
