"""Rows of files: JSON Lines, JSON, CSV and TSV (also gzipped), Parquet, and data sets in the hub's layout.

Invariant: every row knows where it was written; a file with malformed rows is refused, and all are listed.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from harness.data import text_files
from harness.data.text_files import Row, Rows, cap_problems, display_path
from harness.errors import Problem, UserError, refuse, refuse_unreadable
from harness.records import parse_json
from harness.spec import HUB

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_lines(file: Path, shown_path: str) -> Iterator[Row]:
    """Yield the objects of a file with one object in each line."""
    problems: list[Problem] = []
    with text_files.open_text(file, shown_path, "\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = line.removesuffix("\n")
                value = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
                if not isinstance(value, dict):
                    raise ValueError(f"a {type(value).__name__}, not an object")
                _refuse_half_signs(line, value)
                yield Row(f"{shown_path}:{number}", value)
            except ValueError as error:
                reason = str(error)
                if isinstance(error, json.JSONDecodeError):
                    reason = f"{error.msg} at column {error.colno}"
                found, step = f"malformed JSON ({reason})", "fix the line"
                if number == 1 and line.lstrip().startswith("["):
                    step += ", or where the file is one list, name it .json"
                problems.append(Problem(f"{shown_path}:{number}", found, "one JSON object a line", step))
    refuse(cap_problems(problems, shown_path, "malformed lines"))


def read_json_array(file: Path, shown_path: str) -> list[Row]:
    """Return the objects of a JSON list, also within an object, and the questions of SQuAD's articles."""
    try:
        with text_files.open_text(file, shown_path) as text_file:
            text = text_file.read()
        value = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
        _refuse_half_signs(text, value)
    except json.JSONDecodeError as error:
        where, found = f"{shown_path}:{error.lineno}", f"malformed JSON ({error.msg} at column {error.colno})"
        expected = "a list of objects (one object a line is a .jsonl file)"
        raise UserError(where, found, expected, "fix or rename the file") from None
    except ValueError as error:
        raise UserError(shown_path, f"malformed JSON ({error})", "a list of objects", "fix it") from None
    lists = [inner for inner in value.values() if isinstance(inner, list)] if isinstance(value, dict) else []
    rows = lists[0] if len(lists) == 1 else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        found = "JSON that is not a list of objects"
        step = "write its rows as a list (pandas: orient='records')"
        raise UserError(shown_path, found, "[{…}, {…}]", step)
    if all(isinstance(row.get("paragraphs"), list) for row in rows):
        rows = [  # SQuAD's questions, each with its context
            {**question, "context": paragraph.get("context"), "title": row.get("title")}
            for row in rows
            for paragraph in row["paragraphs"]
            for question in paragraph.get("qas") or ()
        ]
    return [Row(f"{shown_path} row {i}", fields) for i, fields in enumerate(rows)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated_name = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"the field {repeated_name!r} twice")
    return fields


def _refuse_half_signs(text: str, value: Any) -> None:
    """Refuse half of a surrogate pair, left where a text was cut inside an emoji."""
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{half} is half of a sign, which no encoding can write") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


_LONGEST_REASON = 300
_AT_ONCE, _LEAST = 1024, 8  # rows of a Parquet file read at once, and the fewest bytes that each takes


def stream_set(reference: str, split: str) -> Iterator[Row]:
    """Stream one split through the datasets library, from a local copy if there is one."""
    import datasets
    from yaml import YAMLError  # type: ignore[import-untyped]

    datasets.disable_progress_bars()
    source, config, named_split = hub_source(reference)
    split, where = named_split or split, reference if named_split else f"{reference} {split}"
    file_errors = (OSError, EOFError, ValueError, TypeError, zlib.error)
    read_errors = (*file_errors, YAMLError, datasets.exceptions.DatasetsError)
    n = 0
    try:
        for fields in datasets.load_dataset(source, config or None, split=split, streaming="[" not in split):
            yield Row(f"{where} row {n}", replace_nan(fields))
            n += 1
    except read_errors as error:
        reason = " ".join(str(error.__cause__ or error).split())[:_LONGEST_REASON]
        found, expected = f"no {split} rows to be had", "a data set on the hub or a copy"
        step = "name its part, as in hub:owner/name:config:split; offline, HARNESS_DATASETS_DIR names copies"
        if n:
            found = f"{n:,} rows of {split} and then one that cannot be read"
            step = "fix its files, or fetch them again"
        elif not reference.startswith(HUB):
            expected, step = "a file of rows, or a folder in the hub's layout", "name a file of rows"
        raise UserError(display_path(reference), f"{found} ({reason})", expected, step) from None
    except StopIteration:  # the library raises it for an empty file
        return


def list_parts(reference: str) -> list[str]:
    """List the parts of a data set in the hub's layout, such as train and test; none if one is named."""
    import datasets

    source, config, named_split = hub_source(reference)
    try:
        return [] if named_split else datasets.get_dataset_split_names(source, config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):  # the rows were read without the parts
        return []


def hub_source(reference: str) -> tuple[str, str, str]:
    """Return the local copy of a data set or its name on the hub, its configuration, and the named split."""
    name, config, named_split = [*reference.removeprefix(HUB).split(":", 2), "", ""][:3]
    copies = os.environ.get("HARNESS_DATASETS_DIR")
    copy = Path(copies, name) if copies else None
    return str(copy) if copy and copy.is_dir() else name, config, named_split


def read_parquet(file: Path, shown_path: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file, group by group."""
    import pyarrow.parquet

    readable = refuse_unreadable(shown_path, "a whole Parquet file", "fetch or write it again")
    with readable, pyarrow.parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        if repeated_name := next((name for name in names if names.count(name) > 1), None):
            found = f"two columns named {repeated_name!r}"
            raise UserError(shown_path, found, "every name once", "rename one of them")
        n_bytes, row_numbers, step = 0, count(), "if it is meant, write it as JSON Lines"
        text_files.refuse_bomb(shown_path, _LEAST * table.metadata.num_rows, file.stat().st_size, step)
        for batch in table.iter_batches(_AT_ONCE):
            # Without dictionaries, which hold a repeated text once.
            columns = [c.dictionary_decode() if hasattr(c, "dictionary") else c for c in batch.columns]
            n_bytes += _LEAST * batch.num_rows + sum(column.nbytes for column in columns)
            text_files.refuse_bomb(shown_path, n_bytes, file.stat().st_size, step)
            for fields in batch.to_pylist():
                yield Row(f"{shown_path} row {next(row_numbers)}", replace_nan(fields))


def replace_nan(value: Any) -> Any:
    """Return a value with None in place of NaN, also within lists and objects."""
    if isinstance(value, dict):
        return {name: replace_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [replace_nan(inner) for inner in value]
    return None if isinstance(value, float | Decimal) and math.isnan(value) else value


__all__ = [
    "Row", "Rows", "cap_problems", "display_path", "file_of", "find_repeated", "hub_source", "list_parts",
    "phrase_no_rows", "read", "stream",
]  # fmt: skip

_PLACE = re.compile(r"(?P<head>.+?)(?::(?P<line>\d+)| row \d+)")
_READERS: dict[str, Callable[[Path, str], Iterable[Row]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json_array,
    ".csv": text_files.read_csv,
    ".tsv": text_files.read_csv,
    ".parquet": read_parquet,
}


def read(path: str, split: str) -> Rows:
    """Read a file, a folder in the hub's layout, or `hub:owner/name[:config[:split]]`.

    `split` is the part to read if a folder or hub id names none. An unusable file is a UserError.
    """
    file = Path(path)
    shown_path = display_path(path)
    is_set = path.startswith(HUB) or file.is_dir()
    content = Rows(shown_path, split if is_set else file.name.split(".")[0], list(stream(path, split)))
    if not content.rows:
        raise UserError(phrase_no_rows(path, "add rows, or leave the file out"))
    return content


def phrase_no_rows(path: str, next_step: str) -> Problem:
    """Describe a file without rows."""
    return Problem(display_path(path), "a file without rows", "at least one row", next_step)


def stream(path: str, split: str) -> Iterator[Row]:
    """Yield the rows that `read` returns, with only a part of a long file in memory.

    A JSON list and parts such as `train[:100]` are read whole; malformed rows are listed at the end.
    """
    file = Path(path)
    shown_path = display_path(path)
    if path.startswith(HUB) or file.is_dir():
        yield from stream_set(path, split)
    elif not file.exists():
        raise UserError(shown_path, "no such file", "a file of rows", "correct the path")
    elif not file.is_file():
        found, step = "a pipe or a device", "write its content to a file first"
        raise UserError(shown_path, found, "a file of rows", step)
    elif kind := text_files.kind_of(file):
        yield from _READERS[kind](file, shown_path)
    else:
        expected = "a file named *.jsonl, *.json, *.csv, *.tsv (each also .gz) or *.parquet"
        step = "convert it to JSON Lines, or save a spreadsheet as CSV"
        raise UserError(shown_path, f"a file of the kind {file.suffix!r}", expected, step)


def find_repeated(files: Sequence[str]) -> list[str]:
    """List the files that are named twice, also in another spelling."""
    paths = [file if file.startswith(HUB) else str(Path(file).expanduser().resolve()) for file in files]
    return list(dict.fromkeys(file for file, path in zip(files, paths, strict=True) if paths.count(path) > 1))


def file_of(where: str) -> str:
    """Return the file or data set of a row's place; empty for other texts."""
    match = _PLACE.fullmatch(where)
    if not match or match["line"]:
        return match["head"] if match else ""
    head = match["head"]
    if head.startswith(HUB):
        return head.partition(" ")[0]
    is_file = head.lower().removesuffix(".gz").endswith(text_files.ENDINGS)
    return head if is_file else head.rpartition(" ")[0]  # a folder in the hub's layout, and its part
