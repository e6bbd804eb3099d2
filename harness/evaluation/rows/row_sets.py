"""Row sets: the items a run refers to, the identity that names their folder, and the id of the run they make.

Invariant: prompts are built only where rows are missing, because building them may mean building a
retriever first. What only judges answers is in `scoring_digest` alone, so a changed metric leaves the
rest of an identity as it was and stored answers can be scored again. The id of a finished run names its
weights and its rows, so a run that is stored is the one that would be made.

More targets: what a candidate that was made for the target answers to other tasks, as it is.

Invariant: nothing is trained for them and nothing is chosen on them; shots and passages come from their own
files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, Literal, NamedTuple

from harness import metrics, plugins, provenance, store
from harness.data import SCORING, SPLITS, Split
from harness.evaluation import EvaluationJob, costs, wrap_prompt
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judges.grade_reading import GradeReader
from harness.evaluation.rows.answer_rewards import Chooser
from harness.evaluation.rows.sampled_answers import answers_digest, choice_name, reward_name
from harness.evaluation.session import MeasuredTask, Session
from harness.models import openai_api
from harness.prompting import PromptingContext, Step, compose, has_widths
from harness.provenance import versions_of
from harness.records import (
    BLOCK,
    Example,
    MetricRange,
    RowsIdentity,
    Run,
    SampleResult,
    digest,
    is_unspaced,
    turns_as_text,
)
from harness.spec import MEAN_LOGPROB, Decoding, Recipe, Role, Task, metric_name
from harness.training import Weights


class RowSet(NamedTuple):
    """Rows that a run refers to: which items, prompted how, and the identity that names their folder.

    `step` returns what puts the prompt around an item. It is called only where rows are missing, because
    building prompts may mean building a retriever first. `decoding` is None where answers are greedy,
    `chooser` the reward model by which the best of several counts.
    """

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
        """Example ids, in the order of evaluation."""
        return [e.id for e in self.measured.examples(self.split)]

    @property
    def n_blocks(self) -> int:
        """Blocks of `BLOCK` items in which they are evaluated, without building prompts."""
        return -(-len(self.ids) // BLOCK)

    def read(self, at: store.Store) -> list[SampleResult]:
        """Read the rows, all of which are stored."""
        return store.read_rows(at, self.identity.digest, len(self.ids))

    @property
    def answers(self) -> "RowSet":
        """The same rows before a judge or a reward model has graded them, as a candidate answers them."""
        if not (self.measured.judged or self.chooser):
            return self
        m = self.measured.without_judges() if self.measured.judged else self.measured
        choice = choice_name(self.decoding) if self.chooser else self.identity.choice
        named = replace(self.identity, scoring_digest=_scoring_digest(m), choice=choice)
        return self._replace(measured=m, identity=named, chooser=None)

    def grades(self) -> GradeReader:
        """Return a reader of the grades that judges have given so far."""
        m = self.measured
        return GradeReader(m.task.name, m.judged, m.examples(self.split) if m.judged else ())

    def examples(self) -> tuple[Example, ...]:
        """Return the items with the prompts around them."""
        return tuple(map(self.step(), self.measured.examples(self.split)))

    def job(
        self, grades: GradeReader | None = None, examples: tuple[Example, ...] | None = None
    ) -> EvaluationJob:
        """Return the items with their prompts, or `examples`; what judges score, by the grades there are."""
        m, reader = self.measured, grades or self.grades()
        scored = reader.bind(m.metrics)
        items = self.examples() if examples is None else examples
        return EvaluationJob(
            m.task, m.role, self.split, items, scored, self.answer, self.identity, self.decoding
        )


def target_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List validation and test of the target, as this recipe asks them."""
    prompting = prompting_digest(session, recipe, seed)
    if _has_turns(session):  # their rows hold all turns; those of weights, which train alike, need not know
        prompting = digest([prompting, "turns"])
    target, answer, drawn = session.target, recipe.answer, recipe.sampling
    chooser = _chooser(session, drawn, weights, seed)
    choice = choice_name(drawn, chooser.weights.digest if chooser else "")
    settings = {"decoding": answers_digest(drawn), "choice": choice}
    step = cache(partial(prompting_step, session, recipe, seed))
    return [
        RowSet(
            target,
            split,
            answer,
            replace(identity(session, weights, target, split, prompting, answer), **settings),
            step,
            drawn,
            chooser,
        )
        for split in SPLITS[1:]
    ]


def _chooser(session: Session, drawn: Decoding | None, weights: Weights, seed: int) -> Chooser | None:
    """Return the reward model that chooses among answers; None where none does, or it is not made yet."""
    name = drawn.reward_model if drawn else ""
    made = dict(weights.choosers).get(name)
    if made is None:
        return None
    maker = session.candidates[name]
    step = cache(partial(prompting_step, session, maker.source, seed))
    return Chooser(reward_name(name), made, maker.trained_base, step)


def suite_sets(session: Session, weights: Weights) -> list[RowSet]:
    """List the capability tasks that can be evaluated: none of a classifier, in chat those of text."""
    if not weights.is_language_model:
        return []
    able = (m for m in session.suites if weights.kind != "chat" or openai_api.can_chat(m.task))
    return [suite_set(session, weights, m) for m in able]


def suite_set(session: Session, weights: Weights, m: MeasuredTask) -> RowSet:
    """Return the test items of one task that is prompted as it is written, whoever answers."""
    named = identity(session, weights, m, "test", "task", "generate")
    return RowSet(m, "test", "generate", named, partial(_suite_step, m))


def _suite_step(m: MeasuredTask) -> Step:
    """Return what puts the task's own shots and system message around an item; lm-eval does that itself."""
    if m.task.lm_eval:
        return lambda example: example
    n = m.task.num_fewshot
    shots = {"few_shot": {"select": "fixed", "shots": n}} if n else {}
    step = compose(shots, PromptingContext(m.task, m.items.train, (), 0))
    return lambda example: wrap_prompt(step(example), m.task.system, None)


def total_work(sets: Iterable[RowSet]) -> costs.Work:
    """Add up the tokens that answering several sets takes."""
    return sum((work_of(rows.job()) for rows in sets), costs.Work())


def work_of(job: EvaluationJob) -> costs.Work:
    """Estimate the tokens that answering a job takes."""
    ranked = job.answer == "rank" or job.task.kind == "choice"
    if job.task.lm_eval:
        return _work_of_lm_eval(job)
    once = costs.estimate_answering(job.examples, ranked=ranked, max_new_tokens=job.task.max_new_tokens)
    n_samples = job.decoding.samples if job.decoding else 1
    return costs.Work(n_samples * once.read, n_samples * once.generated, blocks=job.n_blocks)


def _work_of_lm_eval(job: EvaluationJob) -> costs.Work:
    """Estimate from the documents' texts, the shots counted as documents of the same length."""
    once = costs.estimate_answering(job.examples, ranked=False, max_new_tokens=job.task.max_new_tokens)
    generated = once.generated if job.task.kind == "generate" else 0
    return costs.Work(once.read * (1 + job.task.num_fewshot), generated, blocks=job.n_blocks)


def identity(
    session: Session, weights: Weights, m: MeasuredTask, split: Split, prompting: str, answer: str
) -> RowsIdentity:
    """Name everything that the rows of a task's split depend on, for weights that are prompted so."""
    how = _describe_computation(session, weights)
    return RowsIdentity(
        weights.digest,
        how.template_digest,
        m.task.name,
        rows_version(m.task, m.versions[split]),
        split,
        prompting,
        answer,
        how.precision,
        how.engine,
        how.layout_digest,
        how.device_class,
        _scoring_digest(m),
    )


class _Computation(NamedTuple):
    """Computation of answers, apart from the weights; each field as in `RowsIdentity`."""

    template_digest: str
    precision: str
    engine: str
    layout_digest: str
    device_class: str


def _describe_computation(session: Session, weights: Weights) -> _Computation:
    """Say how weights are prompted here; of an endpoint no more is known than who writes its prompts."""
    base, machine = weights.source or session.source, session.machine
    if weights.kind in openai_api.PROTOCOLS:
        template = base.template_digest if weights.kind == "completions" else ""
        engine, layout = openai_api.identity(weights.kind)
        return _Computation(template, openai_api.UNKNOWN, engine, layout, openai_api.UNKNOWN)
    engine, layout = session.engine(base) if weights.is_language_model else ("text", digest("text"))
    return _Computation(base.template_digest, machine.precision, engine, layout, machine.device)


def rows_version(task: Task, version: str) -> str:
    """Return the version of what rows answer: definition and items by theirs, and the code that evaluates."""
    return digest([version, _evaluation_versions(task)])


def _evaluation_versions(task: Task) -> dict[str, int | str]:
    """Return the versions of the code that evaluates; that of lm-eval's tasks scores as well."""
    if task.lm_eval:
        return {**versions_of("tokenization", "lm_eval")}
    shots = {"few_shot": plugins.version("prompting", "few_shot")} if task.num_fewshot else {}
    return {**versions_of("tokenization", "evaluation"), **shots}


_GRADED = "refusals too"  # which answers judges grade, beside those that are valid


def _scoring_digest(m: MeasuredTask) -> str:
    answered = chain(m.items.validation, m.items.test)
    unspaced = not m.task.lm_eval and is_unspaced(text for e in answered for text in e.references)
    return scoring_digest(m.task, m.role, {name: one.digest for name, one in m.judged.items()}, unspaced)


def scoring_digest(task: Task, role: Role, judged: Mapping[str, str], unspaced: bool = False) -> str:
    """Digest what turns answers into scores: what the task says of it, and the code; no paths.

    `judged` holds the digest of who grades for each metric that judges grade; `unspaced` says that
    references are of a script without blanks.
    """
    if task.lm_eval:
        return ""
    said = task.model_dump(include=set(SCORING), exclude_defaults=True)
    said |= {"metrics": list(map(metric_name, task.metrics)), "primary": metric_name(task.primary)}
    code = [versions_of("scoring"), *(metrics.version(name, unspaced) for name in task.metrics)]
    return digest([said, role == "safety", code, *([dict(judged), _GRADED] if judged else [])])


class RunRequest(NamedTuple):
    """A candidate and the seed to make a run of it with."""

    candidate: ResolvedCandidate
    seed: int


class RunIdentity(NamedTuple):
    """The id of a run, and the row set of each of its tasks and splits."""

    run_id: str
    rows: dict[str, str]


def run_identity(
    session: Session, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]
) -> RunIdentity | None:
    """Name the run of these rows; None where rows are missing, so that there is none."""
    if not all(is_there(session, s) for s in sets):
        return None
    return RunIdentity(
        run_id_of(session, name, seed, weights, sets), {s.name: s.identity.digest for s in sets}
    )


def find_runs(session: Session, wanted: Sequence[RunIdentity | None]) -> list[Run | None]:
    """Find the runs that lie in the store; None for each that does not."""
    written = store.read_written_runs(session.store, [one.run_id for one in wanted if one])
    found = [(one, written.get(one.run_id)) if one else (None, None) for one in wanted]
    return [run if one and run and run.rows == one.rows else None for one, run in found]


def failure(session: Session, known: Mapping[str, Run], request: RunRequest) -> Run | None:
    """Find the failure of a recipe as it is written now among the runs that are known."""
    run = known.get(make_failure_id(session, request.candidate.name, request.seed))
    return run if run and Recipe.model_validate(run.recipe) == request.candidate.recipe else None


def is_there(session: Session, rows: RowSet) -> bool:
    """Tell whether a row set is complete."""
    return store.has_rows(session.store, rows.identity, rows.ids)


def run_id_of(session: Session, name: str, seed: int, weights: Weights, sets: Sequence[RowSet]) -> str:
    """Name a finished run by its weights and its rows."""
    rows = {s.name: s.identity.digest for s in sets}
    return f"{name_begun_run(session, name, seed)}-{digest([rows, weights.digest])[:8]}"


def make_failure_id(session: Session, name: str, seed: int) -> str:
    """Name the run that says why a recipe could not be made."""
    return f"{name_begun_run(session, name, seed)}-failed"


def name_begun_run(session: Session, name: str, seed: int) -> str:
    """Name a run that has begun; nothing is known of what it will be."""
    return f"{session.experiment.name}-{name}-s{seed}"


def prompting_step(session: Session, recipe: Recipe, seed: int) -> Step:
    """Return the function that turns an example of the target into the prompt of this recipe."""
    task, items = session.target.task, session.target.items
    context = PromptingContext(task, items.train, items.documents, seed, session.dry_run)
    prompted = compose(recipe.prompting, context)
    system = recipe.system if recipe.system is not None else task.system
    return lambda example: replace(
        wrap_prompt(prompted(example), system, recipe.template),
        earlier=turns_as_text(example.messages[:-1]),
        plain_prompt=example.prompt,
    )


def prompting_digest(session: Session, recipe: Recipe, seed: int) -> str:
    """Digest what is put around a question; and what shots and passages are drawn from."""
    promptings = [(name, *_describe_prompting(name, params)) for name, params in recipe.prompting.items()]
    items = session.target.items
    drawn_from: list[Any] = [seed, session.target.versions["train"], items.documents]
    questions = (e.question for e in chain(items.train, items.validation, items.test))
    texts = [*(f"{d.title} {d.text}" for d in items.documents), *questions]
    drawn_from += [versions_of("words")] if is_unspaced(texts) else []
    drawn_from += [versions_of("widths")] if has_widths(texts) else []
    drawn_from += ["turns"] if _has_turns(session) else []
    return digest(
        [
            promptings,
            versions_of("prompting"),
            recipe.system,
            recipe.template,
            drawn_from if set(recipe.prompting) - {"zero_shot"} else [],
        ]
    )


def _has_turns(session: Session) -> bool:
    """Tell whether an item of the target is a conversation."""
    items = session.target.items
    return any(len(example.messages) > 1 for example in chain(items.train, items.validation, items.test))


def _describe_prompting(name: str, params: Mapping[str, Any]) -> tuple[int | str, dict[str, Any]]:
    """Return a prompting's code version and parameters, in which a model stands as its content."""
    plugin = plugins.load("prompting", name)
    built = plugin.Params(**params)
    plain: dict[str, Any] = built.model_dump(mode="json", exclude_defaults=True)
    for key in {*getattr(plugin, "MODELS", ())} & plain.keys():
        plain[key] = plugin.source_digest(plain[key]) or plain[key]
    return plugins.version("prompting", name), plain


def describe_run(session: Session, candidate: ResolvedCandidate, seed: int, **outcome: Any) -> Run:
    """Join what a recipe says of its run with what became of it."""
    recipe, base, served = candidate.recipe, candidate.base, candidate.served_base
    return Run(
        experiment=session.experiment.name,
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
        served_digest=served.weights_digest if served != base else "",
        created=provenance.timestamp(),
        recipe=recipe.stored_form(),
        **outcome,
    )


def metric_ranges(sets: Iterable[RowSet]) -> dict[str, dict[str, MetricRange]]:
    """Say by task and metric which values are better, and between which bounds they lie."""
    return {s.measured.task.name: {name: m.range for name, m in s.measured.metrics.items()} for s in sets}


def list_further_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List test, and validation where there is some, of each further target that a recipe can answer."""
    able = (m for m in session.more_targets if _can_answer(recipe, weights, m))
    sets = [rows for m in able for rows in target_sets(replace(session, target=m), recipe, weights, seed)]
    return [rows for rows in sets if rows.ids]


def list_further_test_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List the test items of each further target that a recipe can answer, by the names of the targets."""
    tests = (rows for rows in list_further_sets(session, recipe, weights, seed) if rows.split == "test")
    return sorted(tests, key=lambda rows: rows.name)


def _can_answer(recipe: Recipe, weights: Weights, measured: MeasuredTask) -> bool:
    """Tell whether a task has what a recipe's prompts, answers and draws need; of a classifier it has not."""
    # Labels that are ranked are the task's own, and an answer that a judge chooses is chosen by one of the
    # target's.
    task, decoding = measured.task, recipe.sampling
    needs = {need for name in recipe.prompting for need in _needs_of(name)}
    ranks = recipe.answer == "rank" and task.kind == "generate" and not task.labels
    by_judge = decoding is not None and decoding.by not in (None, MEAN_LOGPROB)
    in_chat = weights.kind != "chat" or openai_api.can_chat(task)
    prompts = all(task.data.source(need) for need in needs)
    return weights.is_language_model and prompts and in_chat and not (ranks or by_judge)


def _needs_of(name: str) -> tuple[str, ...]:
    """Name the files of a task that a prompting reads."""
    needs: tuple[str, ...] = getattr(plugins.load("prompting", name), "NEEDS", ())
    return needs
