"""Eight processes save runs for a while; none is lost, and no reader takes a second."""

import pytest
from test_strange_store import run_writers

from harness import store as stores


@pytest.mark.parametrize(
    "seconds", [pytest.param(6, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.weekly)]
)
def test_eight_writers_and_two_readers_lose_nothing_and_wait_for_nobody(tmp_path, seconds):
    store, found = run_writers(tmp_path, seconds)
    assert {run.run_id for run in stores.list_runs(store)} == {"first", *found.saved}
    assert {reader: max(took_s) for reader, took_s in found.took_s.items() if max(took_s) >= 1} == {}
    before = stores.list_runs(store)
    assert stores.reindex(store).runs == len(before)
    assert stores.list_runs(store) == before
