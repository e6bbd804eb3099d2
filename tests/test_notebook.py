"""The quickstart's notebook: its cells run as they stand, and end in the table that a terminal shows."""

import ast
import html
import io
import json
import re
from pathlib import Path

import pytest
import tiny_experiment
from rich.console import Console

from harness import report

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, object]) -> object:
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


@pytest.fixture(scope="module")
def values(tiny, own_cache, tmp_path_factory):
    """Run the notebook beside a tiny experiment; return the value of each cell."""
    folder = tmp_path_factory.mktemp("notebook")
    tiny_experiment.write(folder, tiny, "  prompt: {method: base}\n  bag: {method: classifier}\n")
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        return [run("".join(cell["source"]), names) for cell in CELLS]


def test_a_cell_of_the_notebook_shows_scores_and_intervals_as_a_frame(values):
    frame = values[-2]
    assert sorted(frame["candidate"]) == ["bag", "prompt"]
    assert (frame["low"] <= frame["score"]).all()
    assert list(frame["score"]) == sorted(frame["score"], reverse=True)


def test_the_notebook_ends_in_what_a_terminal_shows(values):
    shown = io.StringIO()
    report.terminal(values[-1], Console(file=shown, width=100))
    page = html.unescape(re.sub(r"<[^>]+>", "", values[-1]._repr_html_()))
    assert page.split() == shown.getvalue().split()
