"""Make the pictures of all pages from a project: python tests/browser/screenshots.py FOLDER [OUT].

Invariant: light, 1440 pixels wide, and small enough to be kept in git.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from serving import ROOT, serving

PATHS = {
    "leaderboard": "/",
    "compare": "/compare?compare=ranked,hybrid&task=chat_facts",
    "forgetting": "/forgetting",
    "pareto": "/pareto",
    "training": "/training",
    "decide": "/decide",
    "nightly": "/nightly",
    "rate": "/rate?rate=rag-shots,hybrid&rater=ann",
}
_TALLEST = 2_300
_LARGEST = 200_000  # bytes; a larger picture gets fewer colours


def shoot(page: Page, address: str, out: Path) -> None:
    """Save one page as a picture, as far down as there is something."""
    page.set_viewport_size({"width": 1440, "height": 1000})
    page.goto(address)
    page.wait_for_selector("h1", timeout=60_000)
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached", timeout=60_000)
    page.wait_for_timeout(1_500)
    inside = page.evaluate("document.querySelector('.stMainBlockContainer').getBoundingClientRect().height")
    page.set_viewport_size({"width": 1440, "height": int(min(max(inside, 600), _TALLEST))})
    page.wait_for_timeout(1_200)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(out, optimize=True)
    if out.stat().st_size > _LARGEST:
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, optimize=True)


def main(project: Path, out: Path) -> None:
    """Take a picture of every page that there is."""
    out.mkdir(parents=True, exist_ok=True)
    with serving(project) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(color_scheme="light").new_page()
        for name, path in PATHS.items():
            if (ROOT / "dashboards" / f"{name}.py").exists():
                shoot(page, address + path, out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "dashboards" / "screenshots")
