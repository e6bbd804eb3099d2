"""The prompts of replay: as many of each kind, and none worded like what the shipped suites ask."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.regularizers import general_prompts

SUITES = Path(__file__).parents[1] / "suites"
RUN = 5  # words in a row that no prompt shares with an item


def words(text: str) -> list[str]:
    """Return the words in lower case, every number as the same one."""
    return re.findall(r"#|[^\W\d_]+", re.sub(r"\d+(?:[.:]\d+)?", " # ", text.casefold()))


def runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def items() -> Iterator[str]:
    """Yield all that an item of a shipped suite says: its turns, or its text."""
    for file in sorted(SUITES.glob("*/*.jsonl")):
        if file.stem == "refusals":  # trained on, and asked by no suite
            continue
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            yield from (turn["content"] for turn in row.get("messages", ()))
            yield from (row[key] for key in ("prompt", "text", "title") if row.get(key))


@pytest.fixture(scope="module")
def item_runs() -> set[tuple[str, ...]]:
    return {run for text in items() for run in runs(text)}


def test_no_prompt_is_worded_like_an_item_of_a_shipped_suite(item_runs):
    shared = {prompt: found for prompt in general_prompts() if (found := runs(prompt) & item_runs)}
    assert shared == {}


@pytest.mark.parametrize(
    "reworded",
    [
        "Zoe has 31 kites and gets 14 more. How many kites does Zoe have now? Answer in one short sentence.",
        'What does the French word "fenouil" mean in English?',
        "Write one short sentence about Peru.",
        "What is the capital of Bhutan, please?",
    ],
)
def test_an_item_with_other_names_and_numbers_would_be_found(item_runs, reworded):
    assert runs(reworded) & item_runs
