"""What vLLM cannot serve is refused before anything runs, and its rows are never compared with others."""

import json

import fake_vllm
import pytest
import tiny_experiment

from harness import config
from harness.comparison import check_comparable
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import suite_sets
from harness.experiment import Scope, prepare_session
from harness.experiment.preflight import measure_noise
from harness.progress import SilentProgress

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


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return fake_vllm.install(tmp_path_factory.mktemp("venv") / "bin")


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


def list_refusals(path, program, *candidates):
    with pytest.raises(UserError) as refusal:
        open_session(path, "engine=vllm", f"vllm.command={program}", candidates=candidates)
    return {(p.where.rpartition(": ")[2], p.found) for p in refusal.value.problems}


def test_what_vllm_cannot_serve_is_refused_all_at_once(experiment_file, program):
    found = list_refusals(
        experiment_file,
        program,
        "prompt",
        "quantised",
        "plain",
        "decomposed",
        "wide",
        "theirs",
        "scaled",
        "soft",
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


def test_an_engine_that_is_not_installed_is_refused_before_anything_runs(experiment_file):
    with pytest.raises(UserError, match=r"found /no/vllm, which is not a program here; .*pip install vllm"):
        open_session(experiment_file, "engine=vllm", "vllm.command=/no/vllm")


def test_rows_of_two_engines_are_never_compared(experiment_file, program):
    sessions = (
        open_session(experiment_file),
        open_session(experiment_file, "engine=vllm", f"vllm.command={program}"),
    )
    ours, theirs = (suite_sets(session, base_weights(session.source))[0].identity for session in sessions)
    assert theirs.engine == "vllm-server/9.9.9"
    assert ours.digest != theirs.digest
    with pytest.raises(IncompatibleRuns, match=r"engine 'transformers/packed' and 'vllm-server/9\.9\.9'"):
        check_comparable(ours, theirs)


def test_noise_between_layouts_is_that_of_transformers_alone(experiment_file, program):
    with pytest.raises(UserError, match="engine: vllm; expected the engine whose layouts are varied"):
        measure_noise(open_session(experiment_file, "engine=vllm", f"vllm.command={program}"))
