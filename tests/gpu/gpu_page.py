"""The page of `make gpu`: each part's figures, kept in one JSON file, and what nobody has run on a GPU.

Invariant: the page is written anew from the file after each part, so that a run which is stopped leaves those
that ended; a part that is run again replaces its own figures alone. A line of `never_run.txt` names the files of
tests that hold on CPUs what can be held there; a figure of `published.txt` was read at the address beside it.
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
    """A part of `make gpu`: its name, the tests that it runs as pytest takes them, and what it shows."""

    name: str
    tests: tuple[str, ...]
    shows: str


class PartEnd(NamedTuple):
    """End of a part: how, after how many seconds, each test with its outcome, their figures, and the card.

    `outcome` is `passed`, `failed`, `skipped` or `stopped`, which is what the limit does.
    """

    outcome: str
    seconds: float
    tests: tuple[tuple[str, str], ...]
    figures: dict[str, Any] | None = None
    card: str = ""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run of it."""
        return self.outcome == "passed"


def read_parts(stem: Path) -> dict[str, PartEnd]:
    """Read how the parts ended that were run, by name."""
    path = stem.with_suffix(".json")
    if not path.exists():
        return {}
    found = json.loads(path.read_text("utf-8"))["parts"]
    return {name: PartEnd(**{**one, "tests": tuple(map(tuple, one["tests"]))}) for name, one in found.items()}


def keep(stem: Path, parts: tuple[Part, ...], name: str, ended: PartEnd) -> None:
    """Keep how a part ended, and write the page."""
    every = read_parts(stem) | {name: ended}
    content = {"parts": {one: of._asdict() for one, of in every.items()}}
    stem.parent.mkdir(parents=True, exist_ok=True)
    scratch = stem.with_suffix(".json.part")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(stem.with_suffix(".json"))
    stem.with_suffix(".md").write_text(render_page(parts, every), encoding="utf-8")


def render_page(parts: tuple[Part, ...], ended: dict[str, PartEnd]) -> str:
    """Return the page: the parts and their state, the figures of each, then what was never run."""
    lines = [["part", "what it shows", "state"], ["---"] * 3]
    lines += [[f"`{one.name}`", one.shows, state(ended.get(one.name))] for one in parts]
    page = ["# GPU", "", _INTRODUCTION, ""]
    if not any(one.is_done for one in ended.values()):
        page += ["Nothing of the harness has been run on a GPU yet: there was none.", ""]
    page += [*(f"| {' | '.join(line)} |" for line in lines), ""]
    for part in parts:
        page += _figures(part, ended.get(part.name))
    for table in (NEVER_RUN, PUBLISHED):
        page += [table.sentence, "", *table_lines(table._asdict()), ""]
    return "\n".join(page[:-1]) + "\n"


def state(ended: PartEnd | None) -> str:
    """Say how a part ended, and which of its tests did not pass."""
    if ended is None:
        return "never run"
    after = f" after {ended.seconds:.0f} s{f' on {ended.card}' if ended.card else ''}"
    bad = [f"`{name}` {outcome}" for name, outcome in ended.tests if outcome != "passed"]
    said = f"{ended.outcome}{after}, {len(ended.tests) - len(bad)} of {len(ended.tests)} tests passed"
    return f"{said}: {', '.join(bad)}" if bad else said


def _figures(part: Part, ended: PartEnd | None) -> list[str]:
    if ended is None or ended.figures is None:
        return []
    first, *others = section(ended.figures)
    return [f"## {part.name}: {first}", *others]
