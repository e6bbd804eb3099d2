"""The dashboard in a real browser: pages load, show the report's numbers, follow links, take ratings.

Invariant: a test waits for what it asserts, never for a time.
"""

import json
import re
import shutil
from pathlib import Path

import duckdb
import fake_project
import pytest
from filelock import FileLock
from reading import PAGES, complaints, failures, grid, path_of, pick
from serving import serve_pages, wait_until_drawn

from harness import report
from harness.store import Store

pytestmark = pytest.mark.browser

ROWS_SHOWN = """wanted => document.querySelectorAll(
    "[data-testid=data-grid-canvas] table tbody tr").length === wanted"""
EVIL = (
    "<script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)> "
    "![x](http://evil.example/y) \x1b[31mred \u202egnp.exe "
)
LONG = EVIL * 1_000  # longer than a page shows


@pytest.fixture(scope="module")
def project(finished_run, tmp_path_factory):
    """Copy the finished experiment and write its report, as `harness compare` does."""
    folder = tmp_path_factory.mktemp("shown") / "tiny"
    shutil.copytree(finished_run[0], folder)
    report.write(finished_run[1], folder / "reports")
    return folder


@pytest.fixture(scope="module")
def address(project):
    with serve_pages(project) as url:
        yield url


@pytest.fixture(scope="module")
def large_project(tmp_path_factory):
    return fake_project.write_large_project(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def large_address(large_project):
    with serve_pages(large_project) as url:
        yield url


def test_every_page_is_reached_from_the_side_bar_without_a_complaint_or_a_request_elsewhere(visit, address):
    open_page, messages = visit
    page = open_page(address, "/")
    for name in PAGES:
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=name.title(), exact=True).click()
        page.locator("h1", has_text=re.compile(f"^{name}$", re.IGNORECASE)).wait_for()
        wait_until_drawn(page)
        assert failures(page) == 0, name
    assert complaints(messages) == []


def mark_weekly(*names: str) -> list:
    """Mark all pages except the named ones for the weekly tier."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.weekly) for name in PAGES]


@pytest.mark.parametrize("name", mark_weekly())
def test_a_page_of_a_thousand_runs_loads_without_a_complaint(visit, large_address, name):
    open_page, messages = visit
    page = open_page(large_address, path_of(name))
    assert page.get_by_text("1,002 runs in").is_visible()
    assert failures(page) == 0
    assert complaints(messages) == []


@pytest.mark.parametrize("name", mark_weekly("leaderboard"))
def test_a_page_loads_while_a_comparison_is_at_work_and_holds_the_index(
    visit, large_project, large_address, name
):
    runs = Store(large_project / "runs")
    note = {"stage": "lora: chat", "share": 0.25, "candidates": 3, "finished": ["prompt"]}
    (runs.folder / ".progress.json").write_text(json.dumps(note))
    with FileLock(runs.folder / "compare.lock"), duckdb.connect(str(runs.index)):
        page = visit[0](large_address, path_of(name))
        page.get_by_text("lora: chat: 25.0 %").wait_for()
        assert failures(page) == 0


def test_the_leaderboard_is_filtered_and_its_address_keeps_the_filter(visit, address):
    page = visit[0](address, "/leaderboard")
    page.get_by_text("Filters").click()
    pick(page, "method", "lora")
    page.wait_for_function(ROWS_SHOWN, arg=2)
    assert {row["candidate"] for row in grid(page)} == {"lora", "hybrid"}
    page.wait_for_url("**/leaderboard?filter_method=lora")
    again = visit[0](address, "/leaderboard?filter_method=lora")
    assert {row["candidate"] for row in grid(again)} == {"lora", "hybrid"}


def test_selected_rows_of_a_thousand_runs_are_compared(visit, large_address):
    page = visit[0](large_address, "/leaderboard?all_runs=true")
    names = [row["candidate"] for row in grid(page)][:2]
    selected = page.locator("[data-testid=data-grid-canvas] table tbody tr[aria-selected=true]")
    box = page.locator("[data-testid=stDataFrame] canvas").first.bounding_box()
    for i in range(2):
        page.mouse.click(box["x"] + 16, box["y"] + 53 + 35 * i)
        selected.nth(i).wait_for(state="attached")
    page.get_by_role("button", name="Compare 2 candidates").click()
    page.wait_for_url("**/compare?**")
    page.locator("h1", has_text="Compare").wait_for()
    wait_until_drawn(page)
    assert page.get_by_text("1,002 runs in").is_visible()
    assert (failures(page), complaints(visit[1])) == (0, [])
    assert page.get_by_text("Not among these runs").count() == 0
    assert {row["candidate"] for row in grid(page)} == {names[1]}


def test_a_cell_of_the_matrix_opens_what_was_answered_and_a_selection_is_taken_away(visit, large_address):
    page = visit[0](large_address, "/answers?compare=knn,lora&task=chat&outcome=lost")
    page.get_by_text("36 items; ").wait_for()
    search = page.get_by_placeholder("in ids, prompts, answers, references")
    search.fill("QUESTION 20 of")
    search.press("Enter")
    page.get_by_text("1 items; ").wait_for()
    wait_until_drawn(page)
    box = page.locator("[data-testid=stDataFrame] canvas").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 60, box["y"] + 53)  # the last column is lora
    page.locator("h3", has_text="chat-020: lora").wait_for()
    page.locator(".quoted", has_text="lora answers 6").first.wait_for()
    wait_until_drawn(page)
    with page.expect_download() as table:
        page.get_by_test_id("stDownloadButton").get_by_role("button").click()
    lines = Path(table.value.path()).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["item", "chat-020"]


def test_a_rating_is_found_in_duckdb(visit, address, project):
    page = visit[0](address, "/rate?rate=prompt,lora&rater=ann")
    page.get_by_role("button", name="Left is better").click()
    page.get_by_text("1 of ").wait_for()
    wait_until_drawn(page)
    page.locator("h1").click()
    page.keyboard.press("3")
    page.get_by_text("2 of ").wait_for()
    with duckdb.connect(str(project / "runs" / "harness.duckdb"), read_only=True) as db:
        ratings = db.execute("SELECT rater, task, left_side, choice FROM ratings ORDER BY created").fetchall()
    assert [row[:2] for row in ratings] == [("ann", "letters")] * 2
    assert ratings[0][3] == ratings[0][2]
    assert ratings[1][3] != ratings[1][2]


def test_text_of_a_model_stays_text(visit, tmp_path):
    open_page, messages = visit
    few = {"prompt": ("base", 2, 6), "knn": ("base", 2, 6), "lora": ("lora", 6, 1)}
    fake_project.write(tmp_path, few, texts={"lora": LONG, "knn": EVIL}, n=8)
    with serve_pages(tmp_path) as address:
        opened = "/answers?compare=knn,lora&item=support-003"
        for path in (opened, "/rate?rate=knn,lora&rater=ann"):
            page = open_page(address, path)
            answer = page.locator(".quoted", has_text="<script>document.title").first.inner_text()
            assert "\x1b" not in answer
            assert "\u202e" not in answer
            assert page.get_by_text("(cut: ").count() > 0
            assert page.title() != "owned"
            assert page.locator("[data-testid=stHtml] img, [data-testid=stHtml] script").count() == 0
    assert complaints(messages) == []
