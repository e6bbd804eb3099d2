"""Eight processes save runs for a minute; none is lost, and no reader takes a second."""

import pytest
from test_writers import busy

from harness import store as stores


@pytest.mark.slow
def test_eight_writers_and_two_readers_for_a_minute(tmp_path):
    store, found = busy(tmp_path, 60)
    assert {run.run_id for run in stores.list_runs(store)} == {"first", *found.saved}
    assert {reader: max(took_s) for reader, took_s in found.took_s.items() if max(took_s) >= 1} == {}
    before = stores.list_runs(store)
    assert stores.reindex(store).runs == len(before)
    assert stores.list_runs(store) == before
