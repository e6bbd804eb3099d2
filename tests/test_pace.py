"""The pace of a machine, learnt from what ran there."""

import pytest
import tiny_experiment

from harness import config
from harness.cache import cache_dir
from harness.evaluation import costs
from harness.evaluation.costs.pace import Pace, read_pace, record_pace
from harness.experiment import Scope, prepare_session
from harness.experiment.weights.training_fit import fit_work
from harness.models.hardware import Machine
from harness.progress import Silent
from harness.spec import Recipe

CPU = Machine("cpu", "CPU, 2 threads", "bf16", 800.0, 800.0, 200.0)
SIZE = 135_000_000


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny_session(tiny, tmp_path):
    return prepare_session(config.load(tiny_experiment.write(tmp_path / "own", tiny)), Scope(), Silent())


def test_a_machine_on_which_nothing_ran_keeps_to_the_estimate():
    assert read_pace(CPU, SIZE) == Pace(1.0, 1.0)


def test_work_that_took_twice_as_long_doubles_the_estimates_of_its_kind_alone():
    record_pace(CPU, SIZE, "training", 100.0, 200.0)
    assert read_pace(CPU, SIZE) == Pace(answering=1.0, training=2.0)


def test_another_size_or_precision_learns_nothing_from_it():
    record_pace(CPU, SIZE, "answering", 100.0, 200.0)
    assert read_pace(CPU, 2 * SIZE) == read_pace(CPU._replace(precision="fp32"), SIZE) == Pace()


def test_work_of_less_than_five_seconds_teaches_nothing():
    record_pace(CPU, SIZE, "answering", 4.9, 400.0)
    assert read_pace(CPU, SIZE) == Pace()


def test_what_was_measured_last_counts_more_than_what_was_measured_long_ago():
    for _ in range(20):
        record_pace(CPU, SIZE, "answering", 300.0, 300.0)
    for _ in range(8):
        record_pace(CPU, SIZE, "answering", 300.0, 600.0)
    assert 1.95 < read_pace(CPU, SIZE).answering < 2.0


def test_one_measurement_that_is_far_off_moves_the_estimate_tenfold_at_most():
    record_pace(CPU, SIZE, "training", 10.0, 1e6)
    assert read_pace(CPU, SIZE).training == 10.0


def test_a_damaged_file_counts_for_nothing():
    record_pace(CPU, SIZE, "training", 100.0, 200.0)
    (file,) = (cache_dir() / "pace").iterdir()
    file.write_text("[1, 2")
    assert read_pace(CPU, SIZE) == Pace()


def test_a_session_estimates_by_the_pace_that_it_found_when_it_was_opened(tiny_session):
    work = costs.Work(read=10**9, generated=10**7, trained=10**8)
    at_first = tiny_session.seconds(work)
    tiny_session.learn_pace("training", work, 3 * at_first, tiny_session.source)
    assert tiny_session.seconds(work) == at_first
    tiny_session.paces.clear()
    trained = costs.Work(trained=work.trained).seconds(
        tiny_session.source.n_parameters, tiny_session.machine.gflops
    )
    assert tiny_session.seconds(work) == pytest.approx(at_first + 2 * trained)


def test_a_training_of_so_many_steps_is_estimated_by_its_steps(tiny_session):
    def trained(**params):
        recipe = Recipe(method="lora", params={"per_device_train_batch_size": 2, **params})
        return fit_work(tiny_session, recipe, 0).trained

    n_rows = len(tiny_session.target.items.train)
    whole = trained(num_train_epochs=1)
    assert trained(max_steps=1) == pytest.approx(whole * 2 / n_rows, rel=0.01)
    assert trained(max_steps=n_rows) == pytest.approx(2 * whole, rel=0.01)
