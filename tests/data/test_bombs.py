"""Small files that stand for gigabytes, endless work or deep nesting end in one message, never a traceback."""

import gzip
import json
import zipfile

import inspect_logs
import lmeval_folder
import pytest
from conftest import EXPERIMENT

from harness import config
from harness.errors import UserError
from harness.lifecycle import release
from harness.records import digest, parse_json
from harness.spec import GatePolicy

LEVELS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10))
LAUGHS = f"l0: &l0 [lol, lol, lol]\n{LEVELS}\n"
KEYS = "".join(f"l{i}: &l{i} {{? [{', '.join([f'*l{i - 1}'] * 10)}] : 1}}\n" for i in range(1, 10))
YAML_BOMBS = {
    "lists": LAUGHS,
    "mappings": LAUGHS.replace("[*", "{a: *").replace(", *", ", a*: *").replace("]\nl", "}\nl"),
    "keys": f"l0: &l0 {{a: 1}}\n{KEYS}",
    "a long text": f"t: &t {'x' * 100_000}\nall: [{', '.join(['*t'] * 2000)}]\n",
    "itself": "gate: &a [*a]\n",
    "itself as a key": "gate: &a {*a : 1}\n",
    "merged into itself": "gate: &a {<<: *a}\n",
}
UNREADABLE = ["9" * 5000, f"0x{'f' * 5000}", "2020-99-99", "!!int x"]
RUBRIC = "judge: {model: m}\nprompt: x\n"


@pytest.mark.parametrize(
    ("file", "bomb"),
    [
        *(("harness.yaml", bomb) for bomb in YAML_BOMBS),
        *((file, "lists") for file in ("suites/other.yaml", "baselines/mine.yaml", "judge.yaml")),
    ],
)
def test_yaml_whose_aliases_stand_for_billions_is_refused(folder, command, bomb, file):
    (folder / "harness.yaml").write_text(f"{EXPERIMENT}  mine: mine\n")
    if file == "judge.yaml":
        with (folder / "suites" / "tiny.yaml").open("a") as suite:
            suite.write("    metrics: ['judge:../judge.yaml']\n")
    (folder / "baselines").mkdir()
    (folder / "baselines" / "mine.yaml").write_text("method: base\n")
    text = (folder / file).read_text() if (folder / file).exists() else RUBRIC
    (folder / file).write_text(f"{text}{YAML_BOMBS[bomb]}")
    code, _, error = command("compare", "--dry-run", "-c", folder / "harness.yaml")
    assert code == 2
    assert f"{file}:" in error
    assert "100,000 values" in error or "valid YAML" in error


@pytest.mark.parametrize("value", UNREADABLE)
def test_a_value_that_yaml_cannot_hold_is_refused_in_a_file_and_on_the_command_line(folder, command, value):
    (folder / "harness.yaml").write_text(f"{EXPERIMENT}gate: {{macro: {value}}}\n")
    code, _, error = command("compare", "--dry-run", "-c", folder / "harness.yaml")
    assert (code, "harness.yaml" in error) == (2, True)
    (folder / "harness.yaml").write_text(EXPERIMENT)
    code, _, error = command("compare", "--dry-run", "-c", folder / "harness.yaml", f"gate.macro={value}")
    assert (code, "gate.macro" in error) == (2, True)


def test_aliases_that_a_person_writes_and_many_brackets_side_by_side_are_read(folder):
    text = f"{EXPERIMENT}  few: {{method: base, prompting: {{few_shot: &s {{shots: 4}}}}}}\n"
    text += "  more: {method: base, prompting: {few_shot: *s}}\n"
    (folder / "harness.yaml").write_text(text)
    candidates = config.load(folder / "harness.yaml").experiment.candidates
    assert candidates["few"] == candidates["more"]
    assert parse_json(json.dumps([[1]] * 500)) == [[1]] * 500
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json(json.dumps("[" * 5000)) == "[" * 5000


MIB = 2**20


# First bytes of the file, the text that a member repeats, how often, and the number of members.
GZIP_BOMBS = {
    "line.jsonl.gz": (b"", b"x", MIB, 3000),
    "field.csv.gz": (b'a\n"', b"x\n", MIB, 1500),
    "rows.jsonl.gz": (b"", b'{"prompt": "%s", "reference": "b"}\n' % (b"a" * 8000), 4096, 30),
    "list.json.gz": (b"", b"[", MIB, 3000),
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", [*GZIP_BOMBS, "line.jsonl", "texts.parquet", "nulls.parquet"])
def test_a_file_of_rows_that_takes_gigabytes_is_refused_with_the_bound(tmp_path, command, name):
    file = tmp_path / name
    if name in GZIP_BOMBS:
        first, text, times, n = GZIP_BOMBS[name]
        file.write_bytes(gzip.compress(first) + gzip.compress(text * times) * n)
    elif name == "line.jsonl":
        with file.open("wb") as sparse:
            sparse.write(b'{"a": 1}\n' + b" " * 9000)
            sparse.truncate(3000 * MIB)
    else:
        import pyarrow
        import pyarrow.parquet

        prompts = ["x" * MIB] * 300 if name == "texts.parquet" else pyarrow.nulls(20_000_000)
        pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts}), file, compression="zstd")
    assert file.stat().st_blocks * 512 < 12 * MIB
    code, _, error = command("data", "check", file)
    assert (code, "200 times" in error or "MiB" in error, "next: " in error) == (2, True, True), error


@pytest.mark.e2e
def test_a_log_of_inspect_that_takes_gigabytes_is_refused_with_the_bound(tmp_path, command):
    old, new = (inspect_logs.write(tmp_path / name, {"quiz": ["C"] * 9}) for name in ("a", "b"))
    (file,) = (path for path in new.rglob("*") if path.is_file())
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"samples/{i}_epoch_9.json", json.dumps({"a": "x" * 20 * MIB}))
    code, _, error = command("gate", "--base", old, "--candidate", new)
    assert (code, "200 times" in error) == (2, True), error


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize("depth", [101, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_no_json(depth, opening, closing):
    text = opening * depth + "1" + closing * depth
    for content in (text, text.encode()):
        with pytest.raises(json.JSONDecodeError, match="more than 100 deep"):
            parse_json(content)


def test_half_a_character_of_yaml_or_json_has_a_digest():
    assert digest({"label": "\ud83d"}) != digest({"label": "\ud83e"})


@pytest.mark.e2e
def test_deep_nesting_in_an_experiment_or_an_override_is_refused(folder):
    deep = "[" * 2000 + "]" * 2000
    with pytest.raises(UserError, match=r"override gate.macro=.*: found no YAML: '\[+…"):
        config.load(folder / "harness.yaml", [f"gate.macro={deep}"])
    (folder / "harness.yaml").write_text(f"{EXPERIMENT}gate: {deep}\n")
    with pytest.raises(UserError, match=r"harness.yaml: found values in one another"):
        config.load(folder / "harness.yaml")


def test_deep_nesting_in_logs_of_lm_eval_is_refused(tmp_path):
    old, new = (lmeval_folder.write(tmp_path / name, {"arc": [1.0] * 9}) for name in ("a", "b"))
    next(new.rglob("samples_*")).write_text(f'{{"doc_id": 0, "doc": {DEEP}}}')
    with pytest.raises(UserError, match="a line that is not a sample"):
        release.gate_folders(old, new, GatePolicy())

    next(new.rglob("results_*")).write_text(DEEP)
    with pytest.raises(UserError, match=r"results_.*: found no results that can be read"):
        release.gate_folders(old, new, GatePolicy())


@pytest.mark.parametrize("zipped", [True, False])
def test_deep_nesting_in_a_log_of_inspect_is_refused(tmp_path, zipped):
    names = ("a", "b")
    old, new = (inspect_logs.write(tmp_path / name, {"quiz": ["C"] * 9}, zipped=zipped) for name in names)
    (file,) = [path for path in new.rglob("*") if path.is_file()]
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.json", DEEP)
    else:
        file.write_text(f'{{"version": 2, "status": "success", "eval": {DEEP}}}')
    with pytest.raises(UserError, match="a log of inspect"):
        release.gate_folders(old, new, GatePolicy())
