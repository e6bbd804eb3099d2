"""The report of an experiment: its values, and the words that every format shares.

Invariant: terminal, Markdown and JSON say the same of a candidate, because its cells and
sentences come from here; a smoke report says in each of them that it is no evidence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness import formatting, gating, plugins
from harness.comparison import AnswerDiversity, Comparison, Estimate, MetricCalibration
from harness.config.command_line import CommandLine
from harness.decision import (
    Ablation,
    CandidateFacts,
    Decision,
    Family,
    LearningCurve,
    SeedSummary,
    TrainingSets,
    TrivialBaseline,
    best_untrained,
    gain,
    is_fine_tuned,
    target_unit,
)
from harness.formatting import Unit
from harness.gating import MissRate, Verdict
from harness.records import SampleResult
from harness.report import labels
from harness.spec import DecidePolicy, TargetPolicy

SMOKE = "smoke, not evidence"
_SHORT = {
    "exact_match": "EM",
    "accuracy": "acc",
    "macro_f1": "macro F1",
    "token_f1": "F1",
    "bleu": "BLEU",
    "bits_per_byte": "bits/byte",
}


@dataclass(frozen=True, slots=True)
class AttributionStep:
    """One step: `new` − `base`.

    `what` says what was done. `macro` is the mean change over the admitted capability tasks, `tasks` the
    change of each task's primary metric, `target` that of the target where both answered it.
    """

    what: str
    new: str
    base: str
    macro: Estimate | None
    tasks: tuple[Comparison, ...]
    target: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Flip:
    """One item that the base (or `against`) and a candidate did not answer equally well.

    `base` and `new` are the two answers, `base_status` and `new_status` what became of them.
    """

    task: str
    item: str
    lost: bool
    prompt: str
    references: tuple[str, ...]
    base: str
    new: str
    base_status: str
    new_status: str
    against: str


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """The results of one experiment.

    `metric` is the target's primary metric. `comparisons` maps a run's `label` to its comparisons with the
    base on the tasks of the suites, each task's primary metric first; `not_admitted` says of a task why it
    does not count in the gate, `one_half` why half of it does not. `steps` splits the change of a run, by
    `label`, where there was a base or a run in between. `header` holds device, precision and times, with
    units in the names. `seeds` joins the seeds of each recipe that trains, `ablations` holds one table for
    each grid, `training_sets` one for each method's candidates that differ in their training rows alone,
    `curve` what more training data would bring. `task` is the target's name; `margins` maps tasks to the loss
    in [0, 1] that the gate takes for a regression on them, `macro_margin` is that of their mean, None where
    it is a share of the base's skill; `undecided_fails` says that an inconclusive verdict stops a release.
    `flips` shows some of the items that a fine-tune lost and gained, by `label`; `diversity` how varied its
    generated answers are, the target's first. `origins` says what each run's numbers depend on. `policy` is
    what the decision went by, `closed_labels` and `has_documents` which alternatives the target allows,
    `trivial` what a rule reaches that reads no item, `family` the fine-tunes over which what is shipped was
    corrected. `spans` maps tasks to the range of their metric, of which the gate takes a change as a share;
    `sampled` says that items of some tasks were drawn. `labels` puts metrics of the target beside people's
    labels of its answers. `declared` is the goal on the target. `typed` is what the next commands repeat.
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
    flips: dict[str, tuple[Flip, ...]] = field(default_factory=dict)
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

    @property
    def file_name(self) -> str:
        """The name of its files without suffix; a smoke report never takes a result's place."""
        return f"{self.experiment}-smoke" if self.smoke else self.experiment

    @property
    def unit(self) -> Unit:
        """The unit and direction of the target's metric."""
        return target_unit(self.facts)

    def task_comparisons(self, label: str) -> dict[str, Comparison]:
        """Map the tasks of the suites to a run's comparison by the primary metric of each, in their order."""
        found: dict[str, Comparison] = {}
        for c in self.comparisons.get(label, ()):
            if not c.slice:
                found.setdefault(c.task, c)
        return found

    def _repr_html_(self) -> str:
        """Return what a terminal shows, for notebooks."""
        from harness.report.terminal import terminal_html

        return terminal_html(self)


class ReportRow(NamedTuple):
    """One candidate's cells of the result table."""

    candidate: str
    target: str
    vs_untrained: str
    forgetting: str
    lost_gained: str
    cost: str
    p50: str
    verdict: str


def headers(report: ExperimentReport) -> ReportRow:
    """Name the columns of the result table."""
    better = report.unit.higher_is_better
    return ReportRow(
        "candidate",
        f"target {_SHORT.get(report.metric, report.metric)}{'' if better else ' ↓'}",
        "vs best untrained" if better else "gain vs best untrained",
        "forgetting (macro)",
        "lost/gained",
        "$/1k",
        "p50",
        "verdict",
    )


def table_rows(report: ExperimentReport, *, tight: bool = False) -> list[ReportRow]:
    """List the candidates best first, failed ones last; `tight` spares digits and words."""
    reference = best_untrained(report.facts)
    return [_row(f, reference, tight) for f in best_first(report)]


def best_first(report: ExperimentReport) -> list[CandidateFacts]:
    """Sort by the target's score on test; candidates without one come last, as listed."""

    def key(f: CandidateFacts) -> tuple[bool, float]:
        scored = f.state == "done" and f.target is not None
        return not scored, -f.target.unit.sign * f.target.score if scored and f.target else 0.0

    return sorted(report.facts, key=key)


def last_line(report: ExperimentReport) -> str:
    """Return the verdict: one sentence, marked where it rests on a smoke run."""
    sentence = report.decision.sentence if report.decision else "Nothing was decided."
    return f"{sentence} ({SMOKE})" if report.smoke else sentence


def verdict_word(f: CandidateFacts) -> str:
    """Say a run's verdict in one word."""
    if f.state == "failed":
        return labels.ERROR
    return labels.WORDS[f.verdict.outcome] if f.verdict else formatting.UNKNOWN


def live_line(f: CandidateFacts, metric: str, *, smoke: bool = False) -> str:
    """Say in one line what a candidate reached, while the others are still running."""
    if f.state == "failed":
        return failure_line(f)
    target = target_text(f)
    parts = [f"{_SHORT.get(metric, metric)} {target}"]
    parts += [f"{print_measured(f, 'cost_per_1k_usd')} USD/1k"] if f.cost_per_1k_usd is not None else []
    parts += [f"p50 {formatting.seconds(f.latency_p50_s)}"] if f.latency_p50_s is not None else []
    parts += [verdict_word(f)] if f.verdict else []
    parts += [SMOKE] if smoke else []
    return f"{f.label}: {' · '.join(parts)}"


def first_result_line(name: str, target: Estimate, metric: str, *, smoke: bool = False) -> str:
    """Say what one candidate reached on the target before anything else is measured."""
    score = score_text(target) + formatting.errors(target.n_errors)
    said = f"{name}: {_SHORT.get(metric, metric)} {score}{f' · {SMOKE}' if smoke else ''}"
    return f"{said}, a first result; next, the capability suite of the base"


def score_text(e: Estimate | None) -> str:
    """Print a score with its interval, in its unit."""
    return formatting.score(e.unit, *e[:3]) if e else formatting.UNKNOWN


def change_text(c: Comparison | Estimate | None, *, whole: bool = False) -> str:
    """Print a difference with its interval, in its unit; `whole` spares digits."""
    if c is None:
        return formatting.UNKNOWN
    delta = c.delta if isinstance(c, Comparison) else c.score
    return formatting.change(c.unit, delta, c.low, c.high, whole=whole)


def flips_text(lost: int, gained: int) -> str:
    """Print how many items were lost and gained."""
    return f"{formatting.count(lost)}/{formatting.count(gained)}"


def name_lost_items(c: Comparison, most: int) -> str:
    """Name the items that were lost, as many as can be read."""
    rest = len(c.lost) - most
    more = f" and {formatting.count(rest)} more" if rest > 0 else ""
    return f"{c.task}, lost {formatting.count(len(c.lost))}: {', '.join(c.lost[:most])}{more}"


def arm_texts(c: Comparison) -> tuple[str, str]:
    """Print both arms' scores of a comparison, each with the number of its answers that failed."""
    base = formatting.score(c.unit, c.base, c.base_low, c.base_high)
    new = formatting.score(c.unit, c.new, c.new_low, c.new_high)
    shared = c.errors.both
    return base + formatting.errors(c.errors.base + shared), new + formatting.errors(c.errors.new + shared)


def target_text(f: CandidateFacts, *, tight: bool = False) -> str:
    """Print a candidate's score on the target, with the number of its answers that failed."""
    if f.target is None:
        return formatting.UNKNOWN
    return formatting.score(f.target.unit, *f.target[:3], whole=tight) + formatting.errors(f.target.n_errors)


def miss_text(m: MissRate) -> str:
    """Say one line of the gate's operating characteristic."""
    return f"{miss_what(m)}: {formatting.chance(m.probability)}"


def miss_what(m: MissRate) -> str:
    """Say of which error a line of the operating characteristic is; `what` names the rule that would err."""
    if m.what == "equal":
        return "would not have passed an equally good model (macro, each and validity)"
    where = " (macro)" if m.what == "macro" else " on one task, whichever (each)"
    return f"could have missed a true −{abs(100 * m.delta):g} pp loss{where}"


def family_text(n_members: int, alpha: float) -> str:
    """Say how often one of so many fine-tunes passes its gate by chance; empty of a single one."""
    if n_members < 2:
        return ""
    any_passes = formatting.chance(gating.passing_chance(alpha, n_members))
    return (
        f"of {n_members} fine-tunes that all lost the margin one would pass with a chance of up to"
        f" {any_passes} (one alone {formatting.chance(alpha)}): this verdict is not corrected for that, the"
        " decision is"
    )


def miss_basis(verdict: Verdict) -> str:
    """Say at which items, clusters and disagreement the operating characteristic holds; empty without one."""
    macro = next((rule.numbers for rule in verdict.rules if rule.name == "macro"), {})
    n, clusters, share = (macro.get(name) for name in ("n_items", "n_clusters", "disagreement"))
    if not verdict.missed or not isinstance(share, float):
        return ""
    return (
        f"At {_count(n)} items in {_count(clusters)} clusters, of which {formatting.percent(share)} % of "
        "a task changed on average, the gate"
    )


def _count(n: object) -> str:
    return formatting.count(n) if isinstance(n, int) else formatting.UNKNOWN


def figure_text(name: str, value: Any) -> str:
    """Print a figure by the unit in its name; a curve of [step, value] shows where it starts and ends."""
    if isinstance(value, list | tuple):
        return " → ".join(figure_text(name, value[i][-1]) for i in (0, -1)) if value else formatting.UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value) if value is not None else formatting.UNKNOWN
    if name.endswith("_s") and not name.endswith("_per_s"):
        return formatting.seconds(value)
    if name.endswith("_usd"):
        return formatting.usd(value)
    if name.endswith("_share"):
        return f"{formatting.figure(100 * value)} %"
    if name.endswith("_bytes"):
        return formatting.size(value)
    if name.startswith("n_") or name.endswith("_per_s") or isinstance(value, int):
        return formatting.count(value)
    return formatting.plain(value)


def find_shown_figure(f: CandidateFacts, name: str) -> float | None:
    """Return a figure of cost or speed by its name in the facts, also where other work disturbed it.

    What a request costs holds its share of an index of documents.
    """
    value: float | None = f.disturbed.get(name, getattr(f, name))
    return value if value is None or name != "cost_per_1k_usd" else value + f.index_per_1k_usd


def print_measured(f: CandidateFacts, name: str, *, tight: bool = False) -> str:
    """Print a figure of cost or speed by its name in the facts; `~` marks one that other work disturbed.

    Where it is `tight` the mark stands alone.
    """
    if tight and name in f.disturbed:
        return "~"
    value = find_shown_figure(f, name)
    text = formatting.figure(value) if name == "requests_per_s" else figure_text(name, value)
    return f"~{text}" if name in f.disturbed else text


def describe_disturbed(facts: Iterable[CandidateFacts]) -> str:
    """Say what the mark of a disturbed figure means; empty where no figure has it."""
    if not any(f.disturbed for f in facts):
        return ""
    return (
        "~: measured twice while other work took the processors, so slower and dearer than this machine is;"
        " nothing is decided by it."
    )


def failure_line(f: CandidateFacts) -> str:
    """Say why a candidate failed."""
    return f"{f.label} failed: {f.error or 'no reason was given'}"


def _row(f: CandidateFacts, reference: str | None, tight: bool) -> ReportRow:
    return ReportRow(
        f.label,
        target_text(f, tight=tight),
        "(this one)" if f.name == reference else change_text(gain(f.vs_untrained), whole=tight),
        _format_forgetting(f, tight),
        formatting.UNKNOWN
        if not is_fine_tuned(f) or f.verdict is None
        else flips_text(f.verdict.lost, f.verdict.gained),
        print_measured(f, "cost_per_1k_usd", tight=tight),
        print_measured(f, "latency_p50_s", tight=tight),
        verdict_word(f),
    )


def _format_forgetting(f: CandidateFacts, tight: bool) -> str:
    if f.state == "failed":
        return formatting.UNKNOWN
    if not plugins.find_method(f.method).makes_language_model:
        return f"{formatting.UNKNOWN} ({'none to lose' if tight else 'no capability suite'})"
    if f.baseline and f.trained:
        return f"{formatting.UNKNOWN} ({'not judged' if tight else 'a baseline, not judged'})"
    if not is_fine_tuned(f):
        return "0 (base weights)"
    macro = f.verdict.macro if f.verdict else None
    return formatting.points(*macro[:3]) if macro else formatting.UNKNOWN


LOST_SHOWN, GAINED_SHOWN = 5, 3  # of each task
_REFERENCES_SHOWN = 3
_LONGEST = 1_500  # characters of one text


def flips_of(
    c: Comparison, base: Sequence[SampleResult], new: Sequence[SampleResult], against: str
) -> list[Flip]:
    """Show some of the items of a comparison, lost ones first, spread evenly over their ids."""
    before, after = ({row.example_id: row for row in rows} for rows in (base, new))
    lost = [_flip(i, before, after, against, lost=True) for i in spread(c.lost, LOST_SHOWN)]
    return lost + [_flip(i, before, after, against, lost=False) for i in spread(c.gained, GAINED_SHOWN)]


def spread(ids: Sequence[str], n: int) -> list[str]:
    """Draw at most n ids at even distances: neighbours often ask the same thing."""
    return [ids[i * len(ids) // n] for i in range(n)] if len(ids) > n else list(ids)


def _flip(
    item: str,
    before: Mapping[str, SampleResult],
    after: Mapping[str, SampleResult],
    against: str,
    *,
    lost: bool,
) -> Flip:
    old, new = before[item], after[item]
    return Flip(
        new.task,
        item,
        lost,
        excerpt(new.prompt),
        tuple(map(excerpt, new.references[:_REFERENCES_SHOWN])),
        excerpt(old.text),
        excerpt(new.text),
        old.status,
        new.status,
        against,
    )


def excerpt(text: str) -> str:
    """Cut a text that nobody would read to its end; what is no Unicode becomes a question mark."""
    whole = text[:_LONGEST].encode("utf-8", "replace").decode("utf-8")
    return whole if len(text) <= _LONGEST else f"{whole} … (cut: {formatting.count(len(text))} characters)"
