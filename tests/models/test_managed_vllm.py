"""vLLM as a server: started for a base, it agrees with transformers and ends with its parent process."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import fake_vllm
import pytest
import tiny_experiment
import tiny_methods
from forking import children_of, is_alive, wait_for

from harness import config, store
from harness.analysis.comparison import check_comparable
from harness.errors import CandidateFailed, IncompatibleRuns, UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import suite_sets
from harness.experiment import Scope, compare, prepare_session
from harness.models import vllm
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.records import Limits
from harness.spec import VllmPolicy

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return fake_vllm.install(tmp_path_factory.mktemp("venv") / "bin")


@pytest.fixture
def fake_answers(monkeypatch):
    monkeypatch.setenv("FAKE_VLLM_MODEL", "none")


def make_server(tiny, program, folder, reports=None, **settings):
    policy = VllmPolicy(command=str(program), **settings)
    notes, log = reports if reports is not None else [], folder / "logs" / "server.log"

    def report(done, total, note=""):
        notes.append((total, note))

    return vllm.VllmServer(resolve(str(tiny)), tiny_methods.CPU, policy, log, report)


@pytest.mark.e2e
def test_the_server_says_what_transformers_says_and_ends_with_all_that_it_started(tiny, program, tmp_path):
    reports = []
    host = make_server(tiny, program, tmp_path, reports, args=("--max-model-len=300",))
    local = ModelHost(resolve(str(tiny)), tiny_methods.CPU).base
    texts = [({"role": "user", "content": text},) for text in ("Where is my parcel?", "Who wrote it?")]
    pairs = [local.encode(text, answer)[:2] for text in texts for answer in ("late", " a")]
    served = host.base
    assert served.engine == "vllm-server/9.9.9"
    assert served.max_context == 299
    served_scores, local_scores = ([x.logprob for x in base.loglikelihood(pairs)] for base in (served, local))
    assert served_scores == pytest.approx(local_scores, abs=1e-4)
    prompts = [served.encode(t).context for t in texts]
    served_texts, expected = ([o.text for o in base.generate(prompts, Limits(8))] for base in (served, local))
    assert served_texts == expected
    log_text = (tmp_path / "logs" / "server.log").read_text()
    assert "'--max-model-len=300'" in log_text
    assert "'--dtype', 'float32'" in log_text
    assert "'--generation-config', 'vllm'" in log_text
    assert {total for total, _ in reports} == {900}
    assert any("INFO" in note for _, note in reports)
    process_ids = children_of(host._running.supervisor.pid)
    assert len(process_ids) == 2  # the server and its child
    host.close()
    assert not any(map(is_alive, process_ids))


def test_a_server_that_does_not_start_says_why_and_where_its_log_lies(tiny, program, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "no-memory")
    with pytest.raises(CandidateFailed) as failure:
        make_server(tiny, program, tmp_path)
    assert "ended with exit code 1" in failure.value.reason
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in failure.value.reason
    assert str(tmp_path / "logs" / "server.log") in failure.value.reason
    assert "--max-model-len" in failure.value.knob


@pytest.mark.e2e
def test_a_server_that_dies_while_it_is_asked_fails_that_candidate_and_starts_anew(
    tiny, program, tmp_path, monkeypatch, fake_answers
):
    monkeypatch.setenv("FAKE_VLLM", "dies-after-2")
    host = make_server(tiny, program, tmp_path, num_concurrent=1)
    base, prompt = host.base, (5, 6, 7)
    base.generate([prompt, prompt], Limits(2))
    for _ in range(2):
        with pytest.raises(CandidateFailed, match=r"exit code 7; its last lines: .*the engine core died"):
            base.generate([prompt], Limits(2))
    monkeypatch.delenv("FAKE_VLLM")
    assert len(host.base.generate([prompt], Limits(2))) == 1
    host.close()


@pytest.mark.e2e
def test_the_server_ends_where_its_supervisor_is_killed_and_asks_for_no_key_of_the_environment(
    tiny, program, tmp_path, monkeypatch, fake_answers
):
    monkeypatch.setenv("VLLM_API_KEY", "of-another-server")
    host = make_server(tiny, program, tmp_path)
    assert len(host.base.generate([(5, 6, 7)], Limits(2))) == 1
    process_ids = children_of(host._running.supervisor.pid)
    host._running.supervisor.kill()
    wait_for(lambda: not any(map(is_alive, process_ids)))
    assert host._running.describe_end().startswith("vLLM's server ended with its supervisor")
    host.close()


@pytest.mark.parametrize("word", ["--port", "--served_model_name=mine"])
def test_an_argument_by_which_the_server_is_asked_is_refused_when_it_is_read(tiny, tmp_path, word):
    extra = f"engine: vllm\nvllm: {{command: vllm, args: ['{word}', '1']}}\n"
    path = tiny_experiment.write(tmp_path, tiny, tiny_experiment.TUNED, extra=extra)
    name = word.partition("=")[0].replace("_", "-")
    with pytest.raises(UserError, match=rf"harness.yaml:\d+.*{name}, by which the server is asked"):
        config.load(path)


@pytest.mark.e2e
def test_the_server_ends_where_the_process_that_started_it_is_killed(tiny, program, tmp_path, fake_answers):
    script = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import tiny_methods\n"
        "from pathlib import Path\n"
        "from harness.models.hub import resolve\n"
        "from harness.models import vllm\n"
        "from harness.spec import VllmPolicy\n"
        f"host = vllm.VllmServer(resolve({str(tiny)!r}), tiny_methods.CPU, VllmPolicy(command={str(program)!r}),\n"
        f"    Path({str(tmp_path)!r}) / 'server.log', lambda *_, note='': None)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "ready\n"
    process_ids = children_of(driver.pid)
    assert len(process_ids) == 3  # the supervisor, the server and its child
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not any(map(is_alive, process_ids)))


# A whole experiment


def answers(path, run):
    """Read a run's answers by task and item: the text and the log-probability of the right answer."""
    run_store = store.Store(path.parent / "runs")
    rows = [row for digest in run.rows.values() for row in store.read_rows(run_store, digest)]
    return {(row.task, row.split, row.example_id): (row.text, row.gold_logprob) for row in rows}


@pytest.mark.slow
def test_a_comparison_by_the_server_has_the_answers_of_one_by_transformers(tiny, program, tmp_path):
    settings = f"engine: vllm\nvllm: {{command: {program}, args: [--max-model-len=900]}}\n"
    paths = [
        tiny_experiment.write(tmp_path / name, tiny, tiny_experiment.TUNED, extra=extra)
        for name, extra in (("ours", ""), ("theirs", settings))
    ]
    both = []
    for path in paths:
        compare(path)
        both.append(tiny_experiment.runs_of(path))
    assert [sorted(runs) for runs in both] == [["lora", "prompt"]] * 2
    for name in ("prompt", "lora"):
        expected, served = (answers(path, runs[name]) for path, runs in zip(paths, both, strict=True))
        assert served.keys() == expected.keys()
        assert [text for text, _ in served.values()] == [text for text, _ in expected.values()]
        logprobs, known = ([p for _, p in texts.values() if p is not None] for texts in (served, expected))
        assert logprobs == pytest.approx(known, abs=1e-3)
    at, rows = store.Store(paths[1].parent / "runs"), both[1]["lora"].rows
    assert {store.read_identity(at, digest).engine for digest in rows.values()} == {"vllm-server/9.9.9"}
    (log,) = (paths[1].parent / "runs" / ".vllm").glob("*.log")
    time_before = log.stat().st_mtime_ns
    compare(paths[1])
    assert log.stat().st_mtime_ns == time_before, "stored rows start no server again"


# Refusals and separate rows


def test_another_version_or_setting_of_vllm_has_other_rows(tiny, program, tmp_path):
    newer_program = fake_vllm.install(tmp_path / "newer", "10.0.0")
    our_policy, their_policy = (VllmPolicy(command=str(path)) for path in (program, newer_program))
    assert vllm.identity(our_policy)[0] == "vllm-server/9.9.9"
    assert vllm.identity(their_policy)[0] == "vllm-server/10.0.0"
    assert vllm.identity(our_policy)[1] == vllm.identity(their_policy)[1]
    longer, patient = ({"args": ("--max-model-len=4096",)}, {"start_timeout": 5})
    settings = (VllmPolicy(command=str(program), **options) for options in ({}, patient, longer))
    plain, later, other = map(vllm.identity, settings)
    assert plain == later != other


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("/no/such/vllm", "which is not a program here; .*pip install vllm"),
        ("ls", "which does not say its version"),
    ],
)
def test_a_program_that_is_not_vllm_is_refused_before_anything_runs(tiny, tmp_path, command, found):
    extra = f"engine: vllm\nvllm: {{command: {command}}}\n"
    path = tiny_experiment.write(tmp_path, tiny, tiny_experiment.TUNED, extra=extra)
    with pytest.raises(UserError, match=rf"vllm.command: found {command}, {found}.*vllm"):
        open_session(path)


def test_an_adapter_is_refused_where_vllm_is_to_take_none(tiny, program, tmp_path):
    extra = f"engine: vllm\nvllm: {{command: {program}, enable_lora: false}}\n"
    path = tiny_experiment.write(tmp_path, tiny, tiny_experiment.TUNED, extra=extra)
    with pytest.raises(UserError, match=r"candidate lora: found an adapter, and vllm.enable_lora: false"):
        open_session(path, candidates=())


@pytest.mark.e2e
def test_the_server_gives_its_memory_back_before_anything_trains(tiny, program, tmp_path, fake_answers):
    extra = f"engine: vllm\nvllm: {{command: {program}}}\n"
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n", extra=extra)
    session = open_session(path)
    host = session.host(session.source)
    process_ids = children_of(host._running.supervisor.pid)
    assert process_ids
    session.unload()
    assert not any(map(is_alive, process_ids))
    assert host.source == session.source  # the host object is still in use


REFUSED_CANDIDATES = """\
  prompt: {method: base}
  quantised: {method: qlora}
  plain: {weights_of: quantised, serve_on: bf16}
  decomposed: {method: lora, params: {use_dora: true}}
  wide: {method: lora, sweep: {r: [8, 128]}}
  theirs: {method: adapter, path: ./theirs}
  scaled: {method: adapter, path: ./scaled}
  soft: {method: adapter, path: ./soft}
"""


def open_session(path, *overrides, candidates=("prompt",)):
    return prepare_session(config.load(path, overrides, candidates), Scope(), SilentProgress())


@pytest.fixture
def experiment_file(tiny, tmp_path):
    patterns = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 64}}
    large_rank, soft_prompt = {"r": 256, "lora_alpha": 16}, {"peft_type": "PROMPT_TUNING"}
    for name, adapter_config in {"theirs": large_rank, "scaled": patterns, "soft": soft_prompt}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(adapter_config))
    return tiny_experiment.write(tmp_path, tiny, REFUSED_CANDIDATES)


def test_what_vllm_cannot_serve_is_refused_all_at_once(experiment_file, program):
    names = ("prompt", "quantised", "plain", "decomposed", "wide", "theirs", "scaled", "soft")
    with pytest.raises(UserError) as refusal:
        open_session(experiment_file, "engine=vllm", f"vllm.command={program}", candidates=names)
    problems = {(problem.where.rpartition(": ")[2], problem.found) for problem in refusal.value.problems}
    assert problems >= {
        ("candidate quantised", "a quantised base, and engine: vllm"),
        ("candidate decomposed", "DoRA, and engine: vllm"),
        ("candidate wide", "an adapter of rank 128, and engine: vllm"),
        ("candidate theirs", "an adapter of rank 256, and engine: vllm"),
        ("candidate scaled", "an adapter with alpha_pattern, and engine: vllm"),
        ("candidate soft", "an adapter of the family PROMPT_TUNING, and engine: vllm"),
    }
    assert not {where for where, _ in problems} & {"engine", "candidate prompt", "candidate plain"}


def test_rows_of_two_engines_are_never_compared(experiment_file, program):
    engines = ((), ("engine=vllm", f"vllm.command={program}"))
    sessions = [open_session(experiment_file, *overrides) for overrides in engines]
    ours, theirs = (suite_sets(session, base_weights(session.source))[0].identity for session in sessions)
    assert theirs.engine == "vllm-server/9.9.9"
    assert ours.digest != theirs.digest
    with pytest.raises(IncompatibleRuns, match=r"engine 'transformers/packed' and 'vllm-server/9\.9\.9'"):
        check_comparable(ours, theirs)
