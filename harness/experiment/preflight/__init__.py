"""Preflight check of machine, packages and experiment: memory, time and price of each candidate, A/A noise.

Invariant: nothing is trained, and but for the noise nothing is evaluated; a model that is not in the
cache yet is fetched, because its size is what everything else depends on. Every problem is listed, none
stops the others. An estimate is of a candidate made alone, from nothing; a measured figure is of the
newest stored run of the recipe as written now. Only how tokens are laid out differs between the arms of
the noise, so whatever differs in the answers is rounding.
"""

import shutil
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from harness import config, metrics, plugins, provenance, store
from harness.errors import Problem, UserError
from harness.evaluation import Job, costs
from harness.evaluation.candidate_rows import training_data, training_notes
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.control_arm import reevaluate
from harness.evaluation.costs import Work
from harness.evaluation.rows.row_sets import RowSet, prompting_step, suite_sets, target_sets, work_of
from harness.evaluation.session import Session
from harness.experiment import Scope, prepare_session, recipe_warnings
from harness.experiment.check_rows import Brief, check_target
from harness.experiment.preparation import key_problems
from harness.experiment.weights.candidate_weights import fit_work
from harness.formatting import count
from harness.metrics import is_flipped
from harness.models import hardware, hub, memory, vllm
from harness.models.batching import Size
from harness.models.hardware import Machine, Memory, probe
from harness.models.hf import ANSWERING, Candidate, HFCandidate, ModelHost
from harness.models.loglikelihood import Executor
from harness.models.memory import Shape
from harness.progress import Progress
from harness.records import BLOCK, Noise, Run, SampleResult, TaskNoise, TrainingRecord
from harness.spec import Recipe

__all__ = ["Checkup", "Cost", "estimate_costs", "examine", "measure_noise"]

# What is optional, and the extra that brings it.
_EXTRAS = {
    "bitsandbytes": "qlora",
    "lm_eval": "lm-eval",
    "evaluate": "evaluate",
    "sentence-transformers": "dense",
    "liger-kernel": "gpu",
    "vllm": "vllm",
    "optuna": "search",
}
_LEAST_DISK_GB = 5.0  # runs, checkpoints of a training and the cache of a small model


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a candidate: estimated, and as measured where a run is stored (None elsewhere).

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


@dataclass(frozen=True, slots=True)
class Checkup:
    """Result of the check: the machine, its memory, free disk in GB, versions, the experiment, its costs.

    `vllm` is its version and the device that it is built for, empty where it is not installed.
    `data` says the worst that was found in the target's rows, and which command shows all.
    `recipes` says which settings of trainings lie outside of published ranges.
    `absent` maps optional packages that are not there to the command that brings them. `problems` hold
    what stands in the way, each with what to do; where there are some `costs` may be empty.
    """

    machine: Machine
    memory: Memory
    disk_free_gb: float
    packages: dict[str, str | None]
    vllm: str
    absent: dict[str, str]
    experiment: tuple[str, ...]
    data: Brief | None
    costs: tuple[Cost, ...]
    problems: tuple[Problem, ...]
    recipes: tuple[str, ...] = ()


def examine(path: Path, overrides: list[str], progress: Progress) -> Checkup:
    """Look at everything that a comparison needs."""
    problems: list[Problem] = []
    session, selected = _open_experiment(path, overrides, progress, problems)
    machine = session.machine if session else probe(renew=True)
    free_gb = shutil.disk_usage(path.parent.resolve() if path.parent.exists() else Path()).free / 1e9
    if free_gb < _LEAST_DISK_GB:
        found = f"{free_gb:.1f} GB free"
        problems.append(Problem(str(path.parent), found, f"{_LEAST_DISK_GB:g} GB or more", "free some"))
    served_by = _vllm(
        machine.device, problems, wanted=session is not None and session.experiment.engine == "vllm"
    )
    room = hardware.memory(machine.device)
    problems += compiler_problems(machine.device)
    return Checkup(
        machine=machine,
        memory=room,
        disk_free_gb=free_gb,
        packages=provenance.package_versions(),
        vllm=served_by,
        absent={name: f"pip install 'harness-evals[{e}]'" for name, e in _EXTRAS.items() if not _has(name)},
        experiment=_experiment(session) if session else (),
        data=_data(session, problems) if session else None,
        costs=estimate_costs(session, selected, room) if session else (),
        problems=tuple(problems),
        recipes=tuple(recipe_warnings(session, selected)) if session else (),
    )


def _open_experiment(
    path: Path, overrides: list[str], progress: Progress, problems: list[Problem]
) -> tuple[Session | None, tuple[str, ...]]:
    """Open the experiment with its data and models; what forbids that goes to the problems."""
    try:
        loaded = config.load(path, overrides)
        session = prepare_session(loaded, Scope(renew_probe=True), progress)
        problems.extend(key_problems(session, {name: loaded.places[name] for name in loaded.selected}))
        for measured in (session.target, *session.suites):
            problems.extend(metrics.problems(measured.task))
        return session, loaded.selected
    except UserError as error:
        problems.extend(error.problems)
        return None, ()


def compiler_problems(device: str, include: Path | None = None, path: str | None = None) -> list[Problem]:
    """List what Triton, which compiles kernels while a training runs, lacks on a GPU's machine.

    `include` is the folder of Python's headers, `path` that of programs, where they are not the usual ones.
    """
    if device != "cuda":
        return []
    headers = include or Path(sysconfig.get_paths()["include"])
    there = {
        "C compiler": any(shutil.which(name, path=path) for name in ("cc", "gcc", "clang")),
        "Python.h": (headers / "Python.h").exists(),
    }
    expected = "what Triton compiles a training's kernels with"
    step = "apt-get install gcc python3-dev, or an image with them"
    return [Problem("doctor", f"no {name}", expected, step) for name, found in there.items() if not found]


def _vllm(device: str, problems: list[Problem], *, wanted: bool) -> str:
    """Say which vLLM is there; where it is wanted and cannot answer here, that goes to the problems."""
    release = vllm.installed_version()
    if release is None:
        return ""
    try:
        built, problem = vllm.built_for(), vllm.wrong_build(device)
    except ImportError as error:
        built, problem = "nothing that can be imported", vllm.broken(error)
    problems += [problem] if problem and wanted else []
    return f"{release}, built for {built}"


def _has(package: str) -> bool:
    if package == "vllm":  # two packages bring it
        return vllm.installed_version() is not None
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _experiment(session: Session) -> tuple[str, ...]:
    """Say which models and data were found."""
    models = [
        f"model {s.name}: {count(s.n_parameters / 1e6)} million parameters" for s in session.sources.values()
    ]
    items = session.target.items
    rows = f"{count(len(items.train))} training, {count(len(items.validation))} validation, "
    target = f"target {session.target.task.name}: {rows}{count(len(items.test))} test rows"
    others = [_counted(items.pairs, "pairs"), _counted(items.documents, "documents")]
    n_items = sum(len(m.items.test) for m in session.suites)
    suites = f"suites: {count(len(session.suites))} tasks, {count(n_items)} items"
    return (*models, ", ".join([target, *filter(None, others)]), *training_notes(session), suites)


def _data(session: Session, problems: list[Problem]) -> Brief | None:
    """Check the target's rows; what forbids that goes to the problems."""
    try:
        return check_target(session.target.task)
    except UserError as error:
        problems.extend(error.problems)
        return None


def _counted(things: tuple[object, ...], what: str) -> str:
    return f"{count(len(things))} {what}" if things else ""


_GIB = 2**30 / 1e9  # GB


class Asked(NamedTuple):
    """Tokens of an evaluation: in all, and the most whose keys lie in memory together."""

    work: Work
    cached: int


def estimate_costs(session: Session, selected: Iterable[str], room: Memory) -> tuple[Cost, ...]:
    """Estimate every selected candidate, and look up what was measured."""
    runs = store.list_runs(session.store, session.experiment.name)
    suites = _evaluation_work(session, suite_sets(session, base_weights(session.source)))
    return tuple(_cost(session, name, suites, runs, room) for name in selected)


def _cost(session: Session, name: str, suites: Asked, runs: Sequence[Run], room: Memory) -> Cost:
    candidate = session.candidates[name]
    recipe, makes = candidate.recipe, candidate.method.makes
    if makes == "endpoint":
        return Cost(name, None, None, None, None, 0.0, None, None, fits=True)
    measured = _measured(session, candidate, runs)
    hour, device = session.experiment.decide.device_hour_usd, session.machine.device
    time_s, memory_s = measured or (None, None)
    spent = None if time_s is None else costs.price_usd(time_s, device, hour)
    if not candidate.method.makes_language_model:
        trained_s = session.seconds(_training(session, candidate), candidate.base)
        planned = costs.price_usd(trained_s, device, hour)
        return Cost(name, None, None, trained_s, time_s, 0.0, planned, spent, fits=True)
    training = _training(session, candidate)
    own = _evaluation_work(session, target_sets(session, recipe, base_weights(session.source), 0))
    answering = own.work + (suites.work if makes != "base" else Work())
    shape = hub.shape(candidate.base)
    start_s = costs.start_s(hub.weights_bytes(candidate.base.path), session.machine.device)
    seconds = start_s + session.seconds(training + answering, candidate.base)
    cached = max(own.cached, suites.cached)
    peak_gb = None if shape is None else _peak_gb(session, candidate, shape, cached)
    fits = None if peak_gb is None else peak_gb / _GIB <= room.free_gib
    return Cost(
        candidate=name,
        memory_gib=None if peak_gb is None else peak_gb / _GIB,
        memory_measured_gib=memory_s,
        time_s=seconds,
        time_measured_s=time_s,
        flops=_flops(session, candidate, shape, training, answering),
        cost_usd=costs.price_usd(seconds, device, hour),
        cost_measured_usd=spent,
        fits=fits,
        knob=_knob(session, candidate, shape, cached, room) if shape and fits is False else "",
    )


def _evaluation_work(session: Session, sets: Iterable[RowSet]) -> Asked:
    """Estimate what answering sets of rows takes; at most a block of the longest item lies in memory."""
    jobs, most = [rows.job() for rows in sets], ANSWERING[session.machine.device].tokens
    longest = max((_longest_item(job) or most for job in jobs), default=1)
    return Asked(sum(map(work_of, jobs), Work()), min(most, BLOCK * longest))


def _longest_item(job: Job) -> int:
    """Return the tokens of a job's longest prompt with its answer; 0 where lm-eval writes the prompts."""
    if job.task.lm_eval:
        return 0
    works = (work_of(replace(job, examples=(e,))) for e in job.examples)
    return max((work.read + work.generated for work in works), default=1)


def _training(session: Session, candidate: ResolvedCandidate) -> Work:
    """Estimate the tokens of all trials; borrowed weights are made by another candidate."""
    if candidate.recipe.weights_of:
        return Work()
    seed = session.experiment.seeds[0]
    return sum((fit_work(session, trial.source, seed) for trial in candidate.trials), Work())


def _params(candidate: ResolvedCandidate) -> Any:
    """Return the parameters of a candidate's method, the first of a sweep; the others take as much."""
    return candidate.method.params(**candidate.trials[0].source.params)


def _trains(candidate: ResolvedCandidate) -> bool:
    """Tell whether a candidate trains a language model of its own."""
    return not candidate.recipe.weights_of and candidate.method.trains


def _n_adapter(candidate: ResolvedCandidate, shape: Shape) -> int:
    """Count the parameters of a candidate's own adapter; 0 where it makes none."""
    return candidate.method.adapter_parameters(shape, _params(candidate))


def _peak_gb(
    session: Session,
    candidate: ResolvedCandidate,
    shape: Shape,
    cached: int,
    batch: int | None = None,
    quantization: str = "",
) -> float:
    """Estimate the larger of the peaks of training and of answering."""
    on_gpu = session.machine.device == "cuda"
    served = quantization or (candidate.served_base.quantization if on_gpu else "")
    answering = memory.inference_gb(shape, cached, session.machine.precision, quantization=served)
    if not _trains(candidate):
        return answering
    n_adapter = _n_adapter(candidate, shape)
    # A CPU keeps quantised weights unpacked, and has no checkpointing.
    trained = quantization or (candidate.trained_base.quantization if on_gpu else "")
    tokens = (batch or _params(candidate).per_device_train_batch_size) * _longest(session, candidate)
    training = memory.training_peak(
        shape,
        n_adapter or shape.n_parameters,
        tokens,
        session.machine.precision,
        quantization=trained,
        checkpointing=on_gpu,
        in_tiles=on_gpu,
    ).total
    return max(training, answering)


def _longest(session: Session, candidate: ResolvedCandidate) -> int:
    """Return the tokens of the longest training row (of a pair, with both answers), cut at max_length."""
    step = prompting_step(session, candidate.source, session.experiment.seeds[0])
    items = training_data(session, candidate.source).items
    in_pairs = candidate.method.draws_from == "pairs"
    work, rows = (costs.preference, items.pairs) if in_pairs else (costs.training, items.train)
    longest = max((work([step(e)], 1).trained for e in rows), default=1)
    return min(longest, int(_params(candidate).max_length) * (2 if in_pairs else 1))


def _flops(
    session: Session, candidate: ResolvedCandidate, shape: Shape | None, training: Work, answering: Work
) -> float:
    n = shape.active if shape else candidate.base.n_parameters
    read = training.read + answering.read + answering.generated
    items = session.target.items
    context = answering.read / max(1, len(items.validation) + len(items.test))
    attention = memory.attention_flops(shape, read, context / 2) if shape else 0.0
    once = memory.inference_flops(n, read, attention=attention)
    if not training.trained:
        return once
    n_adapter = _n_adapter(candidate, shape) if shape else 0
    on_gpu = session.machine.device == "cuda"
    return once + memory.training_flops(n, training.trained, n_adapter, checkpointing=on_gpu)


def _knob(session: Session, candidate: ResolvedCandidate, shape: Shape, cached: int, room: Memory) -> str:
    """Find the first change that lets a candidate fit: a smaller batch, NF4, else a smaller model."""

    def fits(batch: int | None, quantization: str = "") -> bool:
        return _peak_gb(session, candidate, shape, cached, batch, quantization) / _GIB <= room.free_gib

    if _trains(candidate):
        written = _params(candidate).per_device_train_batch_size
        smaller = [size for size in (written // 2**k for k in range(1, 12)) if size >= 1]
        for size in smaller:
            if fits(size):
                steps = written // size
                return f"params.per_device_train_batch_size: {size} with gradient_accumulation_steps: {steps}"
        method = candidate.method
        like_it = {"trains": True, "draws_from": method.draws_from}
        on_nf4 = plugins.methods(makes=method.makes, quantization="nf4", **like_it)
        plain = not candidate.trained_base.quantization and session.machine.device == "cuda"
        if on_nf4 and plain and fits(1, "nf4"):
            return f"method: {on_nf4[0]}, with params.per_device_train_batch_size: 1"
        adapters = plugins.methods(makes="adapter", quantization="", **like_it)
        if adapters and method.makes == "model":
            return f"method: {adapters[0]}, whose optimiser is a hundredth of that"
    return "a smaller base_model"


def _measured(
    session: Session, candidate: ResolvedCandidate, runs: Sequence[Run]
) -> tuple[float, float | None] | None:
    """Return the seconds and the peak memory in GiB of the newest run of a recipe; None without one."""
    own_runs = [r for r in runs if r.candidate == candidate.name and r.state == "done"]
    same = [r for r in own_runs if Recipe.model_validate(r.recipe) == candidate.recipe]
    if not same:
        return None
    run = same[-1]
    own = TrainingRecord() if candidate.recipe.weights_of else run.training
    task, tuned = session.target.task.name, run.weights_digest != run.base_digest
    keys = [key for key in run.rows if tuned or key.rpartition("/")[0] == task]
    answered = sum(r.compute_s for key in keys for r in store.read_rows(session.store, run.rows[key]))
    return (own.wall_s or 0.0) + answered, own.peak_memory_gib


LAYOUT, BATCH = "layout", "batch"
_FEW_ROWS, _FEW_TOKENS = 4, 256


class _SmallerBatches(HFCandidate):
    """The same model asked in small batches; scored by `engine`."""

    def __init__(self, host: ModelHost, engine: str) -> None:
        super().__init__(host.model, host.tokenizer, host.base.weights_digest, engine)
        self._reading = Size(_FEW_ROWS, _FEW_TOKENS)
        self._answering = Size(_FEW_ROWS, self._answering.tokens)
        self._executor = Executor(host.model, _FEW_TOKENS, engine)


def measure_noise(session: Session) -> Noise:
    """Ask the base the first block of each task of the suites in every way, and store what differs.

    Raises:
        UserError: the experiment has no suite, or is answered by another engine than transformers.
    """
    if session.experiment.engine != "transformers":
        found = f"engine: {session.experiment.engine}"
        expected, step = "the engine whose layouts are varied", "engine=transformers"
        raise UserError(Problem("harness doctor --noise", found, expected, step))
    sets = suite_sets(session, base_weights(session.source))
    if not sets:
        found = "an experiment without suites"
        raise UserError(Problem("harness doctor --noise", found, "general tasks", "name some under suites:"))
    host = session.host(session.source)
    assert isinstance(host, ModelHost)
    arms = _arms(host)
    blocks, candidates = [(rows, 0) for rows in sets], [host.base, *arms.values()]
    again = reevaluate(session, blocks, candidates, "noise: the base again")
    tasks = tuple(
        task_noise(rows.job(), usual, dict(zip(arms, others, strict=True)))
        for rows, (usual, *others) in zip(sets, again, strict=True)
    )
    now = datetime.now(UTC)
    noise = Noise(
        id=f"{now:%Y%m%dT%H%M%S%f}",
        created=now.isoformat(timespec="seconds"),
        base_model=session.source.name,
        base_digest=session.source.weights_digest,
        precision=session.machine.precision,
        device=session.machine.name,
        engine=host.base.engine,
        layout_digest=host.base.layout_digest,
        tasks=tasks,
    )
    store.save_noise(session.store, noise)
    return noise


def _arms(host: ModelHost) -> dict[str, Candidate]:
    """Return the other ways to ask: one sequence an answer where choices were packed, and small batches."""
    engine = host.base.engine.partition("/")[2]
    arms: dict[str, Candidate] = {BATCH: _SmallerBatches(host, engine)}
    if engine != "plain":
        arms[LAYOUT] = HFCandidate(host.model, host.tokenizer, host.base.weights_digest, "plain")
    return arms


def task_noise(job: Job, usual: Sequence[SampleResult], answered: dict[str, list[SampleResult]]) -> TaskNoise:
    """Count the items whose primary score moved, and find the largest difference in log-likelihood."""
    metric = job.metrics[job.task.primary_metric]
    pairs = [pair for rows in answered.values() for pair in zip(usual, rows, strict=True)]
    gaps = [
        abs(a.gold_logprob - b.gold_logprob)
        for a, b in pairs
        if a.gold_logprob is not None and b.gold_logprob is not None
    ]
    return TaskNoise(
        task=job.task.name,
        n=len(usual),
        flips={
            name: sum(is_flipped(a, b, metric) for a, b in zip(usual, rows, strict=True))
            for name, rows in answered.items()
        },
        largest_nats=max(gaps, default=None),
    )
