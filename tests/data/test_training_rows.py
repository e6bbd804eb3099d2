"""Training rows per candidate: other files and mixtures, with the same test items for all."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import tiny_experiment
from conftest import refused
from edited_rows import jsonl, make_distinct_rows, read_refusal, run_data
from rich.console import Console

from harness.data import load_task, load_training_rows
from harness.data.edit.changes import EditedRow
from harness.data.edit.row_files import is_taught, payments_for, total_usd
from harness.data.edit.save import Edit, save
from harness.errors import UserError
from harness.records import parse_json
from harness.report import experiment_document, markdown, read, terminal, to_json
from harness.report.html_page import html
from harness.spec import Mix, Task

LORA = "method: lora, params: {r: 2, max_steps: 2, max_length: 200}"
CANDIDATES = f"""\
  prompt: {{method: base}}
  curated: {{{LORA}, train: curated.jsonl}}
  lora: {{{LORA}}}
  bag: {{method: classifier}}
  blend: {{method: classifier, mix: {{curated.jsonl: 0.25, more.jsonl: 0.75}}}}
"""


def write(folder, tiny, candidates=CANDIDATES, **options):
    path = tiny_experiment.write(folder, tiny, candidates, **options)
    letters = tiny_experiment.letters(slice(0, 5))
    tiny_experiment.rows(folder / "curated.jsonl", letters[::3])
    more = ({"id": f"more-{i}", "prompt": f"Once more: {row['prompt']}"} for i, row in enumerate(letters))
    tiny_experiment.rows(folder / "more.jsonl", [row | new for row, new in zip(letters, more, strict=True)])
    return path


@pytest.fixture(scope="module")
def file_and_report(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    path = write(folder, tiny, extra="decide: {label_cost_usd: 0.5}\n")
    return path, tiny_experiment.run(path, "suites=[]")


def problems(path):
    return str(refused(tiny_experiment.session, path))


def task(folder, **data):
    data = {name: str(folder / file) for name, file in data.items()}
    return Task(name="letters", data=data, metrics=("exact_match",), labels=("late", "money"))


def test_candidates_on_other_rows_are_compared_in_every_form_of_the_report(file_and_report, tmp_path):
    _, report = file_and_report
    tuned, plain = report.training_sets
    assert (tuned.method, tuned.reference) == ("lora", "lora")
    assert [(s.candidate, s.n_rows) for s in tuned.sets] == [("lora", 30), ("curated", 10)]
    assert [s.label_cost_usd for s in tuned.sets] == [15.0, 5.0]
    assert all(s.estimate and s.n_tokens for s in tuned.sets)
    assert [s.difference is None for s in tuned.sets] == [True, False]
    assert [(s.candidate, s.n_rows) for s in plain.sets] == [("bag", 30), ("blend", 40)]
    (tmp_path / "tiny.json").write_text(json.dumps(to_json(report)))
    assert read(tmp_path / "tiny.json").training_sets == report.training_sets
    notes = "\n".join(report.notes)
    assert re.search(r"curated: trains on \S*curated\.jsonl: 10 rows", notes)
    assert "curated.jsonl: 10 rows" in report.origins["curated"]["training_rows"]
    assert "training_rows" not in report.origins["lora"]

    console = Console(width=200, record=True, file=io.StringIO())
    terminal(report, console, verbose=True)
    for text in (console.export_text(), markdown(experiment_document(report)), html(report)):
        assert "quality against quantity: lora" in text
    assert re.search(r"curated \| .*curated\.jsonl \| 10 \|", markdown(experiment_document(report)))
    assert "25.0 % " in markdown(experiment_document(report))


def test_all_candidates_answer_the_same_test_items_and_a_second_compare_computes_nothing(file_and_report):
    path, report = file_and_report
    runs = tiny_experiment.runs_of(path)
    assert len({f.target.n for f in report.facts}) == 1
    for name, other_name in (("lora", "curated"), ("bag", "blend")):
        assert runs[name].weights_digest != runs[other_name].weights_digest
    again = tiny_experiment.run(path, "suites=[]")
    assert [f.run_id for f in again.facts] == [f.run_id for f in report.facts]


def test_rows_that_a_test_item_or_a_suite_asks_too_are_refused_with_their_line(tiny, tmp_path):
    path = write(tmp_path, tiny)
    test = parse_json((tmp_path / "suites/letters/test.jsonl").read_text().splitlines()[1])
    with (tmp_path / "curated.jsonl").open("a") as file:
        file.write(json.dumps({**test, "id": "stolen"}) + "\n")
    assert re.search(r"curated\.jsonl:11: found .*, the question of .*test\.jsonl:2 too", problems(path))
    write(tmp_path, tiny)
    fact = {"id": "stolen", "prompt": tiny_experiment.facts()[0]["prompt"], "reference": "late"}
    with (tmp_path / "more.jsonl").open("a") as file:
        file.write(json.dumps(fact) + "\n")
    assert "the question of facts item fact-0 too" in problems(path)


def test_rows_that_were_set_aside_from_the_targets_are_left_out_and_counted(tmp_path):
    rows = tiny_experiment.letters(slice(0, 6))
    tiny_experiment.rows(tmp_path / "train.jsonl", rows)
    tiny_experiment.rows(tmp_path / "test.jsonl", tiny_experiment.letters(slice(6, 8)))
    tiny_experiment.rows(tmp_path / "clean.jsonl", rows[::2])
    target = task(tmp_path, train="train.jsonl", test="test.jsonl")
    items = load_task(target, 0)
    loaded = load_training_rows(target, items, [str(tmp_path / "clean.jsonl")], None, 0)
    aside = {e.cluster for e in items.validation}
    assert loaded.train
    assert aside.isdisjoint(e.cluster for e in loaded.train)
    (note,) = loaded.removed
    assert f"{len(rows[::2]) - len(loaded.train)} rows left out, set aside" in note
    assert (loaded.validation, loaded.test) == (items.validation, items.test)


def test_a_mixture_draws_the_shares_that_are_written(tmp_path):
    rows = tiny_experiment.letters(slice(0, 5))
    for name in ("train", "other"):
        tiny_experiment.rows(tmp_path / f"{name}.jsonl", [{**r, "slice": name} for r in rows])
    tiny_experiment.rows(tmp_path / "test.jsonl", tiny_experiment.letters(slice(6, 8)))
    target = task(tmp_path, train="train.jsonl", test="test.jsonl", validation="test.jsonl")
    items = load_task(target, 0)
    files = [str(tmp_path / "train.jsonl"), str(tmp_path / "other.jsonl")]

    def draw_training_rows(**keys):
        return load_training_rows(target, items, (), Mix(**keys), 0).train

    shares = dict(zip(files, (0.2, 0.8), strict=True))
    mixture = draw_training_rows(files=shares, rows=20)
    assert Counter(e.slice for e in mixture) == {"train": 4, "other": 16}
    assert mixture == draw_training_rows(files=shares, rows=20)
    repeated = draw_training_rows(files=files, rows=200, replacement=True)
    assert (len(repeated), len({e.id for e in repeated})) == (200, 200)
    pattern = r"found 30 rows; expected 40 .*rows: 37 in mix:, or replacement: true"
    with pytest.raises(UserError, match=pattern):
        draw_training_rows(files=shares, rows=50)


def test_a_pair_method_trains_on_pairs_of_its_own(tiny, tmp_path):
    path = write(tmp_path, tiny, "  dpo: {method: dpo, train: pairs.jsonl}\n")
    pairs = [{"prompt": f"Say {i}.", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(8)]
    tiny_experiment.rows(tmp_path / "pairs.jsonl", pairs)
    (loaded,) = tiny_experiment.session(path).training.values()
    expected = {(f"yes {i}", f"no {i}") for i in range(8)}
    assert {(pair.references[0], pair.rejected) for pair in loaded.items.pairs} == expected


PAID = 6.0


@pytest.fixture
def taught_data(data):
    jsonl(Path("own.jsonl"), [row.fields for row in make_distinct_rows(12)])
    rows = [EditedRow(row) for row in make_distinct_rows(12)]
    save(Edit("distill", {}, ("own.jsonl",), cost_usd=PAID, taught=True), rows, Path("taught.jsonl"))
    return data


def cost(*files):
    return total_usd(payment for file in files for payment in payments_for(file))


def test_dropped_split_sampled_and_mixed_rows_are_paid_for_as_they_were_taught(taught_data):
    rows = [EditedRow(row) for row in (*make_distinct_rows(11), make_distinct_rows(1)[0])]
    save(Edit("distill", {}, ("own.jsonl",), cost_usd=PAID), rows, Path("repeated.jsonl"))
    run_data(taught_data, "dedup", "repeated.jsonl", "--out", "unique.jsonl")
    run_data(taught_data, "clean", "unique.jsonl", "--out", "clean.jsonl")
    assert len(Path("clean.jsonl").read_text().splitlines()) == 11
    assert cost("clean.jsonl") == PAID

    run_data(taught_data, "split", "taught.jsonl", "--out", "parts")
    parts = ("train", "validation", "test")
    alone = {name: cost(f"parts/{name}.jsonl") for name in parts}
    n_rows = {name: len(Path(f"parts/{name}.jsonl").read_text().splitlines()) for name in parts}
    assert alone == {name: pytest.approx(PAID * n / 12) for name, n in n_rows.items()}
    assert cost(*(f"parts/{name}.jsonl" for name in parts)) == pytest.approx(PAID)
    assert is_taught("parts/train.jsonl")

    rows = [EditedRow(row) for row in make_distinct_rows(12)][:6]
    save(Edit("distill", {}, ("taught.jsonl",), cost_usd=1.0), rows, Path("rewritten.jsonl"))
    assert cost("rewritten.jsonl") == PAID + 1.0
    assert cost("rewritten.jsonl", "taught.jsonl") == PAID + 1.0


def test_a_sample_and_a_mixture_cost_what_they_drew(taught_data):
    run_data(taught_data, "sample", "taught.jsonl", "--rows", "3", "--out", "few.jsonl")
    assert cost("few.jsonl") == pytest.approx(PAID / 4)
    run_data(taught_data, "mix", "taught.jsonl", "own.jsonl", "--rows", "12", "--out", "mixed.jsonl")
    assert cost("mixed.jsonl") == pytest.approx(PAID / 2)
    assert json.loads(Path("mixed.jsonl.manifest.json").read_text())["cost_usd"] == pytest.approx(PAID / 2)
    assert not is_taught("mixed.jsonl")
    assert cost("mixed.jsonl", "few.jsonl") == pytest.approx(PAID * 3 / 4)
    assert cost("mixed.jsonl", "few.jsonl", "taught.jsonl") == PAID


def test_a_manifest_whose_payments_cannot_be_read_is_refused(taught_data):
    manifest = Path("taught.jsonl.manifest.json")
    damaged = '"usd": 6.0,\n      "share"'
    manifest.write_text(manifest.read_text().replace(damaged.replace("usd", "cost_usd"), damaged))
    assert "a damaged manifest" in read_refusal(taught_data, "dedup", "taught.jsonl", "--out", "unique.jsonl")
