"""Commands that rewrite rows of data: clean, dedup, split, mix and sample.

Invariant: each writes new files and a manifest, never over a file, whole or not at all.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from harness.cli.app import data_app, print_json, say
from harness.cli.options import Argument, DryRun, Json, Option, RowColumns, Seed, require_out, verb
from harness.errors import UserError
from harness.formatting import count, pluralize

if TYPE_CHECKING:
    from harness.data.column_roles import Roles
    from harness.data.edit.changes import EditedRow
    from harness.data.edit.save import Edit, SavedEdit
    from harness.data.text_files import Rows
    from harness.experiment.writers import MadeRows

_SEEN = 1_000  # rows that are read to recognise the columns of a file

File = Annotated[str, Argument("The rows: JSON Lines, JSON, CSV, Parquet, or hub:owner/name.")]
Out = Annotated[
    Path | None, Option("The new file, in the format of its suffix; a manifest stands next to it.")
]


class Remarks(NamedTuple):
    """Remarks on rows for the manifest."""

    licenses: Annotated[list[str] | None, Option("The rows' licence, kept in the manifest.", "--license")] = (
        None
    )
    notes: Annotated[list[str] | None, Option("A note for the manifest.", "--note")] = None

    def edit(
        self, name: str, parameters: dict[str, Any], files: list[str], cost_usd: float | None = None
    ) -> "Edit":
        """Describe an edit of files with these remarks."""
        from harness.data.edit.save import Edit

        return Edit(name, parameters, files, self.licenses or (), self.notes or (), cost_usd=cost_usd)


@verb(data_app, "tickets.csv --out clean.csv")
def data_clean(
    file: File,
    *,
    out: Out = None,
    decisions: Annotated[Path | None, Option("Decisions that the dashboard's Data page wrote.")] = None,
    drop_lost: Annotated[bool, Option("Also drop rows with U+FFFD, where characters are lost.")] = False,
    leading_spaces: Annotated[bool, Option("Cut white space in front of answers as well.")] = False,
    spellings: Annotated[bool, Option("Write each label in its commonest spelling.")] = False,
    new_ids: Annotated[bool, Option("Give rows whose id stands already another one.")] = False,
    special_tokens: Annotated[bool, Option("Remove end tokens and role marks of chat models.")] = False,
    min_quality: Annotated[float | None, Option("Drop rows whose answer scores less.", min=0, max=1)] = None,
    perplexity: Annotated[bool, Option("With --min-quality: score by perplexity under --base too.")] = False,
    judge: Annotated[str | None, Option("With --min-quality: the harness.yaml whose judge scores.")] = None,
    base: Annotated[str | None, Option("The model of --special-tokens and --perplexity.")] = None,
    columns: RowColumns,
    remarks: Remarks,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fix encoding and spaces; drop incomplete rows.

    Unicode forms are made equal. A row without a question or an answer is dropped.
    """
    from harness.data import formats, readers
    from harness.data.edit.changes import decisions_by_line, open_decisions
    from harness.data.edit.clean import CleaningOptions, clean, low_quality, spellings_in
    from harness.data.edit.mix import RowIds

    require_out(out, [file], dry_run=dry_run)
    rulings = open_decisions(decisions, file) if decisions else None
    sample = read_all(file, _SEEN)
    roles = roles_of(sample, columns._replace(reference=columns.reference or (rulings and rulings.column)))
    layout = None if all(columns) else formats.recognise(sample.rows)
    line_decisions = decisions_by_line(rulings, file, roles) if rulings else {}
    spelling_map = spellings_in(readers.stream(file, "train"), roles, sample.shown) if spellings else {}
    special: tuple[str, ...] | None = () if special_tokens else None
    if special_tokens and base:
        from harness.experiment.check_rows import tokenizer_of

        special = tokenizer_of(base).special
    switches = {"leading_spaces": leading_spaces, "new_ids": new_ids, "special_tokens": special_tokens}
    extras: dict[str, Any] = {name: True for name, is_on in switches.items() if is_on}
    extras |= {"base_tokens": special} if special else {}
    low_answers: dict[int, str] = {}
    if (perplexity or judge is not None) and min_quality is None:
        step = "take the one that harness data check proposes"
        raise UserError("--min-quality", "no score", "a score in [0, 1]", step)
    if judge is not None and dry_run:
        found, step = "--dry-run, which asks no judge", "leave out one of the two"
        raise UserError("--judge", found, "grades that are asked for and kept", step)
    if min_quality is not None:
        from harness.cli.progress_bar import TerminalProgress
        from harness.experiment.check_rows import AnswerScoring

        scoring = AnswerScoring(base, perplexity=perplexity, judge=judge, progress=TerminalProgress())
        low_answers = low_quality(readers.stream(file, "train"), roles, min_quality, scoring.score)
        if scoring.ungraded:
            answers, reason = pluralize(len(scoring.ungraded), "answer"), scoring.ungraded[0]
            say(f"{answers} without a grade ({reason}): only their other traits are scored")
        extras |= {"min_quality": min_quality, "perplexity": base if perplexity else None}
        extras |= {"judge": judge} if judge else {}
    extras |= {"spellings": spelling_map} if spellings else {}
    extras |= _digests("decisions", [str(decisions)] if decisions else [])
    edit = remarks.edit("clean", {**roles._asdict(), "drop_lost": drop_lost, **extras}, [file])
    rows = readers.stream(file, "train")
    ids = RowIds(readers.stream(file, "train")) if new_ids else None
    cleaning = CleaningOptions(leading_spaces, spelling_map, ids, special, low_answers)
    outcomes = clean(rows, roles, line_decisions, layout=layout, drop_lost=drop_lost, options=cleaning)
    _save(edit, outcomes, out, dry_run=dry_run, as_json=as_json)


@verb(data_app, "clean.csv --out unique.csv", "train.csv --against test.csv --out unique.csv")
def data_dedup(
    file: File,
    *,
    out: Out = None,
    alike: Annotated[float, Option("Jaccard index of near duplicates.", min=0.01, max=1)] = 0.7,
    conflicts: Annotated[Literal["keep", "drop"], Option("Equal questions, other answers.")] = "keep",
    against: Annotated[list[str] | None, Option("A test file; rows with its questions are dropped.")] = None,
    columns: RowColumns,
    remarks: Remarks,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Drop rows that repeat another row, or a test row.

    Equal questions and near duplicates; of each the first row stays.
    """
    from harness.data.edit.dedup import dedup

    tests = against or []
    require_out(out, [file, *tests], dry_run=dry_run)
    content, contents = read_all(file), list(map(read_all, tests))
    roles = roles_of(content, columns)
    held_out = [(content, roles_of_test(content, columns)) for content in contents]
    test_rows = [(row, test_roles) for content, test_roles in held_out for row in content.rows]
    parameters = {"alike": alike, "conflicts": conflicts, **_digests("against", tests)}
    edit = remarks.edit("dedup", {**parameters, **roles._asdict()}, [file])
    outcomes = dedup(content.rows, roles, alike=alike, conflicts=conflicts, against=test_rows)
    _save(edit, outcomes, out, dry_run=dry_run, as_json=as_json)


@verb(data_app, "clean.csv --stratify label --out tickets", "clean.csv --group customer --out tickets")
def data_split(
    file: File,
    *,
    out: Annotated[Path | None, Option("A new folder for parts and manifest.")] = None,
    shares: Annotated[str, Option("Shares of train, validation and test; 0 for none.")] = "0.64,0.16,0.2",
    folds: Annotated[int | None, Option("Write this many folds of equal size instead.")] = None,
    stratify: Annotated[str | None, Option("A column whose values get equal shares in all parts.")] = None,
    group: Annotated[str | None, Option("A column; rows of one value stay together. Else `cluster`.")] = None,
    time: Annotated[str | None, Option("A column of times: the oldest rows train, the newest test.")] = None,
    time_format: Annotated[str | None, Option("The form of the times, such as %d.%m.%Y.")] = None,
    alike: Annotated[float, Option("Jaccard index of questions to keep together.", min=0.01, max=1)] = 0.7,
    seed: Seed = 0,
    columns: RowColumns,
    remarks: Remarks,
    as_json: Json = False,
) -> None:
    """Split rows into train, validation and test, or folds.

    Rows that are alike are never in two parts.
    """
    from harness.data.edit.row_files import row_suffix
    from harness.data.edit.save import save_split
    from harness.data.edit.split import SplitOptions, check_way, keep_clusters, odd_shares, split

    require_out(out, [file], folder=True)
    plan = SplitOptions(_numbers("--shares", shares), stratify, group, time, time_format, alike, seed, folds)
    check_way(plan)
    content = read_all(file, stratify=stratify, group=group, time=time)
    plan = keep_clusters(plan, content)
    if plan.group != group:
        say(f"rows of one {plan.group!r} stay together; --group names another column")
    roles = roles_of(content, columns)
    edit = remarks.edit("split", {**plan.parameters, **roles._asdict()}, [file])
    parts = split(content, roles, plan)
    say(*odd_shares(parts, plan))
    print_saved(save_split(edit, parts, out or Path(), row_suffix(file) or ".jsonl"), as_json)


@verb(data_app, "tickets.jsonl chats.jsonl --weights 0.7,0.3 --out mixed.jsonl")
def data_mix(
    files: Annotated[list[str], Argument("Two files of rows or more.")],
    *,
    out: Out = None,
    weights: Annotated[str | None, Option("The files' shares of the rows, such as 0.7,0.3.")] = None,
    temperature: Annotated[float, Option("Shares by size, n^(1/T): 1 by size, high nearly even.")] = 1.0,
    n_rows: Annotated[int | None, Option("How many rows in all.", "--rows")] = None,
    replacement: Annotated[bool, Option("A row may be sampled several times.")] = False,
    column: Annotated[str, Option("The new column that names the file.")] = "source",
    seed: Seed = 0,
    remarks: Remarks,
    as_json: Json = False,
) -> None:
    """Mix the rows of several files by weights or sizes."""
    from harness.data.edit.mix import RowMixture, mix, refuse_no_rows, refuse_other_layouts
    from harness.data.readers import find_repeated

    require_out(out, files)
    if len(set(files)) < 2 or find_repeated(files):
        step = "name each once; --weights sets the files' shares"
        raise UserError("harness data mix", ", ".join(files), "two different files or more", step)
    if weights is not None and temperature != 1:
        found = "--weights as well, which are the shares themselves"
        raise UserError("--temperature", found, "one of the two", "leave out --temperature, or --weights")
    if n_rows is not None:
        refuse_no_rows(n_rows)
    shares = None if weights is None else _numbers("--weights", weights)
    mixture = RowMixture(shares, temperature, n_rows, replacement, column, seed)
    edit = remarks.edit("mix", mixture._asdict(), files)
    contents = list(map(read_all, files))
    _doubt_headers(contents)
    refuse_other_layouts(contents)
    _save(edit, mix(contents, mixture), out, as_json=as_json)


@verb(data_app, "clean.csv --rows 200 --balance label --out few.csv")
def data_sample(
    file: File,
    n_rows: Annotated[int, Option("How many rows.", "--rows")],
    *,
    out: Out = None,
    balance: Annotated[str | None, Option("A column; every value gets the same number of rows.")] = None,
    seed: Seed = 0,
    remarks: Remarks,
    as_json: Json = False,
) -> None:
    """Draw rows at random, or balanced by a column.

    A smaller sample of one seed is part of a larger one.
    """
    from harness.data.edit.mix import refuse_no_rows, sample

    require_out(out, [file])
    refuse_no_rows(n_rows)
    content = read_all(file, balance=balance)
    _doubt_headers([content])
    edit = remarks.edit("sample", {"rows": n_rows, "balance": balance, "seed": seed}, [file])
    _save(edit, sample(content, n_rows, balance, seed), out, as_json=as_json)


def read_all(file: str, max_rows: int | None = None, **columns: str | None) -> "Rows":
    """Read all rows of a file, or the first `max_rows`.

    Raises:
        UserError: the file is empty, or no row has one of the columns.
    """
    from itertools import islice

    from harness.data import readers
    from harness.data.column_roles import require_column
    from harness.data.edit.save import Edit, phrase_no_rows

    rows = list(islice(readers.stream(file, "train"), max_rows))
    if not rows:
        raise phrase_no_rows(Edit("", {}, [file]), 0)
    shown_path = readers.display_path(file)
    names = {name for row in rows for name in row.fields}
    for option, column in columns.items():
        if column is not None:
            require_column(shown_path, names, column, f"--{option}")
    return readers.Rows(shown_path, "", rows)


def _doubt_headers(contents: "Iterable[Rows]") -> None:
    """Warn about headers of CSV files that are probably rows, where no column is requested."""
    from harness.data.column_roles import find_missing_header

    for content in contents:
        if problem := find_missing_header(content, is_named=False):
            say(f"warning: {problem.where}: {problem.found}; it is read as the header")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        step = f"such as {option} 0.8,0.1,0.1"
        raise UserError(option, repr(text), "numbers between commas", step) from None


def roles_of(content: "Rows", row_columns: RowColumns) -> "Roles":
    """Find the columns of prompts and answers, and print their names."""
    from harness.data.column_roles import find_roles
    from harness.data.unused import OFFER, find_unread_contexts, name_contexts

    roles = find_roles(content, *row_columns)
    names = content.names
    known_columns = ([column for column in columns if column in names] for columns in roles)
    questions, answers = (", ".join(map(repr, columns)) or "no column" for columns in known_columns)
    say(f"{content.shown}: prompt from {questions}, answer from {answers}")
    unused = find_unread_contexts(content, roles, *row_columns)
    if unused.contexts:
        say(f"warning: {name_contexts(unused)}; next: {OFFER}, {unused.options()}")
    return roles


def roles_of_test(content: "Rows", columns: RowColumns) -> "Roles":
    """Find the columns of a test file: the requested ones, also in a template, if the file has them."""
    from harness.data.column_roles import columns_of

    names = content.names
    valid = (column if column and set(columns_of(column, names)) <= names else None for column in columns)
    return roles_of(content, RowColumns(*valid))


def _digests(option: str, files: list[str]) -> dict[str, list[dict[str, str]]]:
    from harness.data.edit.save import digest_of
    from harness.data.text_files import display_path

    return {option: [{"file": display_path(f), "sha256": digest_of(f)} for f in files]} if files else {}


def _save(
    edit: "Edit", outcomes: "Iterable[EditedRow]", out: Path | None, *, dry_run: bool = False, as_json: bool
) -> None:
    from harness.data.edit.save import save

    saved = save(edit, outcomes, out or Path("dry-run"), dry_run=dry_run)
    if dry_run and not as_json:
        for change in saved.changes:
            print(change)
    print_saved(saved, as_json)
    if dry_run:
        say("nothing is written in a dry run")


def save_made(new_rows: "MadeRows", out: Path, as_json: bool) -> None:
    """Write new rows, and print their counts and the notes on them."""
    from harness.data.edit.save import save

    print_saved(save(new_rows.edit, new_rows.outcomes, out), as_json)
    say(*new_rows.notes)


def print_saved(saved: "SavedEdit", as_json: bool) -> None:
    """Print the manifest as JSON, or the counts of rows with the reasons."""
    if as_json:
        print_json(saved.manifest)
        return
    counts = saved.manifest["counts"]
    shown = (f"{count(n)} {label}" for label, n in counts.items() if n or label in ("read", "written"))
    print(", ".join(shown))
    for reason, n in saved.manifest["reasons"].items():
        print(f"  {count(n)} {reason}")
    for kind, n in saved.manifest.get("personal_data", {}).items():
        print(f"  {pluralize(n, 'row')} with {kind}, by their form")
    for output in saved.manifest["outputs"]:
        print(f"{output['file']}  {pluralize(output['rows'], 'row')}, sha256 {output['sha256'][:16]}")
