"""The study behind the calibration page: stored figures, stale cells, and failed claims on the page."""

import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from harness import plugins
from tests.calibration import study
from tests.calibration.cell import Cell, Figure, claim_at_most
from tests.calibration.design import BY_NAME, CELLS
from tests.calibration.page import list_failing_claims, page

CONTROL = [c for c in CELLS if c.world.startswith("control arm")]


def test_every_cell_has_a_name_of_its_own_and_every_estimator_a_cell_in_the_tests():
    assert len(BY_NAME) == len(CELLS)
    assert {c.estimator for c in CELLS if c.in_tests} == {c.estimator for c in CELLS}


@pytest.mark.e2e
def test_kept_figures_are_used_until_more_draws_are_wanted_or_changed_code_makes_other_first_draws(tmp_path):
    path = tmp_path / "kept.json"
    ((name, first),) = study.study(20, CONTROL, path).items()
    assert study.study(20, CONTROL, path) == {name: first}
    study.write({name: first._replace(code="another", first={})}, path)
    assert study.study(20, CONTROL, path)[name].code == study.code_digest()
    assert study.study(30, CONTROL, path)[name].n_draws == 30

    changed_cell = first._replace(code="another", seconds=1e6)
    study.write({name: changed_cell}, path)
    rerun = study.study(20, CONTROL, path)
    assert rerun[name] == changed_cell._replace(repeated=study.code_digest())
    assert "Of 1 cells, code that they run has changed since; drawn again" in page(CONTROL, rerun)
    assert "†" not in page(CONTROL, rerun)

    other_values = {claim: f"0.5{values[1:]}" for claim, values in first.first.items()}
    study.write({name: changed_cell._replace(first=other_values)}, path)
    redrawn = study.study(20, CONTROL, path)[name]
    assert (redrawn.code, redrawn.repeated, redrawn.first) == (study.code_digest(), "", first.first)


def test_a_claim_that_fails_is_named_on_the_page_with_its_figure():
    cell = Cell("gate", "a world", lambda rng: iter(()), {"x": claim_at_most(0.05, "it errs")})
    figures = {cell.name: study.CellFigures({"x": Figure(0.2, 0.01, 2000)}, 2000, 1.0, "abc")}
    assert list_failing_claims([cell], figures) == ["gate: a world: it errs: 20.0 ± 1.0, claimed at most 5"]
    assert "| a world | it errs | at most 5 | 20.0 ± 1.0 | 2,000 | **FAILS**" in page([cell], figures)
    assert "0 of 1 claims in 1 cells hold" in page([cell], figures)


def test_the_page_marks_the_cells_whose_code_has_changed_since(tmp_path):
    figures = study.study(20, CONTROL, tmp_path / "kept.json")
    (name,) = figures
    fresh = page(CONTROL, figures)
    assert "No code that a cell runs has changed" in fresh
    assert "†" not in fresh
    changed_page = page(CONTROL, {name: figures[name]._replace(code="another")})
    assert "Of 1 cells, marked †" in changed_page
    assert "| yes† |" in changed_page


@pytest.mark.e2e
def test_whatever_cells_were_seen_to_run_makes_them_stale_where_it_changes():
    plugins.methods(trains=True)  # code that a module runs at import is not part of a draw
    ran: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        ran.add(frame.f_code.co_filename)

    for cell in (c for c in CELLS if c.in_tests):
        draws, before = cell.simulate(np.random.default_rng(0)), sys.getprofile()
        sys.setprofile(note)
        try:
            next(draws)
        finally:
            sys.setprofile(before)
    project_files = {
        file
        for file in map(Path, ran)
        if any(file.is_relative_to(study.ROOT / p) for p in ("harness", "tests"))
    }
    assert project_files - {Path(__file__)} <= set(study.code_files())


def test_a_default_of_a_policy_makes_cells_stale_and_a_comment_does_not(tmp_path, monkeypatch):
    for file in study.code_files():
        copied = tmp_path / file.relative_to(study.ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(file.read_text("utf-8"), "utf-8")
    ours, policies = study.code_digest(), tmp_path / "harness/spec/policies.py"
    monkeypatch.setattr(study, "ROOT", tmp_path)
    read_afresh = study.code_digest.__wrapped__
    policies.write_text(policies.read_text("utf-8") + "# a remark\n", "utf-8")
    assert read_afresh() == ours
    changed_code = policies.read_text("utf-8").replace("macro: Margin = 0.02", "macro: Margin = 0.03")
    policies.write_text(changed_code, "utf-8")
    assert read_afresh() != ours
