"""Amount of rows and their lengths: tokens by the model's tokenizer, else words and characters.

Invariant: a row that is longer than the context is counted for certain: a text has at most as many tokens as
bytes, so only rows of more bytes than the context has tokens are counted in tokens, the histogram on a draw.

False alarms: none; every figure is a count.
"""

from collections.abc import Iterator, Sequence

from harness.data.check import CheckContext, Finding, Tokenizer
from harness.data.check._table import HELD, RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.formatting import pluralize
from harness.records import pieces

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 16
_FEWEST = 25  # below it a fifth set aside twice leaves fewer than five rows, too few for any sign test


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count rows, show how long they are, and list those beyond the model's context."""
    yield _rows(table)
    drawn = table.draw(given.most)
    if given.tokenizer:
        lengths = given.tokenizer.lengths([f"{entry.question}\n{entry.answer}" for entry in drawn])
        yield _lengths(lengths, f"tokens a row by {given.tokenizer.name}", table, len(drawn))
        yield from _find_beyond(table, given.tokenizer)
    else:
        words = [len(pieces(entry.question)) + len(pieces(entry.answer)) for entry in drawn]
        yield _lengths(words, "words a row (no model named: --base counts tokens)", table, len(drawn))


def _rows(table: RowTable) -> Finding:
    files = ", ".join(f"{name} {n:,}" for name, n in table.per_file.items())
    memory = f"as many as {HELD / 1e9:g} GB of memory holds"
    held = f"; texts of {len(table.entries):,} sampled rows are looked at, {memory}" if table.is_drawn else ""
    if table.n < _FEWEST:
        meaning = "a fifth set aside for test holds fewer than 5 items: nothing can be shown on them"
        title = f"{pluralize(table.n, 'row')} in all ({files})"
        return Finding("warning", title, meaning, command=_MORE)
    return Finding("note", f"{table.n:,} rows ({files}){held}", "how much there is to train on")


_MORE = "collect more rows"


def _lengths(lengths: Sequence[int], what: str, table: RowTable, n: int) -> Finding:
    ordered = sorted(lengths)
    at = {q: ordered[int(q * (n - 1))] for q in (0.5, 0.95, 1.0)}
    drawn = f", of {n:,} sampled rows" if n < len(table.digests) else ""
    title = f"{what}: median {at[0.5]:,}, 95 % up to {at[0.95]:,}, longest {at[1.0]:,}{drawn}"
    return Finding("note", title, "how long rows are", example=histogram(ordered))


def histogram(ordered: Sequence[int]) -> str:
    """Draw a histogram of sorted lengths as bars between the shortest and the longest."""
    low, high = ordered[0], ordered[-1]
    if low == high:
        return f"all {low:,}"
    counts = [0] * _BINS
    for length in ordered:
        counts[min(_BINS - 1, (length - low) * _BINS // (high - low))] += 1
    bars = "".join(_BARS[-(-7 * n // max(counts))] if n else " " for n in counts)
    return f"{low:,} {bars} {high:,}"


def _find_beyond(table: RowTable, tokenizer: Tokenizer) -> Iterator[Finding]:
    if tokenizer.context is None:
        return
    long = [entry for entry in table.entries if _n_bytes(entry) > tokenizer.context]
    counts = tokenizer.lengths([f"{entry.question}\n{entry.answer}" for entry in long])
    beyond = [entry for entry, n in zip(long, counts, strict=True) if n > tokenizer.context]
    if beyond:
        yield Finding(
            "error",
            f"longer than the {tokenizer.context:,} tokens of {tokenizer.name}'s context",
            "a training leaves such rows out or cuts them, and the model cannot read them",
            len(table.entries),
            tuple(entry.where for entry in beyond),
            f"{max(counts):,} tokens: {excerpt(beyond[0].question, 60)}",
            "shorten the rows, or take a base with a longer context",
        )


def _n_bytes(entry: TableEntry) -> int:
    return len(entry.question.encode()) + len(entry.answer.encode()) + 1
