"""The page of `make gpu`: each part's figures, stored in one JSON file, and features never run on a GPU.

Invariant: the page is rewritten from the file after each part, so that an interrupted run keeps finished
parts; repeating a part replaces only its own figures. A line of `never_run.txt` names the test files that
cover on CPUs what they can; each figure of `published.txt` has the address where it was read.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench_page import Table, section, table_lines

LIMIT_S = 600  # of a part

_INTRODUCTION = (
    "`make gpu` lists these parts, `make gpu ARGS=PART` runs one and `make gpu ARGS=all` those that have no figures yet; each takes at "
    "most ten minutes and writes this page anew. Tests that a CPU can run pass there in `make test`; of the measurements a small form does."
)


def _read_table(name: str, sentence: str, *columns: str) -> Table:
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()
    return Table(sentence, columns, tuple(tuple(line.split(" => ")) for line in lines))


NEVER_RUN = _read_table(
    "never_run.txt", "No test runs on a GPU, of what the harness offers or leaves out:", "what", "state",
    "what is tested on CPUs instead",
)  # fmt: skip
PUBLISHED = _read_table(
    "published.txt", "As published by others, on other cards and texts, and measured by nobody here:", "of",
    "figure, as published", "model", "card", "read at",
)  # fmt: skip


class Part(NamedTuple):
    """A part of `make gpu`: its name, its tests as pytest takes them, and its purpose."""

    name: str
    tests: tuple[str, ...]
    shows: str


class PartEnd(NamedTuple):
    """End of a part: its outcome, seconds, each test's outcome, the tests' figures, and the card.

    `outcome` is `passed`, `failed`, `skipped` or `stopped` (at the time limit).
    """

    outcome: str
    seconds: float
    tests: tuple[tuple[str, str], ...]
    figures: dict[str, Any] | None = None
    card: str = ""

    @property
    def is_done(self) -> bool:
        """Whether no test is left to run."""
        return self.outcome == "passed"


def read_parts(stem: Path) -> dict[str, PartEnd]:
    """Read the ends of finished parts, by name."""
    path = stem.with_suffix(".json")
    if not path.exists():
        return {}
    parts = json.loads(path.read_text("utf-8"))["parts"]
    return {name: PartEnd(**{**end, "tests": tuple(map(tuple, end["tests"]))}) for name, end in parts.items()}


def keep(stem: Path, parts: tuple[Part, ...], name: str, ended: PartEnd) -> None:
    """Store the end of a part, and write the page."""
    every = read_parts(stem) | {name: ended}
    content = {"parts": {key: end._asdict() for key, end in every.items()}}
    stem.parent.mkdir(parents=True, exist_ok=True)
    scratch = stem.with_suffix(".json.part")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(stem.with_suffix(".json"))
    stem.with_suffix(".md").write_text(render_page(parts, every), encoding="utf-8")


def render_page(parts: tuple[Part, ...], ended: dict[str, PartEnd]) -> str:
    """Return the page: the parts with their states, each part's figures, then features never run."""
    lines = [["part", "what it shows", "state"], ["---"] * 3]
    lines += [[f"`{p.name}`", p.shows, state(ended.get(p.name))] for p in parts]
    page = ["# GPU", "", _INTRODUCTION, ""]
    if not any(end.is_done for end in ended.values()):
        page += ["Nothing of the harness has been run on a GPU yet: there was none.", ""]
    page += [*(f"| {' | '.join(line)} |" for line in lines), ""]
    for part in parts:
        page += _figures(part, ended.get(part.name))
    for table in (NEVER_RUN, PUBLISHED):
        page += [table.sentence, "", *table_lines(table._asdict()), ""]
    return "\n".join(page[:-1]) + "\n"


def state(ended: PartEnd | None) -> str:
    """Return how a part ended, and which of its tests did not pass."""
    if ended is None:
        return "never run"
    after = f" after {ended.seconds:.0f} s{f' on {ended.card}' if ended.card else ''}"
    bad = [f"`{name}` {outcome}" for name, outcome in ended.tests if outcome != "passed"]
    text = f"{ended.outcome}{after}, {len(ended.tests) - len(bad)} of {len(ended.tests)} tests passed"
    return f"{text}: {', '.join(bad)}" if bad else text


def _figures(part: Part, ended: PartEnd | None) -> list[str]:
    if ended is None or ended.figures is None:
        return []
    first, *rest = section(ended.figures)
    return [f"## {part.name}: {first}", *rest]
