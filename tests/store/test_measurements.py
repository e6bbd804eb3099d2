"""The store's other contents: ratings, readable items, indexes and reports, rebuilt when outdated."""

import json
import threading
from dataclasses import replace

import duckdb
import pytest
from test_store import IDENTITY, OTHER, complete, list_indexed_runs, make_rows, make_run, row, save_two_runs

import harness
from harness import report
from harness import store as stores
from harness.errors import HarnessError, UserError
from harness.records import Rating
from harness.store import TABLES, hold_file, ingest

RATING = Rating(
    "r1", "ann", "2026-01-01T10:00:00+00:00", "support", "test", "item-00001",
    run_a="prompt-0", run_b="lora-0", rows_a="aaa", rows_b="bbb", left="b", choice="a", seconds=4.5,
)  # fmt: skip


def list_indexed_ratings(store):
    with duckdb.connect(str(store.index), read_only=True) as db:
        return [name for (name,) in db.execute("SELECT rating_id FROM ratings ORDER BY ALL").fetchall()]


def test_a_rating_is_found_as_it_was_given_one_line_of_json(store):
    assert stores.list_ratings(store) == []
    stores.reindex(store)
    stores.save_ratings(store, [RATING])
    assert stores.list_ratings(store) == [RATING]
    assert stores.list_ratings(store, "support") == [RATING]
    assert stores.list_ratings(store, "other") == []
    with duckdb.connect(str(store.index), read_only=True) as db:
        assert db.execute("SELECT rater, left_side, choice FROM ratings").fetchall() == [("ann", "b", "a")]
    stores.save_ratings(store, [RATING])
    text = (store.folder / "ratings" / "r1.json").read_text()
    assert Rating(**json.loads(text)) == RATING
    with pytest.raises(HarnessError, match="names of single files"):
        stores.save_ratings(store, [replace(RATING, rating_id="../r1")])


@pytest.mark.e2e
def test_raters_of_one_process_and_readers_beside_them_lose_nothing(store):
    stores.reindex(store)
    stores.save_ratings(store, [RATING])
    failures: list[BaseException] = []

    def rate(name):
        try:
            for i in range(5):
                stores.save_ratings(store, [replace(RATING, rating_id=f"{name}-{i}", rater=name)])
                assert stores.list_ratings(store)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=rate, args=(name,)) for name in ("ann", "bob", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(stores.list_ratings(store)) == len(list_indexed_ratings(store)) == 16


@pytest.mark.e2e
def test_a_rating_whose_index_is_held_is_kept_as_a_file_until_the_next(store):
    stores.reindex(store)
    stores.save_ratings(store, [RATING])
    with hold_file(store.folder / ".lock", TimeoutError(), 1):
        stores.save_ratings(store, [replace(RATING, rating_id="r2")])
    assert list_indexed_ratings(store) == ["r1"]
    assert [rating.rating_id for rating in stores.list_ratings(store)] == ["r1", "r2"]
    stores.save_ratings(store, [replace(RATING, rating_id="r3")])
    assert list_indexed_ratings(store) == ["r1", "r2", "r3"]


EVIL = "<b>x</b> \x1b[31m Été"


@pytest.fixture
def store_and_sample(store):
    sample = [
        row(i, status="truncated" if i < 2 else "ok", text=EVIL if i == 7 else f"answer {i}", weight=1.0)
        for i in range(40)
    ]
    complete(store, IDENTITY, sample)
    return store, sample


def test_rows_that_ask_the_same_have_one_digest_of_the_document_however_the_prompt_is_worded(store):
    worded = replace(IDENTITY, task="plain", template_digest="none")
    for identity in (IDENTITY, worded):
        questions = [row(i, prompt=f"Question {i}?", prompt_digest=f"{identity.task} {i}") for i in range(4)]
        complete(store, identity, [*questions, row(4, prompt="Question 1?", references=("another",))])
    documents = stores.document_digests(store, [IDENTITY.digest, worded.digest, "absent"])
    first, second = documents.values()
    assert first == second
    assert len(set(first.values())) == 5


def test_statuses_and_slices_are_listed_and_a_few_items_read_with_their_texts(store_and_sample):
    store, sample = store_and_sample
    samples = stores.read_samples(store, IDENTITY.digest, ["item-00007", "item-00003", "nobody"])
    assert samples == {"item-00007": sample[7], "item-00003": sample[3]}
    assert stores.read_samples(store, "absent", ["item-00007"]) == {}
    statuses = stores.count_statuses(store, [IDENTITY.digest, "absent"])
    assert statuses == {IDENTITY.digest: {"ok": 38, "truncated": 2}}
    assert stores.list_slices(store, [IDENTITY.digest, "absent"]) == sorted({r.slice for r in sample} - {""})


FILTERS = [
    ({}, 40), ({"text": "éTÉ"}, 1), ({"text": "00012"}, 1), ({"text": "question"}, 40), ({"text": "%"}, 0),
    ({"status": "truncated"}, 2), ({"ids": ["item-00003", "absent"]}, 1), ({"ids": []}, 0),
    ({"slice": "nowhere"}, 0),
]  # fmt: skip


def test_items_are_found_by_text_status_and_id_and_read_a_page_at_a_time(store_and_sample):
    store, sample = store_and_sample
    query_args = (store, [IDENTITY.digest, "absent"], "exact_match")
    for filters, n in FILTERS:
        page = stores.read_answers(*query_args, stores.ItemFilter(**filters), n=5)
        assert (page[0], len(page[1])) == (n, min(n, 5)), filters
    _, (later_item,) = stores.read_answers(*query_args, stores.ItemFilter(), offset=7, n=1)
    row = sample[7]
    expected = (row.example_id, row.prompt, row.references)
    assert (later_item.id, later_item.question, tuple(later_item.references)) == expected
    assert later_item.answers == {IDENTITY.digest: (row.text, row.status, list(row.parts["exact_match"]))}


def test_items_that_differ_are_those_of_another_or_an_unknown_digest(store):
    other_identity = replace(IDENTITY, weights_digest="other")
    for identity, digests in ((IDENTITY, "abc"), (other_identity, "abd")):
        sample = [row(i, output_digest=digest) for i, digest in enumerate([*digests, ""])]
        complete(store, identity, sample)
    expected_ids = [row(2).example_id, row(3).example_id]
    assert stores.list_differing_items(store, IDENTITY.digest, other_identity.digest) == expected_ids
    assert stores.list_differing_items(store, IDENTITY.digest, "absent") == []


@pytest.fixture
def old_store(store):
    complete(store, IDENTITY, make_rows(3))
    stores.save_run(store, make_run("a", [IDENTITY.digest]))
    store.index.unlink()
    with duckdb.connect(str(store.index)) as db:
        db.execute(f"CREATE TABLE meta AS SELECT {ingest.VERSION - 1} AS version")
    return store


def test_a_run_is_saved_beside_an_old_index_which_is_then_a_new_one(old_store):
    stores.save_run(old_store, make_run("b", []))
    assert list_indexed_runs(old_store) == ["a", "b"]
    with duckdb.connect(str(old_store.index), read_only=True) as db:
        assert db.execute("SELECT version FROM meta").fetchall() == [(ingest.VERSION,)]


@pytest.mark.parametrize("changed", ["written_by", "tables"])
def test_an_index_of_another_version_of_harness_or_of_other_tables_is_built_anew(old_store, changed):
    stores.reindex(old_store)
    with duckdb.connect(str(old_store.index)) as db:
        db.execute(f"UPDATE meta SET {changed} = '0.0.1'")
        db.execute("DROP VIEW runs")
    assert stores.query(old_store, "SELECT run_id FROM runs").rows == [("a",)]


def test_a_damaged_first_file_of_rows_keeps_nobody_from_saving_a_run_or_querying_the_others(store):
    digests = []
    for task in ("sums", "facts"):
        identity = replace(IDENTITY, task=task)
        complete(store, identity, make_rows(3))
        digests.append(identity.digest)
    first_digest, second_digest = sorted(digests)
    store.parquet(first_digest).write_bytes(store.parquet(first_digest).read_bytes()[:40])
    stores.save_run(store, make_run("a", [second_digest]))
    assert list_indexed_runs(store) == ["a"]
    expected = [("a", 3)]
    assert stores.query(store, "SELECT DISTINCT run_id, count(*) FROM samples GROUP BY ALL").rows == expected


def test_a_frame_has_the_documented_columns_and_a_row_for_each_of_the_table(store):
    save_two_runs(store)
    columns = {table.name: [column.name for column in table.columns] for table in TABLES}
    for name, n in {"runs": 2, "scores": 145, "samples": 145, "deltas": 0, "verdicts": 0}.items():
        frame = getattr(harness.frames, name)(store.folder)
        assert (list(frame.columns), len(frame)) == (columns[name], n)


@pytest.fixture
def two_sets(store):
    for identity, n in ((IDENTITY, 3), (OTHER, 5)):
        write(store, identity, n)
    return store


def write(store, identity, n):
    stores.append_block(store, identity, 0, [row(i, prompt=f"question {i} of {n}") for i in range(n)])
    stores.complete_rows(store, identity, n)


def ids(n):
    return [row(i).example_id for i in range(n)]


def test_sets_whose_ids_were_read_together_are_complete_and_one_that_grows_is_seen_to(two_sets):
    other_identity = replace(IDENTITY, task="other")
    stores.read_ids(two_sets, [IDENTITY.digest, OTHER.digest, other_identity.digest])
    assert stores.has_rows(two_sets, IDENTITY, ids(3))
    assert stores.has_rows(two_sets, OTHER, ids(5))
    assert not stores.has_rows(two_sets, IDENTITY, ids(4))
    assert not stores.has_rows(two_sets, other_identity, ids(1))
    write(two_sets, IDENTITY, 4)
    assert stores.has_rows(two_sets, IDENTITY, ids(4))


@pytest.fixture
def kept_report(finished_run, tmp_path):
    report.write(finished_run[1], tmp_path)
    (path,) = report.kept_reports(tmp_path)
    return path


def test_a_report_read_back_is_the_same(finished_run, kept_report):
    original, read_report = finished_run[1], report.read(kept_report)
    assert report.to_json(read_report) == report.to_json(original)
    pages = [report.markdown(report.experiment_document(result)) for result in (original, read_report)]
    assert pages[0] == pages[1]
    assert read_report.policy == original.policy


def test_a_report_of_another_version_is_read_as_far_as_it_goes(finished_run, kept_report):
    content = json.loads(kept_report.read_text())
    content["later"] = content["facts"][0]["later"] = {"unknown": 1}
    del content["policy"]
    kept_report.write_text(json.dumps(content))
    read_report = report.read(kept_report)
    assert read_report.policy is None
    assert [fact.label for fact in read_report.facts] == [fact.label for fact in finished_run[1].facts]


@pytest.mark.parametrize("text", ["", "[]", '{"experiment": "x", "facts": 3}'])
def test_what_is_no_report_is_refused_and_not_listed(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="no report"):
        report.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert report.kept_reports(tmp_path) == report.kept_reports(tmp_path / "absent") == []
