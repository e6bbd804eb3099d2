"""Check of rows before training: findings, the worst first.

Invariant: nothing is changed; the same files, columns and tokenizer give the same findings. A check NAME is a
function `check_NAME(table, context)` that yields findings; its docstring states how often clean rows raise an
alarm. Tests against chance are at `ALPHA` for the whole file, by Bonferroni. Files are read once, in bounded
memory: the place and the digests of question and answer of every row, some 100 bytes, and texts up to about
`HELD` bytes; beyond that, the texts of a uniform, repeatable sample.
"""

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data import column_roles, examples, formats, readers, text_files
from harness.data.column_roles import QuestionAndAnswers, Roles, find_reading_roles, read_question_and_answers
from harness.data.contamination import Encode
from harness.data.edit.changes import list_written_answers
from harness.data.edit.dedup import fold_row
from harness.data.examples import FIELD
from harness.data.formats import Layout
from harness.data.guessed_columns import label_set
from harness.data.row_traits import ScoreAnswers
from harness.data.splits import is_augmented
from harness.data.text_files import ColumnCells, Row, cap_problems
from harness.data.unused import Unused, UnusedCounter
from harness.errors import Problem, UserError, did_you_mean, gather, refuse
from harness.records import Example
from harness.spec import Fields, Task

if TYPE_CHECKING:
    from harness.progress import Advance

HELD = 1_000_000_000  # bytes of texts in memory
_FIRST = 2_000  # rows that show whether the answers are lists of objects
_A_ROW = 1_500  # bytes of a row besides its characters


class ReadingOptions(NamedTuple):
    """Options for reading rows: a task, an optional layout, and the column of dates.

    `prompt` and `reference` are columns or templates as the user named them, None if they were guessed.
    """

    task: Task
    layout: Layout | None = None
    date: str | None = None
    prompt: str | None = None
    reference: str | None = None
    date_format: str | None = None

    @property
    def options(self) -> list[str]:
        """Options by which another command reads the rows in the same way."""
        return column_roles.column_options(self.prompt, self.reference)

    @property
    def columns(self) -> list[str]:
        """The same options, also for guessed columns: next to another column the guess may fail."""
        fields, default = self.task.fields, Fields()
        prompt = column_roles.option_text(fields.prompt, default.prompt)
        reference = column_roles.option_text(fields.reference, default.reference)
        return self.options or column_roles.column_options(prompt, reference)


class TableEntry(NamedTuple):
    """A row that can be used: its place, question and answer, and its draw in [0, 1).

    `qa` is the row in the form of `data dedup`. `spaced` are the answers with white space at an end.
    """

    where: str
    example: Example
    question: str
    answer: str
    qa: QuestionAndAnswers
    date: datetime | None
    draw: float
    spaced: tuple[str, ...] = ()
    is_augmented: bool = False

    @property
    def n_bytes(self) -> int:
        """About how much memory its texts take."""
        texts = self.question, self.answer, self.qa.question, *self.qa.answers, *self.spaced
        return 2 * sum({id(text): len(text) for text in texts}.values()) + _A_ROW


@dataclass(frozen=True)
class RowTable:
    """Rows of one or several files.

    `entries` are the usable rows whose texts are held, `digests` (n, 2) of question (with its setting) and
    answer of all usable rows; `places` are the places of the same rows.
    """

    files: tuple[str, ...]
    n: int
    per_file: Mapping[str, int]
    entries: Sequence[TableEntry]
    unusable: Sequence[Problem]
    columns: Mapping[str, ColumnCells]
    digests: NDArray[np.uint64]
    places: Sequence[str]
    reading: ReadingOptions
    unused: Unused

    @property
    def is_drawn(self) -> bool:
        """Whether the texts of some rows are not held."""
        return len(self.entries) < len(self.digests)

    @property
    def answer_column(self) -> str | None:
        """The one column that holds the answers, or the turns that end with them; None if several do."""
        return column_roles.answer_column(self.reading.task, self.reading.layout, self.columns)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels if the answers are a closed set of few and short ones, else ()."""
        questions = [entry.question for entry in self.entries]
        answers = (entry.answer for entry in self.entries)
        return label_set(answers, self.answer_column or "", questions) if any(questions) else ()

    def draw(self, max_entries: int) -> list[TableEntry]:
        """Sample at most `max_entries` entries, each class by its share, in the order of the files."""
        if len(self.entries) <= max_entries:
            return list(self.entries)
        by_label: dict[str, list[int]] = {}
        for i, entry in enumerate(self.entries):
            by_label.setdefault(entry.answer if self.labels else "", []).append(i)
        rng, chosen_indices = random.Random("check"), []
        for _, members in sorted(by_label.items()):
            rng.shuffle(members)
            chosen_indices += members[: max(1, int(len(members) * max_entries / len(self.entries)))]
        return [self.entries[i] for i in sorted(chosen_indices)[:max_entries]]


class _Maker:
    def __init__(self, reading: ReadingOptions, held: int) -> None:
        self.reading, self.held = reading, held
        self.entries: list[TableEntry] = []
        self.unusable: list[Problem] = []
        self.columns: dict[str, ColumnCells] = {}
        self.digests, self.places = array("Q"), list[str]()
        self.no_dates: list[Problem] = []
        self.roles: dict[tuple[str, ...], Roles] = {}
        self.unused = UnusedCounter(reading.task, reading.layout)
        self.rng, self.share, self.size = random.Random("table"), 1.0, 0

    def count_cells(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            text_files.count_cells(self.columns, row)
            yield row

    def add(self, row: Row) -> None:
        try:
            example = examples.read_example(self.reading.task, self.reading.layout, row)
        except UserError as error:
            self.unused.add(row, None)
            self.unusable.append(error.problems[0])
            return
        self.unused.add(row, example)
        turns = [m["content"] for m in example.messages if m["role"] != "system"]
        answer = example.references[0] if example.references else ""
        question, answer = ("\n".join(turns), answer) if turns else (answer, "")  # a bare text is a question
        names = tuple(row.fields)
        if names not in self.roles:
            self.roles[names] = find_reading_roles(self.reading.task, self.reading.layout, names)
        roles = self.roles[names]
        qa = read_question_and_answers(row, roles)
        if qa.question == question:  # an equal text is kept once
            qa = qa._replace(question=question)
        folded = fold_row(qa)
        for compared_texts in ((*folded.setting, folded.question), folded.answers):
            digest = hashlib.blake2b("\n".join(compared_texts).encode(), digest_size=8).digest()
            self.digests.append(int.from_bytes(digest, "big"))
        self.places.append(row.where)
        draw = self.rng.random()
        if draw >= self.share:
            return
        date, value = None, row.fields.get(self.reading.date) if self.reading.date else None
        try:
            if value not in (None, ""):
                seconds, is_number = text_files.read_moment(value, self.reading.date_format)
                if is_number and abs(seconds) < 1e8:  # eight digits or fewer are not seconds
                    raise ValueError(value)
                date = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
        except (ValueError, OSError, OverflowError):
            found = f"{str(value)[:40]!r} in {self.reading.date!r}"
            expected = f"a date: {self.reading.date_format or text_files.FORMS}"
            step = "name its form, such as --date-format %d.%m.%Y, or leave --date out"
            self.no_dates.append(Problem(row.where, found, expected, step))
        texts = [placed.text for placed in list_written_answers(row.fields, roles)]
        spaced = tuple(text for text in texts if text.strip() not in ("", text))
        entry = TableEntry(row.where, example, question, answer, qa, date, draw, spaced, is_augmented(row))
        self.entries.append(entry)
        self.size += entry.n_bytes
        while self.size > self.held:
            self.share /= 2
            self.entries = [entry for entry in self.entries if entry.draw < self.share]
            self.size = sum(entry.n_bytes for entry in self.entries)


def read_table(
    paths: Sequence[str], reading: ReadingOptions, split: str = "train", held: int = HELD
) -> RowTable:
    """Read files, in one pass; a UserError names the problems of all of them, or that no row can be used."""
    maker, per_file, problems = _Maker(reading, held), Counter[str](), list[Problem]()
    answer_match = FIELD.fullmatch(reading.task.fields.reference)
    for path in paths:
        shown_path, n = readers.display_path(path), 0
        with gather(problems):
            rows = maker.count_cells(readers.stream(path, split))
            for row in text_files.write_empty_lists(answer_match[1] if answer_match else "", rows, _FIRST):
                n += 1
                maker.add(row)
            per_file[shown_path] = n
            if not n:
                raise UserError(readers.phrase_no_rows(path, "add rows, or leave the file out"))
    if reading.date and maker.columns and reading.date not in maker.columns:
        found, step = f"the column {reading.date!r}", did_you_mean(reading.date, maker.columns)
        problems.append(Problem("--date", found, "a column of the rows", step))
    files = ", ".join(per_file)
    problems += text_files.find_mixed_columns(maker.columns)
    problems += cap_problems(maker.no_dates, files, "dates that cannot be read")
    refuse(problems)
    if not maker.entries:
        step = "name the columns: --prompt COLUMN --reference COLUMN"
        expected = "a question and an answer"
        row_problems = [replace(problem, expected=expected, next_step=step) for problem in maker.unusable]
        raise UserError(cap_problems(row_problems, files, "rows that cannot be used"))
    digests = np.frombuffer(maker.digests, np.uint64).reshape(-1, 2)
    parts = maker.entries, maker.unusable, maker.columns, digests, maker.places, reading, maker.unused.find()
    return RowTable(tuple(per_file), per_file.total(), per_file, *parts)


Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ALPHA = 0.001  # chance that a check which tests against chance raises an alarm on clean rows
DECIDE = "harness dashboard  # its Data page, then: harness data clean FILE --out OUT --decisions DECISIONS"
DECIDE_BY_SENSE = DECIDE.replace("page,", "page, with the model of --embeddings named there,")
MODULES = {
    **dict.fromkeys(("amount", "missing_values", "traits", "edge_cases"), "figures"),
    **dict.fromkeys(("class_balance", "label_markers", "suspect_labels"), "figures"),
    **dict.fromkeys(("repeated_rows", "conflicting_answers", "test_leaks"), "texts"),
    **dict.fromkeys(("answer_formats", "encoding_damage", "personal_data", "quality"), "texts"),
}
MOST_MODELLED = 20_000  # rows that a classifier sees, drawn by class


@dataclass(frozen=True, slots=True)
class Finding:
    """Finding of a check: the fault, the rows that show it, its meaning, and the command that fixes it.

    An `error` makes results wrong, a `warning` is likely to harm a training, a `note` is information.
    `count` of `of` rows show it; `rows` are all their places, `file:line`. `labels` are proposed for `rows`,
    and `related` names what each repeats or resembles. `check_rows` fills in `check`, a missing `count` (of
    `rows`), and a missing `of` (the rows whose texts are held). `steps` are the parts of `command`, each of
    which reads the output of an earlier step, of this or another finding.
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
    related: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """Share of the rows that show it, in [0, 1]; None if the finding does not count rows."""
        return self.count / self.of if self.of else None


class Tokenizer(NamedTuple):
    """A model's tokenizer: its name, its context (None: unknown), token counts of texts, special tokens."""

    name: str
    context: int | None
    lengths: Callable[[Sequence[str]], list[int]]
    special: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckContext:
    """Inputs of a check besides the rows: test rows, a tokenizer and others.

    `most` rows are judged by classifiers. `encode` gives embeddings; `score` the quality of answers, as
    `data clean` gives it with `score_options`.
    """

    test: RowTable | None = None
    tokenizer: Tokenizer | None = None
    most: int = MOST_MODELLED
    encode: Encode | None = None
    score: ScoreAnswers | None = None
    score_options: str = ""


def check_rows(
    table: RowTable, context: CheckContext, only: Iterable[str] | None, advance: "Advance | None" = None
) -> list[Finding]:
    """Run the checks, all or the named ones, and return their findings, the worst first."""
    from harness.data.check.personal_data import mask_text

    names = list(MODULES if only is None else only)
    findings: list[Finding] = []
    for n_done, name in enumerate(names):
        if advance is not None:
            advance(n_done, len(names), name.replace("_", " "))
        check = getattr(import_module(f"{__name__}.{MODULES[name]}"), f"check_{name}")
        for finding in check(table, context):
            n_rows = finding.of or (len(table.entries) if finding.rows else 0)
            finding = replace(finding, check=name, count=finding.count or len(finding.rows), of=n_rows)
            masked_texts = {"title": mask_text(finding.title), "example": mask_text(finding.example)}
            findings.append(replace(finding, **masked_texts, related=tuple(map(mask_text, finding.related))))
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -(f.share or 0), f.check))
