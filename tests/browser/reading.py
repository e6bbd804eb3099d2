"""What a page of the dashboard shows, read as a reader of it would: its tables, and what it complains of."""

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


def complaints(seen: list[str]) -> list[str]:
    return [said for said in seen if not said.endswith(PROBES)]


def failures(page) -> int:
    """Count the places of a page that say that something cannot be shown."""
    return page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count()


def pick(page, box: str, option: str) -> None:
    """Choose an option; a part that is drawn anew meanwhile closes the list, which is then opened again."""
    from playwright.sync_api import TimeoutError as NotYet

    wanted = page.get_by_role("option", name=option, exact=True)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if not wanted.is_visible():
            page.get_by_role("combobox", name=box).click()
        with suppress(NotYet):
            wanted.click(timeout=5_000)
            return
    raise TimeoutError(option)


def grid(page, place=0) -> list[dict[str, str]]:
    table = page.locator("[data-testid=data-grid-canvas]").nth(place).locator("table")
    table.wait_for(state="attached")
    read = "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    heads, rows = table.locator("thead th").all_text_contents(), table.locator("tbody tr").evaluate_all(read)
    return [dict(zip(heads, row, strict=False)) for row in rows]


def hold_changes(page, comparisons: list[dict]) -> set[str]:
    """Hold the changes that a page shows to those of the JSON; returns the tasks that both have."""
    shown = {(row["task"], row["metric"]): row["change"] for row in grid(page)}
    expected = {
        (c["task"], c["metric"]): formatting.change(
            formatting.Unit(**c["unit"]), c["delta"], c["low"], c["high"]
        )
        for c in comparisons
    }
    shared = shown.keys() & expected.keys()
    assert {key: shown[key] for key in shared} == {key: expected[key] for key in shared}
    return {task for task, _ in shared}
