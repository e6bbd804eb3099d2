"""A file in a folder is a plugin."""

from pathlib import Path

import pytest

import harness
from harness import plugins
from harness.errors import UserError


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_the_names_of_a_kind_are_its_public_files(kind):
    files = (Path(harness.__file__).parent / kind).iterdir()
    public = sorted(f.stem for f in files if f.suffix == ".py" and not f.name.startswith("_"))
    assert plugins.names(kind) == public


@pytest.mark.parametrize("kind", ["methods", "prompting"])
def test_every_recipe_plugin_exports_its_parameters(kind):
    assert all(hasattr(plugins.load(kind, name), "Params") for name in plugins.names(kind))


@pytest.mark.parametrize("kind", ["methods", "prompting"])
def test_the_needs_of_a_plugin_are_files_of_the_data(kind):
    from harness.spec import TaskData

    needs = {need for name in plugins.names(kind) for need in getattr(plugins.load(kind, name), "NEEDS", ())}
    assert needs <= set(TaskData.model_fields)


def test_a_loaded_plugin_is_the_module_of_its_file():
    assert plugins.load("prompting", "zero_shot").__name__ == "harness.prompting.zero_shot"


def test_a_misspelt_plugin_is_refused_with_the_nearest_name():
    with pytest.raises(UserError) as caught:
        plugins.load("prompting", "few_shots", "harness.yaml:7")
    problem = caught.value.problems[0]
    assert problem.where == "harness.yaml:7"
    assert problem.found == "unknown prompting 'few_shots'"
    assert problem.next_step == "did you mean 'few_shot'?"


def test_a_name_like_no_plugin_lists_them_all():
    with pytest.raises(UserError) as caught:
        plugins.load("prompting", "qqqq")
    assert all(name in caught.value.problems[0].next_step for name in plugins.names("prompting"))


def test_a_private_file_is_no_plugin():
    with pytest.raises(UserError):
        plugins.load("methods", "__init__")
