"""A base larger than one device is spread by need, answers the same, and is measured as it is served."""

import pytest
import tiny_experiment
import tiny_methods

from harness import config
from harness.errors import CandidateFailed
from harness.experiment import Scope, bases, prepare_session
from harness.models import hub, memory
from harness.models.devices import LEAST_TOKENS, is_spread, place
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.progress import SilentProgress
from harness.records import Limits

CPU = tiny_methods.CPU
GPU = CPU._replace(device="cuda", precision="bf16")
GB = 10**9
PAIRS = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (11, 12, 13)), ((5, 6), (7,))]
PROMPTS = [(5, 6, 7), (8, 9)]


@pytest.fixture(scope="module")
def source(tiny):
    return resolve(str(tiny))


@pytest.fixture(scope="module")
def large_source(source):
    return source._replace(n_parameters=70 * GB)


def halves(source):
    """Return a main memory in which three quarters of the weights fit next to the keys."""
    keys = memory.kv_cache_bytes(hub.shape(source), LEAST_TOKENS, "fp32")
    return {"cpu": int(keys + 0.75 * 4 * source.n_parameters / 0.9)}


# The plan, from sizes alone


def test_a_larger_base_is_spread_over_gpus_then_main_memory_then_the_disk(source, large_source):
    assert place(source, CPU, {"cpu": GB}) == {}
    assert place(source, GPU, {0: GB, "cpu": GB}) == {"device_map": {"": "cuda"}}
    assert place(large_source, GPU, {0: 141 * GB, "cpu": GB}) == {"device_map": {"": "cuda"}}
    plan = place(large_source, GPU, {0: 80 * GB, 1: 80 * GB, "cpu": 100 * GB})
    each = measure_room(large_source, 80)
    assert plan == {"device_map": "auto", "max_memory": {0: each, 1: each, "cpu": 90 * GB}}
    plan = place(quantize(large_source, "nf4"), GPU, {0: 24 * GB, 1: 24 * GB, "cpu": 100 * GB})
    each = measure_room(large_source, 24)
    assert plan == {"device_map": "auto", "max_memory": {0: each, 1: each}}
    plan = place(source, CPU, halves(source))
    assert plan["device_map"] == "auto"
    assert 0.7 < plan["max_memory"]["cpu"] / (4 * source.n_parameters) < 0.8


def measure_room(source, gb):
    return int(gb * GB - memory.kv_cache_bytes(hub.shape(source), LEAST_TOKENS, "bf16") / 2)


# Answers of a spread base


@pytest.fixture(scope="module")
def hosts(source):
    return ModelHost(source, CPU), ModelHost(source, CPU, room=halves(source))


def test_a_base_partly_on_the_disk_says_what_it_says_in_memory(hosts):
    whole, spread = hosts
    assert not is_spread(whole.model)
    assert {*spread.model.hf_device_map.values()} == {"cpu", "disk"}
    for s, w in zip(spread.base.loglikelihood(PAIRS), whole.base.loglikelihood(PAIRS), strict=True):
        assert s.logprob == pytest.approx(w.logprob, abs=1e-4)
    texts = [[a.text for a in host.base.generate(PROMPTS, Limits(max_new_tokens=5))] for host in hosts]
    assert texts[0] == texts[1]
    assert (spread.base.engine, spread.base.layout_digest) == (whole.base.engine, whole.base.layout_digest)


def test_what_has_no_room_or_lies_on_the_disk_is_refused(hosts, tmp_path, source):
    with (
        pytest.raises(CandidateFailed, match="partly in main memory or on the disk"),
        hosts[1].use_adapter(tmp_path, "any"),
    ):
        pass
    with pytest.raises(CandidateFailed, match="no memory has room for its embeddings"):
        ModelHost(source, CPU, room={"cpu": halves(source)["cpu"] // 2})


# A base that is measured as it is served

TWO = """\
  prompt: {method: base}
  qlora: {method: qlora, params: {r: 2}}
"""


def test_a_base_that_fits_no_gpu_is_measured_as_its_fine_tunes_are_served(tiny, tmp_path):
    room = int(memory.OVERHEAD_GB * GB + 0.6 * 2 * resolve(str(tiny)).n_parameters)
    path = tiny_experiment.write(tmp_path, tiny, TWO)
    path.write_text(path.read_text().replace("device: cpu", "device: cuda").replace("fp32", "bf16"))
    memories = {0: room, "cpu": GB}
    session = prepare_session(config.load(path), Scope(dry_run=True), SilentProgress(), GPU, memories)
    prompt, qlora = (session.candidates[name] for name in ("prompt", "qlora"))
    assert session.source.quantization == "nf4"
    assert prompt.base == qlora.base == qlora.trained_base == qlora.served_base == session.source
    (remark,) = bases.base_remarks(session.sources)
    assert "does not fit the GPUs here in 16 bits: the base itself is measured in NF4" in remark
