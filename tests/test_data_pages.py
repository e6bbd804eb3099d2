"""Pages of the studies of data: each is laid out from its kept figures, and from nothing else."""

import json
from pathlib import Path

import pytest

from reports.studies import data_check_page, mended_rows
from reports.studies.data_check import READ

REPORTS = Path(__file__).parents[1] / "reports"


def data_check(figures):
    return data_check_page.page(figures, json.loads(READ.read_text("utf-8")))


@pytest.mark.parametrize(("name", "page"), [("data_check", data_check), ("mended_rows", mended_rows.page)])
def test_a_page_is_what_its_figures_give(name, page):
    figures = json.loads((REPORTS / f"{name}.json").read_text("utf-8"))
    assert (REPORTS / f"{name}.md").read_text("utf-8") == page(figures)


def test_at_least_fifty_findings_that_nobody_planted_were_read():
    read = json.loads(READ.read_text("utf-8"))
    assert sum(len(lines) for checks in read.values() for lines in checks.values()) >= 50
