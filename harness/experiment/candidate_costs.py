"""Estimated work, time, memory and price of candidates.

Invariant: the cost of a candidate is that of making it alone, from nothing. In a plan shared work (a base's
suites, weights) counts for the first candidate that needs it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil
from typing import Any, NamedTuple

from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.row_sets import RowSet, list_answered_sets, suite_sets, target_sets, work_of
from harness.evaluation.session import Session
from harness.evaluation.timing import n_timed
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.plan import arm_label, list_measured_bases
from harness.experiment.stored_rows import is_cross_validated, is_measured
from harness.experiment.training_fit import fit_work, processes_of
from harness.experiment.validation_scores import estimate_tracking
from harness.models import hub, memory
from harness.models.hardware import Memory
from harness.models.hf import ANSWERING, READING
from harness.models.shapes import Shape
from harness.models.weight_files import weights_bytes
from harness.records import BLOCK, Run
from harness.training import MEMORY_KNOBS


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a candidate; unknown for endpoints.

    Times are device seconds of training and answering. `fits` is None if the model's configuration lacks a
    value; `knob` names what to change if it does not fit.
    """

    candidate: str
    memory_gib: float | None
    time_s: float | None
    flops: float
    cost_usd: float | None
    fits: bool | None
    knob: str = ""


class EvalTokens(NamedTuple):
    """Tokens of an evaluation: total, and the most whose keys or logits are in memory at once."""

    work: Work
    cached: int
    scored: int


TIMED_AGAIN = "single requests of the best"
_GIB = 2**30 / 1e9  # GB


class Estimates:
    """Estimates of the candidates of a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._folds = [session, *session.in_folds()]
        self._making, self._longest_row = cache(self._estimate_making), cache(self._find_longest_row)
        self._answering = cache(
            lambda name: self._evaluation(list_answered_sets(session, session.candidates[name].recipe))
        )

    @cached_property
    def _suites(self) -> EvalTokens:
        return self._evaluation(suite_sets(self.session, base_weights(self.session.source)))

    def _evaluation(self, sets: Iterable[RowSet]) -> EvalTokens:
        # For scored texts the logits of a whole pass are in memory, for answers those of a few tokens.
        device, jobs = self.session.machine.device, [rows.job() for rows in sets]
        most, longest = ANSWERING[device].tokens, list[int]()
        for job in jobs:  # the tokens of its longest prompt with the answer; 0 where lm-eval writes prompts
            examples = () if job.task.lm_eval else job.examples
            works = (work_of(replace(job, examples=(example,))) for example in examples)
            sizes = (work.read + work.generated for work in works)
            longest.append(max(sizes, default=0 if job.task.lm_eval else 1))
        texts = (n for job, n in zip(jobs, longest, strict=True) if job.task.kind == "bits_per_byte")
        scored = min(READING[device].tokens, BLOCK * max(texts, default=0))
        cached = min(most, BLOCK * max((n or most for n in longest), default=1))
        return EvalTokens(sum(map(work_of, jobs), Work()), cached, scored)

    def _estimate_making(self, place: int, name: str) -> Work:
        session = self._folds[place]
        made = session.candidates[name]
        fits = [fit_work(session, trial.source, session.first_seed) for trial in made.trials]
        if made.source.tried:
            validation = target_sets(session, made.source, base_weights(session.source), 0)[0]
            fits += [work_of(validation.job()) + Work(opened=1)] * (len(made.trials) - 1)
        return sum(fits, estimate_tracking(session, made.source))

    def _sum_making(self, makes: Collection[str], seeds: Sequence[int], *, from_nothing: bool) -> Work:
        total = Work()
        for place, session in enumerate(self._folds):
            for name in makes:
                made, n = session.candidates[name], len(seeds)
                if made.method.trains and not from_nothing:
                    n = sum(find_stored_weights(session, made, seed) is None for seed in seeds)
                total += times(self._making(place, name), n) if n else Work()
        return total

    def work(
        self, selected: Collection[str], *, smoke: bool = False, found: Sequence[Run | None] | None = None
    ) -> dict[str, Work]:
        """Estimate what each selected candidate trains, reads and generates from nothing.

        If stored runs are `found`, only what they lack counts. In a `smoke` run nothing is timed again.
        """
        session, suites = self.session, self._suites.work
        done = {(run.candidate, run.seed) for run in found or () if run and run.state == "done"}
        candidates = [session.candidates[name] for name in selected]
        n_control = min(session.experiment.gate.control_blocks, suites.blocks)
        share = n_control / max(1, suites.blocks)
        control = Work(
            read=round(share * suites.read), generated=round(share * suites.generated), blocks=n_control
        )
        arm = suites + control + Work(opened=1)
        bases = list_measured_bases(candidates) if session.suites else ()
        missing = [source for source in bases if found is None or not is_measured(session, source)]
        out = {arm_label(session.experiment.base_model, source): arm for source in missing}
        made: set[str] = set()
        judged: set[tuple[str, str]] = set()
        n_validation = len(session.target.items.validation)
        for candidate in candidates:
            makes = [at for at in candidate.lineage if at not in made]
            made.update(makes)
            seeds = [seed for seed in candidate.seeds if (candidate.name, seed) not in done]
            weights = (candidate.source_name, candidate.served_base.weights_digest)
            gated = candidate.method.tunes and not candidate.is_target_only and weights not in judged
            judged.add(weights)
            if not seeds:
                continue
            once = Work(runs=1) + (suites if gated else Work())
            if candidate.method.makes_language_model:
                n_opened = 1 + len(session.folds) * is_cross_validated(session.folds, candidate)
                once += self._answering(candidate.name).work
                once += Work(opened=n_opened, requests=n_timed(n_validation))
            making = self._sum_making(makes, seeds, from_nothing=found is None)
            out[candidate.name] = times(once, len(seeds)) + making
        if not smoke and any(candidate.name in out for candidate in candidates):
            # The best untrained candidate and the best fine-tune are timed again.
            local = (one for one in candidates if one.method.makes_language_model and not one.is_remote)
            n_best = len({one.method.tunes for one in local})
            if n_requests := n_best * n_timed(n_validation, best=True):
                out[TIMED_AGAIN] = Work(opened=n_best, requests=n_requests)
        return out

    def seconds(self, work: Mapping[str, Work]) -> dict[str, float]:
        """Estimate the seconds of planned work here; endpoints take none."""
        session, candidates = self.session, self.session.candidates.values()
        remote = {candidate.name for candidate in candidates if candidate.is_remote}
        bases = {candidate.name: candidate.base for candidate in candidates}
        bases |= {
            arm_label(session.experiment.base_model, source): source
            for source in list_measured_bases(candidates)
        }
        return {
            name: session.seconds(one, bases.get(name)) for name, one in work.items() if name not in remote
        }

    def costs(self, selected: Iterable[str], room: Memory) -> tuple[Cost, ...]:
        """Estimate the cost of every selected candidate."""
        return tuple(self._cost(self.session.candidates[name], room) for name in selected)

    def _cost(self, candidate: ResolvedCandidate, room: Memory) -> Cost:
        session, method, name = self.session, candidate.method, candidate.name
        if method.is_remote:
            return Cost(name, None, None, 0.0, None, fits=True)
        hour, device = session.experiment.decide.device_hour_usd, session.machine.device
        # Borrowed weights are made by another candidate.
        made = [] if candidate.recipe.weights_of else [name]
        training = self._sum_making(made, [session.first_seed], from_nothing=True)
        if not method.makes_language_model:
            trained_s = session.seconds(training, candidate.base)
            return Cost(name, None, trained_s, 0.0, costs.price_usd(trained_s, device, hour), fits=True)
        shape = hub.shape(candidate.base)
        answering = self._answering(name).work + (Work() if method.keeps_base else self._suites.work)
        start_s = costs.start_s(weights_bytes(candidate.base.path), device)
        seconds = start_s + session.seconds(training + answering, candidate.base)
        peak_gib = self._peak_gb(candidate, shape) / _GIB if shape else None
        fits = None if peak_gib is None else peak_gib <= room.free_gib
        n = shape.active if shape else candidate.base.n_parameters
        read = training.read + answering.read + answering.generated
        items = session.target.items
        context = answering.read / max(1, len(items.validation) + len(items.test))
        flops = memory.inference_flops(n, read)
        flops += memory.attention_flops(shape, read, context / 2) if shape else 0.0
        if training.trained:
            n_adapter = _n_adapter(candidate, shape) if shape else 0
            on_gpu = device == "cuda"
            flops += memory.training_flops(n, training.trained, n_adapter, checkpointing=on_gpu)
        return Cost(
            candidate=name,
            memory_gib=peak_gib,
            time_s=seconds,
            flops=flops,
            cost_usd=costs.price_usd(seconds, device, hour),
            fits=fits,
            knob="" if fits is not False else MEMORY_KNOBS if _trains(candidate) else "a smaller base_model",
        )

    def _peak_gb(self, candidate: ResolvedCandidate, shape: Shape) -> float:
        session, own = self.session, self._answering(candidate.name)
        on_gpu, precision = session.machine.device == "cuda", session.machine.precision
        served = candidate.served_base.quantization if on_gpu else ""
        cached, scored = max(own.cached, self._suites.cached), max(own.scored, self._suites.scored)
        read = min(cached, READING[session.machine.device].tokens)
        peak = memory.inference_peak(shape, cached, precision, quantization=served, read=read)
        answering = peak.total + memory.BYTES[precision] * scored * shape.vocabulary / 1e9
        if not _trains(candidate):
            return answering
        params = _params(candidate)
        # A CPU keeps quantised weights unpacked, and has no checkpointing.
        trained = candidate.trained_base.quantization if on_gpu else ""
        cards = processes_of(session.experiment.training.accelerate, candidate.source) if on_gpu else 1
        rows = ceil(params.per_device_train_batch_size / cards)
        tokens, teacher = rows * self._longest_row(candidate.name), candidate.method.teaching.model(params)
        stage = session.experiment.training.accelerate.sharded_stage
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

    def _find_longest_row(self, name: str) -> int:
        candidate = self.session.candidates[name]
        step = self.session.prompting_step(candidate.source, self.session.first_seed)
        items = self.session.training_data(candidate.source).items
        in_pairs = candidate.method.draws_from == "pairs"
        work, rows = (costs.preference, items.pairs) if in_pairs else (costs.training, items.train)
        longest = max((work([step(e)], 1).trained for e in rows), default=1)
        return min(longest, int(_params(candidate).max_length) * (2 if in_pairs else 1))


def _params(candidate: ResolvedCandidate) -> Any:
    return candidate.method.params(**candidate.trials[0].source.params)


def _trains(candidate: ResolvedCandidate) -> bool:
    return not candidate.recipe.weights_of and candidate.method.trains


def _n_adapter(candidate: ResolvedCandidate, shape: Shape) -> int:
    return candidate.method.adapter.n_parameters(shape, _params(candidate))
