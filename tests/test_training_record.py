"""A training's record is typed, and its stored form is that of runs made before there was one."""

import json
from types import SimpleNamespace

import pytest

from harness.errors import CandidateFailed
from harness.evaluation.candidates import read_weights
from harness.records import Trial, read_training_record

BEFORE = {  # as fit.json and run.json held it when it was a plain dict
    "wall_s": 36.5,
    "train_loop_s": 30.25,
    "n_tokens": 4_096,
    "tokens_per_s": 135.4,
    "n_steps": 24,
    "n_dropped_too_long": 0,
    "n_trainable": 512,
    "peak_memory_gib": 1.5,
    "loss": [[1, 2.5], [2, 1.25]],
    "validation_loss": [[2, 1.5]],
    "best_validation_loss": 1.5,
    "n_packs": 7,
    "n_replayed": 3,
    "fit_key": "0123456789abcdef",
    "init_wall_s": 12.0,
    "stands_on": {"fedcba9876543210": "d"},
    "sweep": [
        {"params": {"r": 2}, "validation": None, "wall_s": 0.0, "chosen": False},
        {
            "params": {"r": 4},
            "validation": 0.5,
            "best_validation_loss": 1.5,
            "wall_s": 36.5,
            "loss": [[1, 2.5]],
            "validation_loss": [[1, 1.5]],
            "chosen": True,
        },
    ],
}


def test_a_record_of_before_reads_and_is_stored_with_the_same_figures():
    read = read_training_record(BEFORE)
    assert read.loss == ((1, 2.5), (2, 1.25))
    assert read.total_s == 48.5
    assert read.sweep[0] == Trial(params={"r": 2}, validation=None)
    assert read_training_record(read.to_plain()) == read
    plain = {name: value for name, value in read.to_plain().items() if name not in ("loss", "sweep")}
    assert plain | {"validation_loss": [[2, 1.5]]} == {k: v for k, v in BEFORE.items() if k in plain}


def test_weights_whose_record_cannot_be_read_say_which_folder_to_delete(tmp_path):
    record = {"kind": "model", "digest": "d", "trained_on": "b", "training": {"n_steps": "many"}}
    (tmp_path / "fit.json").write_text(json.dumps(record))
    told = r"fit\.json cannot be read \(training\.n_steps: found 'many'; .*try: delete that folder"
    with pytest.raises(CandidateFailed, match=told):
        read_weights(SimpleNamespace(served_base=None), tmp_path)
