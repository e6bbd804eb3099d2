"""vLLM and transformers give the same numbers, of the base and with an adapter; needs vLLM."""

import pytest
import tiny_experiment
import tiny_model
from tiny_model import CHOICES, QUESTIONS, adapter_on

from harness import report
from harness.errors import CandidateFailed
from harness.models import vllm
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.vllm import VllmHost
from harness.records import Limits
from harness.store import Store, list_runs

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(vllm.find_installed_version() is None, reason="vLLM is not installed"),
]

CPU = Machine("cpu", "CPU", "fp32", 1.0)
NATS = 1e-3

CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: knn, shots: 2}}}
  ranked: {answer: rank}
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
  hybrid: {weights_of: lora, prompting: {few_shot: {select: fixed, shots: 2}}}
  half: {method: scaled, init_from: lora}
  full: {method: full, params: {num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Make a tiny model with heads as wide as vLLM's attention on CPUs asks for."""
    return tiny_model.build(tmp_path_factory.mktemp("tiny"), head_dim=32)


@pytest.fixture(scope="module")
def hf_host(tiny, own_cache):
    return ModelHost(resolve(str(tiny)), CPU)


@pytest.fixture(scope="module")
def vllm_host(tiny, own_cache):
    return VllmHost(resolve(str(tiny)), CPU)


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    return adapter_on(
        tiny, tmp_path_factory.mktemp("adapter"), r=4, target_modules="all-linear", lora_alpha=6
    )


def encode_questions(candidate):
    return [candidate.encode([{"role": "user", "content": text}]).context for text in QUESTIONS]


def pairs(candidate):
    turns = [[{"role": "user", "content": text}] for text in QUESTIONS]
    encoded = [candidate.encode(turn, choice) for turn in turns for choice in CHOICES]
    whole = candidate.encode((), " ".join(QUESTIONS), chat_template=False)
    return [(e.context, e.continuation) for e in (*encoded, whole)]


def assert_equal_likelihoods(ours, theirs):
    one, other = ours.loglikelihood(pairs(ours)), theirs.loglikelihood(pairs(theirs))
    assert [x.logprob for x in other] == pytest.approx([x.logprob for x in one], abs=NATS)
    assert [x.greedy for x in other] == [x.greedy for x in one]


def answers(candidate, limits):
    found = candidate.generate(encode_questions(candidate), limits)
    return [(o.text, o.finish_reason, o.n_prompt_tokens, o.n_output_tokens) for o in found]


def test_likelihoods_are_those_of_transformers(hf_host, vllm_host):
    assert_equal_likelihoods(hf_host.base, vllm_host.base)


def test_what_the_model_itself_would_say_is_greedy(hf_host, vllm_host):
    prompt = encode_questions(hf_host.base)[0]
    greedy = hf_host.model.generate(_tensor(prompt), max_new_tokens=4, do_sample=False, eos_token_id=-1)
    continuation = tuple(greedy[0, len(prompt) :].tolist())
    assert vllm_host.base.loglikelihood([(prompt, continuation)])[0].greedy


def _tensor(row):
    import torch

    return torch.tensor([list(row)])


@pytest.mark.parametrize("limits", [Limits(1), Limits(12), Limits(40)])
def test_answers_are_those_of_transformers(hf_host, vllm_host, limits):
    assert answers(vllm_host.base, limits) == answers(hf_host.base, limits)


def test_an_answer_ends_before_a_stop_string_as_with_transformers(hf_host, vllm_host):
    text = hf_host.base.generate(encode_questions(hf_host.base)[:1], Limits(12))[0].text
    limits = Limits(12, (text[4:6], "never said"))
    one, other = answers(hf_host.base, limits), answers(vllm_host.base, limits)
    assert [said[:3] for said in other] == [said[:3] for said in one]
    assert other[0][0] == text[: text.index(text[4:6])]
    # Where a token is half a character vLLM sees the stop string one token later.
    assert [said[3] for said in other] == pytest.approx([said[3] for said in one], abs=1)


def test_an_answer_ends_at_the_models_own_end_token(hf_host, vllm_host):
    prompt = encode_questions(hf_host.base)[:1]
    new = hf_host.model.generate(_tensor(prompt[0]), max_new_tokens=3, do_sample=False)[0, len(prompt[0]) :]
    before, vllm_host.ends = vllm_host.ends, [*vllm_host.ends, int(new[-1])]
    try:
        found = vllm_host.base.generate(prompt, Limits(8))[0]
    finally:
        vllm_host.ends = before
    assert found.finish_reason == "stop"
    assert found.n_output_tokens == new.tolist().index(int(new[-1]))


def test_an_adapter_says_what_it_says_in_transformers(hf_host, vllm_host, adapter):
    base = [x.logprob for x in vllm_host.base.loglikelihood(pairs(vllm_host.base))]
    with hf_host.use_adapter(adapter, "one") as one, vllm_host.use_adapter(adapter, "one") as other:
        assert_equal_likelihoods(one, other)
        assert answers(other, Limits(12)) == answers(one, Limits(12))
        changed = [x.logprob for x in other.loglikelihood(pairs(other))]
    assert max(abs(a - b) for a, b in zip(base, changed, strict=True)) > 1


def test_the_base_is_exactly_itself_after_an_adapter(vllm_host, adapter):
    before = vllm_host.base.loglikelihood(pairs(vllm_host.base)), answers(vllm_host.base, Limits(12))
    with vllm_host.use_adapter(adapter, "two") as candidate:
        assert candidate.loglikelihood(pairs(candidate)) != before[0]
    assert (
        vllm_host.base.loglikelihood(pairs(vllm_host.base)),
        answers(vllm_host.base, Limits(12)),
    ) == before


def test_an_adapter_on_the_vocabulary_is_refused(tiny, vllm_host, tmp_path):
    folder = adapter_on(tiny, tmp_path, r=4, target_modules=["q_proj", "lm_head"])
    with (
        pytest.raises(CandidateFailed, match="vLLM is not given an adapter on lm_head"),
        vllm_host.use_adapter(folder, "x"),
    ):
        pass


def test_the_base_answers_again_after_a_call_that_failed(tiny, vllm_host, tmp_path):
    before = vllm_host.base.loglikelihood(pairs(vllm_host.base))
    folder = adapter_on(tiny, tmp_path, r=2 * vllm.MAX_RANK, target_modules="all-linear")
    with pytest.raises(ValueError, match="rank"), vllm_host.use_adapter(folder, "wide") as candidate:
        candidate.loglikelihood(pairs(candidate))
    assert vllm_host.base.loglikelihood(pairs(vllm_host.base)) == before


def test_what_was_asked_before_changes_nothing(vllm_host):
    wanted = pairs(vllm_host.base)[:3]
    first = vllm_host.base.loglikelihood(wanted)
    answers(vllm_host.base, Limits(12))
    assert vllm_host.base.loglikelihood(wanted) == first


def test_nothing_asked_is_nothing_answered(vllm_host):
    assert vllm_host.base.loglikelihood([]) == vllm_host.base.generate([], Limits(4)) == []


@pytest.fixture(scope="module")
def engine_reports(tiny, own_cache, tmp_path_factory):
    """Run one experiment by both engines in one folder; returns its file and both reports."""
    path = tiny_experiment.write(tmp_path_factory.mktemp("engines"), tiny, CANDIDATES)
    theirs = tiny_experiment.run(path, "engine=vllm")  # first, so that it trains as well
    return path, tiny_experiment.run(path), theirs


def test_a_whole_comparison_gives_the_scores_of_transformers(engine_reports):
    _, ours, theirs = engine_reports
    assert {(f.name, f.state, f.error) for f in theirs.facts} == {(f.name, "done", "") for f in ours.facts}
    one, other = ({f.name: f.target.score for f in found.facts} for found in (ours, theirs))
    assert other == pytest.approx(one)
    assert report.to_json(theirs)["header"]["engine"] == f"vllm/{vllm.find_installed_version()}"


def test_weights_are_trained_once_and_rows_are_kept_apart_by_engine(engine_reports):
    path, _, theirs = engine_reports
    runs = list_runs(Store(path.parent / "runs"))
    lora = [run for run in runs if run.candidate == "lora"]
    assert len({run.weights_digest for run in lora}) == 1
    assert len({run.rows["facts/test"] for run in lora}) == 2
    again = tiny_experiment.run(path, "engine=vllm")
    assert [f.target.score for f in again.facts] == [f.target.score for f in theirs.facts]
