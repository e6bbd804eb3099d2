"""Reports kept in git have the form that the code writes today: the same headings, tables and picture."""

from pathlib import Path

import pytest

from harness import report

ROOT = Path(__file__).parents[1]
KEPT = sorted([*(ROOT / "reports" / "examples").glob("*.json"), ROOT / "reports" / "support.json"])


def form(text: str) -> list[str]:
    lines = text.splitlines()
    heads = {i for i, line in enumerate(lines[1:]) if line.startswith("|---")}
    return [line for i, line in enumerate(lines) if i in heads or line.startswith(("#", "!["))]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_report_has_the_form_that_is_written_today(path):
    found = report.read(path)
    written = report.markdown(report.experiment_document(found))
    assert form(path.with_suffix(".md").read_text()) == form(written)
    assert path.with_suffix(".front.svg").exists() == bool(report.front_file(found))


def test_the_form_of_a_page_is_its_headings_tables_and_pictures():
    page = "# a\n\ntext\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n![p](p.svg)\n## b\n"
    assert form(page) == ["# a", "| x | y |", "![p](p.svg)", "## b"]
