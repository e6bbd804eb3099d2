"""Missing values: rows without question or answer, repeated ids, empty cells, mixed types, unread columns.

False alarms: a long text that was written when the answer was known, such as a note of whoever answered, is
listed as a column that may hold the context; all else are counts.
"""

from collections import Counter
from collections.abc import Iterator

from harness.data.cells import ColumnCells
from harness.data.check import CheckContext, Finding, Severity
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.formats import THUMB_DOWN
from harness.data.readers import file_of
from harness.data.unused import OFFER, THOUGHTS, name_columns, name_contexts, name_keys, name_media
from harness.errors import as_argument
from harness.formatting import count

_MOST_COLUMNS = 8  # that are named one by one


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List rows that no comparison can use, for an id too, empty cells, and columns of texts and numbers."""
    down = [row for row in table.unusable if row.why == THUMB_DOWN]
    if down:
        meaning = "no right answers, but for methods that learn from thumbs"
        rows = tuple(row.where for row in down)
        yield Finding("note", "answers with a thumb down", meaning, table.n, rows)
    if others := [row for row in table.unusable if row.layout]:
        named = Counter(row.layout for row in others).most_common()
        yield Finding(
            "error",
            "rows of another layout than most: " + ", ".join(f"{name} ({n:,})" for name, n in named),
            "compare refuses them, and no command can read them together with the others",
            table.n,
            tuple(row.where for row in others),
            "",
            "no command: write them to a file of their own; a candidate reads several, train: [a, b]",
        )
    if unusable := [row for row in table.unusable if row.why != THUMB_DOWN and not row.layout]:
        kinds = Counter(row.why for row in unusable).most_common(3)
        yield Finding(
            "error",
            "rows that cannot be used: " + ", ".join(f"{why} ({n:,})" for why, n in kinds),
            "compare stops at such a row, unless it is told to leave it out",
            table.n,
            tuple(row.where for row in unusable),
            f"{unusable[0].where}: {unusable[0].why}",
            "harness data clean FILE --out OUT",
        )
    yield from _find_repeated_ids(table)
    yield from _empty_cells(table)
    for name, column in table.columns.items():
        if {"text", "number"} <= column.kinds.keys():
            yield _report_mixed(name, column, table)
    yield from _list_unused(table)


def _find_repeated_ids(table: RowTable) -> Iterator[Finding]:
    """List the rows whose id stands earlier in their file."""
    first: dict[tuple[str, str], TableEntry] = {}
    again: list[tuple[TableEntry, TableEntry]] = []
    for entry in table.entries:
        earlier = first.setdefault((file_of(entry.where), entry.example.id), entry)
        if earlier is not entry:
            again.append((entry, earlier))
    if again:
        entry, earlier = again[0]
        yield Finding(
            "error",
            "rows whose id stands already",
            "compare stops at them, since it keeps answers by the id of their question",
            len(table.entries),
            tuple(entry.where for entry, _ in again),
            f"{entry.where} has the id {excerpt(entry.example.id, 40)!r} of {earlier.where}",
            "harness data clean FILE --out OUT --new-ids",
        )


def _empty_cells(table: RowTable) -> Iterator[Finding]:
    """List columns with empty cells: a note, since an optional one is empty in many rows on purpose."""
    lacking = {name: n for name, of in table.columns.items() if (n := table.n - of.n + of.empty)}
    if len(lacking) <= _MOST_COLUMNS:
        for name, n in lacking.items():
            yield _empty(name, n, table.columns[name], table)
        return
    most = sorted(lacking, key=lambda name: -lacking[name])[:_MOST_COLUMNS]
    shown = ", ".join(f"{name!r} {count(lacking[name])}" for name in most)
    title = f"{count(len(lacking))} columns have empty cells; the most {shown}"
    yield Finding("note", title, "harmless where a column is optional or not read")


def _empty(name: str, lacking: int, column: ColumnCells, table: RowTable) -> Finding:
    return Finding(
        "note",
        f"column {name!r} is empty",
        "harmless where the column is optional or not read",
        table.n,
        tuple(column.places),
        count=lacking,
    )


def _list_unused(table: RowTable) -> Iterator[Finding]:
    """List columns that may be the context of questions, the other unread ones, and unused keys of turns."""
    unused = table.unused
    if unused.contexts:
        command = f"harness data check {' '.join(map(as_argument, table.files))} {unused.options()}"
        explains = any(context.explains for context in unused.contexts)
        yield Finding(
            "error" if explains else "warning",
            name_contexts(unused),
            f"without it a question may have no answer; {OFFER}, write {unused.line()} in the suite",
            command=command,
            steps=(command,) if explains else (),
        )
    for other in unused.others:
        if getattr(table.reading, other.option) is None:
            command = f"harness data check {' '.join(map(as_argument, table.files))} {other.options}"
            yield Finding("note", other.said, "where it does, name that column", command=command)
    if media := name_media(unused):
        yield Finding("warning", media, "without it a question may have no answer")
    if rest := name_columns(unused):
        yield Finding("note", rest, "no prompt shows them, and nothing is trained on them")
    if keys := name_keys(unused):
        severity: Severity = "warning" if THOUGHTS & unused.keys.keys() else "note"
        yield Finding(severity, keys, "they stand in the file, and in no prompt and no answer")


def _report_mixed(name: str, column: ColumnCells, table: RowTable) -> Finding:
    rarest = min(("text", "number"), key=lambda kind: column.kinds[kind])
    return Finding(
        "warning",
        f"column {name!r} holds texts and numbers",
        "1 and '1' become one text; a number where a text belongs is often a slip of an export",
        table.n,
        tuple(column.of_kind[rarest]),
        f"the first {rarest}: {column.of_kind[rarest][0]}",
        "write the column as texts alone",
        count=column.kinds[rarest],
    )
