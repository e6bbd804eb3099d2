"""Check of rows before anything is trained on them: findings, the worst first.

Invariant: nothing is changed and nothing is trained that is kept; the same files, columns and tokenizer give
the same findings. A check NAME is a function `check_NAME(table, given)` that yields findings, and its
docstring states how often clean rows raise an alarm. What an alarm tests against chance is tested at `ALPHA`
for the whole file of rows, by Bonferroni over all that the check looks at.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.data.check._table import ReadingOptions, RowTable, TableEntry, read_table

if TYPE_CHECKING:
    from harness.data.overlap import Encode
    from harness.progress import Advance


Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ALPHA = 0.001  # chance that a check which tests against chance raises an alarm on clean rows
DECIDE = "harness dashboard  # its Data page, then: harness data clean FILE --out OUT --decisions DECISIONS"
DECIDE_BY_SENSE = DECIDE.replace("page,", "page, with the model of --embeddings named there,")
_CHECKS = {
    "figures": ("amount", "missing_values", "traits"),
    "labels": ("class_balance", "label_markers", "suspect_labels"),
    "repeats": ("repeated_rows", "conflicting_answers", "test_leaks"),
    "texts": ("answer_formats", "encoding_damage", "personal_data"),
}
MODULES = {check: module for module, checks in _CHECKS.items() for check in checks}
MOST_MODELLED = 20_000  # rows that a classifier sees, drawn by class


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know of the rows: what was found, where, what it means, and the command that fixes it.

    An `error` makes results wrong, a `warning` is likely to harm a training, a `note` is a figure and no
    alarm. `count` of `of` rows show it; `rows` are their places, `file:line`, all of them. `labels` are the
    labels that are proposed for `rows`, and `beside` says what each repeats or is like, where there is such.
    A check leaves out its own name, the `count` of its `rows`, and `of` where that is the rows whose texts
    are held: `check_rows` fills them in.
    `steps` are the parts of `command`, each of which reads what an earlier step writes, of this finding or of
    another: the last line of a report lists those of all alarms in order.
    """

    check: str = field(default="", kw_only=True)
    severity: Severity
    title: str
    meaning: str
    count: int = field(default=0, kw_only=True)
    of: int = field(default=0, kw_only=True)
    rows: tuple[str, ...] = ()
    example: str = ""
    command: str = ""
    labels: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """Share of the rows that show it, in [0, 1]; None where it is not of rows."""
        return self.count / self.of if self.of else None


class Tokenizer(NamedTuple):
    """Tokens by a model's tokenizer: its name, its context (None: unknown), and the lengths of texts.

    `special` are those that are not text.
    """

    name: str
    context: int | None
    lengths: Callable[[Sequence[str]], list[int]]
    special: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckContext:
    """Beside the rows: those that are tested on, a tokenizer, and the least difference that n items show.

    `most` rows are judged by classifiers, drawn by class.
    `detectable(n, d)` is in [0, 1], for the share d of items that two models answer differently.
    `encode` gives texts' embeddings, by which duplicates and contamination are looked for as well.
    """

    test: "RowTable | None" = None
    tokenizer: Tokenizer | None = None
    detectable: Callable[[int, float], float] | None = None
    most: int = MOST_MODELLED
    encode: "Encode | None" = None


def check_rows(
    table: "RowTable",
    given: CheckContext,
    only: Iterable[str] | None = None,
    advance: "Advance | None" = None,
) -> list[Finding]:
    """Run the checks, all or those that are named, and return their findings, the worst first."""
    from harness.data.check.personal_data import mask_text

    chosen = list(MODULES if only is None else only)
    found: list[Finding] = []
    for done, name in enumerate(chosen):
        if advance is not None:
            advance(done, len(chosen), name.replace("_", " "))
        check = getattr(import_module(f"{__name__}.{MODULES[name]}"), f"check_{name}")
        for finding in check(table, given):
            masked = mask_text(finding.title), mask_text(finding.example), map(mask_text, finding.beside)
            title, example, beside = masked
            n_rows = finding.of or (len(table.entries) if finding.rows else 0)
            finding = replace(finding, check=name, count=finding.count or len(finding.rows), of=n_rows)
            found.append(replace(finding, title=title, example=example, beside=tuple(beside)))
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -(f.share or 0), f.check))
