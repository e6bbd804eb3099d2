"""Mixtures and samples of rows: shares, ids of their own, and that a smaller draw is part of a larger one."""

from pathlib import Path

import pytest
from edited_rows import jsonl, list_written_rows, make_distinct_rows, manifest, read, read_refusal, run_data
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.edit.mix import RowMixture, mix, sample, shares
from harness.data.text_files import Row, Rows
from harness.errors import UserError


def files_of(*sizes):
    names = [f"{chr(97 + i)}.jsonl" for i in range(len(sizes))]
    return [
        Rows(name, name, [Row(f"{name}:{i}", {"n": i, "id": f"{i}"}) for i in range(n)])
        for name, n in zip(names, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (RowMixture(), [0.1, 0.9]),
        (RowMixture(temperature=2), [0.25, 0.75]),  # √100 : √900 = 1 : 3
        (RowMixture(temperature=1e6), [0.5, 0.5]),
        (RowMixture(weights=(0.3, 0.7)), [0.3, 0.7]),
    ],
)
def test_shares_are_the_weights_or_sizes_at_a_temperature(mixture, expected):
    assert shares([100, 900], mixture) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 100), st.integers(0, 3))
def test_a_mixture_invents_no_row_and_drops_what_it_does_not_draw(a, b, temperature, seed):
    files = files_of(a, b)
    outcomes = list(mix(files, RowMixture(temperature=temperature, seed=seed)))
    assert [(o.row or o.change).where for o in outcomes] == [row.where for f in files for row in f.rows]
    assert outcomes == list(mix(files, RowMixture(temperature=temperature, seed=seed)))


def test_a_mixture_has_its_number_of_rows_and_names_their_files():
    drawn = list_written_rows(mix(files_of(50, 100), RowMixture(weights=(0.25, 0.75), n_rows=81)))
    assert [row.fields["source"] for row in drawn] == ["a.jsonl"] * 20 + ["b.jsonl"] * 61
    assert all(row.where.startswith(row.fields["source"]) for row in drawn)


def test_with_replacement_rows_come_again_under_ids_of_their_own():
    drawn = list_written_rows(mix(files_of(3, 3), RowMixture(n_rows=40, replacement=True)))
    assert len(drawn) == 40
    assert len({row.fields["id"] for row in drawn}) == 40


def make_rows_with_ids(name, *idents):
    return Rows(name, name, [Row(f"{name}:{i}", {"id": ident}) for i, ident in enumerate(idents)])


@pytest.mark.parametrize(("first", "second"), [((0, 1, 2), (0, 1, 2)), (("a", "b"), ("a", "a-2"))])
def test_equal_ids_of_two_files_become_ids_of_their_type_that_no_row_has(first, second):
    files = [make_rows_with_ids("a.jsonl", *first), make_rows_with_ids("b.jsonl", *second)]
    outcomes = list(mix(files, RowMixture(weights=(0.5, 0.5))))
    idents = [row.fields["id"] for row in list_written_rows(outcomes)]
    assert len(set(idents)) == len(idents) == len(first) + len(second)
    assert {type(ident) for ident in idents} == {type(first[0])}
    assert len({change.reason for _, change in outcomes if change}) == 1


def test_a_number_and_its_text_are_one_id(data):
    files = [make_rows_with_ids("a.jsonl", 1, 2, 3), make_rows_with_ids("b.csv", "1", "2", "4")]
    idents = [row.fields["id"] for row in list_written_rows(mix(files, RowMixture(weights=(0.5, 0.5))))]
    assert idents == [1, 2, 3, "1-2", "2-2", "4"]
    assert [row.fields["id"] for row in list_written_rows(mix(files[::-1], RowMixture()))] == [
        "1",
        "2",
        "4",
        5,
        6,
        3,
    ]


def test_one_file_by_two_spellings_is_no_mixture(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    said = read_refusal(data, "mix", "a.jsonl", "./a.jsonl", "--out", "n.jsonl")
    assert "found one file twice: a.jsonl, ./a.jsonl; expected two different files or more; next: " in said


def test_a_file_alone_is_no_mixture(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    said = read_refusal(data, "mix", "a.jsonl", "--out", "n.jsonl")
    assert "found a.jsonl alone; expected two different files or more; next: name another" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weights", "0.7,0.3", "--temperature", "2"), "next: leave out --temperature, or --weights"),
        (("--weights=nan,1",), "2 for 2 files, one nan"),
        (("--weights=",), "numbers between commas"),
        (("--weights", "0.7,0.7"), "weights that add up to 1.4"),
        (("--weights", "1"), "1 for 2 files"),
        (("--temperature", "0"), "a number above 0"),
        (
            ("--rows", "90", "--weights", "0.5,0.5"),
            "b.jsonl: found 9 rows; expected 45 for its share; next: --rows 18",
        ),
        (("--replacement",), "--rows N"),
        (("--weights", "0.99,0.01", "--rows", "5"), "b.jsonl: found a share that draws no row"),
        (("--rows", "0"), "at least 1"),
        (("--column", "label"), "a.jsonl:1: found the column 'label'"),
    ],
)
def test_a_mixture_that_cannot_be_made_is_refused(data, words, said):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(Path(name), [row.fields for row in make_distinct_rows(9)])
    assert said in read_refusal(data, "mix", "a.jsonl", "b.jsonl", "--out", "n.jsonl", *words)


def test_mixed_files_of_other_columns_and_kinds_are_one_file(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    Path("b.csv").write_text("prompt,reference,topic\nb,y,cards\n")
    run_data(data, "mix", "a.jsonl", "b.csv", "--out", "n.csv")
    assert Path("n.csv").read_text().splitlines() == [
        "prompt,reference,source,topic",
        "a,x,a.jsonl,",
        "b,y,b.csv,cards",
    ]


@given(st.integers(1, 30), st.integers(0, 3))
def test_a_smaller_sample_is_part_of_a_larger_one_in_the_order_of_the_file(n, seed):
    content = Rows("r", "r", make_distinct_rows(31))
    small, large = (list_written_rows(sample(content, size, None, seed)) for size in (n, n + 1))
    assert len(small) == n
    assert [row for row in large if row in small] == small
    assert large == sorted(large, key=lambda row: row.fields["n"])


def test_a_balanced_sample_has_equally_many_of_every_value():
    rows = make_distinct_rows(60, lambda i: "rare" if i % 10 == 0 else "often")
    drawn = list_written_rows(sample(Rows("r", "r", rows), 10, "label", 0))
    assert sorted(row.fields["label"] for row in drawn) == ["often"] * 5 + ["rare"] * 5
    with pytest.raises(
        UserError, match=r"6 rows of the class 'rare'; expected at least 10 .* --rows 12 at most"
    ):
        sample(Rows("r", "r", rows), 20, "label", 0)


def test_a_balanced_sample_without_a_row_of_each_value_is_refused():
    rows = make_distinct_rows(60, lambda i: f"label {i % 4}")
    with pytest.raises(UserError, match=r"--rows: found 3 for 4 values of 'label'; .* next: --rows 4"):
        sample(Rows("r", "r", rows), 3, "label", 0)


def test_what_is_not_drawn_stands_in_the_manifest(data):
    jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(9)])
    assert run_data(data, "sample", "r.jsonl", "--rows", "4", "--out", "n.jsonl").startswith(
        "9 read, 4 written"
    )
    assert len(read("n.jsonl")) == 4
    assert {row["reason"] for row in manifest("n.jsonl")["rows"]} == {"not drawn"}
    assert "expected at least 10" in read_refusal(
        data, "sample", "r.jsonl", "--rows", "10", "--out", "m.jsonl"
    )


@pytest.mark.parametrize("column", ["id", "augmented_from", "", "prompt"])
def test_a_mixture_names_its_files_in_no_column_that_has_a_meaning(data, column):
    for name in "ab":
        jsonl(Path(f"{name}.jsonl"), [{"text": f"{name} q{i}w", "label": "x"} for i in range(4)])
    said = read_refusal(data, "mix", "a.jsonl", "b.jsonl", "--column", column, "--out", "m.jsonl")
    assert "--column: found" in said
