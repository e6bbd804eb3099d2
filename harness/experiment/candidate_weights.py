"""Weights of a candidate and seed: stored, or made by one fit or the best of its trials.

Invariant: a folder of weights is named by the digest of all their inputs, and exists only when complete.
However a training ends, the next call resumes from its checkpoints.
"""

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins, training
from harness.data import TaskItems
from harness.errors import CandidateFailed, Diverged, NotStored
from harness.evaluation.candidate_rows import find_shipped
from harness.evaluation.candidates import (
    DIVERGED,
    ResolvedCandidate,
    base_weights,
    merge_weights,
    read_weights,
    refuse_damaged,
)
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import prompting_digest, suite_sets
from harness.evaluation.runner import answer
from harness.evaluation.session import Session, join_items
from harness.evaluation.stored_scores import rescore_stored
from harness.experiment import trials
from harness.experiment.trial_search import (
    PRUNED,
    TrialFit,
    TrialSearch,
    Tried,
    is_whole,
    phrase_no_trial,
    rank_trial,
    read_points_so_far,
)
from harness.experiment.trials import fit_work, measure_point
from harness.masking import mask_values
from harness.metrics import version as metric_version
from harness.models.artefacts import artefact_files
from harness.models.hardware import MOST_WAITED, ignores_load
from harness.models.weight_files import content_digest
from harness.plugins import OR
from harness.provenance import digest_code, versions_of
from harness.records import Example, TrackedPoint, digest, drop_defaults, is_unspaced, parse_json
from harness.regularizers import Answered, Mixture, general_rows, has_hook, regularizers_digest
from harness.spec import AcceleratePolicy, Recipe, Task, TaskData, TrainingPolicy, is_path, metric_name
from harness.store import AGAIN, clear_errors, remove, write_whole
from harness.training import Weights
from harness.training.job_worker import launch
from harness.training.live_trackers import LiveRun, make_live_id, open_trackers

_ALIKE = 0.6  # an estimate teaches only if the steps made are within this ratio
_OWN_FROM_S = 15.0  # a process of its own starts in some 10 s


# Rows mixed into the training rows, and general rows by regulariser.
RegularizerRows = tuple[Sequence[Example], dict[str, tuple[Example, ...]]]


def ensure_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Return the weights of a candidate; make them if they are not stored."""
    weights = _Maker(session, candidate, seed).weights()
    # In fp32 every adapter answers merged already.
    rounds = candidate.recipe.serve_merged and session.machine.precision != "fp32"
    return merge_weights(weights) if rounds else weights


def find_stored_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights | None:
    """Return the stored weights of a candidate; None if there are none or their training diverged."""
    try:
        return ensure_weights(session.reading(), candidate, seed)
    except (Diverged, NotStored):
        return None


class FitInputs(NamedTuple):
    """Weights that a fit starts from, is rewarded by or merges, and the folder of the result."""

    init: Weights | None
    reward: Weights | None
    merges: Sequence[Weights]
    folder: Path


class _Maker(NamedTuple):
    # Finds or makes the weights of a candidate and seed.
    session: Session
    candidate: ResolvedCandidate
    seed: int

    @property
    def fit(self) -> "Fit":
        return Fit(*self)

    @property
    def search(self) -> TrialSearch:
        return TrialSearch(self.session, self.candidate, self.begin_trial)

    def weights(self) -> Weights:
        if self.candidate.prompt_trials:
            weights = self._replace(candidate=replace(self.candidate, prompt_trials=())).weights()
            sweep, by = self.candidate.prompt_trials, self.candidate.prompts_proposed_by
            return weights._replace(training=replace(weights.training, sweep=sweep, searched_by=by))
        if self.candidate.given:
            return self.add_choosers(base_weights(self.candidate.given))
        if not self.candidate.source.tried or not self.candidate.method.trains:
            return self.find_or_fit(self.begin(), shows_points=True)
        # Every trial has the same budget unless it is pruned; losing trials stay in the store. A failed trial
        # counts too, and is repeated only by a search that has not chosen yet, once per session.
        tried: list[Tried] = []
        if not self.session.reads_only:
            with suppress(NotStored):
                stored = self._replace(session=self.session.reading()).search.try_all()
                is_searched = self.candidate.source_name in self.session.searched
                tried = stored if is_searched or any(is_whole(attempt.trial) for attempt in stored) else []
        if not tried:
            tried = self.search.try_all()
            if not self.session.reads_only:
                self.session.searched.add(self.candidate.source_name)
        sign = self.session.target.primary.unit.sign
        best = max((attempt.trial for attempt in tried), key=partial(rank_trial, sign=sign))
        if not is_whole(best):
            self.session.refuse_if_reading(f"finished trial of {self.candidate.source_name}")
            raise phrase_no_trial([(t.trial.params, t.error) for t in tried if t.error])
        chosen = self._replace(candidate=self.candidate.at(best.params))
        weights = chosen.find_or_fit(chosen.begin(), shows_points=True)
        again_s = 0.0 if self.seed == self.session.first_seed else weights.training.wall_s or 0.0
        record = replace(
            weights.training,
            wall_s=round(sum(attempt.trial.wall_s for attempt in tried) + again_s, 3),
            sweep=tuple(replace(attempt.trial, chosen=attempt.trial is best) for attempt in tried),
            searched_by=trials.searcher(self.candidate.source) if self.candidate.source.search else "",
            stands_on=stands_on(*(attempt.weights for attempt in tried if attempt.weights)),
        )
        return weights._replace(training=record)

    def begin(self) -> FitInputs:
        """Make the weights that this fit starts from, merges or is rewarded by; return its inputs."""
        makers = self.candidate.init, self.candidate.reward
        init, reward = (self._replace(candidate=m).weights() if m else None for m in makers)
        merges = [self._replace(candidate=maker).weights() for maker in self.candidate.merges]
        # The weights to start from or to merge may be of a kind that the method does not accept.
        expected_kinds = {"init_from": self.candidate.method.init_from, "merges": self.candidate.method.makes}
        for key, starts in (("init_from", [init] if init else []), ("merges", merges)):
            for start in starts:
                kind = start.kind if start.folder else "model"
                if kind not in expected_kinds[key].split(OR):
                    found = f"{key}: weights that turned out to be of the kind {kind}"
                    raise CandidateFailed(f"{found}; expected {expected_kinds[key]}", "another candidate")
        return FitInputs(init, reward, merges, self.fit.folder(init, reward, merges))

    def begin_trial(self, candidate: ResolvedCandidate) -> TrialFit:
        trial = self._replace(candidate=candidate, seed=self.session.first_seed)
        inputs = trial.begin()
        finish, train_to = partial(trial.find_or_fit, inputs), partial(trial.fit.make_weights, inputs)
        live = trial.fit.live_run(inputs.folder)
        return TrialFit(inputs.folder, finish, train_to, partial(show_point, live))

    def find_or_fit(self, inputs: FitInputs, *, shows_points: bool = False) -> Weights:
        stored_weights = read_weights(self.candidate, inputs.folder)
        if stored_weights is None:
            self.session.refuse_if_reading(f"weights {inputs.folder.name}")
            with self.session.claim(inputs.folder.name):
                stored_weights = read_weights(self.candidate, inputs.folder)
                if stored_weights is None and shows_points:
                    # Trains up to each planned point, and sends the target's score there to the trackers.
                    track, live = self.candidate.source.track, self.fit.live_run(inputs.folder)
                    for n_points in range(1, track.points + 1) if track and live else ():
                        self.fit.make_weights(inputs, show_at=n_points)
                        weights_by_step = read_points_so_far(self.candidate, inputs.folder)
                        for step, weights in list(weights_by_step.items())[-1:]:
                            point = measure_point(self.session, self.candidate, step, weights, self.seed)
                            show_point(live, point)
                        if inputs.folder.exists():
                            break
                    stored_weights = read_weights(self.candidate, inputs.folder)
                if stored_weights is None:
                    self.fit.make_weights(inputs)
                    stored_weights = read_weights(self.candidate, inputs.folder)
        assert stored_weights is not None
        start_weights = [weights for weights in (inputs.init, inputs.reward, *inputs.merges) if weights]
        if not start_weights:
            return self.add_choosers(stored_weights)
        before_s = round(sum(weights.training.total_s for weights in start_weights), 3)
        record = replace(stored_weights.training, init_wall_s=before_s, stands_on=stands_on(*start_weights))
        if inputs.reward:
            reward_record = inputs.reward.training
            accuracy = reward_record.heldout_accuracy[-1][1] if reward_record.heldout_accuracy else None
            record = replace(record, reward_model_accuracy=accuracy, n_heldout=reward_record.n_heldout)
        return self.add_choosers(stored_weights._replace(training=record))

    def add_choosers(self, weights: Weights) -> Weights:
        made = {c.name: self._replace(candidate=c).weights() for c in self.candidate.choosers}
        if not made:
            return weights
        record = weights.training
        before_s = (record.init_wall_s or 0.0) + sum(c.training.total_s for c in made.values())
        digests = {**record.stands_on, **stands_on(*made.values())}
        record = replace(record, init_wall_s=round(before_s, 3), stands_on=digests)
        return weights._replace(training=record, choosers=tuple(made.items()))


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of all weights they were made from, to digests."""
    digests: dict[str, str] = {}
    for start in weights:
        key = start.training.fit_key
        digests |= start.training.stands_on | ({key: start.digest} if key else {})
    return digests


def make_trial(session: Session, candidate: ResolvedCandidate, point: int) -> Weights | None:
    """Make and validate the trial at one point of its sweep; None if it failed, which is recorded."""
    search = _Maker(session, candidate, session.first_seed).search
    return search.attempt(trials.TrialProposal(candidate.points[point])).weights


def choose_prompts(session: Session, names: Iterable[str]) -> dict[str, ResolvedCandidate]:
    """Return the candidates that search for a prompt, with the prompt that validation selects.

    Failed searches are left out, as are searches with missing answers on a read-only session.
    """
    chosen, ensure = dict[str, ResolvedCandidate](), partial(ensure_weights, session, seed=session.first_seed)
    for candidate in (session.candidates[name] for name in names):
        if candidate.searches_prompts:
            search = _Maker(session, candidate, session.first_seed).search
            if with_prompt := search.choose_prompt(ensure):
                chosen[candidate.name] = with_prompt
    return chosen


class Fit(NamedTuple):
    """The training of a candidate and seed in a session, or its method's substitute for training."""

    session: Session
    candidate: ResolvedCandidate
    seed: int

    def live_run(self, folder: Path, show_at: int = 0) -> LiveRun | None:
        """Return the trackers' run for the training in a folder; None if no tracker follows it."""
        session, candidate, seed = self
        names, source, name = session.experiment.report_to, candidate.source, candidate.source_name
        if not (names and session.trackers and candidate.method.trains):
            return None
        params = {"method": source.method, "seed": seed, "base_model": session.experiment.base_model}
        return LiveRun(
            make_live_id(name, seed, folder.name),
            name,
            session.experiment.name + ("-smoke" if session.store.folder.name == "smoke" else ""),
            session.trackers.absolute(),
            names,
            {key: str(value) for key, value in mask_values(params | source.params).items()},
            show_at,
        )

    def folder(
        self,
        init: Weights | None,
        reward: Weights | None = None,
        merges: Sequence[Weights] = (),
    ) -> Path:
        """Return the folder of weights, named by a digest of exactly their inputs."""
        session, candidate, seed = self
        source, method, base = candidate.source, candidate.method, candidate.trained_base
        if source.reward is None or reward:
            rewarded_by = reward.digest if reward else ""
        elif is_path(source.reward) and not training.is_metric_file(Path(source.reward)):
            rewarded_by = digest_code(Path(source.reward))
        else:
            unread = {"data", "limit"}
            task = session.target.task.model_dump(mode="json", exclude=unread, exclude_defaults=True)
            unspaced = is_unspaced(text for e in session.target.items.train for text in e.references)
            rewarded_by = digest([metric_name(source.reward), metric_version(source.reward, unspaced), task])
        if not method.draws_from:
            trained_on = ""
        else:
            target = session.training_data(source)
            of_pairs = target.items.pairs if method.draws_from == "pairs" else ()
            pairs = list(map(drop_defaults, of_pairs))
            rows = [] if pairs else [target.versions["train"], target.versions["validation"]]
            seeds = [seed] if method.seeded else []
            computed = [session.machine.precision, session.machine.device]
            inputs: list[Any] = [pairs, rows, prompting_digest(session.target, source, seed), seeds, computed]
            if pairs:  # the task's part of the prompts, not covered by the pairs' version
                fields = {"chat_template"} | ({"system"} if source.system is None else set())
                part = session.target.task.model_dump(include=fields, exclude_defaults=True)
                inputs += [part] if part else []
            trained_on = digest(inputs)
        policy = session.experiment.training.accelerate
        n_processes, files = processes_of(policy, source), list[Path]()
        if source.path:
            path = Path(source.path)
            files = artefact_files(path) if method.makes == "artefact" else sorted(path.glob("adapter_*"))
        identity = {
            "method": source.method,
            "code": [plugins.version("methods", source.method), versions_of(*method.loops)],
            "params": method.params(**source.params).identity(),
            "base": [base.weights_digest, base.template_digest],
            "init": init.digest if init else "",
            "reward": rewarded_by,
            "reads": method.reads(method.params(**source.params)),
            "merges": [merged.digest for merged in merges],
            "path": content_digest(files) if source.path else "",
            "training": trained_on,
            "track": source.track.points if source.track else 0,
            "processes": n_processes if n_processes > 1 else 0,
            "shards": shards_of(policy, source),
            "regularize": regularizers_digest(source.regularize, session.mix_context(source, seed)),
        }
        return session.store.weights(digest({name: value for name, value in identity.items() if value}))

    def _find_regularizer_rows(self) -> RegularizerRows:
        session, candidate, seed = self

        def answer_as_base(name: str, mixture: Mixture) -> Iterable[Answered]:
            if shipped := find_shipped(session.target.task, candidate.base, mixture):
                return shipped
            task = Task(
                name=name,
                data=TaskData(),
                metrics=("no_refusal",),
                max_new_tokens=mixture.max_new_tokens,
                chat_template=session.target.task.chat_template,
            )
            items, weights = TaskItems((), (), mixture.rows, (), (), ()), base_weights(candidate.base)
            (row_set,) = suite_sets(session, weights, [join_items(task, "capability", name, items)])
            if lacking := rescore_stored(session, [row_set]):
                answer(session, weights, lacking, "base")
            return row_set.read(session.store)

        context = session.mix_context(candidate.source, seed)
        return general_rows(candidate.source.regularize, context, answer_as_base)

    def make_weights(self, inputs: FitInputs, pause_at: int = 0, show_at: int = 0) -> None:
        """Make weights in a temporary folder, which is renamed when they are complete.

        The training pauses after `pause_at` kept points, or `show_at` points for trackers, and keeps the
        folder. Raises CandidateFailed if the weights cannot be made; a divergence is recorded.
        """
        session, candidate, seed = self
        rows = self._find_regularizer_rows()
        if session.experiment.engine == "vllm" or session.machine.device == "cuda":
            session.unload()  # training loads its own base, and two rarely fit a GPU
        for weights in filter(None, (inputs.init, inputs.reward, *inputs.merges)):
            refuse_damaged(weights)
        source, method, folder = candidate.source, candidate.method, inputs.folder
        partial_folder, policy = folder.with_name(folder.name + ".part"), session.experiment.training
        processes, device = processes_of(policy.accelerate, source), session.machine.device
        if (folder / PRUNED).exists():
            (folder / PRUNED).unlink()
            folder.rename(partial_folder)
        work, is_resumed, began = fit_work(session, source, seed), partial_folder.exists(), time.monotonic()
        expected_s = session.seconds(work, candidate.trained_base)
        # Steps alone, as the rest of a fit includes a start; a training with pauses would start many times.
        steps = Work() if pause_at or show_at else work._replace(fits=0)
        is_own = has_own_process(policy, device, session.seconds(steps, candidate.trained_base))
        own_process = method.trains and (processes > 1 or is_own)
        shared = f", {processes} processes" if processes > 1 else ""
        label = f"training {candidate.source_name}, seed {seed}{shared}"
        stage = session.progress.stage(label, expected_s)
        try:
            if not (partial_folder / training.FIT).exists():  # written last
                with clear_errors(session.store, str(partial_folder), AGAIN), stage as advance:
                    self._write_job(partial_folder, inputs, rows, pause_at, show_at)
                    if processes > 1:
                        training.write_launch(partial_folder, policy.accelerate, device)
                    (launch if own_process else training.run_job)(partial_folder, advance)
        except Diverged as error:
            remove(session.store.folder, [partial_folder])
            write_whole(session.store, folder / DIVERGED, json.dumps([error.reason, error.knob]))
            raise
        except Exception:
            training.clean_up(partial_folder, complete=False)
            raise
        if not (partial_folder / training.FIT).exists():
            return
        training.clean_up(partial_folder, complete=True)
        partial_folder.rename(folder)
        if method.trains:
            alone = processes == 1 and not (is_resumed or session.is_worker)
            took_s = time.monotonic() - began
            # Trainings that stopped early or generate answers deviate from the estimate. The time outside
            # steps is learned only from trainings that did not resume.
            record = parse_json((folder / training.FIT).read_text("utf-8"))["training"]
            steps_s = min(record.get("train_loop_s", 0.0), took_s)
            as_estimated = _ALIKE * work.steps < record.get("n_steps", 0) < work.steps / _ALIKE
            waited = 0.0 if ignores_load() else record.get("waited_share") or 0.0
            undisturbed = alone and waited <= MOST_WAITED
            generates = bool({"reward", "teacher"} & record.keys())
            base, teaches_steps = candidate.trained_base, undisturbed and as_estimated and not generates
            session.learn_pace("training", work, steps_s, base, teaches=teaches_steps)
            teaches_rest = undisturbed and not (work.read or work.generated)
            session.learn_pace("fits", work, took_s - steps_s, base, teaches=teaches_rest)

    def _write_job(
        self, partial_folder: Path, inputs: FitInputs, rows: RegularizerRows, pause_at: int, show_at: int
    ) -> None:
        (session, candidate, seed), (mixed, general) = self, rows
        source, step = candidate.source, session.prompting_step(candidate.source, seed)
        items, policy = session.training_data(source).items, session.experiment.training.accelerate
        reward = training.Reward(written=source.reward, task=session.target.task) if source.reward else None
        if inputs.reward and inputs.reward.folder and candidate.reward:
            model = inputs.reward.folder / inputs.reward.kind
            reward = training.Reward(model=model, source=candidate.reward.trained_base)
        job = training.TrainingJob(
            method=source.method,
            params=source.params,
            source=candidate.trained_base,
            machine=session.machine,
            seed=seed,
            chat_template=session.target.task.chat_template,
            regularize=source.regularize,
            n_mixed=len(mixed),
            init=_init_path(inputs.init),
            merges=tuple(filter(None, map(_init_path, inputs.merges))),
            path=Path(source.path) if source.path else None,
            reward=reward,
            threads=training.threads_of(source.method),
            processes=processes_of(policy, source),
            shards=shards_of(policy, source),
            track=source.track.points if source.track else 0,
            pause_at=pause_at,
            live=self.live_run(inputs.folder, show_at),
            code=training.code_of(source.method, source.regularize),
        )
        training.write_job(
            partial_folder,
            job,
            train=(*map(step, items.train), *mixed),
            validation=map(step, items.validation),
            pairs=map(step, items.pairs) if candidate.method.draws_from == "pairs" else (),
            general=general,
        )


def show_point(run: LiveRun | None, point: TrackedPoint) -> None:
    """Send the target's validation score at a point along a training to its trackers."""
    if run and point.target is not None:
        with open_trackers(run, point.step) as send:
            send({"training/target": point.target}, point.step)


def has_own_process(policy: TrainingPolicy, device: str, steps_s: float) -> bool:
    """Tell whether a training has its own process: on a GPU or if it is long, unless harness.yaml sets it.

    On a CPU a training leaves glibc's heap in pieces, and what is computed later in that process takes up to
    1.4 times as long (smollm2-135m in bf16, two cores with AMX).
    """
    is_auto = policy.process == "auto"
    return policy.process == "own" or (is_auto and (device == "cuda" or steps_s > _OWN_FROM_S))


def _init_path(init: Weights | None) -> Path | None:
    """Return the folder of the weights to start from: one that a method made, or an external model's."""
    if init is None or init.folder:
        return init.folder / init.kind if init and init.folder else None
    return init.source.path if init.source else None


def processes_of(policy: AcceleratePolicy, source: Recipe) -> int:
    """Return the number of processes that share a training: one if a method or regulariser cannot share."""
    changes_steps = has_hook(source.regularize, "prepare", "penalty", "step", "select")
    return policy.num_processes if plugins.method(source.method).data_parallel and not changes_steps else 1


def shards_of(policy: AcceleratePolicy, source: Recipe) -> str:
    """Return the sharding of a training's weights among processes; empty if each has all of them."""
    return policy.shards if processes_of(policy, source) > 1 else ""
