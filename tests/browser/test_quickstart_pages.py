"""The pages on the store of a finished quickstart, compared with the output of the commands.

`make compare` makes that store; `HARNESS_QUICKSTART` names another folder. Ratings are written to
a copy.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reading import PAGES, complaints, failures, grid, hold_changes, path_of
from serving import ROOT, serve_pages

from harness import formatting

pytestmark = [pytest.mark.quickstart, pytest.mark.browser]

QUICKSTART = Path(os.environ.get("HARNESS_QUICKSTART", ROOT))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    if not (index := QUICKSTART / "runs" / "harness.duckdb").exists():
        pytest.fail(f"no {index}; make compare first")
    folder = tmp_path_factory.mktemp("copy") / "quickstart"
    folder.mkdir()
    for name in ("baselines", "suites"):
        if (QUICKSTART / name).exists():
            (folder / name).symlink_to(QUICKSTART / name)
    shutil.copy(QUICKSTART / "harness.yaml", folder)
    shutil.copytree(QUICKSTART / "runs", folder / "runs")
    shutil.copytree(QUICKSTART / "reports", folder / "reports")
    return folder


@pytest.fixture(scope="module")
def address(quickstart):
    with serve_pages(quickstart) as url:
        yield url


def read_json_of(*words):
    command = [Path(sys.executable).with_name("harness"), *words, "--json"]
    result = subprocess.run(command, cwd=QUICKSTART, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def comparison_json():
    return read_json_of("compare")


WORDS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "UNDECIDED"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_a_complaint(visit, address, name):
    open_page, messages = visit
    page = open_page(address, path_of(name))
    assert page.locator("h1").inner_text().lower() == name
    assert failures(page) == 0
    assert complaints(messages) == []


def test_the_leaderboard_shows_scores_costs_and_verdicts_of_compare(visit, address, comparison_json):
    shown_rows = {row["candidate"]: row for row in grid(visit[0](address, "/leaderboard"))}
    assert shown_rows.keys() == {f["name"] for f in comparison_json["facts"]}
    for f in comparison_json["facts"]:
        row = shown_rows[f["name"]]
        assert float(row["target"]) == pytest.approx(100 * f["target"]["score"])
        for column, key in (("$/1k", "cost_per_1k_usd"), ("p50", "latency_p50_s")):
            # Figures that other work disturbed are shown too, marked, and sorted by their values.
            figure = f["disturbed"].get(key, f[key])
            assert (None if row[column] in ("", "–", "None") else float(row[column])) == pytest.approx(figure)
        judged = f["verdict"] and (f["trained"] or f["verdict"]["outcome"] != "pass")  # base weights pass
        assert row["verdict"] == (WORDS[f["verdict"]["outcome"]] if judged else "–")


def test_the_page_of_comparisons_shows_every_change_of_compare(visit, address, comparison_json):
    changes = comparison_json["comparisons"]["lora"]
    page = visit[0](address, "/compare?compare=prompt,lora")
    assert hold_changes(page, changes) == {c["task"] for c in changes}


def test_the_page_of_decisions_says_what_decide_prints(visit, address):
    page, decided = visit[0](address, "/decide"), read_json_of("decide")
    assert decided["sentence"] in page.locator("[data-testid=stHtml] .lead").inner_text()
    page_text = page.locator("[data-testid=stMain]").inner_text()
    assert [reason for reason in decided["reasons"] if reason not in page_text] == []


def test_a_deep_link_opens_an_item_that_was_lost(visit, address, comparison_json):
    scored = [c for c in comparison_json["comparisons"]["lora"] if c["metric"] != "bits_per_byte"]
    worst = max(scored, key=lambda c: len(c["lost"]))
    page = visit[0](address, f"/answers?compare=prompt,lora&task={worst['task']}&outcome=lost")
    page.get_by_text(f"{formatting.count(len(worst['lost']))} items; ").wait_for()
    assert {row["item"] for row in grid(page)} <= set(worst["lost"])
