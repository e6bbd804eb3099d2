"""Ratings in the store: kept as files, indexed, found again, and never in the way of other writers."""

import json
import threading
from dataclasses import replace

import duckdb
import pytest
from test_store import IDENTITY, complete, make_rows, make_run, row

from harness import store as stores
from harness.errors import HarnessError
from harness.records import Rating, SampleResult
from harness.store import index

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
    stores.save_rating(store, RATING)
    assert stores.list_ratings(store) == [RATING]
    assert stores.list_ratings(store, "support") == [RATING]
    assert stores.list_ratings(store, "other") == []
    with duckdb.connect(str(store.index), read_only=True) as db:
        assert db.execute("SELECT rater, left_side, choice FROM ratings").fetchall() == [("ann", "b", "a")]
    stores.save_rating(store, RATING)
    text = (store.folder / "ratings" / "r1.json").read_text()
    assert Rating(**json.loads(text)) == RATING
    with pytest.raises(HarnessError, match="names of single files"):
        stores.save_rating(store, replace(RATING, rating_id="../r1"))


@pytest.mark.e2e
def test_a_rating_leaves_it_to_the_next_query_to_build_the_index_which_then_holds_it(store):
    complete(store, IDENTITY, make_rows(3))
    stores.save_run(store, make_run("one", [IDENTITY.digest]))
    stores.save_rating(store, RATING)
    store.index.unlink()
    stores.save_rating(store, replace(RATING, rating_id="r2"))
    assert not store.index.exists(), "a click builds no index"
    assert stores.query(store, "SELECT run_id FROM runs").rows == [("one",)]
    assert list_indexed_ratings(store) == ["r1", "r2"]
    (store.folder / "ratings" / "torn.json").write_text('{"rating_id": "r3"')
    counts = stores.reindex(store)
    assert (
        list_indexed_ratings(store)
        == [rating.rating_id for rating in stores.list_ratings(store)]
        == ["r1", "r2"]
    )
    assert [said.partition(":")[0] for said in counts.skipped] == [
        str(store.folder / "ratings" / "torn.json")
    ]


@pytest.mark.e2e
def test_raters_of_one_process_and_readers_beside_them_lose_nothing(store):
    stores.reindex(store)
    stores.save_rating(store, RATING)
    failed: list[BaseException] = []

    def rate(name):
        try:
            for i in range(5):
                stores.save_rating(store, replace(RATING, rating_id=f"{name}-{i}", rater=name))
                assert stores.list_ratings(store)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=rate, args=(name,)) for name in ("ann", "bob", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(stores.list_ratings(store)) == len(list_indexed_ratings(store)) == 16


@pytest.mark.e2e
def test_a_rating_whose_index_is_held_is_kept_as_a_file_until_the_next(store):
    stores.reindex(store)
    stores.save_rating(store, RATING)
    with index.writer_lock(store, 1):
        stores.save_rating(store, replace(RATING, rating_id="r2"))
    assert list_indexed_ratings(store) == ["r1"]
    assert [rating.rating_id for rating in stores.list_ratings(store)] == ["r1", "r2"]
    stores.save_rating(store, replace(RATING, rating_id="r3"))
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
        asked = [row(i, prompt=f"Question {i}?", prompt_digest=f"{identity.task} {i}") for i in range(4)]
        complete(store, identity, [*asked, row(4, prompt="Question 1?", references=("another",))])
    once, again = (stores.document_digests(store, one.digest) for one in (IDENTITY, worded))
    assert once == again
    assert len(set(once.values())) == 5
    assert stores.document_digests(store, "absent") == {}


def test_rows_for_a_comparison_hold_the_scores_of_one_metric_and_no_texts(store_and_sample):
    at, sample = store_and_sample
    found = stores.read_scores(at, IDENTITY.digest, "exact_match")
    names = ("task", "split", "example_id", "position", "status", "cluster", "slice", "weight")
    kept = [{name: getattr(r, name) for name in names} for r in sample]
    empty = {"text": "", "prompt": "", "references": ()}
    expected = [
        SampleResult(**one, **empty, parts={"exact_match": r.parts["exact_match"]})
        for one, r in zip(kept, sample, strict=True)
    ]
    assert found == expected
    with pytest.raises(HarnessError, match="absent"):
        stores.read_scores(at, "absent", "exact_match")


def test_statuses_and_slices_are_listed_and_a_few_items_read_with_their_texts(store_and_sample):
    at, sample = store_and_sample
    found = stores.read_samples(at, IDENTITY.digest, ["item-00007", "item-00003", "nobody"])
    assert found == {"item-00007": sample[7], "item-00003": sample[3]}
    assert stores.read_samples(at, "absent", ["item-00007"]) == {}
    at, _ = store_and_sample
    assert stores.count_statuses(at, [IDENTITY.digest, "absent"]) == {
        IDENTITY.digest: {"ok": 38, "truncated": 2}
    }
    at, sample = store_and_sample
    assert stores.list_slices(at, [IDENTITY.digest, "absent"]) == sorted({r.slice for r in sample} - {""})


@pytest.mark.parametrize(
    ("wanted", "n"),
    [
        ({}, 40), ({"text": "éTÉ"}, 1), ({"text": "00012"}, 1), ({"text": "question"}, 40), ({"text": "%"}, 0),
        ({"status": "truncated"}, 2), ({"ids": ["item-00003", "absent"]}, 1), ({"ids": []}, 0),
        ({"slice": "nowhere"}, 0),
    ],
)  # fmt: skip
def test_items_are_found_by_text_status_and_id_and_read_a_page_at_a_time(store_and_sample, wanted, n):
    at, sample = store_and_sample
    digests = [IDENTITY.digest, "absent"]
    found = stores.read_answers(at, digests, "exact_match", stores.ItemFilter(**wanted), n=5)
    assert (found[0], len(found[1])) == (n, min(n, 5))
    if n == 40:
        _, (later,) = stores.read_answers(
            at, digests, "exact_match", stores.ItemFilter(**wanted), offset=7, n=1
        )
        row = sample[7]
        parts = row.parts["exact_match"]
        assert (later.id, later.question, tuple(later.references)) == (
            row.example_id,
            row.prompt,
            row.references,
        )
        assert later.answers == {
            IDENTITY.digest: (row.text, row.status, None if parts is None else list(parts))
        }


def test_items_that_differ_are_those_of_another_or_an_unknown_digest(store):
    other = replace(IDENTITY, weights_digest="other")
    for identity, digests in ((IDENTITY, "abc"), (other, "abd")):
        sample = [row(i, output_digest=digest) for i, digest in enumerate([*digests, ""])]
        complete(store, identity, sample)
    wanted = [row(2).example_id, row(3).example_id]
    assert stores.list_differing_items(store, IDENTITY.digest, other.digest) == wanted
    assert stores.list_differing_items(store, IDENTITY.digest, "absent") == []
