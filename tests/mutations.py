"""Mutated inputs: files of every reader and of the store, damaged by chance and read by the commands.

    python tests/mutations.py --draws 10000          all readers, some minutes; failures by kind at the end
    python tests/mutations.py --reader logs --only 17   one draw of one reader, with its traceback

Invariant: a draw depends on its reader and its number alone. A draw fails where an exception leaves the command
or a traceback is printed, where it takes longer than `BOUND_S`, ends with a code that is not documented, or
where scores of a store whose rows are damaged differ from those of the whole one.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

BOUND_S = 20  # of one draw, on a busy machine
ROOT = Path(__file__).parents[1]
TEXTS = (
    "",
    "0",
    "None",
    "x" * 5_000,
    "\x00",
    "\ud83d",
    "{{ x }}",
    "%s",
    "=1+1",
    "﻿",
    "2026-13-45",
    "\u2028",
    "true",
)
NUMBERS = (0, -1, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), 2**63, 1e-320)


class TooSlow(BaseException):
    """A command that goes on for longer than it may."""


# What is done to bytes


def _flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def _cut_inside(draw: random.Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[end:]


def _repeat(draw: random.Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:end] + data[start:]


def _reorder(draw: random.Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[end:] + data[start:end] + data[:start]


def _put_bytes(draw: random.Random, data: bytes) -> bytes:
    at = draw.choice((0, len(data), draw.randrange(len(data))))
    put = draw.choice(
        (
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\xed\xa0\x80",
            b"\x1b[2J",
            b"\r",
            b"\n",
            b'"',
            b"[" * 3000,
            b"9" * 5000,
        )
    )
    return data[:at] + put + data[at:]


def _zeros(draw: random.Random, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + bytes(end - start) + data[end:]


def _end_lines_as_windows(draw: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\x0b", b"\n\n")))


def _recode(draw: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-16-be", "utf-32", "cp1252", "utf-7")), "replace")


def _mix_encodings(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + "Größe 中".encode(draw.choice(("utf-16-le", "gbk", "utf-8"))) + data[at:]


def _mix_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines[: draw.randint(0, len(lines))] + lines[: draw.randint(0, 2)])


_OF_BYTES = (
    _flip_bits, _cut, _cut_inside, _repeat, _reorder, _put_bytes, _zeros, _end_lines_as_windows, _recode,
    _mix_encodings, _mix_lines,
)  # fmt: skip


def _span(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data))
    return start, min(len(data), start + draw.choice((1, 4, 40, 400, 4_000)))


# What is done to values


def change_value(draw: random.Random, value: Any) -> Any:
    """Return a value with one to three places of it changed, removed, renamed or of another type."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return _other(draw, value)
        around, key = draw.choice(places)
        what = draw.randrange(7)
        if what == 0:
            del around[key]
        elif what == 1 and isinstance(around, dict):
            around[draw.choice((key.upper(), key + " ", "", "x", key[:-1]))] = around.pop(key)
        elif what == 2 and isinstance(around, list):
            around.insert(key, around[draw.randrange(len(around))])
        else:
            around[key] = _other(draw, around[key])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _other(draw: random.Random, value: Any) -> Any:
    """Return something in place of a value: of another type, far too large, or nested."""
    depth = draw.choice((1, 50, 99, 400))
    others = (
        None, True, [], {}, [value], {"a": value}, {"": None}, [None], str(value)[:3], f" {value}", [[], {}],
        json.loads("[" * depth + "]" * depth), draw.choice(TEXTS), draw.choice(TEXTS), draw.choice(NUMBERS),
        draw.choice(NUMBERS), -value if isinstance(value, int | float) else str(value),
    )  # fmt: skip
    return draw.choice(others)


def _dump(draw: random.Random, value: Any) -> str:
    """Write JSON, now and then with a key twice, a number that no machine holds, or half a sign."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    what = draw.randrange(12)
    if what == 0 and text.startswith("{"):
        text = '{"id": 1, "id": 2, ' + text[1:]
    elif what == 1:
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
            ([], [""], ["a", "b"], [str(draw.choice(NUMBERS))], [draw.choice(TEXTS)])
        )
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _change_packed(draw: random.Random, data: bytes) -> bytes:
    return gzip.compress(draw.choice((_change_lines, *_OF_BYTES))(draw, gzip.decompress(data)) or b"")


def _change_zipped(draw: random.Random, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    what = draw.randrange(8)
    if what == 0:
        del members[name]
    elif what == 1:
        members[draw.choice(("x.json", "samples/", "samples/a_epoch_1.json", "header.json", ""))] = (
            members.pop(name)
        )
    else:
        members[name] = draw.choice((_change_json, _change_json, *_OF_BYTES))(draw, members[name])
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA))
    ) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _change_header(draw: random.Random, data: bytes) -> bytes:
    """Change the header of safetensors, or the length that stands before it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = _change_json(draw, data[8 : 8 + length])
    said = draw.choice((len(header), len(header), len(header), 0, 2**63, length, 10**9))
    return struct.pack("<Q", said) + header + data[8 + length :]


def _change_table(draw: random.Random, data: bytes) -> bytes:
    """Write a Parquet file again with other types, columns or values."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(data))
    rows, name = table.to_pylist(), draw.choice(table.column_names)
    what = draw.randrange(6)
    if what == 0:
        table = table.drop_columns([name])
    elif what == 1:
        table = table.rename_columns(
            [draw.choice(("", "x", table.column_names[0])) if n == name else n for n in table.column_names]
        )
    elif what == 2:
        table = table.slice(draw.randrange(len(rows)), draw.randrange(len(rows)))
    elif what == 3:
        table = pyarrow.concat_tables([table, table.slice(0, 1)])
    else:
        made = draw.choice((
            [None] * len(rows), [1.5] * len(rows), [float("nan")] * len(rows), [b"\xff\xfe"] * len(rows),
            [{"a": 1}] * len(rows), [[["x"]]] * len(rows), [True] * len(rows), [2**62] * len(rows),
        ))  # fmt: skip
        table = table.set_column(table.column_names.index(name), name, pyarrow.array(made))
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression=draw.choice(("snappy", "none", "zstd")))
    return out.getvalue()


_OF_KIND: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": _change_json, ".jsonl": _change_lines, ".yaml": _change_yaml, ".csv": _change_cells,
    ".tsv": _change_cells, ".gz": _change_packed, ".eval": _change_zipped, ".parquet": _change_table,
    ".safetensors": _change_header,
}  # fmt: skip


# What is done to files


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
    """Damage a file; returns how."""
    kind, data = draw.random(), file.read_bytes()
    if kind < 0.08 or not data:
        done = draw.choice(_OF_FILES)
        done(file)
        return getattr(done, "__name__", "")
    how = draw.choice(_OF_BYTES)
    if kind > 0.5 and file.suffix in _OF_KIND:
        how = _OF_KIND[file.suffix]
    try:
        changed = how(draw, data)
    except (ValueError, OSError, RecursionError, ImportError):  # no change of this kind can be written
        how = _flip_bits
        changed = how(draw, data)
    file.write_bytes(changed)
    return how.__name__


# Readers: seeds, and the commands that read them


class Reader(NamedTuple):
    """Valid seeds in a folder: which of its files are damaged, and what is run in it then.

    In a command, `{file}` is the damaged one. `protected` are the files whose damage must not move a score.
    """

    folder: Path
    files: tuple[str, ...]
    commands: tuple[str, ...]
    protected: str = "nothing"


ROWS: dict[str, list[dict[str, Any]]] = {
    "own": [
        {"id": f"q{i}", "prompt": f"Where is parcel {i}?", "reference": ("late", "lost")[i % 2], "cluster": f"c{i // 2}"}
        for i in range(8)
    ],
    "references": [
        {"id": i, "prompt": f"Say {i}", "references": [str(i), f"number {i}"], "slice": "a", "date": "2026-01-01"}
        for i in range(5)
    ],
    "messages": [
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"Count to {i}."},
                      {"role": "assistant", "content": f"1 to {i}"}]}
        for i in range(5)
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"Is {i} even?"}, {"from": "gpt", "value": "yes" if i % 2 else "no"}]}
        for i in range(5)
    ],
    "alpaca": [{"instruction": f"Add one to {i}", "input": "", "output": str(i + 1)} for i in range(5)],
    "choices": [
        {"question": f"What is 1 + {i}?", "choices": [str(i), str(i + 1), str(i + 2)], "answer": 1} for i in range(5)
    ],
    "letters": [{"question": f"{i}?", "A": "one", "B": "two", "C": "three", "D": "four", "answer": "B"} for i in range(5)],
    "hub_choices": [
        {"question": f"{i}?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"} for i in range(5)
    ],
    "pairs": [{"prompt": f"Greet {i}", "chosen": f"Hello {i}", "rejected": "no"} for i in range(5)],
    "pairs_of_turns": [
        {"chosen": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Hello"}],
         "rejected": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Go"}]}
        for i in range(5)
    ],
    "thumbs": [{"prompt": f"Greet {i}", "completion": "Hello", "label": bool(i % 2)} for i in range(6)],
    "ratings": [
        {"prompt": f"Greet {i}", "completions": [{"response": "Hi", "overall_score": 3.0}, {"response": "No", "overall_score": 1.0}]}
        for i in range(5)
    ],
    "tools": [
        {"messages": [{"role": "user", "content": f"Track {i}"},
                      {"role": "assistant", "content": None, "tool_calls": [
                          {"type": "function", "function": {"name": "track", "arguments": json.dumps({"order": i})}}]}],
         "tools": [{"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}}}}]}
        for i in range(5)
    ],
    "passages": [
        {"question": f"Where is crate {i}?", "context": f"Crate {i} is in hall {i}.", "answers": {"text": [f"hall {i}"], "answer_start": [13]}}
        for i in range(5)
    ],
    "texts": [{"text": f"A brown hen walks past gate {i} at noon, and the desk answers."} for i in range(6)],
}  # fmt: skip

_OF_ROWS = (
    "data check {file}", "data check {file}", "data check {file} --test rows/own.jsonl", "data check rows/own.csv --test {file}",
    "data clean {file} --out out.jsonl", "data dedup {file} --out out.csv", "data split {file} --out out",
    "data mix {file} rows/own.jsonl --out out.parquet", "data sample {file} --rows 2 --out out.jsonl",
    "init new --data {file}",
)  # fmt: skip


def write_rows(folder: Path) -> Reader:
    """Write rows of every layout in every form of file."""
    import pyarrow
    import pyarrow.parquet

    at = folder / "rows"
    at.mkdir(parents=True)
    for name, rows in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (at / f"{name}.jsonl").write_text(lines)
        (at / f"{name}.json").write_text(json.dumps(rows, indent=1))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), at / f"{name}.parquet")
        if all(isinstance(value, str | int | float) for value in rows[0].values()):
            for ending, sign in ((".csv", ","), (".tsv", "\t")):
                with (at / f"{name}{ending}").open("w", newline="") as file:
                    written = csv.DictWriter(file, list(rows[0]), delimiter=sign)
                    written.writeheader()
                    written.writerows(rows)
            (at / f"{name}.csv.gz").write_bytes(gzip.compress((at / f"{name}.csv").read_bytes()))
        (at / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return Reader(folder, ("rows/*",), _OF_ROWS)


def write_sets(folder: Path) -> Reader:
    """Write data sets in the hub's layout."""
    for kind in ("jsonl", "parquet", "csv"):
        for part in ("train", "test"):
            (folder / kind / "data").mkdir(parents=True, exist_ok=True)
            shutil.copy(
                folder.parent / "rows" / "rows" / f"own.{kind}", folder / kind / "data" / f"{part}.{kind}"
            )
        (folder / kind / "README.md").write_text("---\nlicense: mit\n---\nRows.\n")
    return Reader(
        folder, ("*/data/*", "*/README.md"), ("data check {set}", "data clean {set} --out out.jsonl")
    )


_READ_STORE = (
    "report", "report --json", "gate --candidate lora --json", "gate --candidate shots", "runs list", "runs list --json",
    "runs show {lora}", "runs diff {lora} {prompt}", "runs rm --unused", "reindex", "nightly status", "decide --json",
    "rescue lora --dry-run", "compare --dry-run", "rate export out.csv", "promote lora --force --reason x", "score lora",
    "promote shots", "train lora", "eval shots", "compare --json", "nightly run", "regressions add lora sums/sum-1", "rate export out.csv --pairs", "rate import labels.csv",
    "sql 'SELECT * FROM scores'", "sql 'SELECT * FROM runs'", "sql 'SELECT * FROM samples JOIN verdicts USING (run_id)'",
    "sql 'SELECT * FROM deltas'", "sql 'SELECT * FROM training'", "sql 'SELECT * FROM ratings, lineage, trials'",
)  # fmt: skip


def write_store(finished: Path, folder: Path) -> Reader:
    """Copy a finished tiny experiment and add what its commands write: champion, labels, nights, grades, noise."""
    from fake_project import nights

    from harness import store
    from harness.records import Grade, Noise, TaskNoise

    shutil.copytree(finished, folder)
    nights(folder, 6, "tiny")
    at = store.Store(folder / "runs")
    run = next(run for run in store.list_runs(at) if run.candidate == "lora")
    answered = store.read_rows(at, run.rows["letters/test"])
    grades = [
        Grade(f"k{i}", "letters", row.example_id, row.output_digest, "ok", i % 2, "I say so.")
        for i, row in enumerate(answered)
    ]
    store.keep_grades(at, "book", {"rubric": "helpful", "judge": "big"}, grades)
    noise = Noise(
        "n", run.created, "tiny", run.base_digest, "fp32", "cpu", "hf", "l", (TaskNoise("sums", 6, {"a": 1}, 0.1),)
    )  # fmt: skip
    store.save_noise(at, noise)
    for words in (
        "promote lora --force --reason seed", "rate export labels.csv", "rate export pairs.csv --pairs",
        "regressions add lora sums/sum-1", "report",
    ):  # fmt: skip
        ended = run_command(folder, words)
        assert ended.code == 0, (words, ended)
    for name, column, said in (("labels.csv", "label", "1"), ("pairs.csv", "better", "left")):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            written = csv.DictWriter(file, list(rows[0]))
            written.writeheader()
            written.writerows({**row, column: said} for row in rows)
        ended = run_command(folder, f"rate import {name} --rater ann")
        assert ended.code == 0, ended
    return Reader(folder, ("runs/**/*", "reports/*"), _READ_STORE, "runs/rows/*/rows.parquet")


def write_cache(finished: Path, folder: Path) -> Reader:
    """Keep what a comparison remembers of a machine and its base, and forget its runs."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("runs"))
    (folder / "cache").mkdir()
    for words in ("compare --candidates prompt,shots", "doctor"):
        ended = run_command(folder, words)
        assert ended.code == 0, ended
    shutil.rmtree(folder / "runs")
    commands = (*["compare --candidates prompt --json"] * 3, "compare --dry-run", "doctor", "runs list")
    return Reader(folder, ("cache/**/*",), commands)


_READ_EXPERIMENT = (
    "compare --dry-run", "compare --dry-run", "report", "gate --candidate lora", "promote lora --force --reason x",
    "nightly status", "ls suites", "runs list", "rescue lora --dry-run", "regressions add lora facts/fact-1",
    "rate export out.csv", "score lora",
)  # fmt: skip
_JUDGED = """
  - {name: judged, data: {test: letters/test.jsonl}, metrics: [exact_match, "judge:../rubrics/helpful.yaml"], primary: exact_match}
"""
_RUBRIC = """\
criteria: The answer helps.
scale: {min: 1, max: 5}
reference: true
judge: {base_url: http://localhost:1/v1, model: big}
examples:
  - {question: "Where is it?", answer: There., grade: 4}
"""


def write_experiment(seeds: Reader) -> Reader:
    """Add a judged task, a rubric and a recipe in a file of its own to a finished experiment."""
    folder = seeds.folder.parent / "experiment"
    shutil.copytree(seeds.folder, folder)
    (folder / "rubrics").mkdir()
    (folder / "rubrics" / "helpful.yaml").write_text(_RUBRIC)
    with (folder / "suites" / "general.yaml").open("a") as file:
        file.write(_JUDGED)
    recipe = folder / "baselines" / "tuned.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(
        "method: lora\nparams: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}\n"
    )
    with (folder / "harness.yaml").open("a") as file:
        file.write("  tuned: tuned\n")
    files = (
        "*.yaml",
        "rubrics/*",
        "suites/*.yaml",
        "baselines/*.yaml",
        "baselines/champions/*",
        "suites/**/*.jsonl",
        "reports/*",
    )
    return Reader(folder, files, _READ_EXPERIMENT)


def write_people(seeds: Reader) -> Reader:
    """Name the files that people filled in."""
    return seeds._replace(
        files=("labels.csv", "pairs.csv"), commands=("rate import {file}",), protected="nothing"
    )


def write_logs(folder: Path) -> Reader:
    """Write logs of lm-eval and of Inspect, two arms each."""
    import inspect_logs
    import lmeval_folder

    for arm, right in (("base", [1.0] * 9 + [0.0]), ("tuned", [1.0] * 7 + [0.0] * 3)):
        lmeval_folder.write(
            folder / "lm" / arm, {"arc": right, "sums": right[::-1]}, model_args=f"pretrained={arm}"
        )
        of_inspect = {"quiz": ["C" if one else "I" for one in right]}
        inspect_logs.write(folder / "zipped" / arm, of_inspect, model=f"org/{arm}")
        inspect_logs.write(folder / "plain" / arm, of_inspect, zipped=False, model=f"org/{arm}")
    commands = (
        "gate --base {arms}/base --candidate {arms}/tuned",
        "gate --base {arms}/base --candidate {arms}/tuned --json",
    )
    return Reader(folder, ("*/*/**/*",), commands)


_ON_BASE = """\
name: based
base_model: ./model
precision: fp32
device: cpu
target: suites/letters.yaml
candidates:
  prompt: {method: base}
  bought: {method: adapter, path: ./adapter}
  whole: {method: model, path: ./whole}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, max_length: 200}}
"""


def write_base(finished: Path, model: Path, folder: Path) -> Reader:
    """Write an experiment on a local base, with an adapter and a whole model made elsewhere."""
    import tiny_model

    shutil.copytree(finished / "suites", folder / "suites")
    shutil.copytree(model, folder / "model")
    shutil.copytree(model, folder / "whole")
    tiny_model.adapter_on(model, folder / "adapter", r=2, target_modules=["q_proj"])
    (folder / "harness.yaml").write_text(_ON_BASE)
    commands = (
        *["compare --dry-run"] * 4, "compare --candidates prompt,bought",
        "data check suites/letters/train.jsonl --base ./model",
    )  # fmt: skip
    return Reader(folder, ("model/*", "adapter/*", "whole/*"), commands)


def write_seeds(folder: Path, finished: Path, model: Path) -> dict[str, Reader]:
    """Write valid seeds of every reader; `finished` is a tiny experiment that was run."""
    stored = write_store(finished, folder / "store")
    return {
        "rows": write_rows(folder / "rows"),
        "sets": write_sets(folder / "sets"),
        "store": stored,
        "experiment": write_experiment(stored),
        "people": write_people(stored),
        "cache": write_cache(finished, folder / "cache"),
        "logs": write_logs(folder / "logs"),
        "base": write_base(finished, model, folder / "base"),
    }


# Draws


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, what it printed, and the exception that left it, with its last places."""

    code: Any
    out: str
    err: str
    escaped: str = ""
    trace: str = ""


def run_command(folder: Path, words: str) -> Ended:
    """Run a command in a folder, in this process, by the entry of the command line."""
    import shlex

    from harness.cli import main

    before, argv, out, err = Path.cwd(), sys.argv, io.StringIO(), io.StringIO()
    code, escaped, trace = None, "", ""
    old = signal.signal(signal.SIGALRM, _end)
    os.chdir(folder)
    sys.argv = ["harness", *shlex.split(words)]
    cache = os.environ["HARNESS_CACHE"]
    if (folder / "cache").exists():
        os.environ["HARNESS_CACHE"] = str(folder / "cache")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            signal.setitimer(signal.ITIMER_REAL, BOUND_S)
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException as error:  # noqa: BLE001 (that is what is looked for)
                escaped, trace = _describe(error), traceback.format_exc()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        sys.argv, os.environ["HARNESS_CACHE"] = argv, cache
        os.chdir(before)
        signal.signal(signal.SIGALRM, old)
    return Ended(code, out.getvalue(), err.getvalue(), escaped, trace)


def _end(*_: Any) -> None:
    raise TooSlow


def _describe(error: BaseException) -> str:
    """Name an exception by its type and the last function of ours that it passed."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if "/harness/" in f.filename]
    at = f"{own[-1].filename.partition('/harness/')[2]}:{own[-1].lineno} {own[-1].name}" if own else "?"
    return f"{type(error).__name__} in {at}"


_SCORING = ("report", "gate", "decide", "compare")


class Drawn(NamedTuple):
    """One draw: what was damaged and how, the command, how it ended, and what is wrong with that."""

    number: int
    file: str
    how: str
    words: str
    ended: Ended
    wrong: str


@dataclass
class Draws:
    """Draws on the seeds of one reader; each begins with what the seeds were."""

    name: str
    reader: Reader
    copy: Path

    def __post_init__(self) -> None:
        self.files = sorted(
            {
                f
                for glob in self.reader.files
                for f in self.reader.folder.glob(glob)
                if f.is_file() and "lock" not in f.name
            }
        )
        self.runs = {
            at.parent.name.split("-")[1]: at.parent.name
            for at in self.reader.folder.glob("runs/tiny-*/run.json")
        }
        self.protected = set(self.reader.folder.glob(self.reader.protected))
        self._whole: dict[str, Any] = {}

    def draw(self, number: int) -> Drawn:
        """Damage one file of a copy of the seeds, and run a command on it."""
        draw = random.Random(f"{self.name} {number}")
        seed = draw.choice(sorted(self.protected) if self.protected and draw.random() < 0.3 else self.files)
        self._copy_seeds()
        file = seed.relative_to(self.reader.folder)
        how = mutate(draw, self.copy / file)
        asked = draw.choice(self.reader.commands)
        words = asked.format(file=file, set=f"./{file.parts[0]}", arms=file.parts[0], **self.runs)
        ended = run_command(self.copy, words)
        wrong = find_wrong(ended)
        if not wrong and seed in self.protected and words.endswith("--json") and words.split()[0] in _SCORING:
            wrong = self._find_moved(words, ended, seed)
        return Drawn(number, str(file), how, words, ended, wrong)

    def _copy_seeds(self) -> None:
        if self.copy.exists():
            shutil.rmtree(self.copy)
        shutil.copytree(self.reader.folder, self.copy, symlinks=True)

    def _find_moved(self, words: str, ended: Ended, seed: Path) -> str:
        """Say that scores are others than those of the whole store while nothing is said of the damage."""
        if ended.code not in (0, 3, 4) or seed.parent.name in ended.err + ended.out:
            return ""
        if words not in self._whole:
            self._copy_seeds()
            self._whole[words] = _scores(run_command(self.copy, words).out)
        return "" if _scores(ended.out) == self._whole[words] else "scores moved in silence"


def _scores(out: str) -> list[Any]:
    """List what a result as JSON says of scores and their differences; times and sentences are others each time."""

    def collect(value: Any) -> None:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict) and {"score", "delta"} & value.keys():
            found.append([value.get(name) for name in ("score", "delta", "low", "high", "n")])
        for one in inner:
            collect(one)

    found: list[Any] = []
    collect(json.loads(out))
    return found


def find_wrong(ended: Ended) -> str:
    """Say what is wrong with how a command ended; empty where nothing is."""
    from harness.cli.app import EXIT_CODES

    if ended.escaped:
        return ended.escaped
    if "Traceback (most" in ended.out + ended.err:
        return "a traceback that is printed"
    if ended.code not in EXIT_CODES:
        return f"exit code {ended.code}"
    if ended.code and not ended.err.strip() and ended.code not in (1, 3, 4):
        return f"exit code {ended.code} without a word"
    return ""


# The share of each reader among all draws
SHARES = {
    "rows": 0.3,
    "sets": 0.04,
    "store": 0.3,
    "experiment": 0.18,
    "people": 0.04,
    "logs": 0.07,
    "base": 0.05,
    "cache": 0.02,
}


def main() -> None:
    """Draw as many as are wanted of all readers, or of one; ends with 1 where one failed."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--draws", type=int, default=10_000)
    asked.add_argument("--reader", choices=list(SHARES))
    asked.add_argument("--only", type=int, help="this draw alone, with its traceback")
    asked.add_argument("--seeds", type=Path, help="where seeds lie or are to be written, to be used again")
    args = asked.parse_args()
    import torch

    torch.set_num_threads(1)
    folder = args.seeds or Path(tempfile.mkdtemp(prefix="mutations-"))
    readers = _find_seeds(folder)
    failed: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], Drawn] = {}
    n = 0
    for name in [args.reader] if args.reader else SHARES:
        draws = Draws(name, readers[name], Path(tempfile.mkdtemp(prefix="draw-", dir=_fast())) / "seeds")
        wanted = (
            [args.only]
            if args.only is not None
            else range(round(args.draws * (1 if args.reader else SHARES[name])))
        )
        for number in wanted:
            drawn = draws.draw(number)
            n += 1
            if args.only is not None:
                print(
                    drawn._replace(ended=None),
                    drawn.ended.code,
                    drawn.ended.out[-2000:],
                    drawn.ended.err[-3000:],
                    drawn.ended.trace,
                )
            if drawn.wrong:
                failed[name, drawn.wrong] += 1
                first.setdefault((name, drawn.wrong), drawn)
        shutil.rmtree(draws.copy.parent, ignore_errors=True)
        print(
            f"{name}: {len(wanted)} draws, {sum(k for (of, _), k in failed.items() if of == name)} failed",
            flush=True,
        )
    for (name, wrong), k in failed.most_common():
        one = first[name, wrong]
        print(
            f"{k:6d}  {name}: {wrong}\n        draw {one.number}: {one.how} of {one.file}: harness {one.words}"
        )
    print(f"{n} draws, {failed.total()} failed")
    sys.exit(1 if failed else 0)


def _fast() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _find_seeds(folder: Path) -> dict[str, Reader]:
    import tiny_experiment
    import tiny_model

    kept = folder / "readers.json"
    if not kept.exists():
        model = tiny_model.build(folder / "tiny")
        path = tiny_experiment.write(folder / "finished", model, tiny_experiment.CANDIDATES + MORE)
        tiny_experiment.run(path)
        kept.write_text(json.dumps(write_seeds(folder / "seeds", path.parent, model), default=str))
    readers = json.loads(kept.read_text())
    return {
        name: Reader(Path(at), *map(tuple, given), protected)
        for name, (at, *given, protected) in readers.items()
    }


MORE = """\
  drawn: {method: base, decoding: {temperature: 0.7, samples: 3}}
  swept: {method: lora, params: {r: 2, num_train_epochs: 1, max_length: 200}, sweep: {learning_rate: [0.01, 0.02]}}
"""

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["HARNESS_CACHE"] = tempfile.mkdtemp(prefix="cache-")
    os.environ["HARNESS_IGNORE_LOAD"] = "1"
    sys.path.insert(0, str(ROOT))
    main()
