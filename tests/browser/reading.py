"""What a page of the dashboard shows its reader: tables and complaints."""

import time
from contextlib import suppress
from pathlib import Path

from serving import PATIENCE_S, PROBES

from harness import formatting

PAGES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "dashboards").glob("*.py") if path.stem != "app"
)


def path_of(name: str) -> str:
    return "/" if name == "report" else f"/{name}"


def complaints(messages: list[str]) -> list[str]:
    return [message for message in messages if not message.endswith(PROBES)]


def failures(page) -> int:
    """Count the elements of a page that say that something cannot be shown."""
    return page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count()


def pick(page, box: str, option: str) -> None:
    """Choose an option; if a redrawn part closes the list meanwhile, open it again."""
    from playwright.sync_api import TimeoutError as NotYet

    entry = page.get_by_role("option", name=option, exact=True)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if not entry.is_visible():
            page.get_by_role("combobox", name=box).click()
        with suppress(NotYet):
            entry.click(timeout=5_000)
            return
    raise TimeoutError(option)


def grid(page, place=0) -> list[dict[str, str]]:
    table = page.locator("[data-testid=data-grid-canvas]").nth(place).locator("table")
    table.wait_for(state="attached")
    code = "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    heads, rows = table.locator("thead th").all_text_contents(), table.locator("tbody tr").evaluate_all(code)
    return [dict(zip(heads, row, strict=False)) for row in rows]


def hold_changes(page, comparisons: list[dict]) -> set[str]:
    """Assert that a page's changes equal those of the JSON; return the tasks that both have."""
    shown_changes = {(row["task"], row["metric"]): row["change"] for row in grid(page)}
    expected = {
        (c["task"], c["metric"]): formatting.change(
            formatting.Unit(**c["unit"]), c["delta"], c["low"], c["high"]
        )
        for c in comparisons
    }
    shared = shown_changes.keys() & expected.keys()
    assert {key: shown_changes[key] for key in shared} == {key: expected[key] for key in shared}
    return {task for task, _ in shared}
