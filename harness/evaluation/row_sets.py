"""Row sets: the items of a run, the identity that names their folder, and the id of the resulting run.

Invariant: prompts are built only if rows are missing, because building them may require a retriever. Settings
that only judge answers are in `scoring_digest` alone, so stored answers can be scored again with another
metric. The id of a finished run names its weights and rows, so an equal stored run replaces a new one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, Literal, NamedTuple

from harness import metrics, plugins, provenance, store
from harness.config import is_judged
from harness.data import SCORING, SPLITS, Split, TaskItems
from harness.evaluation import EvaluationJob, costs, wrap_prompt
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.judges import GradeReader
from harness.evaluation.sampled_answers import choice_name
from harness.evaluation.session import MeasuredTask, Session
from harness.models import artefacts, openai_api
from harness.models.hub import ModelSource
from harness.prompting import PromptingContext, Step, compose, has_widths
from harness.provenance import versions_of
from harness.records import BLOCK, Example, MetricRange, RowsIdentity, Run, SampleResult, digest, is_unspaced
from harness.spec import MEAN_LOGPROB, Decoding, Recipe, Role, Task, metric_name
from harness.training import Weights


class Chooser(NamedTuple):
    """The reward model that chooses: the name of its scores, its weights, its base, and its prompting."""

    metric: str
    weights: Weights
    base: ModelSource
    step: Callable[[], Step]


class RowSet(NamedTuple):
    """Rows of a run: items, identity, and `step` for the function that builds prompts if rows are missing."""

    measured: MeasuredTask
    split: Split
    answer: Literal["generate", "rank"]
    identity: RowsIdentity
    step: Callable[[], Step]
    decoding: Decoding | None = None
    chooser: Chooser | None = None

    @property
    def name(self) -> str:
        """The key of these rows in a run: task and split."""
        return f"{self.measured.task.name}/{self.split}"

    @property
    def ids(self) -> list[str]:
        """The example ids, in the order of evaluation."""
        return [e.id for e in self.measured.examples(self.split)]

    @property
    def n_blocks(self) -> int:
        """The number of blocks of `BLOCK` items, without building prompts."""
        return -(-len(self.ids) // BLOCK)

    def is_there(self, at: store.Store) -> bool:
        """Tell whether the rows are complete."""
        return store.has_rows(at, self.identity, self.ids)

    def read(self, at: store.Store) -> list[SampleResult]:
        """Read the rows, which must all be stored."""
        return store.read_rows(at, self.identity.digest, len(self.ids))

    @property
    def ungraded(self) -> "RowSet":
        """The same rows before a judge or a reward model has graded them."""
        if not (self.measured.judged or self.chooser):
            return self
        m = self.measured
        if m.judged:
            kept_metrics = tuple(name for name in m.task.metrics if not is_judged(name))
            task = m.task.model_copy(update={"metrics": kept_metrics, "primary": ""})
            unjudged_metrics = {name: metric for name, metric in m.metrics.items() if name not in m.judged}
            m = m._replace(task=task, metrics=unjudged_metrics, judged={})
        choice = choice_name(self.decoding) if self.chooser else self.identity.choice
        row_identity = replace(self.identity, scoring_digest=_scoring_digest(m), choice=choice)
        return self._replace(measured=m, identity=row_identity, chooser=None)

    def grades(self) -> GradeReader:
        """Return a reader of the existing grades of judges."""
        m = self.measured
        return GradeReader(m.task.name, m.judged, m.examples(self.split) if m.judged else ())

    def examples(self) -> tuple[Example, ...]:
        """Return the items with their prompts."""
        return tuple(map(self.step(), self.measured.examples(self.split)))

    def job(
        self, grades: GradeReader | None = None, examples: tuple[Example, ...] | None = None
    ) -> EvaluationJob:
        """Return the job that evaluates the items with their prompts, or `examples`, with existing grades."""
        m, items = self.measured, self.examples() if examples is None else examples
        fields = (m.task, m.role, self.split, items, (grades or self.grades()).bind(m.metrics))
        return EvaluationJob(*fields, self.answer, self.identity, self.decoding)


def target_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List validation and test of the target, prompted as this recipe does."""
    target, answer, sampling = session.target, recipe.answer, recipe.sampling
    prompting = prompting_digest(target, recipe, seed)
    if _has_turns(target.items):  # rows then contain all turns; weights do not depend on that
        prompting = digest([prompting, "turns"])
    chooser = None
    if sampling and (reward_weights := dict(weights.choosers).get(sampling.reward_model)):
        maker = session.candidates[sampling.reward_model]
        reward_step = cache(partial(session.prompting_step, maker.source, seed))
        chooser = Chooser(f"reward:{sampling.reward_model}", reward_weights, maker.trained_base, reward_step)
    choice = choice_name(sampling, chooser.weights.digest if chooser else "")
    settings = {"decoding": "", "choice": choice}
    if sampling:
        fields = [sampling.temperature, sampling.top_p, sampling.samples, sampling.by == MEAN_LOGPROB]
        settings["decoding"] = digest([fields, versions_of("decoding")])
    step = cache(partial(session.prompting_step, recipe, seed))
    sets = []
    for split in SPLITS[1:]:
        row_identity = replace(identity(session, weights, target, split, prompting, answer), **settings)
        sets.append(RowSet(target, split, answer, row_identity, step, sampling, chooser))
    return sets


def suite_sets(
    session: Session, weights: Weights, tasks: Iterable[MeasuredTask] | None = None
) -> list[RowSet]:
    """List the test items of general tasks that the weights can answer: by default those of the suites."""
    if not weights.is_language_model:
        return []
    sets = []
    for m in session.suites if tasks is None else tasks:
        if weights.kind != "chat" or openai_api.can_chat(m.task):
            row_identity = identity(session, weights, m, "test", "task", "generate")
            sets.append(RowSet(m, "test", "generate", row_identity, partial(_task_step, m)))
    return sets


def _task_step(m: MeasuredTask) -> Step:
    if m.task.lm_eval:  # it adds shots itself
        return lambda example: example
    n = m.task.num_fewshot
    shots = {"few_shot": {"select": "fixed", "shots": n}} if n else {}
    with_shots = compose(shots, PromptingContext(m.task, m.items.train, (), 0))
    return lambda example: wrap_prompt(with_shots(example), m.task.system, None)


def total_work(sets: Iterable[RowSet]) -> costs.Work:
    """Add up the work of answering several sets."""
    return sum((work_of(rows.job()) for rows in sets), costs.Work())


def work_of(job: EvaluationJob) -> costs.Work:
    """Estimate the work of answering a job."""
    if job.task.lm_eval:  # shots count as documents of the same length
        single = costs.estimate_answering(job.examples, ranked=False, max_new_tokens=job.task.max_new_tokens)
        generated = single.generated if job.task.kind == "generate" else 0
        return costs.Work(single.read * (1 + job.task.num_fewshot), generated, blocks=job.n_blocks)
    is_ranked = job.answer == "rank" or job.task.kind == "choice"
    chat, max_tokens = job.task.chat_template, job.task.max_new_tokens
    single = costs.estimate_answering(job.examples, ranked=is_ranked, max_new_tokens=max_tokens, chat=chat)
    n_samples = job.decoding.samples if job.decoding else 1
    return costs.Work(n_samples * single.read, n_samples * single.generated, blocks=job.n_blocks)


def identity(
    session: Session, weights: Weights, m: MeasuredTask, split: Split, prompting: str, answer: str
) -> RowsIdentity:
    """Return the identity of a task's rows for weights with this prompting: all that they depend on."""
    base, machine = weights.source or session.source, session.machine
    template, precision, device = base.template_digest, machine.precision, machine.device
    if weights.kind in openai_api.PROTOCOLS:  # of an endpoint only the origin of its prompts is known
        template = template if weights.kind == "completions" else ""
        precision = device = openai_api.UNKNOWN
        engine, layout = openai_api.identity(weights.kind)
    elif weights.kind == "artefact" and weights.folder:
        precision, device = artefacts.OWN, "cpu"
        engine, layout = artefacts.identity(artefacts.read_path(weights.folder), session.gguf_command)
    else:
        engine, layout = session.engine(base) if weights.is_language_model else ("text", digest("text"))
    version = rows_version(m.task, m.versions[split])
    fields = (weights.digest, template, m.task.name, version, split, prompting, answer)
    return RowsIdentity(*fields, precision, engine, layout, device, _scoring_digest(m))


def rows_version(task: Task, version: str) -> str:
    """Return the version of rows: that of definition and items, and that of the evaluation code."""
    if task.lm_eval:  # scoring is lm-eval's too
        return digest([version, {**versions_of("tokenization", "lm_eval")}])
    shots = {"few_shot": plugins.version("prompting", "few_shot")} if task.num_fewshot else {}
    return digest([version, {**versions_of("tokenization", "evaluation"), **shots}])


def _scoring_digest(m: MeasuredTask) -> str:
    evaluated_items = chain(m.items.validation, m.items.test)
    unspaced = not m.task.lm_eval and is_unspaced(text for e in evaluated_items for text in e.references)
    judge_digests = {name: metric.digest for name, metric in m.judged.items()}
    return scoring_digest(m.task, m.role, judge_digests, unspaced)


def scoring_digest(task: Task, role: Role, judged: Mapping[str, str], unspaced: bool = False) -> str:
    """Digest how answers become scores: settings, code and the digests of `judged` metrics' judges."""
    if task.lm_eval:
        return ""
    settings = task.model_dump(include=set(SCORING), exclude_defaults=True)
    settings |= {"metrics": list(map(metric_name, task.metrics)), "primary": metric_name(task.primary)}
    code = [versions_of("scoring"), *(metrics.version(name, unspaced) for name in task.metrics)]
    # Judges grade refusals too.
    return digest([settings, role == "safety", code, *([dict(judged), "refusals too"] if judged else [])])


class RunRequest(NamedTuple):
    """A candidate and a seed to make a run with."""

    candidate: ResolvedCandidate
    seed: int


def list_open(requests: Sequence[RunRequest], stored_runs: Sequence[Run | None]) -> list[RunRequest]:
    """List the requests without a finished stored run."""
    pairs = zip(requests, stored_runs, strict=True)
    return [request for request, run in pairs if run is None or run.state != "done"]


class RunIdentity(NamedTuple):
    """The id of a run, and the row set of each of its tasks and splits."""

    run_id: str
    rows: dict[str, str]


def make_failure_id(run_name: str) -> str:
    """Return the id of the run that records why a recipe failed, from the name of the run in progress."""
    return f"{run_name}-failed"


def find_runs(at: store.Store, identities: Sequence[RunIdentity | None]) -> list[Run | None]:
    """Find the stored runs; None for each that is missing."""
    stored_runs = store.read_written_runs(at, [key.run_id for key in identities if key])
    pairs = [(key, stored_runs.get(key.run_id)) if key else (None, None) for key in identities]
    return [run if key and run and run.rows == key.rows else None for key, run in pairs]


def prompting_digest(target: MeasuredTask, recipe: Recipe, seed: int) -> str:
    """Digest the prompt around a question, and the sources of shots and passages."""
    promptings = []
    for name, params in recipe.prompting.items():
        plugin = plugins.load("prompting", name)
        plain_params: dict[str, Any] = plugin.Params(**params).model_dump(mode="json", exclude_defaults=True)
        for key in {*getattr(plugin, "MODELS", ())} & plain_params.keys():  # a model counts by its content
            plain_params[key] = plugin.source_digest(plain_params[key]) or plain_params[key]
        promptings.append((name, plugins.version("prompting", name), plain_params))
    items = target.items
    sources: list[Any] = [seed, target.versions["train"], items.documents]
    questions = (e.question for e in chain(items.train, items.validation, items.test))
    texts = [*(f"{d.title} {d.text}" for d in items.documents), *questions]
    sources += [versions_of("words")] if is_unspaced(texts) else []
    sources += [versions_of("widths")] if has_widths(texts) else []
    sources += ["turns"] if _has_turns(items) else []
    used_sources = sources if set(recipe.prompting) - {"zero_shot"} else []
    return digest([promptings, versions_of("prompting"), recipe.system, recipe.template, used_sources])


def _has_turns(items: TaskItems) -> bool:
    return any(len(example.messages) > 1 for example in chain(items.train, items.validation, items.test))


def describe_run(experiment: str, candidate: ResolvedCandidate, seed: int, **outcome: Any) -> Run:
    """Build the record of a run of an experiment from its recipe and its outcome."""
    recipe, base, served_base = candidate.recipe, candidate.base, candidate.served_base
    return Run(
        experiment=experiment,
        candidate=candidate.name,
        method=candidate.source.method,
        prompting=" + ".join(
            f"{name}({', '.join(f'{k}={v}' for k, v in params.items())})" if params else name
            for name, params in recipe.prompting.items()
        ),
        answer=recipe.answer,
        seed=seed,
        base_model=base.name,
        base_digest=base.weights_digest,
        served_digest=served_base.weights_digest if served_base != base else "",
        created=provenance.timestamp(),
        recipe=recipe.stored_form(),
        **outcome,
    )


def metric_ranges(sets: Iterable[RowSet]) -> dict[str, dict[str, MetricRange]]:
    """Map task and metric to direction and bounds."""
    return {s.measured.task.name: {name: m.range for name, m in s.measured.metrics.items()} for s in sets}


def list_further_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List test, and validation if any, of each further target that has what the recipe needs."""
    by_judge = recipe.sampling is not None and recipe.sampling.by not in (None, MEAN_LOGPROB)
    if by_judge or not weights.is_language_model:
        return []
    promptings = (plugins.load("prompting", name) for name in recipe.prompting)
    needs = {need for plugin in promptings for need in getattr(plugin, "NEEDS", ())}
    sets: list[RowSet] = []
    for m in session.more_targets:
        ranks = recipe.answer == "rank" and m.task.kind == "generate" and not m.task.labels
        in_chat = weights.kind != "chat" or openai_api.can_chat(m.task)
        if in_chat and not ranks and all(m.task.data.source(need) for need in needs):
            sets += target_sets(replace(session, target=m), recipe, weights, seed)
    return [rows for rows in sets if rows.ids]


def list_answered_sets(session: Session, recipe: Recipe) -> list[RowSet]:
    """List the row sets of the targets that a recipe answers, as if the base answered them."""
    weights = base_weights(session.source)
    return [*target_sets(session, recipe, weights, 0), *list_further_sets(session, recipe, weights, 0)]
