"""Eight processes save runs at once, and two read beside them; how long that takes is held in tests/slow/."""

import json

import pytest
from busy_store import keep_busy
from test_store import IDENTITY, complete, make_rows, make_run

from harness import store as stores
from harness.store import Store


def run_writers(folder, seconds):
    store = Store(folder / "runs")
    complete(store, IDENTITY, make_rows(640))
    stores.save_run(store, make_run("first", [IDENTITY.digest]))
    run = json.loads((store.folder / "first" / "run.json").read_text("utf-8"))
    return store, keep_busy(store.folder, run, 8, seconds)


@pytest.mark.e2e
def test_eight_writers_lose_no_run_while_two_read(tmp_path):
    store, found = run_writers(tmp_path, 2)
    assert {run.run_id for run in stores.list_runs(store)} == {"first", *found.saved}
    assert len(found.saved) >= 8
    assert all(found.took_s.values())
