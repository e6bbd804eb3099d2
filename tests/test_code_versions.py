"""Identities hold a version of our code by concern, and a pin says when the code behind one has changed."""

import pytest

from harness import plugins
from harness.provenance import TABLE, code_versions
from tests import pins


@pytest.mark.parametrize("concern", code_versions())
def test_a_pin_is_the_digest_of_the_code_it_stands_for(concern):
    listed = code_versions()[concern]
    assert listed.pin == pins.pin_of(pins.files_of(listed)), (
        f"the code of {concern!r} changed. If no result changes, run `make pins`; else raise its version in "
        f"{TABLE.name} and say why in the commit"
    )


def test_every_pattern_finds_a_file_and_every_plugin_and_default_is_listed():
    patterns = [pattern for listed in code_versions().values() for pattern in listed.files]
    assert [pattern for pattern in patterns if not list(pins.PACKAGE.glob(pattern))] == []
    assert pins.list_unlisted_plugins() == [], "run `make pins`"

    new = {
        model: fields.keys() - pins.read_known_defaults().get(model, {}).keys()
        for model, fields in pins.defaults().items()
    }
    assert {model: names for model, names in new.items() if names} == {}, "run `make pins`"


def test_another_computation_changes_the_pin_and_a_plugin_that_is_not_listed_its_version(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("def g(x):\n    return x + 1\n")
    two.write_text("def g(x):\n    return x + 2\n")
    assert pins.pin_of([one]) != pins.pin_of([two])

    own = tmp_path / "own.py"
    own.write_text("x = 1")
    first = plugins.version("metrics", str(own))
    own.write_text("x = 2")
    assert plugins.version("metrics", str(own)) != first
    assert plugins.version("metrics", "exact_match") == code_versions()["metrics/exact_match"].version


def test_a_method_leaves_out_what_is_at_its_default():
    assert plugins.method("lora").params().identity() == {}
    assert plugins.method("lora").params(learning_rate=0.01).identity() == {"learning_rate": 0.01}


@pytest.mark.parametrize("model", pins.read_known_defaults())
def test_a_default_that_identities_leave_out_has_not_changed(model):
    found, known = pins.defaults()[model], pins.read_known_defaults()[model]
    assert {name: found.get(name, value) for name, value in known.items()} == known, (
        f"a default of {model} changed, which no digest shows: raise the version of the concern that reads it, "
        f"say why in the commit, and change {pins.DEFAULTS.name}"
    )
