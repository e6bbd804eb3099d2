"""The note of a comparison at work: there while it works, nobody's afterwards, in nobody's way."""

import pytest
import tiny_experiment

from harness import store
from harness.progress import SilentProgress
from harness.store import Store, StoredProgress


def test_the_note_of_a_process_that_was_killed_is_nobodys(tmp_path):
    at = Store(tmp_path / "runs")
    with store.hold(at):
        StoredProgress(SilentProgress(), at, "A comparison", ["prompt"]).finish("prompt", "prompt: done")
    with store.hold(at):
        assert store.current_activity(at) == {}


def test_a_stage_is_noted_while_the_store_is_held(tmp_path):
    at = Store(tmp_path / "runs")
    with store.hold(at):
        assert store.current_activity(at) == {}
        progress = StoredProgress(SilentProgress(), at, "A comparison", ["prompt", "shots", "lora"])
        progress.finish("capability suite of the base", "measured")
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


class Lines(SilentProgress):
    """Progress that remembers what was shown of candidates that are not done, and of those that are."""

    def __init__(self):
        self.shown, self.finished = [], []

    def show(self, candidate, line, *items):
        self.shown.append(candidate)

    def finish(self, candidate, line, *items):
        self.finished.append(candidate)


@pytest.mark.e2e
@pytest.mark.usefixtures("own_cache")
def test_a_candidate_of_several_seeds_is_finished_with_the_last(tiny, tmp_path):
    """Else the plan would drop the time of the other seeds; these fail, as their rows are longer."""
    path = tiny_experiment.write(tmp_path, tiny, "  lora: {method: lora, params: {max_length: 8}}\n")
    seen = Lines()
    tiny_experiment.run(path, "seeds=[0, 1]", progress=seen)
    assert seen.shown == ["lora"]
    assert seen.finished == ["capability suite of the base", "lora"]
