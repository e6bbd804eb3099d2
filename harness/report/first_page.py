"""First page of a report: the decision's reasons, the table, the picture, and next steps.

Invariant: a larger limit is advised only if there are unused items, as settings that can be used as printed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from harness import formatting, plugins
from harness.analysis import candidate_facts
from harness.analysis.economics import apply_budgets, list_more_seeds
from harness.analysis.estimators import is_judge, orient
from harness.analysis.next_step import basis_text, judge_by_wins
from harness.analysis.people_labels import count_enough_labels
from harness.analysis.seeds import pool_seeds
from harness.analysis.significance import SpareItems, find_settling
from harness.analysis.verdict import WORDS, MissRate, Verdict, name_reasons
from harness.config import CommandLine
from harness.report import wording
from harness.report.columns import RESULT_TABLE, heading, result_headings, result_rows
from harness.report.document import Command, FirstPage, Reason, Section
from harness.report.experiment_report import ExperimentReport
from harness.report.pictures import NARROW, front
from harness.spec import PEOPLE

_NOT_EXPLAINED = ("candidate", "gain")  # columns of the table without an explanation below it
_TASKS_NAMED = 3  # number of tasks named with the largest losses


def first_page(report: ExperimentReport) -> FirstPage:
    """Return the first page of a report."""
    picture = front(report, NARROW)
    # The table's columns that are specific to this program are explained below it.
    margin = "" if report.macro_margin is None else f" ({100 * report.macro_margin:g} points on average)"
    rules = (rule for f in report.facts if f.verdict for rule in f.verdict.rules)
    n = max((n for rule in rules if isinstance(n := rule.numbers.get("n_items"), int)), default=0)
    tasks = "items of these tasks" + (f", {formatting.count(n)} in all," if n else "")
    explained = (column for column in RESULT_TABLE if column.name not in _NOT_EXPLAINED)
    columns = " ".join(f"{heading(column)}: {column.meaning}.".replace("\n", " ") for column in explained)
    columns = columns.replace("95 % confidence", f"{100 * (1 - report.family.alpha):g} % confidence")
    columns = columns.replace("your margin", f"your margin{margin}").replace("items of these tasks", tasks)
    notes = [
        *wording.describe_unread(wording.best_first(report), report.metric),
        *wording.describe_stopped(wording.best_first(report)),
        f"{columns} In brackets: {wording.describe_intervals(report)}.",
        *filter(None, [wording.describe_disturbed(report.facts), labels_note(report)]),
    ]
    heads = [head.replace("\n", " ") for head in result_headings(report).values()]
    rows = [list(cells.values()) for cells in result_rows(report)]
    return FirstPage(
        reasons=list(reasons(report)),
        table=Section("candidates", "", heads, rows, notes=notes),
        next_steps=list(next_steps(report)),
        picture=picture,
        picture_file=f"{report.file_name}.front.svg" if picture else "",
    )


def labels_note(report: ExperimentReport) -> str:
    """Name the candidates whose scores are corrected by labels; empty if the metric is not a judge's."""
    if not is_judge(report.metric):
        return ""
    match = next((c for c in report.labels if c.metric == report.metric), None)
    names = [arm.name for arm in match.arms if arm.n_labels >= count_enough_labels(arm.n)] if match else []
    if not names:
        return f"{report.metric}: grades of a judge; too few answers have labels of people to correct them."
    arms = ", ".join(names)
    return f"{report.metric} of {arms}: corrected by people's labels; the report also has the judge's grades."


def find_judged(report: ExperimentReport) -> candidate_facts.CandidateFacts | None:
    """Return the fine-tune of the decision: the best that passes, else the strongest."""
    facts = apply_budgets(report.facts, report.policy) if report.policy else report.facts
    by_wins = report.declared is not None and report.declared.win_rate is not None
    facts = pool_seeds(judge_by_wins(facts) if by_wins else facts)
    return candidate_facts.judged_run(facts)


def reasons(report: ExperimentReport) -> Iterator[Reason]:
    """List the reasons of the decision; empty for a smoke run."""
    if report.smoke:
        return
    if run := find_judged(report):
        yield Reason("Gain", _gain_sentence(report, run))
        yield Reason("Forgetting", _describe_forgetting(report, run))
        yield from (Reason("Not judged", sentence) for sentence in list_unjudged_losses(report))
        n_items = formatting.count(run.target.n) if run.target else formatting.UNKNOWN
        parts = [f"measured on {n_items} test items"]
        if (against := run.vs_untrained) and against.n_clusters < against.n:
            parts[0] += f" in {formatting.count(against.n_clusters)} groups of alike ones"
        if miss := find_nearest_miss(run):
            lost, chance = f"{-100 * miss.delta:g} points", formatting.chance(miss.probability)
            parts.append(f"the gate lets a loss of {lost} on every task pass in {chance} of cases")
        if report.family.size > 1:
            parts.append(
                f"corrected for the {formatting.count(report.family.size)} fine-tunes that were judged"
            )
        summary = next((s for s in report.seeds if s.candidate == run.name), None)
        seeds = formatting.pluralize(len(summary.seeds) if summary else 1, "training seed")
        if candidate_facts.is_cross_validated(run):
            parts.append(
                "each item answered by a model that did not see it; the gain's interval includes their spread"
            )
        elif summary is not None and summary.score is not None:
            parts.append(f"{seeds}, and the gain's interval includes their spread")
        else:
            parts.append(f"{seeds}, so the spread between trainings is unknown (--seeds 0,1,2 shows it)")
        yield Reason("How sure", f"{'; '.join(parts)}.")
        return
    name = candidate_facts.best_untrained(report.facts)
    run = next((f for f in report.facts if f.name == name), None)
    if run is None or run.target is None:
        return
    rivals = [f for f in wording.best_first(report) if f.name != name and f.target and f.state == "done"]
    rival = f"; the next is {rivals[0].label} with {wording.target_text(rivals[0])}" if rivals else ""
    yield Reason("Score", f"{run.label} reaches {wording.target_text(run)} {report.metric} on test{rival}.")
    yield Reason("Forgetting", "nothing is trained, so nothing is forgotten.")
    n = formatting.count(run.target.n)
    yield Reason("How sure", f"chosen on validation; the interval is of {n} test items.")


def _gain_sentence(report: ExperimentReport, run: candidate_facts.CandidateFacts) -> str:
    by_metric = next((f for f in pool_seeds(report.facts) if f.run_id == run.run_id), run)
    g, best = candidate_facts.gain(by_metric.vs_untrained), candidate_facts.best_untrained(report.facts)
    against = next((f for f in report.facts if f.name == best), None)
    reached = f"{run.label} reaches {wording.target_text(run)} {report.metric}"
    if report.declared and report.declared.win_rate is not None and (wins := run.wins) and wins.rate:
        won = f"{wording.score_text(wins.rate)} % of items {basis_text(wins)}"
        required = f"{formatting.percent(report.declared.win_rate)} % is required"
        more = f"; {formatting.pluralize(wins.lacking, 'more rating')} of people needed"
        required += more if wins.lacking else ""
        reached = f"{run.label} is preferred to {wins.over} on {won}, where {required}. {reached}"
    if g is None or against is None:
        return f"{reached}; it was not compared with an untrained candidate."
    doubt = "" if g.low > 0 else ", which may be no gain at all" if g.high > 0 else ", which is a loss"
    seeds = f"over {g.components.n_seeds} seeds " if g.components else ""
    change = f"{seeds}{wording.change_text(g)} {g.unit.name}"
    if not report.unit.higher_is_better:
        change = f"a gain of {change} (lower is better)"
    # A judge's metric with a gain that labels do not correct.
    corrected = run.vs_untrained is not None and run.vs_untrained.estimator in ("ppi", "identical")
    unchecked = is_judge(report.metric) and (not corrected or run.labels_missing > 0)
    by = f", {candidate_facts.UNCHECKED}" if unchecked else ""
    return f"{reached}, {against.label} {wording.target_text(against)} without training: {change}{doubt}{by}."


def _describe_forgetting(report: ExperimentReport, run: candidate_facts.CandidateFacts) -> str:
    verdict = run.verdict
    if verdict is None:
        return f"what {run.label} forgot was not measured (suites:)."
    if verdict.outcome == "harness-drift":
        return "the base no longer answers as stored, so what was forgotten cannot be told."
    amount = "an unknown amount, for no task counts"
    if verdict.macro is not None:
        numbers = verdict.numbers("macro")
        n, margin = numbers.get("n_tasks"), numbers.get("margin")
        over = f" on average over {formatting.pluralize(n, 'task')}" if isinstance(n, int) else ""
        allowed = ""
        if isinstance(margin, float) and report.macro_margin is not None:  # not a share of the base's skill
            allowed = f", where a loss of {100 * margin:g} is allowed"
        amount = f"{formatting.points(*verdict.macro[:3])} points{over}{allowed}"
    vetoes = [r.numbers.get("vetoed") for r in verdict.rules if r.name in ("each", "safety")]
    vetoed = [task for tasks in vetoes if isinstance(tasks, list | tuple) for task in tasks]
    by_task = report.task_comparisons(run.label)
    losses = [(by_task[t], report.spans.get(t, 1.0)) for t in map(str, vetoed) if t in by_task]
    losses.sort(key=lambda pair: pair[0].unit.sign * pair[0].delta / pair[1])
    changes = (
        formatting.change(c.unit, c.delta)
        if span == 1
        else f"{formatting.points(c.delta / span)} of its range"
        for c, span in losses
    )
    lost = ", ".join(
        f"{c.task} {change}" for (c, _), change in zip(losses[:_TASKS_NAMED], changes, strict=False)
    )
    worst = f", worst on {lost}" if lost else ""
    why = "" if verdict.outcome == "pass" else f" ({name_reasons(verdict)})"
    text = f"the other capabilities of {run.label} changed by {amount}{worst}"
    return f"{text}; the gate says {WORDS[verdict.outcome]}{why}."


def list_unjudged_losses(report: ExperimentReport) -> list[str]:
    """List shown losses of fine-tunes on tasks without a rule, with the key that would judge them."""
    falls: dict[str, list[str]] = {}
    rises: dict[str, tuple[float, str]] = {}
    for f in filter(candidate_facts.is_fine_tuned, wording.best_first(report)):
        judged = {r.name for r in f.verdict.rules if r.outcome != "skipped"} if f.verdict else set()
        for task, c in report.task_comparisons(f.label).items():
            if task not in report.not_admitted or orient(c).high >= 0:
                continue
            if c.metric != "bits_per_byte":
                base, new = (formatting.score(c.unit, score) for score in (c.base, c.new))
                falls.setdefault(task, []).append(f"{f.label} {base} → {new}")
            elif "drift" not in judged:
                rises[task] = max(rises.get(task, (0.0, "")), (c.delta, f.label))
    parts = [
        f"{task} got worse ({', '.join(labels)}): {report.not_admitted[task]}."
        for task, labels in falls.items()
    ]
    if rises:
        tasks = ", ".join(f"{task} by {rise:.2f} ({label})" for task, (rise, label) in rises.items())
        parts.append(f"bits per byte rose on {tasks}, an early sign of loss; gate.drift would judge it.")
    return parts


def find_nearest_miss(run: candidate_facts.CandidateFacts) -> MissRate | None:
    """Return the chance of the smallest loss beyond the macro's margin, else of the largest."""
    if (at := run.corrected or run.verdict) is None:
        return None
    allowed = margin if isinstance(margin := at.numbers("macro").get("margin"), float) else 0.0
    by_loss = sorted((m for m in at.missed if m.what == "macro"), key=lambda m: -m.delta)
    return next((m for m in by_loss if -m.delta > allowed), by_loss[-1] if by_loss else None)


def next_steps(report: ExperimentReport) -> Iterator[Command]:
    """List next commands: first those that ship or decide, then those that may improve the result."""
    decision, run = report.decision, find_judged(report)
    if report.smoke:
        names = report.typed.candidates
        selected = ["--candidates", ",".join(names)] if names else []
        text = "measures it; a smoke run (--quick, --limit) is not evidence"
        yield Command(report.typed.command("compare", *selected), text)
        return
    has_goal = report.declared is not None and report.declared.win_rate is not None
    wins = [f.wins for f in report.facts if f.wins and run and f.name == run.name and has_goal]
    awaits_ratings = any(w.lacking or (w.rate is None and w.by == PEOPLE) for w in wins)
    if decision is not None and decision.candidate:
        name = decision.candidate
        runs = [f for f in report.facts if f.name == name]
        methods = [plugins.find_method(f.method) for f in runs]
        purpose = f"makes {name} the champion, which later gates compare with"
        purpose += "" if all(m.makes_language_model for m in methods) else f" on {report.task} alone"
        purpose += ", once it has answered the items that were not sampled" if report.sampled else ""
        is_judged = any(f.verdict is not None for f in runs)
        reason = () if is_judged else ("--force", "--reason", "REASON")
        line = report.typed.command("promote", name, *reason)
        yield Command(line, purpose if is_judged else f"{purpose}; no gate has judged it")
        if all(method.tunes and not method.is_remote for method in methods):
            line = report.typed.command("export", name, "--to", "merged")
            yield Command(line, "writes one model; --to gguf for llama.cpp and Ollama")
            if all(f.answer == "generate" for f in runs):
                line = report.typed.command("serve", name)
                yield Command(line, "serves it here by OpenAI's protocol")
    elif decision is not None and awaits_ratings:
        line = report.typed.command("rate", "export", "pairs.csv", "--pairs")
        yield Command(line, "draws pairs of answers for people to compare; harness rate import takes them")
    elif decision is not None and any(f.labels_missing for f in report.facts):
        line = report.typed.command("rate", "export", "labels.csv")
        yield Command(line, "draws answers for people to label; harness rate import takes their labels")
    else:
        yield _ask_open_question(report)
    if run is not None and run.verdict and not run.is_remote:
        failed_rules = {r.name for r in run.verdict.rules if r.outcome == "fail"}
        if candidate_facts.is_gain_shown(run) and {"macro", "each", "safety", "critical"} & failed_rules:
            line = report.typed.command("rescue", run.name)
            yield Command(line, f"tries versions of {run.name} that keep more")
    if decision is not None and decision.candidate and (more := _ask_more_seeds(report)):
        yield more


def _ask_more_seeds(report: ExperimentReport) -> Command | None:
    """Advise more seeds to show a gain or the spread of the shipped recipe; None if seeds do not help."""
    if (run := find_judged(report)) is None:
        return None
    why, seeds = "as its gain varies most between trainings", list_more_seeds(report.facts, run)
    ships = report.decision is not None and report.decision.candidate == run.name
    if (
        not seeds
        and ships
        and not candidate_facts.is_cross_validated(run)
        and len(candidate_facts.seeds_of(report.facts, run)) == 1
    ):
        why, seeds = "which shows by how much its trainings differ", (0, 1, 2)
    if not seeds:
        return None
    line = report.typed.with_settings([f"seeds=[{','.join(map(str, seeds))}]"]).command("compare")
    n = formatting.pluralize(len(seeds), "seed")
    return Command(line, f"trains {run.name} with {n} in all, {why}")


def _ask_open_question(report: ExperimentReport) -> Command:
    """Return the command that decides: the typed one, or one with more items."""
    judging = ["compare", *(["--sequential"] if report.sampled else [])]
    rerun = report.typed.command(*judging)
    if report.decision is None:
        return Command(rerun, "decides once a candidate has finished")
    if failed := [f.label for f in report.facts if f.state == "failed"]:
        return Command(rerun, f"tries again what failed ({', '.join(failed)}), and keeps the rest")
    if missing := report.decision.missing:
        return Command(rerun, f"decides once these candidates are added: {', '.join(missing)}")
    if report.decision.action == "collect more data":
        return Command(rerun, "decides once there are more training rows")
    about = find_judged(report)
    needing = [(f.name, at) for f in report.facts if (at := f.corrected or f.verdict) and at.items_needed]
    needing.sort(key=lambda pair: pair[1].items_needed or 0)
    # The verdicts of the decision, or the one that needs the fewest items.
    of_judged = [at for name, at in needing if about and name == about.name]
    if open_verdicts := of_judged or [at for _, at in needing[:1]]:
        relative = report.macro_margin is None
        return advise_more_items(
            open_verdicts, report.spare, report.typed, relative=relative, judging=judging
        )
    more = _ask_more_seeds(report)
    return more or Command(rerun, "decides once the decision has what it asks for")


def advise_more_items(
    verdicts: Sequence[Verdict],
    spare: Sequence[SpareItems],
    typed: CommandLine,
    *,
    relative: bool,
    judging: Sequence[str],
) -> Command:
    """Advise how to settle verdicts: larger limits, a wider margin (by the command `judging`), or tasks."""
    advice = find_settling(verdicts, spare, relative=relative)
    if advice.sizes:
        settings = [f"{key}={n}" for s, n in advice.sizes.items() for key in s.keys]
        more = formatting.count(sum(n - s.n for s, n in advice.sizes.items()))
        sizes = ", ".join(f"{s.task} {formatting.count(n)}" for s, n in advice.sizes.items())
        line = typed.with_settings(settings).command("compare")
        return Command(line, f"judges again, on {more} more items that the tasks hold ({sizes})")
    needs = f"the tasks hold {advice.held_text}, and some {formatting.count(advice.needed)} more are needed"
    if advice.margin:
        line = typed.with_settings([advice.margin]).command(*judging)
        return Command(line, f"judges by the least margin that these items can show; {needs} otherwise")
    line = typed.command("compare")
    return Command(line, f"judges again, once suites: lists other tasks, or their files more rows; {needs}")


def advise_on_power(
    n: Mapping[str, int],
    spare: Sequence[SpareItems],
    warn: Callable[[Mapping[str, int]], Sequence[str]],
    typed: CommandLine,
) -> Command:
    """Advise how to run without warnings of margins that `n` items by task probably cannot show."""
    if not warn({**n, **{s.task: s.held for s in spare}}):
        line = typed.with_settings([f"{key}={s.held}" for s in spare for key in s.keys])
        more = formatting.count(sum(s.left for s in spare))
        return Command(
            line.command("compare", "--strict"), f"asks {more} more items, all that the tasks hold"
        )
    purpose = "runs, once suites: lists other tasks, their files more rows, or gate: wider margins"
    return Command(typed.command("compare", "--strict"), purpose)
