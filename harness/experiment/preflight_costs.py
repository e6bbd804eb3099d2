"""Memory, time, operations and price of each candidate before it runs, beside what was measured.

Invariant: an estimate is of a candidate made alone, from nothing; a measured figure is of the
newest stored run of the recipe as written now.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from harness import store
from harness.evaluation import Job, costs
from harness.evaluation.candidates import (
    base_of,
    fit_work,
    served_base,
    source_of,
    step_of,
    trained_base,
    trials,
)
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import RowSet, suite_sets, target_sets, work_of
from harness.evaluation.session import Bench
from harness.experiment.run_candidate import base_weights
from harness.models import hub, memory
from harness.models.hardware import Memory
from harness.models.hf import ANSWERING
from harness.models.memory import Shape
from harness.plugins import load as load_plugin
from harness.records import BLOCK, Example, Run
from harness.spec import Recipe

_GIB = 2**30 / 1e9  # GB


@dataclass(frozen=True, slots=True)
class Cost:
    """What a candidate takes: estimated, and as measured where a run is stored (None elsewhere).

    Time is device time in seconds, of training and of answering; what an endpoint takes and costs is not
    known. `fits` is None where the model's configuration does not say enough; `knob` says what to turn
    where it does not fit.
    """

    candidate: str
    memory_gib: float | None
    memory_measured_gib: float | None
    time_s: float | None
    time_measured_s: float | None
    flops: float
    cost_usd: float | None
    cost_measured_usd: float | None
    fits: bool | None
    knob: str = ""


class Asked(NamedTuple):
    """What answering takes: tokens in all, and the most whose keys lie in memory together."""

    work: Work
    cached: int


def estimate_costs(bench: Bench, selected: Iterable[str], room: Memory) -> tuple[Cost, ...]:
    """Estimate every selected candidate, and look up what was measured."""
    runs = store.list_runs(bench.store, bench.experiment.name)
    suites = _asked(bench, suite_sets(bench, base_weights(bench)))
    return tuple(_cost(bench, name, suites, runs, room) for name in selected)


def _cost(bench: Bench, name: str, suites: Asked, runs: Sequence[Run], room: Memory) -> Cost:
    recipe = bench.experiment.candidates[name]
    source = source_of(bench, recipe)
    if source.method == "endpoint":
        return Cost(name, None, None, None, None, 0.0, None, None, fits=True)
    measured = _measured(bench, recipe, name, runs)
    hour, device = bench.experiment.decide.device_hour_usd, bench.machine.device
    time_s, memory_s = measured or (None, None)
    spent = None if time_s is None else costs.price_usd(time_s, device, hour)
    if source.method == "classifier":
        return Cost(name, None, None, 0.0, time_s, 0.0, 0.0, spent, fits=True)
    training = _training(bench, recipe)
    own = _asked(bench, target_sets(bench, recipe, base_weights(bench), 0))
    answering = own.work + (suites.work if source.method != "base" else Work())
    shape = hub.shape(base_of(bench, recipe))
    seconds = bench.seconds(training + answering, base_of(bench, recipe))
    cached = max(own.cached, suites.cached)
    peak_gb = None if shape is None else _peak_gb(bench, recipe, shape, cached)
    fits = None if peak_gb is None else peak_gb / _GIB <= room.free_gib
    return Cost(
        candidate=name,
        memory_gib=None if peak_gb is None else peak_gb / _GIB,
        memory_measured_gib=memory_s,
        time_s=seconds,
        time_measured_s=time_s,
        flops=_flops(bench, recipe, shape, training, answering),
        cost_usd=costs.price_usd(seconds, device, hour),
        cost_measured_usd=spent,
        fits=fits,
        knob=_knob(bench, recipe, shape, cached, room) if shape and fits is False else "",
    )


def _asked(bench: Bench, sets: Iterable[RowSet]) -> Asked:
    """Estimate what answering sets of rows takes; at most a block of the longest item lies in memory."""
    jobs, most = [rows.job() for rows in sets], ANSWERING[bench.machine.device].tokens
    longest = max((_longest_item(job) or most for job in jobs), default=1)
    return Asked(sum(map(work_of, jobs), Work()), min(most, BLOCK * longest))


def _longest_item(job: Job) -> int:
    """Return the tokens of a job's longest prompt with its answer; 0 where lm-eval writes the prompts."""
    if job.task.lm_eval:
        return 0
    works = (work_of(replace(job, examples=(e,))) for e in job.examples)
    return max((work.read + work.generated for work in works), default=1)


def _training(bench: Bench, recipe: Recipe) -> Work:
    """Estimate the tokens of all trials; borrowed weights are made by another candidate."""
    if recipe.weights_of:
        return Work()
    seed = bench.experiment.seeds[0]
    return sum((fit_work(bench, trial, seed) for _, trial in trials(recipe)), Work())


def _params(source: Recipe) -> Any:
    """Return a method's parameters, the first of a sweep; the others take as much."""
    return load_plugin("methods", source.method).Params(**trials(source)[0][1].params)


def _trains(recipe: Recipe) -> bool:
    """Tell whether a candidate trains a language model of its own."""
    return not recipe.weights_of and hasattr(_params(recipe), "num_train_epochs")


def _n_adapter(source: Recipe, shape: Shape) -> int:
    """Count the parameters of a recipe's own adapter; 0 where it makes none."""
    params = _params(source)
    if not hasattr(params, "r"):
        return 0
    modules = params.target_modules
    return memory.lora_parameters(shape, params.r, tuple(modules) if isinstance(modules, list) else modules)


def _peak_gb(
    bench: Bench, recipe: Recipe, shape: Shape, cached: int, batch: int | None = None, nf4: bool = False
) -> float:
    """Estimate the larger of the peaks of training and of answering."""
    on_gpu = bench.machine.device == "cuda"
    served = nf4 or (on_gpu and bool(served_base(bench, recipe).quantization))
    answering = memory.inference_gb(shape, cached, bench.machine.precision, nf4=served)
    if not _trains(recipe):
        return answering
    source = source_of(bench, recipe)
    n_adapter = _n_adapter(source, shape)
    # A CPU keeps quantised weights unpacked, and has no checkpointing.
    trained = nf4 or (on_gpu and bool(trained_base(bench, source).quantization))
    tokens = (batch or _params(source).per_device_train_batch_size) * _longest(bench, source)
    training = memory.training_gb(
        shape,
        n_adapter or shape.n_parameters,
        tokens,
        bench.machine.precision,
        nf4=trained,
        checkpointing=on_gpu,
    )
    return max(training, answering)


def _longest(bench: Bench, source: Recipe) -> int:
    """Return the tokens of the longest training row (of a pair, with both answers), cut at max_length."""
    step, items = step_of(bench, source, bench.experiment.seeds[0]), bench.target.items
    in_pairs = "pairs" in getattr(load_plugin("methods", source.method), "NEEDS", ())
    longest = max((_tokens(step(e), in_pairs) for e in (items.pairs if in_pairs else items.train)), default=1)
    return min(longest, int(_params(source).max_length) * (2 if in_pairs else 1))


def _tokens(example: Example, in_pairs: bool) -> int:
    return (costs.preference if in_pairs else costs.training)([example], 1).trained


def _flops(bench: Bench, recipe: Recipe, shape: Shape | None, training: Work, answering: Work) -> float:
    n, read = base_of(bench, recipe).n_parameters, training.read + answering.read + answering.generated
    items = bench.target.items
    context = answering.read / max(1, len(items.validation) + len(items.test))
    attention = memory.attention_flops(shape, read, context / 2) if shape else 0.0
    once = memory.inference_flops(n, read, attention=attention)
    if not training.trained:
        return once
    n_adapter = _n_adapter(source_of(bench, recipe), shape) if shape else 0
    on_gpu = bench.machine.device == "cuda"
    return once + memory.training_flops(n, training.trained, n_adapter, checkpointing=on_gpu)


def _knob(bench: Bench, recipe: Recipe, shape: Shape, cached: int, room: Memory) -> str:
    """Find the first change that lets a candidate fit: a smaller batch, NF4, else a smaller model."""

    def fits(batch: int | None, nf4: bool) -> bool:
        return _peak_gb(bench, recipe, shape, cached, batch, nf4) / _GIB <= room.free_gib

    if _trains(recipe):
        written = _params(source_of(bench, recipe)).per_device_train_batch_size
        smaller = [size for size in (written // 2**k for k in range(1, 12)) if size >= 1]
        for size in smaller:
            if fits(size, nf4=False):
                steps = written // size
                return f"params.per_device_train_batch_size: {size} with gradient_accumulation_steps: {steps}"
        if recipe.method == "lora" and bench.machine.device == "cuda" and fits(1, nf4=True):
            return "method: qlora, with params.per_device_train_batch_size: 1"
        if recipe.method == "full":
            return "method: lora, whose optimiser is a hundredth of that"
    return "a smaller base_model"


def _measured(
    bench: Bench, recipe: Recipe, name: str, runs: Sequence[Run]
) -> tuple[float, float | None] | None:
    """Return the seconds and the peak memory in GiB of the newest run of a recipe; None without one."""
    of = [r for r in runs if r.candidate == name and r.state == "done" and _same(r.recipe, recipe)]
    if not of:
        return None
    run = of[-1]
    own = {} if recipe.weights_of else run.training
    task, tuned = bench.target.task.name, run.weights_digest != run.base_digest
    keys = [key for key in run.rows if tuned or key.rpartition("/")[0] == task]
    answered = sum(r.compute_s for key in keys for r in store.read_rows(bench.store, run.rows[key]))
    return float(own.get("wall_s", 0.0)) + answered, own.get("peak_memory_gib")


def _same(written: Mapping[str, Any], recipe: Recipe) -> bool:
    return Recipe.model_validate(dict(written)) == recipe
