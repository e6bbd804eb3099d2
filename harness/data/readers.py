"""Files to rows: JSON Lines, JSON, CSV and TSV (also gzipped), Parquet, and data sets in the hub's layout.

Invariant: an object is read as a table where its form leaves one reading, and refused otherwise. Every row
knows where it was written; a file with a malformed row is refused with all of its malformed rows.
"""

import json
import math
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from harness.data import text_files
from harness.data.text_files import Row, Rows, cap_problems, display_path, refuse_no_header
from harness.errors import Problem, UserError, as_argument, refuse, refuse_unreadable
from harness.records import parse_json
from harness.spec import HUB

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_lines(file: Path, shown: str) -> Iterator[Row]:
    """Yield the objects of a file that has one in each line."""
    problems: list[Problem] = []
    with text_files.open_text(file, shown, "\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = line.removesuffix("\n")
                value = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
                if not isinstance(value, dict):
                    raise ValueError(f"a {type(value).__name__}, not an object")
                _refuse_half_signs(line, value)
                yield Row(f"{shown}:{number}", value)
            except ValueError as error:
                why = str(error)
                if isinstance(error, json.JSONDecodeError):
                    why = f"{error.msg} at column {error.colno}"
                found, step = f"malformed JSON ({why})", "fix the line"
                if number == 1 and line.lstrip().startswith("["):
                    step += ", or where the file is one list, name it .json"
                problems.append(Problem(f"{shown}:{number}", found, "one JSON object a line", step))
    refuse(cap_problems(problems, shown, "malformed lines"))


def read_json_array(file: Path, shown: str) -> list[Row]:
    """Return the objects of a JSON list, or of a table as pandas and SQuAD write it."""
    try:
        with text_files.open_text(file, shown) as opened:
            text = opened.read()
        value = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
        _refuse_half_signs(text, value)
    except json.JSONDecodeError as error:
        where, found = f"{shown}:{error.lineno}", f"malformed JSON ({error.msg} at column {error.colno})"
        expected = "a list of objects (one object a line is a .jsonl file)"
        raise UserError(Problem(where, found, expected, "fix or rename the file")) from None
    except ValueError as error:
        raise UserError(Problem(shown, f"malformed JSON ({error})", "a list of objects", "fix it")) from None
    rows = _list_objects(value)
    if rows is None:
        raise UserError(Problem(shown, *_describe_no_rows(value, shown)))
    return [Row(f"{shown} row {i}", fields) for i, fields in enumerate(rows)]


def _list_objects(value: Any) -> list[dict[str, Any]] | None:
    """List the rows of a value; None where it is no table, or more than one."""
    if isinstance(value, list):
        if not all(isinstance(row, dict) for row in value):
            return None
        if not all(isinstance(row.get("paragraphs"), list) for row in value):
            return value
        return [  # the questions of SQuAD's articles, each beside its context
            {**question, "context": paragraph.get("context"), "title": row.get("title")}
            for row in value
            for paragraph in row["paragraphs"]
            for question in paragraph.get("qas") or ()
        ]
    held = [of for of in value.values() if isinstance(of, list | dict)] if isinstance(value, dict) else []
    if isinstance(value, dict) and value.keys() >= {"columns", "data"}:  # pandas' split
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    if (
        isinstance(value, dict)
        and isinstance(value.get("data"), list)
        and len(held) <= 1 + ("schema" in value)
    ):
        return _list_objects(value["data"])
    if len(held) == 1 and isinstance(held[0], list):
        return _list_objects(held[0])
    if not held or len(held) < len(value):
        return None
    if all(isinstance(of, list) for of in held):
        holds_objects = any(isinstance(cell, dict) for of in held for cell in of)
        if holds_objects or len({len(of) for of in held}) > 1:
            return None
        return [dict(zip(value, cells, strict=True)) for cells in zip(*held, strict=True)]
    if not all(isinstance(of, dict) for of in held):
        return None
    # Rows by their keys, as pandas' `index` has them, or columns by rows, as its `columns` has them.
    inner = dict.fromkeys(key for of in value.values() for key in of)
    if inner and all(map(str.isdecimal, inner)):
        return [{name: of.get(key) for name, of in value.items()} for key in inner]
    if all(map(str.isdecimal, value)):
        return list(value.values())
    return [{"id": key, **row} for key, row in value.items()] if len(value) > len(inner) else None


def _describe_no_rows(value: Any, shown: str) -> tuple[str, str, str]:
    expected, source = "[{…}, {…}]", f"json.load(open({shown!r}))"
    parts = [key for key, of in value.items() if isinstance(of, list)] if isinstance(value, dict) else []
    if len(parts) > 1:
        commands = (_write_lines(f"{source}[{key!r}]", "row", f"{shown}.{key}.jsonl") for key in parts)
        return f"JSON of several lists: {', '.join(parts)}", "one list of rows", " && ".join(commands)
    if isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        n = max(map(len, value))
        names = ["prompt", "reference"] if n == 2 else [f"column_{i}" for i in range(1, n + 1)]
        command = _write_lines(source, f"dict(zip({names}, row))", f"{shown}.jsonl")
        return "lists in the place of rows, without names of columns", expected, f"name them: {command}"
    step = "write its rows as a list, or one a line in a .jsonl file"
    return "JSON that is not a list of objects", expected, step


def _write_lines(rows: str, row: str, out: str) -> str:
    program = f"import json; [print(json.dumps({row})) for row in {rows}]"
    return f"python3 -c {shlex.quote(program)} > {shlex.quote(out)}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} twice")
    return fields


def _refuse_half_signs(text: str, value: Any) -> None:
    """Refuse half of a pair of surrogates, which is left where a text was cut inside an emoji."""
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{half} is half of a sign, which no encoding can write") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


_LONGEST_REASON = 300
_AT_ONCE, _LEAST = 1024, 8  # rows of a Parquet file read at once, and bytes that each takes at least


def stream_set(reference: str, split: str) -> Iterator[Row]:
    """Stream one split through the datasets library, from a local copy where there is one."""
    import datasets
    from yaml import YAMLError  # type: ignore[import-untyped]

    datasets.disable_progress_bars()
    source, config, named = hub_source(reference)
    split, where = named or split, reference if named else f"{reference} {split}"
    of_files = (OSError, EOFError, ValueError, TypeError, zlib.error)
    unreadable = (*of_files, YAMLError, datasets.exceptions.DatasetsError)
    n = 0
    try:
        for fields in datasets.load_dataset(source, config or None, split=split, streaming="[" not in split):
            yield Row(f"{where} row {n}", replace_nan(fields))
            n += 1
    except unreadable as error:
        raise UserError(_unread(error, reference, split, n, is_copy=Path(source).is_dir())) from None
    except StopIteration:  # as the library ends an empty file
        return


def list_parts(reference: str) -> list[str]:
    """List the parts of a data set in the hub's layout, such as train and test; none where one is named."""
    import datasets

    source, config, named = hub_source(reference)
    try:
        return [] if named else datasets.get_dataset_split_names(source, config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):  # the rows were read without
        return []


def hub_source(reference: str) -> tuple[str, str, str]:
    """Return the local copy of a data set or its name on the hub, its configuration, and the split named."""
    name, config, named = [*reference.removeprefix(HUB).split(":", 2), "", ""][:3]
    copies = os.environ.get("HARNESS_DATASETS_DIR")
    copy = Path(copies, name) if copies else None
    return str(copy) if copy and copy.is_dir() else name, config, named


def _unread(error: Exception, reference: str, split: str, n: int, *, is_copy: bool) -> Problem:
    """Say why rows of a data set cannot be had, `n` of which were read."""
    why = " ".join(str(error.__cause__ or error).split())[:_LONGEST_REASON]
    found = f"{n:,} rows of {split} and then one that cannot be read" if n else f"no {split} rows to be had"
    expected, is_hub = "a data set on the hub or a copy", reference.startswith(HUB)
    if n:
        next_step = "fix its files, or fetch them again"
    elif not is_hub:
        expected = "a file of rows, or a folder in the hub's layout"
        next_step = "name a file of rows; this folder holds none"
        # Files of rows in the folder, or in folders of it, are named one by one.
        files = [file for at in ("*", "*/*") for file in Path(reference).glob(at) if text_files.kind_of(file)]
        if names := sorted(map(str, files)):
            more = f" or {len(names) - text_files.SHOWN:,} more" if len(names) > text_files.SHOWN else ""
            shown = ", ".join(map(as_argument, map(display_path, names[: text_files.SHOWN])))
            next_step = f"name a file: {shown}{more}"
    elif is_copy:
        next_step = "name the part that there is, as in hub:owner/name:config:split, or fix its files"
    else:
        next_step = "without a network point HARNESS_DATASETS_DIR at local copies, or name a file"
    return Problem(display_path(reference), f"{found} ({why})", expected, next_step)


def read_parquet(file: Path, shown: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file, by its groups."""
    import pyarrow.parquet

    readable = refuse_unreadable(shown, "a whole Parquet file", "fetch or write it again")
    with readable, pyarrow.parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            found = f"two columns named {twice!r}"
            raise UserError(Problem(shown, found, "every name once", "rename one of them"))
        n_bytes, places, step = 0, count(), "where that is meant, write it as JSON Lines"
        text_files.refuse_bomb(shown, _LEAST * table.metadata.num_rows, file.stat().st_size, step)
        for batch in table.iter_batches(_AT_ONCE):  # of one text a million times a file holds one
            # Every value by itself: a dictionary holds once what stands many times.
            columns = [c.dictionary_decode() if hasattr(c, "dictionary") else c for c in batch.columns]
            n_bytes += _LEAST * batch.num_rows + sum(column.nbytes for column in columns)
            text_files.refuse_bomb(shown, n_bytes, file.stat().st_size, step)
            for fields in batch.to_pylist():
                yield Row(f"{shown} row {next(places)}", replace_nan(fields))


def replace_nan(value: Any) -> Any:
    """Return a value in which NaN, as some tools write a cell without a value, is None; within rows too."""
    if isinstance(value, dict):
        return {name: replace_nan(of) for name, of in value.items()}
    if isinstance(value, list):
        return [replace_nan(of) for of in value]
    return None if isinstance(value, float | Decimal) and math.isnan(value) else value


__all__ = [
    "Row", "Rows", "cap_problems", "display_path", "file_of", "find_repeated", "hub_source", "list_parts",
    "phrase_no_rows", "read", "refuse_no_header", "stream",
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

    `split` names the part of a folder or of a hub id that names none.

    Raises:
        UserError: the file is missing, empty, malformed, not UTF-8 or of an unknown kind.
    """
    file = Path(path)
    shown = display_path(path)
    is_set = path.startswith(HUB) or file.is_dir()
    found = Rows(shown, split if is_set else file.name.split(".")[0], list(stream(path, split)))
    if not found.rows:
        step = "add rows, or leave the file out"
        raise UserError(phrase_no_rows(path, f"at least one row of {split}", step))
    refuse_no_header(path, found.rows)
    return found


def phrase_no_rows(path: str, expected: str, next_step: str) -> Problem:
    """Phrase a file without a row: an empty one, or one that has but a header line."""
    found, file = "an empty file", Path(path)
    if not path.startswith(HUB) and text_files.is_csv(path) and file.is_file():
        with text_files.open_bytes(file, display_path(path)) as raw:
            found = "a header line alone" if raw.read(text_files.BEGINNING).strip() else found
    return Problem(display_path(path), found, expected, next_step)


def stream(path: str, split: str) -> Iterator[Row]:
    """Yield the rows that `read` returns, one after the other; of a long file only a part is in memory.

    JSON Lines and separated values are read line by line, Parquet by groups of rows, a data set of the hub as
    it streams; a JSON list, and parts of a data set such as `train[:100]` or `train+test`, are read whole.
    Whether the first line of a CSV file is a row is not checked.

    Raises:
        UserError: as `read`, but for an empty file; malformed rows are listed at the end of the file.
    """
    file = Path(path)
    shown = display_path(path)
    if path.startswith(HUB) or file.is_dir():
        yield from stream_set(path, split)
    elif not file.exists():
        raise UserError(Problem(shown, "no such file", "a file of rows", "correct the path"))
    elif not file.is_file():
        found, expected = "a pipe or a device", "a file whose name says its kind, such as rows.jsonl"
        raise UserError(Problem(shown, found, expected, "write what it gives to a file first"))
    elif kind := text_files.kind_of(file):
        yield from _READERS[kind](file, shown)
    else:
        expected = "a file named *.jsonl, *.json, *.csv, *.tsv (each also .gz) or *.parquet"
        step = "convert it to JSON Lines"
        if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
            step = f"soffice --headless --convert-to csv {as_argument(shown)}, or save it as CSV"
        raise UserError(Problem(shown, f"a file of the kind {file.suffix!r}", expected, step))


def find_repeated(files: Sequence[str]) -> list[str]:
    """List the files that are named twice, by whatever spelling, each name once."""
    places = [file if file.startswith(HUB) else str(Path(file).expanduser().resolve()) for file in files]
    return list(dict.fromkeys(file for file, at in zip(files, places, strict=True) if places.count(at) > 1))


def clean_command(file: str, option: str) -> str:
    """Write the command that fixes a file's rows by an option, into a file beside it."""
    kind = "".join(Path(file).suffixes[-2:] if file.lower().endswith(".gz") else Path(file).suffixes[-1:])
    out = as_argument(f"{file.removesuffix(kind)}.clean{kind or '.jsonl'}")
    return f"harness data clean {as_argument(file)} --out {out} {option}"


def file_of(where: str) -> str:
    """Return the file or data set, as it was named, of a row's place; empty of what is no such place."""
    found = _PLACE.fullmatch(where)
    if not found or found["line"]:
        return found["head"] if found else ""
    head = found["head"]
    if head.startswith(HUB):
        return head.partition(" ")[0]
    is_file = head.lower().removesuffix(".gz").endswith(text_files.ENDINGS)
    return head if is_file else head.rpartition(" ")[0]  # a folder in the hub's layout, and its part
