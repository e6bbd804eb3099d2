"""Make pictures of all pages from a finished quickstart: python tests/browser/screenshots.py FOLDER [OUT].

If the quickstart has no nights, eight nights of its fine-tune are run first, dated a day apart; that takes
some minutes.

Invariant: 1440 pixels wide, light unless `--dark` is given, and small enough for git; pages are captured
once their layout is stable. The report's picture shows its HTML page, 1280 × 800; the Data page's shows rows
of a generator in which `reports/studies/data_check.py` has planted faults.
"""

import argparse
import io
import json
import random
import sys
import tempfile
from contextlib import chdir
from datetime import datetime, timedelta
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page
from serving import PATIENCE_S, ROOT, chromium, load_page, serve_pages, wait_until_drawn

from harness import report
from harness.cli.progress_bar import TerminalProgress
from harness.lifecycle import nightly

PATHS = {
    "answers": "/answers?compare=ranked,prompt,lora,hybrid&outcome=disagreement&item=test-133&of=hybrid",
    "leaderboard": "/leaderboard", "compare": "/compare?compare=ranked,hybrid", "forgetting": "/forgetting",
    "pareto": "/pareto", "training": "/training", "decide": "/decide", "nightly": "/nightly",
    "rate": "/rate?rate=ranked,hybrid&rater=ann",
}  # fmt: skip
FIRST_PAGE = {"width": 1280, "height": 800}  # the part of the report that is visible without scrolling
WATCHED = ("nightly.candidates=[lora]", "nightly.items=40")
N_NIGHTS = 8
N_ROWS, N_TEST = 120, 60  # of the Data page
_LARGEST = 200_000  # bytes; larger pictures get fewer colours
_AT_REST = """() => {
    const parts = document.querySelectorAll(".stMainBlockContainer, .main-svg, canvas, .textpoint text");
    const now = [...parts].map(one => Object.values(one.getBoundingClientRect().toJSON())).join();
    window.same = now === window.before ? (window.same || 0) + 1 : 0;
    window.before = now;
    return window.same > 30;
}"""  # called at every frame


def shoot(page: Page, address: str, out: Path, height: int = 10_000) -> None:
    """Save one page as a picture, down to the end of its content but at most this many pixels."""
    page.set_viewport_size({"width": 1440, "height": 1000})
    load_page(page, address)
    inside = page.evaluate("document.querySelector('.stMainBlockContainer').getBoundingClientRect().height")
    page.set_viewport_size({"width": 1440, "height": int(min(max(inside, 600), height))})
    wait_until_drawn(page)
    page.wait_for_function(_AT_REST, timeout=1000 * PATIENCE_S)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(out, optimize=True)
    if out.stat().st_size > _LARGEST:
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, optimize=True)


def write_faulty(folder: Path) -> None:
    """Write an experiment on letters with planted faults, one of which is a test item."""
    sys.path.insert(0, str(ROOT))
    from reports.studies.data_check import plant
    from tests.ten_kinds import request

    rng = random.Random("picture")
    train, test = (
        [dict(zip(("prompt", "reference"), request(rng), strict=True)) for _ in range(n)]
        for n in (N_ROWS, N_TEST)
    )
    rows = plant(train, rng, labelled=True).rows
    for name, content in {"train": [*rows, test[0]], "test": test}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    (folder / "harness.yaml").write_text(
        "name: letters\nbase_model: smollm2-135m\n"
        "target: {name: letters, data: {train: train.jsonl, test: test.jsonl}, metrics: [exact_match]}\n"
        "candidates: {prompt: prompt}\n"
    )


def shoot_data(page: Page, out: Path) -> None:
    """Save the Data page of an experiment with faults in its rows."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write_faulty(Path(folder))
        with serve_pages(Path(folder)) as address:
            shoot(page, f"{address}/data", out, 1500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "dashboards" / "screenshots")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    file = options.folder / "harness.yaml"
    today = datetime.now().astimezone().date()
    if nightly.status(file, today.isoformat()).n_nights == 0:
        for ago in range(N_NIGHTS - 1, -1, -1):
            night = today - timedelta(days=ago)
            nightly.run_night(file, WATCHED, night=night, progress=TerminalProgress())
    options.out.mkdir(parents=True, exist_ok=True)
    with serve_pages(options.folder) as address, chromium() as browser:
        page = browser.new_context(color_scheme="dark" if options.dark else "light").new_page()
        # Save the first page of the quickstart's stored report, as far as a window shows it.
        with tempfile.TemporaryDirectory() as written:
            report.write(report.read(options.folder / "reports" / "support.json"), Path(written))
            page.set_viewport_size(FIRST_PAGE)
            page.goto((Path(written) / "support.html").as_uri())
            page.screenshot(path=(options.out / "report.png"))
        for name, path in PATHS.items():
            shoot(page, address + path, options.out / f"{name}.png")
        shoot_data(page, options.out / "data.png")


if __name__ == "__main__":
    main()
