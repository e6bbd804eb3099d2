"""FSDP2 and DeepSpeed's ZeRO: accelerate's own reading of their configuration, and what is refused before."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_experiment
import tiny_methods
from safetensors.numpy import load_file
from test_shared_training import ignore, read_fit

from harness import config, training
from harness.errors import UserError
from harness.experiment import Scope, prepare_session
from harness.experiment.preparation.candidate_problems import check_gpus, check_sharing
from harness.experiment.training_fit import folder_of, shards_of
from harness.models import memory
from harness.models.hub import resolve, shape
from harness.progress import SilentProgress
from harness.spec import AcceleratePolicy, TrainingPolicy
from harness.training import worker
from harness.training.job import LAUNCH
from harness.training.parallel import write_launch

pytestmark = pytest.mark.usefixtures("own_cache")
DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
FSDP = AcceleratePolicy(num_processes=2, distributed_type="FSDP")
ZERO_2, ZERO_3 = (
    AcceleratePolicy(num_processes=2, distributed_type="DEEPSPEED", zero_stage=stage) for stage in (2, 3)
)


def write_job(tiny, folder, policy, method="lora", **params):
    rank = {"r": 2} if method == "lora" else {}
    job = training.TrainingJob(
        method=method,
        params={"max_length": 200, **rank, **params},
        source=resolve(str(tiny)),
        machine=tiny_methods.CPU,
        seed=0,
        regularize={},
        threads=1,
        processes=policy.num_processes,
        shards=policy.shards,
        code=training.code_of(method, ()),
    )
    rows = {"train": tiny_methods.examples(slice(0, 2)), "validation": tiny_methods.examples(slice(5, 6))}
    training.write_job(folder, job, **rows, pairs=())
    if policy.num_processes > 1:
        write_launch(folder, policy, "cuda" if policy.shards else "cpu")
    return folder


# accelerate's own reading of what is written


def environment(folder):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(folder / LAUNCH), "-m", worker.COMMAND[-1], str(folder)]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    if args.use_deepspeed:
        return prepare_deepspeed_cmd_env(args)[1]
    assert args.use_fsdp
    assert not args.use_cpu
    return prepare_multi_gpu_env(args)


def test_accelerate_starts_fsdp2_by_the_models_own_blocks_from_the_configuration(tmp_path, monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import StateDictType

    write_launch(tmp_path, FSDP, "cuda")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.cpu_ram_efficient_loading
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # so those are taken that the model does not split


@pytest.mark.parametrize("policy", [ZERO_2, ZERO_3], ids=["ZeRO 2", "ZeRO 3"])
def test_accelerate_starts_deepspeed_at_the_stage_with_what_the_trainer_fills_in(tmp_path, policy):
    write_launch(tmp_path, policy, "cuda")
    said = {name: value for name, value in environment(tmp_path).items() if "DEEPSPEED" in name}
    assert said["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert said["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(policy.zero_stage)
    assert said["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == str(policy.zero_stage == 3).lower()
    assert environment(tmp_path)["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"


# Weights that no process holds whole


def train_both(tiny, folder, policy, method="lora", **params):
    alone = write_job(tiny, folder / "alone", AcceleratePolicy(), method, **params)
    shared = write_job(tiny, folder / "shared", policy, method, **params)
    training.run_job(alone, ignore)
    launcher = (sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file")
    here = str(shared / LAUNCH), str(Path(__file__).with_name("cpus_for_gpus.py"))
    worker.launch(shared, ignore, (*launcher, *here))
    return alone, shared


def difference(alone, shared, file):
    one, other = (load_file(at / file) for at in (alone, shared))
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name]).max() for name in one)


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        pytest.param(FSDP, "lora", marks=pytest.mark.slow),
        pytest.param(FSDP, "full", marks=pytest.mark.weekly),
        pytest.param(ZERO_2, "lora", marks=[pytest.mark.weekly, DEEPSPEED]),
        pytest.param(ZERO_3, "lora", marks=[pytest.mark.weekly, DEEPSPEED]),
    ],
    ids=["FSDP2", "FSDP2 of all parameters", "ZeRO 2", "ZeRO 3"],
)
def test_two_processes_with_a_shard_each_make_the_weights_of_one(tiny, tmp_path, policy, method):
    whole = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_train_epochs": 3}
    knobs = whole | {"warmup_steps": 0, "gradient_checkpointing": True}
    alone, shared = train_both(tiny, tmp_path, policy, method, **knobs)
    files = {"lora": "adapter/adapter_model.safetensors", "full": "model/model.safetensors"}
    assert difference(alone, shared, files[method]) < 1e-4
    record, expected = read_fit(shared)["training"], read_fit(alone)["training"]
    assert (record["n_processes"], record["n_trainable"]) == (2, expected["n_trainable"])
    assert np.allclose(record["loss"], expected["loss"], atol=1e-3)
    assert record["loss"][0][1] - record["loss"][-1][1] > 0.01  # something was learned


# What is refused before anything runs


CANDIDATES = """\
  lora: {method: lora, params: {max_length: 200}}
  tracked: {method: lora, params: {max_length: 200, optim: adamw_8bit}, track: {points: 2}}
  bag: {method: classifier}
"""


def session_of(tiny, folder, policy):
    path = tiny_experiment.write(folder, tiny, CANDIDATES)
    session = prepare_session(config.load(path), Scope(), SilentProgress())
    experiment = session.experiment.model_copy(update={"training": TrainingPolicy(accelerate=policy)})
    return replace(session, experiment=experiment, machine=session.machine._replace(device="cuda"))


def test_shards_are_refused_without_gpus_and_without_deepspeed(tiny, tmp_path):
    extra = "training: {accelerate: {num_processes: 2, distributed_type: DEEPSPEED}}\n"
    path = tiny_experiment.write(tmp_path, tiny, extra=extra)
    with pytest.raises(UserError) as refused:
        prepare_session(config.load(path), Scope(), SilentProgress())
    said = str(refused.value)
    assert "found distributed_type: DEEPSPEED, and no GPU here; expected a GPU for each process" in said
    assert "found distributed_type: DEEPSPEED, and no package deepspeed; expected the package" in said
    assert "pip install 'harness-evals[deepspeed]', or distributed_type: FSDP" in said


@pytest.mark.e2e
def test_one_gpu_too_few_and_what_needs_whole_weights_are_named_for_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    session = session_of(tiny, tmp_path, FSDP)
    (problem,) = check_gpus(session)
    assert problem.found == "num_processes: 2, and 1 GPU for each training"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [*check_gpus(session)] == []
    assert [*check_sharing(session, session.candidates["lora"])] == []
    assert [problem.found for problem in check_sharing(session, session.candidates["tracked"])] == [
        "track, and distributed_type: FSDP, whose weights are put together at the end alone",
        "optim: adamw_8bit, which is bitsandbytes', and distributed_type: FSDP",
    ]


# Identity and estimate


def test_the_kind_of_shards_is_part_of_the_weights_key_where_there_are_some(tiny, tmp_path):
    plain = AcceleratePolicy(num_processes=2)
    keys = {}
    for name, policy in {"plain": plain, "FSDP": FSDP, "ZeRO 2": ZERO_2, "ZeRO 3": ZERO_3}.items():
        session = session_of(tiny, tmp_path / name, policy)
        keys[name] = [folder_of(session, session.candidates[c], 0, None).name for c in ("lora", "bag")]
        assert shards_of(session, session.candidates["lora"].source) == policy.shards
    assert len({lora for lora, _ in keys.values()}) == 4
    assert len({bag for _, bag in keys.values()}) == 1


def test_shards_divide_weights_gradients_and_the_optimisers_but_for_two_layers(tiny):
    of = shape(resolve(str(tiny)))

    def peak(**given):
        return memory.training_peak(of, of.n_parameters, 800, "fp32", **given)

    whole, three, two = peak(), peak(shards=4), peak(shards=4, zero_stage=2)
    assert three.weights == pytest.approx(whole.weights / 4 + 2 * whole.weights / of.n_layers)
    assert two.weights == whole.weights
    for part in ("gradients", "optimizer"):
        assert getattr(three, part) == getattr(two, part) == pytest.approx(getattr(whole, part) / 4)
    assert three.activations == two.activations == whole.activations
