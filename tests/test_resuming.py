"""A training that was stopped goes on from its last checkpoint, and ends with the same weights."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny_experiment
import tiny_methods

from harness import config, run
from harness.experiment import Scope, bench_of
from harness.methods import dpo, full, lora
from harness.progress import Silent
from harness.training import CHECKPOINTS, loop

SHORT = {"num_train_epochs": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4}


class Stopped(KeyboardInterrupt):
    """What a user's Ctrl-C raises, told apart from the user's own."""


def stopped_at(step, seen):
    """Return a progress that remembers the steps it hears of, and stops the training at one of them."""

    def advance(done, total, note=""):
        seen.append(done)
        if done == step:
            raise Stopped

    return advance


def fitted(tiny, folder, method, advance=lambda *_: None, **params):
    context = replace(tiny_methods.context(tiny, folder), advance=advance)
    return method.fit(context, method.Params(**{**SHORT, **params}))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (lora, {"r": 2}),
        (lora, {"r": 2, "lora_dropout": 0.2}),
        (full, {}),
        (dpo, {"r": 2, "num_train_epochs": 2}),
        (dpo, {"r": 2, "num_train_epochs": 1, "per_device_train_batch_size": 2}),
    ],
    ids=["lora", "dropout", "full", "dpo", "dpo in one epoch"],
)
def test_a_stopped_training_ends_with_the_weights_of_an_undisturbed_one(tiny, tmp_path, method, params):
    whole, seen = fitted(tiny, tmp_path / "whole", method, **params), []
    with pytest.raises(Stopped):
        fitted(tiny, tmp_path / "cut", method, stopped_at(whole.training["n_steps"] - 1, seen), **params)
    first = len(seen)
    again = fitted(tiny, tmp_path / "cut", method, stopped_at(None, seen), **params)
    assert again.digest == whole.digest
    assert again.training["loss"] == whole.training["loss"]
    assert again.training["n_tokens"] == whole.training["n_tokens"]
    assert 1 < seen[first] < whole.training["n_steps"]


def test_early_stopping_remembers_how_long_it_has_waited(tiny, tmp_path):
    # Such steps only make it worse: without a better loss for two epochs after the first, it ends.
    worse = {"r": 2, "learning_rate": 1.0, "num_train_epochs": 6, "lr_scheduler_type": "constant"}
    whole, seen = fitted(tiny, tmp_path / "whole", lora, **worse), []
    stop = whole.training["n_steps"] - 1
    with pytest.raises(Stopped):
        fitted(tiny, tmp_path / "cut", lora, stopped_at(stop, seen), **worse)
    again = fitted(tiny, tmp_path / "cut", lora, **worse)
    assert (again.digest, again.training["n_steps"]) == (whole.digest, whole.training["n_steps"])


def test_a_checkpoint_that_was_cut_short_is_not_gone_on_from(tmp_path):
    for step, is_whole in ((4, True), (12, False), (8, True)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if is_whole:
            (tmp_path / f"checkpoint-{step}" / "elapsed_s.json").write_text(json.dumps(step / 2))
    assert loop.elapsed_s(tmp_path) == 4.0


def test_the_time_before_a_stop_counts(tiny, tmp_path):
    with pytest.raises(Stopped):
        fitted(tiny, tmp_path, lora, stopped_at(8, []), r=2)
    for folder in (tmp_path / CHECKPOINTS).glob("checkpoint-*"):
        (folder / "elapsed_s.json").write_text("1000.0")
    training = fitted(tiny, tmp_path, lora, r=2).training
    assert training["wall_s"] > 1000
    assert training["train_loop_s"] > 1000


@pytest.fixture
def bench(tiny, tmp_path, own_cache):
    path = tiny_experiment.write(tmp_path, tiny)
    return bench_of(config.load(path), Scope(), Silent())


def test_a_kill_leaves_the_checkpoints_and_nothing_else_that_the_next_call_uses(bench):
    recipe = bench.experiment.candidates["lora"]
    made = run.ensure_weights(bench, recipe, 0)
    part = made.folder.with_name(made.folder.name + ".part")
    shutil.move(made.folder, part)
    (part / CHECKPOINTS / "checkpoint-1").mkdir(parents=True)  # without its time: cut short
    again = run.ensure_weights(bench, recipe, 0)
    assert (again.digest, again.folder) == (made.digest, made.folder)
    assert [p.name for p in made.folder.parent.iterdir()] == [made.folder.name]
    assert not (made.folder / CHECKPOINTS).exists()
