"""Adapters in a new process compute what they did where they were trained, by PEFT alone and as candidates."""

from typing import NamedTuple

import other_process
import pytest
import test_peft
import tiny_methods
from tiny_methods import CPU

from harness.methods import grpo, rloo
from harness.training import LoraParams, Reward, lora_config
from harness.training import reinforcement as rl
from harness.training.low_rank_adapters import load_policy, save_policy

pytestmark = [pytest.mark.weekly, pytest.mark.usefixtures("own_cache")]

IDS = tuple(range(5, 25))
PAIRS = ((IDS[:3], IDS[3:9]), (IDS[:5], IDS[5:12]), (IDS[:1], IDS[4:5]))
ALGORITHMS = {"GRPO": grpo, "RLOO": rloo}
LENGTH = '''\
def reward(prompts, completions, references):
    """Reward short answers."""
    return [-float(len(text)) for text in completions]
'''


class ModelOutputs(NamedTuple):
    """What a model computes where it was trained."""

    logits: object
    logprobs: list[float]


def compute_in_memory(model):
    return ModelOutputs(other_process.logits_of(model, IDS), other_process.logprobs_of(model, PAIRS))


@pytest.fixture(scope="module")
def base_logits(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    return other_process.logits_of(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), IDS)


def train_policy(algorithm, tiny, folder):
    """Train a policy by the trainer of its method; returns what it computes, and how rewards differed by step."""
    (folder / "short.py").write_text(LENGTH)
    context = tiny_methods.context(tiny, folder, reward=Reward(written=str(folder / "short.py")))
    policy = load_policy(context, lora_config(LoraParams(r=4)), folder / "adapter")
    quick = {"learning_rate": 0.05, "warmup_steps": 0, "max_steps": 2, "per_device_train_batch_size": 8}
    params = ALGORITHMS[algorithm].Params(r=4, max_completion_length=6, **quick)
    rows, _ = rl._rows(context, params, policy.tokenizer)
    trainer = rl._trainer(policy, params, algorithm, rows)
    trainer.train()
    save_policy(trainer.model, folder / "adapter")
    spread = [entry["reward_std"] for entry in trainer.state.log_history if "reward_std" in entry]
    return compute_in_memory(trainer.model), spread


@pytest.fixture(scope="module")
def policies(tiny, own_cache, tmp_path_factory):
    """Train by each algorithm, and open both adapters in one new process."""
    folders = {algorithm: tmp_path_factory.mktemp(algorithm) for algorithm in ALGORITHMS}
    made = [train_policy(algorithm, tiny, folder) for algorithm, folder in folders.items()]
    opened = other_process.open_adapters(tiny, [f / "adapter" for f in folders.values()], IDS, PAIRS)
    return dict(zip(folders, zip(made, opened, strict=True), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_whose_rewards_differ_moves_and_is_the_same_in_another_process(
    base_logits, policies, algorithm
):
    import torch

    (in_memory, spread), opened = policies[algorithm]
    assert min(spread) > 0
    assert (in_memory.logits - base_logits).abs().max().item() > 0.01
    assert torch.tensor(opened.logits).allclose(in_memory.logits, rtol=1e-5, atol=1e-5)
    assert opened.logprobs == pytest.approx(in_memory.logprobs, abs=1e-4)


def family(tiny, folder, name):
    """Train a family of PEFT; returns its weights, and what it computes here."""
    # That is the model it was trained in; soft prompts, which are put before its tokens and not into it, are
    # opened here by PEFT alone.
    from peft import PeftModel

    from harness.models.devices import load_base

    weights, model = test_peft.train(tiny, folder, name)
    if name in test_peft.SOFT:
        base, _ = load_base(tiny_methods.context(tiny, folder).source, CPU)
        model = PeftModel.from_pretrained(base, weights.folder / "adapter")
    return weights, compute_in_memory(model)


@pytest.fixture(scope="module")
def families(tiny, own_cache, tmp_path_factory):
    """Train every family of PEFT, and open all adapters in one new process."""
    made = {name: family(tiny, tmp_path_factory.mktemp("family"), name) for name in test_peft.FAMILIES}
    folders = [weights.folder / "adapter" for weights, _ in made.values()]
    opened = other_process.open_adapters(tiny, folders, IDS, PAIRS)
    return {name: (here, there) for (name, (_, here)), there in zip(made.items(), opened, strict=True)}


@pytest.mark.parametrize("name", test_peft.FAMILIES)
def test_a_family_of_peft_is_the_same_in_another_process(families, name):
    import torch

    here, there = families[name]
    most = test_peft.CLOSE * here.logits.abs().max().item()
    assert torch.tensor(there.logits).allclose(here.logits, rtol=0, atol=most)
    assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4)
