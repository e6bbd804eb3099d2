"""Preflight check of machine, packages and experiment, with the costs of candidates and the noise of a base.

Invariant: nothing is trained. All problems are listed; none stops the others.
"""

import shutil
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import config, metrics, provenance, store
from harness.errors import Problem, UserError, gather
from harness.evaluation import EvaluationJob
from harness.evaluation.candidate_rows import describe_training_rows
from harness.evaluation.candidates import base_weights
from harness.evaluation.grade_costs import short_contexts
from harness.evaluation.row_sets import suite_sets
from harness.evaluation.runner import reevaluate
from harness.evaluation.session import Session
from harness.experiment import Scope, prepare_session
from harness.experiment.candidate_costs import Cost, Estimates
from harness.experiment.candidate_problems import key_problems
from harness.experiment.check_rows import Brief, check_target
from harness.experiment.report_runs import recipe_warnings
from harness.formatting import count, pluralize
from harness.metrics import is_flipped
from harness.models import Candidate, Size, hardware, vllm
from harness.models.hardware import Machine, Memory, probe
from harness.models.hf import HFCandidate, ModelHost
from harness.models.loglikelihood import Executor
from harness.progress import Progress
from harness.records import Noise, SampleResult, TaskNoise

# What is optional, and the extra that brings it.
_EXTRAS = {
    "bitsandbytes": "qlora",
    "lm_eval": "lm-eval",
    "evaluate": "evaluate",
    "sentence-transformers": "dense",
    "liger-kernel": "gpu",
    "optuna": "search",
}
_LEAST_DISK_GB = 5.0  # runs, checkpoints of a training and the cache of a small model


@dataclass(frozen=True, slots=True)
class Checkup:
    """Result of the check; disk space in GB.

    `data` has the worst findings in the target's rows, `recipes` settings of trainings outside published
    ranges, `judges` local judges that cannot read all prompts. `absent` maps missing optional packages to
    the command that installs them. If there are `problems`, `costs` may be empty.
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
    judges: tuple[str, ...] = ()


def examine(path: Path, overrides: list[str], progress: Progress, embeddings: str = "") -> Checkup:
    """Look at everything that a comparison needs."""
    problems: list[Problem] = []
    session: Session | None = None
    selected: tuple[str, ...] = ()
    with gather(problems):
        loaded = config.load(path, overrides)
        scope = Scope(renew_probe=True, embeddings=embeddings)
        session, selected = prepare_session(loaded, scope, progress), loaded.selected
        placed = [(loaded.places[name], session.candidates[name]) for name in selected]
        problems.extend(key_problems(session.experiment, placed))
        problems.extend(problem for m in session.tasks for problem in metrics.problems(m.task))
    machine = session.machine if session else probe(renew=True)
    free_gb = shutil.disk_usage(path.parent.resolve() if path.parent.exists() else Path()).free / 1e9
    if free_gb < _LEAST_DISK_GB:
        found = f"{free_gb:.1f} GB free"
        problems.append(Problem(str(path.parent), found, f"{_LEAST_DISK_GB:g} GB or more", "free some"))
    engine = session.experiment if session and session.experiment.engine == "vllm" else None
    room = hardware.memory(machine.device)
    problems += compiler_problems(machine.device)
    short = short_contexts(session, selected) if session else []
    problems += [one.problem for one in short if one.problem]
    data = None
    with gather(problems):
        data = check_target(session.target.task, session.progress) if session else None
    costs = Estimates(session).costs(selected, room) if session else ()
    return Checkup(
        machine=machine,
        memory=room,
        disk_free_gb=free_gb,
        packages=provenance.package_versions(),
        vllm=f"{vllm.release_of(engine.vllm)}, as a server by {engine.vllm.command}" if engine else "",
        absent={
            name: f"pip install 'harness-evals[{extra}]'" for name, extra in _EXTRAS.items() if not _has(name)
        },
        experiment=_experiment(session, selected) if session else (),
        data=data,
        costs=costs,
        problems=tuple(problems),
        recipes=tuple(recipe_warnings(session, selected)) if session else (),
        judges=tuple(one.text for one in short if not one.problem),
    )


def compiler_problems(device: str, include: Path | None = None, path: str | None = None) -> list[Problem]:
    """List what Triton, which compiles kernels during training, lacks on a machine with a GPU.

    `include` overrides the folder of Python's headers, `path` the search path of programs.
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


def _has(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _experiment(session: Session, selected: Iterable[str]) -> tuple[str, ...]:
    models = [
        f"model {s.name}: {count(s.n_parameters / 1e6)} million parameters" for s in session.sources.values()
    ]
    items = session.target.items
    rows = f"{count(len(items.train))} training, {count(len(items.validation))} validation, "
    target = f"target {session.target.task.name}: {rows}{count(len(items.test))} test rows"
    more = ((items.pairs, "pair"), (items.documents, "document"))
    others = [pluralize(len(things), what) for things, what in more if things]
    n_items = sum(len(m.items.test) for m in session.suites)
    suites = f"suites: {pluralize(len(session.suites), 'task')}, {pluralize(n_items, 'item')}"
    is_folded = bool(session.folds)
    trained = describe_training_rows(session.candidates, selected, session.training_data, in_folds=is_folded)
    said = (*items.overlap, *trained)
    return (*models, ", ".join([target, *others]), *said, suites)


LAYOUT, BATCH = "layout", "batch"
_FEW_ROWS, _FEW_TOKENS = 4, 256


class _SmallerBatches(HFCandidate):
    """The same model evaluated in small batches; scored by `engine`."""

    def __init__(self, host: ModelHost, engine: str) -> None:
        super().__init__(host.model, host.tokenizer, host.base.weights_digest, engine)
        self._reading = Size(_FEW_ROWS, _FEW_TOKENS)
        self._answering = Size(_FEW_ROWS, self._answering.tokens)
        self._executor = Executor(host.model, _FEW_TOKENS, engine)


def measure_noise(session: Session) -> Noise:
    """Ask the base the first block of each task of the suites in every layout, and store what differs."""
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
    engine = host.base.engine.partition("/")[2]
    arms: dict[str, Candidate] = {BATCH: _SmallerBatches(host, engine)}
    if engine != "plain":
        arms[LAYOUT] = HFCandidate(host.model, host.tokenizer, host.base.weights_digest, "plain")
    blocks, candidates = [(rows, 0) for rows in sets], [host.base, *arms.values()]
    again = reevaluate(session.progress, session.seconds, blocks, candidates, "noise: the base again")
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


def task_noise(
    job: EvaluationJob, usual: Sequence[SampleResult], answered: dict[str, list[SampleResult]]
) -> TaskNoise:
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
