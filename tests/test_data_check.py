"""The check of rows: its page, its commands run one after the other, and that clean rows are quiet."""

import csv
import gzip
import json
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from checked_rows import LABELS, alarms, damage_rows, lines, make_clean_rows, run_command, write
from typer.testing import CliRunner

from harness import config as configuration
from harness.cli import app
from harness.data import check
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.report.findings import fill_commands, order_commands, short_lines


def test_every_check_states_its_false_alarms():
    assert len(check.MODULES) >= 12
    for name, module in check.MODULES.items():
        function = getattr(import_module(f"harness.data.check.{module}"), f"check_{name}")
        assert "False alarms:" in function.__doc__, name


@pytest.mark.parametrize("seed", range(3))
def test_clean_rows_raise_no_alarm(find, seed):
    assert alarms(find(make_clean_rows(seed=seed))) == []


def test_texts_alone_are_checked_the_worst_stands_first_and_many_empty_columns_are_one_note(find):
    rows = make_clean_rows()
    found = find([*rows, rows[0], {"text": "", "label": "refund"}])
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=check.SEVERITIES.index)
    assert found[0].check == "missing_values"
    rows = [{"text": row["text"]} for row in make_clean_rows()]
    (found,) = alarms(find([*rows, rows[0]]))
    assert (found.check, lines(found)) == ("repeated_rows", [401])

    rows = [
        {**row, **{f"c{i}": "x" for i in range(20) if n % 7 or i < 5}}
        for n, row in enumerate(make_clean_rows(40))
    ]
    (found,) = (f for f in find(rows, "missing_values") if "empty" in f.title)
    assert found.title.startswith("15 columns have empty cells; the most 'c5' 6, ")


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture(scope="module")
def duplicate_file(tmp_path_factory):
    rows = make_clean_rows()
    return write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*rows, rows[0]])


@pytest.mark.e2e
def test_the_page_json_and_html_show_the_rows_their_meaning_and_the_command(duplicate_file, tmp_path):
    shown = run(duplicate_file)
    assert shown.exit_code == 0
    for part in ("warning", "rows: ", "e.g.: ", "means: ", "next: harness data dedup "):
        assert part in shown.stdout
    found = json.loads(run(duplicate_file, "--json").stdout)
    (alarm,) = [f for f in found["findings"] if f["severity"] == "warning"]
    assert (found["n"], alarm["count"], alarm["share"]) == (401, 1, 1 / 401)
    assert len(alarm["rows"]) == 1
    run(duplicate_file, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "exact duplicates of an earlier row" in page
    codes = [run(duplicate_file, "--fail-on", level).exit_code for level in ("error", "warning")]
    assert codes == [0, 1]


@pytest.mark.e2e
def test_html_escapes_what_rows_hold(tmp_path):
    evil = {"text": "<script>alert(1)</script> a b c", "label": "refund"}
    path = write(tmp_path / "rows.jsonl", [*make_clean_rows(), evil, {**evil, "label": "invoice"}])
    run(path, "--html", tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


def list_problems(*arguments, **asked):
    with pytest.raises(UserError) as error:
        examine_rows(RowCheck(list(map(str, arguments)), **asked))
    return error.value.problems


def test_problems_of_all_files_come_at_once(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "label": "b"}\n')[:-9])
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    good = write(tmp_path / "rows.jsonl", make_clean_rows())
    names = ("empty.csv", "header.csv", "sheet.xlsx", "cut.jsonl.gz", "broken.jsonl")
    found = list_problems(good, *(tmp_path / name for name in names))
    assert [Path(p.where.partition(":")[0]).name for p in found] == list(names)
    assert found[2].next_step.startswith("soffice --headless --convert-to csv ")
    assert found[4].where.endswith("broken.jsonl:2")


def test_columns_and_files_that_do_not_fit_are_refused_with_the_next_step(tmp_path):
    path = write(tmp_path / "rows.jsonl", make_clean_rows())
    assert list_problems(path, source="lable")[0].next_step == "did you mean 'label'?"
    assert list_problems(path, prompt="txt")[0].next_step == "did you mean 'text'?"

    rows = make_clean_rows()
    rows[4]["label"] = ["refund"]
    (problem,) = list_problems(write(tmp_path / "rows.jsonl", rows))
    assert problem.where.endswith("rows.jsonl:5")
    assert "'label' of mixed types" in problem.found
    path = write(tmp_path / "rows.jsonl", make_clean_rows(30))
    (problem,) = list_problems(path, str(tmp_path / "." / "rows.jsonl"))
    assert (problem.found, bool(problem.next_step)) == ("a file that is named twice", True)


def test_dates_of_another_form_are_read_where_it_is_named(tmp_path, data):
    rows = [{**row, "day": "01.05.2024"} for row in make_clean_rows(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    code, out, _ = data("check", path, "--date", "day", "--date-format", "%d.%m.%Y")
    assert (code, "at 2024-05-01, the newest" in out) == (0, True)
    code, _, err = data("check", path, "--date", "day")
    assert (code, "--date-format %d.%m.%Y" in err) == (2, True)


@pytest.mark.e2e
def test_init_says_the_worst_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = make_clean_rows(60)
    write(tmp_path / "rows.jsonl", [*rows, rows[0], rows[4]])
    done = CliRunner().invoke(app, ["init", "new", "--data", "rows.jsonl", "--minutes", "1000"])
    assert done.exit_code == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("data: ")]
    assert said[0].startswith("data: warning: exact duplicates of an earlier row, 3.2 % (2 of 62)")
    assert said[-1].endswith("the whole page: harness data check rows.jsonl")


def test_a_brief_line_loses_its_first_row_and_its_amount_before_it_is_cut():
    places = tuple(f"rows.csv:{i}" for i in range(1, 49))

    def write_brief(title, n=1):
        finding = check.Finding("warning", title, "", check="markers", count=48, of=120, rows=places)
        return list(short_lines([finding] * n))

    assert write_brief("x" * 40)[0] == f"warning: {'x' * 40}, 40.0 % (48 of 120), first rows.csv:1"
    assert write_brief("x" * 60)[0] == f"warning: {'x' * 60}, 40.0 % (48 of 120)"
    assert write_brief("x" * 80)[0] == f"warning: {'x' * 80}"
    assert write_brief("x" * 200)[0] == f"warning: {'x' * 85}…"
    assert write_brief("x", 3)[-1] == "0 errors, 3 warnings"
    assert write_brief("x", 4)[3:] == ["0 errors, 4 warnings; these are the worst 3"]


def test_the_rows_of_a_task_are_checked_as_the_task_reads_them(tmp_path, monkeypatch):
    from harness.experiment.check_rows import check_target
    from harness.spec import Task

    monkeypatch.chdir(tmp_path)
    rows = make_clean_rows(60)
    data = {"train": write(tmp_path / "a.jsonl", rows), "test": write(tmp_path / "b.jsonl", rows[:5])}
    fields = {"prompt": "{text}", "reference": "{label}"}
    said = check_target(Task(name="rows", data=data, fields=fields, labels=LABELS))
    first = "error: training rows that a test row repeats, 8.3 % (5 of 60), first a.jsonl:1"
    assert (said.lines[0], said.lines[-1]) == (first, "1 error, 0 warnings")
    assert said.command == "harness data check a.jsonl --test b.jsonl --prompt text --reference label"


def make_rows_with_mail(n=60):
    rows = make_clean_rows(n)
    rows[0]["text"] += " ann.lee@example.org"
    return rows


def decide_command(*arguments):
    found = json.loads(run(*arguments, "--json").stdout)["findings"]
    return next(f["command"] for f in found if f["check"] == "personal_data")


@pytest.mark.e2e
def test_the_dashboard_is_named_where_its_data_page_shows_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", make_rows_with_mail())
    experiment = Path("mail/harness.yaml")
    assert CliRunner().invoke(app, ["init", "mail", "--data", "rows.jsonl"]).exit_code == 0
    own = "rows.jsonl --out rows.clean.jsonl --decisions rows.jsonl.decisions.json"
    command = f"harness dashboard -c mail/harness.yaml  # its Data page, then: harness data clean {own}"
    assert decide_command("rows.jsonl", "-c", experiment) == command
    write(tmp_path / "other.jsonl", make_rows_with_mail())
    assert decide_command("other.jsonl", "-c", experiment).startswith("harness init other --data other.jsonl")


@pytest.mark.e2e
@pytest.mark.parametrize("n_empty", [0, 20])
def test_without_an_experiment_the_command_makes_one_of_rows_that_init_takes(tmp_path, monkeypatch, n_empty):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    write(
        tmp_path / "rows.jsonl",
        [*make_rows_with_mail(), *({"text": f"no {i}", "label": ""} for i in range(n_empty))],
    )
    last = run("rows.jsonl").stdout.splitlines()[-1]
    made, _, then = decide_command("rows.jsonl").partition("  # its Data page, then: ")
    if n_empty:
        assert CliRunner().invoke(app, shlex.split(last.partition("; next: harness ")[2])).exit_code == 0
    init, dashboard = made.split(" && ")
    run_command(init)
    assert dashboard == "harness dashboard -c rows-2/harness.yaml"
    file = "rows.clean.jsonl" if n_empty else "rows.jsonl"
    target = configuration.load(Path("rows-2/harness.yaml")).experiment.target
    assert target.data.all == str(tmp_path / file)
    new = file.replace(".jsonl", ".clean.jsonl")
    assert then == f"harness data clean {file} --out {new} --decisions {file}.decisions.json"


def test_decisions_on_rows_of_several_files_are_named_file_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", make_rows_with_mail())
    write(tmp_path / "b.jsonl", [{**row, "text": f"So: {row['text']}"} for row in make_rows_with_mail()])
    own = [
        f"harness init {name} --data {name}.jsonl && harness dashboard -c {name}/harness.yaml{comment} its Data "
        f"page, then: harness data clean {name}.jsonl --out {name}.clean.jsonl --decisions "
        f"{name}.jsonl.decisions.json"
        for name, comment in (("a", "  #"), ("b", ","))
    ]
    assert decide_command("a.jsonl", "b.jsonl") == f"{own[0]}; b.jsonl: {own[1]}"


def test_a_broken_experiment_is_left_aside_where_nothing_of_it_is_needed(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", make_clean_rows(40))
    (tmp_path / "harness.yaml").write_text("nmae: x\n")
    assert "warning: harness.yaml has" in run("rows.jsonl", "--base", tiny).stderr
    for words in ([], ["--base", tiny, "-c", str(tmp_path / "harness.yaml")]):
        assert isinstance(run("rows.jsonl", *words).exception, UserError)


def test_rows_of_the_hub_are_written_to_a_file_before_they_are_decided_on():
    hub = "hub:owner/mails"
    mail = check.Finding("warning", "", "", count=1, of=9, rows=(f"{hub}:1",), command=check.DECIDE)
    (filled,) = fill_commands([mail], [hub])
    made = (
        "harness data clean hub:owner/mails --out mails.clean.jsonl && harness init mails --data mails.clean."
    )
    assert filled.command.startswith(made)


@pytest.mark.parametrize("verb", ["clean", "dedup"])
def test_data_sets_of_the_hub_with_one_last_name_are_written_to_files_of_their_own(verb):
    written = [f"rows.{verb}.jsonl", f"rows.{verb}-2.jsonl"]
    hubs = ["hub:a/rows", "hub:b/rows"]
    rows = tuple(f"{hub}:3" for hub in hubs)
    finding = check.Finding("error", "t", "m", rows=rows, command=f"harness data {verb} FILE --out OUT")
    (filled,) = fill_commands([finding], hubs)
    assert filled.steps == tuple(
        f"harness data {verb} {hub} --out {name}" for hub, name in zip(hubs, written, strict=True)
    )


def test_a_page_is_never_written_over_rows(duplicate_file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(Path(duplicate_file).read_bytes())
    (tmp_path / "link.html").symlink_to(rows)
    for page in (rows, tmp_path / "link.html"):
        found = run(rows, "--html", page).exception
        assert "a file that is there already; expected a new file, or an earlier page" in str(found)
    assert rows.read_bytes() == Path(duplicate_file).read_bytes()


@pytest.mark.parametrize(
    ("file", "out"),
    [
        ("j.doe/rows.v2.jsonl.gz", "j.doe/rows.v2.dedup.jsonl.gz"),
        ("OUT/FILE rows.csv", "'OUT/FILE rows.dedup.csv'"),
        ("hub:owner/name-1.5:part:train", "name-1.5-part-train.dedup.jsonl"),
        ("folder.d/set", "folder.d/set.dedup.jsonl"),
    ],
)
def test_a_command_names_a_file_that_can_be_written(file, out):
    finding = check.Finding(
        "error", "t", "m", rows=(f"{file}:3",), command="harness data dedup FILE --out OUT"
    )
    expected = f"harness data dedup {shlex.quote(file)} --out {out}"
    assert fill_commands([finding], [file[:-1], file])[0].command == expected


def test_a_row_of_several_lines_of_a_csv_file_stands_at_its_first(tmp_path):
    rows = [f"{row['text']},{row['label']}" for row in make_clean_rows(40)]
    file = tmp_path / "rows.csv"
    file.write_text(
        "\n".join(["text,label", '"one\ntwo\n\nthree",refund', *rows, '"one\ntwo\n\nthree",refund'])
    )
    (found,) = alarms(examine_rows(RowCheck([str(file)], only=["repeated_rows"])).findings)
    assert lines(found) == [46]
    assert found.example.endswith("rows.csv:46 repeats " + found.rows[0].replace(":46", ":2"))


def test_the_commands_name_the_columns_that_were_named(find):
    rows = [{**row, "queue": row["label"], "label": "open"} for row in make_clean_rows()]
    (found,) = alarms(find([*rows, rows[0]], "repeated_rows", prompt="{text}", reference="queue"))
    assert " --prompt '{text}' --reference queue --out " in found.command


def test_rows_whose_id_stands_already_are_found_and_numbered_by_the_command(find, tmp_path):
    rows = [{"id": i // 2, **row} for i, row in enumerate(make_clean_rows(40))]
    (found,) = alarms(find(rows, "missing_values"))
    assert (found.severity, lines(found)) == ("error", list(range(2, 41, 2)))
    run_command(found.command)
    mended = tmp_path / "rows.clean.jsonl"
    assert alarms(examine_rows(RowCheck([str(mended)], only=["missing_values"])).findings) == []
    written = [json.loads(line) for line in mended.read_text().splitlines()]
    assert [{**row, "id": i // 2} for i, row in enumerate(written)] == rows


def write_lines(path, rows):
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


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
        write_lines(name, damage_rows(make_clean_rows(200, i)))
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
        run_command(step)
    left = examine_rows(
        RowCheck([find_out_file(chain[-1])], only=["missing_values", "encoding_damage", "repeated_rows"])
    )
    assert alarms(left.findings) == []
    for finding in alarms(found.findings):
        assert set(finding.steps) <= set(chain)


def test_the_last_line_of_a_check_is_the_whole_chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines("rows.csv", damage_rows(make_clean_rows(200, 0)))
    said = CliRunner().invoke(app, ["data", "check", "rows.csv"]).stdout.splitlines()[-1]
    assert said.endswith(
        "; next: harness data clean rows.csv --out rows.clean.csv --spellings"
        " && harness data dedup rows.clean.csv --out rows.clean.dedup.csv"
    )


def test_files_that_are_to_be_split_are_joined_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = make_clean_rows(400)
    for name, of in (("a.csv", rows[:150]), ("b.csv", rows[150:300])):
        write_lines(name, of)
    write_lines("t.csv", [row for row in rows[300:] if row["label"] in ("refund", "invoice")] + rows[300:310])
    found = examine_rows(RowCheck(["a.csv", "b.csv"], test=["t.csv"], only=["class_balance"]))
    chain = order_commands(found.findings)
    assert [shlex.split(step)[2] for step in chain] == ["mix", "split"]
    for step in chain:
        run_command(step)
    assert json.loads(Path("a.mixed.split/split.manifest.json").read_text())["counts"]["written"] == 300
