"""Our engine behind lm-eval's own evaluator, beside lm-eval's own model, item by item in fp32."""

from pathlib import Path

import lm_eval
import numpy as np
import pytest
import tiny_hub
import tiny_model
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from harness.errors import CandidateFailed, UserError
from harness.evaluation.lm_eval.engine_for_lm_eval import HarnessLM
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import resolve

HOME = Path(lm_eval.__file__).parent / "tasks"
TASKS = {"arc_easy": "arc", "lambada_openai": "lambada", "wikitext": "wikitext", "gsm8k": "gsm8k"}
LONG = " ".join(["A red fox walks past a green gate at noon."] * 90)

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Copy the tiny model with room for 256 generated tokens behind a prompt."""
    return tiny_model.copy(tiny, tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=700)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return tiny_hub.write(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def harness_lm(folder, own_cache):
    return HarnessLM(str(folder), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def hf_lm(folder):
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=3)


def samples(model, hub, tasks, **options):
    """Let lm-eval ask a model some tasks; its samples by task."""
    manager = TaskManager(include_defaults=False, include_path=[HOME / TASKS[task] for task in tasks])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)  # where lm-eval finds a folder in place of a name on the hub
        found = lm_eval.simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, num_fewshot=1, bootstrap_iters=0, **options
        )
    return found["samples"]


@pytest.fixture(scope="module")
def both_samples(harness_lm, hf_lm, hub):
    return [samples(model, hub, list(TASKS)) for model in (harness_lm, hf_lm)]


def likelihoods(found):
    """Return every log-likelihood of a task's samples, and whether it was the greedy one."""
    given = [r if isinstance(r, tuple) else (r, False) for s in found for r in s["filtered_resps"]]
    return np.array([x for x, _ in given]), [greedy for _, greedy in given]


@pytest.mark.parametrize("task", ["arc_easy", "lambada_openai", "wikitext"])
def test_every_likelihood_is_that_of_lm_evals_own_model(both_samples, task):
    (mine, greedy), (expected, as_greedy) = (likelihoods(found[task]) for found in both_samples)
    assert mine == pytest.approx(expected, abs=1e-3)
    assert greedy == as_greedy
    assert len(mine) >= 2


def test_every_generated_text_is_that_of_lm_evals_own_model(both_samples):
    mine, expected = ([s["resps"] for s in found["gsm8k"]] for found in both_samples)
    assert mine == expected
    assert any(text for ((text,),) in mine)


def make_instance(kind, *args):
    return Instance(kind, {}, args, 0, ("task", 0, 1))


def test_an_answer_ends_before_a_stop_string(harness_lm, hf_lm):
    prompt = "Where is my parcel?"
    whole = harness_lm.generate_until(
        [make_instance("generate_until", prompt, {"until": [], "max_gen_toks": 24})]
    )[0]
    stop = whole[len(whole) // 2 :][:3]
    request = make_instance("generate_until", prompt, {"until": [stop], "max_gen_toks": 24})
    assert (
        harness_lm.generate_until([request])
        == hf_lm.generate_until([request])
        == [whole[: whole.index(stop)]]
    )
    assert whole.index(stop) > 0


def test_the_chat_template_is_applied_as_by_lm_evals_own_model(harness_lm, hf_lm, hub):
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}
    mine, expected = (samples(model, hub, ["arc_easy"], **chat)["arc_easy"] for model in (harness_lm, hf_lm))
    assert [s["arguments"] for s in mine] == [s["arguments"] for s in expected]
    assert mine[0]["arguments"][0][0].startswith("<|im_start|>system\nBe brief.")
    assert likelihoods(mine)[0] == pytest.approx(likelihoods(expected)[0], abs=1e-3)


def test_what_is_too_long_loses_its_beginning_as_in_lm_eval_or_is_refused(harness_lm, hf_lm):
    requests = [make_instance("loglikelihood", LONG, " green gate")]
    (mine, _), (expected, _) = harness_lm.loglikelihood(requests)[0], hf_lm.loglikelihood(requests)[0]
    assert mine == pytest.approx(expected, abs=1e-3)
    assert len(harness_lm.candidate.tokenizer(LONG)["input_ids"]) > harness_lm.candidate.max_context
    requests = [make_instance("generate_until", LONG, {"until": ["\n"], "max_gen_toks": 4})]
    assert harness_lm.generate_until(requests) == hf_lm.generate_until(requests)
    with pytest.raises(CandidateFailed, match=r"task task: prompt of \d+ tokens, the context holds 700"):
        harness_lm.loglikelihood([make_instance("loglikelihood", "A", LONG)])


def test_a_candidate_that_is_open_is_asked_as_it_is_and_lm_eval_knows_the_model(folder):
    candidate = ModelHost(resolve(str(folder)), Machine("cpu", "CPU", "fp32", 1.0)).base
    assert HarnessLM(candidate).candidate is candidate
    assert get_model("harness") is HarnessLM
    assert get_model("hf") is HFLM


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "fp8"}, "precision: found 'fp8'; expected auto, bf16, fp16, fp32"),
        ({"device": "mps"}, "device: found 'mps'; expected auto, cuda:0, cuda, cpu"),
        ({"pretrained": "no-such-model"}, "no-such-model"),
    ],
)
def test_what_cannot_be_opened_is_said(given, said):
    with pytest.raises(UserError, match=said):
        HarnessLM(**given)


@pytest.mark.e2e
def test_the_device_that_lm_eval_names_unasked_is_the_fastest_there_is(folder):
    import torch

    found = HarnessLM(str(folder), "fp32", "cuda:0").candidate.model.device.type
    assert found == ("cuda" if torch.cuda.is_available() else "cpu")
