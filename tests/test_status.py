"""The note of a comparison at work: there while it works, nobody's afterwards, in nobody's way."""

from filelock import FileLock

from harness import store
from harness.progress import Silent
from harness.store import Store, StoredProgress


def test_nobody_is_at_work_in_an_empty_store(tmp_path):
    assert store.current_activity(Store(tmp_path / "runs")) is None


def test_the_note_of_a_process_that_was_killed_is_nobodys(tmp_path):
    at = Store(tmp_path / "runs")
    with store.working(at):
        StoredProgress(Silent(), at, "A comparison", 3).finish("prompt", "prompt: done")
    with store.working(at):
        assert store.current_activity(at) == {}


def test_a_stage_is_noted_while_the_store_is_held(tmp_path):
    at = Store(tmp_path / "runs")
    with store.working(at):
        assert store.current_activity(at) == {}
        progress = StoredProgress(Silent(), at, "A comparison", 3)
        progress.finish("prompt", "prompt: done")
        with progress.stage("lora: chat", 5.0) as advance:
            assert store.current_activity(at) == {
                "what": "A comparison",
                "candidates": 3,
                "finished": ["prompt"],
                "stage": "lora: chat",
                "share": 0.0,
            }
            advance(1, 4)
    assert store.current_activity(at) is None


def test_looking_on_takes_the_store_from_nobody(tmp_path):
    at = Store(tmp_path / "runs")
    with store.working(at):
        pass
    assert store.current_activity(at) is None
    with FileLock(at.folder / "compare.lock", timeout=0):
        assert store.current_activity(at) == {}


def test_a_note_that_cannot_be_written_stops_nobody(tmp_path):
    progress = StoredProgress(Silent(), Store(tmp_path / "absent"), "A comparison", 1)
    progress.finish("prompt", "prompt: done")
    with progress.stage("x") as advance:
        advance(1, 1)
