"""What a teacher was paid counts once over files of the same rows, and by their share in those that were drawn."""

import json
from pathlib import Path

import pytest
from edited_rows import jsonl, make_distinct_rows, read_refusal, run_data

from harness.data.edit import Edit, EditedRow, save
from harness.data.edit.row_files import is_taught, payments_for, total_usd

PAID = 6.0


@pytest.fixture
def taught_data(data):
    jsonl(Path("own.jsonl"), [row.fields for row in make_distinct_rows(12)])
    rows = [EditedRow(row) for row in make_distinct_rows(12)]
    save(Edit("distill", {}, ("own.jsonl",), cost_usd=PAID, taught=True), rows, Path("taught.jsonl"))
    return data


def cost(*files):
    return total_usd(payment for file in files for payment in payments_for(file))


def test_rows_that_were_dropped_were_paid_for_too(taught_data):
    rows = [EditedRow(row) for row in (*make_distinct_rows(11), make_distinct_rows(1)[0])]
    save(Edit("distill", {}, ("own.jsonl",), cost_usd=PAID), rows, Path("repeated.jsonl"))
    run_data(taught_data, "dedup", "repeated.jsonl", "--out", "unique.jsonl")
    run_data(taught_data, "clean", "unique.jsonl", "--out", "clean.jsonl")
    assert len(Path("clean.jsonl").read_text().splitlines()) == 11
    assert cost("clean.jsonl") == PAID


def test_the_parts_of_a_split_cost_the_whole_together_and_their_share_alone(taught_data):
    run_data(taught_data, "split", "taught.jsonl", "--out", "parts")
    parts = ("train", "validation", "test")
    alone = {name: cost(f"parts/{name}.jsonl") for name in parts}
    n_rows = {name: len(Path(f"parts/{name}.jsonl").read_text().splitlines()) for name in parts}
    assert alone == {name: pytest.approx(PAID * n / 12) for name, n in n_rows.items()}
    assert cost(*(f"parts/{name}.jsonl" for name in parts)) == pytest.approx(PAID)
    assert is_taught("parts/train.jsonl")


def test_a_sample_and_a_mixture_cost_what_they_drew(taught_data):
    run_data(taught_data, "sample", "taught.jsonl", "--rows", "3", "--out", "few.jsonl")
    assert cost("few.jsonl") == pytest.approx(PAID / 4)
    run_data(taught_data, "mix", "taught.jsonl", "own.jsonl", "--rows", "12", "--out", "mixed.jsonl")
    assert cost("mixed.jsonl") == pytest.approx(PAID / 2)
    assert json.loads(Path("mixed.jsonl.manifest.json").read_text())["cost_usd"] == pytest.approx(PAID / 2)
    assert not is_taught("mixed.jsonl")
    assert cost("mixed.jsonl", "few.jsonl") == pytest.approx(PAID * 3 / 4)
    assert cost("mixed.jsonl", "few.jsonl", "taught.jsonl") == PAID


def test_two_teachers_are_both_paid(taught_data):
    rows = [EditedRow(row) for row in make_distinct_rows(12)][:6]
    save(Edit("distill", {}, ("taught.jsonl",), cost_usd=1.0), rows, Path("rewritten.jsonl"))
    assert cost("rewritten.jsonl") == PAID + 1.0
    assert cost("rewritten.jsonl", "taught.jsonl") == PAID + 1.0


def test_a_manifest_whose_payments_cannot_be_read_is_refused(taught_data):
    there = Path("taught.jsonl.manifest.json")
    there.write_text(
        there.read_text().replace('"cost_usd": 6.0,\n      "share"', '"usd": 6.0,\n      "share"')
    )
    assert "a damaged manifest" in read_refusal(taught_data, "dedup", "taught.jsonl", "--out", "unique.jsonl")
