"""Judges of a task's answers: the models that grade by a rubric, and the books with their grades.

Invariant: a book is named by everything that a grade depends on besides the answer: the rubric, the judge's
weights or its address and model, how it computes, and the version of our prompt. Grades are stored
separately; a metric `judge:NAME` reads them and never asks a judge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from harness.config import Rubric, is_judged, read_rubric
from harness.config.judge_sources import JudgingCandidate, Written, endpoint_params, is_endpoint, judge_label
from harness.data import TaskItems
from harness.errors import Problem, UserError
from harness.models import openai_api
from harness.models.hardware import Machine
from harness.models.openai_api import Settings
from harness.provenance import versions_of
from harness.records import Grade, digest
from harness.spec import Task, TokenPrices, metric_name, metric_parts
from harness.store import Store, read_grades, read_identities
from harness.training import Weights


class Judge(NamedTuple):
    """One judge with one rubric: an endpoint with its settings, or a local model with its weights.

    `identity` is everything that its grades depend on besides the graded answer. For each answer the first
    readable grade of at most `attempts` counts. `prices` are those of an endpoint's tokens. `absent` is the
    reason why a judging candidate has no weights.
    """

    name: str
    identity: Mapping[str, Any]
    settings: Settings | None = None
    weights: Weights | None = None
    absent: str = ""
    attempts: int = 1
    prices: TokenPrices | None = None

    @property
    def book(self) -> str:
        """The digest that names the folder of its grades."""
        return digest(self.identity)

    @property
    def score_key(self) -> Any:
        """The part of it that scores depend on: its book, and the number of attempts if it is not one."""
        return self.book if self.attempts == 1 else [self.book, self.attempts]


class GradingLimit(NamedTuple):
    """Limit in USD of what a command may pay for grades; the cost of `n_before` others is excluded."""

    usd: float
    before_usd: float
    n_before: int

    def left_usd(self, spent: float) -> float:
        """Return the remaining budget when all grades together have cost `spent`."""
        return self.usd - (spent - self.before_usd)


class JudgedMetric(NamedTuple):
    """A judged metric of a task: its name, its rubric, its judges, and the store of their grades.

    `limit` is that of the grading command, None without one.
    """

    metric: str
    rubric: Rubric
    judges: tuple[Judge, ...]
    store: Store
    limit: GradingLimit | None = None

    @property
    def digest(self) -> str:
        """The parts that the scores depend on besides the answers."""
        return digest([judge.score_key for judge in self.judges])

    def grades(self) -> list[Mapping[str, Grade]]:
        """Read the grades of each judge, by the keys of what was graded."""
        return [read_grades(self.store, judge.book, judge.attempts) for judge in self.judges]


def read_judged_metrics(
    task: Task, items: TaskItems, store: Store, judging: Mapping[str, Weights | str], machine: Machine
) -> dict[str, JudgedMetric]:
    """Read the rubrics of a task's judged metrics.

    `judging` maps the label of each local judge to its weights, or to the reason why it has none.

    Raises:
        UserError: a rubric cannot be used, or shows references that items lack.
    """
    judged = {
        metric_name(written): open_judged(written, store, judging, machine)
        for written in task.metrics
        if is_judged(written)
    }
    lacking = [e.id for e in (*items.validation, *items.test) if not any(e.references)]
    for name, metric in judged.items() if lacking else ():
        if metric.rubric.needs_references:
            found = f"{len(lacking):,} items without a reference ({', '.join(lacking[:3])})"
            step = "add references, or grade without: reference: false, mode: grade"
            raise UserError(Problem(f"task {task.name}: {name}", found, "one for the judge to see", step))
    return judged


def open_judged(
    written: str, store: Store, judging: Mapping[str, Weights | str], machine: Machine
) -> JudgedMetric:
    """Read the rubric of a judged metric with its judges.

    Raises:
        UserError: the rubric cannot be used.
    """
    rubric = read_rubric(_path(written))
    judges = tuple(_judge(rubric, one, judging, machine) for one in rubric.judges)
    return JudgedMetric(metric_name(written), rubric, judges, store)


def list_judging_models(metrics: Iterable[str]) -> dict[str, str]:
    """Map the local models that judge by these metrics to where they are named."""
    return {one: where for where, one in _list_written_judges(metrics) if isinstance(one, str)}


def list_judging_candidates(metrics: Iterable[str]) -> dict[JudgingCandidate, str]:
    """Map the candidates that judge by these metrics to where they are named."""
    return {
        JudgingCandidate(**one): where
        for where, one in _list_written_judges(metrics)
        if isinstance(one, dict) and not is_endpoint(one)
    }


def _list_written_judges(metrics: Iterable[str]) -> Iterator[tuple[str, Written]]:
    for written in filter(is_judged, metrics):
        for one in read_rubric(_path(written)).judges:
            yield f"{metric_name(written)}: judge", one


def list_stored_digests(task: Task, store: Store) -> Iterator[dict[str, str]]:
    """Yield the digests of the possible judges of each judged metric, from the files alone.

    For a local judge these are all books with its name and the rubric, however it computed.

    Raises:
        UserError: a rubric cannot be used.
    """
    written = [one for one in task.metrics if is_judged(one)]
    books = [_list_stored_books(read_rubric(_path(one)), store) for one in written]
    for chosen in product(*(product(*of) for of in books)):
        yield {metric_name(one): digest(list(of)) for one, of in zip(written, chosen, strict=True)}


def read_stored_grades(written: str, store: Store) -> list[dict[str, Grade]]:
    """Read the grades that each judge of a metric gave by the current rubric.

    For a local judge they count however it computed them.

    Raises:
        UserError: the rubric cannot be used.
    """
    grades_by_judge = []
    for books in _list_stored_books(read_rubric(_path(written)), store):
        counted: list[tuple[str, int]] = [(b, 1) if isinstance(b, str) else tuple(b) for b in reversed(books)]
        grades = (read_grades(store, book, attempts) for book, attempts in counted)
        grades_by_judge.append({key: grade for of in grades for key, grade in of.items()})
    return grades_by_judge


def _list_stored_books(rubric: Rubric, store: Store) -> list[list[Any]]:
    """List for each judge of a rubric the books that may hold its grades, as scores depend on them."""
    there = read_identities(store)
    known = {book: (of["rubric"], of["code"], _name(of["judge"])) for book, of in there.items()}
    code = _local_code(rubric)
    return [
        [_endpoint_judge(rubric, one).score_key]
        if is_endpoint(one)
        else [b for b, of in known.items() if of == (code["rubric"], code["code"], _name(_name_fields(one)))]
        for one in rubric.judges
    ]


def _name_fields(written: Written) -> dict[str, str]:
    """Return the identity fields that name a local judge."""
    if isinstance(written, str):
        return {"model": written}
    return {"candidate": JudgingCandidate(**written).candidate}


def _name(judge: Mapping[str, Any]) -> tuple[Any, ...]:
    return judge.get("model"), judge.get("candidate")


def key_problems(judged: Sequence[JudgedMetric]) -> Iterator[Problem]:
    """Yield what is missing to call the endpoints of judges now: a key, the client."""
    known = {judge.settings: one.metric for one in judged for judge in one.judges if judge.settings}
    for settings, metric in known.items():
        yield from openai_api.problems(settings, metric)


def _path(written: str) -> Path:
    return Path(metric_parts(written)[1])


def _judge(rubric: Rubric, written: Written, judging: Mapping[str, Weights | str], machine: Machine) -> Judge:
    if is_endpoint(written):
        return _endpoint_judge(rubric, written)
    weights = judging[judge_label(written)]
    computed = {"precision": machine.precision, "device": machine.device}
    (name,) = (named := _name_fields(written)).values()
    if isinstance(weights, str):
        identity = {**_local_code(rubric), "judge": {**named, **computed, "weights": ""}}
        return Judge(name, identity, absent=weights)
    assert weights.source is not None, "weights that judge name their base"
    computed |= {"weights": weights.digest, "template": weights.source.template_digest}
    identity = {**_local_code(rubric), "judge": {**named, **computed}}
    shown = Path(name).name if isinstance(written, str) else f"{name} (weights {weights.digest[:8]})"
    return Judge(shown, identity, weights=weights)


def _endpoint_judge(rubric: Rubric, written: dict[str, Any]) -> Judge:
    settings = Settings(**endpoint_params(written))
    source = {"base_url": settings.base_url, "model": settings.model, "protocol": settings.protocol}
    identity = {"rubric": rubric.content, "code": versions_of("judging"), "judge": source}
    prices = settings.usd_per_million_tokens or rubric.usd_per_million_tokens
    return Judge(settings.name, identity, settings=settings, attempts=rubric.attempts, prices=prices)


def _local_code(rubric: Rubric) -> dict[str, Any]:
    return {"rubric": rubric.content, "code": versions_of("judging", "tokenization", "layout")}
