"""The study behind the calibration page: what it keeps, what makes a cell stale, and how a failed claim reads."""

import ast
import re
import shutil
import sys
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import pytest

from harness import plugins
from tests.calibration import study
from tests.calibration.cell import Cell, Figure, claim_at_most, run
from tests.calibration.closure import closure
from tests.calibration.design import BY_NAME, CELLS
from tests.calibration.page import list_failing_claims, page
from tests.calibration.sources import PACKAGES, Sources

CONTROL = [c for c in CELLS if c.world.startswith("control arm")]


def test_every_cell_has_a_name_of_its_own_and_every_estimator_a_cell_in_the_tests():
    assert len(BY_NAME) == len(CELLS)
    assert {c.estimator for c in CELLS if c.in_tests} == {c.estimator for c in CELLS}


def test_a_cell_gives_the_same_figures_again():
    assert run(CONTROL[0], 50) == run(CONTROL[0], 50)


@pytest.mark.e2e
def test_kept_figures_are_used_again_until_more_draws_are_wanted_or_the_code_is_another(tmp_path):
    path = tmp_path / "kept.json"
    first = study.study(20, CONTROL, path)
    assert study.study(20, CONTROL, path) == first
    (name,) = first
    study.write({name: first[name]._replace(code="another", first={})}, path)
    assert study.study(20, CONTROL, path)[name].code == study.code_digests()[name]
    assert study.study(30, CONTROL, path)[name].n_draws == 30


@pytest.mark.e2e
def test_figures_of_changed_code_stay_where_the_first_draws_come_out_as_they_did(tmp_path):
    path = tmp_path / "kept.json"
    ((name, one),) = study.study(20, CONTROL, path).items()
    study.write({name: one._replace(code="another", seconds=1e6)}, path)
    again = study.study(20, CONTROL, path)
    assert again[name] == one._replace(code="another", seconds=1e6, repeated=study.code_digests()[name])
    assert "Of 1 cells, code that they run has changed since; drawn again" in page(CONTROL, again)
    assert "†" not in page(CONTROL, again)


@pytest.mark.e2e
def test_figures_of_changed_code_are_simulated_anew_where_a_first_draw_comes_out_in_another_way(tmp_path):
    path = tmp_path / "kept.json"
    ((name, one),) = study.study(20, CONTROL, path).items()
    other = {claim: f"0.5{values[1:]}" for claim, values in one.first.items()}
    study.write({name: one._replace(code="another", first=other)}, path)
    again = study.study(20, CONTROL, path)[name]
    assert (again.code, again.repeated, again.first) == (study.code_digests()[name], "", one.first)


def test_a_claim_that_fails_is_named_on_the_page_with_its_figure():
    cell = Cell("gate", "a world", lambda rng: iter(()), {"x": claim_at_most(0.05, "it errs")})
    found = {cell.name: study.CellFigures({"x": Figure(0.2, 0.01, 2000)}, 2000, 1.0, "abc")}
    assert list_failing_claims([cell], found) == ["gate: a world: it errs: 20.0 ± 1.0, claimed at most 5"]
    assert "| a world | it errs | at most 5 | 20.0 ± 1.0 | 2,000 | **FAILS**" in page([cell], found)
    assert "0 of 1 claims in 1 cells hold" in page([cell], found)


def test_the_page_marks_the_cells_whose_code_has_changed_since(tmp_path):
    found = study.study(20, CONTROL, tmp_path / "kept.json")
    (name,) = found
    fresh = page(CONTROL, found)
    assert "No code that a cell runs has changed" in fresh
    assert "†" not in fresh
    changed = page(CONTROL, {name: found[name]._replace(code="another")})
    assert "Of 1 cells, marked †" in changed
    assert "| yes† |" in changed


ITEMS = "interval of a paired difference: binary, true delta 0 points, 50 items"
PLUGIN = re.compile(rf"harness\.({'|'.join(plugins.KINDS)})\.")
NIGHTS = "nightly: binary, 7 nights of 60 items, weights never change"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the code of ours, so that it can be changed."""
    kept_out = shutil.ignore_patterns("__pycache__", "*.jsonl", "*.parquet", "*.tar*")
    shutil.copytree(study.ROOT / "harness", tmp_path / "harness", ignore=kept_out)
    (tmp_path / "tests").mkdir()
    shutil.copytree(study.ROOT / "tests" / "calibration", tmp_path / "tests" / "calibration", ignore=kept_out)
    shutil.copy(study.ROOT / "tests" / "fake_rows.py", tmp_path / "tests")
    return tmp_path


def change(root: Path, file: str, name: str, line: str) -> None:
    """Put a line at the beginning of a function's body."""
    path = root / file
    tree = ast.parse(path.read_text("utf-8"))
    (function,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    function.body[:0] = ast.parse(line).body
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)), "utf-8")


def replace(path: Path, old: str, new: str) -> None:
    """Write another text in place of one that stands in a file once."""
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def list_stale_cells(root: Path) -> set[str]:
    """Name the cells whose code in a checkout is not that of ours."""
    ours = study.code_digests()
    return {name for name, code in study.code_digests(root).items() if code != ours[name]}


@pytest.mark.e2e
def test_a_change_in_a_function_that_a_cell_reaches_makes_it_stale_and_no_cell_that_does_not(checkout):
    change(checkout, "harness/stats/paired.py", "tango_interval", "alpha = alpha / 2")
    found = list_stale_cells(checkout)
    assert ITEMS in found
    assert NIGHTS not in found
    assert not any("of a score" in name for name in found)


@pytest.mark.e2e
def test_a_default_of_a_policy_makes_the_cells_stale_that_are_judged_by_it(checkout):
    replace(checkout / "harness/spec/policies.py", "macro: Margin = 0.02", "macro: Margin = 0.03")
    found = list_stale_cells(checkout)
    assert any(name.startswith("gate") for name in found)
    assert not any(name.startswith("interval") for name in found)


@pytest.mark.e2e
def test_what_a_cell_is_made_with_makes_it_alone_stale_but_not_how_often_the_tests_draw_it(checkout):
    nights = checkout / "tests/calibration/nights.py"
    replace(nights, "PINNED, 7, in_tests=150", "PINNED, 7, in_tests=90")
    replace(nights, "make_loss_cell(BINARY, NIGHTLY, 7)", "make_loss_cell(BINARY, NIGHTLY, 7, size=600)")
    assert list_stale_cells(checkout) == {
        "nightly: binary, 7 nights of 60 items, weights made anew every night, against the mean of 3 makings"
    }


SMALL = {
    "harness/__init__.py": "",
    "harness/shapes.py": """
from dataclasses import dataclass
from harness.sizes import DEPTH, SIDE, Reader

@dataclass
class Square:
    side: int = SIDE
    unused: int = DEPTH

    def area(self): return self.side ** 2

    def outline(self): return 4 * self.side

class Small(Reader):
    def read(self): return 1

LIMIT = 3
LIMIT += 1
print("at import")
""",
    "harness/sizes.py": """
from json import JSONDecoder as Decoder
SIDE = 2
DEPTH = 3
OTHER = 4

class Reader(Decoder):
    def any_name(self): return OTHER
""",
    "harness/use.py": """
def areas(x):
    from harness.shapes import Square
    return [x.area() for x in [Square()]]

def named(): return getattr(thing(), "outline")

def thing():
    import harness.shapes as s
    return s.Square

def reader(): return shapes.Small

def limited(x: OTHER): return shapes.LIMIT

from harness import shapes
from harness.sizes import OTHER
""",
}


@pytest.mark.parametrize(
    ("root", "reached"),
    [
        ("areas", {"areas", "Square", "Square.area", "Square.side", "SIDE", "(shapes)"}),
        ("named", {"named", "thing", "Square", "Square.outline", "Square.side", "SIDE", "(shapes)"}),
        ("reader", {"reader", "Small", "Small.read", "Reader", "Reader.any_name", "OTHER", "(shapes)"}),
        ("limited", {"limited", "LIMIT", "(shapes)"}),
    ],
)
def test_names_methods_and_statements_beside_are_followed(tmp_path, root, reached):
    for file, text in SMALL.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, "utf-8")
    sources = Sources(tmp_path)
    found = closure(sources, [sources.definition("harness.use", root)])
    names = {d.place[1] or f"({d.place[0].rpartition('.')[2]})" for d in found if d.code}
    assert names == reached


@pytest.mark.e2e
def test_everything_of_ours_that_cells_were_seen_to_run_is_in_their_closures():
    closures = study.closures(Sources(study.ROOT))
    missed = {}
    for cell in (c for c in CELLS if c.in_tests):
        reached = {d.place for d in closures[cell.name]}
        if unknown := trace_cell(cell) - reached:
            missed[cell.name] = unknown
    assert missed == {}


def trace_cell(cell) -> set[tuple[str, str]]:
    """Simulate one draw; name the functions and methods of ours that ran, by module, but for plugins.

    Methods are declared beforehand: what a module runs at its import is no part of a draw.
    """
    plugins.methods(trains=True)
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        codes.add(frame.f_code)

    draws, before = cell.simulate(np.random.default_rng(0)), sys.getprofile()
    sys.setprofile(note)
    try:
        next(draws)
    finally:
        sys.setprofile(before)
    own = ((Path(code.co_filename), code.co_qualname.partition(".<locals>")[0]) for code in codes)
    ran = {
        (".".join(file.relative_to(study.ROOT).with_suffix("").parts).removesuffix(".__init__"), name)
        for file, name in own
        if any(file.is_relative_to(study.ROOT / package) for package in PACKAGES)
        and file != Path(__file__)
        and not name.startswith("<")
    }
    return {(module, name) for module, name in ran if not PLUGIN.match(module)}
