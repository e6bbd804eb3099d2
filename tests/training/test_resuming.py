"""A training that was stopped goes on from its last checkpoint, and ends with the same weights."""

import importlib
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from tiny_methods import Interrupted, stop_at

from harness.errors import CandidateFailed
from harness.evaluation.runner import open_weights
from harness.experiment.candidate_weights import Fit, FitInputs, ensure_weights
from harness.methods import bottleneck, dpo, head, spectrum
from harness.methods.supervised import Full, Lora
from harness.models.weight_files import tensors_of
from harness.progress import SilentProgress
from harness.training import CHECKPOINTS, context

SHORT = {"num_train_epochs": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4}

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_cache")]
WEEKLY = pytest.mark.weekly
ONES, TWOS = ({"per_device_train_batch_size": n} for n in (1, 2))

# Steps this small change almost nothing: soon an epoch is no better than the one before.
EARLY = {"learning_rate": 1e-9, "lr_scheduler_type": "constant", "early_stopping_patience": 1}


def fit_tiny(tiny, folder, method, advance=tiny_methods.ignore, **params):
    return tiny_methods.fit(tiny, folder, method, {**SHORT, **params}, advance=advance)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        pytest.param(Lora, {"r": 2}, id="lora", marks=WEEKLY),
        pytest.param(Lora, {"r": 2, **ONES, "num_train_epochs": 1, "lora_dropout": 0.2}, id="one epoch"),
        pytest.param(Lora, {"r": 2, **ONES, "num_train_epochs": 2}, id="second epoch", marks=WEEKLY),
        pytest.param(Lora, {"r": 2, **ONES, "gradient_accumulation_steps": 2, "max_steps": 9}, id="steps"),
        pytest.param(Full, {}, id="full"),
        pytest.param(bottleneck, {"bottleneck_size": 4, **TWOS}, id="bottleneck", marks=WEEKLY),
        pytest.param(spectrum, {"share": 0.5, **TWOS}, id="spectrum", marks=WEEKLY),
        pytest.param(Full, {"num_train_epochs": 2, **TWOS}, id="full in an epoch", marks=WEEKLY),
        pytest.param(dpo, {"r": 2, "num_train_epochs": 2, **TWOS}, id="dpo"),
        pytest.param(dpo, {"r": 2, "num_train_epochs": 1, **TWOS}, id="dpo in one epoch", marks=WEEKLY),
    ],
)
def test_a_stopped_training_ends_with_the_weights_of_an_undisturbed_one(tiny, tmp_path, method, params):
    whole, steps = fit_tiny(tiny, tmp_path / "whole", method, **params), []
    stop = whole.training.n_steps // 2 + 1  # after the first save in an epoch
    with pytest.raises(Interrupted):
        fit_tiny(tiny, tmp_path / "cut", method, stop_at(stop, steps), **params)
    for checkpoint in (tmp_path / "cut" / CHECKPOINTS).glob("checkpoint-*/model.safetensors"):
        trained = sum((t.end - t.begin) // 4 for t in tensors_of(checkpoint).values())
        assert trained == whole.training.n_trainable, "a checkpoint holds what is trained"
    first = len(steps)
    again = fit_tiny(tiny, tmp_path / "cut", method, stop_at(None, steps), **params)
    assert again.digest == whole.digest
    for name in ("loss", "n_tokens", "validation_loss"):
        assert getattr(again.training, name) == getattr(whole.training, name)
    assert 1 < steps[first] <= stop


@pytest.mark.parametrize(
    "params", [{"max_steps": 1}, {"num_train_epochs": 9, **EARLY}], ids=["one step", "early stopping"]
)
def test_a_training_that_was_killed_after_its_last_step_makes_no_other(tiny, tmp_path, params):
    trained, steps = fit_tiny(tiny, tmp_path, Lora, r=2, **params), []
    again = fit_tiny(tiny, tmp_path, Lora, stop_at(None, steps), r=2, **params)
    assert steps == []
    assert again.digest == trained.digest
    assert again.training.n_steps == trained.training.n_steps


@pytest.mark.parametrize(
    ("params", "regularize"),
    [
        pytest.param({"train": "head"}, {"l2_sp": {"strength": 1.0}}, id="penalty"),
        pytest.param({"train": "all"}, {"half": {"rounds": 2}}, id="rounds", marks=WEEKLY),
    ],
)
def test_a_regularized_head_that_was_killed_is_saved_with_what_was_trained_before(
    tiny, tmp_path, params, regularize
):
    head_params = {**SHORT, "num_train_epochs": 2, **params}

    def fit_head(folder, advance=tiny_methods.ignore):
        return tiny_methods.fit(tiny, folder, head, head_params, regularize=regularize, advance=advance)

    whole = fit_head(tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit_head(tmp_path / "cut", stop_at(whole.training.n_steps - 1))
    shutil.rmtree(whole.folder / whole.kind)  # killed after its last step
    for again in (fit_head(tmp_path / "cut"), fit_head(tmp_path / "whole")):
        assert again.digest == whole.digest
        assert again.training.n_trainable == whole.training.n_trainable


def test_early_stopping_remembers_how_long_it_has_waited(tiny, tmp_path):
    params = {"r": 2, "num_train_epochs": 9, **EARLY, "early_stopping_patience": 3}
    whole = fit_tiny(tiny, tmp_path / "whole", Lora, **params)
    assert whole.training.n_steps < 27
    with pytest.raises(Interrupted):
        fit_tiny(tiny, tmp_path / "cut", Lora, stop_at(whole.training.n_steps - 1), **params)
    again = fit_tiny(tiny, tmp_path / "cut", Lora, **params)
    assert (again.digest, again.training.n_steps) == (whole.digest, whole.training.n_steps)


@pytest.fixture(scope="module")
def stopped_folder(tiny, own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        fit_tiny(tiny, folder, Lora, stop_at(8), r=2)
    return folder


@pytest.fixture
def checkpoint_folder(stopped_folder, tmp_path):
    return shutil.copytree(stopped_folder / CHECKPOINTS, tmp_path / CHECKPOINTS)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "optimizer.pt").unlink(),
        lambda folder: cut(folder / "adapter_model.safetensors"),
        lambda folder: (folder / "record.json").unlink(),
    ],
    ids=["a file is missing", "a file is cut", "killed before the record"],
)
def test_a_checkpoint_that_is_not_whole_is_not_gone_on_from(checkpoint_folder, damage):
    newest = context.find_last_checkpoint(checkpoint_folder)
    shutil.copytree(newest.folder, checkpoint_folder / "checkpoint-99")
    damage(checkpoint_folder / "checkpoint-99")
    assert context.find_last_checkpoint(checkpoint_folder) == newest


@pytest.fixture
def session(tiny, tmp_path, own_cache):
    path = tiny_experiment.write(tmp_path, tiny)
    return tiny_experiment.session(path)


class ErrorAtStep(SilentProgress):
    """A progress under which a training ends with an error at a given step."""

    def __init__(self, step, error):
        self.step, self.error, self.seen = step, error, []

    @contextmanager
    def stage(self, label, expected_s=0.0):
        def advance(n_done, total, note=""):
            self.seen.append(n_done)
            if n_done == self.step:
                raise self.error

        yield advance


LORA = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "max_length": 200, "r": 2}


def end_training(session, step, error, expected):
    session.progress = ErrorAtStep(step, error)
    recipe = session.experiment.candidates["lora"].model_copy(update={"params": LORA})
    candidate = session.resolve("lora", recipe)
    with pytest.raises(expected):
        ensure_weights(session, candidate, 0)
    (folder,) = (session.store.folder / "weights").iterdir()
    return folder, candidate


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda: importlib.import_module("torch").OutOfMemoryError("no room"), CandidateFailed),
        (Interrupted, Interrupted),
    ],
    ids=["no memory", "Ctrl-C"],
)
def test_whatever_ends_a_training_the_next_call_goes_on_from_its_checkpoint(session, error, expected):
    _, candidate = end_training(session, 14, error(), expected)
    session.progress = ErrorAtStep(None, None)
    weights = ensure_weights(session, candidate, 0)
    assert session.progress.seen[0] > 1
    assert [p.name for p in weights.folder.parent.iterdir()] == [weights.folder.name]
    assert not (weights.folder / CHECKPOINTS).exists()


def test_a_kill_leaves_nothing_but_checkpoints_that_the_next_call_uses(session):
    folder, candidate = end_training(session, 14, Interrupted(), Interrupted)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "left").write_text("half a file")
    session.progress = SilentProgress()
    weights = ensure_weights(session, candidate, 0)
    assert not (weights.folder / "adapter" / "left").exists()


def test_weights_that_were_complete_when_a_kill_came_are_not_made_again(session):
    candidate = session.candidates["lora"]
    weights = ensure_weights(session, candidate, 0)
    folder = weights.folder.with_name(weights.folder.name + ".part")
    shutil.move(weights.folder, folder)
    session.progress = ErrorAtStep(None, None)
    again = ensure_weights(session, candidate, 0)
    assert (again.digest, again.folder) == (weights.digest, weights.folder)
    assert session.progress.seen == []
    assert not folder.exists()


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_damaged_weights_answer_nothing_and_start_nothing(session):
    recipe = session.experiment.candidates["lora"].model_copy(update={"params": LORA})
    candidate = session.resolve("lora", recipe)
    weights = ensure_weights(session, candidate, 0)
    with open_weights(session, weights):
        pass
    file = next(weights.folder.glob("*/*.safetensors"))
    message = f"{weights.folder.name} are damaged; try: delete that folder"
    whole = file.read_bytes()
    for damage in (cut, flip, Path.unlink):
        file.write_bytes(whole)
        damage(file)
        with pytest.raises(CandidateFailed, match=message), open_weights(session, weights):
            pass
        with pytest.raises(CandidateFailed, match=message):
            Fit(session, candidate, 0).make_weights(
                FitInputs(weights, None, (), weights.folder.with_name("next"))
            )
