"""The session of an experiment: data, machine, store, and at most one base in memory."""

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from harness import provenance, store
from harness.cache import memo
from harness.data import SPLITS, Split, TaskItems, task_version
from harness.errors import CandidateFailed, NotStored
from harness.evaluation import EvaluationJob, costs, encode_block, evaluate_block, put_in_order, wrap_prompt
from harness.evaluation.candidates import ResolvedCandidate, digest_training_rows, resolve, resolve_candidates
from harness.evaluation.costs import Kind, Pace, read_pace, record_pace
from harness.evaluation.judges import JudgedMetric, open_judged
from harness.metrics import Metric, load_metrics
from harness.models import Candidate, hub, vllm
from harness.models.hardware import Load, Machine
from harness.models.hf import ModelHost, describe_engine
from harness.models.hub import ModelSource
from harness.models.loglikelihood import ENGINES, find_copied_engine
from harness.models.out_of_memory import release_gpu_memory
from harness.progress import Progress
from harness.prompting import PromptingContext, Step, compose
from harness.provenance import versions_of
from harness.records import Example, SampleResult, digest, turns_as_text
from harness.regularizers import MixContext
from harness.spec import PEOPLE, Experiment, Recipe, Role, Task
from harness.store import Store
from harness.training import Weights

UNKNOWN = ("unknown", "unknown")  # engine and layout of a base that was never loaded here
_ALLOCATIONS = 50_000  # between garbage collections once a base was loaded: cycles may hold much memory


class MeasuredTask(NamedTuple):
    """A task with its items, each split's version, its metrics, and the functions that evaluate a block.

    `encode` maps a candidate, a job and a block's number to token ids, which `evaluate` uses. If only some
    test items are evaluated, `weights` holds their inclusion weights by id, and the items are in the order in
    which they were drawn. `n_documents` counts the documents of a task of lm-eval.
    """

    task: Task
    role: Role
    suite: str
    items: TaskItems
    versions: Mapping[Split, str]
    metrics: dict[str, Metric]
    encode: Callable[[Candidate, EvaluationJob, int], Any] = encode_block
    evaluate: Callable[..., list[SampleResult]] = evaluate_block
    weights: Mapping[str, float] | None = None
    judged: Mapping[str, JudgedMetric] = {}
    n_documents: int = 0

    @property
    def held(self) -> int:
        """Number of test items in its files or its split of lm-eval, independent of the limit."""
        return self.n_documents or len(self.items.evaluated.get("test", self.items.test))

    def size(self, split: Split) -> int:
        """Return the number of evaluated items of a split."""
        return 0 if self.task.lm_eval and split != "test" else len(getattr(self.items, split))

    @property
    def primary(self) -> Metric:
        """The deciding metric."""
        return self.metrics[self.task.primary_metric]

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return a split's items in the order seeded by its version; lm-eval's and sampled ones as given."""
        if self.task.lm_eval or self.weights is not None:
            return self.items.test if split == "test" else ()
        return put_in_order(getattr(self.items, split), self.versions[split])


class Fold(NamedTuple):
    """A fold of the target: its training and test items, and the candidates' own training rows in it."""

    target: MeasuredTask
    training: Mapping[str, MeasuredTask]


Host = ModelHost | vllm.VllmServer  # one base in memory, as published or with an adapter


@dataclass
class EngineSlot:
    """The place of the one base in memory, shared by all copies of a session."""

    host: Host | None = None


@dataclass
class Session:
    """State shared by the runs of one experiment; copies made by `replace` share the slot of the base.

    `training` maps digests of training settings to the target with these rows (see `candidate_rows`).
    `more_targets` do not affect decisions. `source` is the experiment's base, `sources` maps names to all
    models that candidates name. `paces` maps model sizes to the pace when the session was opened, `timed`
    kinds of work to seconds since then, `controls` digests of bases to this session's control arm, `judging`
    local judges to their weights or the reason for having none, `refused_judges` books to the reason that the
    judge may not grade, `settled` runs to the verdict of an interim analysis. `checked_judges` have graded
    their anchors again for this candidate. `shown` names the task whose items were shown. `failures` maps
    candidates with seeds to failures in other processes. `searched` names candidates whose search is
    complete. A worker claims what it makes; a session that `reads_only` makes nothing; a `dry_run` loads no
    model. `trackers` is a folder.
    """

    experiment: Experiment
    store: Store
    source: ModelSource
    machine: Machine
    target: MeasuredTask
    suites: tuple[MeasuredTask, ...]
    progress: Progress
    sources: Mapping[str, ModelSource] = field(default_factory=dict)
    candidates: Mapping[str, ResolvedCandidate] = field(default_factory=dict)
    controls: dict[str, str] = field(default_factory=dict)
    checked_judges: set[str] = field(default_factory=set)
    refused_judges: dict[str, CandidateFailed] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    slot: EngineSlot = field(default_factory=EngineSlot)
    paces: dict[int, Pace] = field(default_factory=dict)
    timed: dict[str, float] = field(default_factory=dict)
    training: Mapping[str, MeasuredTask] = field(default_factory=dict)
    folds: Sequence[Fold] = ()
    dry_run: bool = False
    failures: dict[tuple[str, int], Exception] = field(default_factory=dict)
    searched: set[str] = field(default_factory=set)
    is_worker: bool = False
    reads_only: bool = False
    more_targets: tuple[MeasuredTask, ...] = ()
    judging: Mapping[str, Weights | str] = field(default_factory=dict)
    trackers: Path | None = None

    @property
    def first_seed(self) -> int:
        """The first of the seeds, used for trials and for estimates of shared work."""
        return self.experiment.seeds[0]

    @property
    def tasks(self) -> tuple[MeasuredTask, ...]:
        """The target, more targets, then the tasks of the suites."""
        return (self.target, *self.more_targets, *self.suites)

    @property
    def gguf_command(self) -> str:
        """The GGUF converter; its environment contains llama.cpp."""
        return self.experiment.export.gguf.command or ""

    def reading(self) -> Self:
        """Return a copy that only reads: what is not stored raises `NotStored` instead of being made."""
        return replace(self, reads_only=True)

    def refuse_if_reading(self, missing: str) -> None:
        """Raise `NotStored` for what is missing if the session only reads."""
        if self.reads_only:
            raise NotStored(f"{self.store.folder}: found no {missing}; next: harness compare")

    def with_candidates(self, recipes: Mapping[str, Recipe]) -> Self:
        """Return a copy whose experiment has these candidates too; one with a known name replaces it."""
        candidates = {**self.experiment.candidates, **recipes}
        experiment = self.experiment.model_copy(update={"candidates": candidates})
        return replace(self, experiment=experiment, candidates=resolve_candidates(experiment, self.sources))

    def resolve(self, name: str, recipe: Recipe) -> ResolvedCandidate:
        """Resolve a recipe that is not in the file, such as that of a former champion."""
        return resolve(name, recipe, self.experiment, self.sources, self.candidates)

    def name_begun(self, name: str, seed: int) -> str:
        """Return the name of a candidate's run in progress, before its result is known."""
        return f"{self.experiment.name}-{name}-s{seed}"

    def begin(self, name: str, seed: int) -> None:
        """Record that a candidate's run has begun, so that its files are not removed as abandoned."""
        store.begin(self.store, self.name_begun(name, seed))

    def in_folds(self) -> list[Self]:
        """Return a session for each fold: it trains on the rows of the other folds and tests on its own."""
        judged, folds = self.target.judged, [fold for fold in self.folds if fold.target.size("test")]
        return [  # a fold of a smoke run may have no items
            replace(self, target=fold.target._replace(judged=judged), training=fold.training, folds=())
            for fold in folds
        ]

    def training_data(self, recipe: Recipe) -> MeasuredTask:
        """Return the target with the rows that a recipe trains on; CandidateFailed if they were not read."""
        key = digest_training_rows(recipe)
        if key and key not in self.training:
            found, step = "its training rows were not read", "name its train: or mix: in harness.yaml"
            raise CandidateFailed(found, step)
        return self.training[key] if key else self.target

    def n_training_rows(self, name: str) -> int:
        """Count the rows that a candidate's weights are trained on."""
        return len(self.training_data(self.candidates[name].source).items.train)

    def mix_context(self, recipe: Recipe, seed: int) -> MixContext:
        """Return the context for sampling general rows, which must contain no evaluated item."""
        training_items = self.training_data(recipe).items
        evaluated = {self.target.task.name: (*training_items.test, *training_items.validation)}
        evaluated |= {m.task.name: (*m.items.test, *m.items.validation) for m in self.more_targets}
        evaluated |= {m.task.name: m.items.test for m in self.suites}
        return MixContext(len(training_items.train), seed, evaluated)

    def prompting_step(self, recipe: Recipe, seed: int) -> Step:
        """Return the function that turns an example of the target into a recipe's prompt."""
        task, items = self.target.task, self.target.items
        context = PromptingContext(task, items.train, items.documents, seed, self.dry_run)
        write_prompt = compose(recipe.prompting, context)
        system = recipe.system if recipe.system is not None else task.system
        return lambda example: replace(
            wrap_prompt(write_prompt(example), system, recipe.template),
            earlier=turns_as_text(example.messages[:-1]),
            plain_prompt=example.prompt,
        )

    def open_judge_of_pairs(self) -> JudgedMetric | None:
        """Open the judge of the gate's win rate; None without a win rate, or if people decide it."""
        goal = self.experiment.gate.target
        if goal.win_rate is None or goal.by == PEOPLE:
            return None
        return open_judged(goal.by, self.store, self.judging, self.machine)

    def seconds(self, work: costs.Work, source: ModelSource | None = None) -> float:
        """Estimate how long an amount of work takes here, by the pace measured so far."""
        n_parameters = (source or self.source).n_parameters
        if n_parameters not in self.paces:
            self.paces[n_parameters] = read_pace(self.machine, n_parameters)
        rates = self.paces[n_parameters]
        amounts = (self._amount(kind, work, source or self.source) for kind in Pace._fields)
        pairs = zip(rates, amounts, strict=True)
        return sum(rate.ratio * estimated_s + rate.each_s * n for rate, (estimated_s, n) in pairs)

    def _amount(self, kind: str, work: costs.Work, source: ModelSource) -> tuple[float, int]:
        tokens, n = {
            "answering": (work._replace(trained=0, steps=0), work.blocks),
            "training": (costs.Work(trained=work.trained, steps=work.steps), work.steps),
        }.get(kind, (costs.Work(), getattr(work, kind, 0)))
        shape = hub.shape(source)
        return tokens.seconds(shape.active if shape else source.n_parameters, self.machine), n

    def learn_load(self, kind: Kind, work: costs.Work, load: Load, engine: str) -> None:
        """Record how long an engine's work took; later estimates use it only if nothing else ran here."""
        if source := self.base_in_memory(engine):
            is_undisturbed = not (self.is_worker or load.is_contended())
            self.learn_pace(kind, work, load.wall_s, source, teaches=is_undisturbed)

    def learn_pace(
        self, kind: Kind, work: costs.Work, took_s: float, source: ModelSource, *, teaches: bool = True
    ) -> None:
        """Record how long work of a kind took here; with `teaches` also for later estimates."""
        self.timed[kind] = self.timed.get(kind, 0.0) + took_s
        if teaches:
            record_pace(self.machine, source.n_parameters, kind, *self._amount(kind, work, source), took_s)

    def base_in_memory(self, engine: str) -> ModelSource | None:
        """Return the base with which an engine answers on this machine; None if it answers elsewhere."""
        is_local = engine.partition("/")[0] in ("transformers", vllm.ENGINE)
        return self.slot.host.source if is_local and self.slot.host else None

    def host(self, source: ModelSource) -> Host:
        """Load a base as served, unless it is in memory; UserError or CandidateFailed if it fails."""
        assert not self.dry_run, "a dry run loads no model"
        if self.slot.host is None or self.slot.host.source != source:
            self.unload()
            # A changed base has the layers of the published one, and so its scoring engine.
            engine = "" if source == self.sources[source.name] else self.engine(source)[0].partition("/")[2]
            worker_suffix = f"-{os.getpid()}" if self.is_worker else ""  # each worker has a server of its own
            log = self.store.folder / ".vllm" / f"{source.weights_digest[:8]}{worker_suffix}.log"
            with self.progress.stage("loading the base model") as advance:
                if self.experiment.engine == "transformers":
                    self.slot.host = ModelHost(source, self.machine, engine or None)
                else:
                    policy = self.experiment.vllm
                    self.slot.host = vllm.VllmServer(source, self.machine, policy, log, advance)
        return self.slot.host

    def claim(self, name: str) -> AbstractContextManager[None]:
        """Keep other workers from making what `name` names; does nothing without workers."""
        return store.claim(self.store, name) if self.is_worker else nullcontext()

    def switch_to_fp32(self) -> Self:
        """Unload the base in memory, and return a session in fp32 with a slot of its own."""
        self.unload()
        return replace(self, machine=self.machine._replace(precision="fp32"), slot=EngineSlot())

    def unload(self) -> None:
        """Unload the base in memory, and free the reference cycles left by a training."""
        if isinstance(self.slot.host, vllm.VllmServer):
            self.slot.host.close()  # frees the memory even if it is still referenced
        self.slot.host = None
        gc.set_threshold(_ALLOCATIONS)
        gc.collect()
        release_gpu_memory()

    def engine(self, source: ModelSource) -> tuple[str, str]:
        """Return engine and layout digest of a base here, cached; `UNKNOWN` in a dry run if never loaded."""
        if self.experiment.engine == "vllm":
            return vllm.identity(self.experiment.vllm)
        plain = self.sources[source.name]
        # Excludes the machine's speed, which differs with every measurement.
        environment = provenance.describe_environment(self.machine.name)
        hardware = [self.machine.device, self.machine.precision, environment]
        key = digest([plain.weights_digest, *hardware, versions_of("layout"), ENGINES, "of a copy, tried"])

        def find() -> tuple[str, str] | None:
            # On a CPU a copy of the configuration tells it; on a GPU only a pass of the base shows its costs.
            if self.dry_run:
                return None
            device = self.machine.device
            if device == "cpu" and (copied_engine := find_copied_engine(plain.path, device)):
                return describe_engine(copied_engine, device)
            base = self.host(plain).base
            return base.engine, base.layout_digest

        engine, layout = memo("engines", key, find) or UNKNOWN
        return engine, layout

    def unknown_bases(self) -> list[str]:
        """Name the bases of a dry run that were never loaded here; none of their rows can be found."""
        if not self.dry_run:
            return []
        bases = {candidate.base.name: candidate.base for candidate in self.candidates.values()}
        return [name for name, source in bases.items() if self.engine(source) == UNKNOWN]


def join_items(task: Task, role: Role, suite: str, items: TaskItems) -> MeasuredTask:
    """Build the measured task from a task, its items, their versions and its metrics."""
    versions = {split: task_version(task, items, split) for split in SPLITS}
    return MeasuredTask(task, role, suite, items, versions, load_metrics(task))
