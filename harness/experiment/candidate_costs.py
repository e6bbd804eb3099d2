"""Costs of candidates before they are made: memory, time, operations and price, beside what was measured.

Invariant: an estimate is of a candidate made alone, from nothing; a measured figure is of the newest stored
run of the recipe as written now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

from harness import plugins, store
from harness.evaluation import EvaluationJob, costs
from harness.evaluation.candidate_rows import training_data
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import RowSet, prompting_step, suite_sets, work_of
from harness.evaluation.session import Session
from harness.experiment.plan import list_answered_sets, making_work
from harness.experiment.training_fit import processes_of
from harness.models import hub, memory
from harness.models.hardware import Memory
from harness.models.hf import ANSWERING, READING
from harness.models.shapes import Shape
from harness.models.weight_files import weights_bytes
from harness.records import BLOCK, Run, TrainingRecord
from harness.spec import Recipe


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


_GIB = 2**30 / 1e9  # GB


class EvalTokens(NamedTuple):
    """Tokens of an evaluation: in all, and the most whose keys, or whose logits, lie in memory together."""

    work: Work
    cached: int
    scored: int = 0

    def __or__(self, other: "EvalTokens") -> "EvalTokens":
        """Return the larger of both peaks, beside the work of the first."""
        return EvalTokens(self.work, max(self.cached, other.cached), max(self.scored, other.scored))


def estimate_costs(session: Session, selected: Iterable[str], room: Memory) -> tuple[Cost, ...]:
    """Estimate every selected candidate, and look up what was measured."""
    runs = store.list_runs(session.store, session.experiment.name)
    suites = _evaluation_work(session, suite_sets(session, base_weights(session.source)))
    return tuple(_cost(session, name, suites, runs, room) for name in selected)


def _cost(session: Session, name: str, suites: EvalTokens, runs: Sequence[Run], room: Memory) -> Cost:
    candidate = session.candidates[name]
    recipe, method = candidate.recipe, candidate.method
    if method.is_remote:
        return Cost(name, None, None, None, None, 0.0, None, None, fits=True)
    time_s, memory_s = _find_measured(session, candidate, runs) or (None, None)
    hour, device = session.experiment.decide.device_hour_usd, session.machine.device
    spent = None if time_s is None else costs.price_usd(time_s, device, hour)
    # Borrowed weights are made by another candidate.
    made = [] if recipe.weights_of else [name]
    training = making_work(session, made, [session.first_seed], from_nothing=True)
    if not method.makes_language_model:
        trained_s = session.seconds(training, candidate.base)
        planned = costs.price_usd(trained_s, device, hour)
        return Cost(name, None, None, trained_s, time_s, 0.0, planned, spent, fits=True)
    own = _evaluation_work(session, list_answered_sets(session, recipe))
    answering = own.work + (Work() if method.keeps_base else suites.work)
    shape = hub.shape(candidate.base)
    start_s = costs.start_s(weights_bytes(candidate.base.path), session.machine.device)
    seconds = start_s + session.seconds(training + answering, candidate.base)
    needs = _Needs(session, candidate, shape, own | suites) if shape else None
    peak_gib = needs.peak_gb() / _GIB if needs else None
    fits = None if peak_gib is None else peak_gib <= room.free_gib
    n = shape.active if shape else candidate.base.n_parameters
    read = training.read + answering.read + answering.generated
    items = session.target.items
    context = answering.read / max(1, len(items.validation) + len(items.test))
    attention = memory.attention_flops(shape, read, context / 2) if shape else 0.0
    once = memory.inference_flops(n, read) + attention
    if not training.trained:
        flops = once
    else:
        n_adapter = _n_adapter(candidate, shape) if shape else 0
        on_gpu = session.machine.device == "cuda"
        flops = once + memory.training_flops(n, training.trained, n_adapter, checkpointing=on_gpu)
    return Cost(
        candidate=name,
        memory_gib=peak_gib,
        memory_measured_gib=memory_s,
        time_s=seconds,
        time_measured_s=time_s,
        flops=flops,
        cost_usd=costs.price_usd(seconds, device, hour),
        cost_measured_usd=spent,
        fits=fits,
        knob=needs.find_knob(room) if needs and fits is False else "",
    )


def _evaluation_work(session: Session, sets: Iterable[RowSet]) -> EvalTokens:
    """Estimate what answering sets of rows takes; at most a block of the longest item lies in memory."""
    # Of whole texts that are scored the logits of a pass lie there, of answers those of few tokens.
    jobs, most = [rows.job() for rows in sets], ANSWERING[session.machine.device].tokens
    longest = max((_longest_item(job) or most for job in jobs), default=1)
    whole = max((_longest_item(job) for job in jobs if job.task.kind == "bits_per_byte"), default=0)
    scored = min(READING[session.machine.device].tokens, BLOCK * whole)
    return EvalTokens(sum(map(work_of, jobs), Work()), min(most, BLOCK * longest), scored)


def _longest_item(job: EvaluationJob) -> int:
    """Return the tokens of a job's longest prompt with its answer; 0 where lm-eval writes the prompts."""
    if job.task.lm_eval:
        return 0
    works = (work_of(replace(job, examples=(e,))) for e in job.examples)
    return max((work.read + work.generated for work in works), default=1)


def _params(candidate: ResolvedCandidate) -> Any:
    """Return the parameters of a candidate's method, the first of a sweep; the others take as much."""
    return candidate.method.params(**candidate.trials[0].source.params)


def _trains(candidate: ResolvedCandidate) -> bool:
    return not candidate.recipe.weights_of and candidate.method.trains


def _n_adapter(candidate: ResolvedCandidate, shape: Shape) -> int:
    return candidate.method.adapter.n_parameters(shape, _params(candidate))


class _Needs(NamedTuple):
    """A candidate whose model's shape is known, and what its evaluation holds in memory."""

    session: Session
    candidate: ResolvedCandidate
    shape: Shape
    evaluation: EvalTokens

    def peak_gb(self, batch: int | None = None, quantization: str = "") -> float:
        """Estimate the peak in GB, of training with so many rows and on a base quantised so."""
        session, candidate, shape, evaluation = self
        on_gpu, precision = session.machine.device == "cuda", session.machine.precision
        served = quantization or (candidate.served_base.quantization if on_gpu else "")
        read = min(evaluation.cached, READING[session.machine.device].tokens)
        peak = memory.inference_peak(shape, evaluation.cached, precision, quantization=served, read=read)
        answering = peak.total + memory.BYTES[precision] * evaluation.scored * shape.vocabulary / 1e9
        if not _trains(candidate):
            return answering
        params = _params(candidate)
        # A CPU keeps quantised weights unpacked, and has no checkpointing.
        trained = quantization or (candidate.trained_base.quantization if on_gpu else "")
        cards = processes_of(session, candidate.source) if on_gpu else 1
        tokens = ceil((batch or params.per_device_train_batch_size) / cards) * self.longest_row()
        teacher, stage = (
            candidate.method.teaching.model(params),
            session.experiment.training.accelerate.sharded_stage,
        )
        training = memory.training_peak(
            shape,
            _n_adapter(candidate, shape) or shape.n_parameters,
            tokens,
            precision,
            quantization=trained,
            checkpointing=on_gpu,
            in_tiles=on_gpu and teacher is None,
            optim=params.optim,
            trained_in=params.trained_in,
            shards=cards if stage else 1,
            zero_stage=stage,
        ).total
        if teacher and (known := hub.shape(teacher)):
            training += memory.taught_gb(shape, known, tokens, precision)
        return max(training, answering)

    def longest_row(self) -> int:
        """Return the tokens of the longest training row (of a pair, with both answers), cut at max_length."""
        candidate = self.candidate
        step = prompting_step(self.session, candidate.source, self.session.first_seed)
        items = training_data(self.session, candidate.source).items
        in_pairs = candidate.method.draws_from == "pairs"
        work, rows = (costs.preference, items.pairs) if in_pairs else (costs.training, items.train)
        longest = max((work([step(e)], 1).trained for e in rows), default=1)
        return min(longest, int(_params(candidate).max_length) * (2 if in_pairs else 1))

    def find_knob(self, room: Memory) -> str:
        """Find the first change that lets the candidate fit: a smaller batch, NF4, else a smaller model."""
        candidate, method = self.candidate, self.candidate.method

        def fits(batch: int | None, quantization: str = "") -> bool:
            return self.peak_gb(batch, quantization) / _GIB <= room.free_gib

        if _trains(candidate):
            written = _params(candidate).per_device_train_batch_size
            smaller = [size for size in (written // 2**k for k in range(1, 12)) if size >= 1]
            if size := next(filter(fits, smaller), 0):
                steps = written // size
                return f"params.per_device_train_batch_size: {size} with gradient_accumulation_steps: {steps}"
            like_it = {"trains": True, "draws_from": method.draws_from}
            on_nf4 = plugins.methods(makes=method.makes, quantization="nf4", **like_it)
            plain = not candidate.trained_base.quantization and self.session.machine.device == "cuda"
            if on_nf4 and plain and fits(1, "nf4"):
                return f"method: {on_nf4[0]}, with params.per_device_train_batch_size: 1"
            adapters = plugins.methods(makes="adapter", quantization="", **like_it)
            if adapters and method.makes_whole_model:
                return f"method: {adapters[0]}, whose optimiser is a hundredth of that"
        return "a smaller base_model"


_CHECKPOINTS = 3  # the newest, the best, and the one being written


def checkpoints_gb(candidate: ResolvedCandidate) -> float:
    """Estimate what the checkpoints of a candidate's training take on the disk while it runs."""
    shape = hub.shape(candidate.base)
    if not _trains(candidate) or shape is None:
        return 0.0
    params = _params(candidate)
    each = memory.BYTES[params.trained_in] + memory.optimizer_bytes(params.optim, params.trained_in)
    return _CHECKPOINTS * each * (_n_adapter(candidate, shape) or shape.n_parameters) / 1e9


def _find_measured(
    session: Session, candidate: ResolvedCandidate, runs: Sequence[Run]
) -> tuple[float, float | None] | None:
    """Return the seconds and the peak memory in GiB of a recipe's newest run that has its rows."""
    own_runs = [r for r in runs if r.candidate == candidate.name and r.state == "done"]
    same = [r for r in own_runs if Recipe.model_validate(r.recipe) == candidate.recipe]
    same = [r for r in same if all(session.store.parquet(rows).exists() for rows in r.rows.values())]
    if not same:
        return None
    run = same[-1]
    own = TrainingRecord() if candidate.recipe.weights_of else run.training
    task, tuned = session.target.task.name, run.weights_digest != run.base_digest
    keys = [key for key in run.rows if tuned or key.rpartition("/")[0] == task]
    answered = sum(r.compute_s for key in keys for r in store.read_rows(session.store, run.rows[key]))
    return (own.wall_s or 0.0) + answered, own.peak_memory_gib
