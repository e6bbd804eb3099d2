"""Judged metrics as scored: each answer by the grades in the books of its judges.

Invariant: no judge is asked. An answer without a grade has no score and is listed as ungraded; one with an
unreadable grade has no score either, but a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import fmean
from typing import NamedTuple

from harness.evaluation.judges import Judge, JudgedMetric
from harness.evaluation.judges.judge_prompts import Order, answer_key, orders
from harness.metrics import Metric, Parts
from harness.prompting import context_of
from harness.records import Example, Grade, Output


class UngradedAnswer(NamedTuple):
    """An answer that a judge has not graded; `example` is the item as the task has it.

    `passages` are those retrieved for the candidate, if the rubric shows them.
    """

    judged: JudgedMetric
    judge: Judge
    task: str
    example: Example
    answer: str
    key: str
    order: Order = ""
    passages: str = ""


class GradeReader:
    """Reader of the grades of one task's answers.

    Collects the `ungraded` answers, in `unreadable` by example id and metric the reasons for missing grades,
    and in `keys` by book the keys of all answers that it looked up.
    """

    def __init__(self, task: str, judged: Mapping[str, JudgedMetric], examples: Sequence[Example]) -> None:
        self.ungraded: list[UngradedAnswer] = []
        self.unreadable: dict[str, dict[str, str]] = {}
        self.keys: dict[str, set[str]] = {}
        self._task, self._judged = task, judged
        self._examples = {example.id: example for example in examples}
        self._grades = {name: metric.grades() for name, metric in judged.items()}

    def bind(self, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """Return the metrics, with the judged ones reading their grades."""
        return {name: self._bind_one(name, metric) for name, metric in metrics.items()}

    def _bind_one(self, name: str, metric: Metric) -> Metric:
        if name not in self._judged:
            return metric
        signature = f"judge|{self._judged[name].digest}"
        return replace(metric, score=partial(self._score, name), signature=signature)

    def _score(self, name: str, output: Output, example: Example) -> Parts | None:
        """Score an answer by the mean grade of its judges; None if one of them has given none."""
        judged, plain = self._judged[name], self._examples[example.id]
        books = zip(judged.judges, self._grades[name], strict=True)
        given: list[tuple[Judge, Grade]] = []
        shows = judged.rubric.passages and example.passages
        passages = context_of(example.prompt, plain.prompt) if shows else ""
        n_ungraded = len(self.ungraded)
        for (judge, grade_by_key), order in product(books, orders(judged.rubric)):
            key = answer_key(judged.rubric, plain, output.text, order, passages)
            self.keys.setdefault(judge.book, set()).add(key)
            if key in grade_by_key:
                given.append((judge, grade_by_key[key]))
            else:
                ungraded = (judged, judge, self._task, plain, output.text, key, order, passages)
                self.ungraded.append(UngradedAnswer(*ungraded))
        if reasons := [_reason(judge, grade) for judge, grade in given if grade.value is None]:
            self.unreadable.setdefault(example.id, {})[name] = f"{name}: {'; '.join(reasons)}"
        elif len(self.ungraded) == n_ungraded:
            return (fmean(grade.value for _, grade in given if grade.value is not None),)
        return None


def _reason(judge: Judge, grade: Grade) -> str:
    if grade.status == "error":
        return f"{judge.name} could not be asked: {grade.error}"
    return f"an unparsable grade, {judge.name} said {grade.said[:80]!r}"
