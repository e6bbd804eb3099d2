"""Schema of vLLM's own settings, for experiments with `engine: vllm`.

Invariant: what numbers may depend on enters the identity of rows where it is not at its default; where vLLM
lies and how long it is waited for does not.
"""

from typing import Any

from pydantic import Field, field_validator

from harness.spec.values import Spec

_ENGINE_ARGS = ("max_model_len", "gpu_memory_utilization", "tensor_parallel_size")
# Arguments by which a server of our own starting is found and asked.
_OURS = ("host", "port", "uds", "served-model-name", "api-key", "ssl-keyfile", "ssl-certfile", "root-path")


class VllmPolicy(Spec):
    """Settings of `engine: vllm`, by vLLM's own names.

    `command` is the program `vllm` of an environment of its own, as `/opt/vllm/bin/vllm`: it is started as a
    server for each base, on this machine, and ended before anything trains. Without it the installed package
    answers in the command's own process. `max_model_len` is the longest prompt with its answer, in tokens,
    `gpu_memory_utilization` the share of each GPU's memory that vLLM takes, `tensor_parallel_size` the number
    of GPUs that a base is spread over. `enable_lora: false` is faster where no candidate has an adapter. Of a
    server alone: `args` are passed to `vllm serve` as they are, `num_concurrent` requests are under way at
    once, and it is waited for `start_timeout` seconds.
    """

    command: str = ""
    max_model_len: int | None = Field(None, ge=2)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    enable_lora: bool = True
    args: tuple[str, ...] = ()
    num_concurrent: int = Field(64, ge=1)
    start_timeout: float = Field(900, gt=0)

    @field_validator("args")
    @classmethod
    def _refuse_own_args(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        names = (word.partition("=")[0].replace("_", "-") for word in args)
        if ours := [name for name in names if name.startswith("--") and name[2:] in _OURS]:
            raise ValueError(
                f"args with {', '.join(ours)}, by which the server is asked; leave it out, it is set for you"
            )
        return args

    @property
    def layout(self) -> dict[str, Any]:
        """Settings that decide which tokens are computed together, without those at their defaults."""
        own = {*_ENGINE_ARGS, "enable_lora", "args", "num_concurrent"}
        return self.model_dump(mode="json", exclude_defaults=True, include=own)

    @property
    def engine_args(self) -> dict[str, Any]:
        """Settings that vLLM takes in this process and as a server alike, where they are not its default."""
        return self.model_dump(include={*_ENGINE_ARGS}, exclude_defaults=True)
