"""Commands on the stored runs of the whole quickstart load no model, and so no torch."""

import commands
import pytest
import stored_quickstart

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    stored_quickstart.write(folder)
    commands.run(folder, "compare")  # which fills caches
    return folder


@pytest.mark.parametrize(
    "asked",
    [("compare",), ("gate", "--candidate", "lora", "gate.on_inconclusive=pass")],
    ids=lambda one: one[0],
)
def test_a_command_on_stored_runs_imports_no_torch(quickstart, asked):
    assert not commands.run(quickstart, *asked).imported_torch
