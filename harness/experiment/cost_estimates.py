"""Cost estimates of candidates and of trials: their work, time, memory and price.

Invariant: nothing is trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil
from typing import Any, NamedTuple

from harness.evaluation import costs, row_sets
from harness.evaluation.candidate_rows import describe_training_rows
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import RowSet, RunRequest, list_answered_sets
from harness.evaluation.session import Session
from harness.evaluation.timing import n_timed
from harness.experiment import rescue_trials
from harness.experiment.candidate_weights import processes_of
from harness.experiment.plan import TIMED_AGAIN, Plan, Step, make_plan
from harness.experiment.rescue_trials import RescueTrial, TrialCost, TrialSchedule
from harness.experiment.run_candidate import find_stored_runs
from harness.experiment.stored_rows import arm_label, is_cross_validated, list_measured_bases
from harness.experiment.trials import estimate_tracking, fit_work
from harness.formatting import count, pluralize
from harness.models import hub, memory
from harness.models.hardware import Memory
from harness.models.hf import ANSWERING, READING
from harness.models.shapes import Shape
from harness.models.weight_files import weights_bytes
from harness.records import BLOCK
from harness.training import MEMORY_KNOBS


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a candidate; unknown for endpoints.

    Times are device seconds of training and answering. `fits` is None if the model's configuration is
    incomplete; `knob` names what to change if it does not fit.
    """

    candidate: str
    memory_gib: float | None
    time_s: float | None
    flops: float
    cost_usd: float | None
    fits: bool | None
    knob: str = ""


class _EvalTokens(NamedTuple):
    # Work of an evaluation, and the most tokens whose keys or logits are in memory at once.
    work: Work
    cached: int
    scored: int


_GIB = 2**30 / 1e9  # GB


@dataclass
class Estimates:
    """Estimates of the candidates of a session."""

    session: Session

    def __post_init__(self) -> None:
        session = self.session
        self._folds = [session, *session.in_folds()]
        self._trial = cache(self._estimate_trial)
        self._answering = cache(
            lambda name: self._evaluation(list_answered_sets(session, session.candidates[name].recipe))
        )

    def describe(self, selected: Iterable[str]) -> tuple[str, ...]:
        """Describe models, target, suites and training rows in a line each."""
        session = self.session
        models = [
            f"model {s.name}: {count(s.n_parameters / 1e6)} million parameters"
            for s in session.sources.values()
        ]
        items = session.target.items
        rows = f"{count(len(items.train))} training, {count(len(items.validation))} validation, "
        target = f"target {session.target.task.name}: {rows}{count(len(items.test))} test rows"
        more = ((items.pairs, "pair"), (items.documents, "document"))
        other_counts = [pluralize(len(things), noun) for things, noun in more if things]
        n_items = sum(len(m.items.test) for m in session.suites)
        suites = f"suites: {pluralize(len(session.suites), 'task')}, {pluralize(n_items, 'item')}"
        is_folded = bool(session.folds)
        trained = describe_training_rows(
            session.candidates, selected, session.training_data, in_folds=is_folded
        )
        remarks = (*items.overlap, *trained)
        return (*models, ", ".join([target, *other_counts]), *remarks, suites)

    @cached_property
    def _suites(self) -> _EvalTokens:
        return self._evaluation(row_sets.suite_sets(self.session, base_weights(self.session.source)))

    def _evaluation(self, sets: Iterable[RowSet]) -> _EvalTokens:
        # Scored texts need the logits of a whole pass in memory, answers those of a few tokens.
        device, jobs = self.session.machine.device, [rows.job() for rows in sets]
        token_limit, longest = ANSWERING[device].tokens, list[int]()
        for job in jobs:  # tokens of its longest prompt with the answer; 0 for lm-eval
            examples = () if job.task.lm_eval else job.examples
            works = (row_sets.work_of(replace(job, examples=(example,))) for example in examples)
            sizes = (work.read + work.generated for work in works)
            longest.append(max(sizes, default=0 if job.task.lm_eval else 1))
        texts = (n for job, n in zip(jobs, longest, strict=True) if job.task.kind == "bits_per_byte")
        scored = min(READING[device].tokens, BLOCK * max(texts, default=0))
        cached = min(token_limit, BLOCK * max((n or token_limit for n in longest), default=1))
        return _EvalTokens(sum(map(row_sets.work_of, jobs), Work()), cached, scored)

    def work(self, plan: Plan, *, missing: bool = False) -> dict[str, Work]:
        """Estimate the work of a plan, or of its `missing` steps: of each base, then of each candidate.

        A step counts with the first run that needs it.
        """
        session, base_model = self.session, self.session.experiment.base_model
        owner_of = {step: name for (name, _), steps in reversed(plan.runs.items()) for step in steps}
        sources = list_measured_bases(session.candidates.values())
        arms = {source.weights_digest: arm_label(base_model, source) for source in sources}
        work = dict.fromkeys([*arms.values(), *session.candidates, TIMED_AGAIN], Work())
        for step in plan.needs:
            if not (missing and step in plan.stored):
                work[arms.get(step.name) or owner_of.get(step, TIMED_AGAIN)] += self._price(step)
        return {label: total for label, total in work.items() if any(total)}

    def _price(self, step: Step) -> Work:
        # The work of a step, from nothing.
        suites, n_validation = self._suites.work, len(self.session.target.items.validation)
        if step.kind == "time":
            n_requests = n_timed(n_validation, best=True)
            return Work(opened=bool(n_requests), requests=n_requests)
        if step.kind == "base":  # with its control arm
            n_control = min(self.session.experiment.gate.control_blocks, suites.blocks)
            share = n_control / max(1, suites.blocks)
            read, generated = round(share * suites.read), round(share * suites.generated)
            return suites + Work(read=read, generated=generated, blocks=n_control, opened=1)
        if step.kind == "control":
            return Work()
        if step.kind == "trial":
            return self._trial(step.fold, step.name, step.part)
        candidate, work = self.session.candidates[step.name], Work()
        if step.kind == "fit":
            work += estimate_tracking(self.session, candidate.source)
            if not candidate.source.tried or step.seed != self.session.first_seed:
                return work + self._trial(step.fold, step.name, 0)
            return work + (self._search(step.fold, step.name) if candidate.source.search else Work())
        work += Work(runs=1) + (suites if step.suites else Work())
        if candidate.method.makes_language_model:
            n_opened = len(self._folds) if is_cross_validated(self.session.folds, candidate) else 1
            work += self._answering(step.name).work + Work(opened=n_opened, requests=n_timed(n_validation))
        return work + (self._search(0, step.name) if candidate.searches_prompts else Work())

    def _search(self, fold: int, name: str) -> Work:
        points = range(len(self.session.candidates[name].points))
        return sum((self._trial(fold, name, point) for point in points), Work())

    def _estimate_trial(self, fold: int, name: str, point: int) -> Work:
        # A fit, and its answers to validation rows; those of the first point count with the run's.
        session, candidate = self._folds[fold], self.session.candidates[name]
        work = fit_work(session, candidate.trials[point].source, session.first_seed)
        if point:
            rows = row_sets.target_sets(session, candidate.source, base_weights(session.source), 0)[0]
            work += row_sets.work_of(rows.job()) + Work(opened=1)
        return work

    def seconds(self, work: Mapping[str, Work]) -> dict[str, float]:
        """Estimate the seconds of planned work on this machine; endpoints take none."""
        session, candidates = self.session, self.session.candidates.values()
        remote = {candidate.name for candidate in candidates if candidate.is_remote}
        base_model, bases = session.experiment.base_model, {c.name: c.base for c in candidates}
        bases |= {arm_label(base_model, source): source for source in list_measured_bases(candidates)}
        local = ((name, planned) for name, planned in work.items() if name not in remote)
        return {name: session.seconds(planned, bases.get(name)) for name, planned in local}

    def trials(self, schedule: TrialSchedule, seed: int) -> list[TrialCost]:
        """Estimate every trial of a rescue, whose recipes are among the candidates."""
        session, hour, every = self.session, self.session.experiment.decide.device_hour_usd, list[TrialCost]()
        for trial in schedule.trials:
            work, candidate = self._trial_work(trial, seed), session.candidates[trial.name]
            time_s = session.seconds(work, candidate.base)
            cost_usd = costs.price_usd(time_s, session.machine.device, hour)
            (run,) = find_stored_runs(session, [RunRequest(candidate, seed)])
            is_stored = run is not None and run.state == "done"
            every.append(TrialCost(trial.name, trial.step, trial.says, work, time_s, cost_usd, is_stored))
        return every

    def largest_rescue(self, selected: Sequence[str]) -> Work:
        """Estimate all trials of the fine-tune whose rescue takes longest; the gate decides which it is."""
        session, works = self.session, [Work()]
        for candidate in (session.candidates[name] for name in selected):
            if candidate.method.tunes and not candidate.is_remote:  # before its sweep has chosen anything
                source, metric = candidate.trials[0].source, session.target.primary
                others = rescue_trials.list_adapters(session.candidates.values(), candidate)
                plan = rescue_trials.plan_trials(session.experiment, metric, candidate, source, others)
                works.append(sum((self._trial_work(trial, 0) for trial in plan.trials), Work()))
        return max(works, key=session.seconds)

    def _trial_work(self, trial: RescueTrial, seed: int) -> Work:
        answering = self._suites.work + row_sets.total_work(list_answered_sets(self.session, trial.recipe))
        making = fit_work(self.session, trial.source, seed) + estimate_tracking(self.session, trial.source)
        return answering + making + Work(opened=1, runs=1)

    def costs(self, selected: Iterable[str], room: Memory) -> tuple[Cost, ...]:
        """Estimate the cost of every selected candidate."""
        session, every = self.session, list[Cost]()
        hour, device = session.experiment.decide.device_hour_usd, session.machine.device
        for name in selected:
            candidate, method = session.candidates[name], session.candidates[name].method
            if method.is_remote:
                every.append(Cost(name, None, None, 0.0, None, fits=True))
                continue
            borrows = candidate.recipe.weights_of  # another candidate makes these
            steps = make_plan(session, [RunRequest(candidate, session.first_seed)]).needs
            making = (step for step in steps if step.name == name and step.kind != "answer")
            training = sum(map(self._price, making), Work())
            training += self._search(0, name) if candidate.searches_prompts else Work()
            if not method.makes_language_model:
                time_s = session.seconds(training, candidate.base)
                every.append(Cost(name, None, time_s, 0.0, costs.price_usd(time_s, device, hour), fits=True))
                continue
            shape = hub.shape(candidate.base)
            answering = self._answering(name).work + (Work() if method.keeps_base else self._suites.work)
            time_s = costs.start_s(weights_bytes(candidate.base.path), device)
            time_s += session.seconds(training + answering, candidate.base)
            peak_gib = self._peak_gb(candidate, shape) / _GIB if shape else None
            fits = None if peak_gib is None else peak_gib <= room.free_gib
            n = shape.active if shape else candidate.base.n_parameters
            read = training.read + answering.read + answering.generated
            n_items = len(session.target.items.validation) + len(session.target.items.test)
            flops = memory.inference_flops(n, read)
            if shape:
                flops += memory.attention_flops(shape, read, answering.read / max(1, n_items) / 2)
            if training.trained:
                n_adapter = _n_adapter(candidate, shape) if shape else 0
                flops += memory.training_flops(n, training.trained, n_adapter, checkpointing=device == "cuda")
            knob = MEMORY_KNOBS if method.trains and not borrows else "a smaller base_model"
            usd = costs.price_usd(time_s, device, hour)
            every.append(Cost(name, peak_gib, time_s, flops, usd, fits, knob if fits is False else ""))
        return tuple(every)

    def _peak_gb(self, candidate: ResolvedCandidate, shape: Shape) -> float:
        session, method, sizes = self.session, candidate.method, self._answering(candidate.name)
        on_gpu, precision = session.machine.device == "cuda", session.machine.precision
        served = candidate.served_base.quantization if on_gpu else ""
        cached, scored = max(sizes.cached, self._suites.cached), max(sizes.scored, self._suites.scored)
        read = min(cached, READING[session.machine.device].tokens)
        peak = memory.inference_peak(shape, cached, precision, quantization=served, read=read)
        answering = peak.total + memory.BYTES[precision] * scored * shape.vocabulary / 1e9
        if candidate.recipe.weights_of or not method.trains:
            return answering
        params = _params(candidate)
        # A CPU keeps quantised weights unpacked, and has no checkpointing.
        trained = candidate.trained_base.quantization if on_gpu else ""
        cards = processes_of(session.experiment.training.accelerate, candidate.source) if on_gpu else 1
        rows, in_pairs = ceil(params.per_device_train_batch_size / cards), method.draws_from == "pairs"
        step = session.prompting_step(candidate.source, session.first_seed)
        items = session.training_data(candidate.source).items
        work, own_rows = (costs.preference, items.pairs) if in_pairs else (costs.training, items.train)
        longest = max((work([step(e)], 1).trained for e in own_rows), default=1)
        tokens = rows * min(longest, int(params.max_length) * (2 if in_pairs else 1))
        teacher = method.teacher(params)
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
        if teacher and (teacher_shape := hub.shape(teacher)):
            training += memory.taught_gb(shape, teacher_shape, tokens, precision)
        return max(training, answering)


def _params(candidate: ResolvedCandidate) -> Any:
    return candidate.method.params(**candidate.trials[0].source.params)


def _n_adapter(candidate: ResolvedCandidate, shape: Shape) -> int:
    return candidate.method.n_parameters(shape, _params(candidate))
