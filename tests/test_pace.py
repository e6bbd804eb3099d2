"""The pace of a machine, learnt from what ran there."""

import pytest
import tiny_experiment

from harness import config
from harness.cache import cache_dir, recall
from harness.evaluation import costs
from harness.evaluation.costs import Pace, read_pace, record_pace
from harness.experiment import Scope, prepare_session, run_all
from harness.experiment.training_fit import fit_work
from harness.models.hardware import Machine
from harness.progress import SilentProgress
from harness.spec import Recipe

CPU = Machine("cpu", "CPU, 2 threads", "bf16", 800.0)
SIZE = 135_000_000


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny_session(tiny, tmp_path):
    return prepare_session(
        config.load(tiny_experiment.write(tmp_path / "own", tiny)), Scope(), SilentProgress()
    )


def test_work_that_took_twice_as_long_doubles_the_estimates_of_its_kind_and_size_alone():
    pace = read_pace(CPU, SIZE)
    assert pace == Pace()
    assert {rate.ratio for rate in pace} == {1.0}
    assert all(rate.each_s > 0 for rate in pace)
    record_pace(CPU, SIZE, "training", 1000.0, 0, 2000.0)
    assert read_pace(CPU, SIZE).training.ratio == pytest.approx(2.0, rel=0.01)
    assert read_pace(CPU, SIZE)._replace(training=Pace().training) == Pace()
    record_pace(CPU, SIZE, "answering", 100.0, 10, 200.0)
    assert read_pace(CPU, 2 * SIZE) == read_pace(CPU._replace(precision="fp32"), SIZE) == Pace()


def test_what_tokens_take_and_what_each_block_takes_are_told_apart():
    """Four measurements of known rates: 1.5 seconds for each estimated one, and 0.7 for each block."""
    for estimated_s, n in ((100.0, 3), (2.0, 40), (30.0, 200), (400.0, 10)):
        record_pace(CPU, SIZE, "answering", estimated_s, n, 1.5 * estimated_s + 0.7 * n)
    learnt = read_pace(CPU, SIZE).answering
    assert learnt.ratio == pytest.approx(1.5, rel=0.02)
    assert learnt.each_s == pytest.approx(0.7, rel=0.05)


def test_work_of_next_to_no_tokens_teaches_what_each_thing_takes_and_leaves_the_ratio():
    for _ in range(10):
        record_pace(CPU, SIZE, "training", 0.01, 20, 20.0)
    learnt = read_pace(CPU, SIZE).training
    assert learnt.each_s == pytest.approx(1.0, rel=0.02)
    assert learnt.ratio == pytest.approx(1.0, abs=0.05)


def test_a_session_estimates_by_the_pace_that_it_found_when_it_was_opened(tiny_session):
    work = costs.Work(read=10**9, generated=10**7, trained=10**10)
    at_first = tiny_session.seconds(work)
    trained = costs.Work(trained=work.trained).seconds(tiny_session.source.n_parameters, tiny_session.machine)
    tiny_session.learn_pace("training", work, 3 * trained, tiny_session.source)
    assert tiny_session.seconds(work) == at_first
    tiny_session.paces.clear()
    assert tiny_session.seconds(work) == pytest.approx(at_first + 2 * trained, rel=0.02)


def test_what_is_disturbed_teaches_nothing_and_is_known_to_have_passed(tiny_session):
    tiny_session.learn_pace("fits", costs.Work(fits=1), 40.0, tiny_session.source, teaches=False)
    tiny_session.paces.clear()
    assert tiny_session.seconds(costs.Work(fits=1)) == Pace().fits.each_s
    assert tiny_session.timed == {"fits": 40.0}


@pytest.mark.e2e
def test_all_that_a_comparison_took_is_learnt_as_one_kind_of_work_or_another(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_IGNORE_LOAD", "1")
    loaded = config.load(tiny_experiment.write(tmp_path / "own", tiny))
    session = prepare_session(loaded, Scope(), SilentProgress())
    found = run_all(session, loaded)
    (file,) = (cache_dir() / "pace").iterdir()
    assert set(session.timed) == set(recall(file)) == set(Pace._fields)
    assert sum(session.timed.values()) >= found.header["wall_s"] - 0.1  # which is rounded


def test_a_training_is_estimated_by_its_steps_as_its_trainer_makes_them(tiny_session):
    def count_trained_tokens(**params):
        recipe = Recipe(method="lora", params={"per_device_train_batch_size": 2, **params})
        return fit_work(tiny_session, recipe, 0).trained

    n_rows = len(tiny_session.target.items.train)
    whole = count_trained_tokens(num_train_epochs=1)
    assert count_trained_tokens(max_steps=1) == pytest.approx(whole * 2 / n_rows, rel=0.01)
    assert count_trained_tokens(max_steps=n_rows) == pytest.approx(2 * whole, rel=0.01)

    def plan_fit(**params):
        recipe = Recipe(method="lora", params={"per_device_train_batch_size": 4, **params})
        return fit_work(tiny_session, recipe, 0)

    n_rows = len(tiny_session.target.items.train)
    assert plan_fit(num_train_epochs=2).steps == 2 * -(-n_rows // 4)
    assert plan_fit(num_train_epochs=1, gradient_accumulation_steps=3).steps == -(-n_rows // 12)
    assert plan_fit(max_steps=7).steps == 7
    assert plan_fit(max_steps=7).fits == 1
