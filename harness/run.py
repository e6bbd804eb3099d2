"""One recipe and seed, from its spec to rows on disk and a run folder.

Invariant: nothing is computed whose identity already lies on disk; a kill loses at most the
block in flight, and the next call goes on from there.
"""

import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness import estimate, plugins, provenance, store
from harness.candidates import Candidate, ModelHost, classifier
from harness.data import Split, TaskItems, task_version
from harness.embedded import ModelSource
from harness.errors import HarnessError
from harness.evaluate import Job, addressed, evaluate_block, in_order, latency_s
from harness.machine import Machine, cache_dir, remember
from harness.metrics import Metric, load_metrics
from harness.progress import Progress
from harness.prompting import PromptingContext, Step, compose
from harness.records import Example, RowsIdentity, Run, SampleResult, digest
from harness.spec import Experiment, Recipe, Role, Spec, Task
from harness.store import Store
from harness.training import FitContext, Weights

_HERE = Path(__file__).parent
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Measured(NamedTuple):
    """A task of a suite with its items, each split's version, its metrics, and how a block of it is asked."""

    task: Task
    role: Role
    suite: str
    items: TaskItems
    versions: Mapping[Split, str]
    metrics: dict[str, Metric]
    evaluate: Callable[[Candidate, Job, int], list[SampleResult]] = evaluate_block

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return a split's items in the order seeded by its version; lm-eval's already come in it."""
        if self.task.lm_eval:
            return self.items.test if split == "test" else ()
        return in_order(getattr(self.items, split), self.versions[split])


@dataclass
class Bench:
    """What all runs of one experiment share: data, machine, store, and one base in memory."""

    experiment: Experiment
    store: Store
    source: ModelSource
    machine: Machine
    target: Measured
    suites: tuple[Measured, ...]
    progress: Progress
    n_parameters: int

    def seconds(self, work: estimate.Work) -> float:
        """Estimate how long an amount of work takes here."""
        return work.seconds(self.n_parameters, self.machine.gflops)

    @cached_property
    def host(self) -> ModelHost:
        """The base, loaded when it is first needed."""
        with self.progress.stage("loading the base model"):
            return ModelHost(self.source, self.machine)

    @cached_property
    def engine(self) -> tuple[str, str]:
        """Engine and layout digest of language models here; remembered, so that no model is loaded for it."""
        key = digest(
            [self.source.weights_digest, self.machine, provenance.environment_digest(self.machine.name)]
        )
        memory = cache_dir() / "engines" / f"{key}.json"
        if not memory.exists():
            remember(memory, json.dumps([self.host.base.engine, self.host.base.layout_digest]))
        engine, layout = json.loads(memory.read_text())
        return engine, layout


def measured(task: Task, role: Role, suite: str, items: TaskItems) -> Measured:
    """Join a task with its items, their versions and its metrics."""
    versions = {split: task_version(task, items, split) for split in SPLITS}
    return Measured(task, role, suite, items, versions, load_metrics(task))


def make_run(bench: Bench, name: str, recipe: Recipe, seed: int) -> Run:
    """Train and evaluate one recipe and seed, as far as that is not done yet.

    Raises:
        HarnessError: the candidate could not be made or evaluated.
    """
    weights = ensure_weights(bench, recipe, seed)
    sets = _row_sets(bench, recipe, weights, seed)
    run_id = _run_id(bench, name, seed, weights, sets)
    if (done := _finished(bench, run_id, sets)) is not None:
        return done
    with _opened(bench, weights) as candidate:
        _fill(bench, candidate, sets, name)
        times = latency_s(candidate, sets[0].job())
    run = _record(
        bench,
        name,
        recipe,
        seed,
        run_id=run_id,
        weights_digest=weights.digest,
        state="done",
        rows={s.name: s.identity.digest for s in sets},
        training=weights.training,
        latency={"p50_s": statistics.median(times), "n": float(len(times))},
        provenance=provenance.collect(bench.machine.name) | {"precision": bench.machine.precision},
    )
    store.save_run(bench.store, run)
    return run


def stored_run(bench: Bench, name: str, recipe: Recipe, seed: int) -> Run | None:
    """Find the run of a recipe as it is written now, or its failure; computes nothing."""
    if (weights := _found_weights(bench, recipe, seed)) is not None:
        sets = _row_sets(bench, recipe, weights, seed)
        if (done := _finished(bench, _run_id(bench, name, seed, weights, sets), sets)) is not None:
            return done
    failed_id = _failed_id(bench, name, seed)
    failed = (run for run in store.list_runs(bench.store, bench.experiment.name) if run.run_id == failed_id)
    return next((run for run in failed if run.recipe == recipe.model_dump(mode="json")), None)


class RowSet(NamedTuple):
    """Rows that a run refers to: which items, asked how, and the identity that names their folder.

    `ask` puts the prompts around the items. It is called only where rows are missing, because
    building prompts may mean building a retriever first.
    """

    measured: Measured
    split: Split
    answer: Literal["generate", "rank"]
    identity: RowsIdentity
    ask: Callable[[], tuple[Example, ...]]

    @property
    def name(self) -> str:
        """The key of these rows in a run: task and split."""
        return f"{self.measured.task.name}/{self.split}"

    @property
    def ids(self) -> list[str]:
        """Example ids, in the order in which they are asked."""
        return [e.id for e in self.measured.examples(self.split)]

    def job(self) -> Job:
        """Return the items as the candidate is asked them."""
        m = self.measured
        return Job(m.task, m.role, self.split, self.ask(), m.metrics, self.answer, self.identity)


def _row_sets(bench: Bench, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    return [*target_sets(bench, recipe, weights, seed), *suite_sets(bench, weights)]


def _run_id(bench: Bench, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]) -> str:
    rows = {s.name: s.identity.digest for s in sets}
    return f"{bench.experiment.name}-{name}-s{seed}-{digest([rows, weights.digest])[:8]}"


def _failed_id(bench: Bench, name: str, seed: int) -> str:
    return f"{bench.experiment.name}-{name}-s{seed}-failed"


def base_weights(bench: Bench) -> Weights:
    """Return the base's own weights."""
    return Weights("base", bench.source.weights_digest, None, {})


def base_arm(bench: Bench) -> dict[str, str]:
    """Measure the base's general ability; returns the row set of each task."""
    return suite_arm(bench, base_weights(bench), "base")


def suite_arm(bench: Bench, weights: Weights, name: str) -> dict[str, str]:
    """Measure weights on the suites, as far as that is not done yet; returns the row set of each task."""
    sets = suite_sets(bench, weights)
    if any(not _is_there(bench, s) for s in sets):
        with _opened(bench, weights) as candidate:
            _fill(bench, candidate, sets, name)
    return {s.measured.task.name: s.identity.digest for s in sets}


def failed_run(bench: Bench, name: str, recipe: Recipe, seed: int, error: BaseException) -> Run:
    """Record that a candidate could not be made, with its reason."""
    reason = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
    run = _record(
        bench,
        name,
        recipe,
        seed,
        run_id=_failed_id(bench, name, seed),
        weights_digest="",
        state="failed",
        rows={},
        error=reason.splitlines()[0] if reason else type(error).__name__,
    )
    store.save_run(bench.store, run)
    return run


def _record(bench: Bench, name: str, recipe: Recipe, seed: int, **outcome: Any) -> Run:
    """Join what a recipe says of its run with what became of it."""
    return Run(
        experiment=bench.experiment.name,
        candidate=name,
        method=_source(bench, recipe).method,
        prompting=_spelled(recipe),
        answer=recipe.answer,
        seed=seed,
        base_model=bench.experiment.base_model,
        base_digest=bench.source.weights_digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=recipe.model_dump(mode="json"),
        **outcome,
    )


def ensure_weights(bench: Bench, recipe: Recipe, seed: int) -> Weights:
    """Return the weights of a recipe, made now or before."""
    source = _source(bench, recipe)
    found = _found_weights(bench, recipe, seed)
    return found or _fit(bench, source, seed, _weights_folder(bench, source, seed))


def _found_weights(bench: Bench, recipe: Recipe, seed: int) -> Weights | None:
    source = _source(bench, recipe)
    if source.method == "base":
        return base_weights(bench)
    folder = _weights_folder(bench, source, seed)
    if not (folder / "fit.json").exists():
        return None
    made = json.loads((folder / "fit.json").read_text())
    return Weights(made["kind"], made["digest"], folder, made["training"])


def _weights_folder(bench: Bench, source: Recipe, seed: int) -> Path:
    """Name the folder by everything that the weights depend on."""
    params = plugins.load("methods", source.method).Params(**source.params)
    key = digest(
        [
            plugins.source_digest(plugins.path_of("methods", source.method), _HERE / "training.py"),
            source.method,
            params.model_dump(mode="json"),
            bench.source.weights_digest,
            bench.source.template_digest,
            bench.target.versions["train"],
            bench.target.versions["validation"],
            _prompting_digest(bench, source, seed),
            seed,
            bench.machine.precision,
            bench.machine.device,
        ]
    )
    return bench.store.weights(key)


def _fit(bench: Bench, source: Recipe, seed: int, folder: Path) -> Weights:
    """Make weights in a folder of another name, which gets its own when they are complete."""
    method = plugins.load("methods", source.method)
    params = method.Params(**source.params)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    step = _step(bench, source, seed)
    label = f"training {source.method}, seed {seed}"
    try:
        train = tuple(map(step, bench.target.items.train))
        with bench.progress.stage(label, bench.seconds(training_work(train, params))) as advance:
            context = FitContext(
                bench.source,
                bench.machine,
                part,
                train,
                tuple(map(step, bench.target.items.validation)),
                bench.target.task.chat_template,
                seed,
                bench.experiment.report_to,
                advance,
            )
            made = method.fit(context, params)
        training = {**made.training, "fit_key": folder.name}
        record = {"kind": made.kind, "digest": made.digest, "training": training}
        (part / "fit.json").write_text(json.dumps(record))
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Weights(made.kind, made.digest, folder, training)


def training_work(train: Sequence[Example], params: Spec) -> estimate.Work:
    """Estimate the tokens a method trains on; methods without epochs train no language model."""
    epochs = getattr(params, "num_train_epochs", None)
    return estimate.training(train, epochs) if epochs else estimate.Work()


def _source(bench: Bench, recipe: Recipe) -> Recipe:
    """Return the recipe whose weights are used: the named one's, or its own."""
    return bench.experiment.candidates[recipe.weights_of] if recipe.weights_of else recipe


def _spelled(recipe: Recipe) -> str:
    """Spell out the promptings with their parameters."""
    return " + ".join(
        f"{name}({', '.join(f'{k}={v}' for k, v in params.items())})" if params else name
        for name, params in recipe.prompting.items()
    )


def _step(bench: Bench, recipe: Recipe, seed: int) -> Step:
    """Return what turns an example of the target into what this recipe asks."""
    task, items = bench.target.task, bench.target.items
    prompted = compose(recipe.prompting, PromptingContext(task, items.train, items.documents, seed))
    system = recipe.system if recipe.system is not None else task.system
    return lambda example: addressed(prompted(example), system, recipe.template)


def _prompting_digest(bench: Bench, recipe: Recipe, seed: int) -> str:
    """Digest what is put around a question; and what shots and passages are drawn from."""
    plain = {
        name: plugins.load("prompting", name).Params(**params).model_dump(mode="json")
        for name, params in recipe.prompting.items()
    }
    drawn_from = [seed, bench.target.versions["train"], bench.target.items.documents]
    return digest(
        [
            list(plain.items()),
            plugins.source_digest(*(plugins.path_of("prompting", name) for name in plain)),
            recipe.system,
            recipe.template,
            drawn_from if set(plain) - {"zero_shot"} else [],
        ]
    )


def target_sets(bench: Bench, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List validation and test of the target, as this recipe asks them."""
    prompting = _prompting_digest(bench, recipe, seed)
    target, answer = bench.target, recipe.answer

    step = cache(partial(_step, bench, recipe, seed))

    def asked(split: Split) -> tuple[Example, ...]:
        return tuple(map(step(), target.examples(split)))

    return [
        RowSet(
            target,
            split,
            answer,
            _identity(bench, weights, target, split, prompting, answer),
            partial(asked, split),
        )
        for split in SPLITS[1:]
    ]


def suite_sets(bench: Bench, weights: Weights) -> list[RowSet]:
    """List the capability tasks; a classifier has no general ability to measure."""
    if weights.kind == "classifier":
        return []
    return [
        RowSet(
            m,
            "test",
            "generate",
            _identity(bench, weights, m, "test", "task", "generate"),
            partial(_asked, m),
        )
        for m in bench.suites
    ]


def _asked(m: Measured) -> tuple[Example, ...]:
    """Put the task's own shots and system message around its items; lm-eval does that itself."""
    if m.task.lm_eval:
        return m.examples("test")
    if m.task.num_fewshot == 0:
        return tuple(addressed(e, m.task.system, None) for e in m.examples("test"))
    shots = {"few_shot": {"select": "fixed", "shots": m.task.num_fewshot}}
    step = compose(shots, PromptingContext(m.task, m.items.train, (), 0))
    return tuple(addressed(step(e), m.task.system, None) for e in m.examples("test"))


def _scoring_source(m: Measured) -> str:
    """Digest the code that turns answers into scores."""
    if m.task.lm_eval:
        return plugins.source_digest(*sorted((_HERE / "capability").glob("*.py")))
    metrics = [plugins.path_of("metrics", name) for name in m.metrics]
    return plugins.source_digest(_HERE / "evaluate.py", _HERE / "refusals.py", *metrics)


def _identity(
    bench: Bench, weights: Weights, m: Measured, split: Split, prompting: str, answer: str
) -> RowsIdentity:
    engine, layout = ("text", digest("text")) if weights.kind == "classifier" else bench.engine
    return RowsIdentity(
        weights.digest,
        bench.source.template_digest,
        m.task.name,
        digest([m.versions[split], _scoring_source(m)]),
        split,
        prompting,
        answer,
        bench.machine.precision,
        engine,
        layout,
        bench.machine.device,
    )


def _finished(bench: Bench, run_id: str, sets: Sequence[RowSet]) -> Run | None:
    path = bench.store.folder / run_id / "run.json"
    if not path.exists() or not all(_is_there(bench, s) for s in sets):
        return None
    run = store.get_run(bench.store, run_id)
    return run if run.rows == {s.name: s.identity.digest for s in sets} else None


def _is_there(bench: Bench, rows: RowSet) -> bool:
    return store.has_rows(bench.store, rows.identity, rows.ids)


def _fill(bench: Bench, candidate: Candidate, sets: Sequence[RowSet], name: str) -> None:
    """Compute the blocks that are not there yet."""
    for rows in sets:
        if _is_there(bench, rows):
            continue
        job = rows.job()
        done = store.finished_blocks(bench.store, job.identity, rows.ids)
        with bench.progress.stage(f"{name}: {rows.name}", bench.seconds(work_of(job))) as advance:
            for index in range(job.n_blocks):
                if index not in done:
                    block = rows.measured.evaluate(candidate, job, index)
                    store.append_block(bench.store, job.identity, index, block)
                advance(index + 1, job.n_blocks)
        store.complete_rows(bench.store, job.identity, len(rows.ids))


def work_of(job: Job) -> estimate.Work:
    """Estimate the tokens that answering a job takes."""
    ranked = job.answer == "rank" or job.task.kind == "choice"
    if job.task.lm_eval:
        return _work_of_lm_eval(job)
    return estimate.reading(job.examples, ranked=ranked, max_new_tokens=job.task.max_new_tokens)


def _work_of_lm_eval(job: Job) -> estimate.Work:
    """Estimate from the documents' texts, the shots counted as documents of the same length."""
    once = estimate.reading(job.examples, ranked=False, max_new_tokens=job.task.max_new_tokens)
    generated = once.generated if job.task.kind == "generate" else 0
    return estimate.Work(read=once.read * (1 + job.task.num_fewshot), generated=generated)


@contextmanager
def _opened(bench: Bench, weights: Weights) -> Iterator[Candidate]:
    """Open weights as something that generates and scores."""
    if weights.kind == "base":
        yield bench.host.base
    elif weights.kind == "classifier":
        assert weights.folder is not None
        yield classifier(weights.folder, weights.digest)
    else:
        assert weights.folder is not None
        with bench.host.adapted(weights.folder / "adapter", weights.digest) as candidate:
            yield candidate
