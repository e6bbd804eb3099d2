"""The commands that a check prints, run as they stand: one after the other, each on what the one before wrote."""

import csv
import json
import shlex
from pathlib import Path

import pytest
from checked_rows import alarms, damage_rows, make_clean_rows
from typer.testing import CliRunner

from harness.cli import app
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.report.findings import order_commands


def write(path, rows):
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def run(command):
    words = shlex.split(command)
    assert words[0] == "harness"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output


def find_out_file(command):
    words = shlex.split(command)
    return words[words.index("--out") + 1]


@pytest.mark.e2e
@pytest.mark.parametrize("names", [["rows.csv"], ["my rows.csv"], ["-rows.csv"], ["a b.csv", "-c.csv"]])
def test_the_printed_commands_run_as_a_chain_and_what_they_leave_raises_no_alarm(
    tmp_path, monkeypatch, names
):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(names):
        write(name, damage_rows(make_clean_rows(200, i)))
    if len(names) == 2:
        with Path(names[1]).open("a", newline="") as file:
            csv.writer(file).writerows(
                [list(row.values()) for row in damage_rows(make_clean_rows(200, 0))[40:50]]
            )
    files = [name if name[0] != "-" else f"./{name}" for name in names]
    found = examine_rows(
        RowCheck(files, only=["missing_values", "encoding_damage", "answer_formats", "repeated_rows"])
    )
    chain = order_commands(found.findings)
    verbs = [shlex.split(step)[2] for step in chain]
    assert verbs == ["clean"] * len(names) + (["mix"] if len(names) > 1 else []) + ["dedup"]
    for step in chain:
        run(step)
    left = examine_rows(
        RowCheck([find_out_file(chain[-1])], only=["missing_values", "encoding_damage", "repeated_rows"])
    )
    assert alarms(left.findings) == []
    for finding in alarms(found.findings):
        assert set(finding.steps) <= set(chain)


def test_the_last_line_of_a_check_is_the_whole_chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("rows.csv", damage_rows(make_clean_rows(200, 0)))
    said = CliRunner().invoke(app, ["data", "check", "rows.csv"]).stdout.splitlines()[-1]
    assert said.endswith(
        "; next: harness data clean rows.csv --out rows.clean.csv --spellings"
        " && harness data dedup rows.clean.csv --out rows.clean.dedup.csv"
    )


def test_files_that_are_to_be_split_are_joined_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = make_clean_rows(400)
    for name, of in (("a.csv", rows[:150]), ("b.csv", rows[150:300])):
        write(name, of)
    write("t.csv", [row for row in rows[300:] if row["label"] in ("refund", "invoice")] + rows[300:310])
    found = examine_rows(RowCheck(["a.csv", "b.csv"], test=["t.csv"], only=["class_balance"]))
    chain = order_commands(found.findings)
    assert [shlex.split(step)[2] for step in chain] == ["mix", "split"]
    for step in chain:
        run(step)
    assert json.loads(Path("a.mixed.split/split.manifest.json").read_text())["counts"]["written"] == 300
