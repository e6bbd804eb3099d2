"""Whatever can be chosen is listed with its purpose."""

import re

import pytest

from harness import plugins
from harness.experiment.catalog import map_purposes
from harness.spec import DecidePolicy


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_is_listed_with_the_first_line_of_its_docstring(kind):
    found = map_purposes(kind)
    assert sorted(found) == plugins.names(kind)
    for name, purpose in found.items():
        assert plugins.load(kind, name).__doc__.startswith(purpose)
        assert purpose


def test_suites_and_tasks_are_listed(folder):
    assert map_purposes("suites", folder / "suites") == {
        "other": "capability: sums, capitals",
        "tiny": "target: tiny",
    }
    assert {
        name: text.partition(":")[0] for name, text in map_purposes("tasks", folder / "suites").items()
    } == {"sums": "other", "capitals": "other", "tiny": "tiny"}


def test_every_key_of_the_file_is_listed_with_its_default_and_meaning():
    found = map_purposes("keys")
    assert found["gate.macro"].startswith("0.02 if not written. ")
    assert found["device"].startswith("auto, cpu, cuda; auto if not written. ")
    assert found["name"].startswith("has to be written. ")
    assert found["candidates.NAME.init_from"].startswith("nothing if not written. ")
    assert found["rescue.scales"].startswith("0.75, 0.5, 0.25 if not written. ")
    assert found["rescue.steps"].startswith("earlier, scale, merge, kl, replay, ")
    assert {f"decide.{name}" for name in DecidePolicy.model_fields} <= found.keys()
    assert found["decide"].startswith("Prices, volumes and needs")
    assert found["gate.drift"].startswith("nothing if not written. `drift` is a rise in bits per byte")
    assert [key for key, said in found.items() if re.fullmatch("[^`]*(if not|to be) written[.]", said)] == []
