"""Wording of a report: the sentences and figures about candidates that all formats print."""

from collections.abc import Iterable
from typing import Any

from harness import formatting
from harness.analysis.candidate_facts import CandidateFacts, Speed, is_fine_tuned
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.significance import bound_passing_chance
from harness.analysis.verdict import WORDS, MissRate, Verdict, name_reasons
from harness.metrics import short_name, trait
from harness.report.document import ERROR
from harness.report.experiment_report import ExperimentReport

SMOKE = "smoke, not evidence"
_FEW_UNREAD = 0.05  # share of cut or unparsable answers from which it is noted at scores


def best_first(report: ExperimentReport) -> list[CandidateFacts]:
    """Sort candidates by the target's score on test; those without one come last, in the given order."""

    def key(f: CandidateFacts) -> tuple[bool, float]:
        is_scored = f.state == "done" and f.target is not None
        return not is_scored, -f.target.unit.sign * f.target.score if is_scored and f.target else 0.0

    return sorted(report.facts, key=key)


def last_line(report: ExperimentReport) -> str:
    """Return the decision as one sentence, marked for a smoke run."""
    if report.smoke:
        failed = [f.label for f in report.facts if f.state == "failed"]
        text = f"{', '.join(failed)} failed" if failed else "Everything works"
        return f"{text}; no decision ({SMOKE})"
    return report.decision.sentence if report.decision else "Nothing was decided."


def verdict_word(f: CandidateFacts) -> str:
    """Return a run's verdict in one word."""
    if f.state == "failed":
        return ERROR
    if f.verdict is None or (f.verdict.outcome == "pass" and not is_fine_tuned(f)):
        return formatting.UNKNOWN  # without training nothing can be forgotten
    return WORDS[f.verdict.outcome]


def live_line(f: CandidateFacts, metric: str, *, smoke: bool = False) -> str:
    """Return one line on a candidate's result while others are still running."""
    if f.state == "failed":
        return failure_line(f)
    target = target_text(f)
    parts = [f"{short_name(metric)} {target}"]
    parts += [f"{print_measured(f, 'cost_per_1k_usd')} USD/1k"] if f.cost_per_1k_usd is not None else []
    parts += [f"p50 {formatting.seconds(f.speed.latency_p50_s)}"] if f.speed.latency_p50_s is not None else []
    parts += [verdict_word(f)] if f.verdict else []
    parts += [SMOKE] if smoke else []
    return f"{f.label}: {' · '.join(parts)}"


def first_result_line(name: str, target: Estimate, metric: str, *, smoke: bool = False) -> str:
    """Return one line on the first candidate's target score, before other measurements."""
    text = f"{name}: {short_name(metric)} {answered_text(target)}{f' · {SMOKE}' if smoke else ''}"
    return f"{text}, a first result; next, the capability suite of the base"


def score_text(e: Estimate | None) -> str:
    """Format a score with its interval, in its unit."""
    return formatting.score(e.unit, *e[:3]) if e else formatting.UNKNOWN


def answered_text(e: Estimate | None, *, whole: bool = False) -> str:
    """Format a score with its interval and the number of failed answers; `whole` drops digits."""
    if e is None:
        return formatting.UNKNOWN
    return formatting.score(e.unit, *e[:3], whole=whole) + formatting.errors(e.n_errors)


def change_text(c: Comparison | Estimate | None, *, whole: bool = False) -> str:
    """Format a difference with its interval, in its unit; `whole` drops digits."""
    if c is None:
        return formatting.UNKNOWN
    delta = c.delta if isinstance(c, Comparison) else c.score
    return formatting.change(c.unit, delta, c.low, c.high, whole=whole)


def flips_text(lost: int, gained: int) -> str:
    """Format the numbers of lost and gained items."""
    return f"{formatting.count(lost)}/{formatting.count(gained)}"


def name_lost_items(c: Comparison, limit: int) -> str:
    """Name the first lost items, and the number of others."""
    rest = len(c.lost) - limit
    more = f" and {formatting.count(rest)} more" if rest > 0 else ""
    return f"{c.task}, lost {formatting.count(len(c.lost))}: {', '.join(c.lost[:limit])}{more}"


def arm_texts(c: Comparison) -> tuple[str, str]:
    """Format both arms' scores of a comparison, with their numbers of failed answers."""
    base = formatting.score(c.unit, c.base, c.base_low, c.base_high)
    new = formatting.score(c.unit, c.new, c.new_low, c.new_high)
    shared = c.errors.both
    return base + formatting.errors(c.errors.base + shared), new + formatting.errors(c.errors.new + shared)


def target_text(f: CandidateFacts, *, tight: bool = False) -> str:
    """Format a candidate's score on the target, with the number of failed answers."""
    return answered_text(f.target, whole=tight)


def miss_text(m: MissRate) -> str:
    """Format one line of the gate's operating characteristic; `what` names the rule."""
    where = " on every task" if m.what == "macro" else " on a single task"
    lost, event = abs(100 * m.delta), "a fine-tune that lost nothing would not pass"
    if m.what != "equal":
        event = f"a real loss of {lost:g} point{'' if lost == 1 else 's'}{where} would pass"
    return f"{event}: {formatting.chance(m.probability)}"


def describe_intervals(report: ExperimentReport) -> str:
    """Name the level of the printed intervals; those of the suites' changes have the gate's."""
    level = f"{100 * (1 - report.family.alpha):g} %"
    of_changes = "" if level == "95 %" else f" ({level} for changes on the suites: gate.alpha)"
    return f"95 % intervals{of_changes}"


def family_text(n_members: int, alpha: float) -> str:
    """Describe how often one of n fine-tunes passes its gate by chance; empty for a single one."""
    if n_members < 2:
        return ""
    any_passes = formatting.chance(bound_passing_chance(alpha, n_members))
    return (
        f"if each of the {n_members} fine-tunes had lost exactly what the margin allows, one would still pass"
        f" with a chance of up to {any_passes} (one alone {formatting.chance(alpha)}); the decision corrects"
        " for that, this verdict does not"
    )


def miss_basis(verdict: Verdict) -> str:
    """Describe the items, clusters and disagreement behind the operating characteristic; empty if none."""
    macro = verdict.numbers("macro")
    share = macro.get("disagreement")
    if not verdict.missed or not isinstance(share, float):
        return ""
    sizes = (macro.get(name) for name in ("n_items", "n_clusters"))
    n, clusters = (formatting.count(size) if isinstance(size, int) else formatting.UNKNOWN for size in sizes)
    return (
        f"Chances with {n} items in {clusters} clusters, where {formatting.percent(share)} %"
        " of a task's items changed on average:"
    )


def figure_text(name: str, value: Any) -> str:
    """Format a figure by the unit in its name; curves of [step, value] show first and last value."""
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
    """Return a figure of cost (with its share of an index) or speed, even if other work disturbed it."""
    source = f.speed if name in Speed._fields else f
    value: float | None = f.speed.disturbed.get(name, getattr(source, name))
    return value if value is None or name != "cost_per_1k_usd" else value + f.index_per_1k_usd


def print_measured(f: CandidateFacts, name: str, *, tight: bool = False) -> str:
    """Format a figure of cost or speed by its name; `~` marks a disturbed one, alone if tight."""
    if tight and name in f.speed.disturbed:
        return "~"
    value = find_shown_figure(f, name)
    text = formatting.figure(value) if name == "requests_per_s" else figure_text(name, value)
    return f"~{text}" if name in f.speed.disturbed else text


def describe_disturbed(facts: Iterable[CandidateFacts]) -> str:
    """Explain the mark of disturbed figures; empty if no figure has it."""
    if not any(f.speed.disturbed for f in facts):
        return ""
    return (
        "~: measured while other work used the processors, so the true figure is lower; the decision ignores"
        " it."
    )


def unread_mark(f: CandidateFacts) -> str:
    """Return the mark of a score that `describe_unread` explains."""
    unread = f.answers.unread
    return " *" if unread and max(unread.cut, unread.unparsable, unread.unscored) > _FEW_UNREAD else ""


def describe_unread(facts: Iterable[CandidateFacts], metric: str) -> list[str]:
    """Name candidates whose answers were often cut or unreadable, with advice."""
    cut: dict[int, list[str]] = {}
    unparsable, unscored = [], []
    for f in facts:
        unread = f.answers.unread
        if unread and unread.cut > _FEW_UNREAD:
            cut.setdefault(unread.limit, []).append(f"{f.label} {100 * unread.cut:.0f} %")
        if unread and unread.unparsable > _FEW_UNREAD:
            unparsable.append(f"{f.label} {100 * unread.unparsable:.0f} %")
        if unread and unread.unscored > _FEW_UNREAD:
            unscored.append(f"{f.label} {100 * unread.unscored:.0f} %")
    parts = [
        f"* answers cut at max_new_tokens: {limit}: {', '.join(labels)}; set max_new_tokens: {2 * limit}"
        for limit, labels in cut.items()
    ]
    step = ""
    if trait(metric, "READS_WHOLE", False):
        step = "; tell the prompt to answer with the label alone, or set primary: label_in_answer"
    parts += [f"* empty answers, or none of the labels: {', '.join(unparsable)}{step}"] if unparsable else []
    return parts + ([f"* left out, without a score by {metric}: {', '.join(unscored)}"] if unscored else [])


def describe_stopped(facts: Iterable[CandidateFacts]) -> list[str]:
    """Describe in one line what stops fine-tunes, because candidates with the same weights may differ."""
    judged = ((f.label, verdict_word(f), f.verdict) for f in facts if f.verdict)
    stops = [
        f"{name} {word} ({name_reasons(v)})" for name, word, v in judged if word in ("FAIL", "UNDECIDED")
    ]
    return [f"what the verdicts rest on: {', '.join(stops)}"] if stops else []


def failure_line(f: CandidateFacts) -> str:
    """Describe why a candidate failed."""
    return f"{f.label} failed: {f.error or 'no reason was given'}"
