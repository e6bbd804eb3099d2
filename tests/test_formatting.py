"""What is printed: digits, signs and units, aligned tables, and the list of what can be chosen."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from harness import formatting, plugins
from harness.experiment.catalog import map_purposes
from harness.report.document import align
from harness.spec import DecidePolicy


def test_an_interval_has_as_many_digits_as_it_is_narrow_and_its_metrics_own_unit():
    assert formatting.interval(0.81, 0.75, 0.86) == "81.0 [75, 86]"
    assert formatting.points(-0.004, -0.015, 0.007) == "−0.4 [−1.5, +0.7]"
    assert formatting.points(0.07, 0.02, 0.12) == "+7.0 [+2, +12]"
    assert formatting.points(-0.004, -0.015, 0.007, whole=True) == "−0.4 [−2, +1]"
    assert formatting.points(-0.0001, -0.0002, 0.0002) == "0.0 [0.0, 0.0]"
    assert formatting.figure(14.0, -4.0, 24375.4) == "14 [−4, 24,375]"
    assert formatting.count(3080) == "3,080"

    perplexity = formatting.Unit(1.0, "perplexity", higher_is_better=False)
    assert formatting.score(perplexity, 12.3, 11.9, 12.8) == "12.300 [11.900, 12.800]"
    assert formatting.change(perplexity, 0.042) == "+0.042"
    assert formatting.score(formatting.RATE, 0.5) == "50.0"


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.11, "0.11"), (0.00041, "0.00041"), (0.0004, "0.0004"), (0, "0.00"), (1250, "1,250"), (math.inf, "∞")],
)
def test_an_amount_keeps_two_significant_digits_and_no_more(amount, text):
    assert formatting.usd(amount) == text


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0002, "<1 ms"), (0.034, "34 ms"), (0.2, "0.2 s"), (45.3, "45 s"), (59.7, "1 min 0 s"),
        (200, "3 min 20 s"), (7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_a_time_is_printed_in_the_unit_that_fits(time_s, text):
    assert formatting.seconds(time_s) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (14.0, "14"), (7.134, "7.134"), (0.00234, "0.0023"), (-2e-5, "0"), (-3.5, "−3.5"),
        (31693.2, "31,693"), (None, "–"),
    ],
)  # fmt: skip
def test_a_figure_has_at_most_four_digits_and_four_decimals(x, text):
    assert formatting.figure(x) == text


@pytest.mark.parametrize(
    "print_it", [formatting.percent, formatting.points, formatting.usd, formatting.seconds, formatting.count]
)
@pytest.mark.parametrize("unknown", [None, math.nan])
def test_what_is_unknown_is_a_dash(print_it, unknown):
    assert print_it(unknown) == "–"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_swapping_the_arms_swaps_signs_and_nothing_else(delta, below, above):
    swapped = {"+": "−", "−": "+"}
    there = formatting.points(delta, delta - below, delta + above)
    back = formatting.points(-delta, -delta - above, -delta + below)
    middle, low, high = there.replace("[", "").replace("]", "").replace(",", "").split()
    mirrored = [swapped.get(x[0], x[0]) + x[1:] for x in (middle, high, low)]
    assert back == f"{mirrored[0]} [{mirrored[1]}, {mirrored[2]}]"


@given(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)))
def test_no_number_breaks_the_formatter_and_none_has_a_hyphen_for_a_minus(x):
    printed = [
        formatting.percent(x),
        formatting.points(x, x, x),
        formatting.usd(x),
        formatting.count(x),
        formatting.plain(x),
    ]
    assert not any("-" in text or "nan" in text for text in printed)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_is_listed_with_the_first_line_of_its_docstring(kind):
    found = map_purposes(kind)
    assert sorted(found) == plugins.names(kind)
    for name, purpose in found.items():
        assert plugins.load(kind, name).__doc__.startswith(purpose)
        assert purpose


def test_suites_and_tasks_are_listed(folder):
    expected = {"other": "capability: sums, capitals", "tiny": "target: tiny"}
    assert map_purposes("suites", folder / "suites") == expected
    assert {
        name: text.partition(":")[0] for name, text in map_purposes("tasks", folder / "suites").items()
    } == {"sums": "other", "capitals": "other", "tiny": "tiny"}


def test_every_key_of_the_file_is_listed_with_its_default_and_meaning():
    found = map_purposes("keys")
    assert found["gate.macro"].startswith("0.02 if not written. ")
    assert found["device"].startswith("auto, cpu, cuda; auto if not written. ")
    assert found["name"].startswith("has to be written. ")
    assert found["candidates.NAME.init_from"].startswith("nothing if not written. ")
    assert found["rescue.scales"].startswith("0.75, 0.5, 0.25 if not written. ")
    assert found["rescue.steps"].startswith("earlier, scale, merge, kl, replay, ")
    assert {f"decide.{name}" for name in DecidePolicy.model_fields} <= found.keys()
    assert found["decide"].startswith("Prices, volumes and needs")
    assert found["gate.drift"].startswith("nothing if not written. `drift` is a rise in bits per byte")
    assert [key for key, said in found.items() if re.fullmatch("[^`]*(if not|to be) written[.]", said)] == []


COLUMNS = ("task", "n", "change", "evidence")
ROWS = (
    (
        "prose_text",
        "40",
        "−0.066 [−0.079, −0.051]",
        "bits per byte, an early warning that gate.drift would judge",
    ),
    ("grammar", "300", "+1.0 [−1, +4]", "no task is named critical"),
)


def lines(width=None, rows=ROWS):
    return [str(line) for line in align(COLUMNS, rows, width)]


def test_a_table_that_is_wider_than_the_terminal_is_wrapped_by_its_cells():
    narrow = lines(60)
    assert max(map(cell_len, narrow)) <= 60
    assert sorted(" ".join(narrow).split()) == sorted(" ".join(lines()).split())
    assert len(lines()) == 1 + len(ROWS)
    assert any("[−0.079, −0.051]" in line for line in lines(60))
    assert lines(20) == lines()
    wide = [("漢字" * 4, "1", "0.0", "漢字 漢字 漢字 漢字 漢字 漢字 漢字 漢字")]
    assert max(map(cell_len, lines(48, wide))) <= 48
