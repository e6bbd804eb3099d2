"""Adapters in a new process compute what they did where they were trained, by PEFT alone and as candidates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import test_peft
import tiny_methods
from tiny_model import logits

from harness.methods import grpo, rloo
from harness.models.devices import load_base
from harness.models.hub import resolve
from harness.training import LoraParams, Reward, lora_config
from harness.training import reinforcement as rl
from harness.training.low_rank_adapters import load_policy, save_policy

pytestmark = [pytest.mark.weekly, pytest.mark.usefixtures("own_cache")]

IDS = list(range(5, 25))
PAIRS = [(IDS[:3], IDS[3:9]), (IDS[:5], IDS[5:12]), (IDS[:1], IDS[4:5])]
ALGORITHMS = {"GRPO": grpo, "RLOO": rloo}
LENGTH = (
    "def reward(prompts, completions, references):\n    return [-float(len(text)) for text in completions]\n"
)
# It knows the model's folder and the adapters' folders, and nothing else of what trained them.
PROGRAM = """
import json, sys, torch
from pathlib import Path
from peft import PeftModel
from harness.models.hardware import Machine
from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import resolve

source, machine = resolve(sys.argv[1]), Machine("cpu", "CPU", "fp32", 1.0)
ids, pairs = json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
for folder in sys.argv[4:]:
    alone = PeftModel.from_pretrained(load_base(source, machine)[0], folder).eval()
    with torch.no_grad():
        logits = alone(torch.tensor([ids])).logits[0].tolist()
    with ModelHost(source, machine).use_adapter(Path(folder), "opened") as opened:
        scored = opened.loglikelihood([(tuple(a), tuple(b)) for a, b in pairs])
    found[folder] = [logits, [one.logprob for one in scored]]
print(json.dumps(found))
"""


class Outputs(NamedTuple):
    """What is computed with an adapter: logits of `IDS` by PEFT, and the log-probabilities of `PAIRS`."""

    logits: object
    logprobs: list[float]


def compute_in_memory(model):
    logprobs = []
    for context, continuation in PAIRS:
        rows = logits(model, [*context, *continuation]).log_softmax(-1)[-len(continuation) - 1 : -1]
        logprobs.append(sum(rows[i, token].item() for i, token in enumerate(continuation)))
    return Outputs(logits(model, IDS), logprobs)


def open_adapters(model, folders):
    """Return what one new process computes with each adapter: by PEFT, and as a candidate."""
    import torch

    words = [str(model), json.dumps(IDS), json.dumps(PAIRS), *map(str, folders)]
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [Outputs(torch.tensor(found[str(at)][0]), found[str(at)][1]) for at in folders]


@pytest.fixture(scope="module")
def base_logits(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), IDS)


def train_policy(algorithm, tiny, folder):
    """Train a policy by the trainer of its method; returns what it computes, and how rewards differed by step."""
    (folder / "short.py").write_text(LENGTH)
    reward = Reward(written=str(folder / "short.py"))
    context = tiny_methods.context(tiny, folder, reward=reward)
    policy = load_policy(context, lora_config(LoraParams(r=4)), folder / "adapter")
    quick = {"learning_rate": 0.05, "warmup_steps": 0, "max_steps": 2, "per_device_train_batch_size": 8}
    params = ALGORITHMS[algorithm].Params(r=4, max_completion_length=6, **quick)
    rows, _ = rl._rows(context, params, policy.tokenizer)
    trainer = rl._trainer(policy, params, algorithm, rows, rl.rewards_of(reward))
    trainer.train()
    save_policy(trainer.model, folder / "adapter")
    spread = [entry["reward_std"] for entry in trainer.state.log_history if "reward_std" in entry]
    return compute_in_memory(trainer.model), spread


@pytest.fixture(scope="module")
def policies(tiny, own_cache, tmp_path_factory):
    """Train by each algorithm, and open both adapters in one new process."""
    folders = {algorithm: tmp_path_factory.mktemp(algorithm) for algorithm in ALGORITHMS}
    made = [train_policy(algorithm, tiny, folder) for algorithm, folder in folders.items()]
    opened = open_adapters(tiny, [folder / "adapter" for folder in folders.values()])
    return dict(zip(folders, zip(made, opened, strict=True), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_whose_rewards_differ_moves_and_is_the_same_in_another_process(
    base_logits, policies, algorithm
):
    (in_memory, spread), opened = policies[algorithm]
    assert min(spread) > 0
    assert (in_memory.logits - base_logits).abs().max().item() > 0.01
    assert opened.logits.allclose(in_memory.logits, rtol=1e-5, atol=1e-5)
    assert opened.logprobs == pytest.approx(in_memory.logprobs, abs=1e-4)


def family(tiny, folder, name):
    """Train a family of PEFT; returns its weights, and what it computes here."""
    # That is the model it was trained in; soft prompts, which are put before its tokens and not into it, are
    # opened here by PEFT alone.
    from peft import PeftModel

    weights, model = test_peft.train(tiny, folder, name)
    if name in test_peft.SOFT:
        base, _ = load_base(resolve(str(tiny)), tiny_methods.CPU)
        model = PeftModel.from_pretrained(base, weights.folder / "adapter")
    return weights, compute_in_memory(model)


@pytest.fixture(scope="module")
def families(tiny, own_cache, tmp_path_factory):
    """Train every family of PEFT, and open all adapters in one new process."""
    made = {name: family(tiny, tmp_path_factory.mktemp("family"), name) for name in test_peft.FAMILIES}
    opened = open_adapters(tiny, [weights.folder / "adapter" for weights, _ in made.values()])
    return {name: (here, there) for (name, (_, here)), there in zip(made.items(), opened, strict=True)}


@pytest.mark.parametrize("name", test_peft.FAMILIES)
def test_a_family_of_peft_is_the_same_in_another_process(families, name):
    here, there = families[name]
    most = test_peft.CLOSE * here.logits.abs().max().item()
    assert there.logits.allclose(here.logits, rtol=0, atol=most)
    assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4)
