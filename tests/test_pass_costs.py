"""Costs of a pass: measured once for a card, a model and a precision, kept, and nothing of it on a CPU."""

import pytest
import tiny_methods

from harness.cache import remember
from harness.models import memory, pass_costs
from harness.models.batching import CPU_COSTS, PassCosts, Size, plan
from harness.models.hardware import Machine
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import resolve, shape
from harness.models.pass_costs import Timings, card_costs, costs_of, solve
from harness.records import Limits

CARD = Machine("cuda", "a card", "bf16", 1.0)
pytestmark = pytest.mark.usefixtures("empty_cache")

GB = 1e9


def make_timings(*, one=0.016, token=2e-5, pair=1e-9, keys=0.0, key=1e-8, start=0.01):
    length = 2 * 8 * 128

    def read(rows, width):
        return start + rows * width * token + rows * width**2 * pair

    return Timings(
        one=one,
        rows=read(8, 128),
        twice=read(16, 128),
        joined=read(1, length),
        few_keys=0.02 + 8 * 256 * key,
        many_keys=0.02 + 8 * 2048 * key,
        width=128,
        few=256,
        many=2048,
    )


def test_costs_are_what_a_pass_takes_and_a_card_a_fifth_slower_gives_the_same_layout():
    found = solve(make_timings())
    assert found.reading == 1024  # 0.016 s over 2e-5 s and 128 × 1e-9 s a token: 795
    assert found.attention == 16_384  # 2e-5 over 1e-9 a pair: 20,128, which is beyond the most
    assert found.answering == 1 << 20  # 0.02 s over 1e-8 s a key: 2,002,048, which is beyond the most
    assert solve(make_timings(pair=1e-8, key=1e-7)) == PassCosts(1024, 262_144, 2048)
    quick, slow = make_timings(), make_timings(one=0.0192, token=2.4e-5, pair=1.2e-9, key=1.2e-8, start=0.012)
    assert solve(quick) == solve(slow)


def test_a_cpu_lays_out_as_ever_and_measures_nothing(tiny, empty_cache):
    host = ModelHost(resolve(str(tiny)), tiny_methods.CPU)
    assert host.costs == costs_of(host.model, host.source, tiny_methods.CPU) == CPU_COSTS
    plain = HFCandidate(host.model, host.tokenizer, "w", "packed")
    assert host.base.layout_digest == plain.layout_digest
    assert not (empty_cache / "pass_costs").exists()


def test_other_costs_lay_out_other_batches_under_another_name_and_answer_alike(tiny):
    host = ModelHost(resolve(str(tiny)), tiny_methods.CPU)
    costs = PassCosts(reading=512, answering=1024, attention=4096, keys=64)
    on_card = HFCandidate(host.model, host.tokenizer, "w", "packed", costs)
    assert on_card.layout_digest != host.base.layout_digest
    prompts = [tuple(range(5, 5 + n)) for n in (3, 9, 30, 31, 32)]
    one, other = ([a.text for a in c.generate(prompts, Limits(5))] for c in (host.base, on_card))
    assert one == other
    pairs = [(prompt, (7, 8)) for prompt in prompts]
    for a, b in zip(host.base.loglikelihood(pairs), on_card.loglikelihood(pairs), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_a_cards_costs_are_measured_once_and_read_afterwards(tiny, empty_cache, monkeypatch):
    host = ModelHost(resolve(str(tiny)), tiny_methods.CPU)
    timings = iter([make_timings()])  # a second measuring would find none
    monkeypatch.setattr(pass_costs, "measure_passes", lambda model: next(timings))
    measured = card_costs(host.model, host.source, CARD, 24 * GB)
    assert measured == solve(make_timings())._replace(keys=measured.keys)
    (file,) = (empty_cache / "pass_costs").iterdir()
    assert card_costs(host.model, host.source, CARD, 24 * GB) == measured
    remember(file, [2048, 4096, 512, 0])
    again = card_costs(host.model, host.source, CARD, 24 * GB)
    assert again == PassCosts(2048, 4096, 512, measured.keys)


def test_a_model_that_cannot_be_read_so_is_laid_out_by_a_cpus_costs_and_nothing_is_kept(
    tiny, empty_cache, monkeypatch
):
    host = ModelHost(resolve(str(tiny)), tiny_methods.CPU)
    monkeypatch.setattr(host.model, "forward", lambda **_: ()[0])
    found = card_costs(host.model, host.source, CARD, 24 * GB)
    assert found._replace(keys=0) == CPU_COSTS
    assert found.keys > 0
    assert not (empty_cache / "pass_costs").exists()


def test_keys_take_four_fifths_of_what_the_weights_leave_and_batches_hold_no_more(tiny):
    host, of = ModelHost(resolve(str(tiny)), tiny_methods.CPU), shape(resolve(str(tiny)))
    found = card_costs(host.model, host.source, CARD, 24 * GB)
    fitting = 0.8 * (24 - 3 - memory.weights_gb(of, "bf16")) * GB / memory.kv_cache_bytes(of, 1, "bf16")
    assert found.keys <= fitting < 2 * found.keys
    assert card_costs(host.model, host.source, CARD, 1 * GB).keys == 4096  # those of a long prompt at least
    lengths = [10] * 8
    assert len(plan(lengths, Size(8, 1000), 24)) == 1
    assert [len(batch) for batch in plan(lengths, Size(8, 1000), 24, keys=330, shared=100)] == [2, 3, 3]
    assert [len(batch) for batch in plan(lengths, Size(8, 1000), 24, keys=50, shared=100)] == [1] * 8
