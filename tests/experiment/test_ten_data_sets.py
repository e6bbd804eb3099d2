"""Ten data sets of ten kinds go from `harness init` to a decision on the tiny model, without an edit."""

import pytest
import ten_kinds
import tiny_experiment
import tiny_model

from harness.experiment import scaffold
from harness.experiment.scaffold import Request, Resources
from harness.models.hardware import Machine, Memory

# For a machine this slow `init` keeps few training rows, and one learning rate.
NO_MACHINE = Resources(Machine("cpu", "a machine", "fp32", 0.001), Memory(64.0, 80.0, "memory"))
ITEMS = 12  # of each task of the suites, and of the target's test
SLOW = pytest.mark.slow
WEEKLY = ("20,000 rows", "long documents", "another language", "JSON output", "messy spreadsheet")
TIERS = dict.fromkeys(WEEKLY, pytest.mark.weekly)
LONGER = 4096  # tokens; the tiny model's position encoding has no limit


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    return tiny_model.copy(tiny, tmp_path_factory.mktemp("base") / "tiny", max_position_embeddings=LONGER)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=TIERS.get(name, SLOW)) for name in ten_kinds.KINDS]
)
def test_rows_of_every_kind_end_in_a_decision(name, base, rule_cache, tmp_path):
    kind = ten_kinds.KINDS[name]
    request = Request(tmp_path / "new", str(ten_kinds.write(kind, tmp_path)), str(base), minutes=20.0)
    proposal = scaffold.propose(request, NO_MACHINE)
    assert proposal.kind == kind.task
    report = tiny_experiment.run(scaffold.write(proposal)[0], limit=ITEMS)
    states = {fact.name: fact.state for fact in report.facts}
    assert states == dict.fromkeys(proposal.candidates, "done")
    decision = report.decision
    assert decision.candidate in {*states, None}
    assert decision.missing == ()
    if kind.truth:
        assert decision.candidate == kind.truth
    if kind.never:
        assert decision.action not in ("fine-tune", "hybrid")


def test_an_export_of_a_spreadsheet_is_read_by_its_odd_headers(base, tmp_path):
    path = ten_kinds.write(ten_kinds.KINDS["messy spreadsheet"], tmp_path)
    proposal = scaffold.propose(Request(tmp_path, str(path), str(base)), NO_MACHINE)
    assert proposal.task.fields.prompt == "{Customer Text (as sent)}"
    assert proposal.task.fields.reference == "{Final Label}"
    assert proposal.task.labels == ("borrow", "repair", "return")
    assert any("dropped, invalid: an empty" in line for line in proposal.lines)
