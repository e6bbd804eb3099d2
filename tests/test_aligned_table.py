"""Tables of aligned columns: their cells are wrapped where a terminal is narrower, and nothing is cut."""

from rich.cells import cell_len

from harness.report.document import align

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
