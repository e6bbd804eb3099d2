"""Splits, mixtures and samples of rows: shares, classes, groups, times and ids."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from edited_rows import (
    ASKED,
    draw_rows,
    jsonl,
    list_written_rows,
    make_distinct_rows,
    manifest,
    read,
    read_refusal,
    rows_of,
    run_data,
    split_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.edit.mix import RowMixture, mix, sample, shares
from harness.data.edit.split import SHARES, SplitOptions, split
from harness.data.text_files import Row, Rows
from harness.errors import UserError
from harness.records import fold_text


def parts_of(rows, **way):
    found = split_rows(rows, **way)
    return {name: [row.fields["n"] for row in part] for name, part in found.parts.items()}


@settings(max_examples=25)
@given(draw_rows("text", "label"), st.integers(0, 3))
def test_a_split_keeps_every_row_once_and_what_asks_alike_in_one_part(rows, seed):
    try:
        found = split_rows(rows, (0.5, 0.0, 0.5), seed=seed)
    except UserError:
        return
    assert sorted(row.where for part in found.parts.values() for row in part) == sorted(r.where for r in rows)
    train, test = ({fold_text(row.fields["text"]) for row in found.parts[name]} for name in ("train", "test"))
    assert not (train & test) - {""}  # an empty question asks nothing


def test_a_split_has_its_shares_by_class_and_group_and_keeps_the_order_of_the_file():
    parts = parts_of(make_distinct_rows(100), shares=(0.7, 0.1, 0.2))
    assert {name: len(part) for name, part in parts.items()} == {"test": 20, "validation": 10, "train": 70}
    assert all(part == sorted(part) for part in parts.values())
    assert parts != parts_of(make_distinct_rows(100), shares=(0.7, 0.1, 0.2), seed=1)

    rows = make_distinct_rows(100, lambda i: "rare" if i % 10 == 0 else "often")
    found = split_rows(rows, (0.6, 0.2, 0.2), stratify="label")
    counts = {name: sum(r.fields["label"] == "rare" for r in part) for name, part in found.parts.items()}
    assert counts == {"train": 6, "validation": 2, "test": 2}
    parts = parts_of(make_distinct_rows(60, lambda i: f"customer {i // 5}"), group="label")
    groups = [{n // 5 for n in part} for part in parts.values()]
    assert sum(map(len, groups)) == 12


@pytest.mark.parametrize("how", [("--folds", "4"), ("--shares", "0.5,0.25,0.25")])
def test_rows_of_one_cluster_stay_together_unless_another_group_is_named(data, how):
    rows = [
        {"text": f"{i * i} q{i}w v{i}u", "label": "x", "cluster": i // 5, "who": f"w{i % 8}"}
        for i in range(40)
    ]
    jsonl(Path("r.jsonl"), rows)
    _, _, err = data("split", "r.jsonl", *how, "--out", "own")
    assert "rows of one 'cluster' stay together; --group names another column" in err
    assert manifest("own/split")["parameters"]["group"] == "cluster"
    run_data(data, "split", "r.jsonl", *how, "--group", "who", "--out", "named")

    def n_parts_a_value(folder, column):
        parts = [read(str(file)) for file in sorted(Path(folder).glob("*.jsonl"))]
        return {
            len([p for p in parts if value in [r[column] for r in p]]) for value in {r[column] for r in rows}
        }

    assert (n_parts_a_value("own", "cluster"), n_parts_a_value("named", "who")) == ({1}, {1})
    assert n_parts_a_value("named", "cluster") != {1}


def test_questions_that_are_alike_by_a_chain_of_others_stay_together():
    words = [f"{a}{b}{a}" for a in "bcdfghjk" for b in "aeiou"]
    chain = [{"text": " ".join(words[i : i + 20]), "label": "x", "n": i} for i in range(0, 20, 2)]
    rows = rows_of(*chain, *(row.fields | {"n": row.fields["n"] + 100} for row in make_distinct_rows(20)))
    for seed in range(5):
        parts = parts_of(rows, shares=(0.5, 0.0, 0.5), seed=seed)
        assert sum(any(n < 100 for n in part) for part in parts.values()) == 1


def test_a_split_by_time_trains_on_the_past_and_drops_what_it_knows():
    rows = make_distinct_rows(20)
    dated = [
        row._replace(fields={**row.fields, "day": f"2024-05-{20 - i:02}", "who": f"c{min(i, 18)}"})
        for i, row in enumerate(rows)
    ]
    dated[0].fields["text"] = dated[19].fields["text"]
    found = split_rows(dated, (0.5, 0.25, 0.25), time="day", group="who")
    expected = {"train": list(range(10, 20)), "validation": list(range(5, 10)), "test": [1, 2, 3, 4]}
    assert {name: [r.fields["n"] for r in part] for name, part in found.parts.items()} == expected
    expected = ["r.jsonl:1: dropped, alike to a question of an earlier part of r.jsonl:20"]
    assert [str(change) for change in found.changes] == expected


@pytest.mark.parametrize("day", ["31/05/2024", "soon", "", None, "2024-13-01"])
def test_a_time_that_cannot_be_read_is_refused_at_its_line(data, day):
    rows = [{"text": f"q{i}", "label": "x", "day": "2024-05-01"} for i in range(9)]
    jsonl(Path("r.jsonl"), [*rows, {**rows[0], "day": day}])
    found = f"{day!r} in 'day', which is not a time" if day else "no time in 'day'"
    said = read_refusal(data, "split", "r.jsonl", "--time", "day", "--out", "p")
    assert f"r.jsonl:10: found {found}; expected" in said


@pytest.mark.parametrize(
    ("column", "option", "found", "step"),
    [
        ("who", ("--group", "who"), "7 rows in a group of an earlier part", "name another --group"),
        ("same", (), "7 rows alike to a question of an earlier part", "add newer rows, or --alike 1"),
    ],
)
def test_a_part_of_which_earlier_ones_know_all_is_refused_with_the_reason(data, column, option, found, step):
    texts = [f"{letter * 4} {letter * 5} {letter * 6} words" for letter in "abcdefghijklmnopqrst"]
    same = [*texts[:13], *texts[:7]] if column == "same" else texts
    rows = [
        {"text": text, "label": "x", "day": f"2024-01-{i + 1:02d}", "who": f"c{i % 7}"}
        for i, text in enumerate(same)
    ]
    jsonl(Path("r.jsonl"), rows)
    code, _, said = data("split", "r.jsonl", "--time", "day", "--out", "p", *option)
    assert code == 2
    assert f"no row for test ({found})" in said
    assert f"next: {step}" in said


def test_times_that_are_numbers_beside_dates_or_of_another_form_are_refused_once(data):
    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x", "day": day} for day in ("2024-05-01", 17)])
    said = read_refusal(data, "split", "r.jsonl", "--time", "day", "--out", "p")
    assert "r.jsonl:2: found a number in 'day'" in said

    jsonl(Path("r.jsonl"), [{"text": f"q{i}", "label": "x", "day": f"{i + 10}.05.2024"} for i in range(12)])
    said = read_refusal(data, "split", "r.jsonl", "--time", "day", "--out", "p")
    assert said.count("found") == 1
    assert "no time in any of 12 rows of 'day', such as '10.05.2024'" in said
    assert "next: --time-format %d.%m.%Y" in said


def test_the_parts_of_a_split_are_files_that_compare_reads_and_twice_the_same(data):
    jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(50)])
    run_data(data, "split", "r.jsonl", "--stratify", "label", "--out", "a", "--license", "CC0")
    run_data(data, "split", "r.jsonl", "--stratify", "label", "--out", "b", "--license", "CC0")
    written = {path.name: path.read_bytes() for path in Path("a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in Path("b").iterdir()}
    assert sorted(written) == ["split.manifest.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert [len(read(f"a/{part}.jsonl")) for part in ("train", "validation", "test")] == [32, 8, 10]
    run_data(data, "clean", "a/train.jsonl", "--out", "c.jsonl")
    assert manifest("c.jsonl")["licenses"] == ["CC0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shares", "0.8,0.1,0.2"), "add up to 1.1"), (("--shares", "0.8,0.2"), "0.8,0.1,0.1"),
        (("--shares", "most"), "numbers between commas"), (("--stratify", "lable"), "did you mean 'label'?"),
        (("--alike", "2"), "at most 1"), (("--group", "label"), "1 group of rows"),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be_made_is_refused(data, words, said):
    jsonl(Path("r.jsonl"), [{"text": f"{i * i} q{i}w v{i}u", "label": "x"} for i in range(9)])
    assert said in read_refusal(data, "split", "r.jsonl", "--out", "parts", *words)
    assert not Path("parts").exists()


def test_a_folder_that_is_not_empty_is_refused_and_parts_far_from_their_shares_are_said(data):
    file = jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(20)])
    Path("full").mkdir()
    jsonl(Path("full", "mine.jsonl"), [{}])
    assert "not empty" in read_refusal(data, "split", "r.jsonl", "--out", "full")
    assert "never changed in place" in read_refusal(data, "split", "r.jsonl", "--out", file)
    Path("empty").mkdir()
    run_data(data, "split", "r.jsonl", "--out", "empty")

    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": "x", "g": i // 10} for i in range(30)]
    jsonl(Path("r.jsonl"), rows)
    code, _, err = data("split", "r.jsonl", "--group", "g", "--out", "parts")
    assert (code, "train has 33 % of the rows, not 64 %" in err) == (0, True)


def test_only_equal_questions_stay_together_where_they_are_to_be_equal():
    texts = [" ".join(f"{c}{c}" for c in "abcdefghijkl") + " end" * n for n in range(1, 6)]
    rows = rows_of(*({"text": text, "label": "x", "n": 0} for text in (*texts, texts[0].upper())))
    with pytest.raises(UserError, match="1 group"):
        parts_of(rows, shares=(0.5, 0.0, 0.5), alike=0.2)
    found = split_rows(rows, (0.5, 0.0, 0.5), alike=1)
    assert all(len({row.where in ("r.jsonl:1", "r.jsonl:6") for row in p}) for p in found.parts.values())
    train, test = ({fold_text(row.fields["text"]) for row in found.parts[n]} for n in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    "times", [["12345678", "99999990"], ["-3", "7"], ["2024-01", "2024-02-03"], ["20240131", "20240201"]]
)
def test_times_are_numbers_months_and_days(times):
    rows = make_distinct_rows(20)
    for i, row in enumerate(rows):
        row.fields["t"] = times[i // 10]
    assert parts_of(rows, time="t", shares=(0.5, 0.0, 0.5))["train"] == list(range(10))


def test_folds_have_every_row_once_by_class_and_group_and_say_so(data):
    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": f"l{i % 2}", "who": f"w{i // 4}"} for i in range(60)]
    jsonl(Path("r.jsonl"), rows)
    for out in ("a", "b"):
        words = ("--folds", "5", "--stratify", "label", "--group", "who")
        run_data(data, "split", "r.jsonl", *words, "--out", out)
    parts = [read(f"a/fold-{i}.jsonl") for i in range(1, 6)]
    assert sorted(row["text"] for part in parts for row in part) == sorted(row["text"] for row in rows)
    assert [sum(row["label"] == "l0" for row in part) for part in parts] == [6] * 5
    assert len({row["who"] for row in rows}) == sum(len({row["who"] for row in part}) for part in parts)
    assert manifest("a/split")["parameters"]["folds"] == 5
    one, other = ({file.name: file.read_bytes() for file in Path(out).iterdir()} for out in "ab")
    assert one == other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--folds", "1"), "2 folds or more"),
        (("--folds", "5", "--shares", "0.5,0.2,0.3"), "--shares 0.500,0.200,0.300 as well"),
        (("--folds", "5", "--time", "day"), "--time day as well"),
        (("--folds", "50"), "at least 50"),
        (("--folds", "5", "--stratify", "label"), "of the class 'rare', none of them in fold-"),
    ],
)
def test_folds_that_cannot_be_are_refused(data, words, said):
    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": "rare" if i == 3 else "often"} for i in range(20)]
    jsonl(Path("r.jsonl"), rows)
    assert said in read_refusal(data, "split", "r.jsonl", "--out", "parts", *words)


@pytest.mark.parametrize("seed", range(4))
def test_classes_that_share_groups_have_their_share_in_every_fold(seed):
    """Each of 40 groups holds eight rows, and each fourth group one row of a rare class."""
    labels = ["rare" if i % 32 == 0 else "ab"[i % 2] for i in range(320)]
    named = enumerate(labels)
    rows = rows_of(*({"text": f"q{i} {i * 7}", "label": label, "who": f"c{i // 8}"} for i, label in named))
    found = split_rows(rows, stratify="label", group="who", folds=5, seed=seed)
    counts = [Counter(row.fields["label"] for row in fold) for fold in found.parts.values()]
    assert [count["rare"] for count in counts] == [2] * 5
    assert sum(count.total() for count in counts) == 320
    groups = [{row.fields["who"] for row in fold} for fold in found.parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 40


def make_grouped_rows(groups):
    """Return rows of which each group has the classes that it lists."""
    each = [{"label": label, "who": who} for who, labels in enumerate(groups) for label in labels]
    return rows_of(*({"text": f"{i * i} q{i}w v{i}u", **row} for i, row in enumerate(each)))


def can_be_parted(groups, k, *, by_class):
    """Try every way: each of k parts has a group, and by class each part has all classes."""
    classes = set().union(*groups) if by_class else set()

    def gives_all(way):
        held = [set().union(*(g for g, p in zip(groups, way, strict=True) if p == part)) for part in range(k)]
        return len(set(way)) == k and all(classes <= of_part for of_part in held)

    return any(map(gives_all, product(range(k), repeat=len(groups))))


@pytest.mark.e2e
@settings(max_examples=120)
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=2, max_size=6),
    st.sampled_from([(0.64, 0.16, 0.2), (0.5, 0.0, 0.5), 2, 3]),
    st.booleans(),
    st.integers(0, 2),
)
def test_groups_are_split_wherever_some_way_of_parting_them_is(groups, how, by_class, seed):
    shares, folds = (how, None) if isinstance(how, tuple) else (SHARES, how)
    way = SplitOptions(shares, stratify="label" if by_class else None, group="who", seed=seed, folds=folds)
    content = Rows("r.jsonl", "r", make_grouped_rows(groups))
    if not can_be_parted(groups, len(way.parts), by_class=by_class):
        with pytest.raises(UserError):
            split(content, ASKED, way)
        return
    parts = split(content, ASKED, way).parts
    assert all(parts.values())
    assert sum(len({row.fields["who"] for row in part}) for part in parts.values()) == len(groups)
    if by_class:
        expected = {frozenset().union(*groups)}
        assert {frozenset(r.fields["label"] for r in part) for part in parts.values()} == expected


def test_classes_that_no_parting_of_the_groups_gives_to_all_parts_are_named_together():
    """Each two of three groups share a class, so in two parts one of the classes is in one part alone."""
    content = Rows("r.jsonl", "r", make_grouped_rows(["ab", "bc", "ca", "dd", "dd"]))
    way = SplitOptions((0.5, 0.0, 0.5), stratify="label", group="who")
    with pytest.raises(UserError, match=r"5 groups .* no split gives each part rows of 'a', 'b', 'c'; "):
        split(content, ASKED, way)


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


def test_a_mixture_has_its_number_of_rows_and_ids_of_their_own(data):
    drawn = list_written_rows(mix(files_of(50, 100), RowMixture(weights=(0.25, 0.75), n_rows=81)))
    assert [row.fields["source"] for row in drawn] == ["a.jsonl"] * 20 + ["b.jsonl"] * 61
    assert all(row.where.startswith(row.fields["source"]) for row in drawn)
    drawn = list_written_rows(mix(files_of(3, 3), RowMixture(n_rows=40, replacement=True)))
    assert len(drawn) == 40
    assert len({row.fields["id"] for row in drawn}) == 40

    files = [make_rows_with_ids("a.jsonl", 1, 2, 3), make_rows_with_ids("b.csv", "1", "2", "4")]
    idents = [row.fields["id"] for row in list_written_rows(mix(files, RowMixture(weights=(0.5, 0.5))))]
    assert idents == [1, 2, 3, "1-2", "2-2", "4"]
    expected = ["1", "2", "4", 5, 6, 3]
    assert [row.fields["id"] for row in list_written_rows(mix(files[::-1], RowMixture()))] == expected


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


def test_a_mixture_needs_two_different_files_of_whatever_columns_and_kinds(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    said = read_refusal(data, "mix", "a.jsonl", "./a.jsonl", "--out", "n.jsonl")
    assert "found one file twice: a.jsonl, ./a.jsonl; expected two different files or more; next: " in said
    said = read_refusal(data, "mix", "a.jsonl", "--out", "n.jsonl")
    assert "found a.jsonl alone; expected two different files or more; next: name another" in said

    Path("b.csv").write_text("prompt,reference,topic\nb,y,cards\n")
    run_data(data, "mix", "a.jsonl", "b.csv", "--out", "n.csv")
    expected = ["prompt,reference,source,topic", "a,x,a.jsonl,", "b,y,b.csv,cards"]
    assert Path("n.csv").read_text().splitlines() == expected


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
            ("--rows=90", "--weights=.5,.5"),
            "b.jsonl: found 9 rows; expected 45 for its share; next: --rows 18",
        ),
        (("--replacement",), "--rows N"),
        (("--weights", "0.99,0.01", "--rows", "5"), "b.jsonl: found a share that draws no row"),
        (("--rows", "0"), "at least 1"),
        (("--column", "label"), "a.jsonl:1: found the column 'label'"),
        *((("--column", column), "--column: found") for column in ("id", "augmented_from", "", "prompt")),
    ],
)
def test_a_mixture_that_cannot_be_made_is_refused(data, words, said):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(Path(name), [row.fields for row in make_distinct_rows(9)])
    assert said in read_refusal(data, "mix", "a.jsonl", "b.jsonl", "--out", "n.jsonl", *words)


@given(st.integers(1, 30), st.integers(0, 3))
def test_a_smaller_sample_is_part_of_a_larger_one_in_the_order_of_the_file(n, seed):
    content = Rows("r", "r", make_distinct_rows(31))
    small, large = (list_written_rows(sample(content, size, None, seed)) for size in (n, n + 1))
    assert len(small) == n
    assert [row for row in large if row in small] == small
    assert large == sorted(large, key=lambda row: row.fields["n"])


def test_a_balanced_sample_has_equally_many_of_every_value_or_is_refused():
    rows = make_distinct_rows(60, lambda i: "rare" if i % 10 == 0 else "often")
    drawn = list_written_rows(sample(Rows("r", "r", rows), 10, "label", 0))
    assert sorted(row.fields["label"] for row in drawn) == ["often"] * 5 + ["rare"] * 5
    said = r"6 rows of the class 'rare'; expected at least 10 .* --rows 12 at most"
    with pytest.raises(UserError, match=said):
        sample(Rows("r", "r", rows), 20, "label", 0)
    rows = make_distinct_rows(60, lambda i: f"label {i % 4}")
    with pytest.raises(UserError, match=r"--rows: found 3 for 4 values of 'label'; .* next: --rows 4"):
        sample(Rows("r", "r", rows), 3, "label", 0)


def test_what_is_not_drawn_stands_in_the_manifest(data):
    jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(9)])
    said = run_data(data, "sample", "r.jsonl", "--rows", "4", "--out", "n.jsonl")
    assert said.startswith("9 read, 4 written")
    assert len(read("n.jsonl")) == 4
    assert {row["reason"] for row in manifest("n.jsonl")["rows"]} == {"not drawn"}
    said = read_refusal(data, "sample", "r.jsonl", "--rows", "10", "--out", "m.jsonl")
    assert "expected at least 10" in said
