"""Weights are named by what their training was asked, its system text too."""

import pytest
import tiny_experiment

from harness.config import load
from harness.experiment import Scope, prepare_session
from harness.experiment.training_fit import folder_of
from harness.methods import dpo, lora, peft
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
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES, pairs=[PAIR])
    suite = tmp_path / "suites" / "letters.yaml"
    written = suite.read_text()

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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"r": 8, "lora_alpha": 16}, {"r": 8}, True),
        ({"r": 8, "lora_alpha": 8}, {"r": 8}, False),
        ({"target_modules": ["v_proj", "q_proj"]}, {"target_modules": ["q_proj", "v_proj"]}, True),
        ({"exclude_modules": ["o_proj", "v_proj"]}, {"exclude_modules": ["v_proj", "o_proj"]}, True),
        ({"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "v_proj"]}, False),
    ],
)
def test_a_low_rank_adapter_is_named_by_what_is_trained_and_not_by_what_is_written(one, other, same):
    for params in (lora.Params, dpo.Params):
        assert (params(**one).identity() == params(**other).identity()) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"lora_alpha": 8, "r": 8, "lora_dropout": 0, "rank_pattern": {}}, {}, True),
        ({"lora_alpha": 16}, {}, False),
        ({"init_lora_weights": False}, {}, False),
        ({"target_modules": "all-linear"}, {}, True),
        ({"target_modules": ["v_proj", "q_proj"]}, {"target_modules": ["q_proj", "v_proj"]}, True),
        ({"learning_rate": 0.001}, {}, True),
        ({"rank_pattern": {"v_proj": 2, "q_proj": 4}}, {"rank_pattern": {"q_proj": 4, "v_proj": 2}}, True),
    ],
)
def test_an_adapter_of_a_family_is_named_without_what_is_at_pefts_default(one, other, same):
    named = [peft.Params(peft_type="LORA", **params).identity() for params in (one, other)]
    assert (named[0] == named[1]) is same
    assert peft.Params(peft_type="LORA").identity() == {"peft_type": "LORA"}
