"""The store: rows come back unchanged, kills and full disks break nothing, the index can be rebuilt."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import store as stores
from harness.errors import HarnessError, UserError
from harness.records import BLOCK, RowsIdentity, Sample, SampleResult, run_record
from harness.store import index, ingest, rows
from harness.store.layout import Store, clear_errors, hold_file, rename_when_whole
from harness.store.parquet_files import COLUMNS, SAMPLE_COLUMNS, note_checksum

ROOT = Path(__file__).parents[2]
IDENTITY = RowsIdentity("w", "t", "support", "v", "test", "p", "generate", "fp32", "hf", "l", "cpu")
OTHER = replace(IDENTITY, weights_digest="other")


def row(position, **changes):
    values = {
        "task": "support", "split": "test", "example_id": f"item-{position:05d}", "position": position,
        "status": "ok", "text": f"answer {position}", "prompt": "question", "references": ("answer",),
        "parts": {"exact_match": (float(position % 2),)},
    }  # fmt: skip
    return SampleResult(**values | changes)


def make_rows(n, **changes):
    return [row(position, **changes) for position in range(n)]


def append(store, identity, sample, blocks=None):
    for i in range((len(sample) + BLOCK - 1) // BLOCK) if blocks is None else blocks:
        stores.append_block(store, identity, i, sample[BLOCK * i : BLOCK * (i + 1)])


def complete(store, identity, sample):
    append(store, identity, sample)
    stores.complete_rows(store, identity, len(sample))


def make_run(run_id, digests, **changes):
    values = {
        "run_id": run_id, "experiment": "desk", "candidate": "lora", "method": "lora",
        "prompting": "zero_shot", "answer": "generate", "seed": 0, "base_model": "smollm2-135m",
        "weights_digest": f"weights of {run_id}", "base_digest": "b", "state": "done",
        "created": "2025-01-01T00:00:00+00:00",
        "rows": {f"task-{i}/test": digest for i, digest in enumerate(digests)},
        "recipe": {"method": "lora", "params": {"r": 8, "rate": 2e-4, "modules": ["q", "v"]}},
        "training": {"loss": [[1, 2.5], [2, None]], "fit_key": f"fit-{run_id}"}, "latency": {"p50_s": 0.25},
        "provenance": {"git_sha": None},
    }  # fmt: skip
    return run_record(values | changes)


def save_two_runs(store):
    """Save a and b, which share the rows of IDENTITY; the rows of OTHER are b's alone."""
    complete(store, IDENTITY, make_rows(70))
    complete(store, OTHER, make_rows(5))
    stores.save_run(store, make_run("a", [IDENTITY.digest]))
    stores.save_run(store, make_run("b", [IDENTITY.digest, OTHER.digest]))


def contents(store):
    with duckdb.connect(str(store.index), read_only=True) as db:
        query = "SELECT schema_name, table_name FROM duckdb_tables() ORDER BY 2"
        return {
            name: sorted(map(repr, db.execute(f"FROM {schema}.{name}").fetchall()))
            for schema, name in db.execute(query).fetchall()
        }


def list_indexed_runs(store):
    with duckdb.connect(str(store.index), read_only=True) as db:
        return [run_id for (run_id,) in db.execute("SELECT run_id FROM runs ORDER BY ALL").fetchall()]


def count(store, table):
    return len(contents(store)[table])


def leftovers(store):
    return [*(store.folder / ".unfinished").glob("*")]


def python(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 2**40)
STRINGS = st.lists(TEXT, max_size=3).map(tuple)
PARTS = st.dictionaries(TEXT, st.none() | st.lists(NUMBER, max_size=3).map(tuple), max_size=3)
BY_COLUMN = {
    "VARCHAR": TEXT, "VARCHAR[]": STRINGS, "DOUBLE": NUMBER, "BIGINT": COUNT, "BOOLEAN": st.booleans(),
    "MAP(VARCHAR, DOUBLE[])": PARTS,
}  # fmt: skip
UNKNOWN = {f.name for f in fields(SampleResult) if f.default is None}
SAMPLES = st.builds(
    SampleResult,
    **{
        name: BY_COLUMN[kind] | (st.none() if name in UNKNOWN else st.nothing())
        for name, kind in COLUMNS.items()
    },
)


def test_every_field_of_a_row_has_a_column_or_lies_beside_it():
    assert [f.name for f in fields(SampleResult)] == [*COLUMNS, "samples", "fold"]
    assert {f.name for f in fields(Sample)} | {"example_id"} == SAMPLE_COLUMNS.keys()


def test_drawn_answers_lie_beside_their_rows_and_a_damaged_file_asks_for_them_again(store):
    identity = replace(IDENTITY, decoding="drawn")
    samples = tuple(Sample(k, f"answer\u2028 {k}", "ok", {"m": (0.5,), "n": None}) for k in range(3))
    block = [replace(row(i), samples=samples) for i in range(2)]
    ids = [r.example_id for r in block]
    rows.append_block(store, identity, 0, block)
    assert rows.read_blocks(store, identity, ids) == {0: block}
    rows.complete_rows(store, identity, 2)
    assert rows.read_drawn(store, identity.digest) == dict.fromkeys(ids, samples)
    assert rows.has_rows(store, identity, ids)
    path = store.rows(identity.digest) / "samples" / "00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer", b"ANSWER"))
    assert not rows.has_rows(store, identity, ids)
    assert rows.list_stored_blocks(store, identity, ids) == set()


@pytest.mark.e2e
@settings(max_examples=40)
@given(st.lists(SAMPLES, min_size=1, max_size=6))
def test_rows_come_back_exactly(tmp_path_factory, sample):
    store = Store(tmp_path_factory.mktemp("runs"))
    numbered = [replace(r, position=i) for i, r in enumerate(sample)]
    append(store, IDENTITY, numbered)
    stores.complete_rows(store, IDENTITY, len(numbered))
    assert stores.read_rows(store, IDENTITY.digest) == numbered


@pytest.mark.parametrize("name", ["a[b]c", "it's"])
def test_a_folder_may_have_a_name_that_duckdb_takes_for_a_pattern(tmp_path, name):
    store = Store(tmp_path / name)
    sample = make_rows(66)
    complete(store, IDENTITY, sample)
    stores.save_run(store, make_run("a", [IDENTITY.digest]))
    assert stores.read_rows(store, IDENTITY.digest) == sample


def test_complete_blocks_of_a_set_are_removed_and_no_others(store):
    complete(store, IDENTITY, make_rows(2 * BLOCK + 2))
    names = {"checksums.json", "identity.json", "rows.parquet"}
    assert {p.name for p in store.rows(IDENTITY.digest).iterdir()} == names
    assert leftovers(store) == []
    for identity in (IDENTITY, OTHER):
        complete(store, identity, make_rows(BLOCK))
        append(store, identity, make_rows(BLOCK))
    stores.remove_merged_blocks(store, OTHER.digest)
    assert (store.rows(IDENTITY.digest) / "blocks").exists()
    assert not (store.rows(OTHER.digest) / "blocks").exists()

    complete(store, IDENTITY, make_rows(BLOCK + 3))
    append(store, IDENTITY, make_rows(2 * BLOCK))  # by another process, which was ended: the second is longer
    append(store, OTHER, make_rows(BLOCK))
    stores.remove_merged_blocks(store)
    assert [path.name for path in (store.rows(IDENTITY.digest) / "blocks").iterdir()] == ["00001.jsonl"]
    assert stores.list_stored_blocks(store, OTHER) == {0}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_row(store, value):
    for field in ({"gold_logprob": value}, {"compute_s": value}, {"parts": {"f1": (value,)}}):
        with pytest.raises(ValueError, match=r"item-00000.*NaN"):
            stores.append_block(store, IDENTITY, 0, [row(0, **field)])
    assert stores.list_stored_blocks(store, IDENTITY) == set()


@pytest.mark.parametrize("positions", [[], [1], range(BLOCK + 1)])
def test_a_block_holds_its_own_positions_in_order(store, positions):
    with pytest.raises(ValueError, match="block 0 holds positions from 0"):
        stores.append_block(store, IDENTITY, 0, [row(p) for p in positions])


# Interrupted work


def test_finished_blocks_are_not_computed_again_and_a_missing_one_is_named(store):
    append(store, IDENTITY, make_rows(3 * BLOCK), blocks=[0, 2])
    assert stores.list_stored_blocks(store, IDENTITY) == {0, 2}
    with pytest.raises(HarnessError, match="block 1 is missing"):
        stores.complete_rows(store, IDENTITY, 192)
    assert stores.list_stored_blocks(store, IDENTITY) == {0, 2}
    assert not store.parquet(IDENTITY.digest).exists()


@pytest.mark.parametrize("content", [b'{"task": "sup', b"\xff\xfe\n"])
def test_a_damaged_block_counts_as_not_finished_and_can_be_written_again(store, content):
    sample = make_rows(2 * BLOCK + 2)
    append(store, IDENTITY, sample)
    damaged = store.rows(IDENTITY.digest) / "blocks" / "00001.jsonl"
    damaged.write_bytes(content)
    assert stores.list_stored_blocks(store, IDENTITY) == {0, 2}
    append(store, IDENTITY, sample, blocks=[1])
    stores.complete_rows(store, IDENTITY, 2 * BLOCK + 2)
    assert stores.read_rows(store, IDENTITY.digest) == sample


def test_a_block_that_was_cut_between_two_lines_is_not_finished_for_these_items(store):
    sample = make_rows(BLOCK)
    append(store, IDENTITY, sample)
    block = store.rows(IDENTITY.digest) / "blocks" / "00000.jsonl"
    block.write_text("".join(block.read_text("utf-8").splitlines(keepends=True)[:10]), "utf-8")
    assert stores.list_stored_blocks(store, IDENTITY, [r.example_id for r in sample]) == set()


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from harness.store.layout import Store, rename_when_whole
with rename_when_whole(Store(Path(sys.argv[1])), Path(sys.argv[2])) as part:
    part.write_text('half a li')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_or_fails_leaves_what_was_there(store):
    stores.write_whole(store, store.folder / "x.json", "old")

    def fail():
        with rename_when_whole(store, store.folder / "x.json") as new_file:
            new_file.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (store.folder / "x.json").read_text() == "old"
    assert leftovers(store) == []
    append(store, IDENTITY, make_rows(BLOCK))
    block = store.rows(IDENTITY.digest) / "blocks" / "00001.jsonl"
    assert python(KILLED_WHILE_WRITING, store.folder, block).wait() == -9
    assert not block.exists()
    assert stores.list_stored_blocks(store, IDENTITY) == {0}
    assert len(leftovers(store)) == 1


# Reuse and extension


def test_complete_rows_are_had_for_their_items_and_for_a_prefix_of_them(store):
    sample = make_rows(BLOCK)
    append(store, IDENTITY, sample)
    assert not stores.has_rows(store, IDENTITY, [r.example_id for r in sample])
    sample = make_rows(2 * BLOCK + 2)
    complete(store, IDENTITY, sample)
    ids = [r.example_id for r in sample]
    assert stores.has_rows(store, IDENTITY, ids)
    assert stores.has_rows(store, IDENTITY, ids[:BLOCK])
    assert not stores.has_rows(store, IDENTITY, [*ids, "one more"])
    assert not stores.has_rows(store, IDENTITY, ids[::-1])
    assert not stores.has_rows(store, OTHER, ids)


def test_a_lower_limit_reads_fewer_rows_and_a_lifted_one_keeps_those_there_but_a_block_cut_short(store):
    first = make_rows(2 * BLOCK, text="first")
    complete(store, IDENTITY, first)
    ids = [r.example_id for r in make_rows(3 * BLOCK + 8)]
    assert stores.list_stored_blocks(store, IDENTITY, ids) == {0, 1}
    later = make_rows(3 * BLOCK + 8, text="later")
    append(store, IDENTITY, later, blocks=[2, 3])
    stores.complete_rows(store, IDENTITY, 200)
    assert stores.read_rows(store, IDENTITY.digest) == first + later[2 * BLOCK :]

    sample = make_rows(2 * BLOCK + 2)
    complete(store, IDENTITY, sample)
    ids = [r.example_id for r in sample[: BLOCK + 36]]
    assert stores.list_stored_blocks(store, IDENTITY, ids) == {0, 1}
    stores.complete_rows(store, IDENTITY, 100)
    assert stores.read_rows(store, IDENTITY.digest, 100) == sample[:100]
    assert stores.read_rows(store, IDENTITY.digest) == sample


@pytest.mark.parametrize("noted", [True, False], ids=["", "written before checksums were kept"])
def test_a_file_whose_answers_are_damaged_inside_is_not_had_and_computed_again(store, noted):
    sample = [row(n, text=f"{n:x}" * 40) for n in range(300)]
    complete(store, IDENTITY, sample)
    path = store.parquet(IDENTITY.digest)
    if not noted:
        path.with_name("checksums.json").unlink()
    ids = [r.example_id for r in sample]
    assert stores.has_rows(store, IDENTITY, ids)
    with duckdb.connect() as db:
        query = "SELECT min(data_page_offset), sum(total_compressed_size) FROM parquet_metadata(?) "
        ((start, size),) = db.execute(query + "WHERE path_in_schema = ?", [str(path), "text"]).fetchall()
    content = path.read_bytes()
    path.write_bytes(content[: start + 30] + b"\xff" * (size - 30) + content[start + size :])
    assert not stores.has_rows(store, IDENTITY, ids)
    assert stores.list_stored_blocks(store, IDENTITY) == set()
    with pytest.raises(HarnessError, match="of other bytes than were written" if noted else "rows"):
        stores.read_rows(store, IDENTITY.digest)
    complete(store, IDENTITY, sample)
    assert stores.has_rows(store, IDENTITY, ids)
    assert stores.read_rows(store, IDENTITY.digest) == sample


def test_rows_that_were_changed_so_that_no_reader_stumbles_are_not_had(store):
    sample = [row(0, prompt="unmistakable")]
    complete(store, IDENTITY, sample)
    path = store.parquet(IDENTITY.digest)
    path.write_bytes(path.read_bytes().replace(b"unmistakable", b"unmistakably"))
    with pytest.raises(HarnessError, match="of other bytes than were written"):
        stores.read_rows(store, IDENTITY.digest)
    assert not stores.has_rows(store, IDENTITY, ["item-00000"])


def test_rows_whose_replacing_is_ended_before_the_new_file_has_its_name_are_had(store):
    sample = make_rows(BLOCK)
    complete(store, IDENTITY, sample)
    path = store.parquet(IDENTITY.digest)
    (path.parent / "new").write_text("what would have replaced it")
    note_checksum(store, path, path.parent / "new")
    assert stores.has_rows(store, IDENTITY, [r.example_id for r in sample])


def test_what_cannot_be_read_is_named(store):
    with pytest.raises(HarnessError, match="no complete rows 0123"):
        stores.read_rows(store, "0123")
    with pytest.raises(HarnessError, match="no complete rows 0123"):
        stores.read_identity(store, "0123")
    complete(store, IDENTITY, make_rows(5))
    complete(store, OTHER, make_rows(5))
    path = store.parquet(OTHER.digest)
    path.write_bytes(path.read_bytes()[:100])
    assert stores.list_stored_blocks(store, OTHER) == set()
    with pytest.raises(HarnessError, match=f"rows {OTHER.digest}.*next: harness compare"):
        stores.read_rows(store, OTHER.digest)
    with pytest.raises(HarnessError, match=f"rows {OTHER.digest}.*next: harness compare"):
        stores.read_many(store, [IDENTITY.digest, OTHER.digest])
    with pytest.raises(HarnessError, match="no complete rows 0123"):
        stores.read_many(store, [IDENTITY.digest, "0123"])


# Runs


def test_a_run_comes_back_exactly_from_the_index_and_from_its_file(store):
    complete(store, IDENTITY, make_rows(3))
    run = make_run("a", [IDENTITY.digest])
    stores.save_run(store, run)
    assert stores.get_run(store, "a") == run
    assert run_record(json.loads((store.folder / "a" / "run.json").read_text("utf-8"))) == run


def test_a_store_without_runs_lists_none_and_an_unknown_run_gets_the_nearest_name(store):
    assert stores.list_runs(store) == []
    assert not store.folder.exists()
    with pytest.raises(UserError, match="make one"):
        stores.remove_run(store, "a")
    stores.save_run(store, make_run("lora-s0-1a2b", []))
    with pytest.raises(UserError, match="did you mean 'lora-s0-1a2b'"):
        stores.get_run(store, "lora-s0-1a2c")


def test_a_run_saved_again_replaces_itself_and_rows_that_have_grown_are_ingested_anew(store):
    complete(store, IDENTITY, make_rows(3))
    complete(store, OTHER, make_rows(4))
    stores.save_run(store, make_run("a", [IDENTITY.digest], state="failed", error="killed"))
    stores.save_run(store, make_run("a", [OTHER.digest]))
    assert [(run.state, run.error) for run in stores.list_runs(store)] == [("done", "")]
    assert count(store, "scores") == 4
    complete(store, OTHER, make_rows(100))
    stores.save_run(store, make_run("b", [OTHER.digest]))
    assert (count(store, "rowsets"), count(store, "scores")) == (1, 100)


def test_a_run_that_holds_nan_or_rows_that_are_not_complete_is_not_saved(store):
    append(store, IDENTITY, make_rows(BLOCK))
    with pytest.raises(HarnessError, match=f"no complete rows {IDENTITY.digest}"):
        stores.save_run(store, make_run("a", [IDENTITY.digest]))
    assert not (store.folder / "a").exists()
    with pytest.raises(ValueError, match="not JSON compliant"):
        stores.save_run(store, make_run("a", [], latency={"p50_s": float("nan")}))
    assert not (store.folder / "a").exists()


@pytest.mark.parametrize("run_id", ["rows", "..", "a/b"])
def test_a_run_id_that_would_leave_its_folder_is_refused(store, run_id):
    with pytest.raises((ValueError, UserError), match=r"cannot be its own|the name of one file"):
        stores.save_run(store, make_run(run_id, []))


# The index


@pytest.mark.e2e
def test_rows_that_two_runs_share_are_ingested_once_and_reindex_finds_the_same(store):
    save_two_runs(store)
    assert (count(store, "rowsets"), count(store, "scores")) == (2, 75)
    before = contents(store)
    store.index.unlink()
    assert stores.reindex(store)._asdict() == {"runs": 2, "row_sets": 2, "rows": 75, "skipped": ()}
    assert contents(store) == before
    assert leftovers(store) == []
    built = store.index.stat().st_ino
    assert index.update(store)
    assert store.index.stat().st_ino == built
    store.index.unlink()  # a missing index is built by the next query or write
    assert stores.query(store, "SELECT run_id FROM runs ORDER BY ALL").rows == [("a",), ("b",)]
    assert list_indexed_runs(store) == ["a", "b"]
    store.index.unlink()
    stores.save_run(store, make_run("c", []))
    assert list_indexed_runs(store) == ["a", "b", "c"]
    assert count(store, "scores") == 75


@pytest.mark.e2e
def test_an_index_whose_building_is_ended_is_missing_and_not_partial(store):
    save_two_runs(store)
    store.index.unlink()
    shutil.copytree(store.folder, copy := store.folder.parent / "elsewhere")
    killed = python(KILLED_WHILE_BUILDING, copy).wait()
    assert (killed, (copy / "harness.duckdb").exists()) == (-9, False)
    assert [run.run_id for run in stores.list_runs(Store(copy))] == ["a", "b", "c"]


@pytest.mark.e2e
def test_a_corrupt_index_says_to_reindex_and_reindex_mends_it(store):
    save_two_runs(store)
    store.index.write_bytes(store.index.read_bytes()[:5000])
    assert len(stores.list_runs(store)) == 2
    with pytest.raises(HarnessError, match="next: harness reindex"):
        stores.query(store, "FROM runs")
    with pytest.raises(HarnessError, match="next: harness reindex"):
        stores.save_run(store, make_run("c", []))
    stores.reindex(store)
    assert list_indexed_runs(store) == ["a", "b", "c"]


def test_an_index_of_a_newer_harness_is_refused_and_left_alone(store):
    newer = ingest.VERSION + 1
    stores.save_run(store, make_run("a", []))
    with duckdb.connect(str(store.index)) as db:
        db.execute("UPDATE meta SET version = ?", [newer])
    before = store.index.read_bytes()
    with pytest.raises(HarnessError, match=rf"version {newer} .* newer harness.*upgrade harness"):
        stores.query(store, "FROM runs")
    with pytest.raises(HarnessError, match="newer harness"):
        stores.save_run(store, make_run("a", []))
    assert store.index.read_bytes() == before


KILLED_WHILE_BUILDING = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from harness import store as stores
from harness.store import ingest
at = stores.Store(Path(sys.argv[1]))
run = replace(stores.read_run(at.run_file("a")), run_id="c")
def killed(frame, event, argument):
    if event == "return" and (frame.f_code.co_name, frame.f_code.co_filename) == ("sync", ingest.__file__):
        os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(killed)
stores.save_run(at, run)
"""

KILLED_AFTER_COMMIT = """
import os, signal, sys
import duckdb
db = duckdb.connect(sys.argv[1])
db.execute("INSERT INTO stored.rowsets VALUES ('left over', 1, 1)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_had_committed_is_read_and_does_not_outlive_a_reindex(store):
    stores.save_run(store, make_run("a", []))
    assert python(KILLED_AFTER_COMMIT, store.index).wait() == -9
    log = store.index.with_name("harness.duckdb.wal")
    assert log.exists()
    assert count(store, "rowsets") == 1
    stores.reindex(store)
    assert not log.exists()
    assert count(store, "rowsets") == 0


@pytest.mark.e2e
def test_a_run_whose_writer_was_ended_before_the_index_heard_of_it_is_found_and_told(store):
    save_two_runs(store)
    saved = stores.get_run(store, "b")
    shutil.move(store.folder / "b", store.folder.parent / "b")
    stores.reindex(store)
    shutil.move(store.folder.parent / "b", store.folder / "b")
    assert list_indexed_runs(store) == ["a"]
    assert stores.read_written_runs(store, ["a", "b"]) == {"a": stores.get_run(store, "a"), "b": saved}
    assert stores.query(store, "SELECT run_id FROM runs ORDER BY ALL").rows == [("a",), ("b",)]
    assert list_indexed_runs(store) == ["a", "b"]
    assert count(store, "scores") == 75


# Several processes

HOLD = """
import sys, time
import duckdb
with duckdb.connect(sys.argv[1], read_only=sys.argv[2] == 'read'):
    print('held', flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextmanager
def hold_index(store, mode):
    holder = python(HOLD, store.index, mode, 60)
    try:
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.e2e
def test_a_run_is_saved_and_queried_without_waiting_for_who_keeps_the_index_open_and_is_indexed_later(store):
    save_two_runs(store)
    with hold_index(store, "write"):
        started = time.perf_counter()
        stores.save_run(store, make_run("c", [OTHER.digest]))
        assert time.perf_counter() - started < 1  # store.wait_s is 20
        assert [run.run_id for run in stores.list_runs(store)] == ["a", "b", "c"]
        query = "SELECT run_id, count(*) FROM scores GROUP BY ALL ORDER BY ALL"
        assert stores.query(replace(store, wait_s=0), query).rows == [("a", 70), ("b", 75), ("c", 5)]
    assert list_indexed_runs(store) == ["a", "b"]
    stores.query(store, "FROM runs")
    assert list_indexed_runs(store) == ["a", "b", "c"]


@pytest.mark.e2e
def test_reindex_replaces_an_index_that_somebody_keeps_open_and_removed_runs_are_forgotten_afterwards(store):
    save_two_runs(store)
    with hold_index(store, "write"):
        stores.save_run(store, make_run("c", []))
        assert stores.reindex(store).runs == 3
        assert list_indexed_runs(store) == ["a", "b", "c"]
    with hold_index(store, "read"):
        stores.remove_run(store, "b")
        assert stores.query(store, "SELECT run_id FROM runs ORDER BY ALL").rows == [("a",), ("c",)]
    assert index.update(store)
    assert list_indexed_runs(store) == ["a", "c"]


@pytest.mark.e2e
def test_an_index_that_another_writes_takes_a_run_later_and_says_so_when_it_is_rebuilt(store):
    with hold_file(store.folder / ".lock", TimeoutError(), 1):
        stores.save_run(store, make_run("a", []))
        assert not store.index.exists()
    assert stores.query(store, "SELECT run_id FROM runs").rows == [("a",)]
    stores.save_run(store, make_run("a", []))
    with (
        hold_file(store.folder / ".lock", TimeoutError(), 1),
        pytest.raises(HarnessError, match=r"for 0\.1 s.*next: wait"),
    ):
        stores.reindex(replace(store, wait_s=0.1))


# Removing


def test_removed_runs_are_forgotten_and_shared_rows_stay_unless_it_is_unknown_what_is_shared(store):
    save_two_runs(store)
    stores.remove_run(store, "b")
    assert not (store.folder / "b").exists()
    assert not store.rows(OTHER.digest).exists()
    assert len(stores.read_rows(store, IDENTITY.digest)) == 70
    assert [run.run_id for run in stores.list_runs(store)] == ["a"]
    before = contents(store)
    stores.reindex(store)
    assert contents(store) == before

    save_two_runs(store)
    (store.folder / "a" / "run.json").write_text("{")
    with pytest.raises(HarnessError, match=r"a/run\.json.*next: repair or delete"):
        stores.remove_run(store, "b")
    assert store.parquet(OTHER.digest).exists()
    assert (store.folder / "b" / "run.json").exists()


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 8 MB, if the machine allows it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(folder).free == 0


def test_a_full_disk_is_said_when_a_block_is_written_or_rows_are_completed_and_the_blocks_before_stay(
    small_disk,
):
    store = Store(small_disk / "runs")
    sample = [replace(r, text=os.urandom(300).hex()) for r in make_rows(BLOCK)]
    append(store, IDENTITY, sample)
    fill(small_disk)
    with pytest.raises(HarnessError, match=r"no room to write \(0\.0 MB free.*next: free some space"):
        append(store, IDENTITY, make_rows(2 * BLOCK, text="x" * 1000), blocks=[1])
    with pytest.raises(HarnessError, match="no room to write"):
        stores.complete_rows(store, IDENTITY, BLOCK)
    assert leftovers(store) == []
    assert stores.list_stored_blocks(store, IDENTITY) == {0}
    (small_disk / "filler").unlink()
    stores.complete_rows(store, IDENTITY, BLOCK)
    assert stores.read_rows(store, IDENTITY.digest) == sample


@pytest.mark.e2e
def test_a_full_disk_is_said_when_a_run_is_ingested_and_the_index_stays_whole(small_disk):
    store = Store(small_disk / "runs")
    stores.save_run(store, make_run("a", []))
    complete(store, IDENTITY, [replace(r, text=os.urandom(1000).hex()) for r in make_rows(BLOCK)])
    fill(small_disk)
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 16_384)  # for run.json
    with pytest.raises(HarnessError, match=r"harness\.duckdb: found no room to write"):
        stores.save_run(store, make_run("b", [IDENTITY.digest]))
    (small_disk / "filler").unlink()
    assert [r.run_id for r in stores.list_runs(store)] == ["a", "b"]
    assert stores.query(store, "SELECT run_id, count(*) FROM scores GROUP BY ALL").rows == [("b", BLOCK)]
    assert stores.reindex(store).runs == 2


def test_what_duckdb_says_of_an_interrupt_stops_everything_again(store):
    # This is how its Python package ends a query interrupted by Ctrl-C.
    with pytest.raises(KeyboardInterrupt), clear_errors(store, "rows", "again"):
        raise RuntimeError("Query interrupted")
