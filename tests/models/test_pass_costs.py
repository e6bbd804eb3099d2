"""Costs of a pass, measured once per card and kept; the pace of a machine, learnt from earlier work."""

import pytest
import tiny_experiment
import tiny_methods

from harness.cache import remember
from harness.evaluation import costs
from harness.evaluation.costs import Pace, read_pace, record_pace
from harness.experiment.trials import fit_work
from harness.models import memory, pass_costs
from harness.models.batching import CPU_COSTS, PassCosts, Size, plan
from harness.models.hardware import Machine
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import resolve, shape
from harness.models.pass_costs import Timings, card_costs, costs_of, solve
from harness.records import Limits
from harness.spec import Recipe

pytestmark = pytest.mark.usefixtures("empty_cache")
CARD, GB = Machine("cuda", "a card", "bf16", 1.0), 1e9


def make_timings(*, one=0.016, token=2e-5, pair=1e-9, key=1e-8):
    return Timings(one, token + 128 * pair, pair, 0.02 + 8 * 256 * key, key)


def test_costs_are_what_a_pass_takes_and_a_card_a_fifth_slower_gives_the_same_layout():
    solved = solve(make_timings())
    assert solved.reading == 1024  # 0.016 s over 2e-5 s and 128 × 1e-9 s a token: 795
    assert solved.attention == 16_384  # 2e-5 over 1e-9 a pair: 20,128, which is above the maximum
    assert solved.answering == 1 << 20  # 0.02 s over 1e-8 s a key: 2,002,048, which is above the maximum
    assert solve(make_timings(pair=1e-8, key=1e-7)) == PassCosts(1024, 262_144, 2048)
    quick, slow = make_timings(), make_timings(one=0.0192, token=2.4e-5, pair=1.2e-9, key=1.2e-8)
    assert solve(quick) == solve(slow)


def test_a_cpu_measures_nothing_and_other_costs_lay_out_other_batches_that_answer_alike(tiny, empty_cache):
    host = ModelHost(resolve(str(tiny)), tiny_methods.CPU)
    assert host.costs == costs_of(host.model, host.source, tiny_methods.CPU) == CPU_COSTS
    plain = HFCandidate(host.model, host.tokenizer, "w", "packed")
    assert host.base.layout_digest == plain.layout_digest
    assert not (empty_cache / "pass_costs").exists()

    costs = PassCosts(reading=512, answering=1024, attention=4096, keys=64)
    on_card = HFCandidate(host.model, host.tokenizer, "w", "packed", costs)
    assert on_card.layout_digest != host.base.layout_digest
    prompts = [tuple(range(5, 5 + n)) for n in (3, 9, 30, 31, 32)]
    cpu_texts, card_texts = ([a.text for a in c.generate(prompts, Limits(5))] for c in (host.base, on_card))
    assert cpu_texts == card_texts
    pairs = [(prompt, (7, 8)) for prompt in prompts]
    for a, b in zip(host.base.loglikelihood(pairs), on_card.loglikelihood(pairs), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_a_cards_costs_are_measured_once_and_read_afterwards(tiny, empty_cache, monkeypatch):
    host = ModelHost(resolve(str(tiny)), tiny_methods.CPU)
    timings = iter([make_timings()])  # a second measurement would find none
    monkeypatch.setattr(pass_costs, "measure_passes", lambda model: next(timings))
    measured = card_costs(host.model, host.source, CARD, 24 * GB)
    assert measured == solve(make_timings())._replace(keys=measured.keys)
    (file,) = (empty_cache / "pass_costs").iterdir()
    assert card_costs(host.model, host.source, CARD, 24 * GB) == measured
    remember(file, [2048, 4096, 512, 0])
    again = card_costs(host.model, host.source, CARD, 24 * GB)
    assert again == PassCosts(2048, 4096, 512, measured.keys)


def test_keys_take_four_fifths_of_what_the_weights_leave_and_batches_hold_no_more(tiny):
    host, dims = ModelHost(resolve(str(tiny)), tiny_methods.CPU), shape(resolve(str(tiny)))
    card = card_costs(host.model, host.source, CARD, 24 * GB)
    fitting = 0.8 * (24 - 3 - memory.weights_gb(dims, "bf16")) * GB / memory.kv_cache_bytes(dims, 1, "bf16")
    assert card.keys <= fitting < 2 * card.keys
    assert card_costs(host.model, host.source, CARD, 1 * GB).keys == 4096  # at least those of a long prompt
    lengths = [10] * 8
    assert len(plan(lengths, Size(8, 1000), 24)) == 1
    assert [len(batch) for batch in plan(lengths, Size(8, 1000), 24, keys=330, shared=100)] == [2, 3, 3]
    assert [len(batch) for batch in plan(lengths, Size(8, 1000), 24, keys=50, shared=100)] == [1] * 8


CPU = Machine("cpu", "CPU, 2 threads", "bf16", 800.0)
SIZE = 135_000_000


@pytest.fixture
def tiny_session(tiny, tmp_path):
    return tiny_experiment.session(tiny_experiment.write(tmp_path / "own", tiny))


def test_work_that_took_twice_as_long_doubles_the_estimates_of_its_kind_and_size_alone():
    pace = read_pace(CPU, SIZE)
    assert pace == Pace()
    assert {rate.ratio for rate in pace} == {1.0, 1.25}
    assert all(rate.each_s > 0 for rate in pace)
    record_pace(CPU, SIZE, "training", 1000.0, 0, 2000.0)
    assert read_pace(CPU, SIZE).training.ratio == pytest.approx(2.0, rel=0.01)
    assert read_pace(CPU, SIZE)._replace(training=Pace().training) == Pace()
    record_pace(CPU, SIZE, "answering", 100.0, 10, 200.0)
    assert read_pace(CPU, 2 * SIZE) == read_pace(CPU._replace(precision="fp32"), SIZE) == Pace()


def test_the_pace_is_learnt_by_tokens_and_blocks_apart_and_work_of_few_tokens_leaves_the_ratio():
    """Four measurements of known rates: 1.5 seconds for each estimated one, and 0.7 for each block."""
    for estimated_s, n in ((100.0, 3), (2.0, 40), (30.0, 200), (400.0, 10)):
        record_pace(CPU, SIZE, "answering", estimated_s, n, 1.5 * estimated_s + 0.7 * n)
    learnt = read_pace(CPU, SIZE).answering
    assert learnt.ratio == pytest.approx(1.5, rel=0.02)
    assert learnt.each_s == pytest.approx(0.7, rel=0.05)

    for _ in range(10):
        record_pace(CPU, SIZE, "training", 0.01, 20, 20.0)
    learnt = read_pace(CPU, SIZE).training
    assert learnt.each_s == pytest.approx(1.0, rel=0.02)
    assert learnt.ratio == pytest.approx(1.25, abs=0.05)


def test_a_session_estimates_by_the_pace_that_it_found_when_it_was_opened(tiny_session):
    work = costs.Work(read=10**9, generated=10**7, trained=10**10)
    at_first = tiny_session.seconds(work)
    trained = costs.Work(trained=work.trained).seconds(tiny_session.source.n_parameters, tiny_session.machine)
    tiny_session.learn_pace("training", work, 3 * trained, tiny_session.source)
    assert tiny_session.seconds(work) == at_first
    tiny_session.paces.clear()
    assert tiny_session.seconds(work) == pytest.approx(at_first + (3 - 1.25) * trained, rel=0.02)


def test_a_training_is_estimated_by_its_steps_as_its_trainer_makes_them(tiny_session):
    def plan_fit(**params):
        recipe = Recipe(method="lora", params={"per_device_train_batch_size": 4, **params})
        return fit_work(tiny_session, recipe, 0)

    n_rows = len(tiny_session.target.items.train)
    whole = plan_fit(num_train_epochs=1).trained
    assert plan_fit(max_steps=1).trained == pytest.approx(whole * 4 / n_rows, rel=0.01)
    assert plan_fit(max_steps=n_rows).trained == pytest.approx(4 * whole, rel=0.01)
    assert plan_fit(num_train_epochs=2).steps == 2 * -(-n_rows // 4)
    assert plan_fit(num_train_epochs=1, gradient_accumulation_steps=3).steps == -(-n_rows // 12)
    assert plan_fit(max_steps=7).steps == 7
    assert plan_fit(max_steps=7).fits == 1
