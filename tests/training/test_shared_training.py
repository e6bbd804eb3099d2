"""Trainings shared by accelerate's processes by data, FSDP2 or ZeRO: equal weights, and early refusals."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from safetensors.numpy import load_file
from tiny_methods import ignore, read_fit

from harness import plugins, training
from harness.errors import CandidateFailed, UserError
from harness.experiment import recipe_warnings
from harness.experiment.candidate_problems import check_gpus, check_sharing
from harness.experiment.candidate_weights import Fit, processes_of, shards_of
from harness.models import memory
from harness.models.hub import quantize, resolve, shape
from harness.spec import AcceleratePolicy, TrainingPolicy
from harness.training import job_worker
from harness.training.context import CHECKPOINTS
from harness.training.job import LAUNCH
from harness.training.parallel import write_launch
from harness.training.sft import SupervisedParams

pytestmark = pytest.mark.usefixtures("own_cache")


LORA = {"r": 2, "per_device_train_batch_size": 4, "num_train_epochs": 2, "max_length": 200}
STEPS = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "max_length": 200,
    "warmup_steps": 0,
}
TWO = "training: {accelerate: {num_processes: 2}}\n"


def write_job(tiny, folder, policy, method="lora", **params):
    """Write a job for the processes of a policy, or for this many that share rows on a CPU."""
    policy = AcceleratePolicy(num_processes=policy) if isinstance(policy, int) else policy
    source = quantize(resolve(str(tiny)), plugins.method(method).quantization)
    job_params = {"threads": 1, "processes": policy.num_processes, "shards": policy.shards, "source": source}
    tiny_methods.write_job(tiny, folder, method, params, n_pairs=5, **job_params)
    if policy.num_processes > 1:
        write_launch(folder, policy, "cuda" if policy.shards else "cpu")
    return folder


SHARED = {
    "dpo": {"learning_rate": 1e-2}, "spectrum": {},
    "ADALORA": {"init_r": 4, "target_r": 2, "learning_rate": 1e-2},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny, own_cache, tmp_path_factory):
    return make_by_one_and_two(tiny, tmp_path_factory.mktemp("shared"), SHARED)


def make_by_one_and_two(model, folder, methods, **steps):
    """Train each method's weights in one process, and all of them in two processes with one start."""
    for name, changes in methods.items():
        is_method = name in plugins.names("methods")
        method, params = (name, changes) if is_method else ("peft", {"peft_type": name} | changes)
        for n in (1, 2):
            write_job(model, folder / f"{name}-{n}", n, method, **STEPS | steps | params)
        training.run_job(folder / f"{name}-1", ignore)
    shared = [str(folder / f"{name}-2") for name in methods]
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file"]
    script = str(Path(__file__).parents[1].joinpath("shared_jobs.py"))
    subprocess.run([*launcher, f"{shared[0]}/{LAUNCH}", script, *shared], check=True, timeout=1800)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("name", SHARED)
def test_two_processes_make_what_one_makes_by_each_method_that_can_be_shared(made, name):
    assert_equal_weights(made, name, 1e-4)
    loss = read_fit(made / f"{name}-1")["training"]["loss"]
    assert loss[0][1] - loss[-1][1] > 1e-3  # something was learned


def assert_equal_weights(folder, name, tolerance):
    alone, shared = folder / f"{name}-1", folder / f"{name}-2"
    record, expected = read_fit(shared)["training"], read_fit(alone)["training"]
    (file,) = (alone / read_fit(alone)["kind"]).glob("*_model.safetensors")
    assert differences(alone, shared, file.relative_to(alone)).max() < tolerance
    assert record["n_processes"] == 2
    for curve in ("loss", "validation_loss", "reward_margin", "heldout_accuracy"):
        assert np.allclose(record.get(curve, []), expected.get(curve, []), atol=1e-3), curve


@pytest.mark.weekly
def test_two_processes_train_the_embedded_model_as_one_does(tmp_path):
    rates = {"dpo": 3e-5, "qlora": 1e-3, "spectrum": 1e-4, "bottleneck": 1e-4, "IA3": 3e-3}
    methods = {name: {"learning_rate": rate} for name, rate in rates.items()}
    few = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    folder = make_by_one_and_two("smollm2-135m", tmp_path, methods, **few)
    for name, rate in rates.items():
        assert_equal_weights(folder, name, rate)


def process_of(folder, rank):
    for at in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = (at / "cmdline").read_bytes(), (at / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and f"RANK={rank}".encode() in variables:
            return int(at.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.weekly
@pytest.mark.parametrize(
    ("method", "step", "checkpoint"),
    [("lora", 3, "checkpoint-2"), ("dpo", 4, "checkpoint-3")],
    ids=["in an epoch", "on pairs"],
)
def test_a_process_that_is_killed_ends_the_training_which_goes_on_as_if_undisturbed(
    tiny, tmp_path, method, step, checkpoint
):
    dropout = {"lora_dropout": 0.2} if method == "lora" else {}
    undisturbed, folder = (
        write_job(tiny, tmp_path / name, 2, method, **LORA, **dropout) for name in ("one", "two")
    )
    job_worker.launch(undisturbed, ignore)

    def kill(n_done, total, note=""):
        if n_done == step:
            os.kill(process_of(folder, 1), signal.SIGKILL)

    with pytest.raises(CandidateFailed, match="was killed \\(SIGKILL\\), as the system does when memory"):
        job_worker.launch(folder, kill)
    assert not (folder / training.FIT).exists()
    assert {path.name for path in (folder / CHECKPOINTS).glob("checkpoint-*")} == {checkpoint}
    heard = []
    job_worker.launch(folder, lambda n_done, total, note="": heard.append(n_done))
    assert heard[0] == step
    assert read_fit(folder)["digest"] == read_fit(undisturbed)["digest"]


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "expected"),
    [
        (8, 1, 8, (1, 1)), (1, 8, 4, (1, 2)), (3, 4, 2, (3, 2)), (4, 1, 1, (4, 1)),
    ],
)  # fmt: skip
def test_a_step_has_as_many_rows_as_without_sharing(batch, accumulation, processes, expected):
    params = SupervisedParams(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    shared_params = training.rows_of_each(params, processes)
    sizes = (shared_params.per_device_train_batch_size, shared_params.gradient_accumulation_steps)
    assert sizes == expected
    assert sizes[0] * sizes[1] * processes == batch * accumulation


def test_a_job_for_several_processes_is_refused_by_one_with_the_command_for_all(tiny, tmp_path):
    folder = write_job(tiny, tmp_path, 2, **LORA)
    command = f"accelerate launch --config_file {folder / LAUNCH} -m harness.training.job_worker"
    with pytest.raises(UserError, match=f"found 1 processes, sharding none; expected 2.*{command}"):
        training.run_job(folder, ignore)


LAUNCHER = """\
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 22002)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : %d (pid: 22011)
"""  # torch 2.13


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (-9, CandidateFailed, "the training process was killed (SIGKILL)"),
        (-11, CandidateFailed, "the training process ended with SIGSEGV"),
        (1, RuntimeError, "Connection closed by peer"),
    ],
)
def test_the_process_that_was_killed_is_named_and_not_how_the_others_lost_it(tmp_path, code, error, told):
    lost = json.dumps(["error", "RuntimeError", ["Connection closed by peer", ""]])
    (tmp_path / "said").write_text(LAUNCHER % code)
    script = f"echo '{lost}'; cat {tmp_path / 'said'} >&2; exit 1"
    with pytest.raises(error, match=re.escape(told)):
        job_worker.launch(tmp_path, ignore, ("bash", "-c", script))


def session_of(tiny, folder, extra, candidates=tiny_experiment.CANDIDATES):
    path = tiny_experiment.write(folder, tiny, candidates, extra=extra)
    return tiny_experiment.session(path)


def test_the_number_of_processes_is_part_of_the_weights_key_where_they_share_it(tiny, tmp_path):
    trained = """\
  lora: {method: lora, params: {max_length: 200}}
  stepped: {method: lora, params: {max_length: 200}, regularize: {l2_sp: {strength: 0.1}}}
  bag: {method: classifier}
"""
    plain, single, shared = (
        session_of(tiny, tmp_path / str(n), extra, trained)
        for n, extra in enumerate(("", "training: {process: own, accelerate: {num_processes: 1}}\n", TWO))
    )
    policy, names = shared.experiment.training.accelerate, ("lora", "stepped", "bag")
    assert [processes_of(policy, shared.candidates[name].source) for name in names] == [2, 1, 1]
    (warning,) = (line for line in recipe_warnings(shared, shared.candidates) if "process" in line)
    assert warning.startswith("recipe of stepped: trains in one process, not in 2 (training.accelerate)")
    assert not any("process" in line for line in recipe_warnings(single, single.candidates))
    before, separate, after = (
        {name: Fit(session, session.candidates[name], 0).folder(None).name for name in names}
        for session in (plain, single, shared)
    )
    assert before["lora"] == separate["lora"] != after["lora"]
    assert [before[name] for name in names[1:]] == [after[name] for name in names[1:]]


def test_rows_that_cannot_be_parted_or_workers_beside_shared_processes_are_refused(tiny, tmp_path):
    extra = "training: {accelerate: {num_processes: 3}}\n"
    with pytest.raises(UserError, match="8 rows a step, which 3 processes cannot share evenly"):
        session_of(tiny, tmp_path, extra)
    extra = "training: {accelerate: {num_processes: 2}}\nexecution: {executor: local, workers: 2}\n"
    with pytest.raises(UserError, match="executor: local, whose workers are one process each"):
        session_of(tiny, tmp_path, extra)


DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
FSDP = AcceleratePolicy(num_processes=2, distributed_type="FSDP")
ZERO_2, ZERO_3 = (
    AcceleratePolicy(num_processes=2, distributed_type="DEEPSPEED", zero_stage=stage) for stage in (2, 3)
)


# How accelerate reads the written files


def environment(folder):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(folder / LAUNCH), "-m", job_worker.COMMAND[-1], str(folder)]
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
    assert plugin.transformer_cls_names_to_wrap is None  # so accelerate wraps the model's _no_split_modules


def test_accelerate_starts_deepspeed_at_the_stage_with_what_the_trainer_fills_in(tmp_path):
    write_launch(tmp_path, ZERO_3, "cuda")
    variables = {name: value for name, value in environment(tmp_path).items() if "DEEPSPEED" in name}
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert variables["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert environment(tmp_path)["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"


# Weights that no process holds whole


def differences(alone, shared, file):
    first, second = (load_file(at / file) for at in (alone, shared))
    assert first.keys() == second.keys()
    return np.concatenate([np.abs(first[name] - second[name]).ravel() for name in first])


@pytest.mark.parametrize(
    ("policy", "method", "model"),
    [
        pytest.param(FSDP, "lora", "tiny", marks=pytest.mark.weekly),
        pytest.param(FSDP, "qlora", "wide", marks=pytest.mark.slow),
        pytest.param(FSDP, "qlora", "smollm2-135m", marks=pytest.mark.weekly),
        pytest.param(FSDP, "spectrum", "tiny", marks=pytest.mark.weekly),
        pytest.param(ZERO_2, "lora", "tiny", marks=[pytest.mark.weekly, DEEPSPEED]),
        pytest.param(ZERO_3, "lora", "tiny", marks=[pytest.mark.weekly, DEEPSPEED]),
    ],
    ids=lambda value: value if isinstance(value, str) else value.shards,
)
def test_two_processes_with_a_shard_each_make_the_weights_of_one(tiny, tmp_path, policy, method, model):
    params = {**STEPS, "gradient_checkpointing": True, **({"r": 2} if method in ("lora", "qlora") else {})}
    if model == "wide":  # with rows shorter than a block, bitsandbytes' AVX512 kernel reads others' scales
        model = tiny_model.build(tmp_path / "wide", hidden_size=64, head_dim=16)
    elif model == "tiny":
        model = tiny
    else:
        params |= {"max_steps": 3, "warmup_steps": 0}
    alone, shared = (
        write_job(model, tmp_path / str(n), share, method, **params) for n, share in enumerate((1, policy))
    )
    training.run_job(alone, ignore)
    launcher = (sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file")
    paths = str(shared / LAUNCH), str(Path(__file__).parents[1].joinpath("cpus_for_gpus.py"))
    job_worker.launch(shared, ignore, (*launcher, *paths))
    (file,) = (alone / read_fit(alone)["kind"]).glob("*model.safetensors")
    gaps = differences(alone, shared, file.relative_to(alone))
    # A CPU alone trains on weights that were dequantised once. Adam moves an element whose gradient is nearly 0
    # by whole steps of either sign; the embedded model has some.
    assert np.quantile(gaps, 0.999 if model == "smollm2-135m" else 1) < (1e-3 if method == "qlora" else 1e-4)
    record, expected = read_fit(shared)["training"], read_fit(alone)["training"]
    assert (record["n_processes"], record["n_trainable"]) == (2, expected["n_trainable"])
    assert np.allclose(record["loss"], expected["loss"], atol=1e-3)
    assert record["loss"][0][1] - record["loss"][-1][1] > 0.01  # something was learned


# Refused before anything runs


CANDIDATES = """\
  lora: {method: lora, params: {max_length: 200}}
  tracked: {method: lora, params: {max_length: 200, optim: adamw_8bit}, track: {points: 2}}
  bag: {method: classifier}
"""
ON_GPUS = """\
  four: {method: qlora}
  eight: {method: lora, quantization: int8}
  pairs: {method: dpo}
"""


def gpu_session(tiny, folder, policy, candidates=CANDIDATES):
    path = tiny_experiment.write(folder, tiny, candidates, pairs=tiny_methods.pair_rows(slice(0, 2)))
    session = tiny_experiment.session(path)
    experiment = session.experiment.model_copy(update={"training": TrainingPolicy(accelerate=policy)})
    return replace(session, experiment=experiment, machine=session.machine._replace(device="cuda"))


def list_refusals(session, name):
    problems = check_sharing(session.experiment.training.accelerate, session.candidates[name])
    return [problem.found for problem in problems]


def test_shards_are_refused_without_gpus_and_without_deepspeed(tiny, tmp_path):
    extra = "training: {accelerate: {num_processes: 2, distributed_type: DEEPSPEED}}\n"
    path = tiny_experiment.write(tmp_path, tiny, extra=extra)
    with pytest.raises(UserError) as refused:
        tiny_experiment.session(path)
    message = str(refused.value)
    assert "found distributed_type: DEEPSPEED, and no GPU here; expected a GPU for each process" in message
    assert "found distributed_type: DEEPSPEED, and no package deepspeed; expected the package" in message
    assert "pip install 'harness-evals[deepspeed]', or distributed_type: FSDP" in message


@pytest.mark.e2e
def test_one_gpu_too_few_and_what_needs_whole_weights_are_named_for_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    session = gpu_session(tiny, tmp_path, FSDP)
    (problem,) = check_gpus(session.experiment, session.machine.device)
    assert problem.found == "num_processes: 2, and 1 GPU for each training"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [*check_gpus(session.experiment, session.machine.device)] == []
    assert list_refusals(session, "lora") == []
    assert list_refusals(session, "tracked") == [
        "track, and distributed_type: FSDP, whose weights are put together at the end alone",
        "optim: adamw_8bit, which is bitsandbytes', and distributed_type: FSDP",
    ]


@pytest.mark.e2e
def test_four_bits_are_sharded_by_fsdp_alone_and_a_reference_by_nothing(tiny, tmp_path):
    session = gpu_session(tiny, tmp_path, FSDP, ON_GPUS)
    for policy, name, expected in (
        (FSDP, "four", []),
        (ZERO_3, "four", ["a base in nf4, and distributed_type: DEEPSPEED"]),
        (FSDP, "eight", ["a base in int8, and distributed_type: FSDP"]),
        (
            FSDP,
            "pairs",
            ["dpo, which reads its reference before weights are sharded, and distributed_type: FSDP"],
        ),
        (AcceleratePolicy(num_processes=2), "pairs", []),
    ):
        assert [problem.found for problem in check_sharing(policy, session.candidates[name])] == expected


# Identity and estimate


def test_the_kind_of_shards_is_part_of_the_weights_key_where_there_are_some(tiny, tmp_path):
    plain = AcceleratePolicy(num_processes=2)
    keys = {}
    for name, policy in {"plain": plain, "FSDP": FSDP, "ZeRO 2": ZERO_2, "ZeRO 3": ZERO_3}.items():
        session = gpu_session(tiny, tmp_path / name, policy)
        keys[name] = [Fit(session, session.candidates[c], 0).folder(None).name for c in ("lora", "bag")]
        assert shards_of(policy, session.candidates["lora"].source) == policy.shards
    assert len({lora for lora, _ in keys.values()}) == 4
    assert len({bag for _, bag in keys.values()}) == 1


def test_shards_divide_weights_gradients_and_the_optimisers_but_for_two_layers(tiny):
    model_shape = shape(resolve(str(tiny)))

    def peak(**options):
        return memory.training_peak(model_shape, model_shape.n_parameters, 800, "fp32", **options)

    whole, three, two = peak(), peak(shards=4), peak(shards=4, zero_stage=2)
    assert three.weights == pytest.approx(whole.weights / 4 + 2 * whole.weights / model_shape.n_layers)
    assert two.weights == whole.weights
    for field in ("gradients", "optimizer"):
        assert getattr(three, field) == getattr(two, field) == pytest.approx(getattr(whole, field) / 4)
    assert three.activations == two.activations == whole.activations
