"""Recipe lint: values outside of a published range are named with every source, and nothing is refused."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import tiny_experiment
from ruamel.yaml import YAML

from harness import config, experiment, plugins
from harness.config.checks import BATCH, SHARE, Range, lint, ranges
from harness.experiment import Scope, prepare_session
from harness.progress import SilentProgress

ROOT = Path(__file__).parents[2]
SMALL, MIDDLE = 135e6, 7e9


def lint_recipe(method, size, **params):
    return list(lint(method, plugins.method(method).params(**params).model_dump(), size, params))


def test_a_range_is_of_settings_that_its_methods_have_and_names_its_source():
    for entry in ranges():
        methods = plugins.methods(published_as=entry.training) if entry.training else ["lora"]
        assert methods, "a method is published as such a training"
        for method in methods:
            fields = plugins.method(method).params.model_fields
            settings = {*fields, *([BATCH, SHARE] if "per_device_train_batch_size" in fields else [])}
            assert {entry.setting, *entry.only} <= settings
        assert entry.source
        assert entry.low <= entry.high
        assert entry.from_b < entry.to_b
        assert (entry.low, entry.high) != (-inf, inf)


def test_what_a_method_is_published_as_is_in_the_table():
    declared = {plugins.method(name).published_as for name in plugins.names("methods")} - {""}
    assert declared == {entry.training for entry in ranges()} - {""}


def lint_rate(method, size, **params):
    return [line for line in lint_recipe(method, size, **params) if line.startswith("learning_rate")]


def test_a_value_is_named_with_the_sources_that_speak_of_models_of_its_size():
    assert lint_rate("lora", MIDDLE, learning_rate=4e-4) == [], "Biderman et al. alone give it"
    assert lint_rate("full", SMALL, learning_rate=3e-5) == [], "Devlin et al. alone give it"
    assert lint_recipe("lora", SMALL, num_train_epochs=1, learning_rate=5e-4) == []
    assert "Hu et al." in lint_rate("lora", SMALL, learning_rate=1e-5)[0]
    assert not any("Dettmers" in line for line in lint_rate("lora", SMALL, learning_rate=1e-5))
    assert not any("beta" in line for line in lint_recipe("dpo", SMALL, beta=5.0, loss_type="ipo"))
    rank_range = Range("r", "S", "low-rank adapters", high=4.0)
    assert rank_range.speaks_of("lora", {}, SMALL)
    (line,) = (x for x in lint_recipe("full", SMALL, num_train_epochs=9, learning_rate=3e-5) if "epochs" in x)
    assert "at most 4 (Devlin" in line


def test_a_default_is_named_as_one():
    (line,) = lint_rate("full", MIDDLE)
    assert line.startswith("learning_rate 0.0001, the default, is above what was published")
    (line,) = lint_rate("full", MIDDLE, learning_rate=1e-4)
    assert line.startswith("learning_rate 0.0001 is above")


def test_a_warmup_of_none_of_a_share_and_of_steps_is_each_judged_as_what_it_is():
    for warmup in (0, 0.05, 300):
        assert not any("warm" in line for line in lint_recipe("lora", SMALL, warmup_steps=warmup))


def test_no_value_of_a_shipped_recipe_is_outside_of_what_was_published():
    for file in ROOT.glob("baselines/*.yaml"):
        recipe = YAML(typ="safe").load(file)
        if plugins.method(recipe.get("method", "base")).trains:
            for size in (SMALL, MIDDLE):
                assert lint_recipe(recipe["method"], size, **recipe.get("params", {})) == [], file


SIZES = (1e6, 50e6, SMALL, 0.6e9, 1.1e9, 3.8e9, MIDDLE, 400e9)


@pytest.mark.parametrize("data", [{"pairs": True}, {"pairs": False, "thumbs": True}])
def test_what_init_proposes_is_remarked_on_for_no_size_of_base(data):
    for size in SIZES:
        situation = plugins.Situation(closed_labels=False, n_parameters=size, **data)
        for name in plugins.methods(trains=True):
            recipe = plugins.method(name).proposal(situation) or {}
            for rate in recipe.get("sweep", {}).get("learning_rate", []):
                assert lint_recipe(name, size, **recipe.get("params", {}), learning_rate=rate) == []


EVERY_TRAINING = ("dpo", "kto", "grpo", "rloo", "spectrum", "bottleneck", "head", "reward")


@pytest.mark.parametrize(
    ("method", "params", "start"),
    [
        ("lora", {"r": 1024}, "r 1024 is above"),
        ("lora", {"num_train_epochs": 40}, "num_train_epochs 40 is above"),
        ("lora", {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 8}, "rows of a step 512 is above"),
        ("lora", {"warmup_steps": 0.3}, "share of warm-up steps 0.3 is above"),
        ("dpo", {"beta": 5.0}, "beta 5 is above"),
        ("grpo", {"learning_rate": 1e-3}, "learning_rate 0.001 is above"),
        ("lora", {"weight_decay": 0.5}, "weight_decay 0.5 is above"),
        ("qlora", {"lora_dropout": 0.5}, "lora_dropout 0.5 is above"),
        ("full", {"warmup_steps": 50}, "warmup_steps 50 is below"),
        *((name, {"warmup_steps": 0.3}, "share of warm-up steps 0.3 is above") for name in EVERY_TRAINING),
        *((name, {"weight_decay": 0.5}, "weight_decay 0.5 is above") for name in EVERY_TRAINING),
    ],
)  # fmt: skip
def test_each_kind_of_setting_is_judged(method, params, start):
    assert any(line.startswith(start) for line in lint_recipe(method, SMALL, **params))


SWEPT = """\
  one: {method: lora, params: {r: 2}, sweep: {learning_rate: [0.001, 0.3]}}
  two: {method: lora, params: {r: 2, learning_rate: 0.3}}
  fine: {method: lora, params: {r: 2, learning_rate: 0.0004}}
  borrowed: {weights_of: two}
"""


def test_every_point_of_a_sweep_is_judged_and_what_is_alike_is_said_once(tiny, tmp_path, own_cache):
    loaded = config.load(tiny_experiment.write(tmp_path, tiny, SWEPT))
    session = prepare_session(loaded, Scope(), SilentProgress())
    sized = {name: c.base._replace(n_parameters=int(SMALL)) for name, c in session.candidates.items()}
    session.candidates = {n: replace(c, base=sized[n]) for n, c in session.candidates.items()}
    lines = experiment.recipe_warnings(session, loaded.selected)
    (line,) = (line for line in lines if "learning_rate 0.3 " in line)
    assert line.startswith(
        "recipe of one, two: learning_rate 0.3 is above what was published for a model of 135 M"
    )


def test_rows_that_are_longer_than_a_training_takes_are_counted_beforehand(tiny, tmp_path, own_cache):
    short = "  short: {method: lora, params: {r: 2, max_length: 8}}\n  long: {method: lora, params: {r: 2}}\n"
    loaded = config.load(tiny_experiment.write(tmp_path, tiny, short))
    session = prepare_session(loaded, Scope(), SilentProgress())
    n = len(session.target.items.train)
    (line,) = (line for line in experiment.recipe_warnings(session, loaded.selected) if "max_length" in line)
    assert line.startswith(f"recipe of short: about {n} of {n} rows are longer than max_length, 8 tokens,")
