"""JSON and YAML nested deeper than anybody means: one message wherever a user's file is read, never a traceback."""

import json
import zipfile

import inspect_logs
import lmeval_folder
import pytest
from conftest import EXPERIMENT

from harness import config, release, report
from harness.data import readers
from harness.errors import UserError
from harness.records import parse_json
from harness.rescue.result import read as read_rescue
from harness.spec import GatePolicy
from harness.store import champion_file, read_champion

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("depth", [101, 2_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_no_json(depth, opening, closing):
    text = opening * depth + "1" + closing * depth
    for given in (text, text.encode()):
        with pytest.raises(json.JSONDecodeError, match="more than 100 deep"):
            parse_json(given)


def test_what_has_many_brackets_side_by_side_is_read():
    assert parse_json(json.dumps([[1]] * 500)) == [[1]] * 500
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json(json.dumps("[" * 5000)) == "[" * 5000


@pytest.mark.e2e
def test_an_experiment(folder):
    (folder / "harness.yaml").write_text(f"{EXPERIMENT}gate: {DEEP}\n")
    with pytest.raises(UserError, match=r"harness.yaml: found values in one another"):
        config.load(folder / "harness.yaml")


@pytest.mark.e2e
def test_an_override(folder):
    with pytest.raises(UserError, match=r"override gate.macro=.*: found no YAML: '\[+…"):
        config.load(folder / "harness.yaml", [f"gate.macro={DEEP}"])


@pytest.mark.parametrize(
    ("name", "text"), [("r.jsonl", f'{{"a": {DEEP}}}'), ("r.json", f'[{{"a": {DEEP}}}]')]
)
def test_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"malformed JSON .*100 deep"):
        readers.read(str(tmp_path / name), "train")


def test_samples_of_lm_eval(tmp_path):
    old, new = (lmeval_folder.write(tmp_path / name, {"arc": [1.0] * 9}) for name in ("a", "b"))
    next(new.rglob("samples_*")).write_text(f'{{"doc_id": 0, "doc": {DEEP}}}')
    with pytest.raises(UserError, match="a line that is not a sample"):
        release.gate_folders(old, new, GatePolicy())


def test_results_of_lm_eval(tmp_path):
    old, new = (lmeval_folder.write(tmp_path / name, {"arc": [1.0] * 9}) for name in ("a", "b"))
    next(new.rglob("results_*")).write_text(DEEP)
    with pytest.raises(UserError, match=r"results_.*: found no results that can be read"):
        release.gate_folders(old, new, GatePolicy())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_log_of_inspect(tmp_path, zipped):
    old, new = (
        inspect_logs.write(tmp_path / name, {"quiz": ["C"] * 9}, zipped=zipped) for name in ("a", "b")
    )
    (file,) = [path for path in new.rglob("*") if path.is_file()]
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.json", DEEP)
    else:
        file.write_text(f'{{"version": 2, "status": "success", "eval": {DEEP}}}')
    with pytest.raises(UserError, match="a log of inspect"):
        release.gate_folders(old, new, GatePolicy())


def test_a_champion(tmp_path):
    file = champion_file(tmp_path, "support")
    file.parent.mkdir(parents=True)
    file.write_text(DEEP)
    with pytest.raises(UserError, match="promote again"):
        read_champion(tmp_path, "support")


def test_a_report(tmp_path):
    (tmp_path / "report.json").write_text(f'{{"experiment": {DEEP}}}')
    with pytest.raises(UserError, match="no report"):
        report.read(tmp_path / "report.json")
    assert read_rescue(tmp_path / "report.json") is None
