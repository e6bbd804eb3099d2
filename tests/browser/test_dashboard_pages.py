"""The dashboard in a real browser: pages load, show the report's numbers, follow links, take ratings."""

import os
import shutil
import time
from pathlib import Path

import duckdb
import fake_project
import pytest
from serving import PROBES, serving

from harness import numbers, report

pytestmark = pytest.mark.browser

PAGES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "dashboards").glob("*.py") if path.stem != "app"
)
AT_REST = "[data-testid=stApp][data-test-script-state=notRunning]"
ROWS_SHOWN = """wanted => document.querySelectorAll(
    "[data-testid=data-grid-canvas] table tbody tr").length === wanted"""
EVIL = "<script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)> ![x](http://evil.example/y)"


@pytest.fixture(scope="module")
def browser():
    """Start Debian's Chromium; skip where it is absent, but never in CI."""
    in_ci = os.environ.get("CI") == "true"
    if not in_ci:
        pytest.importorskip("playwright.sync_api")
        pytest.importorskip("streamlit")
    from playwright import sync_api

    executable = shutil.which("chromium")
    if executable is None:
        reason = "no chromium; apt-get install chromium"
        pytest.fail(reason) if in_ci else pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    """Copy the finished experiment and write its report, as `harness compare` does."""
    folder = tmp_path_factory.mktemp("shown") / "tiny"
    shutil.copytree(finished[0], folder)
    report.write(finished[1], folder / "reports")
    return folder


@pytest.fixture(scope="module")
def address(project):
    with serving(project) as found:
        yield found


@pytest.fixture
def opened(browser):
    """Return a function that opens an address, and what the console and the network said meanwhile."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(60_000)
    seen: list[str] = []

    def open_page(server, path):
        page = context.new_page()
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: seen.append(dialog.message))
        page.on(
            "console", lambda m: seen.append(f"{m.text} {m.location['url']}") if m.type == "error" else None
        )
        page.on(
            "request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else seen.append(r.url)
        )
        page.goto(server + path)
        page.wait_for_selector("h1")
        page.wait_for_selector(AT_REST, state="attached")
        return page

    yield open_page, seen
    context.close()


def complaints(seen: list[str]) -> list[str]:
    return [said for said in seen if not said.endswith(PROBES)]


def cells(page, place=0) -> tuple[list[str], list[list[str]]]:
    """Read a table of Streamlit, which keeps its cells for screen readers inside the canvas."""
    table = page.locator("[data-testid=data-grid-canvas]").nth(place).locator("table")
    table.wait_for(state="attached")
    read = "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    return table.locator("thead th").all_text_contents(), table.locator("tbody tr").evaluate_all(read)


def grid(page, place=0) -> list[dict[str, str]]:
    heads, rows = cells(page, place)
    return [dict(zip(heads, row, strict=False)) for row in rows]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_a_complaint_or_a_request_elsewhere(opened, address, name):
    open_page, seen = opened
    page = open_page(address, "/" if name == "leaderboard" else f"/{name}")
    assert page.locator("h1").inner_text()
    assert page.locator("[data-testid=stException]").count() == 0
    page.wait_for_timeout(500)
    assert complaints(seen) == []


def test_the_leaderboard_shows_the_numbers_of_the_json(opened, address, finished):
    page = opened[0](address, "/")
    plain = report.to_json(finished[1])
    heads, rows = cells(page)
    at = heads.index("target")
    shown = {row[heads.index("candidate")]: row[at : at + 2] for row in rows}
    for f in plain["facts"]:
        score, low, high, _ = f["target"].values()
        value, ends = shown[f["name"]]
        assert float(value) == pytest.approx(100 * score)
        assert f"{numbers.percent(score)} {ends}" == numbers.interval(score, low, high)
    assert plain["decision"]["sentence"] in page.locator("[data-testid=stHtml] .lead").inner_text()


def test_a_deep_link_opens_a_comparison_with_the_numbers_of_the_json(opened, address, finished):
    page = opened[0](address, "/compare?compare=prompt,lora")
    changes = {(row["task"], row["metric"]): row["change"] for row in grid(page)}
    expected = {
        (c["task"], c["metric"]): numbers.change(c["metric"], c["delta"], c["low"], c["high"])
        for c in report.to_json(finished[1])["comparisons"]["lora"]
    }
    shared = changes.keys() & expected.keys()
    assert {task for task, _ in shared} == {"sums", "facts", "prose"}
    assert {key: changes[key] for key in shared} == {key: expected[key] for key in shared}
    assert page.locator(".js-plotly-plot .main-svg").count() > 0


def test_the_leaderboard_is_filtered_and_leads_to_a_comparison(opened, address):
    page = opened[0](address, "/")
    page.get_by_text("Filters").click()
    page.get_by_role("combobox", name="method").fill("lora")
    page.get_by_role("option", name="lora", exact=True).click()
    page.keyboard.press("Escape")
    page.wait_for_function(ROWS_SHOWN, arg=2)
    assert {row["candidate"] for row in grid(page)} == {"lora", "hybrid"}


def test_a_rating_is_found_in_duckdb(opened, address, project):
    page = opened[0](address, "/rate?rate=prompt,lora&rater=ann")
    page.get_by_role("button", name="Left is better").click()
    page.get_by_text("1 of ").wait_for()
    page.locator("h1").click()
    page.keyboard.press("3")
    page.get_by_text("2 of ").wait_for()
    with duckdb.connect(str(project / "runs" / "harness.duckdb"), read_only=True) as db:
        found = db.execute("SELECT rater, task, left_side, choice FROM ratings ORDER BY created").fetchall()
    assert [row[:2] for row in found] == [("ann", "letters")] * 2
    assert found[0][3] == found[0][2]
    assert found[1][3] != found[1][2]


def test_text_of_a_model_stays_text(opened, tmp_path):
    open_page, seen = opened
    few = {"prompt": ("base", 2, 6), "knn": ("base", 2, 6), "lora": ("lora", 6, 1)}
    fake_project.write(tmp_path, few, texts={"lora": EVIL * 200, "knn": EVIL}, n=8)
    with serving(tmp_path) as address:
        for path in ("/compare?compare=knn,lora", "/forgetting", "/rate?rate=knn,lora&rater=ann"):
            page = open_page(address, path)
            page.locator(".quoted", has_text="<script>document.title").first.wait_for()
            assert page.title() != "owned"
            assert page.locator("[data-testid=stHtml] img, [data-testid=stHtml] script").count() == 0
    assert complaints(seen) == []


def test_text_stays_readable_in_the_dark(browser, address):
    context = browser.new_context(color_scheme="dark", viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto(f"{address}/compare?compare=prompt,lora")
    page.wait_for_selector("h1")
    ink, ground = page.evaluate(
        "() => [getComputedStyle(document.querySelector('h1')).color,"
        " getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor]"
    )
    context.close()
    light, dark = (
        sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) for colour in (ink, ground)
    )
    assert light > 600
    assert dark < 150


def test_pages_open_while_a_comparison_holds_the_index(opened, address, project):
    from harness.store import Store, index

    with index.writing(Store(project / "runs")):
        start = time.monotonic()
        page = opened[0](address, "/")
        assert len(grid(page)) == 6
        assert time.monotonic() - start < 20
