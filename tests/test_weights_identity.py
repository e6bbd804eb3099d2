"""Weights are named by what their training was asked, its system text too."""

import pytest
import tiny_experiment

from harness.config import load
from harness.experiment import Scope, prepare_session
from harness.experiment.weights.weights_folder import folder_of
from harness.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("own_cache")

CANDIDATES = """\
  lora: {method: lora, params: {r: 2, max_steps: 1}}
  dpo: {method: dpo, params: {r: 2, max_steps: 1}}
  own: {method: dpo, system: Be kind., params: {r: 2, max_steps: 1}}
"""
PAIR = {"prompt": "Where is it?", "chosen": "late", "rejected": "money"}


@pytest.fixture
def name_weights(tiny, tmp_path):
    """Return a function that names the weights of each candidate beside lines of the task."""
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES)
    suite = tmp_path / "suites" / "letters.yaml"
    written = suite.read_text().replace("data: {", "data: {pairs: letters/pairs.jsonl, ")
    tiny_experiment.rows(suite.with_suffix("") / "pairs.jsonl", [PAIR])

    def name(lines=""):
        suite.write_text(written + lines)
        session = prepare_session(load(path), Scope(), SilentProgress())
        return {c.name: folder_of(session, c, 0, None).name for c in session.candidates.values()}

    return name


@pytest.mark.parametrize("lines", ["    system: Be brief.\n", "    chat_template: false\n"])
def test_preference_pairs_that_are_asked_otherwise_make_other_weights(name_weights, lines):
    before, after = name_weights(), name_weights(lines)
    assert before["dpo"] != after["dpo"]
    assert before["lora"] != after["lora"]


def test_a_system_text_that_a_candidate_does_not_take_changes_no_weights_of_its(name_weights):
    assert name_weights()["own"] == name_weights("    system: Be brief.\n")["own"]
