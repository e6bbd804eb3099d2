"""More trainings than anybody means are refused: candidates of a grid, and trials of a sweep."""

import pytest
import tiny_experiment

from harness import config
from harness.errors import UserError


def write_experiment(tmp_path, tiny, own):
    return tiny_experiment.write(tmp_path, tiny, f"  prompt: {{method: base}}\n  own: {own}\n")


def test_a_grid_of_more_than_64_candidates_is_refused(tiny, tmp_path):
    path = write_experiment(tmp_path, tiny, f"{{method: lora, params: {{r: {list(range(1, 65))}}}}}")
    with pytest.raises(UserError, match="found 65 candidates; expected at most 64"):
        tiny_experiment.run(path)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_of_more_than_64_trials_is_refused(tiny, tmp_path):
    sweep = f"{{r: {list(range(1, 14))}, num_train_epochs: [1, 2, 3, 4, 5]}}"
    with pytest.raises(UserError, match="a sweep of 65 trials; expected at most 64"):
        config.load(write_experiment(tmp_path, tiny, f"{{method: lora, sweep: {sweep}}}"))


def test_a_sweep_of_64_trials_is_not(tiny, tmp_path):
    sweep = f"{{r: {list(range(1, 17))}, num_train_epochs: [1, 2, 3, 4]}}"
    loaded = config.load(write_experiment(tmp_path, tiny, f"{{method: lora, sweep: {sweep}}}"))
    assert "own" in loaded.selected
