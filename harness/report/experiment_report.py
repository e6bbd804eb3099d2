"""The report of an experiment: the values that every format prints, in the words of `wording`."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose, isfinite, nan
from typing import Any, NamedTuple

import numpy as np

from harness import formatting
from harness.analysis.ablation import Ablation, TrainingSets
from harness.analysis.answers import AnswerDiversity
from harness.analysis.candidate_facts import CandidateFacts, target_unit
from harness.analysis.decision import Decision
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.people_labels import MetricCalibration
from harness.analysis.seeds import Family, SeedSummary
from harness.analysis.significance import Settling, SpareItems, find_settling
from harness.analysis.target_scores import LearningCurve, TrivialBaseline
from harness.analysis.verdict import Verdict
from harness.config import CommandLine
from harness.formatting import Unit
from harness.metrics import Metric, item_scores
from harness.records import SampleResult, digest
from harness.spec import DecidePolicy, TargetPolicy

_NOT_IN_NAMES = re.compile(r"[^\w.]+")
_LONGEST_NAME = 60  # characters of the names of selected candidates in that of a file
_REFERENCES_SHOWN = 3
_LONGEST = 1_500  # characters of one text
RIGHT, WRONG = "✓", "✗"  # an answer that scores best, and one that scores worst


@dataclass(frozen=True, slots=True)
class AttributionStep:
    """Change `new` − `base` by one step: mean over the admitted tasks, and each task's primary metric."""

    what: str
    new: str
    base: str
    macro: Estimate | None
    tasks: tuple[Comparison, ...]
    target: Comparison | None = None


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """Answer to an item, with the mark of its score and further facts."""

    text: str
    status: str
    mark: str
    facts: tuple[str, ...] = ()


class ShownPrompt(NamedTuple):
    """Prompt with its special tokens, as today's files make it, and the columns that were asked with it."""

    columns: tuple[str, ...]
    text: str
    n_tokens: int
    was_sent: bool
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ShownItem:
    """Item of a task with candidates' answers by name; `prompt` is its question, `prompts` were sent."""

    task: str
    item: str
    prompt: str
    references: tuple[str, ...]
    answers: dict[str, ShownAnswer]
    prompts: tuple[ShownPrompt, ...] = ()

    def sent_to(self, column: str) -> ShownPrompt | None:
        """Return the prompt sent to a column; None if it is not shown."""
        return next((prompt for prompt in self.prompts if column in prompt.columns), None)

    @property
    def is_agreed(self) -> bool:
        """Whether all answers have the same mark."""
        return len({answer.mark for answer in self.answers.values()}) == 1


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """Results of one experiment.

    `metric` is the primary metric of the target `task`. By run `label`: `comparisons` with the base on the
    suites' tasks, each task's primary metric first; `steps` between the base and the run; `diversity` of
    answers, the target's first; `origins` of the numbers. By task: `not_admitted` and `one_half` are reasons
    why it does not (fully) count in the gate, `margins` the loss in [0, 1] that is a regression, `spans` the
    range of the metric. `macro_margin` is None if it is a share of the base's skill. `header` has units in
    its names. `policy` made the decision; `closed_labels` and `has_documents` say which alternatives the
    target allows, `can_fold` that it could be tested in folds. `sampled`: items of some tasks were drawn.
    `typed` is what the next commands repeat, `spare` the items that limits leave out.
    """

    experiment: str
    base_model: str
    metric: str
    facts: tuple[CandidateFacts, ...]
    comparisons: dict[str, tuple[Comparison, ...]] = field(default_factory=dict)
    decision: Decision | None = None
    header: dict[str, Any] = field(default_factory=dict)
    smoke: bool = False
    notes: tuple[str, ...] = ()
    not_admitted: dict[str, str] = field(default_factory=dict)
    one_half: dict[str, str] = field(default_factory=dict)
    steps: dict[str, tuple[AttributionStep, ...]] = field(default_factory=dict)
    seeds: tuple[SeedSummary, ...] = ()
    ablations: tuple[Ablation, ...] = ()
    training_sets: tuple[TrainingSets, ...] = ()
    curve: LearningCurve | None = None
    task: str = ""
    margins: dict[str, float] = field(default_factory=dict)
    macro_margin: float | None = None
    undecided_fails: bool = True
    answers: tuple[ShownItem, ...] = ()
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    policy: DecidePolicy | None = None
    closed_labels: bool = False
    has_documents: bool = False
    trivial: TrivialBaseline | None = None
    diversity: dict[str, tuple[AnswerDiversity, ...]] = field(default_factory=dict)
    family: Family = field(default_factory=Family)
    spans: dict[str, float] = field(default_factory=dict)
    sampled: bool = False
    labels: tuple[MetricCalibration, ...] = ()
    declared: TargetPolicy | None = None
    typed: CommandLine = field(default_factory=CommandLine)
    spare: tuple[SpareItems, ...] = ()
    can_fold: bool = False

    @property
    def file_name(self) -> str:
        """Name of its files without suffix; selected candidates and smoke runs have names of their own."""
        chosen = "-".join(_NOT_IN_NAMES.sub("-", name) for name in self.typed.candidates)
        chosen = chosen if len(chosen) <= _LONGEST_NAME else digest(list(self.typed.candidates))[:12]
        parts = [self.experiment, *([f"of-{chosen}"] if chosen else []), *(["smoke"] if self.smoke else [])]
        return "-".join(parts)

    @property
    def unit(self) -> Unit:
        """The unit and direction of the target's metric."""
        return target_unit(self.facts)

    def settling(self, verdict: Verdict) -> Settling:
        """Return what would settle an open verdict."""
        return find_settling([verdict], self.spare, relative=self.macro_margin is None)

    def task_comparisons(self, label: str) -> dict[str, Comparison]:
        """Map the suites' tasks to a run's comparison by the primary metric."""
        by_task: dict[str, Comparison] = {}
        for c in self.comparisons.get(label, ()):
            by_task.setdefault(c.task, c)
        return by_task

    def _repr_html_(self) -> str:
        """Return what a terminal shows, for notebooks."""
        from rich.console import Console

        from harness.report.terminal import WIDTH, terminal

        console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=False)
        terminal(self, console)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def mark_answer(metric: Metric, parts: Sequence[float] | None) -> str:
    """Mark an answer as right or wrong, else print its score; – if it has none."""
    score = nan if parts is None else float(item_scores(metric, np.array([parts], float))[0])
    if not isfinite(score):
        return formatting.UNKNOWN
    worst, best = metric.bounds if metric.higher_is_better else metric.bounds[::-1]
    return RIGHT if isclose(score, best) else WRONG if isclose(score, worst) else formatting.plain(score)


def show_items(metric: Metric, arms: Mapping[str, Sequence[SampleResult]], n: int) -> list[ShownItem]:
    """Show n items of a task with every arm's answer, first those that arms score differently."""
    by_arm = {name: {row.example_id: row for row in rows} for name, rows in arms.items()}
    first, *other_rows = by_arm.values()
    ids = [item for item in first if all(item in rows for rows in other_rows)]
    parts = {item: {rows[item].parts.get(metric.name) for rows in by_arm.values()} for item in ids}
    chosen = spread([item for item in ids if len(parts[item]) > 1], n)
    chosen += spread([item for item in ids if len(parts[item]) == 1], n - len(chosen))
    items = []
    for item in chosen:
        answers = {}
        for name, row in ((name, rows[item]) for name, rows in by_arm.items()):
            mark, facts = mark_answer(metric, row.parts.get(metric.name)), map(excerpt, describe_answer(row))
            answers[name] = ShownAnswer(excerpt(row.text), row.status, mark, tuple(facts))
        shortest = min((rows[item] for rows in by_arm.values()), key=lambda row: len(row.prompt))
        references = tuple(map(excerpt, shortest.references[:_REFERENCES_SHOWN]))
        items.append(ShownItem(shortest.task, item, excerpt(shortest.prompt), references, answers))
    return items


def describe_answer(row: SampleResult) -> list[str]:
    """List an answer's scores, tokens, time and passages."""
    lines = [
        f"{name.replace('_', ' ')}: {', '.join(map(formatting.plain, parts)) if parts else 'not scored'}"
        for name, parts in row.parts.items()
    ]
    if row.n_prompt_tokens:
        tokens = map(formatting.count, (row.n_prompt_tokens, row.n_output_tokens))
        lines.append("tokens: {} of the prompt + {} of the answer".format(*tokens))
    lines += [f"time in its batch: {formatting.seconds(row.compute_s)}"] if row.compute_s else []
    if row.margin is not None:
        lines.append(f"margin of the right choice: {formatting.plain(row.margin, sign=True)} nats")
    lines += [f"passages: {', '.join(row.passages)}"] if row.passages else []
    return lines + ([f"error: {row.error}"] if row.error else [])


def describe_prompt(n_tokens: int, was_sent: bool) -> str:
    """Describe whether a prompt was sent, or made from today's files."""
    if was_sent:
        return f"The prompt as it was sent, {formatting.count(n_tokens)} tokens."
    return "Made from today's files; the prompt that was sent differed, as files or shots have changed since."


def spread(ids: Sequence[str], n: int) -> list[str]:
    """Choose at most n evenly spaced ids, because neighbours often ask the same."""
    return [ids[i * len(ids) // n] for i in range(n)] if len(ids) > n else list(ids)


def excerpt(text: str, longest: int = _LONGEST) -> str:
    """Cut a text that is too long to read; characters outside Unicode become question marks."""
    whole = text[:longest].encode("utf-8", "replace").decode("utf-8")
    return whole if len(text) <= longest else f"{whole} … (cut: {formatting.count(len(text))} characters)"
