"""What is remembered of row sets' files: read together once, and again where another file lies there."""

from dataclasses import replace

import pytest
from test_store import IDENTITY, OTHER, row

from harness import store as stores
from harness.store.layout import Store
from harness.store.row_files import FileMemo


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "runs")
    for identity, n in ((IDENTITY, 3), (OTHER, 5)):
        write(made, identity, n)
    return made


def write(store, identity, n):
    stores.append_block(store, identity, 0, [row(i, prompt=f"question {i} of {n}") for i in range(n)])
    stores.complete_rows(store, identity, n)


def ids(n):
    return [row(i).example_id for i in range(n)]


def test_the_files_of_several_sets_are_read_at_once_and_each_is_read_again_only_when_it_changes(store):
    alone, together = [], []

    def read(path):
        alone.append(path.parent.name)
        return path.stat().st_size

    def read_all(paths):
        together.append(set(paths))
        return {name: path.stat().st_size for name, path in paths.items()}

    memo = FileMemo(read, read_all)
    digests = [IDENTITY.digest, OTHER.digest, "missing"]
    memo.prepare(store, digests)
    memo.prepare(store, digests)
    sizes = [memo.get(store.parquet(digest)) for digest in digests[:2]]
    assert (together, alone) == ([set(digests[:2])], [])
    write(store, IDENTITY, 7)
    assert memo.get(store.parquet(IDENTITY.digest)) > sizes[0]
    assert alone == [IDENTITY.digest]


def test_sets_whose_ids_were_read_together_are_complete_and_one_that_grows_is_seen_to(store):
    longer = replace(IDENTITY, task="other")
    stores.read_ids(store, [IDENTITY.digest, OTHER.digest, longer.digest])
    assert stores.has_rows(store, IDENTITY, ids(3))
    assert stores.has_rows(store, OTHER, ids(5))
    assert not stores.has_rows(store, IDENTITY, ids(4))
    assert not stores.has_rows(store, longer, ids(1))
    write(store, IDENTITY, 4)
    assert stores.has_rows(store, IDENTITY, ids(4))


def test_a_damaged_file_among_others_has_no_ids_and_does_not_hide_those_of_the_others(store):
    path = store.parquet(OTHER.digest)
    path.write_bytes(path.read_bytes()[:-20])
    stores.read_ids(store, [IDENTITY.digest, OTHER.digest])
    assert stores.has_rows(store, IDENTITY, ids(3))
    assert not stores.has_rows(store, OTHER, ids(5))
