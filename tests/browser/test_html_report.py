"""The HTML report in a real browser: from disk, without network."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness import formatting
from harness.metrics import mean_metric
from harness.records import SampleResult
from harness.report import read, show_items, write

pytestmark = pytest.mark.browser
markdown = pytest.importorskip("markdown")

KEPT = Path(__file__).parents[2] / "reports" / "support.json"

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[31m\u202e"
VISIBLE = "all => all.filter(one => one.checkVisibility()).length"  # per element it would take minutes


@pytest.fixture(scope="module")
def hostile_report(finished_run):
    """Return the report of a real run, with an item whose texts contain markup."""
    real = finished_run[1]
    first = real.answers[0]
    rows = {
        name: [SampleResult(first.task, "test", EVIL, 0, "ok", text, EVIL, (EVIL,), {})]
        for name, text in zip(first.answers, (EVIL, EVIL * 9_000), strict=False)
    }
    evil = show_items(mean_metric("exact_match", lambda output, example: None), rows, 1)
    return replace(real, answers=(*evil, *real.answers), notes=(*real.notes, EVIL))


@pytest.fixture(scope="module")
def folder(hostile_report, tmp_path_factory):
    """Write the report; return the folder of its page, its JSON and its pictures."""
    path = tmp_path_factory.mktemp("page")
    write(hostile_report, path)
    return path


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Write the stored report of the quickstart; return the path of its page."""
    path = tmp_path_factory.mktemp("quickstart")
    write(read(KEPT), path)
    return path / "support.html"


@pytest.fixture
def page_and_log(browser, folder):
    """Open the page; return it with all events of the console and the network."""
    context = browser.new_context(offline=True, viewport={"width": 1440, "height": 1000})
    page, events = context.new_page(), []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url))
    page.goto((folder / "tiny.html").as_uri())
    yield page, events
    context.close()


def test_the_page_opens_offline_without_a_complaint_or_another_request(page_and_log):
    page, events = page_and_log
    assert [event for event in events if event != page.url] == []
    assert page.title() == "tiny: what to ship"


@pytest.fixture
def page_json(folder):
    """Read the JSON next to the page."""
    return json.loads((folder / "tiny.json").read_text())


def unfold(page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def test_the_first_page_is_seen_without_scrolling(browser, quickstart):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(quickstart.as_uri())
    script = "all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"
    for selector in (".decision", ".reasons li", "table.candidates", "svg.picture", ".next li"):
        for left, top, right, bottom in page.locator(f".first {selector}").evaluate_all(script):
            assert 0 <= left < right <= 1280, selector
            assert 0 <= top < bottom <= 800, selector
    assert 3 <= page.locator(".first .reasons li").count() <= 6
    assert page.locator("details > :not(summary)").evaluate_all(VISIBLE) == 0
    page.close()


def test_nothing_is_wider_than_the_window(page_and_log):
    page = page_and_log[0]
    unfold(page)
    for width in (1440, 400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_of_a_model_stays_text(page_and_log):
    page = page_and_log[0]
    unfold(page)
    assert page.title() == "tiny: what to ship"
    assert page.locator("script, img").count() == 0
    answer = page.locator(".matrix .answer").nth(0).inner_text()
    assert answer.startswith("<script>document.title")
    assert "\x1b" not in answer
    assert "\u202e" not in answer
    assert "(cut: " in page.locator(".matrix .answer").nth(1).inner_text()


def test_what_is_folded_on_the_screen_is_printed_and_intervals_of_the_heat_map_too(page_and_log, page_json):
    page = page_and_log[0]
    folded = page.locator("details > :not(summary):not(.screen, .screen *)")  # .screen is not printed
    assert folded.evaluate_all(VISIBLE) == 0
    page.emulate_media(media="print")
    assert folded.count() >= 3, "the tables, the items, the lost ones by name"
    assert folded.evaluate_all(VISIBLE) == folded.count()
    cells = page.locator("table.heat td")
    cell_texts = " ".join(cells.all_inner_texts())
    for c in page_json["comparisons"]["lora"]:
        if c["unit"]["scale"] == 100:
            assert formatting.points(c["delta"], c["low"], c["high"]) in cell_texts
    page.emulate_media(media="screen")
    unfold(page)
    assert "[" not in "".join(cells.all_inner_texts())
