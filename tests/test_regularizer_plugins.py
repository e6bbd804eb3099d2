"""Every regulariser of the folder keeps the contract: documented, known hooks, another training, the same again."""

import inspect
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import tiny_methods
import yaml

from harness import plugins, regularizers
from harness.regularizers import MixContext
from harness.training import CHECKPOINTS

NAMES = plugins.names("regularizers")
PARTS = {*plugins.HOOKS, "sample", "cost", "problem"}
PAGE = Path(__file__).parents[1] / "docs" / "howto" / "regularizers.md"
QUICK = {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4, "warmup_steps": 0}

pytestmark = pytest.mark.usefixtures("own_cache")


def read_documented(name):
    """Return the example of a regulariser in the docs, else in its own docstring, as a recipe writes it."""
    texts = PAGE.read_text(), plugins.load("regularizers", name).__doc__ or ""
    found = next(
        filter(None, (re.search(rf"`regularize: (\{{{name}: [^`]*\}})`", text) for text in texts)), None
    )
    assert found, f"neither docs/howto/regularizers.md nor its docstring has `regularize: {{{name}: …}}`"
    return yaml.safe_load(found[1])


def fit_regularized(tiny, folder, regularize, advance=lambda *_: None):
    """Train on the tiny model by the first method that takes the regulariser, or as `full` without one."""
    name = next(iter(regularize), None)
    able = [m for m in ("full", "lora", "dpo") if name is None or plugins.takes(plugins.method(m), name)]
    method = plugins.method(able[0])
    rows, context = tiny_methods.examples(slice(2, 4)), tiny_methods.context(tiny, folder)
    mixes = name and hasattr(plugins.load("regularizers", name), "mix")
    context = replace(
        context,
        advance=advance,
        train=(*context.train, *rows) if mixes else context.train,
        prepare=partial(regularizers.prepare, regularize),
        regularize=regularize,
        general={name: rows} if name and hasattr(plugins.load("regularizers", name), "sample") else {},
    )
    return method.fit(context, method.params(**QUICK))


@pytest.fixture(scope="module")
def plain_fit(tiny, own_cache, tmp_path_factory):
    return fit_regularized(tiny, tmp_path_factory.mktemp("plain"), {})


@pytest.mark.parametrize("name", NAMES)
def test_what_it_exports_is_known_and_takes_the_arguments_of_its_hook(name):
    plugin = plugins.load("regularizers", name)
    own = {n for n, f in inspect.getmembers(plugin, inspect.isfunction) if f.__module__ == plugin.__name__}
    public = {n for n in own if not n.startswith("_")}
    assert public & set(plugins.HOOKS)
    if "sample" in public:
        assert {"mix", "penalty"} & public
    arguments = {
        "mix": ["mixture", "evaluate"],
        "prepare": ["model", "params"],
        "penalty": ["start", "params"],
        "step": ["model", "backward", "params"],
        "select": ["names", "progress", "params", "seed"],
        "arguments": ["params"],
        "smoothing": ["params"],
        "sample": ["context", "params"],
        "cost": ["params", "n_rows"],
        "problem": ["params"],
    }
    assert set(arguments) == PARTS
    for part in public & PARTS:
        assert list(inspect.signature(getattr(plugin, part)).parameters) == arguments[part]


@pytest.mark.parametrize("name", NAMES)
def test_its_example_in_the_docs_is_taken_and_names_what_it_requires(name):
    plugin, written = plugins.load("regularizers", name), read_documented(name)[name]
    params = plugin.Params(**written)
    assert {key for key, field in plugin.Params.model_fields.items() if field.is_required()} <= set(written)
    assert plugin.Params.__doc__ or not plugin.Params.model_fields
    if hasattr(plugin, "cost"):
        assert plugin.cost(params, 8) > 1


NUMBERS = [
    (name, key)
    for name in NAMES
    for key, field in plugins.load("regularizers", name).Params.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_parameters_out_of_range_are_refused(name, key):
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=key):
            plugins.load("regularizers", name).Params(**{**read_documented(name)[name], key: wrong})


@pytest.mark.parametrize("name", NAMES)
def test_it_moves_the_digest_of_weights(name):
    beside = {} if name == "replay" else {"replay": {"share": 0.1}}
    digests = [
        regularizers.regularizers_digest(written, MixContext(30, 0, {}))
        for written in (beside, read_documented(name), beside | read_documented(name))
    ]
    assert len(set(digests)) == (2 if name == "replay" else 3)


@pytest.mark.e2e
@pytest.mark.parametrize("name", NAMES)
def test_a_training_with_it_ends_elsewhere_and_in_the_same_place_after_a_stop(
    tiny, tmp_path, plain_fit, name
):
    regularize = read_documented(name)
    if name == "freeze":
        regularize = {name: {"first": 1}}  # the tiny model has two layers

    def stop(done, total, note=""):
        if done == 2:
            raise KeyboardInterrupt

    made = fit_regularized(tiny, tmp_path / "whole", regularize)
    assert made.digest != plain_fit.digest
    assert all(loss == loss for _, loss in made.training.loss)
    with pytest.raises(KeyboardInterrupt):
        fit_regularized(tiny, tmp_path / "cut", regularize, stop)
    assert any((tmp_path / "cut" / CHECKPOINTS).glob("checkpoint-*"))
    assert fit_regularized(tiny, tmp_path / "cut", regularize).digest == made.digest
