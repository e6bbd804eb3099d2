"""What vLLM says becomes our numbers, and what it cannot serve is refused before anything runs."""

import json
from types import SimpleNamespace

import pytest
import tiny_experiment

from harness import config
from harness.comparison import check_comparable
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.rows.row_sets import suite_sets
from harness.experiment import Scope, prepare_session
from harness.experiment.preflight.rounding_noise import measure_noise
from harness.experiment.preparation.candidate_problems import engine_problems
from harness.experiment.weights.weights_folder import folder_of
from harness.models import vllm
from harness.progress import SilentProgress
from harness.records import Likelihood

pytestmark = pytest.mark.usefixtures("own_cache")

CANDIDATES = """\
  prompt: {method: base}
  quantised: {method: qlora}
  plain: {weights_of: quantised, serve_on: bf16}
  decomposed: {method: lora, params: {use_dora: true}}
  wide: {method: lora, sweep: {r: [8, 128]}}
  theirs: {method: adapter, path: ./theirs}
  scaled: {method: adapter, path: ./scaled}
  soft: {method: adapter, path: ./soft}
"""


def make_logprob(token, logprob, rank):
    """Return what vLLM says of one token of a prompt."""
    return {token: SimpleNamespace(logprob=logprob, rank=rank)}


def test_the_likelihood_is_that_of_the_last_tokens_alone():
    tables = [None, make_logprob(5, -9.0, 70), make_logprob(7, -0.5, 1), make_logprob(8, -0.25, 1)]
    assert vllm.likelihood((7, 8), tables) == Likelihood(-0.75, greedy=True)


def test_one_token_that_is_not_the_likeliest_makes_a_continuation_not_greedy():
    tables = [None, make_logprob(7, -0.5, 1), make_logprob(8, -1.5, 2)]
    assert vllm.likelihood((7, 8), tables) == Likelihood(-2.0, greedy=False)


def test_the_engine_is_named_with_its_version():
    (older, layout), (newer, same) = vllm.identity("0.32.0", "cpu"), vllm.identity("0.33.0", "cpu")
    assert (older, newer) == ("vllm/0.32.0", "vllm/0.33.0")
    assert layout == same


def test_without_the_package_the_command_that_installs_it_is_named():
    with pytest.raises(UserError, match=r"no package vllm.*pip install 'harness-evals\[vllm\]'"):
        vllm.identity(None, "cpu")


@pytest.fixture
def vllm_package(tmp_path, monkeypatch):
    """Lay down what says that vLLM 9.9.9 is installed, as pip writes it."""
    folder = tmp_path / "packages" / "vllm-9.9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(folder.parent)
    return "vllm/9.9.9"


def open_session(path, *overrides, candidates=("prompt",)):
    return prepare_session(config.load(path, overrides, candidates), Scope(), SilentProgress())


@pytest.fixture
def experiment_file(tiny, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps({"r": 256, "lora_alpha": 16}))
    patterns = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 64}}
    for name, written in (("scaled", patterns), ("soft", {"peft_type": "PROMPT_TUNING"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(written))
    return tiny_experiment.write(tmp_path, tiny, CANDIDATES)


def list_refusals(path, *candidates):
    """Return what each problem of these candidates is of, and what was found there."""
    with pytest.raises(UserError) as refusal:
        open_session(path, "engine=vllm", candidates=candidates)
    return {(p.where.rpartition(": ")[2], p.found) for p in refusal.value.problems}


def test_what_vllm_cannot_serve_is_refused_all_at_once(experiment_file, vllm_package):
    found = list_refusals(
        experiment_file, "prompt", "quantised", "plain", "decomposed", "wide", "theirs", "scaled", "soft"
    )
    assert found >= {
        ("candidate quantised", "a quantised base, and engine: vllm"),
        ("candidate decomposed", "DoRA, and engine: vllm"),
        ("candidate wide", "an adapter of rank 128, and engine: vllm"),
        ("candidate theirs", "an adapter of rank 256, and engine: vllm"),
        ("candidate scaled", "an adapter with alpha_pattern, and engine: vllm"),
        ("candidate soft", "an adapter of the family PROMPT_TUNING, and engine: vllm"),
    }
    assert not {where for where, _ in found} & {"engine", "candidate prompt", "candidate plain"}


@pytest.mark.parametrize(
    ("device", "vllm_keys", "candidate", "named"),
    [
        ("cuda", "", "wide", "wide"),
        ("cuda", "", "prompt", ""),
        ("cuda", "vllm: {command: /opt/vllm/bin/vllm}\n", "wide", ""),
        ("cpu", "", "wide", ""),
    ],
)
def test_vllm_in_this_process_is_refused_on_a_gpu_that_something_else_wants(
    experiment_file, vllm_package, device, vllm_keys, candidate, named
):
    experiment_file.write_text(experiment_file.read_text() + vllm_keys)
    session = open_session(experiment_file, candidates=("prompt", "wide"))
    session.machine = session.machine._replace(device=device)
    session.experiment = session.experiment.model_copy(update={"engine": "vllm"})
    needed = [session.candidates[candidate]]
    found = [p for p in engine_problems(session, ["prompt"], needed) if "keeps the GPU's memory" in p.found]
    assert [p.found for p in found] == (
        [f"vLLM in this process, which keeps the GPU's memory, and {named}"] if named else []
    )


def test_an_adapter_without_its_file_is_refused_by_its_method_alone(experiment_file, vllm_package):
    (experiment_file.parent / "theirs" / "adapter_config.json").unlink()
    assert [where for where, _ in list_refusals(experiment_file, "theirs")] == ["candidate theirs"]


def test_transformers_serves_what_vllm_does_not(experiment_file):
    assert open_session(experiment_file, candidates=("prompt", "quantised", "decomposed", "wide"))


@pytest.mark.skipif(vllm.find_installed_version() is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed_is_refused_before_anything_runs(experiment_file):
    assert list_refusals(experiment_file, "prompt") == {("engine", "vllm, and no package vllm")}


def test_rows_of_two_engines_are_never_compared(experiment_file, vllm_package):
    sessions = open_session(experiment_file), open_session(experiment_file, "engine=vllm")
    ours, theirs = (suite_sets(session, base_weights(session.source))[0].identity for session in sessions)
    assert theirs.engine == vllm_package
    assert ours.digest != theirs.digest
    with pytest.raises(IncompatibleRuns, match=r"engine 'transformers/packed' and 'vllm/9\.9\.9'"):
        check_comparable(ours, theirs)


def test_weights_do_not_depend_on_the_engine(experiment_file, vllm_package):
    ours, theirs = open_session(experiment_file), open_session(experiment_file, "engine=vllm")
    wide = ours.candidates["wide"].trials[0]
    assert folder_of(ours, wide, 0, None) == folder_of(theirs, wide, 0, None)


def test_noise_between_layouts_is_that_of_transformers_alone(experiment_file, vllm_package):
    with pytest.raises(UserError, match="engine: vllm; expected the engine whose layouts are varied"):
        measure_noise(open_session(experiment_file, "engine=vllm"))
