"""Changes to files: bits, bytes, lines and encodings, values of JSON, YAML, tables and archives, links.

Invariant: a change depends only on the draw and the file's content.
"""

import contextlib
import csv
import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEXTS = (
    "", "0", "None", "x" * 5_000, "\x00", "\ud83d", "{{ x }}", "%s", "=1+1", "\ufeff", "2026-13-45", "\u2028", "true",
)  # fmt: skip
_ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
TEMPLATES = (
    _ENDLESS, "{{ 'x' * 10 ** 9 }}", "{{ 9 ** 9 ** 9 }}", "{{ range(10 ** 12) | list }}", "{{ 'x' | center(10 ** 10) }}",
    "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% include 'x' %}", "{% for %}", "{{ messages[99] }}",
    "{{ raise_exception('no') }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages | tojson }}", "{{ 1 / 0 }}",
    "{% set messages = messages[1:] %}", "{{ strftime_now('%Y' * 10 ** 8) }}", "{{ '%s' % messages }}", "{{ tools | length }}",
)  # fmt: skip
NUMBERS = (0, -1, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), 2**63, 1e-320)


# Changes of bytes


def _flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _on_span(change: Callable[[bytes, int, int], bytes]) -> Callable[[random.Random, bytes], bytes]:
    def damage(draw: random.Random, data: bytes) -> bytes:
        start = draw.randrange(len(data))
        return change(data, start, min(len(data), start + draw.choice((1, 4, 40, 400, 4_000))))

    return damage


def _put_bytes(draw: random.Random, data: bytes) -> bytes:
    at = draw.choice((0, len(data), draw.randrange(len(data))))
    put = draw.choice((
        b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b[2J", b"\r", b"\n", b'"', b"[" * 3000, b"9" * 5000,
        "Gr\u00f6\u00dfe".encode("utf-16-le"), "\u4e2d".encode("gbk"),
    ))  # fmt: skip
    return data[:at] + put + data[at:]


def _end_lines_otherwise(draw: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\x0b", b"\n\n")))


def _recode(draw: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-16-be", "utf-32", "cp1252", "utf-7")), "replace")


def _mix_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines[: draw.randint(0, len(lines))] + lines[: draw.randint(0, 2)])


_OF_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip_bits, _put_bytes, _end_lines_otherwise, _recode, _mix_lines,
    _on_span(lambda data, start, end: data[:start]),
    _on_span(lambda data, start, end: data[:start] + data[end:]),
    _on_span(lambda data, start, end: data[:end] + data[start:]),
    _on_span(lambda data, start, end: data[end:] + data[start:end] + data[:start]),
    _on_span(lambda data, start, end: data[:start] + bytes(end - start) + data[end:]),
)  # fmt: skip


# Changes of values


def change_value(draw: random.Random, value: Any) -> Any:
    """Return a value with one to three places changed, removed, renamed or of another type."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return _other(draw, value)
        around, key = draw.choice(places)
        change = draw.randrange(7)
        if change == 0:
            del around[key]
        elif change == 1 and isinstance(around, dict):
            around[draw.choice((key.upper(), key + " ", "", "x", key[:-1]))] = around.pop(key)
        elif change == 2 and isinstance(around, list):
            around.insert(key, around[draw.randrange(len(around))])
        else:
            around[key] = _other(draw, around[key])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _other(draw: random.Random, value: Any) -> Any:
    """Return a replacement for a value: of another type, far too large, or nested."""
    depth = draw.choice((1, 50, 99, 400))
    replacements = (
        None, True, [], {}, [value], {"a": value}, {"": None}, [None], str(value)[:3], f" {value}", [[], {}],
        json.loads("[" * depth + "]" * depth), draw.choice(TEXTS), draw.choice(TEXTS), draw.choice(NUMBERS),
        draw.choice(NUMBERS), -value if isinstance(value, int | float) else str(value),
    )  # fmt: skip
    return draw.choice(replacements)


def _dump(draw: random.Random, value: Any) -> str:
    """Write JSON, sometimes with a repeated key, a number beyond any machine's range, or half a character."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    change = draw.randrange(12)
    if change == 0 and text.startswith("{"):
        text = '{"id": 1, "id": 2, ' + text[1:]
    elif change == 1:
        text = text.replace(": 1", ": 1" + "0" * 5_000, 1).replace(": 0", ": 1e999", 1)
    return text


def _change_json(draw: random.Random, data: bytes) -> bytes:
    return _dump(draw, change_value(draw, json.loads(data))).encode("utf-8", "surrogatepass")


def _change_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    for _ in range(draw.choice((1, 1, 3, len(lines)))):
        at = draw.randrange(len(lines))
        with contextlib.suppress(ValueError):
            lines[at] = _dump(draw, change_value(draw, json.loads(lines[at])))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _change_yaml(draw: random.Random, data: bytes) -> bytes:
    import yaml

    changed = change_value(draw, yaml.safe_load(data))
    return yaml.safe_dump(changed, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


def _change_cells(draw: random.Random, data: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(draw.choice((1, 3, 20))):
        row = draw.choice(rows)
        at = draw.randrange(len(row)) if row else 0
        row[at : at + 1] = draw.choice(
            ([], [""], ["a", "b"], [str(draw.choice(NUMBERS[:4]))], [draw.choice(TEXTS)])
        )
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def _change_packed(draw: random.Random, data: bytes) -> bytes:
    return gzip.compress(draw.choice((_change_lines, *_OF_BYTES))(draw, gzip.decompress(data)) or b"")


def _change_zipped(draw: random.Random, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    change = draw.randrange(8)
    if change == 0:
        del members[name]
    elif change == 1:
        members[draw.choice(("x.json", "samples/", "samples/a_epoch_1.json", "header.json", ""))] = (
            members.pop(name)
        )
    else:
        members[name] = draw.choice((_change_json, _change_json, *_OF_BYTES))(draw, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA))
    ) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _change_header(draw: random.Random, data: bytes) -> bytes:
    """Change the header of safetensors, or the length before it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = _change_json(draw, data[8 : 8 + length])
    stated_length = draw.choice((len(header), len(header), len(header), 0, 2**63, length, 10**9))
    return struct.pack("<Q", stated_length) + header + data[8 + length :]


def _change_template(draw: random.Random, data: bytes) -> bytes:
    """Insert a piece into a chat template that runs long, reaches beyond its sandbox, or is invalid."""
    cut = draw.choice([i for i in range(len(data) + 1) if i == 0 or data[:i].endswith((b"}}", b"%}"))])
    return data[:cut] + draw.choice(TEMPLATES).encode() + data[cut:]


def _change_table(draw: random.Random, data: bytes) -> bytes:
    """Rewrite a Parquet file with other types, columns or values."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(data))
    rows, name = table.to_pylist(), draw.choice(table.column_names)
    change = draw.randrange(6)
    if change == 0:
        table = table.drop_columns([name])
    elif change == 1:
        table = table.rename_columns(
            [draw.choice(("", "x", table.column_names[0])) if n == name else n for n in table.column_names]
        )
    elif change == 2:
        table = table.slice(draw.randrange(len(rows)), draw.randrange(len(rows)))
    elif change == 3:
        table = pyarrow.concat_tables([table, table.slice(0, 1)])
    else:
        column = draw.choice((
            [None] * len(rows), [1.5] * len(rows), [float("nan")] * len(rows), [b"\xff\xfe"] * len(rows),
            [{"a": 1}] * len(rows), [[["x"]]] * len(rows), [True] * len(rows), [2**62] * len(rows),
        ))  # fmt: skip
        table = table.set_column(table.column_names.index(name), name, pyarrow.array(column))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression=draw.choice(("snappy", "none", "zstd")))
    return buffer.getvalue()


def _change_gguf(draw: random.Random, data: bytes) -> bytes:
    """Change the names and descriptions of tensors, the first ten thousand bytes of a tiny file."""
    return draw.choice(_OF_BYTES)(draw, data[:10_000]) + data[10_000:]


_OF_KIND: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": _change_json, ".jsonl": _change_lines, ".yaml": _change_yaml, ".csv": _change_cells,
    ".tsv": _change_cells, ".gz": _change_packed, ".eval": _change_zipped, ".parquet": _change_table,
    ".safetensors": _change_header, ".jinja": _change_template, ".gguf": _change_gguf,
}  # fmt: skip


# Changes of files


def _put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _put_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def _put_lost_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


_OF_FILES: tuple[Callable[[Path], object], ...] = (
    Path.unlink, lambda file: file.write_bytes(b""), _put_folder, _put_loop, _put_lost_link,
    lambda file: file.chmod(0), lambda file: file.write_bytes(b"\n"),
)  # fmt: skip


def mutate(draw: random.Random, file: Path) -> str:
    kind, data = draw.random(), file.read_bytes()
    if kind < 0.08 or not data:
        change = draw.choice(_OF_FILES)
        change(file)
        return getattr(change, "__name__", "")
    how = draw.choice(_OF_BYTES)
    if kind > 0.5 and file.suffix in _OF_KIND:
        how = _OF_KIND[file.suffix]
    try:
        changed = how(draw, data)
    except (ValueError, OSError, RecursionError, ImportError):  # no such change can be written
        how = _flip_bits
        changed = how(draw, data)
    file.write_bytes(changed)
    return how.__name__
